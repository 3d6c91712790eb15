"""The tracking server's records of a chain, whose experiment and registered model have the chain's name."""

from typing import TYPE_CHECKING, Any

from chaos.kill_runs.result import plain

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_DECIDED = ("decision", "gate.", "scored.", "model_digest", "tiles_digest")  # tags of a version that must be right
_STEADY = ("epoch/", "val/", "best_")  # metrics recorded at fixed steps


def _client(uri: str) -> "MlflowClient":
    from histill.registry.mlflow_client import connect

    return connect(uri)


def _runs(client: "MlflowClient", experiment: str) -> "list[Run]":
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def running(uri: str, chain: str) -> tuple[str, ...]:
    """Runs with the status RUNNING."""
    runs = _runs(_client(uri), chain)
    return tuple(f"RUNNING: {run.info.run_name}" for run in runs if run.info.status == "RUNNING")


def tracked(uri: str, chain: str) -> dict[str, Any]:
    """The finished runs and their records; runs that failed or were killed are only counted.

    Trials have random names, and are identified by their drawn values.
    """
    client = _client(uri)
    found: dict[str, Any] = {}
    for run in _runs(client, chain):
        if run.info.status != "FINISHED":
            continue
        drawn = run.data.params.get("loss.soft_cross_entropy.temperature", "")
        name = f"{run.data.tags.get('kind')} {drawn if run.data.tags.get('mlflow.parentRunId') else ''}".strip()
        steady = [key for key in run.data.metrics if key.startswith(_STEADY)]
        history = {key: client.get_metric_history(run.info.run_id, key) for key in sorted(steady)}
        record = {
            "metrics": {key: [(each.step, each.value) for each in values] for key, values in history.items()},
            "artifacts": _artifacts(client, run.info.run_id, ""),
        }
        found.setdefault(f"run {name}", []).append(record)
    return found


def _artifacts(client: "MlflowClient", run_id: str, folder: str) -> list[str]:
    names = []
    for each in client.list_artifacts(run_id, folder or None):
        names += _artifacts(client, run_id, each.path) if each.is_dir else [each.path]
    return sorted(names)


def registered(uri: str, chain: str) -> dict[str, Any]:
    """Versions with their decisions, aliases, and the champion history."""
    client = _client(uri)
    versions = sorted(client.search_model_versions(f"name = '{chain}'"), key=lambda each: int(each.version))
    if not versions:
        return {}
    terms = client.get_run(versions[0].run_id).data.params
    tags = [{key: value for key, value in each.tags.items() if key.startswith(_DECIDED)} for each in versions]
    return {
        "versions": [plain(each, chain) for each in tags],
        "aliases": dict(client.get_registered_model(chain).aliases),
        "terms": {key: value for key, value in terms.items() if key.startswith("champion.")},
    }
