"""The parts that several jobs share: storage, tracking, workers."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from histill.config.base import ModelUri, ServerUri, Strict, Uri
from histill.config.encoder import EncoderTeacher, FeaturesTeacher
from histill.config.places import BUCKET

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A run's or model's name: letters, digits, `.`, `_` and `-`, since it becomes part of paths."""
Split = Literal["train", "val", "test"]


class ShardCache(Strict):
    """A cache of row groups on every node, so that later epochs do not read object storage again."""

    folder: str = Field(description="absolute path of a folder on the nodes' own disks; created if missing")
    max_gb: float = Field(gt=0, description="largest size of the folder on one node, in gigabytes (10^9 bytes)")

    @field_validator("folder")
    @classmethod
    def _is_local(cls, folder: str) -> str:
        if not os.path.isabs(folder):
            raise ValueError(
                f"the cache's folder {folder!r} must be an absolute path on the node's own disk; write it from /"
            )
        return folder

    @property
    def max_bytes(self) -> int:
        """The largest size in bytes."""
        return int(self.max_gb * 1e9)


class Storage(Strict):
    """Access to object storage. Credentials come from the environment or the usual AWS chain, never from here."""

    endpoint: ServerUri | None = Field(None, description="S3 endpoint URL; null: $AWS_ENDPOINT_URL, else AWS itself")
    region: str | None = Field(None, description="S3 region; null: the AWS chain's")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds to wait for a connection")
    request_timeout_s: float = Field(30.0, gt=0, description="seconds to wait for a response")
    attempts: int = Field(5, ge=1, description="attempts of one request, with exponential backoff")
    retry_base_s: float = Field(0.5, gt=0, description="longest wait before the second attempt, doubled for each later")
    profiles: dict[str, str] = Field(
        {},
        description="bucket -> AWS profile whose keys are used for it, e.g. {tiles: reader, runs: writer}; each node "
        "needs them in ~/.aws/credentials; other buckets use the usual chain",
    )
    cache: ShardCache | None = Field(None, description="keep row groups on the nodes' own disks; null: read them again")

    @field_validator("profiles")
    @classmethod
    def _by_bucket(cls, profiles: dict[str, str]) -> dict[str, str]:
        for bucket in profiles:
            if BUCKET.fullmatch(bucket) is None:
                raise ValueError(f"{bucket!r} is not the name of a bucket alone; write it without s3:// and slashes")
        return profiles


class Tracking(Strict):
    """Where runs are tracked."""

    uri: ServerUri | None = Field(
        None, description="MLflow tracking server; null: $MLFLOW_TRACKING_URI, else no tracking"
    )
    experiment: str = Field("histill", description="MLflow experiment")
    public_key: Uri | None = Field(
        None,
        description="local PEM file with the public key that registered models must be signed with to be read; null: "
        "signatures are not asked for",
    )


class Worker(Strict):
    """Resources of one worker."""

    cpus: float = Field(1.0, gt=0, description="CPUs reserved for each worker; leave some for reading tiles")
    gpus: float = Field(0.0, ge=0, description="GPUs reserved for each worker")


class Workers(Worker):
    """The worker pool of a batch job."""

    count: int = Field(2, ge=0, description="number of workers; 0: work in this process, without Ray")

    @property
    def in_process(self) -> bool:
        """Whether the job does its work in its own process."""
        return self.count == 0


class Parts(Strict):
    """How many CPUs make the parts of a job."""

    count: int | None = Field(
        None,
        ge=0,
        description="CPUs that make parts; null: those of the cluster, or without one those of this machine, in this "
        "process and without Ray; 0: those of this machine even if there is a cluster",
    )

    @property
    def in_process(self) -> bool:
        """Whether the job does its work in its own process."""
        return self.count == 0


class Elastic(Strict):
    """Bounds of a worker group that shrinks when nodes are lost and grows when nodes join."""

    min: int
    max: int


def _a_number_or_a_span(value: Any) -> int | Elastic:
    match value:
        case bool():
            pass
        case int() if value >= 0:
            return value
        case Elastic():
            return value
        case {"min": int(least), "max": int(most), **others} if not others and 1 <= least <= most:
            return Elastic(min=least, max=most)
    raise ValueError(
        "expected a number of workers; write 4, or 0 to train in this process, or {min: 1, max: 4} with a min of 1 or "
        "more and no smaller max"
    )


