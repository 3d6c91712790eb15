"""Find the run that holds a registered model's champion history, named by the registered model's tag `ledger_run`.

It is the run of the version that is lowest when the history is first read. Thanks to the tag, the history survives
deletion of that version and renaming of the model; a model that is deleted and recreated starts a new history.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from histill.registry.mlflow_client import error_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEDGER_TAG = "ledger_run"
_LOG = logging.getLogger(__name__)


def find_history_run(client: "MlflowClient", name: str, living: Mapping[str, str]) -> str:
    """The id of the run that holds the history of `name`; `living` are its existing versions, at least one."""
    known = client.get_registered_model(name).tags.get(LEDGER_TAG)
    if known is not None:
        if _readable(client, known):
            return known
        _LOG.warning("the run %s with the champions of %r is gone from the server; a new history begins.", known, name)
    lowest = str(client.get_model_version(name, min(living, key=int)).run_id)
    earlier = None if known is not None or _has_terms(client.get_run(lowest)) else _find_earlier_history(client, name)
    return earlier or lowest


def remember_history_run(client: "MlflowClient", name: str, run_id: str) -> None:
    """Tag `name` with the run of its history, and restore that run if it was deleted."""
    if client.get_registered_model(name).tags.get(LEDGER_TAG) != run_id:
        client.set_registered_model_tag(name, LEDGER_TAG, run_id)
    if client.get_run(run_id).info.lifecycle_stage != "active":
        client.restore_run(run_id)  # parameters cannot be logged to a deleted run


def _readable(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _has_terms(run: "Run") -> bool:
    return any(key.startswith("champion.") for key in run.data.params)


def _find_earlier_history(client: "MlflowClient", name: str) -> str | None:
    """The run with the history of a model whose first version was deleted before the tag was set."""
    from mlflow.entities import ViewType

    born = client.get_registered_model(name).creation_timestamp
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(
        experiments,
        f"attributes.run_name = 'register-{name}' AND params.\"champion.1\" LIKE '{{%'",
        ViewType.ALL,
        order_by=["attributes.start_time ASC"],
    )
    return next((str(run.info.run_id) for run in runs if run.info.start_time >= born), None)
