"""Keep live lines at the bottom of a terminal, for each thing that runs; what is printed meanwhile goes above them.

The cursor is never hidden, so that a process that is killed leaves a terminal that works.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

Draw = Callable[[int], "list[Text]"]
"""Returns lines for a terminal of so many columns."""

_PER_SECOND = 4.0
_lock = threading.Lock()
_drawn: list[Draw] = []
_live: Any = None  # rich's display, while there are lines


def is_terminal() -> bool:
    """Whether stderr is a terminal on which lines can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def add_lines(draw: Draw) -> None:
    """Show the lines of `draw`, below those that are there, and draw them a few times a second."""
    global _live
    with _lock:
        _drawn.append(draw)
        if _live is None:
            _live = _start()


def end_lines(draw: Draw) -> None:
    """Leave the lines of `draw` as they are, above those that go on; nothing if they have ended before."""
    global _live
    with _lock:
        if draw not in _drawn:
            return
        if len(_drawn) > 1:
            _drawn.remove(draw)
            _live.console.print(*draw(_live.console.width), sep="\n")
            return
        _live.stop()  # draws them once more
        _live = None
        _drawn.clear()


def _start() -> Any:
    from rich.console import Console, ConsoleOptions
    from rich.live import Live

    class OnStderr(Console):
        """Never hides the cursor."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    class Lines:
        def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator["Text"]:
            for draw in tuple(_drawn):
                yield from draw(options.max_width)

    live = Live(
        Lines(),
        console=OnStderr(stderr=True, force_terminal=True, force_jupyter=False),
        refresh_per_second=_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),
    )
    live.start(refresh=True)
    return live
