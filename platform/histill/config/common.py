"""The parts that several jobs share: storage, tracking, workers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from histill.config.base import Strict, Uri

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A run's or model's name: letters, digits, `.`, `_` and `-`; it becomes part of paths."""
Split = Literal["train", "val", "test"]


class Storage(Strict):
    """How object storage is reached. Credentials come from the environment or the usual AWS chain, never from here."""

    endpoint: Uri | None = Field(None, description="S3 endpoint URL; null: $AWS_ENDPOINT_URL, else AWS itself")
    region: str | None = Field(None, description="S3 region; null: the AWS chain's")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds to wait for a connection")
    request_timeout_s: float = Field(30.0, gt=0, description="seconds to wait for an answer")
    attempts: int = Field(5, ge=1, description="tries of one request, with exponential backoff")


class Tracking(Strict):
    """Where runs are recorded."""

    uri: Uri | None = Field(None, description="MLflow tracking server; null: $MLFLOW_TRACKING_URI, else no tracking")
    experiment: str = Field("histill", description="MLflow experiment")


class Workers(Strict):
    """The worker group of one training run, or the pool of one batch job."""

    count: int = Field(2, ge=1, description="number of workers")
    cpus: float = Field(1.0, gt=0, description="CPUs reserved for each worker; leave some for reading tiles")
    gpus: float = Field(0.0, ge=0, description="GPUs reserved for each worker")


class Teacher(Strict):
    """The teacher: the classical one, or a network from a model folder. Exactly one."""

    classical: bool = Field(False, description="nuclei by colour deconvolution, no training needed")
    model: Uri | None = Field(None, description="a trained teacher's model folder (model.safetensors + model.json)")

    @model_validator(mode="after")
    def _exactly_one(self) -> "Teacher":
        if self.classical == (self.model is not None):
            raise ValueError("set exactly one of teacher.classical=true and teacher.model=<folder>")
        return self
