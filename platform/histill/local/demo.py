"""Run the whole pipeline on one machine: `histill demo`.

Starts a real S3 server (where SeaweedFS is installed), an MLflow server and a Ray head, and runs each verb on them as a
user would. All files are in `.demo`; a second run reuses the results of the first.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histill.artifacts.model_folder import FINISHED_NAME, FinishedRun
from histill.cluster.progress import format_duration
from histill.config.arguments import Parser
from histill.config.common import Storage
from histill.errors import HistillError, InputError, format_error
from histill.local.demo_regions import BANDS, write_regions
from histill.local.ray_head import ray_head
from histill.local.s3 import has_s3_server, s3_server
from histill.local.sample_slide import sample_slide
from histill.local.tracking import mlflow_server
from histill.storage.control import exists
from histill.storage.records import read_record

FOLDER = Path(".demo")
BUCKET = "demo"
MODEL = "nuclei-student"
_NETWORK = "student.encoder=csat student.decoder_channels=[48,32,24,16,16] student.size_px=96"
_TEACHER = "teacher.classical=true"


@dataclass
class Demo:
    """The running demo: the environment of its commands, and their results."""

    environment: Mapping[str, str]
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    storage: Storage = field(default_factory=Storage)

    def run(self, verb: str, arguments: str, *, may_refuse: bool = False) -> dict[str, Any]:
        """Run `histill <verb> <arguments>` and return the JSON line that it prints last."""
        words = [verb, *shlex.split(arguments)]
        print(f"\n$ histill {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "histill", *words],
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode not in ((0, 1) if may_refuse else (0,)) or not done.stdout.strip():
            raise HistillError(
                f"histill {verb} ended with status {done.returncode}; its last line above says why.", code="demo-failed"
            )
        values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return values

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[list[str]]:
        """Time a stage; the lines that the block appends become its row in the closing table."""
        begun = time.monotonic()
        found: list[str] = []
        yield found
        self.rows.append((title, "\n".join(found), format_duration(time.monotonic() - begun)))

    def finished(self, run: str) -> bool:
        """Whether an earlier demo has finished this run."""
        there = exists(f"{run}/{FINISHED_NAME}", self.storage)
        if there:
            print(f"\n{run} is finished; it is kept.", flush=True)
        return there


def run_demo(slide: Path, mpp: float | None) -> None:
    """Run every stage on `slide` and print the results; pass `mpp` (um/px) if the slide does not record it.

    Raises HistillError when a job fails.
    """
    pictures = FOLDER / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    write_regions(slide, mpp, _index(slide), _cases(slide))
    with contextlib.ExitStack() as servers:
        servers.enter_context(_alone())
        root, keys = _store(servers)
        print("starting MLflow and Ray ...", flush=True)
        tracking = servers.enter_context(mlflow_server(FOLDER / "mlflow"))
        ray = servers.enter_context(ray_head(FOLDER / "ray", cpus=max(2, os.cpu_count() or 2), env=keys))
        os.environ.update(keys)  # for the few control files that this process reads itself
        environment = {
            **os.environ,
            **ray.environment(),
            "MLFLOW_TRACKING_URI": tracking.uri,
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str((FOLDER / "matplotlib").resolve()),  # keeps the font cache out of the home folder
        }
        demo = Demo(environment)
        picture = _stages(demo, slide, mpp, f"{root}/{_safe(slide.stem)}", pictures)
    _close(demo, picture)


def _store(servers: contextlib.ExitStack) -> tuple[str, dict[str, str]]:
    """Where tiles and runs go, and the environment to get there: an S3 server, or a folder where there is none."""
    if not has_s3_server():
        print(f"SeaweedFS is not installed (pip install 'histill[local]'): {FOLDER}/objects takes S3's place")
        return str((FOLDER / "objects").resolve()), {}
    print("starting S3 (SeaweedFS) ...", flush=True)
    s3 = servers.enter_context(s3_server(FOLDER / "s3", BUCKET))
    return f"s3://{BUCKET}", s3.environment()


def _stages(demo: Demo, slide: Path, mpp: float | None, root: str, pictures: Path) -> Path:
    with demo.stage("tiles") as found:
        pins = ", ".join(f"{split}: [{case}]" for split, case in _cases(slide).items())
        tiles = demo.run(
            "ingest",
            f"output={root}/tiles tile_px=160 slides.index={_index(slide)} "
            f"slides.mpp=0.5 slides.split_within_slide=true rows_per_group=16 'split.pinned={{{pins}}}'"
            + (f" slides.slide_mpp={mpp}" if mpp else ""),
        )
        counts = ", ".join(f"{tiles['splits'].get(split, 0)} {split}" for split in BANDS)
        found += [f"{tiles['tiles']} tiles of 160 px at 0.5 um/px ({counts})", f"{root}/tiles"]

    with demo.stage("teacher responses") as found:
        cached = demo.run("cache", f"tiles={root}/tiles {_TEACHER} output={root}/responses workers.count=1")
        found += [f"{cached['tiles']} responses of the classical nuclei teacher", cached["responses"]]
    data = (
        f"runs={root}/runs data.tiles={root}/tiles responses={cached['responses']} {_TEACHER} {_NETWORK} "
        "data.batch_size=8 optimizer.lr=2e-3 workers.count=2 workers.cpus=0.5"
    )

    with demo.stage("RCKD pretraining") as found:
        pretrained = f"{root}/runs/pretrained"
        if not demo.finished(pretrained):
            demo.run("pretrain", f"name=pretrained {data} optimizer.epochs=20")
        metrics = read_record(FinishedRun, f"{pretrained}/{FINISHED_NAME}", demo.storage).metrics
        found += [f"CSAT on 2 workers: val Dice {metrics['val_dice']:.3f} with the teacher", pretrained]

    with demo.stage("sweep") as found:
        sweep = f"{root}/runs/sweep"
        if not demo.finished(sweep):
            space = (
                "{loss.soft_cross_entropy.temperature: {loguniform: [1, 4]}, student.size_px: {choice: [96, 128]}, "
                "loss.soft_dice.weight: {uniform: [0, 1]}}"
            )
            demo.run("search", f"name=sweep {data} optimizer.epochs=10 trials=3 grace_epochs=4 'space={space}'")
        best = read_record(FinishedRun, f"{sweep}/{FINISHED_NAME}", demo.storage).metrics
        found += [f"3 trials: best val Dice {best['val_dice']:.3f} with the teacher", sweep]

    held_out = f"held_out.tiles={root}/tiles held_out.reference.classical=true"
    short = "bootstrap_samples=0 robustness_tiles=0 speed=false"
    with demo.stage("evaluation") as found:
        scores = {
            run: demo.run("score", f"model={run} {held_out} held_out.split=val {short}") for run in (pretrained, sweep)
        }
        candidate = max(scores, key=lambda run: scores[run]["figures"]["dice"])
        found += [f"{run.rpartition('/')[2]}: val Dice {score['figures']['dice']:.3f}" for run, score in scores.items()]

    with demo.stage("registration and promotion") as found:
        picture = pictures / f"{_safe(slide.stem)}.png"
        report = pictures / f"{_safe(slide.stem)}.html"
        wanted = f"picture={picture} report={report} bootstrap_samples=0 robustness_tiles=24"
        test = demo.run("score", f"model={candidate} {held_out} held_out.split=test {wanted}")
        figures = test["figures"]
        promoted = demo.run(
            "promote",
            f"model={candidate} registered_name={MODEL} {held_out} held_out.split=test 'gates.floors={{dice: 0.6}}' "
            "'gates.ceilings={gmacs: 6.0, parameters: 8000000}'",
            may_refuse=True,
        )
        found += [
            f"{MODEL} version {promoted['version']}: {promoted['decision']}",
            f"test Dice {figures['dice']:.3f}, mIoU {figures['miou']:.3f} with the teacher on {test['tiles']} tiles",
            f"{test['parameters'] / 1e6:.2f} M parameters, {test['gmacs']:.2f} GMACs at {test['size_px']} px "
            f"({test['gmacs_with_attention']:.2f} with attention products)",
        ]
    return picture


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second demo in the same folder, whose servers would share data files."""
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another demo is running on {FOLDER.resolve()}; wait for its end.", code="run-in-use"
            ) from None
        yield


