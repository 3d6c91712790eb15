"""Which cases and labels a run learns from."""

from histill.config.distill import DistillConfig
from histill.config.finetune import FinetuneConfig
from histill.config.runs import TeacherConfig
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.tiles.manifest import Manifest
from histill.tiles.subsets import balanced_weights, few_cases
from histill.train.checks import check_masks


def few_of(config: TeacherConfig | FinetuneConfig | DistillConfig, manifest: Manifest) -> frozenset[str] | None:
    """The training cases that are used, None for all."""
    if config.fraction == 1:
        return None
    return few_cases(manifest, config.data.train, config.fraction, config.fraction_seed)


def labels_to_learn(
    config: TeacherConfig | FinetuneConfig, manifest: Manifest, cases: frozenset[str] | None
) -> tuple[OutputSpec, tuple[float, ...] | None]:
    """What a classifier is to answer, and the weights of its classes if it weights them.

    Raises InputError for a tile without a label.
    """
    classes = config.classes or manifest.label_names(multi_label=config.multi_label)
    if len(classes) < 2:
        raise InputError(
            f"the tiles of {manifest.uri} have {len(classes)} labels ({', '.join(classes) or 'none'}) and a "
            "classifier needs two; ingest them with a label column."
        )
    outputs = OutputSpec("classification", classes, config.multi_label)
    manifest.labels_of(outputs, manifest.rows_of(config.data.val))
    rows = manifest.rows_of(config.data.train, cases)
    labels = manifest.labels_of(outputs, rows)
    return outputs, balanced_weights(labels[rows], len(classes)) if config.class_weights else None


def labels_to_see(
    config: DistillConfig, manifest: Manifest, outputs: OutputSpec, cases: frozenset[str] | None
) -> tuple[frozenset[str] | None, bool]:
    """The cases whose labels a distillation may see, and whether its validation is judged by the teacher instead.

    Raises InputError for a label that is no class of the teacher, and where masks are wanted and missing.
    """
    training, validation = manifest.rows_of(config.data.train, cases), manifest.rows_of(config.data.val)
    if outputs.dense:
        if config.labelled < 1:
            raise InputError(f"labelled is {config.labelled:g}, which is for classifiers; leave it out.")
        if config.loss.attention:
            raise InputError("loss.attention explains the class of a tile, which is for classifiers; leave it out.")
        if config.loss.labels or config.loss.decoupled:
            check_masks(manifest, config.data.train, config.data.val)
            return None, False
        return None, True
    manifest.labels_of(outputs, training, needed=False)
    by_teacher = bool((manifest.labels_of(outputs, validation, needed=False)[validation] < 0).any())
    if config.labelled == 1:
        return None, by_teacher
    return few_cases(manifest, config.data.train, config.labelled, config.fraction_seed), by_teacher
