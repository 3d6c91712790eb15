"""RCKD against its alternatives: does a student pretrained on a nuclei teacher's responses need fewer labels?

    python -m experiments.rckd_arms [--data ../shared/data] [--out results/rckd_arms] [--quick]

--data holds `ebhi_seg/` (EBHI-Seg, Shi et al., Front. Med. 10:1114673, 2023) and `nuinsseg/` (NuInsSeg, Mahbod et al.,
Scientific Data 11:295, 2024), each with an index.csv. A U-Net teacher, whose encoder starts from ImageNet's weights,
is trained on the nuclei masks of some organs and applied to the biopsies. Students are pretrained on its responses
(RCKD, soft or hard), or on the nuclei masks alone (supervised), or not at all (scratch), each for the same number of
steps, and then fine-tuned on a few of the cases: classes of biopsies, their glands, nuclei of other organs. Pretrained
students are fine-tuned with layer-wise decay of the learning rate, others without. "scratch_long" is a classifier
fine-tuned for as long as the others are pretrained and fine-tuned together; "rckd_soft_unet", if requested by --arms,
is RCKD without deep supervision. Students see crops of the biopsies at full resolution, and are scored on
whole tiles of cases and organs that no run has seen; nothing is selected by these scores.

The runs use the product's own code, in processes on this machine (without Ray; on a GPU if there is one); finished runs
in --out are kept. Prints a line per result, tables, and as its last line one JSON object of the first student.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from experiments.common import pool as pools
from experiments.common.table import Cell, draw, summary, table

ARMS = ("scratch", "scratch_long", "rckd_soft", "rckd_hard", "supervised")
LOSSES = {
    "rckd_soft": {},
    "rckd_hard": {"soft_cross_entropy": None, "hard_cross_entropy": {}},
    "rckd_soft_unet": {"deep": None},
}
PRETRAINED = (*LOSSES, "supervised")
STUDENTS = ("csat", "efficientnet_b0", "convnextv2_atto")
TARGETS = ("classification", "region", "nuclei")
DECODER, TEACHER_DECODER = (48, 32, 24, 16, 16), (96, 64, 48, 32, 16)
TEACHER_ENCODER = "tf_efficientnet_lite0"
BATCH, NUCLEI_BATCH = 16, 32  # crops of nuclei are smaller


@dataclass(frozen=True)
class Budget:
    """The size of the experiment; the same for every arm."""

    out: Path
    window_px: int  # side of the biopsies' crops
    teacher_steps: int
    pretrain_steps: int
    finetune_steps: int
    seeds: int
    other_seeds: int  # of the students after the first
    fractions: tuple[float, ...]
    students: tuple[str, ...]
    arms: tuple[str, ...]
    lr: float = 1e-3
    layer_decay: float = 0.5  # of pretrained students

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    def seeds_of(self, student: str) -> range:
        return range(self.seeds if student == self.students[0] else self.other_seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="default: results/rckd_arms, or results/rckd_arms_quick")
    parser.add_argument("--quick", action="store_true", help="one seed, CSAT alone, a twentieth of the work")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other-seeds", type=int, default=1, help="of the students after the first")
    parser.add_argument("--window-px", type=int, default=96)
    parser.add_argument("--teacher-steps", type=int, default=280)
    parser.add_argument("--pretrain-steps", type=int, default=355)
    parser.add_argument("--finetune-steps", type=int, default=60)
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=(*ARMS, "rckd_soft_unet"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, each on one thread")
    chosen = parser.parse_args()
    budget = Budget(
        out=(chosen.out or Path("results") / ("rckd_arms_quick" if chosen.quick else "rckd_arms")).resolve(),
        window_px=chosen.window_px,
        teacher_steps=chosen.teacher_steps,
        pretrain_steps=chosen.pretrain_steps,
        finetune_steps=chosen.finetune_steps,
        seeds=chosen.seeds,
        other_seeds=chosen.other_seeds,
        fractions=(0.05, 0.25, 1.0),
        students=tuple(chosen.students),
        arms=tuple(chosen.arms),
    )
    if chosen.quick:
        small = {"window_px": 64, "teacher_steps": 40, "pretrain_steps": 40, "finetune_steps": 16, "seeds": 1}
        budget = replace(budget, **small, fractions=(0.05,), students=("csat",))
    begun = time.monotonic()
    for student, values in compare(budget, chosen.data.resolve(), chosen.processes):
        found = summary(values, student)
        print(f"\n{student}\n{table(found, budget.arms)}\n", flush=True)
        draw(found, budget.arms, budget.out / f"{student}.png")
        if student == budget.students[0]:
            first = found
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes, pictures in {budget.out}")
    print(json.dumps(first))


def compare(budget: Budget, data: Path, processes: int) -> Iterator[tuple[str, dict[Cell, float]]]:
    """Run everything, student by student and stage by stage; yields the figures of each student's cells."""
    with pools.processes(processes) as pool:
        list(pool.map(make_tiles, [data] * 2, [budget.out] * 2, ("biopsies", "windows")))
        dice = pool.submit(teach, budget).result()
        print(f"teacher: Dice {dice:.3f} on windows of unseen organs", flush=True)
        for student in budget.students:
            arms = [arm for arm in budget.arms if arm in PRETRAINED]
            pretrainings = [(budget, student, arm, seed) for seed in budget.seeds_of(student) for arm in arms]
            for _ in pools.done(pool, pretrain, pretrainings, "pretraining"):
                pass
            cells = [(budget, cell) for cell in cells_of(budget, student)]
            yield student, dict(pools.done(pool, finetune, cells, "fine-tuning"))


