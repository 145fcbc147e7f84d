"""How far something has come: a line every ten seconds in a file, one rewritten line in a terminal, with the time
left."""

from __future__ import annotations

import io
import sys
import time

import pytest

from gst_assets import progress
from gst_assets.progress import ERASE, LINE_EVERY_S, REWRITTEN_EVERY_S, Progress, Ticking, tracked


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_every_ten_seconds_where_lines_add_up() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("replay smoke", 136, "requests", stream=stream, clock=clock) as progress:
        assert progress.every_s == LINE_EVERY_S
        for second in range(1, 31):
            clock.now = 100 + second
            progress.at(4 * second)
    assert stream.getvalue().splitlines() == [
        "replay smoke: 40 of 136 requests, 10 s, about 24 s left",
        "replay smoke: 80 of 136 requests, 20 s, about 14 s left",
        "replay smoke: 120 of 136 requests, 30 s, about 4 s left",
    ]


def test_one_line_of_a_terminal_that_is_gone_in_the_end() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("profile", 1, stream=stream, clock=clock) as progress:
        assert progress.every_s == REWRITTEN_EVERY_S
        progress.at(0.1)
        assert stream.getvalue() == ""
        clock.now += 1
        progress.at(0.25)
        progress.at(0.26)
    assert stream.getvalue() == f"{ERASE}profile: 25 %, 1 s, about 3 s left{ERASE}"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_of_what_is_short(terminal: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    with Progress("simulation", 10, stream=stream, clock=Clock()) as progress:
        progress.at(5)
    assert stream.getvalue() == ""


def test_time_left_is_told_only_where_it_is_known() -> None:
    told: list[str] = []
    clock = Clock()
    started, nothing_done = (
        Progress("engine start", tell=told.append, clock=clock),
        Progress("reading", 8, "rows", tell=told.append, clock=clock),
    )
    clock.now += 75
    started.at()
    nothing_done.at(0)
    clock.now += 125
    started.at()
    clock.now += 3600
    nothing_done.at(4)
    assert told == [
        "engine start: 75 s",
        "reading: 0 of 8 rows, 75 s",
        "engine start: 3.3 min",
        "reading: 4 of 8 rows, 63 min, about 63 min left",
    ]


def test_what_was_done_before_counts_as_done_and_not_as_speed() -> None:
    told: list[str] = []
    clock = Clock()
    progress = Progress("calibration", 1, before=0.5, tell=told.append, clock=clock)
    clock.now += 10
    progress.at(0.5)
    clock.now += 10
    progress.at(0.75)
    assert told == ["calibration: 50 %, 10 s", "calibration: 75 %, 20 s, about 20 s left"]


def test_items_come_as_they_are_and_are_counted_once_used(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", Progress.__init__.__kwdefaults__ | {"clock": clock})
    seen = []
    for item in tracked(["ab", "cde", "f"], "reading", 6, "rows", tell=told.append, size=len):
        seen.append(item)
        clock.now += 10
    assert seen == ["ab", "cde", "f"]
    assert told == [
        "reading: 2 of 6 rows, 10 s, about 20 s left",
        "reading: 5 of 6 rows, 20 s, about 4 s left",
        "reading: 6 of 6 rows, 30 s, about 0 s left",
    ]


def test_what_says_nothing_of_itself_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "REWRITTEN_EVERY_S", 0.05)
    with Ticking("engine start"):
        hung = time.monotonic() + 120
        while stream.getvalue().count(f"{ERASE}engine start: ") < 2:
            assert time.monotonic() < hung
            time.sleep(0.01)
    assert stream.getvalue().endswith(ERASE)
    shown = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == shown  # nothing once it is over
