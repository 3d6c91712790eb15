"""RCKD against its alternatives: does a student pretrained on a nuclei teacher's responses need fewer labels?

    python benchmarks/rckd_arms.py [--data ../shared/data] [--out results/rckd_arms] [--quick]

--data holds `ebhi_seg/` (EBHI-Seg, Shi et al., Front. Med. 10:1114673, 2023) and `nuinsseg/` (NuInsSeg, Mahbod et al.,
Scientific Data 11:295, 2024), each with an index.csv. A U-Net teacher learns nuclei from the masks of some organs and
answers on the biopsies. Students are pretrained on these responses (RCKD, soft or hard), or on the nuclei's masks alone
(supervised), or not at all (scratch), each for as many steps, and then fine-tuned alike on a few of the cases: classes
of biopsies, their glands, nuclei of other organs. "scratch_long" is fine-tuned for as long as the others are pretrained
and fine-tuned together. All is scored on cases and organs that no run has seen; nothing is chosen by these scores.

The runs are the product's own, in processes of this machine (without Ray; on a GPU if there is one); what is finished
in --out is kept. Prints a line for each result, tables, and as its last line one JSON object of the first student.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from arms.table import Cell, draw, summary, table

ARMS = ("scratch", "scratch_long", "rckd_soft", "rckd_hard", "supervised")
PRETRAINED = ("rckd_soft", "rckd_hard", "supervised")
STUDENTS = ("csat", "efficientnet_b0", "convnextv2_atto")
TARGETS = ("classification", "region", "nuclei")
DECODER, TEACHER_DECODER = (48, 32, 24, 16, 16), (96, 64, 48, 32, 16)
BATCH, TEACHER_BATCH = 16, 32


@dataclass(frozen=True)
class Budget:
    """How much is done; the same for every arm."""

    out: Path
    size_px: int  # side at which students see a tile
    teacher_steps: int
    pretrain_steps: int
    finetune_steps: int
    seeds: int
    fractions: tuple[float, ...]
    students: tuple[str, ...]
    pretrain_lr: float = 1e-3
    finetune_lr: float = 5e-4

    @property
    def runs(self) -> Path:
        return self.out / "runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="default: results/rckd_arms, or results/rckd_arms_quick")
    parser.add_argument("--quick", action="store_true", help="one seed, CSAT alone, a twentieth of the work")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--pretrain-steps", type=int, default=700)
    parser.add_argument("--finetune-steps", type=int, default=150)
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, each on one thread")
    chosen = parser.parse_args()
    budget = Budget(
        (chosen.out or Path("results") / ("rckd_arms_quick" if chosen.quick else "rckd_arms")).resolve(),
        chosen.size_px, chosen.teacher_steps, chosen.pretrain_steps, chosen.finetune_steps, chosen.seeds,
        (0.05, 0.25, 1.0), tuple(chosen.students),
    )  # fmt: skip
    if chosen.quick:
        budget = Budget(budget.out, 64, 40, 40, 16, 1, (0.05,), ("csat",))
    begun = time.monotonic()
    values = compare(budget, chosen.data.resolve(), chosen.processes)
    for student in budget.students:
        found = summary(values, student)
        print(f"\n{student}\n{table(found, ARMS)}")
        draw(found, ARMS, budget.out / f"{student}.png")
    print(f"\n{(time.monotonic() - begun) / 60:.0f} minutes, pictures in {budget.out}")
    print(json.dumps(summary(values, budget.students[0])))


def compare(budget: Budget, data: Path, processes: int) -> dict[Cell, float]:
    """Everything, stage by stage; the figure of each cell."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        list(pool.map(make_tiles, [data] * 3, [budget.out] * 3, ("biopsies", "windows", "organs")))
        folder = pool.submit(teach, budget).result()
        print(f"teacher: Dice {folder[1]:.3f} on windows of unseen organs", flush=True)
        seeds, students = range(budget.seeds), budget.students
        pretrainings = [(budget, *each) for each in product(students, PRETRAINED, seeds)]
        for _ in _done(pool, pretrain, pretrainings, "pretraining"):
            pass
        return dict(_done(pool, finetune, [(budget, cell) for cell in cells_of(budget)], "fine-tuning"))


def cells_of(budget: Budget) -> Iterator[Cell]:
    """The first student on everything, the others where labels are fewest, and only on the two targets of the paper."""
    fewest = min(budget.fractions)
    for seed, target, arm in product(range(budget.seeds), TARGETS, ARMS):
        for student in budget.students:
            first = student == budget.students[0]
            for fraction in budget.fractions if first else (fewest,):
                if (first and (arm != "scratch_long" or fraction == fewest)) or (
                    not first and target != "nuclei" and arm != "scratch_long"
                ):
                    yield Cell(student, arm, target, fraction, seed)


def make_tiles(data: Path, out: Path, name: str) -> None:
    """Write one of the tile sets, unless it is there."""
    from arms import tile_sets

    out.mkdir(parents=True, exist_ok=True)
    getattr(tile_sets, name)(data, out)


