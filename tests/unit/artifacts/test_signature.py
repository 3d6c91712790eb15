"""Signatures: model-signing reads them, and another list, another key and no signature are refused in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from histill.artifacts.checksums import CHECKSUMS_NAME, list_checksums
from histill.artifacts.signature import SIGNATURE_NAME, check_signing_key, sign_checksums, verify_checksums
from histill.errors import InputError

pytestmark = pytest.mark.unit
pytest.importorskip("model_signing.signing", exc_type=ImportError)  # of the extra `signing`

CHECKSUMS = list_checksums({"model.safetensors": b"weights", "model.json": b"{}"})


def write_keys(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[str, str]:
    """The files of a private key and its public key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return write_keys(tmp_path, "release", ec.generate_private_key(ec.SECP256R1()))


def test_a_signature_is_verified_here_and_by_model_signing(keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    check_signing_key(private)
    signature = sign_checksums(CHECKSUMS, private)
    verify_checksums(CHECKSUMS, signature, public, "version 3 of 'nuclei'")
    (tmp_path / CHECKSUMS_NAME).write_bytes(CHECKSUMS)
    (tmp_path / SIGNATURE_NAME).write_bytes(signature)
    command = ["verify", "key", CHECKSUMS_NAME, "--signature", SIGNATURE_NAME, "--public_key", public]
    done = subprocess.run(
        [Path(sys.executable).with_name("model_signing"), *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_list_and_a_damaged_signature_are_refused(keys: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    private, public = keys
    signature = sign_checksums(CHECKSUMS, private)
    damaged = [b"", b"{}", signature[:-40], signature.replace(b'"sig":"', b'"sig":"AAAA'), b"\xff" + signature]
    for checksums, bundle in [(CHECKSUMS + b"x", signature), *((CHECKSUMS, each) for each in damaged)]:
        with pytest.raises(InputError, match=r"^the signature of version 3 is not of the key release\.pub") as caught:
            verify_checksums(checksums, bundle, public, "version 3")
        assert caught.value.code == "signature-wrong"
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # the job's last line of stdout is read by programs


def test_another_key_and_no_signature_are_refused(keys: tuple[str, str], tmp_path: Path) -> None:
    signature = sign_checksums(CHECKSUMS, keys[0])
    _, other = write_keys(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(InputError, match=r"not of the key other\.pub"):
        verify_checksums(CHECKSUMS, signature, other, "version 3")
    with pytest.raises(InputError, match=r"^version 3 is not signed; promote it again with signing_key"):
        verify_checksums(CHECKSUMS, None, keys[1], "version 3")


def test_keys_that_cannot_be_used_are_named(keys: tuple[str, str], tmp_path: Path) -> None:
    of_rsa, of_rsa_public = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    koblitz, koblitz_public = write_keys(tmp_path, "koblitz", ec.generate_private_key(ec.SECP256K1()))
    missing = str(tmp_path / "none.pem")
    for key in (of_rsa, koblitz, missing, keys[1]):
        with pytest.raises(InputError, match=r" cannot be used as private key \(.+\); name a PEM file") as caught:
            check_signing_key(key)
        assert str(caught.value).startswith(key)
        assert caught.value.code == "key-unusable"
    for key in (of_rsa_public, koblitz_public, missing, keys[0]):
        with pytest.raises(InputError, match=" cannot be used as public key"):
            verify_checksums(CHECKSUMS, sign_checksums(CHECKSUMS, keys[0]), key, "version 3")


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(b"word")
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    with pytest.raises(InputError, match="without a password"):
        check_signing_key(str(tmp_path / "locked.pem"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(InputError, match=r"need the package .*; `pip install 'histill\[signing\]'`\.$"):
        check_signing_key("release.pem")
