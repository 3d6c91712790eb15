"""Show the progress of long work: a bar on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from histill.cluster.live_lines import add_lines, end_lines, is_terminal
from histill.cluster.metrics import Publisher

if TYPE_CHECKING:
    from rich.text import Text

T = TypeVar("T")
_LEAST_S = 0.5  # of work, from which a rate can be measured
_SHORTEST_BAR, _LONGEST_BAR = 8, 30  # columns


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
    _rate: float | None = None
    _detail: str = ""
    _below: Sequence[str] = ()
    _live: bool = field(default_factory=is_terminal)

    def __post_init__(self) -> None:
        if self._live:
            add_lines(self._draw)

    def start_at(self, done: int) -> None:
        """Count an earlier run's work as done, without including it in the rate."""
        self.done = self._resumed_at = done

    def update(self, done: int, detail: str = "", rate: float | None = None, below: Sequence[str] = ()) -> None:
        """Set the amount done, and show it if due.

        Args:
            done: in units, in all.
            detail: what else to say, in parts that are two spaces apart.
            rate: units/s, in place of the measured ones.
            below: further lines for a terminal.
        """
        self.done, self._detail, self._rate, self._below = done, detail, rate, below
        now = time.monotonic()
        if now - self._shown >= self.every_s or done >= self.total:
            self._shown = now
            self.publisher.set("work_done", self.done, stage=self.title, unit=self.unit)
            self.publisher.set("work_planned", self.total, stage=self.title, unit=self.unit)
            if not self._live:
                head, count, figures, details = self._parts(now)
                print(f"{head} {count}  {'  '.join([*figures, *details])}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line, and the metrics."""
        self.publisher.close()
        end_lines(self._draw)

    def _parts(self, now: float) -> tuple[str, str, list[str], list[str]]:
        """Title and share; count; rate, if known, and time left; details."""
        spent = now - self._begun
        rate = self._rate
        if rate is None:
            rate = (self.done - self._resumed_at) / spent if spent >= _LEAST_S else 0.0
        left = self.total - self.done
        eta = format_duration(left / rate) if rate > 0 else "?" if left > 0 else "0:00"
        share = self.done / self.total if self.total else 1.0
        unit = self.unit.removesuffix("s") if self.total == 1 else self.unit
        measured = [f"{_figure(rate)} {self.unit}/s"] if rate > 0 else []
        details = self._detail.split("  ") if self._detail else []
        return f"{self.title} {share:4.0%}", f"{self.done}/{self.total} {unit}", [*measured, f"ETA {eta}"], details

    def _draw(self, width: int) -> "list[Text]":
        """One line if it fits, perhaps without the count, else the details on lines of their own; and those below."""
        from rich.text import Text

        head, count, figures, details = self._parts(time.monotonic())
        both = "  ".join([*figures, *details])
        variants = (f" {count}  {both}", f"  {both}")
        rest = next((each for each in variants if len(head) + len(each) <= width), None)
        more = [*self._below]
        if rest is None:
            rest, more = f" {count}  {'  '.join(figures)}", [*_fold(details, width), *more]
        bar = min(width - len(head) - len(rest) - 1, _LONGEST_BAR)
        line = Text(head, "bold")
        if bar >= _SHORTEST_BAR:
            filled = round(bar * min(1.0, self.done / self.total)) if self.total else bar
            line.append(" ").append("━" * filled, "green").append("━" * (bar - filled), "bright_black")
        return [_clip(each, width) for each in (line.append(rest, "not bold"), *map(Text, more))]


def _fold(parts: Iterable[str], width: int) -> list[str]:
    """Indented lines of whole parts, as many to a line as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _clip(line: "Text", width: int) -> "Text":
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


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