class WorkerGroup(Worker):
    """The worker group of a training run."""

    cpus: float = Field(
        1.0,
        gt=0,
        description="CPUs reserved for each worker; leave some for reading tiles. With a count of 0: torch's threads, "
        "and unless set as many as torch takes by itself",
    )
    count: Annotated[int | Elastic, BeforeValidator(_a_number_or_a_span)] = Field(
        2,
        description="number of workers, or {min: 1, max: 4}: continue with fewer while nodes are lost, and with more "
        "once they are back; 0: train in this process, without Ray, which starts in a fraction of the time",
    )

    @property
    def in_process(self) -> bool:
        """Whether the run trains in its own process, as a world of one."""
        return self.count == 0

    @property
    def fewest(self) -> int:
        """The smallest world size that may train."""
        return self.count.min if isinstance(self.count, Elastic) else max(1, self.count)

    @property
    def most(self) -> int:
        """The largest world size that may train."""
        return self.count.max if isinstance(self.count, Elastic) else max(1, self.count)


@dataclass(frozen=True)
class TeacherKind:
    """How a teacher is loaded from the value of its key, and what is known about its own training."""

    module: str  # module of histill.teachers whose `load_teacher(value, tile_mpp, storage, gpu=...)` loads one
    example: str  # an example value
    trained_on: Literal["nothing", "its card", "unknown"] = "unknown"


class Teacher(Strict):
    """The teacher: exactly one of the classical one, a network from a model folder, an ONNX file, or an encoder.

    This is the registry of teachers: a new kind is a module of `histill.teachers` and a line here.
    """

    classical: Annotated[bool, TeacherKind("classical", "true", "nothing")] = Field(
        False, description="nuclei by color deconvolution, no training needed"
    )
    model: Annotated[ModelUri | None, TeacherKind("network", "<folder>", "its card")] = Field(
        None, description="a trained teacher: a finished run, a model folder, or models:/name@alias of the registry"
    )
    onnx: Annotated[Uri | None, TeacherKind("onnx", "<file>")] = Field(
        None,
        description="an .onnx file, with its card (a .json of the same name) and any external weights beside it",
    )
    onnx_nuclei: Annotated[Uri | None, TeacherKind("onnx_nuclei", "<file>")] = Field(
        None,
        description="a network for nuclei with answers of its own form, such as HoVer-Net, StarDist or Cellpose, as an "
        ".onnx file with its card beside it",
    )
    encoder: Annotated[EncoderTeacher | None, TeacherKind("timm_encoder", "{folder: <folder>}")] = Field(
        None, description="an encoder that answers with embeddings: a timm model as the Hugging Face hub has them"
    )
    onnx_encoder: Annotated[Uri | None, TeacherKind("onnx_encoder", "<file>")] = Field(
        None, description="an encoder as an .onnx file, with its card (a .json of the same name) beside it"
    )
    features: Annotated[FeaturesTeacher | None, TeacherKind("slide_features", "{folder: <folder>}")] = Field(
        None, description="features that were extracted elsewhere, for histill cache: a TRIDENT H5 for each slide"
    )

    @classmethod
    def kinds(cls) -> dict[str, TeacherKind]:
        """All kinds of teachers by key."""
        return {
            name: kind
            for name, field in cls.model_fields.items()
            for kind in field.metadata
            if isinstance(kind, TeacherKind)
        }

    @property
    def key(self) -> str:
        """The key that is set."""
        return next(name for name in self.kinds() if getattr(self, name) not in (None, False))

    @property
    def kind(self) -> TeacherKind:
        return self.kinds()[self.key]

    @property
    def value(self) -> Any:
        """The value of the key that is set, such as the location of its files."""
        return getattr(self, self.key)

    @property
    def label(self) -> str:
        """Its name in the cards of models that learned from it."""
        preset = getattr(self.value, "preset", None)
        value = "" if self.value is True else f" {self.value}"
        return f"{self.key} teacher{value}{f' ({preset})' if preset else ''}"

    @model_validator(mode="after")
    def _exactly_one(self) -> "Teacher":
        kinds = self.kinds()
        if [getattr(self, name) not in (None, False) for name in kinds].count(True) != 1:
            *first, last = (f"teacher.{name}={kind.example}" for name, kind in kinds.items())
            raise ValueError(f"set exactly one of {', '.join(first)} and {last}")
        return self