def cells_of(budget: Budget, student: str) -> Iterator[Cell]:
    """All fine-tunings of a student, seed by seed."""
    for seed, target, arm in product(budget.seeds_of(student), TARGETS, budget.arms):
        for fraction in _fractions(budget, student, target, arm):
            yield Cell(student, arm, target, fraction, seed)


def _fractions(budget: Budget, student: str, target: str, arm: str) -> Iterable[float]:
    """The fractions to run: all arms with the fewest labels, which matter most, and fewer elsewhere."""
    few, first = (min(budget.fractions),), student == budget.students[0]
    if arm == "scratch_long":
        return few if first and target == "classification" else ()
    if not first:
        return few if target != "nuclei" else ()
    if arm not in ("scratch", "rckd_soft"):
        return few
    return budget.fractions if target != "nuclei" else sorted({min(budget.fractions), max(budget.fractions)})


def make_tiles(data: Path, out: Path, name: str) -> None:
    """Write one of the tile sets unless it exists."""
    from experiments.common import tile_sets

    out.mkdir(parents=True, exist_ok=True)
    getattr(tile_sets, name)(data, out)


def teach(budget: Budget) -> float:
    """Train the teacher and cache its responses to the biopsies; its Dice on unseen organs."""
    import torch

    from experiments.common.imagenet import lite0_weights
    from experiments.common.tile_sets import STORAGE
    from histill.config.score_model import HeldOut
    from histill.config.train_teacher import TeacherConfig
    from histill.evaluate.score import score_model
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import epochs_for, keys_of, responses, run

    torch.set_num_threads(os.cpu_count() or 1)  # nothing else is running
    tiles = read_manifest(str(budget.out / "windows"), STORAGE)
    epochs = epochs_for(budget.teacher_steps, tiles, NUCLEI_BATCH)
    keys = keys_of("teacher", budget.runs, tiles, 0, batch=NUCLEI_BATCH, epochs=epochs, lr=budget.lr)
    weights = lite0_weights(budget.out / f"{TEACHER_ENCODER}.safetensors")
    keys["network"] = {"encoder": TEACHER_ENCODER, "weights": str(weights), "decoder_channels": TEACHER_DECODER}
    teacher = run(TeacherConfig, keys)
    responses(teacher, read_manifest(str(budget.out / "biopsies"), STORAGE), budget.out / "responses")
    dice = score_model(teacher, HeldOut(tiles=tiles.uri), STORAGE).figures["dice"]
    torch.set_num_threads(1)
    return dice


