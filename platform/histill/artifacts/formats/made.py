"""What making a format gives: files that answer like the model, or a reason why there are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Answer = Callable[[Tensor], Tensor]
"""Runs tiles, uint8 or float32 [N, 3, S, S] in 0..255, and returns float32 logits or embeddings as the model does."""


_ROUNDING = 1e-9  # a difference that equals its limit must pass


@dataclass(frozen=True)
class Rounding:
    """How a model was made smaller at the cost of exactness, by which it must be scored like another model."""

    parent: Answer  # the same model in float, run by the same engine with the same threads
    float_layers: tuple[str, ...]  # layers that were kept in float because of their errors, the worst first
    errors: Mapping[str, float]  # by layer, as `measure_layer_errors` gives them


@dataclass(frozen=True)
class Made:
    """A model in one format."""

    files: Mapping[str, bytes]  # path -> content; the first is the one that a program opens
    answer: Answer
    rounding: Rounding | None = None  # None: it answers like the model, up to the rounding of float32


@dataclass(frozen=True)
class Skipped:
    """A format that this model does not have."""

    why: str  # continues "skipped: "


@dataclass(frozen=True)
class RoundedScore:
    """A quantized format against the float model on the same held-out tiles, and its speed."""

    figure: str  # the name of what is compared
    value: float  # of the quantized format
    difference: float  # less the float model's
    low: float  # ends of the difference's 95 % interval over cases; NaN: fewer than six
    high: float
    margin: float  # how far below 0 `low` may lie
    ms_per_tile: float  # on the machine that promoted, in batches of 8, by torch's number of threads
    float_ms_per_tile: float  # of the float model in the same engine
    float_layers: tuple[str, ...]
    layer_errors: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the format may take the model's place; without an interval only if the margin is 1, any loss."""
        return self.low >= -self.margin - _ROUNDING or self.margin == 1


@dataclass(frozen=True)
class ListedFormat:
    """A format in the list of what was made: the sizes of its files in bytes, or why there are none."""

    format: str
    files: dict[str, int] = field(default_factory=dict)  # by path; the first is the one that a program opens
    difference: float | None = None  # largest difference of its logits from the model's
    skipped: str = ""  # why it was not made
    rounded: RoundedScore | None = None  # of a quantized format, which is refused if this has not passed

    @property
    def refused(self) -> bool:
        """Whether it was made and lost too much: it has no files then."""
        return self.rounded is not None and not self.rounded.passed


@dataclass(frozen=True)
class Export:
    """An entry of the list with its files' contents, by path."""

    listed: ListedFormat
    contents: Mapping[str, bytes] = field(default_factory=dict)
    made: Made | None = None
