"""How far something long has come: one line that is rewritten in a terminal, a line every ten seconds elsewhere, with
the time left where it is known.

Standard library only, and no Dagster: domain code says `at(done)`, or wraps what it iterates over; where the lines go
is the caller's choice. Nothing is shown of what ends before the first line is due.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

LINE_EVERY_S = 10.0
"""Between two lines where they add up: a file, a pipe, Dagster's log."""
REWRITTEN_EVERY_S = 0.5
"""Between two states of the one line of a terminal."""
ERASE = "\r\033[K"

Item = TypeVar("Item")


class Progress:
    """Progress of one thing, as a context manager.

    `what` names it. `total` is how much there is, in whatever `at` counts, or None where that is unknown: then only the
    time is shown. `unit` names what is counted; without it a share in percent is shown. `before` of it was done before:
    that counts as done, not as speed. Lines go to `tell`, or without it to `stream` (default: stderr, so that they are
    in no output that a script reads).
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        unit: str = "",
        *,
        before: float = 0,
        tell: Callable[[str], None] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._before = what, total, unit, before
        self._stream = stream or sys.stderr
        self._tell = tell
        self._rewrites = tell is None and self._stream.isatty()
        self._clock = clock
        self._began = self._told = clock()
        self._is_shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Take the line out of the terminal."""
        if self._is_shown:
            self._stream.write(ERASE)
            self._stream.flush()
            self._is_shown = False

    @property
    def every_s(self) -> float:
        """Seconds between two states that are shown: who has nothing to count calls `at` that often."""
        return REWRITTEN_EVERY_S if self._rewrites else LINE_EVERY_S

    def at(self, done: float = 0) -> None:
        """`done` of the total is done. Cheap: mostly it only looks at the clock."""
        now = self._clock()
        if now - self._told < self.every_s:
            return
        self._told = now
        passed_s = now - self._began
        line = progress_line(self._what, done, passed_s, self._total, self._unit, before=self._before)
        if self._tell is not None:
            self._tell(line)
        elif self._rewrites:
            self._stream.write(ERASE + line)
            self._stream.flush()
            self._is_shown = True
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


def progress_line(
    what: str, done: float, passed_s: float, total: float | None, unit: str = "", *, before: float = 0
) -> str:
    """What is shown after `passed_s` seconds; the other arguments as of `Progress`. For what several processes do,
    none of which sees all of it."""
    if not total:
        return f"{what}: {_seconds(passed_s)}"
    of = f"{done:g} of {total:g} {unit}" if unit else f"{100 * done / total:.0f} %"
    gone = done - before
    left = f", about {_seconds(passed_s * (total - done) / gone)} left" if gone > 0 else ""
    return f"{what}: {of}, {_seconds(passed_s)}{left}"


def tracked(
    items: Iterable[Item],
    what: str,
    total: float | None = None,
    unit: str = "",
    *,
    tell: Callable[[str], None] | None = None,
    size: Callable[[Item], float] = lambda _: 1,
) -> Iterator[Item]:
    """The items, while their progress is shown; `size` is what an item adds to what is done once it was used."""
    done = 0.0
    with Progress(what, total, unit, tell=tell) as progress:
        for item in items:
            yield item
            done += size(item)
            progress.at(done)


class Ticking:
    """Shows how long something without progress of its own has taken, as a context manager; from a thread, so not
    around what is measured."""

    def __init__(self, what: str, *, tell: Callable[[str], None] | None = None) -> None:
        self._progress = Progress(what, tell=tell)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._progress.end()

    def _tick(self) -> None:
        while not self._ended.wait(self._progress.every_s):
            self._progress.at()


def _seconds(value: float) -> str:
    if value < 100:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value >= 600 else f"{value / 60:.1f} min"
