"""The verbs of the command line: for each the configuration it takes and the use case it calls.

Everything is named rather than imported, so that `histill --help` is instant.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One use case as a command."""

    name: str  # the first word of the use case's name
    use_case: str  # module:function, from configuration to result
    config: str  # module:class, or module:OneOf
    summary: str
    examples: tuple[str, ...]  # what may follow the command

    @property
    def job(self) -> str:
        """The name of the use case's function, and of its file in jobs/."""
        return self.use_case.partition(":")[2]


VERBS = (
    Verb(
        "ingest",
        "histill.api.tiles:ingest_tiles",
        "histill.config.ingest_tiles:IngestConfig",
        "cut slides, or import images, into a tile set",
        (
            "output=tiles images.index=images/index.csv images.mpp=0.5 tile_px=224",
            "-c ingest_slides.yaml output=s3://bucket/tiles slides.index=slides.csv",
        ),
    ),
    Verb(
        "train",
        "histill.api.runs:train_teacher",
        "histill.config.train_teacher:TeacherConfig",
        "train a teacher on masks or labels",
        ("name=teacher runs=runs data.tiles=tiles", "-c train_teacher.yaml data.tiles=s3://bucket/tiles/nuclei"),
    ),
    Verb(
        "convert",
        "histill.api.tiles:convert_encoder",
        "histill.config.convert_encoder:ConvertConfig",
        "convert published weights to an embedding teacher",
        (
            "weights=uni/pytorch_model.bin output=s3://bucket/encoders/uni",
            "weights=midnight/model.safetensors preset=midnight-12k output=encoders/midnight",
        ),
    ),
    Verb(
        "cache",
        "histill.api.tiles:cache_responses",
        "histill.config.cache_responses:CacheConfig",
        "cache a teacher's responses to a tile set, once",
        (
            "tiles=tiles teacher.classical=true output=responses",
            "-c cache_responses.yaml tiles=s3://bucket/tiles output=s3://bucket/responses",
        ),
    ),
    Verb(
        "pretrain",
        "histill.api.runs:pretrain_student",
        "histill.config.pretrain_student:PretrainConfig",
        "pretrain a student without labels (RCKD, embeddings)",
        (
            "name=first runs=runs data.tiles=tiles teacher.classical=true responses=responses/0123456789abcdef",
            "name=first runs=runs data.tiles=tiles embeddings.uni.responses=responses/0123456789abcdef",
        ),
    ),
    Verb(
        "finetune",
        "histill.api.runs:finetune_student",
        "histill.config.finetune_student:FinetuneConfig",
        "fine-tune a student on labels or masks",
        ("name=biopsies runs=runs data.tiles=tiles target=classification encoder=runs/first",),
    ),
    Verb(
        "distill",
        "histill.api.runs:distill_student",
        "histill.config.distill_student:DistillConfig",
        "distil a low-resolution student from a high-resolution teacher",
        ("-c distill_student.yaml name=quarter teacher.model=s3://bucket/runs/high student.size_px=56",),
    ),
    Verb(
        "prune",
        "histill.api.runs:prune_student",
        "histill.config.prune_student:PruneConfig",
        "prune a student, which then recovers from a teacher",
        ("name=half runs=runs data.tiles=tiles continue_from=runs/first teacher.model=runs/first macs=0.5",),
    ),
    Verb(
        "search",
        "histill.api.runs:search_students",
        "histill.search.configs:SEARCHES",
        "sweep any keys of a run",
        (
            "-c search_students.yaml name=sweep data.tiles=s3://bucket/tiles",
            "-c sweep.yaml space.optimizer.lr.loguniform=[1e-4,1e-2]",
            "-c sweep.yaml job=distill_student objective=front --register-best csat",
        ),
    ),
    Verb(
        "score",
        "histill.api.models:score_model",
        "histill.config.score_model:ScoreConfig",
        "score a model on held-out tiles",
        (
            "model=runs/first held_out.tiles=tiles report=first.html",
            "model=runs/encoder held_out.tiles=tiles held_out.probe.neighbors=20",
            "model=s3://teachers/uni2-h encoder.preset=uni2-h held_out.tiles=s3://bucket/tiles",
        ),
    ),
    Verb(
        "promote",
        "histill.api.models:promote_model",
        "histill.config.promote_model:PromoteConfig",
        "make a model the champion if it passes the gates, or roll back",
        (
            "-c promote_model.yaml model=s3://bucket/runs/first --dry-run",
            "registered_name=nuclei-student --rollback",
            "-c promote_model.yaml model=s3://bucket/runs/first --copy-to http://mlflow.production:5000",
        ),
    ),
    Verb(
        "export",
        "histill.api.models:export_model",
        "histill.config.export_model:ExportConfig",
        "export a model for ONNX runtimes, timm, smp and QuPath",
        (
            "model=runs/first tiles=tiles 'formats=[onnx, timm, wsinfer]' output=exports",
            "model=models:/nuclei-student@champion tiles=s3://bucket/tiles output=s3://bucket/exports",
        ),
    ),
    Verb(
        "predict",
        "histill.api.models:predict_tiles",
        "histill.config.predict_tiles:PredictConfig",
        "predict a tile set or slides, with heatmaps for QuPath",
        (
            "model=models:/nuclei-student@champion 'slides=[a.svs]' output=predictions",
            "model=s3://bucket/runs/first tiles=s3://bucket/tiles output=s3://bucket/predictions",
        ),
    ),
    Verb(
        "embed",
        "histill.api.models:embed_tiles",
        "histill.config.predict_tiles:EmbedConfig",
        "embed a tile set or slides, as Parquet and TRIDENT's HDF5",
        ("model=runs/encoder 'slides=[a.svs]' output=features",),
    ),
    Verb(
        "check",
        "histill.api.operations:check_cluster",
        "histill.config.check_cluster:CheckConfig",
        "check cluster, storage and tracking before a long run",
        ("read=s3://bucket/tiles write=s3://bucket/runs workers.count=8 workers.gpus=1",),
    ),
    Verb(
        "sync",
        "histill.api.operations:sync_metrics",
        "histill.config.sync_metrics:SyncConfig",
        "send metrics that the tracking server missed",
        ("unsent=s3://bucket/runs/_unsent",),
    ),
)


def find_verb(*, name: str | None = None, job: str | None = None) -> Verb | None:
    """The verb of this name or job; None if there is none."""
    return next((verb for verb in VERBS if name in (verb.name, verb.job) or job == verb.job), None)


def load_object(path: str) -> Any:
    """The object named `module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
