"""The benchmark of a GPU in its small form, on the CPU: each part runs with torch, timm, pandas and pyarrow alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import cores_to_feed, run_guarded, summary, table
from benchmarks.gpu_runs.card import find_peak
from benchmarks.gpu_runs.steps import name_limit

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
# Every installed distribution that these four do not ask for, directly or not, is hidden.
WITH_FOUR_ALONE = """
import json, sys, tempfile
from importlib.metadata import MetadataPathFinder, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

allowed, left = set(), ["torch", "timm", "pandas", "pyarrow"]
while left:
    name = canonicalize_name(left.pop())
    if name not in allowed:
        allowed.add(name)
        try:
            wanted = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:  # for another system
            continue
        left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
blocked = {
    module for module, names in packages_distributions().items()
    if not allowed & set(map(canonicalize_name, names)) and module != "packaging"
} - {"histill"}


class Installed:  # finds what the four ask for, and nothing else
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        return next(filter(None, (each.find_spec(name, path, target) for each in self.finders)), None)

    def find_distributions(self, *context):
        yield from MetadataPathFinder.find_distributions(*context)


assert {"pydantic", "simplejpeg", "cv2", "ray", "scipy", "xxhash", "segmentation_models_pytorch"} <= blocked
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path[:] = [Installed(list(sys.meta_path))]

import torch
from benchmarks.gpu import PARTS

with tempfile.TemporaryDirectory() as folder:
    for name, (_, part) in PARTS.items():
        if name in ("step_224", "fed_224"):  # in the small form the same as at 112 px
            continue
        for row in part(Path(folder), torch.device("cpu"), True):
            print(json.dumps({"part": name} | row), flush=True)
"""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-c", WITH_FOUR_ALONE], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_part_runs_with_torch_timm_pandas_and_pyarrow_alone(rows: list[dict]) -> None:
    failed = {row["what"]: row["failed"] for row in rows if "failed" in row}
    assert failed == {"stream 112 px, histill": "ModuleNotFoundError: No module named 'pydantic'"}
    measured = {row["what"] for row in rows if row.get("tiles_per_s", 0) > 0}
    assert measured >= {
        "csat_tiny 32 px",
        "csat_tiny 32 px, NCHW",
        "resnet18 224 px",
        "vit_tiny_patch16_224 224 px",
        "stream 112 px, threads, Pillow",
        "stream 112 px, processes, Pillow",
        "decode on the card, 112 px",
        "csat_tiny 64 px fed by the card's decoder",
    }


def test_flops_are_those_of_the_published_networks(rows: list[dict]) -> None:
    by_name = {row["what"]: row["gflops_per_tile"] for row in rows if "gflops_per_tile" in row}
    assert by_name["resnet18 224 px"] == pytest.approx(2 * 1.82, rel=0.02)  # 1.82 GMACs, as timm's table has it
    assert by_name["vit_tiny_patch16_224 224 px"] == pytest.approx(2 * 1.08, rel=0.02)  # 1.08 with attention products


def test_a_table_and_one_object_end_it(rows: list[dict]) -> None:
    assert table(rows).count("\n") == len(rows)
    told = summary(rows)
    assert told["card"] == "CPU"
    assert list(told["failed"]) == ["stream: stream 112 px, histill"]
    assert json.loads(json.dumps(told)) == told


def test_what_fails_or_hangs_is_reported_after_what_it_measured() -> None:
    def run(code: str, limit_s: float = 60) -> list[dict]:
        return list(run_guarded([sys.executable, "-c", "print('{\"what\": 1}', flush=True);" + code], limit_s))

    assert run("print('a warning')") == [{"what": 1}]
    assert run("raise ValueError('too large')") == [{"what": 1}, {"failed": "status 1: ValueError: too large"}]
    assert run("import time; time.sleep(60)", 3) == [{"what": 1}, {"failed": "stopped after 3 s"}]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_card_is_found_by_the_words_of_its_name(name: str, tflops: float | None) -> None:
    peak = find_peak(name)
    assert (None if peak is None else peak.tflops) == tflops


def test_the_memory_of_an_a100_tells_its_bandwidth() -> None:
    found = [find_peak(f"NVIDIA A100-{kind}") for kind in ("SXM4-80GB", "SXM4-40GB")]
    assert [peak and peak.memory_tb_s for peak in found] == [2.039, 1.555]


def test_what_limits_is_named_by_busy_and_peak() -> None:
    assert name_limit(0.4, 0.2) == "launch"
    assert name_limit(0.98, 0.6) == "compute"
    assert name_limit(0.98, 0.1) == "memory"
    assert name_limit(None, None) == "compute"


def test_cores_that_feed_a_step_are_its_speed_over_one_cores() -> None:
    rows = [
        {"part": "step_112", "what": "csat 112 px", "tiles_per_s": 9000.0},
        {"part": "step_112", "what": "csat 112 px, compiled", "tiles_per_s": 12000.0},
        {"part": "step_224", "what": "csat 224 px", "failed": "OutOfMemoryError: ..."},
        {"part": "stream", "what": "stream 112 px, threads", "tiles_per_s": 8000.0, "cores": 16},
        {"part": "stream", "what": "stream 224 px, threads", "tiles_per_s": 4000.0, "cores": 16},
    ]
    assert cores_to_feed(rows) == {"112": 24.0}
