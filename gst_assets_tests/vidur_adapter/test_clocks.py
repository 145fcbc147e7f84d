"""The clock of a host and a device, by hand and step by step; runs of decodes equal to single launches."""

from __future__ import annotations

from functools import cache
from math import inf
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.step_costs.engine_costs import EngineCosts, HostSpeedTrace
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.vidur_adapter.clocks import HostDeviceClock, StepByStepClock
from gst_assets_tests.vidur_adapter import support

MS = 1_000_000
PROMPT = StepShape(0, 0, [(0, 10)])
DECODE = StepShape(1, 10, ())
BOTH = StepShape(1, 10, [(0, 10)])
GRAPHS = CapturedGraphs((1, 8, 64, 512))
KINDS = ("decode", "mixed")

Rows = list[dict[str, Any]]


def clock(
    queue_size: int, *, ratio: float = 1.0, prefill_ratio: float = 1.0, device_is_host: bool = False, **ms: float
) -> HostDeviceClock:
    """A clock whose steps cost so many ms whatever they hold, on a host of one speed."""
    rows = support.constant_overheads(**{name: value * MS for name, value in ms.items()})
    speed = support.speed_table([(0, "decode", ratio), (0, "prefill", prefill_ratio), (0, "delivery", 1.0)])
    costs = EngineCosts(
        support.overheads_table(rows), GRAPHS, KINDS, "b", speed=HostSpeedTrace(speed, 0), device_is_host=device_is_host
    )
    return HostDeviceClock(costs, queue_size)


def played(of: HostDeviceClock, *shapes: StepShape) -> tuple[list[float], list[float]]:
    """When each step was formed, and when handed out, in ms: the host waits for the oldest where the queue is full, and for all in the end."""
    formed, handed_out, out = [], [], 0
    for shape in shapes:
        formed.append(of.now_ns / MS)
        of.launch(shape)
        out += 1
        if out == of.queue_size:
            handed_out.append(of.hand_out() / MS)
            out -= 1
    return formed, handed_out + [of.hand_out() / MS for _ in range(out)]


# --- a queue of two ---------------------------------------------------------------------------------------------------


def test_on_a_slow_device_steps_follow_at_lead_in_and_device() -> None:
    made = clock(2, prepare=1, launch=1, lead_in=2, device=10, copy_out=1, process=1)
    # Ends on the device: 1 + 12 = 13, 25, 37, 49, 61; tokens a ms later, taken by a host that waits.
    formed, handed_out = played(made, *[DECODE] * 5)
    assert handed_out == [14, 26, 38, 50, 62]
    assert formed == [0, 2, 15, 27, 39]


def test_on_a_slow_host_steps_follow_at_prepare_launch_and_process() -> None:
    made = clock(2, prepare=3, launch=4, lead_in=1, device=1, copy_out=1, process=2)
    # Steps are launched at 7, 14, 23, 32, 41: there is nothing to wait for, so every step's tokens are taken when the next one is launched.
    formed, handed_out = played(made, *[DECODE] * 5)
    assert formed == [0, 7, 16, 25, 34]
    assert handed_out == [14, 23, 32, 41, 43]


def test_a_launch_longer_than_the_device_holds_back_the_step_before() -> None:
    made = clock(2, prepare=1, launch=1, launch_mixed=30, device=5, device_mixed=8)
    formed, handed_out = played(made, DECODE, DECODE, BOTH, DECODE)
    # Step 1 ends on the device at 11; step 2, formed at 6, keeps the host until 6 + 1 + 30 = 37, and only then step 1's tokens are taken. Step 2 ends on the
    # device when it is launched; step 3, formed at 37, ends at max(38, 37) + 5 = 43.
    assert formed == [0, 2, 6, 37]
    assert handed_out == [6, 37, 39, 43]


