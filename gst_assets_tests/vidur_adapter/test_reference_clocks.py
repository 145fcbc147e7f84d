"""The reference clock of a host and a device, by hand. `test_core` holds the core to it."""

from __future__ import annotations

from typing import Any

from gst_assets.step_costs.engine_costs import EngineCosts, HostSpeedTrace
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.testing import simulation_inputs as support
from gst_assets_tests.vidur_adapter.reference_clocks import HostDeviceClock

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
    """When each step was formed, and when handed out, in ms: the host waits for the oldest where the queue is full, and
    for all in the end."""
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
    # Steps are launched at 7, 14, 23, 32, 41: there is nothing to wait for, so every step's tokens are taken when the
    # next one is launched.
    formed, handed_out = played(made, *[DECODE] * 5)
    assert formed == [0, 7, 16, 25, 34]
    assert handed_out == [14, 23, 32, 41, 43]


def test_a_launch_longer_than_the_device_holds_back_the_step_before() -> None:
    made = clock(2, prepare=1, launch=1, launch_mixed=30, device=5, device_mixed=8)
    formed, handed_out = played(made, DECODE, DECODE, BOTH, DECODE)
    # Step 1 ends on the device at 11; step 2, formed at 6, keeps the host until 6 + 1 + 30 = 37, and only then step 1's
    # tokens are taken. Step 2 ends on the device when it is launched; step 3, formed at 37, ends at max(38, 37) + 5 =
    # 43.
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
    # The launch runs in parallel to the device: 1 + 3 + 10 + 4 = 18 to the tokens, and 5 more to the next step.
    assert played(made, *[DECODE] * 3) == ([0, 23, 46], [18, 41, 64])


def test_one_step_at_a_time_only_the_first_of_new_requests_comes_after_an_idle_time() -> None:
    made = clock(1, prepare=1, device=10, prepare_after_idle=7)
    assert played(made, PROMPT, DECODE, BOTH, DECODE) == ([0, 18, 29, 40], [18, 29, 40, 51])


# --- the host's speed -------------------------------------------------------------------------------------------------


def test_a_slow_moment_lengthens_the_hosts_parts_alone() -> None:
    made = clock(2, ratio=2.0, prefill_ratio=3.0, prepare=1, launch=2, lead_in=1, device=10, copy_out=1, process=1)
    # Step 0 (prompt, 3): forward at 3, launched 9, done 3 + 11 = 14, tokens 15. Step 1 (2): formed 9, forward 11,
    # launched 15, done 25, tokens 26. Step 0 is processed for 3.
    formed, handed_out = played(made, PROMPT, DECODE, DECODE)
    assert formed == [0, 9, 18]
    assert handed_out == [15, 26, 37]


def test_on_a_device_that_is_the_host_a_slow_moment_lengthens_computing() -> None:
    parts = {"prepare": 1, "lead_in": 1, "device": 10, "copy_out": 1, "process": 1}
    assert played(clock(1, ratio=2.0, **parts), *[DECODE] * 2) == ([0, 16], [14, 30])
    # 2 + 1 + 20 + 1, and 2 more: what is neither host nor device (lead-in, copy) stays.
    made = clock(1, ratio=2.0, device_is_host=True, **parts)
    assert played(made, *[DECODE] * 2) == ([0, 26], [24, 50])
