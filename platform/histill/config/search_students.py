"""Configuration of `histill search`."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from histill.config.base import Strict
from histill.config.common import Name
from histill.config.runs import RunConfig


class SearchRange(Strict):
    """How a trial's value is drawn: exactly one of the four ways."""

    uniform: tuple[float, float] | None = Field(None, description="between two bounds")
    loguniform: tuple[float, float] | None = Field(
        None, description="between two bounds above 0, uniform in the logarithm"
    )
    integer: tuple[int, int] | None = Field(None, description="a whole number between two bounds, both included")
    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of a list")
    conditions: dict[str, tuple[Any, ...]] | None = Field(
        None, description="draw only if each key here, drawn before, has one of the listed values; null: always"
    )

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: both bounds, or every choice."""
        return self.choice or self.uniform or self.loguniform or self.integer or ()

    @model_validator(mode="after")
    def _one_sound_range(self) -> "SearchRange":
        ways = ("uniform", "loguniform", "integer", "choice")
        if len([name for name in ways if getattr(self, name) is not None]) != 1:
            raise ValueError("set exactly one of uniform, loguniform, integer and choice")
        bounds = self.uniform or self.loguniform or self.integer
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"the range {list(bounds)} is empty; the lower bound comes first")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(
                f"the bounds {list(self.loguniform)} of a loguniform range must be above 0; use uniform for others"
            )
        return self


class SearchConfig(RunConfig):
    """A sweep: each trial is a run with the keys in `space` drawn; `search/configs.py` derives one for each kind."""

    kind = "search_students"

    job: str
    space: dict[str, SearchRange] = Field(min_length=1, description="dotted key -> how its value is drawn")
    trials: int = Field(8, ge=1, description="number of trials")
    concurrent: int | None = Field(
        None, ge=1, description="concurrent trials; null: as many as fit on the nodes that are up"
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="Optuna's TPE, or random")
    scheduler: Literal["asha", "none", "pbt"] = Field(
        "asha", description="ASHA stops hopeless trials early; none: every trial trains to its end"
    )
    objective: Literal["quality", "front"] = Field(
        "quality",
        description="what sampling and stopping optimize: quality alone, or the front of quality against cost",
    )
    cost: Literal["gmacs", "latency_ms"] = Field(
        "gmacs",
        description="cost in the front: GMACs of one tile, or milliseconds for one tile, measured on one thread of the "
        "node that runs the trial",
    )
    grace_epochs: int = Field(1, ge=1, description="epochs before ASHA may stop a trial")
    reduction: int = Field(2, ge=2, description="ASHA keeps one in this many at each rung")
    register_best: Name | None = Field(
        None, description="registered model to which the best student is added as a version; null: none"
    )

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, space: Any) -> Any:
        """{student: {size_px: ...}} as {student.size_px: ...}, which is how space.student.size_px.choice=... comes."""
        return dict(_ranges(space)) if isinstance(space, Mapping) else space

    @model_validator(mode="after")
    def _no_population(self) -> "SearchConfig":
        if self.scheduler == "pbt":
            raise ValueError(
                "scheduler pbt would do nothing: population-based training moves weights from trial to trial, and here "
                "a trial is a training run of its own, whose weights Tune cannot move; set scheduler to asha or none"
            )
        return self

    @model_validator(mode="after")
    def _trials_of_one_size(self) -> "SearchConfig":
        if self.workers.fewest < self.workers.most:
            raise ValueError(
                "workers.count is a span, and a sweep gives every trial the same room; set it to a number of workers"
            )
        return self

    @model_validator(mode="after")
    def _conditions_come_before(self) -> "SearchConfig":
        known: dict[str, SearchRange] = {}
        for key, draw in self.space.items():
            for other, values in (draw.conditions or {}).items():
                if other not in known:
                    raise ValueError(
                        f"space.{key}.conditions names {other!r}, which is no key of the space before it; the "
                        f"keys before it are {', '.join(known) or 'none'}"
                    )
                choices = known[other].choice
                if choices is None or not values or not set(map(repr, values)) <= set(map(repr, choices)):
                    listed = "no choice" if choices is None else f"one of {list(choices)}"
                    raise ValueError(
                        f"space.{key}.conditions.{other} is {list(values)}, and {other} is drawn as {listed}; name "
                        "some of a key's choices"
                    )
            known[key] = draw
        return self


def _ranges(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their ranges. A mapping is a section if it holds mappings alone, and nothing of a range."""
    for name, value in space.items():
        is_section = isinstance(value, Mapping) and value and not value.keys() & SearchRange.model_fields.keys()
        if is_section and all(isinstance(below, Mapping | SearchRange) for below in value.values()):
            yield from _ranges(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
