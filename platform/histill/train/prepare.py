"""Turn a configuration into a checked run, so that invalid ones are refused before Ray starts."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from histill.artifacts.check_places import check_responses, check_teacher, check_weights
from histill.artifacts.model_folder import resolve as resolve_model
from histill.config.runs import RunConfig
from histill.storage.control import probe
from histill.tiles.manifest import read_header
from histill.train.recipes import RECIPES
from histill.train.run_folder import RunRecord, check_same_inputs, open_record

if TYPE_CHECKING:
    from histill.train.inputs import Inputs
    from histill.train.spec import RunSpec


def prepare_run(config: RunConfig) -> Any:
    """Return the checked run, of its recipe's own type. Raises InputError when `config` or an input is invalid."""
    record = check_places(config)
    from histill.train.inputs import resolve  # torch, which takes seconds to load
    from histill.train.validate import doubt_resolution

    inputs = resolve(config)
    spec = check_run(config, inputs)
    if inputs.start is not None:
        doubt = doubt_resolution(inputs.start.card, spec.card, str(config.continue_from))
        if doubt is not None:
            print(f"warning: {doubt}", file=sys.stderr, flush=True)
    check_same_inputs(config, record, spec.inputs)
    return spec


def check_places(config: RunConfig) -> RunRecord:
    """Check what can be checked before torch is loaded; returns the record of the run, which may be a new one.

    Raises InputError when its folder cannot be written, the run is finished or has another configuration, or its tile
    set, encoder, teacher or responses are missing.
    """
    probe(config.runs, config.storage)  # first: it reports problems with credentials and buckets
    record = open_record(config)
    read_header(config.data.tiles, config.storage)
    sources = config.sources
    for model in (config.continue_from, sources.encoder):
        if model is not None:
            resolve_model(model, config.storage)
    embeddings = sources.embeddings.values()
    for each in (sources.teacher, *(one.teacher for one in embeddings)):
        if each is not None:
            check_teacher(each, config.storage)
    for uri in (sources.responses, *(one.responses for one in embeddings)):
        if uri is not None:
            check_responses(uri, config.storage)
    if sources.network.weights is not None:
        check_weights(sources.network.weights, config.storage)
    return record


def check_run(config: RunConfig, inputs: "Inputs") -> "RunSpec":
    """Check `config` and its inputs by the run's recipe, without reading or writing anything. Raises InputError."""
    check = import_module(RECIPES[config.kind].module).check
    spec: RunSpec = check(config, inputs)
    return spec
