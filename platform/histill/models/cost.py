"""What a model costs: parameters and multiply-accumulates (MACs), in the two conventions in use."""

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs for one square tile of `input_px` pixels.

    `macs` counts convolutions and linear layers, the convention of most papers. `macs_with_attention` adds
    the products between activations: queries by keys and weights by values, which grow with the square of the
    number of positions. One MAC is one multiplication and one addition; tools that print FLOPs print twice as
    much. Normalisation, activations, pooling and resampling count in neither.
    """

    parameters: int
    macs: int
    macs_with_attention: int
    input_px: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.2f} M parameters; at {self.input_px} px {self.macs / 1e9:.3f} GMACs "
            f"(convolutions and linear layers), {self.macs_with_attention / 1e9:.3f} GMACs with attention "
            "products"
        )


def measure_cost(model: nn.Module, input_px: int, channels: int = 3) -> Cost:
    """Count the parameters of `model` and the MACs of one float tile [1, channels, input_px, input_px].

    The tile runs through a copy of the model on the meta device, in evaluation mode, so nothing is computed
    and `model` is not touched.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = _ProductCounter(shadow)
    tile = torch.empty(1, channels, input_px, input_px, device="meta")
    # The plain kernel splits attention into products that can be counted; the fused ones hide them.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shadow(tile)
    return Cost(parameters, counter.weighted, counter.weighted + counter.activations, input_px)


def measure_latency_ms(model: nn.Module, input_px: int, *, tiles: int = 20) -> float:
    """Milliseconds that `model` takes for one tile of `input_px` pixels on one thread of this machine's CPU.

    The least of several, since whatever runs beside can only lengthen it.
    """
    threads, training = torch.get_num_threads(), model.training
    torch.set_num_threads(1)
    model.eval()
    tile = torch.zeros(1, 3, input_px, input_px)
    times = []
    try:
        with torch.inference_mode():
            for _ in range(tiles):
                begun = time.perf_counter()
                model(tile)
                times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
        model.train(training)
    return 1000 * min(times)


def measure_speed(model: nn.Module, input_px: int, device: torch.device) -> dict[str, float | str]:
    """How fast `model` (on `device`) answers tiles of `input_px` pixels, alone and 32 at once, and what it holds.

    The names say the units; medians. Memory is the most that is held for 32 tiles beyond what was held before: of the
    GPU, or of this process where there is none.
    """
    found: dict[str, float | str] = {"device": _name_of(device)}
    with torch.inference_mode():
        for tiles in (1, 32):
            batch = torch.zeros(tiles, 3, input_px, input_px, device=device)
            before = _start_of_memory(device)
            model(batch)
            times: list[float] = []
            while sum(times) < 1.0 or len(times) < 5:
                begun = time.perf_counter()
                model(batch).cpu()
                times.append(time.perf_counter() - begun)
            found[f"ms_at_batch_{tiles}"] = round(1000 * statistics.median(times), 3)
            found["tiles_per_s"] = round(tiles / statistics.median(times), 1)
            found["peak_memory_mb"] = round((_most_memory(device) - before) / 1e6, 1)
    return found


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _start_of_memory(device: torch.device) -> int:
    """Bytes held now; the most that is held is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # not on every system; then the peak is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _most_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class _ProductCounter(TorchDispatchMode):
    """Add up the MACs of products with a weight and of products between activations.

    A batched product counts as weighted when one factor lives in a parameter's memory, because torch turns
    some linear layers into batched products.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weighted = 0
        self.activations = 0
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation is aten.convolution:
            self.weighted += _convolution_macs(args[0], args[1], out, transposed=args[6])
        elif operation in (aten.mm, aten.mv):
            self.weighted += _product_macs(*args[:2])
        elif operation in (aten.addmm, aten.addmv):
            self.weighted += _product_macs(*args[1:3])
        elif operation is aten.bmm:
            self._count_batched(*args[:2])
        elif operation is aten.baddbmm:
            self._count_batched(*args[1:3])
        return out

    def _count_batched(self, left: Tensor, right: Tensor) -> None:
        if any(factor.untyped_storage()._cdata in self._weights for factor in (left, right)):
            self.weighted += _product_macs(left, right)
        else:
            self.activations += _product_macs(left, right)


def _convolution_macs(tile: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """Each value of the output (of the input, when transposed) meets one filter of shape weight[0]."""
    return (tile if transposed else out).numel() * math.prod(weight.shape[1:])


def _product_macs(left: Tensor, right: Tensor) -> int:
    """[.., m, k] by [.., k, n] (or [k]) takes .. * m * k * n MACs."""
    return left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
