"""A search space: which configuration keys are drawn, and how."""

from collections.abc import Mapping
from typing import Any

from histill.config.load import validate, with_value
from histill.config.runs import Draw, PretrainConfig, SearchConfig
from histill.errors import InputError

# A trial's place, its data and its share of the cluster are the sweep's: the scores of trials that differ in these
# could not be compared, or would not fit beside each other.
_FIXED = (
    "name",
    "runs",
    "data.tiles",
    "data.train",
    "data.val",
    "teacher",
    "responses",
    "optimiser.epochs",
    "checkpoint_every",
    "workers",
    "storage",
    "tracking",
)


def trial_config(config: SearchConfig, values: Mapping[str, Any], *, name: str, runs: str) -> PretrainConfig:
    """The pretraining run of a trial with `values` (dotted key -> value). Raises InputError naming a wrong key."""
    data = {key: value for key, value in config.model_dump().items() if key in PretrainConfig.model_fields}
    for key, value in values.items():
        data = with_value(data, key, value)
    # Tune ends a trial between reports, and every report must carry the score: checkpoints come with epochs only.
    data |= {"name": name, "runs": runs, "checkpoint_every": 10**9}
    return validate(PretrainConfig, data, f"trial {name}")


def check_space(config: SearchConfig) -> None:
    """Build the run at both ends of every range, so that a wrong key or value is refused before the first trial."""
    for key, draw in config.space.items():
        if any(f"{key}.".startswith(f"{fixed}.") or fixed.startswith(f"{key}.") for fixed in _FIXED):
            raise InputError(f"space.{key}: a sweep cannot draw {key!r}; its trials share it.")
        for value in draw.choice or draw.uniform or draw.loguniform or ():
            try:
                trial_config(config, {key: value}, name="check", runs=config.runs)
            except InputError as error:
                raise InputError(f"space.{key}: {str(error).partition(': ')[2]}") from None


def tune_space(space: Mapping[str, Draw]) -> dict[str, Any]:
    """The space in Ray Tune's words."""
    from ray import tune

    def domain(draw: Draw) -> Any:
        if draw.choice is not None:
            return tune.choice(list(draw.choice))
        if draw.uniform is not None:
            return tune.uniform(*draw.uniform)
        assert draw.loguniform is not None
        return tune.loguniform(*draw.loguniform)

    return {key: domain(draw) for key, draw in space.items()}
