"""The dotted keys of a configuration's model, and suggestions for misspelt ones."""

import difflib
import re
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any

from pydantic import BaseModel

_NEAR = 0.6  # least similarity of a suggested key
_FORMER = {  # renamed keys of earlier versions
    "dice": "loss.dice.weight",
    "deep": "loss.deep.weight",
    "data.reader": "data.decode",
    "loss.soft": "loss.soft_cross_entropy.weight",
    "loss.hard": "loss.hard_cross_entropy.weight",
    "loss.temperature": "loss.soft_cross_entropy.temperature",
    "loss.labels": "loss.cross_entropy",
    "loss.labels.weight": "loss.cross_entropy.weight",
    "loss.labels.smoothing": "loss.cross_entropy.smoothing",
}
_SPELLINGS = (  # American for British
    (re.compile(r"(is|ys)(?=e|ation|er|ing)"), {"is": "iz", "ys": "yz"}),
    (re.compile(r"our(?=s?(?:\b|_|\.))"), {"our": "or"}),
    (re.compile(r"(ll)(?=ed|ing|er)"), {"ll": "l"}),
    (re.compile(r"(tre|nce)(?=s?(?:\b|_|\.))"), {"tre": "ter", "nce": "nse"}),
    (re.compile(r"grey"), {"grey": "gray"}),
)
_FORMER_PARTS = {  # renamed parts of keys of earlier versions
    "aim": "objective",
    "cheaper": "max_cost_ratio",
    "draws": "bootstrap_samples",
    "keep_decoded": "cache_decoded",
    "labelled": "labeled",
    "licence": "license",
    "optimiser": "optimizer",
    "resize": "allow_fractional_ratio",
    "shared_colours": "shared_colors",
    "when": "conditions",
}


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted leaf key of `model`, in order of declaration."""
    for name, field in model.model_fields.items():
        below = nested_models(field.annotation)
        if not below:
            yield prefix + name
        for sub in below:
            yield from dotted_keys(sub, f"{prefix}{name}.")


def required_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """The dotted leaf keys of `model` without which it is incomplete, in order of declaration."""
    for name, field in model.model_fields.items():
        if not field.is_required():
            continue
        below = nested_models(field.annotation)
        if not below:
            yield prefix + name
        for sub in below:
            yield from required_keys(sub, f"{prefix}{name}.")


def nested_models(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `A | B | None`; none in a tuple, a mapping, or beside a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if getattr(annotation, "__origin__", None) in (tuple, list, dict):
        return []
    below = [nested_models(part) for part in getattr(annotation, "__args__", ()) if part is not NoneType]
    return [model for models in below for model in models] if all(below) else []


def entry_model(annotation: Any) -> type[BaseModel] | None:
    """The model of the entries of a mapping by names of a pattern, such as `embeddings`; None of any other annotation.

    Names without a pattern may have dots of their own (`space`), and then no dotted key leads below them.
    """
    has_pattern = hasattr(getattr(annotation, "__args__", (None,))[0], "__metadata__")
    return _model_of_entries(annotation) if has_pattern else None


def _model_of_entries(annotation: Any) -> type[BaseModel] | None:
    if getattr(annotation, "__origin__", None) is not dict:
        return None
    below = nested_models(annotation.__args__[1])
    return below[0] if len(below) == 1 else None


def keys_of_entry(model: type[BaseModel], loc: Sequence[Any]) -> Iterable[str]:
    """The dotted keys of the entry of a mapping in `model` that `loc` is of, such as ("embeddings", "uni")."""
    field = model.model_fields.get(loc[0]) if len(loc) > 1 else None
    below = _model_of_entries(field.annotation) if field is not None else None
    return dotted_keys(below, f"{loc[0]}.{loc[1]}.") if below is not None else ()


def sections(names: Iterable[str]) -> list[str]:
    """The dotted keys that have keys below them."""
    found = [name.rpartition(".")[0] for name in names]
    above = {".".join(name.split(".")[:end]) for name in found if name for end in range(1, name.count(".") + 2)}
    return sorted(above)


def nearest_key(key: str, names: Sequence[str]) -> str | None:
    """The full key among `names` that `key` most likely stands for, or None if none is similar.

    British and American spellings are equivalent; the right name in a wrong section, or in none, counts as similar. A
    key of an earlier version gives its new name.
    """
    names = [*names, *sections(names)]
    if (renamed := ".".join(_FORMER_PARTS.get(part, part) for part in key.split("."))) in names:
        return renamed
    known = [*names, *(former for former, now in _FORMER.items() if now in names)]
    best = max(known, key=lambda name: _likeness(_american(key), _american(name)), default=None)
    near = best is not None and _likeness(_american(key), _american(best)) >= _NEAR
    return _FORMER.get(best, best) if best is not None and near else None


def _likeness(key: str, name: str) -> float:
    """Similarity, 0 to 1; the right name in a wrong section counts, more so in a similar one."""
    section, _, last = key.rpartition(".")
    its_section, _, its_last = name.rpartition(".")
    abbreviated = its_last == _initials(last) or last == _initials(its_last)
    alike = 1.0 if last == its_last else 0.95 if abbreviated else _ratio(last, its_last)
    beside = _ratio(section, its_section)
    return 0.9 * alike + 0.1 * beside if alike >= (_NEAR if beside > _NEAR else 0.8) else 0.0


def _initials(name: str) -> str | None:
    """`wd` for `weight_decay`; None for a single word."""
    return "".join(part[:1] for part in name.split("_")) if "_" in name else None


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _american(key: str) -> str:
    key = key.lower().replace("-", "_")
    for pattern, spelt in _SPELLINGS:
        key = pattern.sub(lambda found: spelt[found[0]], key)  # noqa: B023 - used at once
    return key
