"""Score a model on held-out tiles."""

from dataclasses import dataclass, field

import numpy as np

from histill.config.common import Storage, Workers
from histill.config.score_model import HeldOut
from histill.evaluate.bootstrap import Answers, Interval, bootstrap_metrics, percentile_interval
from histill.evaluate.evaluator import Evaluator, Examined
from histill.evaluate.examine import examine
from histill.evaluate.groups import Group, score_groups
from histill.evaluate.predictions import Predictions
from histill.evaluate.subgroups import Subgroup, score_slides, score_stain_groups
from histill.metrics.objects import quality_of_classes
from histill.metrics.overlap import dice_and_iou
from histill.metrics.weighted import Figures
from histill.models.cost import measure_cost
from histill.outputs import MAIN_METRIC, Form


@dataclass(frozen=True)
class Score:
    """A model's figures on one split of one tile set; `metrics/weighted.py` says what they mean."""

    model_digest: str
    kind: Form
    split: str
    tiles: int  # scored: the split's tiles minus `corrupt`
    corrupt: int
    cases: int
    slides: int
    reference: str  # "labels", "labels, by a linear probe", "masks" or "teacher <first digits of its digest>"
    tiles_digest: str
    figures: dict[str, float]
    intervals: dict[str, Interval]  # 95 %, bootstrapped over cases; empty for a single case
    classes: dict[str, dict[str, float]]  # each class's own figures
    confusion: tuple[tuple[int, ...], ...]  # tiles or pixels, reference by decided class; empty for multi-label
    by_stain: dict[str, Subgroup]
    by_slide: dict[str, Subgroup]  # worst first
    parameters: int
    gmacs: float  # of convolutions and linear layers, per tile
    gmacs_with_attention: float
    size_px: int
    robustness: dict[str, float] = field(default_factory=dict)  # main figure by kind of degradation, if measured
    speed: dict[str, float | str] = field(default_factory=dict)  # on the scoring machine, if measured
    probe: dict[str, float | str] = field(default_factory=dict)  # facts about the probe of an encoder
    by_column: dict[str, dict[str, Group]] = field(default_factory=dict)  # column: value: its tiles; worst first
    by_case: dict[str, Subgroup] = field(default_factory=dict)  # of images, each of which is a slide; worst first
    reference_name: str = ""  # the reference in words
    seen_cases: int = 0  # scored cases that the model, its encoder or its teacher is known to have learned from
    seen_tiles: int = 0  # scored tiles that are byte-identical to one that it learned from

    @property
    def unit(self) -> str:
        """What `slides` counts."""
        return "image" if self.by_case else "slide"

    @property
    def main(self) -> str:
        """The name of the figure that models are compared by."""
        return MAIN_METRIC[self.kind]


def score_model(
    model: str, held_out: HeldOut, storage: Storage, *, bootstrap_samples: int = 0, workers: Workers | None = None
) -> Score:
    """Score the model folder or finished run `model` on every tile of `held_out`, each counted once.

    The intervals come from `bootstrap_samples` resamples of the cases; 0 gives none. Raises InputError as
    `examine` does, and for more undecodable tiles than allowed.
    """
    return compute_score(examine(model, held_out, storage, workers), bootstrap_samples=bootstrap_samples)


