"""RCKD on real H&E: does a student that never saw a mask find nuclei in organs that nobody trained on?

Takes a folder of NuInsSeg (Mahbod et al., Scientific Data 11:295, 2024; 512 px at 40x, CC BY 4.0) with an `index.csv`
of image, mask and organ, and runs the product's own jobs on it, with Ray on this machine: a network teacher is
trained on the masks of some organs, CSAT students are pretrained on the images of other organs without their masks,
and teacher and students are scored on organs that neither has seen.

    python -m experiments.nuclei_transfer path/to/nuinsseg --out results/nuclei_transfer

Prints a table, and as its last line one JSON object. Runs that are finished in --out are kept.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TEACHER_ORGANS = (
    "human pancreas",
    "human salivary gland",
    "mouse kidney",
    "human bladder",
    "human brain",
    "human cardia",
)
STUDENT_ORGANS = ("mouse fat", "human liver", "human tongue", "mouse liver", "human cerebellum", "human peritoneum")
VAL_ORGANS = ("human jejunum", "human melanoma")
TEST_ORGANS = (
    "human rectum", "human pylorus", "human umbilical cord", "human kidney", "human muscle",
    "mouse spleen", "mouse femur", "mouse thymus",
)  # fmt: skip
NETWORK = "decoder_channels=[96,64,48,32,16]"


def job(name: str, *arguments: str) -> dict[str, Any]:
    """Run one job as a user would; return its closing JSON line."""
    print(f"$ python jobs/{name}.py {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"jobs/{name}.py ended with status {done.returncode}")
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def tiles(data: Path, out: Path, name: str, train: tuple[str, ...]) -> str:
    """A tile set of the organs `train`, and of the validation and test organs."""
    pins = {"train": list(train), "val": list(VAL_ORGANS), "test": list(TEST_ORGANS)}
    wanted = {organ for organs in pins.values() for organ in organs}
    index = out / f"{name}.csv"
    with (data / "index.csv").open(newline="") as source, index.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("image", "mask", "organ"))
        for row in csv.DictReader(source):
            if row["organ"] in wanted:
                writer.writerow((data / row["image"], data / row["mask"], row["organ"]))
    job(
        "ingest_tiles",
        f"output={out / name}",
        "tile_px=512",
        f"images.index={index}",
        "images.mpp=0.25",
        "images.columns={image: image, mask: mask, case: organ, label: organ}",
        f"split.pinned={json.dumps(pins)}",
        "rows_per_group=16",
    )
    return str(out / name)


def run(name: str, run_name: str, out: Path, *arguments: str) -> str:
    """Train a run, or keep the finished one; return the URI of its folder."""
    uri = out / "runs" / run_name
    if not (uri / "finished.json").exists():
        job(name, f"name={run_name}", f"runs={out / 'runs'}", "workers.count=2", "workers.cpus=0.5", *arguments)
    return str(uri)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/nuclei_transfer"))
    parser.add_argument("--seeds", type=int, default=3, help="students for each arm")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size-px", type=int, default=256, help="side at which teacher and students see a tile")
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    begun = time.monotonic()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    size, batch = arguments.size_px, "data.batch_size=8"

    teacher_tiles = tiles(data, out, "teacher-tiles", TEACHER_ORGANS)
    teacher = run(
        "train_teacher", "teacher", out, f"data.tiles={teacher_tiles}", batch, "network.encoder=resnet18",
        f"network.size_px={size}", f"network.{NETWORK}", f"optimizer.epochs={arguments.teacher_epochs}",
    )  # fmt: skip
    student_tiles = tiles(data, out, "student-tiles", STUDENT_ORGANS)
    responses = job(
        "cache_responses", f"tiles={student_tiles}", f"teacher.model={teacher}", f"output={out / 'responses'}"
    )
    classical = job(
        "cache_responses", f"tiles={student_tiles}", "teacher.classical=true", f"output={out / 'responses'}"
    )

    student = (
        f"data.tiles={student_tiles}",
        batch,
        "student.encoder=csat",
        f"student.size_px={size}",
        f"student.{NETWORK}",
    )
    network_teacher = (f"teacher.model={teacher}", f"responses={responses['responses']}")
    arms = {
        "untrained CSAT": (*network_teacher, "optimizer.epochs=1", "optimizer.lr=1e-12"),
        "CSAT, RCKD from the classical teacher": (
            "teacher.classical=true", f"responses={classical['responses']}", f"optimizer.epochs={arguments.epochs}",
        ),
        "CSAT, RCKD from the network teacher": (*network_teacher, f"optimizer.epochs={arguments.epochs}"),
    }  # fmt: skip
    held_out = (f"held_out.tiles={student_tiles}", "held_out.split=test")
    dice: dict[str, list[float]] = {}
    teacher_score = job("score_model", f"model={teacher}", *held_out, f"picture={out / 'teacher.png'}")
    dice["network teacher (ResNet-18 U-Net)"] = [teacher_score["figures"]["dice"]]
    for arm, keys in arms.items():
        for seed in range(arguments.seeds):
            name = arm.replace(", ", "-").replace(" ", "-").lower() + f"-{seed}"
            folder = run("pretrain_student", name, out, *student, *keys, f"seed={seed}", f"data.seed={seed}")
            score = job("score_model", f"model={folder}", *held_out, f"picture={out / name}.png")
            dice.setdefault(arm, []).append(score["figures"]["dice"])

    print(f"\nDice with the masks of {teacher_score['tiles']} tiles of {len(TEST_ORGANS)} unseen organs")
    for arm, values in dice.items():
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"{arm:<42} {statistics.mean(values):.3f}{spread}  (n = {len(values)})")
    minutes = (time.monotonic() - begun) / 60
    print(json.dumps({"dice": dice, "tiles": teacher_score["tiles"], "minutes": round(minutes, 1)}))


if __name__ == "__main__":
    main()
