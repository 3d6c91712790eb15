"""Say at a command's end what was made, where it is, and which command is next."""

import posixpath
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from histill.cluster.progress import count_of
from histill.config.base import Strict
from histill.config.command import format_command, list_changed_keys

_Values = Mapping[str, Any]
_NAME, _TILES, _MODEL = "NAME", "TILES", "MODEL"  # what only the user knows


def close_job(job: str, config: Strict, values: _Values) -> str | None:
    """The closing line of the use case `job` with its `config` and the values it printed; None if nothing was made."""
    return _CLOSING[job](config, values) if job in _CLOSING else None


def _close_ingest(config: Any, values: _Values) -> str:
    made = f"a tile set of {count_of(values['tiles'], 'tile')}"
    keys: dict[str, Any] = {"data.tiles": config.output}
    if values["classes"] or values["masks"]:
        empty = [split for split in ("train", "val") if not values["splits"].get(split)]
        if [split for split in empty if getattr(config.split, split) > 0]:
            made += f" without any for {' or '.join(empty)}"
            again = f"the same command with another output and split.pinned.{empty[0]}=[CASE]"
            return f"made {shlex.quote(config.output)}, {made}; next: {again}"
        if empty:
            return _made(config, config.output, made, "score_model", _to_score(_MODEL, config.output))
        keys |= {"target": "classification"} if values["classes"] else {}
        keys = {"name": "teacher", "runs": _beside(config.output, "runs"), **keys}
        return _made(config, config.output, made, "train_teacher", keys)
    keys = {"tiles": config.output, "teacher.classical": True, "output": _beside(config.output, "responses")}
    return _made(config, config.output, made, "cache_responses", keys)


def _close_cache(config: Any, values: _Values) -> str:
    teacher, responses = config.teacher, values["responses"]
    if values["width"] is None:
        job = "pretrain_student" if values["dense"] else "distill_student"
        keys = {f"teacher.{teacher.key}": teacher.value, "responses": responses}
    else:
        name = getattr(teacher.value, "preset", None) or "teacher"
        job, keys = "pretrain_student", {f"embeddings.{name}.responses": responses}
    keys = {"name": _NAME, "runs": _beside(config.output, "runs"), "data.tiles": config.tiles, **keys}
    return _made(config, responses, "a teacher's cached responses", job, keys)


def _close_teacher(config: Any, values: _Values) -> str:
    keys = {"tiles": config.data.tiles, "teacher.model": values["run"], "output": _beside(config.runs, "responses")}
    return _made(config, values["run"], "a teacher", "cache_responses", keys)


def _close_pretraining(config: Any, values: _Values) -> str:
    keys = {"name": _NAME, "runs": config.runs, "encoder": values["run"]} | _of_network(config) | _labeled(_TILES)
    return _made(config, values["run"], "a pretrained student", "finetune_student", keys)


def _close_training(config: Any, values: _Values) -> str:
    return _made(config, values["run"], "a student", "score_model", _to_score(values["run"], config.data.tiles))


def _close_search(config: Any, values: _Values) -> str:
    made = f"the best student of {count_of(values['trials'], 'trial')}"
    return _made(config, values["run"], made, "score_model", _to_score(values["run"], config.data.tiles))


def _close_scoring(config: Any, values: _Values) -> str:
    job, keys = "promote_model", {"model": config.model, "registered_name": _NAME} | _of(config, "held_out")
    if values["probe"]:
        keys = {"name": _NAME, "runs": _beside(config.model, "") or "runs", "encoder": config.model}
        job, keys = "finetune_student", keys | _labeled(config.held_out.tiles)
    if config.report is not None:
        return _made(config, config.report, "a report", job, keys)
    done = f"scored {shlex.quote(config.model)}; report=report.html writes the same as a page"
    return f"{done}; next: {_next(config, job, keys)}"


def _close_promotion(config: Any, values: _Values) -> str | None:
    if values["decision"] not in ("promoted", "already champion", "rolled back"):
        return None
    model = f"models:/{config.registered_name}@champion"
    tiles = _TILES if config.held_out is None else config.held_out.tiles
    keys = {"model": model, "tiles": tiles, "output": _beside(tiles, "predictions")}
    return _made(config, model, "the champion", "predict_tiles", keys)


def _close_export(config: Any, values: _Values) -> str:
    made = sum(bool(each["files"]) for each in values["formats"])
    return (
        f"made {shlex.quote(config.output)}, {count_of(made, 'format')}; next: README.md there says what each file is"
    )


def _close_prediction(config: Any, values: _Values) -> str:
    made = f"made {shlex.quote(values['predictions'])}, predictions of {count_of(values['tiles'], 'tile')}"
    folders = [f"{name}/*.geojson" for name in ("heatmaps", "detections") if values[name]]
    return f"{made}; next: open {' and '.join(folders)} of that folder on the slides in QuPath" if folders else made


def _close_embedding(config: Any, values: _Values) -> str:
    made = f"made {shlex.quote(values['predictions'])}, embeddings of {count_of(values['tiles'], 'tile')}"
    return (
        f"{made}; next: read features/*.h5 of that folder, a slide each, or the column embedding of its Parquet files"
    )


def _close_conversion(config: Any, values: _Values) -> str:
    keys = {"tiles": _TILES, "teacher.encoder.folder": values["folder"]}
    keys |= {"teacher.encoder.preset": config.preset} if config.preset else {}
    keys |= {"output": _beside(config.output, "responses")}
    return _made(config, values["folder"], "an encoder", "cache_responses", keys)


def _made(config: Strict, where: str, what: str, job: str, keys: _Values) -> str:
    return f"made {shlex.quote(where)}, {what}; next: {_next(config, job, keys)}"


def _next(config: Strict, job: str, keys: _Values) -> str:
    """The command of `job` with the same storage and tracking server."""
    return format_command(job, {**keys, **_of(config, "storage"), **_of(config, "tracking")})


def _beside(place: str, name: str) -> str:
    """The address of `name` in the folder of `place`; the folder itself for no name, empty for the current one."""
    return posixpath.join(posixpath.dirname(place.rstrip("/")), name).rstrip("/")


def _labeled(tiles: str) -> dict[str, Any]:
    return {"data.tiles": tiles, "target": "classification"}


def _of(config: Strict, section: str) -> dict[str, Any]:
    """The changed keys of a section of `config`."""
    return {key: value for key, value in list_changed_keys(config).items() if f"{key}.".startswith(f"{section}.")}


def _of_network(config: Any) -> dict[str, Any]:
    """The keys by which another job builds the same encoder."""
    return {key: value for key, value in _of(config, "student").items() if key == "student.encoder"}


def _to_score(model: str, tiles: str) -> dict[str, Any]:
    return {"model": model, "held_out.tiles": tiles, "report": "report.html"}


_CLOSING: Mapping[str, Callable[[Any, _Values], str | None]] = {
    "ingest_tiles": _close_ingest,
    "cache_responses": _close_cache,
    "train_teacher": _close_teacher,
    "pretrain_student": _close_pretraining,
    "finetune_student": _close_training,
    "distill_student": _close_training,
    "prune_student": _close_training,
    "search_students": _close_search,
    "score_model": _close_scoring,
    "promote_model": _close_promotion,
    "export_model": _close_export,
    "predict_tiles": _close_prediction,
    "embed_tiles": _close_embedding,
    "convert_encoder": _close_conversion,
}
