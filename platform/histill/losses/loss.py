"""The table of loss terms, and the check that a run can supply what its terms need."""

from pydantic import model_validator

from histill.errors import InputError
from histill.losses.term import Need, Term, Weighted
from histill.losses.terms.attention import Attention
from histill.losses.terms.contrastive import Contrastive
from histill.losses.terms.cross_entropy import CrossEntropy
from histill.losses.terms.decoupled import Decoupled
from histill.losses.terms.dice import Dice
from histill.losses.terms.divergence import Divergence
from histill.losses.terms.embedding_contrastive import EmbeddingContrastive
from histill.losses.terms.embedding_cosine import EmbeddingCosine
from histill.losses.terms.embedding_mse import EmbeddingMse
from histill.losses.terms.embedding_relational import EmbeddingRelational
from histill.losses.terms.embedding_smooth_l1 import EmbeddingSmoothL1
from histill.losses.terms.features import Features
from histill.losses.terms.hard_cross_entropy import HardCrossEntropy
from histill.losses.terms.many_features import ManyFeatures
from histill.losses.terms.relational import Relational
from histill.losses.terms.soft_cross_entropy import SoftCrossEntropy
from histill.losses.terms.soft_dice import SoftDice
from histill.losses.terms.tokens import Tokens
from histill.strict import Strict


class DeepSupervision(Weighted):
    """The terms on logits, applied again to the encoder's deep stages, which get heads of their own in training."""


class Loss(Strict):
    """A loss: its terms by name; null or a weight of 0 leaves a term out. Each job has its own defaults."""

    soft_cross_entropy: SoftCrossEntropy | None = None
    hard_cross_entropy: HardCrossEntropy | None = None
    soft_dice: SoftDice | None = None
    divergence: Divergence | None = None
    features: Features | None = None
    cross_entropy: CrossEntropy | None = None
    dice: Dice | None = None
    decoupled: Decoupled | None = None
    many_features: ManyFeatures | None = None
    attention: Attention | None = None
    contrastive: Contrastive | None = None
    relational: Relational | None = None
    embedding_cosine: EmbeddingCosine | None = None
    embedding_mse: EmbeddingMse | None = None
    embedding_smooth_l1: EmbeddingSmoothL1 | None = None
    embedding_relational: EmbeddingRelational | None = None
    embedding_contrastive: EmbeddingContrastive | None = None
    tokens: Tokens | None = None
    deep: DeepSupervision | None = None

    @property
    def terms(self) -> dict[str, Term]:
        """The terms with a positive weight."""
        return {name: term for name, term in dict(self).items() if isinstance(term, Term) and term.weight > 0}

    @property
    def deep_weight(self) -> float:
        """The weight of deep supervision; 0 without it."""
        return 0.0 if self.deep is None else self.deep.weight

    @property
    def weighs_classes(self) -> bool:
        """Whether a term weights the classes of labels."""
        return self.cross_entropy is not None and self.cross_entropy.class_weights

    @property
    def needs(self) -> frozenset[Need]:
        """The union of what the terms need."""
        return frozenset(need for term in self.terms.values() for need in term.needs)

    @property
    def of_answers(self) -> dict[str, Term]:
        """The terms on the model's logits, which need neither feature maps nor embeddings."""
        return {name: term for name, term in self.terms.items() if not term.needs & {"maps", "embeddings"}}

    @property
    def of_embeddings(self) -> dict[str, Term]:
        """The terms on embeddings of tiles rather than on token maps."""
        return {name: term for name, term in self.select("embeddings").items() if "tokens" not in term.needs}

    def select(self, need: Need) -> dict[str, Term]:
        """The terms that need `need`."""
        return {name: term for name, term in self.terms.items() if need in term.needs}

    @model_validator(mode="after")
    def _something_for_the_head(self) -> "Loss":
        if self.terms.keys() <= self.select("maps").keys():
            names = [name for name, field in type(self).model_fields.items() if _is_of_answers(field.annotation)]
            raise ValueError(
                f"loss has no term on the model's outputs; give one of {', '.join(names)} a weight above 0"
            )
        return self


def _is_of_answers(annotation: object) -> bool:
    kinds = getattr(annotation, "__args__", ())
    return any(isinstance(kind, type) and issubclass(kind, Term) and "maps" not in kind.needs for kind in kinds)


def check_terms(
    loss: Loss, *, teacher: bool, live: bool, dense: bool, multi_label: bool, embeddings: bool = False
) -> None:
    """Raise InputError, naming the term, for a term that needs what the run does not have.

    Args:
        teacher: whether the run has a teacher.
        live: whether the teacher runs alongside the student, so that it can be differentiated.
        dense: whether the model predicts pixels rather than whole tiles.
        multi_label: whether its classes are not mutually exclusive.
        embeddings: whether the run has teachers of embeddings.
    """
    lacking: dict[Need, tuple[bool, str]] = {
        "teacher": (not teacher, "compares with a teacher, and this job has none"),
        "maps": (not teacher, "compares with a teacher, and this job has none"),
        "gradients": (not live, "needs a live teacher: set responses=null"),
        "pixels": (not dense, "is for segmentation, and the model classifies whole tiles"),
        "tiles": (dense, "explains the class of a tile, which is for classifiers"),
        "embeddings": (not embeddings, "compares embeddings, and this job has no teacher of any"),
        "one_class": (multi_label, "is for classes that exclude each other, and these do not"),
    }
    for need, (is_lacking, reason) in lacking.items():
        for name in loss.select(need) if is_lacking else ():
            raise InputError(f"loss.{name} {reason}; leave it out (loss.{name}=null).", code="option-not-applicable")
    if loss.deep_weight and not dense:
        raise InputError(
            "loss.deep is for segmenters, and the model classifies whole tiles; leave it out.",
            code="option-not-applicable",
        )
    if loss.weighs_classes and (dense or multi_label):
        raise InputError(
            "loss.cross_entropy.class_weights is for classification with one label a tile; leave it out.",
            code="option-not-applicable",
        )
