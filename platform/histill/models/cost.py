"""The cost of a model: parameters, latency, memory, and multiply-accumulates (MACs) in the two common conventions."""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_ACTIVATIONS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # products of one activation with another


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs for one square tile of `input_px` pixels.

    `macs` counts convolutions and linear layers, the convention of most papers. `macs_with_attention` adds
    the products between activations: queries by keys and weights by values, which grow with the square of the
    number of positions. One MAC is one multiplication and one addition; tools that count FLOPs report twice as many.
    Normalization, activations, pooling, resampling and products with a single vector count in neither. A weight that
    is applied as a batched product, with one matrix per head or group, counts as attention.
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
    and `model` is unchanged.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # With gradients torch computes a linear layer as one product in every layout, without them sometimes as a batched
    # product; and the counter fails on a weight that requires a gradient while gradients are disabled.
    shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(True)
    tile = torch.empty(1, channels, input_px, input_px, device="meta")
    # The math kernel computes attention as two batched products, which distinguishes it from linear layers.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shadow(tile)
    flops = counter.get_flop_counts().get("Global", {})
    total, activations = sum(flops.values()), sum(flops.get(operator, 0) for operator in _ACTIVATIONS)
    return Cost(parameters, (total - activations) // 2, total // 2, input_px)


def measure_latency_ms(model: nn.Module, input_px: int, *, tiles: int = 20) -> float:
    """Milliseconds that `model` takes for one tile of `input_px` pixels on one thread of this machine's CPU.

    The minimum of several runs, since other load can only add to it.
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


def measure_speed(
    model: Callable[[torch.Tensor], torch.Tensor], input_px: int, device: torch.device
) -> dict[str, float | str]:
    """Measure latency, throughput and memory of `model` on `device` for tiles of `input_px` pixels, at batch 1 and 32.

    Names carry the units; times are minima after a warm-up, since other load can only add to them. Memory is the peak
    at batch 32 above what was allocated before: of the GPU, or of this process on a CPU.
    """
    found: dict[str, float | str] = {"device": _name_of(device)}
    with torch.inference_mode():
        for tiles in (1, 32):
            batch = torch.zeros(tiles, 3, input_px, input_px, device=device)
            before = _start_of_memory(device)
            model(batch).cpu()
            least = _time_least(model, batch)
            found[f"ms_at_batch_{tiles}"] = round(1000 * least, 3)
            found["tiles_per_s"] = round(tiles / least, 1)
            found["peak_memory_mb"] = round((_most_memory(device) - before) / 1e6, 1)
    return found


def _time_least(model: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> float:
    """The least seconds that `model` takes for `batch`: of 5 calls, and of 20 where these fit in 10 seconds."""
    least, spent, calls = math.inf, 0.0, 0
    while calls < 5 or spent < 1.0 or (calls < 20 and spent < 10.0):
        begun = time.perf_counter()
        model(batch).cpu()
        took = time.perf_counter() - begun
        least, spent, calls = min(least, took), spent + took, calls + 1
    return least


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def _start_of_memory(device: torch.device) -> int:
    """Bytes allocated now; resets the peak counter."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # unsupported systems keep the peak of the process's lifetime
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _most_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A field of Linux's /proc/self/status, in bytes; 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