def test_a_device_that_was_not_behind_ends_a_drain_after_the_launch() -> None:
    made = clock(2, prepare=1, launch=10, device=4, drain=3, copy_out=2)
    assert played(made, DECODE) == ([0], [16])  # launched 11, done 14, not 1 + 4
    assert played(clock(2, prepare=1, launch=10, device=4, drain=-3), DECODE) == (
        [0],
        [11],
    )  # ... or before it: the host still launches
    assert played(clock(2, prepare=1, launch=10, device=40, drain=3), DECODE) == ([0], [41])


def test_copying_out_delays_tokens_and_not_the_device() -> None:
    made = clock(2, prepare=1, launch=1, device=10, copy_out=3)
    assert played(made, *[DECODE] * 3) == ([0, 2, 14], [14, 24, 34])


def test_after_an_idle_time_preparing_takes_longer() -> None:
    made = clock(2, prepare=1, device=5, prepare_after_idle=4)
    assert played(made, PROMPT, DECODE, DECODE) == ([0, 5, 10], [10, 15, 20])
    made.idle_until(100 * MS)
    made.idle_until(50 * MS)  # it does not go back
    assert played(made, PROMPT) == ([100], [110])
    # Formed with a step out, or with a request that decodes: no idle time came before.
    assert played(clock(2, device=5, prepare_after_idle=4), DECODE, PROMPT) == ([0, 0], [5, 10])
    assert played(clock(2, device=5, prepare_after_idle=4), BOTH) == ([0], [5])


# --- a queue of one ---------------------------------------------------------------------------------------------------


def test_one_step_at_a_time_takes_all_its_parts() -> None:
    made = clock(1, prepare=1, launch=2, lead_in=3, device=10, copy_out=4, process=5)
    # The launch runs beside the device: 1 + 3 + 10 + 4 = 18 to the tokens, and 5 more to the next step.
    assert played(made, *[DECODE] * 3) == ([0, 23, 46], [18, 41, 64])


def test_one_step_at_a_time_only_the_first_of_new_requests_comes_after_an_idle_time() -> None:
    made = clock(1, prepare=1, device=10, prepare_after_idle=7)
    assert played(made, PROMPT, DECODE, BOTH, DECODE) == ([0, 18, 29, 40], [18, 29, 40, 51])


# --- the host's speed -------------------------------------------------------------------------------------------------


def test_a_slow_moment_lengthens_the_hosts_parts_alone() -> None:
    made = clock(2, ratio=2.0, prefill_ratio=3.0, prepare=1, launch=2, lead_in=1, device=10, copy_out=1, process=1)
    # Step 0 (prompt, 3): forward at 3, launched 9, done 3 + 11 = 14, tokens 15. Step 1 (2): formed 9, forward 11, launched 15, done 25, tokens 26. Step 0 is processed
    # for 3.
    formed, handed_out = played(made, PROMPT, DECODE, DECODE)
    assert formed == [0, 9, 18]
    assert handed_out == [15, 26, 37]


def test_on_a_device_that_is_the_host_a_slow_moment_lengthens_computing() -> None:
    parts = {"prepare": 1, "lead_in": 1, "device": 10, "copy_out": 1, "process": 1}
    assert played(clock(1, ratio=2.0, **parts), *[DECODE] * 2) == ([0, 16], [14, 30])
    # 2 + 1 + 20 + 1, and 2 more: what is neither host nor device (lead-in, copy) stays.
    made = clock(1, ratio=2.0, device_is_host=True, **parts)
    assert played(made, *[DECODE] * 2) == ([0, 26], [24, 50])


# --- runs -------------------------------------------------------------------------------------------------------------


host_speeds = st.lists(st.tuples(st.integers(0, 2 * 10**9), st.sampled_from(support.SPEED_PARTS), st.sampled_from([0.5, 1.0, 2.0, 8.0])), max_size=60)  # fmt: skip


