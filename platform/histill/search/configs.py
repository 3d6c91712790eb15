"""Sweep configurations, generated from each kind of run, so that a new kind of run can be swept without extra code."""

from typing import Any, Literal, cast

from pydantic import Field, create_model

from histill.config.load import OneOf
from histill.config.runs import RunConfig
from histill.config.search_students import SearchConfig
from histill.train.recipes import RECIPES


def _make_search(run: type[RunConfig]) -> type[SearchConfig]:
    job: Any = (Literal[run.kind], Field(run.kind, description="the job that each trial runs"))
    keys: dict[str, Any] = {"__base__": (SearchConfig, run), "__module__": __name__, "job": job}
    name = run.__name__.replace("Config", "Search")
    return cast(type[SearchConfig], create_model(name, __doc__=f"A sweep of {run.kind} runs.", **keys))


SEARCHES: OneOf[SearchConfig] = OneOf("job", {kind: _make_search(recipe.config) for kind, recipe in RECIPES.items()})
"""By the job that each trial runs."""


def __getattr__(name: str) -> type[SearchConfig]:
    """Look up a sweep configuration by class name, for unpickling."""
    for made in SEARCHES.models.values():
        if made.__name__ == name:
            return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
