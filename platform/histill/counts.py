"""Count events in this process, such as retries, until `histill.cluster.metrics` publishes them."""

import threading
from collections import Counter
from typing import Literal

Event = Literal["storage_retries", "cache_hits", "cache_misses", "undecodable_tiles", "items_done"]

_lock = threading.Lock()
_counted: Counter[Event] = Counter()


def count_event(event: Event, number: int = 1) -> None:
    """Add `number` to the count of `event`."""
    with _lock:
        _counted[event] += number


def take_counts() -> dict[Event, int]:
    """Return the counts since the last call."""
    with _lock:
        counts = dict(_counted)
        _counted.clear()
    return counts
