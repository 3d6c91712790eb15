"""A student with 30, 50 and 70 % fewer multiply-accumulates, with and without a teacher, and each in 8-bit integers.

    python -m experiments.prune_students [--data ../shared/data] [--out results/prune_students] [--quick]

--data holds `ebhi_seg/` (EBHI-Seg, Shi et al., Front. Med. 10:1114673, 2023) with an index.csv. A classifier of
biopsies is trained on the labels. It is then pruned to a share of its multiply-accumulates, and recovers for the same
number of epochs on what it said itself before ("teacher", without labels), on the labels alone ("labels"), or on both.
Every model is scored on cases that no run has seen, as float and as ONNX Runtime's and OpenVINO's int8 against its own
float model, as `histill promote` does it; milliseconds a tile are those of one thread of this machine. A model of
which an int8 file is refused is trained for --recovery epochs more on what it said itself, without labels, once with
the roundings of int8 in every step and once without, and judged again.

The runs use the product's own code in this process; finished ones in --out are kept, and interrupted ones resumed.
Prints a line per model, a table, and as its last line one JSON object.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

ARMS: dict[str, dict[str, Any]] = {
    "teacher": {"divergence": {"temperature": 2.0}},
    "labels": {"divergence": None, "cross_entropy": {}},
    "both": {"divergence": {"temperature": 2.0}, "cross_entropy": {}},
}
SHARES = (0.7, 0.5, 0.3)
FORMATS = ("onnx", "onnx_int8", "openvino_int8")


@dataclasses.dataclass(frozen=True)
class Budget:
    """The size of the experiment."""

    data: Path
    out: Path
    student: str
    size_px: int
    epochs: int
    recovery: int  # epochs after pruning
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("results/prune_students"))
    parser.add_argument("--student", default="resnet_gn", help="csat, csat_fine, or any encoder of timm")
    parser.add_argument("--size-px", type=int, default=56, help="side at which it sees a tile of 224 px")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--recovery", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    chosen = parser.parse_args()
    rows = []
    for seed in range(chosen.seeds):
        epochs = (1, 1) if chosen.quick else (chosen.epochs, chosen.recovery)
        out = chosen.out.resolve() / f"{chosen.student}-{chosen.size_px}"
        rows += list(compare(Budget(chosen.data, out, chosen.student, chosen.size_px, *epochs, seed)))
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))
    print(json.dumps(rows))


def compare(budget: Budget) -> Iterator[dict[str, Any]]:
    """Train, prune and score; yields a row for each model."""
    from experiments.common.tile_sets import biopsies

    tiles = biopsies(budget.data, budget.out.parent).uri
    student = train(budget, tiles)
    models = {"as trained": student}
    for share in SHARES:
        for arm in ARMS:
            models[f"{1 - share:.0%} fewer, {arm}"] = prune(budget, tiles, student, share, arm)
    for name, model in models.items():
        row = {"model": name, "seed": budget.seed, **score(budget, tiles, model)}
        print(json.dumps(row), flush=True)
        yield row
        if all(row[f"{each} kept"] for each in FORMATS[1:]):
            continue
        for added, aware in (("rounded", True), ("longer", False)):
            longer = train_longer(budget, tiles, model, added, aware=aware)
            row = {"model": f"{name}, then {added}", "seed": budget.seed, **score(budget, tiles, longer)}
            print(json.dumps(row), flush=True)
            yield row


def train(budget: Budget, tiles: str) -> str:
    """The student, from labels; its run."""
    import histill

    name = f"student-{budget.seed}"
    if not (budget.out / name / "finished.json").exists():
        histill.finetune_student(
            **shared(budget, name, tiles, budget.epochs),
            target="classification",
            loss={"cross_entropy": {}},
            local=True,
        )
    return str(budget.out / name)


def prune(budget: Budget, tiles: str, student: str, share: float, arm: str) -> str:
    """The student, pruned and recovered; its run."""
    import histill

    name = f"{arm}-{share:g}-{budget.seed}"
    if not (budget.out / name / "finished.json").exists():
        histill.prune_student(
            **shared(budget, name, tiles, budget.recovery), continue_from=student, teacher={"model": student},
            macs=share, loss=ARMS[arm], local=True,
        )  # fmt: skip
    return str(budget.out / name)


def train_longer(budget: Budget, tiles: str, model: str, added: str, *, aware: bool) -> str:
    """The model trained on its own answers, `aware` of the roundings of int8 or not; its run."""
    import histill

    name = f"{Path(model).name}-{added}"
    if not (budget.out / name / "finished.json").exists():
        histill.distill_student(
            **shared(budget, name, tiles, budget.recovery), continue_from=model, teacher={"model": model},
            loss={"divergence": {"temperature": 2.0}}, quantization_aware=aware, local=True,
        )  # fmt: skip
    return str(budget.out / name)


def shared(budget: Budget, name: str, tiles: str, epochs: int) -> dict[str, Any]:
    """The keys that all runs have."""
    return {
        "name": name,
        "runs": str(budget.out),
        "data": {"tiles": tiles, "batch_size": 32, "seed": budget.seed, "balance": "label", "augment": {"flips": True}},
        "student": {"encoder": budget.student, "size_px": budget.size_px},
        "optimizer": {"epochs": epochs, "lr": 1e-3},
        "validation": {"keep": "last"},
        "seed": budget.seed,
    }


def score(budget: Budget, tiles: str, run: str) -> dict[str, Any]:
    """Figures of a model, and of its int8 files less its own; kept beside the run."""
    kept = Path(run) / "score.json"
    if kept.exists():
        return json.loads(kept.read_text())
    from histill.artifacts.model_folder import resolve
    from histill.config.common import Storage
    from histill.config.load import validate
    from histill.config.promote_model import PromoteConfig
    from histill.registry.candidate import examine_candidate

    keys = {"model": run, "registered_name": "student", "held_out": {"tiles": tiles}, "formats": FORMATS}
    config = validate(PromoteConfig, keys, "the experiment")
    assert config.held_out is not None
    found = examine_candidate(resolve(run, Storage()), config.held_out, config)
    row: dict[str, Any] = {
        "GMACs": found.score.gmacs,
        "M parameters": found.score.parameters / 1e6,
        "balanced accuracy": found.score.figures["balanced_accuracy"],
    }
    for export in found.exports[1:]:
        score = export.listed.rounded
        assert score is not None
        assert export.made is not None
        size = sum(map(len, export.made.files.values())) / 1e6
        row |= {
            export.listed.format: f"{score.difference:+.3f} ({score.low:+.3f} to {score.high:+.3f})",
            f"{export.listed.format} kept": score.passed,
            f"{export.listed.format} MB": size,
            f"{export.listed.format} ms": score.ms_per_tile,
            f"{export.listed.format} float ms": score.float_ms_per_tile,
            f"{export.listed.format} float layers": len(score.float_layers),
        }
    kept.write_text(json.dumps(row))
    return row


if __name__ == "__main__":
    main()
