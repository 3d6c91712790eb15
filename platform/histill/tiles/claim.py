"""Claim an output folder for one ingest configuration at a time.

The record of an ingest, `ingest.json`, is created before anything else, and only one ingest can create it. An ingest
that fails releases the folder by changing the record, so that the next may have another configuration; one that is
interrupted or killed keeps it. Each ingest writes to folders with its own name, `Claim.stamp`, so that a straggler of
an earlier one cannot interfere.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.errors import InputError
from histill.storage.control import create_bytes, json_bytes, read_bytes, swap_bytes
from histill.storage.uris import join, stem
from histill.tiles.index import read_index_bytes

RECORD_NAME = "ingest.json"
# Keys that do not affect any tile.
_NOT_CONTENT: Any = {
    "storage": True,
    "output": True,
    "max_unreadable": True,
    "workers": True,
    "slides": {"split_within_slide"},
}
_PLACES = ("index", "paths")
_FAILED = "failed"
_TRIES = 10


@dataclass(frozen=True)
class Claim:
    """A configuration's claim to an output folder."""

    output: str
    record: dict[str, Any]  # what determines the tiles: the configuration, and the content of its index
    storage: Storage

    @property
    def digest(self) -> str:
        """SHA-256 of the record."""
        return _digest(self.record)

    @property
    def stamp(self) -> str:
        """The name of its folders for parts and shards, which does not depend on where the sources are."""
        sources = {key: self.record[key] or {} for key in ("slides", "images")}
        names = [stem(path) for path in sources["slides"].get("paths", ())]
        bare = {key: {name: source[name] for name in source if name not in _PLACES} for key, source in sources.items()}
        return _digest({**self.record, **bare, "slides by name": names})[:8]

    @property
    def uri(self) -> str:
        """The URI of the record."""
        return join(self.output, RECORD_NAME)

    def look(self) -> bool:
        """Whether the record exists and is this one's. Raises InputError if it is another's that has not failed."""
        return self._found()[1]

    def take(self) -> None:
        """Create the record, or take the folder over from a failed ingest. Raises InputError if it is another's."""
        mine = json_bytes(self.record)
        for _ in range(_TRIES):
            if create_bytes(self.uri, mine, self.storage):
                return
            found, _ = self._found()
            if found is None:
                continue
            if found == mine or swap_bytes(self.uri, found, mine, self.storage):
                return
        raise InputError(
            f"{self.uri} keeps changing; run only one ingest into this output at a time.", code="run-in-use"
        )

    def give_up(self) -> None:
        """Release the folder for the next ingest."""
        swap_bytes(self.uri, json_bytes(self.record), json_bytes({**self.record, _FAILED: True}), self.storage)

    def _found(self) -> tuple[bytes | None, bool]:
        try:
            found = read_bytes(self.uri, self.storage)
        except FileNotFoundError:
            return None, False
        try:
            earlier = json.loads(found)
            failed = earlier.pop(_FAILED, False)
        except (ValueError, AttributeError, TypeError):
            raise InputError(
                f"{self.uri} is not the record of an ingest; name another output or empty this one.",
                code="output-taken",
            ) from None
        if earlier != self.record and not failed:
            raise self._taken(earlier)
        return found, earlier == self.record

    def _taken(self, earlier: Mapping[str, Any]) -> InputError:
        before, now = dict(_leaves(earlier)), dict(_leaves(self.record))
        key = next(key for key in [*now, *before] if before.get(key) != now.get(key))
        return InputError(
            f"{self.output} holds tiles of another configuration ({key} was {before.get(key, 'unset')!r} and is "
            f"{now.get(key)!r}); name another output, or empty this one once no job uses it.",
            code="output-taken",
        )


def claim_of(config: IngestConfig) -> Claim:
    """The claim of a configuration, not taken yet. Raises InputError when its index cannot be read."""
    source = config.slides or config.images
    index = source.index if source else None
    content = hashlib.sha256(read_index_bytes(index, config.storage)).hexdigest() if index else None
    record = {**config.model_dump(mode="json", exclude=_NOT_CONTENT), "sha256 of the index": content}
    for key in ("keep_jpeg", "overlap_px", "icc", "annotations"):
        if config.slides and not record["slides"][key]:
            del record["slides"][key]  # sets that were begun before the key existed go on
    if not config.keep_columns:
        del record["keep_columns"]
    return Claim(config.output, record, config.storage)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item
