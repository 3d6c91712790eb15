"""Show the progress of long work: a bar on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from histill.cluster.metrics import Publisher

T = TypeVar("T")
_LEAST_S = 0.5  # of work, from which a rate can be measured


def format_duration(seconds: float) -> str:
    """`65` as `1:05`, `3700` as `1:01:40`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def count_of(count: int, noun: str) -> str:
    """`1 tile`, `1,200 tiles`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


@dataclass
class Progress:
    """Show `done` of `total` units of work, with the rate and the time left, and publish them as metrics.

    On a terminal one line is redrawn; elsewhere (a job's log) a line is printed every `every_s` seconds.
    """

    title: str
    total: int
    unit: str
    every_s: float = 5.0
    done: int = 0
    publisher: Publisher = field(default_factory=Publisher)
    _begun: float = field(default_factory=lambda: time.monotonic())
    _resumed_at: int = 0
    _shown: float = 0.0
    _width: int = 0

    def start_at(self, done: int) -> None:
        """Count an earlier run's work as done, without including it in the rate."""
        self.done = self._resumed_at = done

    def update(self, done: int, detail: str = "", rate: float | None = None) -> None:
        """Set the amount done, and show it if due. `rate` overrides the measured units/s."""
        self.done = done
        now = time.monotonic()
        wait = 0.2 if sys.stderr.isatty() else self.every_s
        if now - self._shown >= wait or done >= self.total:
            self._show(now, detail, rate)

    def _show(self, now: float, detail: str, rate: float | None) -> None:
        self._shown = now
        self.publisher.set("work_done", self.done, stage=self.title, unit=self.unit)
        self.publisher.set("work_planned", self.total, stage=self.title, unit=self.unit)
        spent = now - self._begun
        fresh = self.done - self._resumed_at
        if rate is None:
            rate = fresh / spent if spent >= _LEAST_S else 0.0
        left = self.total - self.done
        eta = format_duration(left / rate) if rate > 0 else "?" if left > 0 else "0:00"
        share = self.done / self.total if self.total else 1.0
        unit = self.unit.removesuffix("s") if self.total == 1 else self.unit
        measured = f"  {_figure(rate)} {self.unit}/s" if rate > 0 else ""
        line = f"{self.title} {share:4.0%} {self.done}/{self.total} {unit}{measured}  ETA {eta}"
        if detail:
            line += f"  {detail}"
        if sys.stderr.isatty():
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the redrawn line, and the metrics."""
        self.publisher.close()
        if sys.stderr.isatty() and self._width:
            print(file=sys.stderr)


def track(
    items: Iterable[T], total: int, *, title: str, unit: str, count: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Yield `items` and show their progress; each item counts as `count(item)` of the `total` units.

    It counts once the next is asked for: whether an item is made here or worked on by the caller, it is done then.
    """
    progress = Progress(title, total, unit)
    done = 0
    try:
        for item in items:
            size = count(item)
            yield item
            done += size
            progress.update(done)
    finally:
        progress.close()
