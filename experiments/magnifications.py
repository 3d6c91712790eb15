"""Resolution distillation, the table of the paper: how good is a student at a lower magnification?

    python -m experiments.magnifications [--data ../shared/data] [--out results/magnifications] [--quick]

--data holds `ebhi_seg/` (EBHI-Seg, Shi et al., Front. Med. 10:1114673, 2023) with its index.csv: biopsies of six
classes, 224 px, split by case. A quarter of the training cases is labeled. The teacher, the resolution paper's network
(DiPalma et al., arXiv 2101.04170), is trained on these at 224 px. Students (`csat_fine`, CSAT for small tiles) see
the same tissue at a half, a quarter, an eighth and a sixteenth of the resolution and are trained on the labels alone
("labels_only"), or on the teacher's logits and last feature map, without labels: on the labeled cases ("distilled")
or on all training cases ("distilled_unlabeled"). All arms of a resolution take the same number of steps, and show the
classes equally often: those of the labels, or those that the teacher predicts. The curve shows how the last arm
improves with the number of unlabeled tiles. The same arms are run at a quarter with CSAT itself, for half as many
steps, and with the teacher's own network as the student, for a quarter of them.

The runs use the product's own code, in processes on this machine (without Ray; on a GPU if there is one); finished runs
in --out are kept. A seed determines the labeled cases, the weights and the order. No run is stopped or selected by the
scores, which are balanced accuracies on other cases. Prints a line per result, tables, and last one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from experiments.common import pool as pools

TEACHER, STUDENT = "resnet_gn", "csat_fine"
OTHERS = {"csat": 2, TEACHER: 4}  # students at the curve's scale, for comparison: divisor of their number of steps
LAYER = "layer4"  # the teacher's last
TILE_PX = 224
LABELS, DISTILLED, UNLABELED = "labels_only", "distilled", "distilled_unlabeled"
ARMS = (LABELS, DISTILLED, UNLABELED)
TEACHER_BATCH, BATCH = 16, 32
VIEWS = 8  # of each tile, among the symmetries of the square
COLORS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "stain": 0.15}  # of the students' tiles, in all arms


@dataclass(frozen=True)
class Budget:
    """The size of the experiment; the same for every arm of a resolution."""

    out: Path
    teacher_steps: int
    steps: dict[int, int]  # by scale
    seeds: dict[int, int]  # by scale; there is a teacher for each seed of the curve's scale
    labeled: float  # share of the training cases
    shares: tuple[float, ...]  # of the training cases, for the curve
    curve_scale: int = 4
    teacher_lr: float = 1e-3
    lr: float = 3e-3
    feature_weight: float = 2.0

    @property
    def runs(self) -> Path:
        return self.out / "runs"


@dataclass(frozen=True)
class Cell:
    """One student."""

    encoder: str
    arm: str
    scale: int
    share: float  # of the training cases that it sees
    seed: int

    @property
    def name(self) -> str:
        return f"{self.encoder}-{self.arm}-x{self.scale}-{self.share:g}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="default: results/magnifications, or results/magnifications_quick")
    parser.add_argument("--quick", action="store_true", help="one seed, two resolutions, a few steps")
    parser.add_argument("--seeds", type=int, default=3, help="at a quarter of the resolution")
    parser.add_argument("--other-seeds", type=int, default=3, help="at an eighth and a sixteenth")
    parser.add_argument("--half-seeds", type=int, default=3, help="at a half, where a step costs most; 0: none")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument(
        "--steps",
        type=int,
        default=2400,
        help="of a student at a half and a quarter of the resolution; half of it at an eighth and a sixteenth",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, each on one thread")
    chosen = parser.parse_args()
    seeds = {4: chosen.seeds, 8: chosen.other_seeds, 16: chosen.other_seeds, 2: chosen.half_seeds}
    steps = {4: chosen.steps, 8: chosen.steps // 2, 16: chosen.steps // 2, 2: chosen.steps}
    budget = Budget(
        out=(chosen.out or Path("results") / ("magnifications_quick" if chosen.quick else "magnifications")).resolve(),
        teacher_steps=chosen.teacher_steps,
        steps={scale: count for scale, count in steps.items() if seeds[scale]},
        seeds={scale: count for scale, count in seeds.items() if count},
        labeled=0.25,
        shares=(0.25, 0.5, 1.0),
    )
    if chosen.quick:
        budget = replace(budget, teacher_steps=60, steps={4: 60, 8: 60}, seeds={4: 1, 8: 1}, shares=(0.25, 1.0))
    begun = time.monotonic()
    with pools.processes(chosen.processes) as pool:
        pool.submit(make_tiles, chosen.data.resolve(), budget.out).result()
        seeds = range(max(budget.seeds.values()))
        teachers = dict(pools.done(pool, teach, [(budget, seed) for seed in seeds], "teachers"))
        values = dict(pools.done(pool, learn, [(budget, cell) for cell in cells_of(budget)], "students"))
    found = summary(budget, teachers, values)
    print(f"\n{tables(budget, found)}\n")
    draw(budget, found, budget.out / "magnifications.png")
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes, picture in {budget.out}")
    print(json.dumps(found))


def cells_of(budget: Budget) -> Iterator[Cell]:
    """All students, scale by scale in the order of the budget, the curve's scale with the students for comparison."""
    shares = {arm: 1.0 if arm == UNLABELED else budget.labeled for arm in ARMS}
    for scale, seeds in budget.seeds.items():
        for seed, arm in product(range(seeds), ARMS):
            yield Cell(STUDENT, arm, scale, shares[arm], seed)
        if scale == budget.curve_scale:
            for seed, arm, other in product(range(seeds), ARMS, OTHERS):
                yield Cell(other, arm, scale, shares[arm], seed)
            for seed, share in product(range(min(2, seeds)), budget.shares):
                if budget.labeled < share < 1:
                    yield Cell(STUDENT, UNLABELED, scale, share, seed)


