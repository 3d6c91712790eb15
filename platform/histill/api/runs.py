"""Use cases that train: teachers, students of all kinds, and sweeps of their keys."""

from typing import TYPE_CHECKING, Any

from histill.api.configure import Given, configure
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.prune_student import PruneConfig
from histill.config.train_teacher import TeacherConfig

if TYPE_CHECKING:
    from histill.search.results import Sweep
    from histill.train.launch import Trained


def train_teacher(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Trained":
    """Train a network teacher over any timm encoder: a U-Net on the nuclei masks of a tile set, or a classifier on
    labels.

    Other runs take the finished run's folder as teacher.model. The same name again resumes the run; a finished name is
    refused.

    Args:
        config: a `TeacherConfig`, a YAML file or a mapping; None: the keys alone.
        local: train in this process, without Ray.
        **keys: keys of `TeacherConfig` over `config`, such as `name`, `runs` and `data={"tiles": ...}`.

    Returns:
        The run's folder, its model's and the metrics of its last epoch.

    Raises:
        InputError: the inputs cannot be used, or the run is finished or in use.

    Examples:
        >>> histill.train_teacher(name="teacher", runs="runs", data={"tiles": "tiles"}, local=True).model
    """
    from histill.registry.training import train_tracked

    return train_tracked(configure(TeacherConfig, config, keys, local=local, source="train_teacher"))


def pretrain_student(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Trained":
    """Pretrain a student without labels: on a nuclei teacher's responses (RCKD), on embeddings, or on both.

    Workers stream the tiles in the tile set's manifest; the teacher's responses are cached or computed live.
    Checkpoints go to `<runs>/<name>`; the same name again resumes the run; a finished name is refused.

    Args:
        config: a `PretrainConfig`, a YAML file or a mapping; None: the keys alone.
        local: train in this process, without Ray.
        **keys: keys of `PretrainConfig` over `config`, such as `name`, `runs`, `data` and `teacher` or `embeddings`.

    Returns:
        The run's folder, its model's and the metrics of its last epoch.

    Raises:
        InputError: the inputs cannot be used, or the run is finished or in use.

    Examples:
        >>> run = histill.pretrain_student(
        ...     name="first", runs="runs", data={"tiles": "tiles"}, teacher={"classical": True}, local=True
        ... )
        >>> histill.load_model(run.model)
    """
    from histill.registry.training import train_tracked

    return train_tracked(configure(PretrainConfig, config, keys, local=local, source="pretrain_student"))


def finetune_student(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Trained":
    """Fine-tune a pretrained student: classify whole tiles by label, or segment them by mask.

    The encoder comes from a pretraining run, a model folder or the registry; without one the same network is trained
    from scratch, for comparison. A classifier starts from a logistic regression on the encoder's features (head=probe
    is that alone, in seconds), and the run ends with its best model by validation. The same name again resumes the
    run; a finished name is refused.

    Args:
        config: a `FinetuneConfig`, a YAML file or a mapping; None: the keys alone.
        local: train in this process, without Ray.
        **keys: keys of `FinetuneConfig` over `config`, such as `name`, `runs`, `data`, `target` and `encoder`.

    Returns:
        The run's folder, its model's and the metrics of its last epoch.

    Raises:
        InputError: the inputs cannot be used, or the run is finished or in use.

    Examples:
        >>> histill.finetune_student(
        ...     name="biopsies", runs="runs", data={"tiles": "tiles"}, target="classification", encoder="runs/first"
        ... )
    """
    from histill.registry.training import train_tracked

    return train_tracked(configure(FinetuneConfig, config, keys, local=local, source="finetune_student"))


def distill_student(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Trained":
    """Distil a low-resolution student from a high-resolution teacher.

    The student mimics the teacher's logits and feature maps on tiles with and without labels (resolution distillation,
    arXiv 2101.04170). The same name again resumes the run; a finished name is refused.

    Args:
        config: a `DistillConfig`, a YAML file or a mapping; None: the keys alone.
        local: train in this process, without Ray.
        **keys: keys of `DistillConfig` over `config`, such as `name`, `runs`, `data`, `teacher` and `student`.

    Returns:
        The run's folder, its model's and the metrics of its last epoch.

    Raises:
        InputError: the inputs cannot be used, or the run is finished or in use.

    Examples:
        >>> histill.distill_student(
        ...     name="quarter",
        ...     runs="runs",
        ...     data={"tiles": "tiles"},
        ...     teacher={"model": "runs/high"},
        ...     student={"size_px": 56},
        ... )
    """
    from histill.registry.training import train_tracked

    return train_tracked(configure(DistillConfig, config, keys, local=local, source="distill_student"))


def prune_student(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Trained":
    """Prune a trained student, and let it recover on the responses of a teacher.

    Whole channels are removed, together with all that depends on them, until the share `macs` of the
    multiply-accumulates is left; then the student is distilled, live or from cached responses. The teacher may be the
    student before it was pruned. The same name again resumes the run; a finished name is refused.

    Args:
        config: a `PruneConfig`, a YAML file or a mapping; None: the keys alone.
        local: train in this process, without Ray.
        **keys: keys of `PruneConfig` over `config`, such as `name`, `runs`, `data`, `continue_from`, `teacher`, `macs`.

    Returns:
        The run's folder, its model's and the metrics of its last epoch.

    Raises:
        InputError: the inputs cannot be used, the student cannot be pruned, or the run is finished or in use.

    Examples:
        >>> histill.prune_student(
        ...     name="half",
        ...     runs="runs",
        ...     data={"tiles": "tiles"},
        ...     continue_from="runs/first",
        ...     teacher={"model": "runs/first"},
        ...     macs=0.5,
        ... )
    """
    from histill.registry.training import train_tracked

    return train_tracked(configure(PruneConfig, config, keys, local=local, source="prune_student"))


def search_students(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Sweep":
    """Sweep any keys of a run with Ray Tune; hopeless trials are stopped early.

    `job` is the kind of run of each trial, whose keys are all accepted: pretrain_student, distill_student,
    finetune_student or train_teacher. `space` maps dotted keys to how they are drawn: {optimizer.lr: {loguniform:
    [1e-4, 1e-2]}, student.size_px: {choice: [128, 256]}}. The finished sweep's folder is a run folder: scoring or
    promoting it uses the best trial.

    Args:
        config: a `SearchConfig`, a YAML file or a mapping; None: the keys alone.
        local: each trial trains in its own Tune process, rather than on workers of its own. Tune runs on Ray, which
            is started here unless RAY_ADDRESS names a cluster.
        **keys: keys of the sweep and of its trials, such as `job`, `space`, `trials`, and those of `pretrain_student`.

    Returns:
        The sweep: its folder, its trials, the best one, and the front of quality against cost.

    Raises:
        InputError: the space or the inputs cannot be used, or the sweep is finished or in use.

    Examples:
        >>> sweep = histill.search_students(
        ...     name="sweep",
        ...     runs="runs",
        ...     data={"tiles": "tiles"},
        ...     teacher={"classical": True},
        ...     trials=8,
        ...     space={"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
        ... )
        >>> sweep.best.values
    """
    from histill.registry.training import fetch_sources
    from histill.search.configs import SEARCHES
    from histill.train.prepare import check_places

    checked = configure(SEARCHES, config, keys, local=local, source="search_students")
    fetched = fetch_sources(checked)
    check_places(fetched)
    from histill.cluster.connect import connect_cluster  # from here on torch and Ray are loaded
    from histill.registry.mlflow_client import check_tracking, require_server_uri
    from histill.registry.mlflow_runs import open_run
    from histill.registry.versions import register
    from histill.search.sweep import RECORD_NAME, prepare_sweep, run_sweep
    from histill.storage.control import json_bytes

    prepared = prepare_sweep(fetched)
    if checked.register_best is None:
        check_tracking(checked.tracking)
    else:
        require_server_uri(checked.tracking)

    def register_best(model: str, name: str, record: dict[str, object]) -> str:
        return register(model, name, {RECORD_NAME: json_bytes(record)}, checked.tracking, checked.storage)

    with connect_cluster():
        return run_sweep(prepared, open_run, register_best)