def teach(budget: Budget) -> tuple[str, float]:
    """Train the teacher and let it answer on the biopsies; (its run, Dice on unseen organs)."""
    import torch
    from arms.tile_sets import STORAGE
    from arms.training import epochs_for, keys_of, responses, run

    from histill.config.runs import TeacherConfig
    from histill.config.scoring import HeldOut
    from histill.evaluate.score import score_model
    from histill.tiles.manifest import read_manifest
    from histill.train.prepare import prepare_teacher

    torch.set_num_threads(os.cpu_count() or 1)  # nothing runs beside it
    tiles = read_manifest(str(budget.out / "windows"), STORAGE)
    epochs = epochs_for(budget.teacher_steps, tiles, TEACHER_BATCH)
    keys = keys_of("teacher", budget.runs, tiles, 0, batch=TEACHER_BATCH, epochs=epochs, lr=1e-3)
    keys["network"] = {"encoder": "resnet18", "decoder_channels": TEACHER_DECODER}
    teacher = run(TeacherConfig, prepare_teacher, keys)
    responses(teacher, read_manifest(str(budget.out / "biopsies"), STORAGE), budget.out / "responses")
    dice = score_model(teacher, HeldOut(tiles=tiles.uri), STORAGE).dice
    torch.set_num_threads(1)
    return teacher, dice


def pretrain(budget: Budget, student: str, arm: str, seed: int) -> tuple[str, None]:
    """One pretraining, of as many steps whatever the arm."""
    from arms.tile_sets import STORAGE
    from arms.training import epochs_for, keys_of, responses, run

    from histill.config.runs import PretrainConfig, TeacherConfig
    from histill.tiles.manifest import read_manifest
    from histill.train.prepare import prepare_pretraining, prepare_teacher

    supervised = arm == "supervised"
    tiles = read_manifest(str(budget.out / ("organs" if supervised else "biopsies")), STORAGE)
    name, network = _pretrained(student, arm, seed), _network(budget, student)
    epochs = epochs_for(budget.pretrain_steps, tiles, BATCH)
    keys = keys_of(name, budget.runs, tiles, seed, batch=BATCH, epochs=epochs, lr=budget.pretrain_lr)
    if supervised:
        run(TeacherConfig, prepare_teacher, keys | {"network": network})
    else:
        teacher = str(budget.runs / "teacher")
        loss = {"soft": 1.0, "hard": 0.0} if arm == "rckd_soft" else {"soft": 0.0, "hard": 1.0}
        cached = responses(teacher, tiles, budget.out / "responses")
        rckd = {"student": network, "teacher": {"model": teacher}, "responses": cached, "loss": loss}
        run(PretrainConfig, prepare_pretraining, keys | rckd)
    return name, None


def finetune(budget: Budget, cell: Cell) -> tuple[Cell, float]:
    """One fine-tuning and its figure on the test split."""
    from arms.tile_sets import STORAGE
    from arms.training import epochs_for, keys_of, run

    from histill.config.finetune import FinetuneConfig
    from histill.config.scoring import HeldOut
    from histill.evaluate.score import score_model
    from histill.evaluate.score_classes import score_classes
    from histill.tiles.manifest import read_manifest
    from histill.train.prepare import prepare_finetuning

    kept = budget.out / "values" / f"{cell.name}.json"
    if kept.exists():
        return cell, json.loads(kept.read_text())
    tiles = read_manifest(str(budget.out / ("organs" if cell.target == "nuclei" else "biopsies")), STORAGE)
    steps = budget.finetune_steps + (budget.pretrain_steps if cell.arm == "scratch_long" else 0)
    epochs = epochs_for(steps, tiles, BATCH, cell.fraction, cell.seed)
    keys = keys_of(cell.name, budget.runs, tiles, cell.seed, batch=BATCH, epochs=epochs, lr=budget.finetune_lr)
    keys |= {"student": _network(budget, cell.student), "fraction": cell.fraction, "fraction_seed": cell.seed}
    if cell.arm in PRETRAINED:
        keys["encoder"] = str(budget.runs / _pretrained(cell.student, cell.arm, cell.seed))
    classification = cell.target == "classification"
    if classification:
        keys |= {"target": "classification", "class_weights": True}
    else:
        keys |= {"target": "segmentation"}
    folder = run(FinetuneConfig, prepare_finetuning, keys)
    held_out = HeldOut(tiles=tiles.uri)
    if classification:
        value = score_classes(folder, held_out, STORAGE).balanced_accuracy
    else:
        score = score_model(folder, held_out, STORAGE)
        value = score.miou if cell.target == "region" else score.dice
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(value))
    return cell, value


def _done(
    pool: ProcessPoolExecutor, work: Callable[..., tuple[Any, Any]], tasks: Iterable[tuple[object, ...]], title: str
) -> Iterator[tuple[Any, Any]]:
    """Results as they come, each with a line of its own and the time left."""
    futures, begun = [pool.submit(work, *task) for task in tasks], time.monotonic()
    for number, future in enumerate(as_completed(futures), start=1):
        key, value = future.result()
        spent = time.monotonic() - begun
        left = spent / number * (len(futures) - number) / 60
        name = key.name if isinstance(key, Cell) else key
        figure = f" {value:.3f}" if isinstance(value, float) else ""
        print(f"{title} {number}/{len(futures)}: {name}{figure} ({left:.0f} min left)", flush=True)
        yield key, value


def _network(budget: Budget, student: str) -> dict[str, object]:
    return {"encoder": student, "size_px": budget.size_px, "decoder_channels": DECODER}


def _pretrained(student: str, arm: str, seed: int) -> str:
    return f"{student}-{arm}-{seed}"


def _one_thread() -> None:
    """Runs share the cores by being several."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
