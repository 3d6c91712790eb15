"""From a configuration to a checked run: what can be refused is refused here, before Ray starts."""

from importlib import import_module
from typing import Any

from histill.config.runs import RunConfig
from histill.storage.control import probe
from histill.train.inputs import Inputs, resolve
from histill.train.recipes import RECIPES
from histill.train.run_folder import check_same_inputs, open_record
from histill.train.spec import RunSpec


def prepare_run(config: RunConfig) -> Any:
    """The checked run, of its recipe's own type. Raises InputError for whatever it cannot be made from."""
    probe(config.runs, config.storage)  # first of all: it tells what is wrong with credentials and buckets
    record = open_record(config)
    spec = check_run(config, resolve(config))
    check_same_inputs(config, record, spec.inputs)
    return spec


def check_run(config: RunConfig, inputs: Inputs) -> RunSpec:
    """The run of `config` and what it is made from, by its recipe; nothing is read or written. Raises InputError."""
    check = import_module(RECIPES[config.kind].module).check
    spec: RunSpec = check(config, inputs)
    return spec
