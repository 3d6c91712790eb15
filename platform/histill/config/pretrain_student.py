"""Configuration of `histill pretrain`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Uri
from histill.config.common import Teacher
from histill.config.embeddings import EmbeddingTeacher
from histill.config.runs import STRIDE, Network, RunConfig, Sources
from histill.losses.loss import DeepSupervision, Loss
from histill.losses.terms.soft_cross_entropy import SoftCrossEntropy

TeacherName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""A name within a run: lower-case letters, digits and `_`."""


class RckdLoss(Loss):
    """Loss terms of RCKD pretraining."""

    soft_cross_entropy: SoftCrossEntropy | None = SoftCrossEntropy()
    deep: DeepSupervision | None = DeepSupervision()

    @model_validator(mode="before")
    @classmethod
    def _dice_of_the_teacher(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(weight := data.get("dice"), int | float):
            raise ValueError(f"dice is the term against masks now; set loss.soft_dice.weight={weight:g} in its place")
        return data


class PretrainConfig(RunConfig):
    """RCKD: a student pretrained on a nuclei teacher's responses."""

    kind = "pretrain_student"
    kinds: ClassVar = {
        "a teacher of pixels": {"teacher": {}},
        "teachers of embeddings": {"embeddings": {"<name>": {}}},
        "both": {"teacher": {}, "embeddings": {"<name>": {}}},
    }

    student: Network = Network()
    teacher: Teacher | None = Field(
        None, description="teacher of pixels, such as nuclei (RCKD); null: learn from embeddings alone"
    )
    responses: Uri | None = Field(None, description="folder of cached responses; null: the teacher runs live")
    embeddings: dict[TeacherName, EmbeddingTeacher] = Field(
        {},
        description="teachers of embeddings, by a name of your choice; without a teacher of pixels the result is an "
        "encoder",
    )
    projection: Literal["linear", "mlp"] = Field(
        "linear",
        description="from the student's embedding to each teacher's width, in training only; mlp: two layers, as "
        "AM-RADIO has it",
    )
    prefixes: tuple[int, ...] = Field(
        (),
        description="Matryoshka: the first m dimensions of the embedding, for each m here, learn to predict the "
        "teachers' embeddings by themselves, so that an embedding can be cut short",
    )
    loss: RckdLoss = RckdLoss()
    encoder: ModelUri | None = Field(
        None,
        description="initial weights of the student's encoder: a run, model folder or models:/name@alias; null: random "
        "weights",
    )

    @property
    def sources(self) -> Sources:
        return Sources(
            self.student,
            teacher=self.teacher,
            responses=self.responses,
            embeddings=self.embeddings,
            encoder=self.encoder,
        )

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Default terms are on embeddings if these have teachers, and on pixels if there is a teacher of these."""
        loss = given.get("loss", {})
        if not given.get("embeddings") or not isinstance(loss, Mapping):
            return {}
        named = any(str(key).startswith("embedding_") or key == "tokens" for key in loss)
        terms: dict[str, Any] = {} if named else {"embedding_cosine": {}}
        if given.get("teacher") is None:
            terms |= {"soft_cross_entropy": None, "deep": None}
        return {"loss": terms}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "PretrainConfig":
        if self.teacher is None and not self.embeddings:
            raise ValueError(
                "no teacher is named; set teacher (of pixels), embeddings.<name>.responses=<folder>, or both"
            )
        if self.teacher is None and self.responses is not None:
            raise ValueError(
                "responses are those of teacher, which is not set; name it, or use embeddings.<name>.responses"
            )
        return self

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> "PretrainConfig":
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.projection != "linear" and "projections" not in self.loss.needs:
            raise ValueError(
                f"projection is {self.projection}, and no term of loss compares embeddings through one; leave it out, "
                "or give one such as loss.embedding_cosine a weight"
            )
        if self.prefixes and not self.loss.of_embeddings:
            raise ValueError(
                "prefixes learn by the terms on embeddings, and loss has none; leave them out, or give one such as "
                "loss.embedding_cosine a weight"
            )
        if list(self.prefixes) != sorted({each for each in self.prefixes if each > 0}):
            raise ValueError(f"prefixes are {list(self.prefixes)}; give each length once, above 0 and ascending")
        return self

    @model_validator(mode="after")
    def _a_size_for_a_unet(self) -> "PretrainConfig":
        size = self.student.size_px
        if self.teacher is not None and size is not None and size % STRIDE:
            raise ValueError(f"student.size_px is {size}, and a U-Net needs a multiple of {STRIDE}; choose one")
        return self
