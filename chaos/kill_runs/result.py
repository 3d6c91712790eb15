"""The results of a job, in a form in which two runs of one command can be compared."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOLATILE = {"seconds", "tracking_run", "latency_ms", "gmacs_per_s"}  # keys of JSON files that measure, or are drawn


@dataclass(frozen=True)
class Result:
    """Objects by name, and records of the tracking server; `unfinished` must be empty in the end."""

    objects: Mapping[str, bytes]
    records: Mapping[str, Any] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()


def settled(name: str, data: bytes, chain: str) -> bytes:
    """`data` normalized to be equal in all runs of one command: without the chain's name, times and random ids."""
    if not name.endswith(".json"):
        return data
    try:
        value = json.loads(data)
    except ValueError:
        return data
    return json.dumps(plain(value, chain), sort_keys=True).encode()


def plain(value: Any, chain: str) -> Any:
    """A JSON value without the parts that differ between runs."""
    match value:
        case dict():
            return {key: plain(item, chain) for key, item in value.items() if key not in VOLATILE}
        case list():
            return [plain(item, chain) for item in value]
        case str():
            return re.sub(rf"\b{re.escape(chain)}\b", "CHAIN", value)
    return value


def differences(reference: Result, found: Result) -> list[str]:
    """Describe the differences; empty if there are none."""
    faults = []
    if missing := sorted(reference.objects.keys() - found.objects.keys()):
        faults.append(f"missing: {_some(missing)}")
    if extra := sorted(found.objects.keys() - reference.objects.keys()):
        faults.append(f"left over: {_some(extra)}")
    faults += differing(reference, found)
    for name in sorted(reference.records.keys() | found.records.keys()):
        expected, seen = reference.records.get(name), found.records.get(name)
        if expected != seen:
            faults.append(f"{name} is {_short(seen)} instead of {_short(expected)}")
    return faults + list(found.unfinished)


def differing(reference: Result, found: Result) -> list[str]:
    """Existing objects that differ from their final content in an undisturbed run."""
    names = sorted(
        name for name, data in found.objects.items() if name in reference.objects and reference.objects[name] != data
    )
    return [f"other contents: {_some(names)}"] if names else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 300 else f"{text[:300]}..."