def _close(demo: Demo, picture: Path) -> None:
    from tabulate import tabulate

    print("\n" + tabulate(demo.rows, headers=("stage", "result", "time"), tablefmt="grid"))
    print(
        "\nOne slide, three bands of it declared as cases: the figures show that the machine works, not that the\n"
        "model generalizes. The teacher is classical image analysis; Dice is agreement with it, as there are no labels."
    )
    print(f"\npictures: {picture} (tile | teacher | student), also in MLflow")
    print(f"report: {picture.with_suffix('.html')}")
    print("to see the runs in MLflow: histill ui")


def _index(slide: Path) -> Path:
    return FOLDER / f"{_safe(slide.stem)}.csv"


def _cases(slide: Path) -> dict[str, str]:
    return {split: f"{_safe(slide.stem)}-{split}" for split in BANDS}


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 a job failed, 2 no such slide, 130 interrupted."""
    parser = Parser(
        prog="histill demo", description="distil a CSAT student on this machine, from a slide to a champion"
    )
    parser.add_argument("--slide", type=Path, help="a whole slide image; default: a CC0 sample")
    parser.add_argument("--slide-mpp", type=float, help="microns per pixel of a slide that does not record them")
    arguments = parser.parse_args(argv)
    slide: Path | None = arguments.slide
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if slide is not None and not slide.is_file():
            raise InputError(
                f"slide {slide} does not exist; give the path of a whole slide image.", code="source-missing"
            )
        run_demo(slide or sample_slide(FOLDER), arguments.slide_mpp)
    except KeyboardInterrupt:
        print("\ninterrupted; run `histill demo` again to resume.", file=sys.stderr)
        return 130
    except HistillError as error:
        print(format_error(error), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
