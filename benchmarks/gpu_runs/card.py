"""What the card can do: its peak by the data sheet, and what a plain matrix product and a copy reach."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Peak:
    """Dense bf16 matrix products (TFLOP/s, without sparsity) and memory (TB/s), from NVIDIA's data sheets."""

    words: str  # in torch.cuda.get_device_name
    tflops: float
    memory_tb_s: float
    source: str


_SHEETS = "https://www.nvidia.com/en-us/data-center/"
# The first whose words are all in the card's name is taken, so the particular come before the general.
PEAKS = (
    Peak("H100 PCIe", 756, 2.0, f"{_SHEETS}h100/"),
    Peak("H100 NVL", 835, 3.9, f"{_SHEETS}h100/"),
    Peak("GH200", 989, 4.0, f"{_SHEETS}grace-hopper-superchip/"),
    Peak("H100", 989, 3.35, f"{_SHEETS}h100/"),
    Peak("H200", 989, 4.8, f"{_SHEETS}h200/"),
    Peak("B200", 2250, 8.0, f"{_SHEETS}dgx-b200/"),
    Peak("A100 SXM4 80GB", 312, 2.039, f"{_SHEETS}a100/"),
    Peak("A100 80GB", 312, 1.935, f"{_SHEETS}a100/"),
    Peak("A100", 312, 1.555, f"{_SHEETS}a100/"),
    Peak("L40S", 362, 0.864, f"{_SHEETS}l40s/"),
    Peak("L4", 121, 0.3, f"{_SHEETS}l4/"),
    Peak("A10G", 70, 0.6, "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"),
    Peak("A10", 125, 0.6, f"{_SHEETS}products/a10-gpu/"),
)  # fmt: skip


def find_peak(name: str) -> Peak | None:
    """The data sheet's figures for the card of this name; None for a card that is not listed."""
    words = set(re.split(r"[ -]", name))
    return next((peak for peak in PEAKS if words.issuperset(peak.words.split())), None)


def share_of_peak(tflops: float, device: torch.device) -> float | None:
    """The fraction of the card's bf16 peak that `tflops` is; None on a CPU and on a card that is not listed."""
    peak = find_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else round(tflops / peak.tflops, 4)


def explain(error: Exception) -> str:
    """An exception as one line, for the row of a measurement that failed."""
    lines = str(error).strip().splitlines() or [""]
    told = lines[-1] if lines[0].startswith("Caught ") else lines[0]  # a DataLoader passes its worker's on in full
    return f"{type(error).__name__}: {told[:200]}"


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, least_s: float) -> float:
    """Seconds of one call of `work` after three to warm up: the median of three series of `least_s` or longer."""
    for _ in range(3):
        work()
    wait_for(device)
    series, at_once = [], 4 if device.type == "cuda" else 1  # waits rarely for a card, as a training loop does
    for _ in range(3):
        calls, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < least_s:
            for _ in range(at_once):
                work()
            calls += at_once
            wait_for(device)
        series.append((time.perf_counter() - begun) / calls)
    return sorted(series)[1]


def measure_card(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """The card by name, its matrix products in bf16 and its copies; random data, since zeros take less power."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    peak = find_peak(name)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    yield {"what": name, **versions} | (
        {} if peak is None else {"peak_tflops": peak.tflops, "peak_tb_s": peak.memory_tb_s, "source": peak.source}
    )
    side = 256 if quick else 8192
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = seconds_of(lambda: left @ right, device, 0.02 if quick else 0.3)
    tflops = 2 * side**3 / seconds / 1e12
    yield {"what": f"bf16 matrix product, {side}", "tflops": round(tflops, 1), "peak": share_of_peak(tflops, device)}
    source = torch.randn(side, side, 2 if quick else 16, device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device, 0.02 if quick else 0.3)
    yield {"what": "copy in memory", "tb_s": round(2 * source.nbytes / seconds / 1e12, 3)}
