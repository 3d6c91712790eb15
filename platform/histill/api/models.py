"""Use cases of finished models: score, promote, export, predict and embed."""

from typing import TYPE_CHECKING, Any

from histill.api.configure import Given, configure
from histill.config.export_model import ExportConfig
from histill.config.predict_tiles import EmbedConfig, PredictConfig
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import ScoreConfig

if TYPE_CHECKING:
    from histill.evaluate.export_model import Exported
    from histill.evaluate.score import Score
    from histill.predict.record import Predicted
    from histill.registry.decision import Promotion


def score_model(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Score":
    """Score a model on held-out tiles: every tile counted once, with 95 % intervals over cases.

    Segmenters get Dice and mIoU over the whole set, against masks or a teacher; classifiers get balanced accuracy,
    macro F1, AUROC and calibration error, against labels. Figures are also given by slide and stain and on degraded
    tiles, and the model's cost is measured on this machine. The HTML page that `report` names is self-contained.

    Encoders, and with `held_out.probe` the encoder of any model, are scored by their embeddings: a linear probe, fitted
    to the labels of the training split, predicts the held-out tiles. Nearest neighbors, few-shot classification and
    retrieval are reported beside it, and the robustness index if a table gives each case's center or scanner. `model`
    may also be a timm model as the Hugging Face hub has them, to be compared with a student.

    Scoring takes place in this process unless `workers` asks for the cluster.

    Args:
        config: a `ScoreConfig`, a YAML file or a mapping; None: the keys alone.
        local: score in this process, whatever `workers` of the file say.
        **keys: keys of `ScoreConfig` over `config`, such as `model`, `held_out={"tiles": ...}` and `report`.

    Returns:
        The figures with their intervals, and all else that the report shows.

    Raises:
        InputError: the model does not match the tiles, or the split has nothing to compare with.

    Examples:
        >>> histill.score_model(model="runs/first", held_out={"tiles": "tiles"}).figures["dice"]
    """
    from histill.artifacts.check_places import check_model, check_teacher
    from histill.config.engine import check_installed
    from histill.registry.mlflow_client import require_server_uri
    from histill.tiles.manifest import read_header

    checked = configure(ScoreConfig, config, keys, local=local, source="score_model")
    header = read_header(checked.held_out.tiles, checked.storage)
    check_model(checked.model, header, checked.held_out.tiles, checked.storage)
    check_installed(checked.engine)
    if checked.held_out.reference is not None:
        check_teacher(checked.held_out.reference, checked.storage)
    if checked.model.startswith("models:"):
        require_server_uri(checked.tracking)
    from histill.registry.scoring import run_scoring  # from here on torch is loaded

    return run_scoring(checked)


def promote_model(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Promotion":
    """Make a model the champion if it passes the gates, or roll back to the former one.

    Scores the candidate and the current champion on the same held-out tiles, registers the candidate in MLflow with its
    exported formats and its card, and moves the alias `champion` to it only if it passes every gate; the former
    champion gets the alias `previous`. The decision and its figures are recorded on the registered version.

    Args:
        config: a `PromoteConfig`, a YAML file or a mapping; None: the keys alone.
        local: score in this process, whatever `workers` of the file say.
        **keys: keys of `PromoteConfig` over `config`, such as `model`, `registered_name`, `held_out` and `gates`.

    Returns:
        The decision: `ok` if the model is the champion now, `decision` in words, and the table of gates.

    Raises:
        InputError: no tracking server is configured, or the model or tiles cannot be used.

    Examples:
        >>> histill.promote_model(model="runs/first", registered_name="nuclei", held_out={"tiles": "tiles"}).decision
    """
    from histill.artifacts.check_places import check_model
    from histill.tiles.manifest import read_header

    checked = configure(PromoteConfig, config, keys, local=local, source="promote_model")
    if checked.held_out is not None:
        header = read_header(checked.held_out.tiles, checked.storage)
        if checked.model is not None:
            check_model(checked.model, header, checked.held_out.tiles, checked.storage)
    from histill.registry.promotion import promote  # from here on torch is loaded

    return promote(checked)


def export_model(config: Given = None, /, **keys: Any) -> "Exported":
    """Export a model to a folder for other programs, without a registry and without judging it.

    Each format must answer some real tiles as the model does. The folder also gets a README, `interface.json`, which
    says what goes in and what comes out, and the SHA-256 of all files, which `signing_key` signs.

    Args:
        config: an `ExportConfig`, a YAML file or a mapping; None: the keys alone.
        **keys: keys of `ExportConfig` over `config`: `model`, `tiles`, `formats`, `output` and so on.

    Returns:
        Where the files are, and the formats with their sizes, or why one was not made.

    Raises:
        InputError: the tiles are unlike the model's, or a package is missing.
        HistillError: a format answers otherwise than the model.

    Examples:
        >>> histill.export_model(model="runs/first", tiles="tiles", formats=["onnx", "wsinfer"], output="exports")
    """
    from pathlib import Path

    from histill.registry.fetch import fetch_model
    from histill.storage.scratch import scratch_folder

    checked = configure(ExportConfig, config, keys, source="export_model")
    from histill.evaluate import export_model as exporting  # from here on torch is loaded

    with scratch_folder() as folder:
        return exporting.export_model(fetch_model(checked.model, checked.tracking, Path(folder)), checked)


def predict_tiles(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Predicted":
    """Predict every tile of a tile set or of slides with a model, such as the champion, and draw heatmaps of the
    slides.

    The predictions are Parquet files, one per shard of tiles, each written whole or not at all: the same call again
    resumes an interrupted run, and no tile is predicted twice. Slides are cut like the model's tiles. A heatmap is a
    PNG, and a GeoJSON that QuPath opens on the slide: both use level-0 pixels from the corner of OpenSlide's bounds, as
    QuPath does, while the Parquet files count from the corner of level 0. `slides.csv` has a line per slide: its tiles
    and their area, the mean share of each class (for a classifier the mean probability), and the tiles of each class; a
    segmenter's tile counts as background if less than 1 % of it is foreground. The metadata of each Parquet file (key
    `histill.predictions`) has the classes in the order of `probabilities`, and the side and resolution of a tile. With
    `embeddings=true`, and always for encoders, the Parquet files also hold each tile's embedding, and `features/` an
    HDF5 file per slide in TRIDENT's form.

    To predict an array rather than files, see `load_model`.

    Args:
        config: a `PredictConfig`, a YAML file or a mapping; None: the keys alone.
        local: predict in this process, without Ray.
        **keys: keys of `PredictConfig` over `config`: `model`, `tiles` or `slides`, `output` and so on.

    Returns:
        Where the predictions are, and how many tiles of which class.

    Raises:
        InputError: the model does not match the tiles, or too many tiles cannot be decoded.

    Examples:
        >>> histill.predict_tiles(model="models:/nuclei@champion", slides=["a.svs"], output="predictions", local=True)
    """
    from histill.predict.check_places import check_model, check_sources
    from histill.registry.materialize import materialize_model

    checked = configure(PredictConfig, config, keys, local=local, source="predict_tiles")
    check_sources(checked)
    model = materialize_model(checked.model, checked.tracking, checked.output, checked.storage, name="model")
    checked = checked.model_copy(update={"model": model})
    check_model(checked)
    from histill.predict.predict import predict  # from here on torch is loaded

    return predict(checked)


def embed_tiles(config: Given = None, /, *, local: bool = False, **keys: Any) -> "Predicted":
    """Embed every tile of a tile set or of slides with any model: `predict_tiles` with embeddings, without heatmaps.

    The embeddings are a float16 column of the Parquet files, and an HDF5 file per slide in TRIDENT's form
    (`features`, `coords`) in the folder `features/`, which pipelines of slide-level models read.

    Args:
        config: an `EmbedConfig`, a YAML file or a mapping; None: the keys alone.
        local: embed in this process, without Ray.
        **keys: keys of `EmbedConfig` over `config`: `model`, `tiles` or `slides`, `output` and so on.

    Returns:
        Where the files are, and how many tiles they hold.

    Raises:
        InputError: as `predict_tiles`.

    Examples:
        >>> histill.embed_tiles(model="runs/encoder", slides=["a.svs"], output="features", local=True)
    """
    return predict_tiles(configure(EmbedConfig, config, keys, local=local, source="embed_tiles"))
