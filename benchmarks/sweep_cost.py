"""The cost of a sweep compared with as many separate runs with a live teacher, and Tune's and Train's cost per trial.

    python -m benchmarks.sweep_cost [--tiles 128] [--trials 8] [--epochs 5] [--processors 2] [--quick]

The teacher is a U-Net on ResNet-50 that sees 512 px tiles at 448 px; it is trained on nuclei (those of the classical
teacher) on crops for a few steps beforehand, which is not counted. Students are CSATs that see the tiles at 96 px; a
trial draws the learning rate, the temperature and the weight of the Dice term. Three ways to train the same students
with the same seeds, each in separate processes on a separate Ray head, everything through the jobs that users run:

  live   one `pretrain_student.py` after the other, each with a live teacher
  full   `cache_responses.py`, then `search_students.py` without early stopping
  asha   `cache_responses.py` into another folder, then `search_students.py` with ASHA

CPU is that of all processes from before Ray starts until after it has ended: jobs, workers, Ray, Tune. The overhead of
a trial is the time from the report of one trial to the first report of the next, when one runs at a time, minus that of
a process that does the same work (one step, one validation) without Ray, from its start; medians.

Prints a line for each part, a table, and as its last line one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.loaders.cpu import TreeMeter

ROOT = Path(__file__).parents[1]
BATCH, STUDENT_PX, TEACHER_PX, TILE_PX, WINDOW_PX = 16, 96, 448, 512, 256
MPP, VAL_TILES = 0.25, 16
NETWORK = {"encoder": "csat", "decoder_channels": (48, 32, 24, 16, 16), "size_px": STUDENT_PX}
SPACE = {
    "optimizer.lr": {"loguniform": (1e-4, 1e-2)},
    "loss.soft_cross_entropy.temperature": {"loguniform": (1.0, 4.0)},
    "loss.soft_dice.weight": {"uniform": (0.0, 1.0)},
}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Budget:
    """The size of the benchmark."""

    out: Path
    tiles: int
    trials: int
    epochs: int
    processors: int
    teacher_steps: int
    overhead_trials: int
    seed: int
    live_runs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=128, help="to learn from")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processors", type=int, default=os.cpu_count(), help="that Ray may hand out")
    parser.add_argument("--teacher-steps", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="2 trials of 2 epochs on 32 tiles; its ratios mean nothing"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--live-runs", type=int, help="of the live runs, those to make; the others count as their mean")
    parser.add_argument(
        "--out", type=Path, help="folder that is kept, with the parts that are done; default: a temporary one"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-cost-") as name:
        budget = Budget(
            out=chosen.out or Path(name),
            tiles=chosen.tiles,
            trials=chosen.trials,
            epochs=chosen.epochs,
            processors=chosen.processors,
            teacher_steps=chosen.teacher_steps,
            overhead_trials=5,
            seed=chosen.seed,
            live_runs=chosen.live_runs or chosen.trials,
        )
        if chosen.quick:
            budget = Budget(budget.out, 32, 2, 2, budget.processors, 10, 3, budget.seed, 2)
        if chosen.part:
            PARTS[chosen.part](budget)
        else:
            compare(budget)


def compare(budget: Budget) -> None:
    """Run everything, each part in a separate process."""
    for part in ("prepare", "overhead"):
        measured(budget, part)
    overhead_s = json.loads((budget.out / "overhead.json").read_text())
    cpu = {part: measured(budget, part) for part in ("full", "asha", "live")}
    cpu["live"] *= budget.trials / budget.live_runs
    found = {part: json.loads((budget.out / f"{part}.json").read_text())["trials"] for part in cpu}
    totals = [[part, f"{cpu[part]:.0f}", f"{cpu[part] / cpu['live']:.3f}"] for part in cpu]
    print(f"\n{tabulate(totals, headers=['', 'CPU s', 'of live'], tablefmt='github', disable_numparse=True)}\n")
    print(f"{tabulate(list(rows(found)), headers='keys', tablefmt='github', floatfmt='.4g')}\n")
    print(f"a trial's own start, s: {overhead_s['trials']}; without Ray: {overhead_s['bare']}")
    print(
        json.dumps(
            {
                "cpu_ratio_full": round(cpu["full"] / cpu["live"], 4),
                "cpu_ratio_asha": round(cpu["asha"] / cpu["live"], 4),
                "trial_overhead_s": overhead_s["overhead_s"],
            }
        )
    )


def rows(found: Mapping[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each trial of the full sweep, best first, with its val Dice there, with ASHA (and its epochs) and live."""
    others = {part: {str(each["values"]): each for each in found[part]} for part in ("asha", "live")}
    for each in sorted(found["full"], key=lambda trial: -trial["quality"]):
        stopped, alone = (others[part].get(str(each["values"]), {}) for part in ("asha", "live"))
        yield (
            each["values"]
            | {"full": each["quality"], "asha": stopped.get("quality"), "epochs with asha": stopped.get("epochs")}
            | {"live": alone.get("quality")}
        )


