"""Tile sets as datasets of MLflow, and figures that were measured on them."""

import json
import math
import posixpath
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from histill.train.tracker import DataUse

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput

_DIGEST = 36  # MLflow's limit on the digits of a dataset's digest


def describe_dataset(use: DataUse) -> "Dataset":
    """The tile set, by the last part of its URI and by the digest of its manifest."""
    from mlflow.entities import Dataset

    return Dataset(
        name=posixpath.basename(use.uri.rstrip("/")),
        digest=use.digest[:_DIGEST],
        source_type="s3" if use.uri.startswith("s3:") else "local",
        source=json.dumps({"uri": use.uri}),
    )


def describe_input(use: DataUse) -> "DatasetInput":
    """The tile set as an input of a run."""
    from mlflow.entities import DatasetInput, InputTag

    return DatasetInput(describe_dataset(use), [InputTag("mlflow.data.context", use.context)])


def log_figures(
    client: "MlflowClient", run_id: str, model_id: str, figures: Mapping[str, float], scored_on: DataUse
) -> None:
    """Log figures of a logged model, and the held-out tiles that they are of, to the run `run_id`; nan is left out."""
    from mlflow.entities import LoggedModelInput, Metric

    client.log_inputs(run_id, [describe_input(scored_on)], [LoggedModelInput(model_id)])
    dataset, now_ms = describe_dataset(scored_on), int(time.time() * 1000)
    metrics = [
        Metric(name, value, now_ms, 0, model_id, dataset.name, dataset.digest, run_id)
        for name, value in figures.items()
        if not math.isnan(value)
    ]
    client.log_batch(run_id, metrics)
