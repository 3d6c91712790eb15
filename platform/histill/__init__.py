"""Distil small histology models on Ray: tiles, teachers, students, sweeps and the registry as Python functions.

Names are loaded when they are used, so that `import histill` is instant and needs neither torch nor Ray.
"""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from histill.version import __version__

if TYPE_CHECKING:
    from histill.api.model import Model as Model
    from histill.api.model import load_model as load_model
    from histill.api.models import embed_tiles as embed_tiles
    from histill.api.models import export_model as export_model
    from histill.api.models import predict_tiles as predict_tiles
    from histill.api.models import promote_model as promote_model
    from histill.api.models import score_model as score_model
    from histill.api.operations import check_cluster as check_cluster
    from histill.api.operations import sync_metrics as sync_metrics
    from histill.api.runs import distill_student as distill_student
    from histill.api.runs import finetune_student as finetune_student
    from histill.api.runs import pretrain_student as pretrain_student
    from histill.api.runs import prune_student as prune_student
    from histill.api.runs import search_students as search_students
    from histill.api.runs import train_teacher as train_teacher
    from histill.api.tile_set import TileSet as TileSet
    from histill.api.tile_set import open_tiles as open_tiles
    from histill.api.tiles import cache_responses as cache_responses
    from histill.api.tiles import convert_encoder as convert_encoder
    from histill.api.tiles import ingest_tiles as ingest_tiles
    from histill.errors import HistillError as HistillError
    from histill.errors import InputError as InputError


_NAMES = {
    "histill.api.tile_set": ("open_tiles", "TileSet"),
    "histill.api.tiles": ("ingest_tiles", "cache_responses", "convert_encoder"),
    "histill.api.runs": (
        "train_teacher",
        "pretrain_student",
        "finetune_student",
        "distill_student",
        "prune_student",
        "search_students",
    ),
    "histill.api.models": ("score_model", "promote_model", "export_model", "predict_tiles", "embed_tiles"),
    "histill.api.model": ("load_model", "Model"),
    "histill.api.operations": ("check_cluster", "sync_metrics"),
    "histill.errors": ("HistillError", "InputError"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = ("losses", "metrics", "models")
__all__ = ["__version__", *_MODULE_OF, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_suggest(name)}")
    return getattr(import_module(_MODULE_OF[name]), name)


def _suggest(name: str) -> str:
    """The name that was likely meant, which may be longer: `finetune_student` for `finetune`."""
    near = [each for each in _MODULE_OF if name and each.startswith(name)] or get_close_matches(name, _MODULE_OF, n=1)
    return f"; did you mean {' or '.join(near)}?" if near and not name.startswith("_") else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