@cache
def whole_overheads(rise: float) -> pd.DataFrame:
    """Every term, in whole ns and with this slope over the context of decodes: sums of them are exact in any order."""
    rows = [row for row in support.default_overheads() if row["feature"] != "decode_context_token"]
    return support.overheads_table([*rows, support.cost_row("device", rise, "decode", "decode_context_token")])


@settings(max_examples=60, deadline=None)
@given(
    moments=host_speeds,
    queue_size=st.integers(1, 2),
    is_host=st.booleans(),
    before=st.lists(st.sampled_from([PROMPT, BOTH, DECODE]), min_size=1, max_size=3),
    decodes=st.integers(1, 40),
    context=st.integers(0, 5000),
    num_steps=st.integers(1, 60),
    until=st.just(inf) | st.integers(0, 10**9),
    rise=st.sampled_from([0, 0.25, 16, 1024]),
)
def test_a_run_of_decodes_is_so_many_launches(
    moments: list[tuple[int, str, float]],
    queue_size: int,
    is_host: bool,
    before: list[StepShape],
    decodes: int,
    context: int,
    num_steps: int,
    until: float,
    rise: float,
) -> None:
    speed = support.speed_table(sorted([(0, part, 1.0) for part in support.SPEED_PARTS] + moments))

    def made() -> HostDeviceClock:
        costs = EngineCosts(
            whole_overheads(rise), GRAPHS, KINDS, "b", speed=HostSpeedTrace(speed, 1), device_is_host=is_host
        )
        found = HostDeviceClock(costs, queue_size)
        for shape in before:  # up to one step is left out, as the engine loop leaves it
            found.launch(shape)
            if queue_size == 1 or len(found._launched) == 2:
                found.hand_out()
        return found

    at_once, one_by_one = made(), made()
    run = at_once.run_decodes(decodes, context, num_steps, until)
    formed, handed_out = [], []
    while len(formed) < num_steps and one_by_one.now_ns < until:
        formed.append(one_by_one.now_ns)
        one_by_one.launch(StepShape(decodes, context + decodes * (len(formed) - 1), ()))
        if len(one_by_one._launched) == queue_size:
            handed_out.append(one_by_one.hand_out())
    assert (run.formed_ns, run.handed_out_ns) == (formed, handed_out)
    assert (at_once.now_ns, at_once.num_outside) == (one_by_one.now_ns, one_by_one.num_outside)
    assert at_once._launched == one_by_one._launched


def test_a_run_counts_its_steps_outside_the_calibration() -> None:
    made = HostDeviceClock(support.bundle(support.scenario()).engine_costs(512, None), 2)
    made.run_decodes(32, 320, 5, inf)
    assert made.num_outside == 0
    made.run_decodes(40, 400, 5, inf)
    assert made.num_outside == 5


# --- Vidur's clock ----------------------------------------------------------------------------------------------------


class Times:
    """A step takes its context in ns; a run ends at 13 tokens."""

    def step_ns(self, shape: StepShape) -> int:
        return shape.decode_context_tokens

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        return list(range(context_tokens, 14, num_decodes))[:num_steps]


@pytest.mark.parametrize(
    ("num_steps", "until", "formed", "handed_out"),
    [
        (9, inf, [5, 15, 26, 38], [15, 26, 38, 51]),
        (2, inf, [5, 15], [15, 26]),
        (9, 26, [5, 15], [15, 26]),  # none is formed at the moment of an arrival
        (9, 27, [5, 15, 26], [15, 26, 38]),
        (9, 5, [], []),
    ],
)
def test_steps_one_after_the_other(num_steps: int, until: float, formed: list[int], handed_out: list[int]) -> None:
    made = StepByStepClock(Times())
    made.launch(StepShape(1, 5, ()))
    assert made.hand_out() == made.now_ns == 5
    run = made.run_decodes(1, 10, num_steps, until)
    assert (run.formed_ns, run.handed_out_ns) == (formed, handed_out)
    assert made.now_ns == (handed_out or [5])[-1]
