"""The teachers of embeddings that a run learns from, each with a projection of its own."""

from typing import Literal

from pydantic import Field, model_validator

from histill.config.base import Strict, Uri
from histill.config.common import Teacher


class EmbeddingTeacher(Strict):
    """One teacher of embeddings: cached by histill cache, or running beside the student."""

    responses: Uri | None = Field(None, description="folder of its cached embeddings; null: it runs live")
    teacher: Teacher | None = Field(None, description="the live teacher; null: its embeddings are cached")
    weight: float = Field(1.0, gt=0, description="share of this teacher in the terms on embeddings")
    normalize: Literal["scale", "none"] = Field(
        "scale",
        description="scale: center its embeddings and bring them to unit variance by one factor, so that teachers of "
        "differing scale weigh alike; none: as they are",
    )

    @model_validator(mode="after")
    def _cached_or_live(self) -> "EmbeddingTeacher":
        if (self.responses is None) == (self.teacher is None):
            raise ValueError("set exactly one of responses=<folder> (cached) and teacher.<kind>=... (live)")
        if self.teacher is not None and self.teacher.features is not None:
            raise ValueError(
                "teacher.features answers no pixels, so that it cannot run live; cache it with histill cache and "
                "name the cache as responses"
            )
        if self.teacher is not None and self.normalize != "none":
            raise ValueError(
                "normalize=scale needs the statistics of cached embeddings; cache them with histill cache, or set "
                "normalize=none"
            )
        return self
