"""Checksums: sha256sum reads them, and whatever byte of whatever file changes is found."""

import subprocess
from pathlib import Path

import pytest

from histill.artifacts.checksums import CHECKSUMS_NAME, check_file, check_files, list_checksums
from histill.errors import InputError

pytestmark = pytest.mark.unit

FILES = {"model.onnx": b"\x00\x01\x02", "timm/config.json": b"{}", "README.md": b"# A classifier\n"}


def test_sha256sum_reads_the_list(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / CHECKSUMS_NAME).write_bytes(list_checksums(FILES | {"model.safetensors": b"elsewhere"}))
    command = ["sha256sum", "--check", "--ignore-missing", "--strict", CHECKSUMS_NAME]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]
    (tmp_path / "model.onnx").write_bytes(b"\x00\x01\x03")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_fails_verification(name: str) -> None:
    checksums = list_checksums(FILES)
    check_files(FILES, checksums, "version 3 of 'nuclei'")
    for position in range(len(FILES[name])):
        changed = bytearray(FILES[name])
        changed[position] ^= 1
        with pytest.raises(
            InputError, match=rf"^{name} of version 3 of 'nuclei' is not the file .*; fetch it"
        ) as caught:
            check_files(FILES | {name: bytes(changed)}, checksums, "version 3 of 'nuclei'")
        assert caught.value.code == "file-changed"
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_listed_fails_verification() -> None:
    with pytest.raises(InputError, match=r"^model\.pt of here is not the file"):
        check_files({"model.pt": b""}, list_checksums(FILES), "here")
    with pytest.raises(InputError, match=r"^model\.onnx of here"):
        check_files(FILES, b"\xff\xfe no list\n\n", "here")


def test_a_known_digest_is_that_of_the_standard() -> None:
    """FIPS 180-2, example B.1."""
    check_file("abc", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "here")
