"""When the scheduler sees a request and the client its tokens: in order, whatever each way alone would take."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.step_costs.engine_costs import HostSpeedTrace, RequestWays
from gst_assets.testing.simulation_inputs import cost_row, overheads_table, speed_table
from gst_assets.vidur_adapter.request_times import delivered_ns, seen_ns
from gst_assets.vidur_adapter.step_log import LoggedSteps, Spans


def ways(speed: HostSpeedTrace | None = None) -> RequestWays:
    """Sending takes a ns per prompt token, delivery 100 ns and 10 ns a decode, up to 100 of either."""
    rows = [cost_row("handover", ns, position=ns) for ns in (1, 100)]
    rows += [cost_row("delivery", 100 + 10 * n, position=n) for n in (0, 100)]
    return RequestWays(overheads_table(rows), "b", speed)


def steps(handed_out: list[int], decodes: list[int]) -> LoggedSteps:
    zeros = np.zeros(len(handed_out), dtype=np.int64)
    ends = np.array(handed_out, dtype=np.int64)
    return LoggedSteps(ends, ends, zeros, zeros, np.array(decodes, dtype=np.int64), zeros, zeros, zeros)


def tokens(of_steps: list[int]) -> Spans:
    given = np.array(of_steps, dtype=np.int64)
    return Spans(np.zeros(len(of_steps), dtype=np.int64), given, given)


def test_requests_are_seen_after_their_hand_over_and_in_order() -> None:
    arrivals, prompts = np.array([0, 10, 20, 500]), np.array([90, 5, 80, 5])
    # The second one is sent at 15, but behind the first.
    assert seen_ns(arrivals, prompts, ways()).tolist() == [90, 90, 100, 505]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 150)), min_size=1, max_size=20))
def test_none_is_seen_before_it_is_handed_over_or_before_an_earlier_one(requests: list[tuple[int, int]]) -> None:
    arrivals = np.cumsum([gap for gap, _ in requests])
    prompts = np.array([prompt for _, prompt in requests])
    seen = seen_ns(arrivals, prompts, ways())
    earliest = arrivals + np.minimum(prompts, 100)
    assert (seen >= earliest).all() and (np.diff(seen) >= 0).all()
    assert set(seen) <= set(earliest)


def test_tokens_reach_the_client_in_order() -> None:
    # The step at 50 has few decodes, so that its tokens would overtake.
    made = steps([0, 50, 2000], [90, 0, 50])
    assert delivered_ns(tokens([0, 1, 2]), made, ways()).tolist() == [1000, 1000, 2600]


def test_a_step_without_a_token_delivers_nothing_and_delays_nobody() -> None:
    made = steps([0, 50, 60], [90, 0, 0])
    assert delivered_ns(tokens([1, 2]), made, ways())[[1, 2]].tolist() == [150, 160]


def test_without_ways_the_client_sees_tokens_as_they_are_handed_out() -> None:
    made = steps([5, 50, 60], [90, 0, 0])
    assert delivered_ns(tokens([0, 1, 2]), made, None).tolist() == [5, 50, 60]


def test_a_slow_moment_delays_delivery() -> None:
    speed = speed_table([(0, "decode", 1.0), (0, "delivery", 3.0)])
    made = steps([0, 2000], [0, 50])
    assert delivered_ns(tokens([0, 1]), made, ways(HostSpeedTrace(speed, 0))).tolist() == [300, 3800]