def measured(budget: Budget, part: str) -> float:
    """Run a part in separate processes, unless already done in --out; the CPU seconds of all of them."""
    kept, begun = budget.out / f"{part}-cost.json", time.monotonic()
    if kept.exists():
        print(kept.read_text(), flush=True)
        return float(json.loads(kept.read_text())["cpu_s"])
    command = [sys.executable, "-m", "benchmarks.sweep_cost", "--part", part]
    for key in ("out", "tiles", "trials", "epochs", "processors", "teacher_steps", "seed", "live_runs"):
        command += [f"--{key.replace('_', '-')}", str(getattr(budget, key))]
    with TreeMeter() as meter:
        subprocess.run(command, check=True, env={**os.environ, **QUIET})
    spent = {"part": part, "cpu_s": round(meter.cpu_s, 1), "wall_s": round(time.monotonic() - begun, 1)}
    print(json.dumps(spent), flush=True)
    kept.write_text(json.dumps(spent))
    return meter.cpu_s


def prepare(budget: Budget) -> None:
    """Make the tiles, with the classical teacher's nuclei as masks, and train the ResNet-50 on these."""
    import torch

    from histill.config.common import Storage
    from histill.config.train_teacher import TeacherConfig
    from histill.tiles.manifest import HEADER_NAME
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import epochs_for, run

    torch.set_num_threads(budget.processors)
    if not (budget.out / "tiles" / HEADER_NAME).exists():
        make_tiles(budget)
    tiles = read_manifest(str(budget.out / "tiles"), Storage())
    keys = base(budget, "teacher") | {
        "network": {"encoder": "resnet50", "decoder_channels": (256, 128, 64, 32, 16), "size_px": TEACHER_PX},
        "optimizer": {"epochs": epochs_for(budget.teacher_steps, tiles, BATCH // 4), "lr": 1e-3},
    }
    keys["data"] |= {"batch_size": BATCH // 4, "augment": {"crop_px": WINDOW_PX}}
    run(TeacherConfig, keys)


def make_tiles(budget: Budget) -> None:
    """Make synthetic tiles of 512 px and their masks."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.loaders.tiles import make_tiles as make_files
    from histill.config.common import Storage
    from histill.teachers.classical import ClassicalTeacher
    from histill.testing.tile_sets import write_tile_set
    from histill.tiles.shards import Tile

    teacher, made = ClassicalTeacher(MPP), []
    for number, path in enumerate(make_files(budget.out / "jpeg", budget.tiles + VAL_TILES, budget.seed)):
        with Image.open(path) as image:
            tile = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        mask = teacher.respond(tile[None])[0].argmax(0).numpy().astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(mask).save(png, "PNG")
        made.append(Tile(f"{number}", "slide", "case", 0, 0, MPP, None, path.read_bytes(), png.getvalue()))
    splits = ["train"] * budget.tiles + ["val"] * VAL_TILES
    write_tile_set(
        str(budget.out / "tiles"),
        made,
        splits,
        tile_px=TILE_PX,
        per_shard=4 * BATCH,
        per_group=BATCH,
        storage=Storage(),
    )


def base(budget: Budget, name: str) -> dict[str, Any]:
    """The keys that all runs share."""
    return {
        "name": name,
        "runs": str(budget.out / "runs"),
        "seed": budget.seed,
        "data": {
            "tiles": str(budget.out / "tiles"), "batch_size": BATCH, "seed": budget.seed,
            "read_threads": 1, "decode_threads": 1, "augment": {"flips": False},
        },
        "optimizer": {"epochs": budget.epochs},
        "checkpoint_every": 10**9,
    }  # fmt: skip


def student(budget: Budget, name: str) -> dict[str, Any]:
    """A pretraining run."""
    teacher = {"model": str(budget.out / "runs" / "teacher")}
    workers = {"count": 1, "cpus": 0.6}
    return base(budget, name) | {"student": NETWORK, "teacher": teacher, "workers": workers}


def job(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job on the head at $RAY_ADDRESS; return its JSON line."""
    import yaml

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(json.loads(json.dumps(keys)), file)
        file.flush()
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), "-c", file.name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@contextmanager
def head(budget: Budget, name: str) -> Any:
    """A separate Ray head."""
    from histill.local.ray_head import ray_head

    with ray_head(budget.out / f"ray-{name}", cpus=budget.processors, token_auth=False) as started:
        os.environ.update(started.environment())
        yield


def sweep(budget: Budget, scheduler: str, part: str) -> None:
    """Run the teacher's pass and a sweep."""
    with head(budget, part):
        keys = student(budget, part)
        output = {"tiles": keys["data"]["tiles"], "teacher": keys["teacher"], "output": str(budget.out / f"by-{part}")}
        cached = job("cache_responses", output | {"workers": {"count": 1, "cpus": budget.processors - 0.5}})
        found = job(
            "search_students",
            keys
            | {"responses": cached["responses"], "space": SPACE, "trials": budget.trials, "sampler": "random"}
            | {"scheduler": scheduler},
        )
    record = json.loads((Path(found["run"]) / "sweep.json").read_text())
    keep(budget, part, [(each["values"], each["quality"], each["epochs"]) for each in record["trials"]])


def live(budget: Budget) -> None:
    """Repeat the runs of the full sweep with a live teacher, one after the other; best and worst first."""
    drawn = json.loads((budget.out / "full.json").read_text())["trials"]
    drawn = sorted(drawn, key=lambda each: -each["quality"])
    drawn = [drawn[0], *drawn[:0:-1]][: budget.live_runs]
    trials = []
    with TreeMeter() as meter, head(budget, "live"):
        before = 0.0
        for number, each in enumerate(drawn):
            keys = student(budget, f"live-{number}")
            for key, value in each["values"].items():
                group, _, name = key.partition(".")
                keys[group] = keys.get(group, {}) | {name: value}
            metrics = job("pretrain_student", keys)["metrics"]
            trials.append((each["values"], metrics["val_dice"], metrics["epochs"]))
            print(json.dumps({"live run": number, "cpu_s": round(meter.cpu_s - before, 1)}), flush=True)
            before = meter.cpu_s
    keep(budget, "live", trials)


def keep(budget: Budget, part: str, trials: list[tuple[dict[str, Any], float, int]]) -> None:
    """Write the results of a part."""
    found = [{"values": values, "quality": quality, "epochs": int(epochs)} for values, quality, epochs in trials]
    (budget.out / f"{part}.json").write_text(json.dumps({"trials": found}))


@dataclass(frozen=True)
class Clock:
    """A tracker that records when an epoch's metrics arrive."""

    path: str
    run_id: str
    uri: str = ""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if "epoch/loss" in values:
            with open(self.path, "a") as file:
                file.write(json.dumps([self.run_id, time.time()]) + "\n")

    def picture(self, name: str, png: bytes) -> None: ...
    def table(self, name: str, rows: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def finish(self, status: str) -> None: ...


def overhead(budget: Budget) -> None:
    """Measure trials of one step, one at a time, and processes without Ray."""
    from histill.cluster.connect import connect_cluster
    from histill.config.load import validate
    from histill.search.configs import PretrainSearch
    from histill.search.sweep import prepare_sweep, run_sweep

    keys = one_step(budget, "overhead") | {"space": SPACE, "sampler": "random", "scheduler": "none"}
    keys |= {"trials": budget.overhead_trials + 1, "concurrent": 1}
    path = str(budget.out / "clock.jsonl")

    def clocked(tracking: Any, *, name: str, **_: Any) -> Clock:
        return Clock(path, name)

    with head(budget, "overhead"), connect_cluster():
        run_sweep(prepare_sweep(validate(PretrainSearch, keys, "the benchmark")), clocked)
    times = [at for _, at in map(json.loads, Path(path).read_text().splitlines())]
    trials = [later - earlier for earlier, later in pairwise(times)]
    bare = []
    for _ in range(3):
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.sweep_cost", "--part", "bare", "--out", str(budget.out)], check=True
        )
        bare.append(time.monotonic() - begun)
    found = {
        "trials": [round(seconds, 1) for seconds in trials],
        "bare": [round(seconds, 1) for seconds in bare],
        "overhead_s": round(statistics.median(trials) - statistics.median(bare), 1),
    }
    (budget.out / "overhead.json").write_text(json.dumps(found))


def bare(budget: Budget) -> None:
    """Do the same work without Ray."""
    import torch

    from histill.config.pretrain_student import PretrainConfig
    from testbed.training import run

    torch.set_num_threads(1)
    run(PretrainConfig, one_step(budget, f"bare-{os.getpid()}"))


def one_step(budget: Budget, name: str) -> dict[str, Any]:
    """A run of one step and one validation, both of 16 tiles."""
    keys = student(budget, name) | {"teacher": {"classical": True}, "optimizer": {"epochs": 1}}
    keys["data"] = keys["data"] | {"train": "val"}
    return keys


PARTS = {
    "prepare": prepare,
    "overhead": overhead,
    "full": lambda budget: sweep(budget, "none", "full"),
    "asha": lambda budget: sweep(budget, "asha", "asha"),
    "live": live,
    "bare": bare,
}


if __name__ == "__main__":
    main()
