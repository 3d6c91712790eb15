"""Adaptive average pooling as two products with constant matrices, for exported programs.

torch exports a pooling over windows of unequal sizes as a gather of every pixel, divided by a map of the sizes.
OpenVINO 2026.4.1 folds such a map into the kernel of the convolution behind it where the two have one shape, which put
the logits of CSAT at 112 px off by 0.008.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def pool_by_products(features: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` of [..., H, W] to `output_size`, the sides of its result.

    One number stands for both sides; None leaves one as it is.
    """
    sides = (output_size, output_size) if isinstance(output_size, int) else output_size
    rows, columns = (
        torch.tensor(average_windows(inside, wanted or inside), dtype=features.dtype)
        for inside, wanted in zip(features.shape[-2:], sides, strict=True)
    )
    return rows @ features @ columns.T


def average_windows(inside: int, wanted: int) -> list[list[float]]:
    """The matrix [wanted, inside] that averages `inside` values over `wanted` windows.

    Window i reaches from floor(i * inside / wanted) to ceil((i + 1) * inside / wanted), as torch's does.
    """
    windows = [(place * inside // wanted, -(-(place + 1) * inside // wanted)) for place in range(wanted)]
    return [[1 / (last - first) if first <= each < last else 0.0 for each in range(inside)] for first, last in windows]


class PoolingByProducts(TorchFunctionMode):
    """Within it, `torch.nn.functional.adaptive_avg_pool2d` is `pool_by_products`.

    A model is traced within it: decomposing the program afterwards would trace it once more.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call of torch's functions."""
        return (pool_by_products if func is F.adaptive_avg_pool2d else func)(*args, **(kwargs or {}))
