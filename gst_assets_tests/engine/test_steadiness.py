"""How far equal pieces of work are apart, and what is said about it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from gst_assets.engine import steadiness
from gst_assets.engine.steadiness import REPEATS, Steadiness, worth
from gst_assets_tests.engine.kernel_counters import Counted, bounds_of_others, counted, process_ticks

STEADY = Steadiness(
    seconds=15,
    num_pieces=5000,
    piece_p50_ms=1.5,
    spread_p50=0.01,
    spread_p90=0.02,
    worst_over_p50=1.4,
    late_p99_ms=0.2,
    cpu_others=0.01,
    cpu_steal=0.0,
)


def test_a_machine_is_measured_for_the_time_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_s: list[float] = []
    repeat = steadiness._repeat

    def noted(until_s: float, *data: Any) -> steadiness._Repeat:
        ends_s.append(until_s)
        return repeat(until_s, *data)

    monkeypatch.setattr(steadiness, "_repeat", noted)
    shares: list[float] = []
    began = time.monotonic()
    found = steadiness.measure(0.5, shares.append)
    assert shares == [(index + 1) / REPEATS for index in range(REPEATS)]
    assert [end - ends_s[0] for end in ends_s] == pytest.approx([0.1 * index for index in range(REPEATS)])
    assert began + 0.1 <= ends_s[0] and ends_s[-1] <= time.monotonic()
    assert found.seconds >= 0.5 and found.num_pieces >= REPEATS
    assert found.piece_p50_ms > 0 and found.worst_over_p50 >= 1
    assert found.spread_p50 >= 0 and found.spread_p90 >= 0 and found.late_p99_ms >= 0


def test_repeats_that_take_longer_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = iter(
        [[1_000_000] * 10, [1_000_000] * 10, [1_200_000] * 10, [1_000_000] * 10, [1_000_000] * 8 + [3_000_000] * 2]
    )
    monkeypatch.setattr(steadiness, "_repeat", lambda *_: steadiness._Repeat(next(pieces), [100_000] * 10))
    found = steadiness.measure(0)
    assert (found.spread_p50, found.spread_p90, found.worst_over_p50) == (0.2, 2.0, 3.0)
    assert (found.piece_p50_ms, found.late_p99_ms, found.num_pieces) == (1.0, 0.1, 50)


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux reports who took the processor")  # noqa: PTH110
def test_other_programs_are_seen() -> None:
    """As many as the kernel counted: how much of a core they get is not theirs to say."""
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    during: list[Counted] = []
    try:
        while not all(process_ticks(one.pid) > 5 for one in busy):
            time.sleep(0.02)
        before = counted()
        found = steadiness.measure(1, lambda _: during.append(counted()))
        around = counted().since(before)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    least, most = bounds_of_others(during[-1].since(during[0]), around)
    assert found.cpu_others is not None and least - 0.0001 <= found.cpu_others <= most + 0.0001


@pytest.mark.parametrize(
    ("spread", "begins"),
    [
        (0.02, "A measurement here is worth something: equal work"),
        (0.04, "A measurement here is worth something, with more repeats: "),
        (0.08, "A measurement here shows large errors only: "),
        (0.30, "A measurement here is worth little now: "),
    ],
)
def test_the_answer_is_about_the_bands_of_the_verdict(spread: float, begins: str) -> None:
    for changed in ({"spread_p50": spread}, {"spread_p90": spread}):
        answer = worth(dataclasses.replace(STEADY, **changed), 0.05, 0.10)
        assert answer.startswith(begins) and f"{100 * spread:.1f} %" in answer and answer.endswith(".")


def test_the_cause_is_named_where_it_is_known() -> None:
    assert "Other programs" not in worth(STEADY, 0.05, 0.10) and "host of this virtual" not in worth(STEADY, 0.05, 0.10)
    assert worth(dataclasses.replace(STEADY, cpu_others=0.4), 0.05, 0.10).endswith(
        " Other programs took 40 % of the cores; end them."
    )
    assert "The host of this virtual machine took 7 %" in worth(dataclasses.replace(STEADY, cpu_steal=0.07), 0.05, 0.10)
    unknown = dataclasses.replace(STEADY, cpu_others=None, cpu_steal=None)
    assert worth(unknown, 0.05, 0.10) == worth(STEADY, 0.05, 0.10)
