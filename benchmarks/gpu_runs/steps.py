"""Training steps of students and passes of teachers on tiles that are already in the card's memory."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_runs.card import Row, explain, seconds_of, share_of_peak, wait_for
from histill.models import csat  # noqa: F401  (registers its sizes with timm)

CLASSES = 16
COMPUTE_SHARE, BUSY_SHARE = 0.35, 0.75
"""From these shares of the peak, and of the time in kernels, on a step counts as limited by compute, or by kernels."""
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class TrainingStep:
    """Distillation of a class distribution: bf16 autocast, AdamW in one kernel, gradients clipped to norm 1."""

    def __init__(
        self,
        name: str,
        px: int,
        batch: int,
        device: torch.device,
        *,
        compiled: bool = False,
        channels_last: bool = True,
    ) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=layout)
        self.layout = layout
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3, fused=device.type == "cuda")
        self.forward = torch.compile(self.network, dynamic=False) if compiled else self.network
        self.tiles = torch.randint(0, 256, (batch, 3, px, px), dtype=torch.uint8, device=device)
        self.target = torch.rand(batch, CLASSES, device=device).softmax(1)

    def __call__(self) -> None:
        self.learn(self.tiles)

    def learn(self, tiles: Tensor) -> None:
        """One step on uint8 tiles [B, 3, px, px]."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(tiles.device.type, torch.bfloat16):
            logits = self.forward(_normalize(tiles, torch.float32).contiguous(memory_format=self.layout))
        F.cross_entropy(logits.float(), self.target).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()


def _normalize(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    mean, std = (torch.tensor(each, device=tiles.device, dtype=dtype).view(1, 3, 1, 1) for each in (_MEAN, _STD))
    return (tiles.to(dtype) / 255 - mean) / std


def measure_steps(px: int, device: torch.device, *, quick: bool) -> Iterator[Row]:
    """`csat` at `px`: eager in both layouts and compiled with channels last, at the batch that is fastest in eager."""
    name, px, least_s = ("csat_tiny", 32, 0.01) if quick else ("csat", px, 0.5)
    flops = _count_flops(TrainingStep(name, px, 2, device)) / 2

    def timed(batch: int, kind: str = "", **how: bool) -> Row:
        return _timed(
            f"{name} {px} px{kind}", batch, lambda: TrainingStep(name, px, batch, device, **how), flops, device, least_s
        )

    fastest: Row = {}
    for batch in (2,) if quick else ((64, 256, 1024) if px <= 128 else (32, 128, 512)):
        yield (row := timed(batch))
        if row.get("tiles_per_s", 0) > 1.05 * fastest.get("tiles_per_s", 0):
            fastest = row
    if fastest:
        yield timed(fastest["batch"], ", NCHW", channels_last=False)
        if not quick:
            yield timed(fastest["batch"], ", compiled", compiled=True)


def measure_teacher(name: str, px: int, device: torch.device, *, quick: bool) -> Iterator[Row]:
    """The embeddings of a timm network with fresh weights, in bf16 and without gradients: eager, then compiled."""
    least_s = 0.01 if quick else 0.5
    torch.manual_seed(0)
    with torch.device(device):
        network = timm.create_model(name, num_classes=0)
    network = network.to(torch.bfloat16, memory_format=torch.channels_last).eval().requires_grad_(False)

    def build(batch: int, forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        tiles = torch.randint(0, 256, (batch, 3, px, px), dtype=torch.uint8, device=device)

        def run() -> None:
            with torch.inference_mode():
                forward(_normalize(tiles, torch.bfloat16).contiguous(memory_format=torch.channels_last))

        return run

    flops = _count_flops(build(1, network))
    batch = 1 if quick else 256
    yield _timed(f"{name} {px} px", batch, lambda: build(batch, network), flops, device, least_s)
    if not quick:
        compiled = torch.compile(network, dynamic=False)
        yield _timed(f"{name} {px} px, compiled", batch, lambda: build(batch, compiled), flops, device, least_s)


def _count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the convolutions, matrix products and attention of one call; one multiplication and addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _timed(
    what: str,
    batch: int,
    build: Callable[[], Callable[[], object]],
    flops_per_tile: float,
    device: torch.device,
    least_s: float,
) -> Row:
    """The speed of one call on a batch and what limits it; or why it failed, such as for lack of memory."""
    row: Row = {"what": what, "batch": batch}
    try:
        work = build()
        seconds = seconds_of(work, device, least_s)
        busy = _kernel_share(work, seconds, device)
    except Exception as error:  # whatever the compiler, the driver or the allocator raises is a result here
        return row | {"failed": explain(error)}
    finally:
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    tflops = flops_per_tile * batch / seconds / 1e12
    peak = share_of_peak(tflops, device)
    return row | {
        "tiles_per_s": round(batch / seconds, 1),
        "ms": round(1000 * seconds, 3),
        "gflops_per_tile": round(flops_per_tile / 1e9, 3),
        "tflops": round(tflops, 3),
        "peak": peak,
        "busy": busy,
        "limit": name_limit(busy, peak),
    }


def name_limit(busy: float | None, peak: float | None) -> str:
    """What limits a step: `launch` when kernels do not fill its time, `compute` near the peak, else `memory`.

    `busy` is the fraction of the time in kernels, `peak` that of the peak FLOP/s; None if unknown.
    """
    if busy is not None and busy < BUSY_SHARE:
        return "launch"
    if busy is None or peak is None:
        return "compute"
    return "compute" if peak >= COMPUTE_SHARE else "memory"


def _kernel_share(work: Callable[[], object], seconds: float, device: torch.device) -> float | None:
    """The fraction of `seconds`, the time of one call, in which a kernel runs; None where it cannot be measured."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    calls = 3
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(calls):
                work()
            wait_for(device)
        events: list[Any] = [each for each in profiler.events() or [] if each.device_type == DeviceType.CUDA]
    except RuntimeError:  # no access to the card's counters
        return None
    # One stream runs everything, so that kernels do not overlap; annotations span kernels and would count them twice.
    kernels = sum(each.time_range.elapsed_us() for each in events if not getattr(each, "is_user_annotation", False))
    return round(min(1.0, kernels / 1e6 / calls / seconds), 3) if kernels else None
