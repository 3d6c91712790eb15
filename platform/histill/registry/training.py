"""Train one run of any kind, with models from the registry and metrics sent to MLflow."""

from typing import Any, TypeVar

from histill.cluster.connect import connect_cluster
from histill.config.runs import RunConfig
from histill.registry.materialize import materialize_model, materialize_teacher
from histill.registry.mlflow_client import check_tracking
from histill.registry.mlflow_runs import open_run
from histill.train.launch import Trained, train_run
from histill.train.prepare import prepare_run

C = TypeVar("C", bound=RunConfig)


def train_tracked(config: RunConfig) -> Trained:
    """Check the run of `config`, join or start Ray if it has workers, and train to the end, resuming from the newest
    checkpoint.

    Raises InputError for unusable inputs, before Ray starts; otherwise as `train_run` does.
    """
    spec = prepare_run(fetch_sources(config))
    check_tracking(config.tracking)
    with connect_cluster(in_process=config.workers.in_process):
        return train_run(spec, open_run)


def fetch_sources(config: C) -> C:
    """`config` with its registered teachers and models copied to where every node can read them."""
    sources, where = config.sources, (config.tracking, config.runs, config.storage)
    changes: dict[str, Any] = {}
    if sources.teacher is not None:
        changes["teacher"] = materialize_teacher(sources.teacher, *where)
    if sources.encoder is not None:
        changes["encoder"] = materialize_model(sources.encoder, *where, name="encoder")
    if config.continue_from is not None:
        changes["continue_from"] = materialize_model(config.continue_from, *where, name="start")
    if sources.embeddings:
        changes["embeddings"] = {
            name: each
            if each.teacher is None
            else each.model_copy(update={"teacher": materialize_teacher(each.teacher, *where)})
            for name, each in sources.embeddings.items()
        }
    return config.model_copy(update=changes)