def make_tiles(data: Path, out: Path) -> None:
    """Write the tile set unless it exists."""
    from experiments.common.tile_sets import biopsies

    out.mkdir(parents=True, exist_ok=True)
    biopsies(data, out)


def teach(budget: Budget, seed: int) -> tuple[int, dict[int, float]]:
    """Train a teacher and cache its responses; its balanced accuracy on tiles at 1 / scale of the resolution."""
    from experiments.common.tile_sets import STORAGE
    from histill.artifacts import model_folder
    from histill.config.score_model import HeldOut
    from histill.config.train_teacher import TeacherConfig
    from histill.evaluate.score import score_model
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import epochs_for, keys_of, responses, run

    tiles = read_manifest(str(budget.out / "biopsies"), STORAGE)
    epochs = epochs_for(budget.teacher_steps, tiles, TEACHER_BATCH, budget.labeled, seed)
    name, lr = f"teacher-{seed}", budget.teacher_lr
    keys = keys_of(name, budget.runs, tiles, seed, batch=TEACHER_BATCH, epochs=epochs, lr=lr)
    keys |= {"target": "classification", "network": {"encoder": TEACHER}, "loss": {"cross_entropy": {"smoothing": 0.1}}}
    keys |= {"fraction": budget.labeled, "fraction_seed": seed}
    keys["data"]["balance"] = "label"
    teacher = run(TeacherConfig, keys)
    responses(teacher, tiles, budget.out / "responses", layer=LAYER, views=VIEWS, augment={"flips": True})
    network, card, _ = model_folder.load(model_folder.resolve(teacher, STORAGE), STORAGE)
    values, held_out = {}, HeldOut(tiles=tiles.uri)
    for scale in (1, *budget.steps):
        folder = budget.out / "lowered" / f"teacher-{seed}-x{scale}"
        folder.mkdir(parents=True, exist_ok=True)
        model_folder.save(str(folder), network, card.model_copy(update={"size_px": TILE_PX // scale}))
        values[scale] = score_model(str(folder), held_out, STORAGE).figures["balanced_accuracy"]
    return seed, values


def learn(budget: Budget, cell: Cell) -> tuple[Cell, float]:
    """Train one student; its balanced accuracy on the test split."""
    from experiments.common.tile_sets import STORAGE
    from histill.config.distill_student import DistillConfig
    from histill.config.finetune_student import FinetuneConfig
    from histill.config.score_model import HeldOut
    from histill.evaluate.score import score_model
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import FRESH_HEAD, epochs_for, keys_of, responses, run

    kept = budget.out / "values" / f"{cell.name}.json"
    if kept.exists():
        return cell, json.loads(kept.read_text())
    tiles = read_manifest(str(budget.out / "biopsies"), STORAGE)
    steps = budget.steps[cell.scale] // OTHERS.get(cell.encoder, 1)
    epochs = epochs_for(steps, tiles, BATCH, cell.share, cell.seed)
    keys = keys_of(cell.name, budget.runs, tiles, cell.seed, batch=BATCH, epochs=epochs, lr=budget.lr)
    keys |= {"student": {"encoder": cell.encoder, "size_px": TILE_PX // cell.scale}}
    keys |= {"fraction": cell.share, "fraction_seed": cell.seed}
    keys["data"]["augment"] |= COLORS
    if cell.arm == LABELS:
        keys |= FRESH_HEAD | {"target": "classification", "loss": {"cross_entropy": {"smoothing": 0.1}}}
        keys["data"]["balance"] = "label"
        folder = run(FinetuneConfig, keys)
    else:
        teacher = str(budget.runs / f"teacher-{cell.seed}")
        where = budget.out / "responses"
        cached = responses(teacher, tiles, where, layer=LAYER, views=VIEWS, augment={"flips": True})
        keys |= {"teacher": {"model": teacher}, "responses": cached}
        keys["loss"] = {"features": {"weight": budget.feature_weight}}
        keys["data"]["balance"] = "response"
        keys["data"]["augment"]["flips"] = False  # the cached views are flipped already
        folder = run(DistillConfig, keys)
    value = score_model(folder, HeldOut(tiles=tiles.uri), STORAGE).figures["balanced_accuracy"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(value))
    return cell, value


def summary(budget: Budget, teachers: dict[int, dict[int, float]], values: dict[Cell, float]) -> dict[str, Any]:
    """Rows by scale, the curve, and the students for comparison."""
    from experiments.common.tile_sets import STORAGE
    from histill.tiles.manifest_file import read_manifest
    from histill.tiles.subsample import subsample_cases

    grouped: dict[tuple[str, str, int, float], list[float]] = defaultdict(list)
    for cell, value in values.items():
        grouped[cell.encoder, cell.arm, cell.scale, cell.share].append(value)

    def arms(encoder: str, scale: int) -> dict[str, Any]:
        shares = {LABELS: budget.labeled, DISTILLED: budget.labeled, UNLABELED: 1.0}
        return {arm: _mean(grouped[encoder, arm, scale, share]) for arm, share in shares.items()}

    rows = []
    for scale in sorted(budget.steps):
        gmacs, per_s = cost(STUDENT, TILE_PX // scale)
        teacher = statistics.mean(each[scale] for each in teachers.values())
        rows.append(
            {"scale": scale, "gmacs": gmacs, "tiles_per_s": per_s, "teacher": round(teacher, 4)} | arms(STUDENT, scale)
        )
    tiles = read_manifest(str(budget.out / "biopsies"), STORAGE)

    def unlabeled(share: float, seed: int) -> int:
        cases = subsample_cases(tiles, "train", share, seed) if share < 1 else None
        labeled = subsample_cases(tiles, "train", budget.labeled, seed)
        return len(tiles.rows_of("train", cases)) - len(tiles.rows_of("train", labeled))

    curve = []
    for share in budget.shares:
        arm = DISTILLED if share == budget.labeled else UNLABELED
        count = statistics.mean(unlabeled(share, seed) for seed in range(budget.seeds[budget.curve_scale]))
        curve.append((round(count), _mean(grouped[STUDENT, arm, budget.curve_scale, share])))
    gmacs, per_s = cost(TEACHER, TILE_PX)
    own = _mean([each[1] for each in teachers.values()])
    return {
        "rows": rows,
        "unlabeled_curve": [[count, value["mean"]] for count, value in curve],
        "unlabeled_curve_sd": [value["sd"] for _, value in curve],
        "teacher": {"scale": 1, "encoder": TEACHER, "gmacs": gmacs, "tiles_per_s": per_s} | own,
        "others": [
            {"encoder": other, "scale": budget.curve_scale, "gmacs": cost(other, TILE_PX // budget.curve_scale)[0]}
            | arms(other, budget.curve_scale)
            for other in OTHERS
        ],
    }


def cost(encoder: str, side_px: int) -> tuple[float, float]:
    """GMACs of convolutions and linear layers, and tiles per second in batches of 32 on all cores of this machine."""
    import torch

    from histill.models.classifiers import build_classifier
    from histill.models.cost import measure_cost
    from testbed.training import DEVICE

    model = build_classifier(encoder, 6, mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    macs = measure_cost(model, side_px).macs
    model = model.to(DEVICE, memory_format=torch.channels_last)
    batch = torch.randint(0, 256, (32, 3, side_px, side_px), dtype=torch.uint8, device=DEVICE)
    rates = []
    with torch.inference_mode():
        model(batch)
        for _ in range(3):
            begun, tiles = time.monotonic(), 0
            while time.monotonic() - begun < 1:
                model(batch).cpu()
                tiles += len(batch)
            rates.append(tiles / (time.monotonic() - begun))
    return round(macs / 1e9, 4), round(statistics.median(rates), 1)


def tables(budget: Budget, found: dict[str, Any]) -> str:
    """Markdown."""
    teacher = found["teacher"]
    first = ["1", "", f"{teacher['gmacs']:.3f}", f"{teacher['tiles_per_s']:.0f}", _said(teacher), "", "", ""]
    rows = [
        [
            f"1/{row['scale']}", TILE_PX // row["scale"], f"{row['gmacs']:.4f}", f"{row['tiles_per_s']:.0f}",
            f"{row['teacher']:.3f}", *(_said(row[arm]) for arm in ARMS),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    first[1] = str(TILE_PX)
    headers = [
        "resolution",
        "px",
        "GMACs",
        "tiles/s",
        "teacher",
        "labels only",
        "distilled",
        "distilled, unlabeled too",
    ]
    curve = zip(found["unlabeled_curve"], found["unlabeled_curve_sd"], strict=True)
    counts, figures = zip(*((count, _said({"mean": mean, "sd": sd})) for (count, mean), sd in curve), strict=True)
    return "\n\n".join(
        (
            tabulate([first, *rows], headers=headers, tablefmt="github", disable_numparse=True),
            tabulate([figures], headers=[f"{count} unlabeled tiles" for count in counts], tablefmt="github"),
            tabulate(
                [
                    [f"{other['encoder']} at 1/{other['scale']}", other["gmacs"], *(_said(other[arm]) for arm in ARMS)]
                    for other in found["others"]
                ],
                headers=["student", "GMACs", *headers[-3:]],
                tablefmt="github",
            ),
        )
    )


def draw(budget: Budget, found: dict[str, Any], path: Path) -> None:
    """Draw the arms against the resolution, and the curve against the number of unlabeled tiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(found["rows"]))
    for number, arm in enumerate(ARMS):
        cells = [row[arm] for row in found["rows"]]
        left.errorbar(
            [place + 0.06 * (number - 1) for place in places], [cell["mean"] for cell in cells],
            yerr=[cell["sd"] or 0 for cell in cells], marker="o", capsize=3, label=arm.replace("_", " "),
        )  # fmt: skip
    left.plot(places, [row["teacher"] for row in found["rows"]], "k:", label="teacher, shown these tiles")
    for axes in (left, right):
        axes.axhline(found["teacher"]["mean"], color="black", linewidth=1, label=f"teacher at {TILE_PX} px")
    left.set_xticks(places, [f"1/{row['scale']}\n{TILE_PX // row['scale']} px" for row in found["rows"]])
    left.set(xlabel="resolution", ylabel="balanced accuracy")
    left.legend(fontsize=8)
    counts, means = zip(*found["unlabeled_curve"], strict=True)
    right.errorbar(counts, means, yerr=[sd or 0 for sd in found["unlabeled_curve_sd"]], marker="o", capsize=3)
    right.set(xlabel=f"unlabeled tiles, student at 1/{budget.curve_scale}", ylabel="balanced accuracy")
    figure.savefig(path, dpi=120)


def _mean(values: list[float]) -> dict[str, Any]:
    spread = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 4), "sd": spread, "n": len(values)}


def _said(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.3f}" + ("" if cell["sd"] is None else f" ± {cell['sd']:.3f}")


if __name__ == "__main__":
    main()
