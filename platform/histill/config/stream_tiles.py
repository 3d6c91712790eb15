"""Keys of a stream of tiles that is opened from Python."""

from typing import Literal

from pydantic import Field

from histill.config.augment import Augment
from histill.config.base import Strict, Uri


class StreamKeys(Strict):
    """What `TileSet.stream` takes."""

    split: str
    student_px: int | None = Field(ge=1)
    teacher_px: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    shuffle: bool | None
    seed: int = Field(ge=0, lt=2**31)
    augment: Augment | None
    balance: Literal["label", "slide", "case", "mpp", "has_mask"] | None
    masks: bool
    responses: Uri | None
    embeddings: dict[str, Uri] | None
    threads: int = Field(ge=1)
    max_corrupt: int = Field(ge=0)
