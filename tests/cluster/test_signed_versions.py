"""A version's bundles, checksums and signature on a real MLflow server, and what is refused when it is read."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import ModelCard as HubCard
from mlflow import MlflowClient

import histill
from histill.artifacts import model_folder
from histill.artifacts.checksums import CHECKSUMS_NAME
from histill.artifacts.model_folder import ModelCard, build
from histill.artifacts.signature import SIGNATURE_NAME
from histill.config.common import Storage, Tracking
from histill.errors import InputError
from histill.registry.fetch import fetch_model
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.cluster

CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="cd" * 32, train_cases=("0123456789ab",),
    histill="0.1.0",
)  # fmt: skip


def write_keys(folder: Path, name: str) -> tuple[str, str]:
    """The files of a new private key and its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


@pytest.fixture
def promote(
    tile_set: Callable[..., Manifest], config: Tracking, name: str, tmp_path: Path
) -> Callable[..., torch.nn.Module]:
    """`promote(**keys)`: promotes a model that knows nothing, and returns it."""
    tiles = tile_set(tmp_path / "tiles", tiles=12, cases=6, labels=True)
    torch.manual_seed(0)
    network = build(CARD).eval()
    (tmp_path / "model").mkdir()
    model_folder.save(str(tmp_path / "model"), network, CARD)

    def run(**keys: Any) -> torch.nn.Module:
        done = histill.promote_model(
            model=str(tmp_path / "model"), registered_name=name, tracking=config, license="MIT",
            held_out={"tiles": tiles.uri, "split": "train"}, gates={"beat_constant": False, "bootstrap_samples": 100},
            **keys,
        )  # fmt: skip
        assert done.ok
        return network

    return run


def fetch(name: str, config: Tracking, folder: Path, public_key: str | None) -> ModelCard:
    """The card of the champion as it is read with this key."""
    folder.mkdir()
    asking = config.model_copy(update={"public_key": public_key})
    return model_folder.read_card(fetch_model(f"models:/{name}@champion", asking, folder), Storage())


def test_a_signed_version_is_verified_when_it_is_read(
    promote: Callable[..., torch.nn.Module], config: Tracking, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing.signing", exc_type=ImportError)  # of the extra `signing`
    private, public = write_keys(tmp_path, "release")
    _, other = write_keys(tmp_path, "other")
    network = promote(formats=["timm", "wsinfer", "smp"], signing_key=private)
    run_id = client.get_model_version(name, "1").run_id
    saved = Path(client.download_artifacts(run_id, "exports", str(tmp_path / "fetched")))
    check = ["sha256sum", "--check", "--strict", "--ignore-missing", CHECKSUMS_NAME]
    done = subprocess.run(check, cwd=saved, capture_output=True, text=True)
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert done.returncode == 0, done.stderr
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == files - {CHECKSUMS_NAME, SIGNATURE_NAME}
    assert "BEGIN" not in "".join(path.read_text(errors="replace") for path in saved.iterdir() if path.is_file())
    data: Any = HubCard((saved / "README.md").read_text()).data
    assert (data.license, data.model_name, data.pipeline_tag) == ("mit", name, "image-classification")
    assert "balanced_accuracy" in {result.metric_type for result in data.eval_results}
    assert {"timm", "wsinfer"} <= set(data.tags)
    assert "smp" not in data.tags  # a classifier has no such form
    opened = timm.create_model(f"local-dir:{saved}/timm", pretrained=True).eval()
    tiles = torch.rand(2, 3, 64, 64) * 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CARD.mean, CARD.std))
    with torch.inference_mode():
        assert torch.allclose(opened((tiles / 255 - mean) / std), network(tiles), atol=1e-5)

    assert fetch(name, config, tmp_path / "signed", public).encoder == "resnet_gn"
    with pytest.raises(InputError, match=r"^the signature of version 1 of '.*' is not of the key other\.pub"):
        fetch(name, config, tmp_path / "other", other)
    listed = (saved / CHECKSUMS_NAME).read_text()
    (saved / CHECKSUMS_NAME).write_text(listed.replace("model.json", "model.JSON"))
    client.log_artifact(run_id, str(saved / CHECKSUMS_NAME), "exports")
    with pytest.raises(InputError, match="or its SHA256SUMS was changed"):
        fetch(name, config, tmp_path / "relisted", public)
    with pytest.raises(InputError, match=r"^model\.json of version 1 of '.*' is not the file that was written"):
        fetch(name, config, tmp_path / "unlisted", None)


def test_an_unsigned_version_is_read_unless_a_signature_is_asked_for(
    promote: Callable[..., torch.nn.Module], config: Tracking, name: str, tmp_path: Path
) -> None:
    _, public = write_keys(tmp_path, "release")
    promote(formats=["timm"])
    assert fetch(name, config, tmp_path / "unsigned", None).encoder == "resnet_gn"
    with pytest.raises(InputError, match=r"^version 1 of '.*' is not signed; promote it again with signing_key"):
        fetch(name, config, tmp_path / "asked", public)


def test_a_version_is_signed_afterwards_by_the_same_promotion_with_a_key(
    promote: Callable[..., torch.nn.Module], config: Tracking, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing.signing", exc_type=ImportError)  # of the extra `signing`
    private, public = write_keys(tmp_path, "release")
    promote(formats=["onnx", "timm"])
    promote(formats=["onnx", "timm"], signing_key=private)
    assert fetch(name, config, tmp_path / "signed", public).encoder == "resnet_gn"


def test_a_key_that_cannot_sign_is_refused_before_anything_is_scored(
    promote: Callable[..., torch.nn.Module], client: MlflowClient, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing.signing", exc_type=ImportError)  # of the extra `signing`
    with pytest.raises(InputError, match=r"none\.pem cannot be used as private key"):
        promote(signing_key=str(tmp_path / "none.pem"))
    assert client.search_model_versions(f"name = '{name}'") == []