def compute_score(examined: Examined, *, bootstrap_samples: int) -> Score:
    """Compute the score from the predictions for the whole split."""
    examiner, answers = examined.examiner, examined.answers
    cases, slides = (read_column(examiner, answers, name) for name in ("case", "slide"))
    cost = measure_cost(examiner.network, examiner.card.size_px)
    count = len(np.unique(cases))  # a single case has no bootstrap spread
    figures: dict[str, float] = {}
    samples: Figures = {}
    parts: list[Answers] = [answers, *([] if examined.judgement is None else [examined.judgement])]
    for part in parts:
        figures |= {name: float(values[0]) for name, values in part.figures().items()}
        if bootstrap_samples and count > 1:
            samples |= bootstrap_metrics(part, cases, bootstrap_samples, seed=0)
    return Score(
        model_digest=examiner.digest,
        kind=examiner.outputs.form,
        split=examiner.held_out.split,
        tiles=len(answers.rows),
        corrupt=answers.corrupt,
        cases=count,
        slides=len(np.unique(slides)),
        reference=_name_reference(examiner),
        tiles_digest=examiner.manifest.header.digest,
        figures=figures,
        intervals={name: percentile_interval(values, count) for name, values in samples.items()},
        classes=_classes(answers),
        confusion=_confusion(answers),
        by_stain=score_stain_groups(answers, slides),
        by_slide=score_slides(answers, slides),
        parameters=cost.parameters,
        gmacs=cost.macs / 1e9,
        gmacs_with_attention=cost.macs_with_attention / 1e9,
        size_px=examiner.card.size_px,
        probe=examined.probe,
        by_column={
            name: score_groups(answers, cases, read_column(examiner, answers, name), bootstrap_samples)
            for name in examiner.held_out.by
        },
        by_case=score_slides(answers, cases) if _are_images(examiner, slides) else {},
        reference_name=_describe_reference(examiner),
    )


def _name_reference(examiner: Evaluator) -> str:
    if examiner.teacher is not None:
        return f"teacher {examiner.teacher.digest[:12]}"
    if examiner.probe is not None:
        return "labels, by a linear probe"
    return "masks" if examiner.outputs.dense else "labels"


def _are_images(examiner: Evaluator, slides: np.ndarray) -> bool:
    """Whether each tile is an image of its own, rather than cut from a slide; `slides` has that of each tile."""
    return examiner.manifest.header.slides is None and len(np.unique(slides)) == len(slides)


def _describe_reference(examiner: Evaluator) -> str:
    named = examiner.held_out.reference
    if examiner.teacher is None or named is None:
        return _name_reference(examiner)
    return f"the {named.label} ({examiner.teacher.digest[:12]})"


def read_column(examiner: Evaluator, answers: Predictions, name: str) -> np.ndarray:
    """The manifest's column `name` for each predicted tile."""
    return examiner.manifest.column(name, answers.rows)


def _classes(answers: Predictions) -> dict[str, dict[str, float]]:
    classes = answers.spec.scored
    if answers.spec.dense:
        dice, iou = dice_and_iou(answers.said.sum(0))
        pixels = {name: {"dice": float(dice[k]), "iou": float(iou[k])} for k, name in enumerate(classes)}
        return pixels if answers.objects is None else _add_objects(pixels, answers.objects.sum(0))
    if answers.spec.multi_label:
        said, there = answers.decide() > 0, answers.truth > 0
        return {
            name: {
                "tiles": int(there[:, k].sum()),
                "recall": _share(said[:, k], there[:, k]),
                "specificity": _share(~said[:, k], ~there[:, k]),
            }
            for k, name in enumerate(classes)
        }
    right = answers.decide() == answers.truth
    return {
        name: {"tiles": int((answers.truth == k).sum()), "recall": _share(right, answers.truth == k)}
        for k, name in enumerate(classes)
    }


def _add_objects(classes: dict[str, dict[str, float]], sums: np.ndarray) -> dict[str, dict[str, float]]:
    """Add the quality of each class's objects, whose counts are `sums`, [K - 1, 6]; the background has none."""
    quality = quality_of_classes(sums)
    return {
        name: {**values, **{figure: float(each[k - 1]) if k else float("nan") for figure, each in quality.items()}}
        for k, (name, values) in enumerate(classes.items())
    }


def _share(what: np.ndarray, among: np.ndarray) -> float:
    return float(what[among].mean()) if among.any() else float("nan")


def _confusion(answers: Predictions) -> tuple[tuple[int, ...], ...]:
    if answers.spec.multi_label:
        return ()
    if answers.spec.dense:
        counts = answers.said.sum(0)
    else:
        classes = len(answers.spec.scored)
        cells = answers.truth * classes + answers.decide()
        counts = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(row) for row in counts.tolist())
