"""Turn a configuration into a checked run, so that invalid ones are refused before Ray starts."""

from importlib import import_module
from typing import Any

from histill.config.runs import RunConfig
from histill.storage.control import probe
from histill.train.inputs import Inputs, resolve
from histill.train.recipes import RECIPES
from histill.train.run_folder import check_same_inputs, open_record
from histill.train.spec import RunSpec


def prepare_run(config: RunConfig) -> Any:
    """Return the checked run, of its recipe's own type. Raises InputError when `config` or an input is invalid."""
    probe(config.runs, config.storage)  # first: it reports problems with credentials and buckets
    record = open_record(config)
    spec = check_run(config, resolve(config))
    check_same_inputs(config, record, spec.inputs)
    return spec


def check_run(config: RunConfig, inputs: Inputs) -> RunSpec:
    """Check `config` and its inputs by the run's recipe, without reading or writing anything. Raises InputError."""
    check = import_module(RECIPES[config.kind].module).check
    spec: RunSpec = check(config, inputs)
    return spec