def pretrain(budget: Budget, student: str, arm: str, seed: int) -> tuple[str, None]:
    """Run one pretraining, with the same number of steps for every arm."""
    from experiments.common.tile_sets import STORAGE
    from histill.config.pretrain_student import PretrainConfig
    from histill.config.train_teacher import TeacherConfig
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import epochs_for, keys_of, responses, run

    supervised = arm == "supervised"
    tiles = read_manifest(str(budget.out / ("windows" if supervised else "biopsies")), STORAGE)
    name, batch = _pretrained(student, arm, seed), NUCLEI_BATCH if supervised else BATCH
    epochs = epochs_for(budget.pretrain_steps, tiles, batch)
    window_px = None if supervised else budget.window_px
    keys = keys_of(name, budget.runs, tiles, seed, batch=batch, epochs=epochs, lr=budget.lr, window_px=window_px)
    if supervised:
        run(TeacherConfig, keys | {"network": _network(student), "loss": {"deep": {}}})
    else:
        teacher = str(budget.runs / "teacher")
        cached = responses(teacher, tiles, budget.out / "responses")
        rckd = {"student": _network(student), "teacher": {"model": teacher}, "responses": cached, "loss": LOSSES[arm]}
        run(PretrainConfig, keys | rckd)
    return name, None


def finetune(budget: Budget, cell: Cell) -> tuple[Cell, float]:
    """Run one fine-tuning; its figure on the test split."""
    from experiments.common.tile_sets import STORAGE
    from histill.config.finetune_student import FinetuneConfig
    from histill.config.score_model import HeldOut
    from histill.evaluate.score import score_model
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import FRESH_HEAD, epochs_for, keys_of, run

    kept = budget.out / "values" / f"{cell.name}.json"
    if kept.exists():
        return cell, json.loads(kept.read_text())
    nuclei, classification = cell.target == "nuclei", cell.target == "classification"
    tiles = read_manifest(str(budget.out / ("windows" if nuclei else "biopsies")), STORAGE)
    steps = budget.finetune_steps + (budget.pretrain_steps if cell.arm == "scratch_long" else 0)
    batch = NUCLEI_BATCH if nuclei else BATCH
    epochs = epochs_for(steps, tiles, batch, cell.fraction, cell.seed)
    window_px = None if nuclei else budget.window_px
    keys = keys_of(
        cell.name, budget.runs, tiles, cell.seed, batch=batch, epochs=epochs, lr=budget.lr, window_px=window_px
    )
    keys |= {"student": _network(cell.student), "fraction": cell.fraction, "fraction_seed": cell.seed}
    if not cell.arm.startswith("scratch"):
        keys["encoder"] = str(budget.runs / _pretrained(cell.student, cell.arm, cell.seed))
        keys["layer_decay"] = budget.layer_decay
    keys |= FRESH_HEAD
    keys["target"] = "classification" if classification else "segmentation"
    keys["loss"] = {"cross_entropy": {"class_weights": classification}}
    folder = run(FinetuneConfig, keys)
    figures = score_model(folder, HeldOut(tiles=tiles.uri), STORAGE).figures
    value = figures["balanced_accuracy" if classification else "miou" if cell.target == "region" else "dice"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(value))
    return cell, value


def _network(student: str) -> dict[str, object]:
    return {"encoder": student, "decoder_channels": DECODER}


def _pretrained(student: str, arm: str, seed: int) -> str:
    return f"{student}-{arm}-{seed}"


if __name__ == "__main__":
    main()
