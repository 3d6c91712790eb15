"""The search space: which configuration keys vary, and how."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from histill.config.keys import dotted_keys, keys_of_entry, nearest_key, sections
from histill.config.load import set_value, validate
from histill.config.runs import RunConfig
from histill.config.search_students import SearchConfig, SearchRange
from histill.errors import InputError
from histill.train.recipes import RECIPES

# Keys that the sweep sets for all trials: otherwise trials would not be comparable, or not fit on the cluster together.
_FIXED = (
    "name",
    "runs",
    "data.tiles",
    "data.train",
    "data.val",
    "teacher",
    "responses",
    "embeddings.*.teacher",
    "embeddings.*.responses",
    "target",
    "optimizer.epochs",
    "optimizer.steps",
    "validation",
    "checkpoint_every",
    "workers",
    "storage",
    "tracking",
)


def build_trial_config(config: SearchConfig, values: Mapping[str, Any], *, name: str, runs: str) -> RunConfig:
    """The run configuration of a trial with `values` (dotted key -> value). Raises InputError naming a wrong key."""
    model = RECIPES[config.job].config
    data = {key: value for key, value in config.model_dump().items() if key in model.model_fields}
    for key, value in values.items():
        data = set_value(data, key, value)
    # Tune stops a trial at its reports, each of which must carry the score, so checkpoint only at epoch ends.
    data |= {"name": name, "runs": runs, "checkpoint_every": 10**9}
    data["optimizer"] = {**data["optimizer"], "steps": None}  # ASHA compares trials after equally many epochs
    if data["data"]["decode"] == "auto":  # the next trials take the CPUs that are free now
        data["data"] = {**data["data"], "decode": "worker"}
    return validate(model, data, f"trial {name}")


def check_space(config: SearchConfig) -> None:
    """Build a run at both ends of every range, so that a wrong key or value is refused before the first trial."""
    for key in config.space:
        if any(_overlap(key, fixed) for fixed in _FIXED):
            raise InputError(f"space.{key}: a sweep cannot draw {key!r}; its trials share it.", code="config-conflict")
        _check_key(config, key)
    for key, values in list_edges(config):
        try:
            build_trial_config(config, values, name="check", runs=config.runs)
        except InputError as error:
            raise InputError(f"space.{key}: {str(error).partition(': ')[2]}", code=error.code) from None


def _check_key(config: SearchConfig, key: str) -> None:
    """Raise InputError for a key that a trial's run does not have, if a similar one is known."""
    model = RECIPES[config.job].config
    names = [*dotted_keys(model), *keys_of_entry(model, key.split("."))]
    if key in names or key in sections(names):
        return
    near = nearest_key(key, names)
    if near is not None:
        raise InputError(
            f"space.{key}: {config.job} has no key {key!r}; did you mean 'space.{near}'?", code="config-unknown-key"
        )


def _overlap(key: str, fixed: str) -> bool:
    """Whether one of two dotted keys holds the other; in `fixed`, * is any name."""
    return all(there in (here, "*") for here, there in zip(key.split("."), fixed.split("."), strict=False))


def list_edges(config: SearchConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key with both bounds of its range or each of its choices, and values that meet its conditions."""
    for key, draw in config.space.items():
        for value in draw.ends:
            yield key, _find_conditions(config.space, draw) | {key: value}


def _find_conditions(space: Mapping[str, SearchRange], draw: SearchRange) -> dict[str, Any]:
    """Values of other keys that meet the conditions of `draw`."""
    values: dict[str, Any] = {}
    for other, allowed in (draw.conditions or {}).items():
        values |= _find_conditions(space, space[other]) | {other: allowed[0]}
    return values


def suggest_values(space: Mapping[str, SearchRange], trial: Any) -> dict[str, Any]:
    """The values that the Optuna `trial` suggests, in the order of the space, without keys of unmet conditions."""
    values: dict[str, Any] = {}
    for key, draw in space.items():
        conditions = (draw.conditions or {}).items()
        if all(other in values and values[other] in allowed for other, allowed in conditions):
            values[key] = _suggest(trial, key, draw)
    return values


def _suggest(trial: Any, key: str, draw: SearchRange) -> Any:
    if draw.choice is not None:
        named = {json.dumps(value): value for value in draw.choice}  # Optuna's choices cannot be lists
        return named[trial.suggest_categorical(key, list(named))]
    if draw.integer is not None:
        return trial.suggest_int(key, *draw.integer)
    low, high = draw.uniform or draw.loguniform or (0.0, 0.0)
    return trial.suggest_float(key, low, high, log=draw.loguniform is not None)
