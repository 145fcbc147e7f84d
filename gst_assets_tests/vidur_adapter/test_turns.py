"""Turns that wait for answers: each arrives exactly when its answer was delivered and thought about, and what the engine
makes of these arrivals is what it makes of the same ones known beforehand."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts.tables import RequestMetrics, validate
from gst_assets.errors import SimulationError
from gst_assets.scenario import Scenario
from gst_assets.step_costs.bundle import Bundle
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter import simulation_loop
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.vidur_adapter.simulation_loop import Mode, RequestColumns, SimulationLoop, TurnColumns

MS = 1_000_000
Turn = tuple[int, int, int]
"""Time since the turn before (of a first one: since the session before it begins) in ms, prompt and decode tokens."""
Sessions = list[list[Turn]]

PLAIN = support.scenario("simulation.host_variability=false")
CACHED = support.scenario("simulation.host_variability=false", "engine.enable_prefix_caching=true")
SLOW_MOMENTS = support.speed_table(
    [(at * 40 * MS, part, 1 + (at % 7) / 2) for at in range(50) for part in support.SPEED_PARTS]
)
# Sending a long prompt takes so much longer that a short one sent after it would overtake it.
COSTS = [row for row in support.default_overheads() if row["term"] != "handover"]
COSTS += [support.cost_row("handover", ns, position=at) for at, ns in ((1, 50_000), (200, 9_000_000))]
BUNDLES = [
    support.bundle(PLAIN, overheads=COSTS, host_speed=SLOW_MOMENTS, async_scheduling=is_async)
    for is_async in (False, True)
]
BUNDLE = BUNDLES[0]


def workload(sessions: Sessions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """trace_lengths and trace_intervals of sessions with a closed loop."""
    rows, begin = [], 0
    for session, turns in enumerate(sessions):
        begin += turns[0][0]
        at = begin
        for turn, (gap, prompt, decode) in enumerate(turns):
            at += gap if turn else 0
            rows.append((at * MS, session, turn, prompt, decode))
    rows.sort()
    place = {(session, turn): row for row, (_, session, turn, _, _) in enumerate(rows)}
    gaps = np.diff([0, *(row[0] for row in rows)]).tolist()
    lengths, intervals = support.workload([(gap, row[3], row[4]) for gap, row in zip(gaps, rows, strict=True)])
    previous = [place.get((session, turn - 1)) for _, session, turn, _, _ in rows]
    arrivals = intervals["arrival_time_ns"].tolist()
    think = [None if one is None else arrivals[row] - arrivals[one] for row, one in enumerate(previous)]
    return lengths, intervals.assign(
        previous_request_id=pd.array(previous, dtype="Int64"), think_time_ns=pd.array(think, dtype="Int64")
    )


def prompts_of(lengths: pd.DataFrame) -> list[list[int]]:
    """Prompts that begin with each other's tokens."""
    return [list(range(count)) for count in lengths["num_prefill_tokens"].tolist()]


def waited_ns(result: SimulationResult, intervals: pd.DataFrame) -> np.ndarray:
    """Of each later turn, the time from the last token of the answer before it to its arrival."""
    later = intervals["previous_request_id"].notna().to_numpy()
    before = intervals["previous_request_id"][later].to_numpy(dtype="int64")
    arrival, end = (result.requests[name].to_numpy(dtype="int64") for name in ("arrival_time_ns", "completion_time_ns"))
    return np.asarray(arrival[later] - end[before])


def told_beforehand(
    result: SimulationResult, scenario: Scenario, lengths: pd.DataFrame, variant: str, bundle: Bundle
) -> SimulationResult:
    """The same requests at the same times, open-loop; requests are numbered in their order."""
    arrivals = result.requests["arrival_time_ns"].to_numpy(dtype="int64")
    order = np.argsort(arrivals, kind="stable")
    ids = pd.array(np.arange(len(order)), dtype="Int64")
    requests = lengths.iloc[order].reset_index(drop=True).assign(request_id=ids)
    times = pd.DataFrame({"request_id": ids, "arrival_time_ns": pd.array(arrivals[order], dtype="Int64")})
    prompts = prompts_of(requests)
    return simulate(scenario, requests, times, bundle, variant, cache_dir=None, prompts=prompts)


def assert_same(closed: SimulationResult, free: SimulationResult) -> None:
    order = np.argsort(closed.requests["arrival_time_ns"].to_numpy(dtype="int64"), kind="stable")
    names = [name for name in free.requests.columns if name not in ("request_id", "prompt_id")]
    pd.testing.assert_frame_equal(closed.requests.iloc[order][names].reset_index(drop=True), free.requests[names])
    pd.testing.assert_frame_equal(closed.iterations, free.iterations)
    tokens = closed.tokens.assign(request_id=np.argsort(order)[closed.tokens["request_id"].to_numpy(dtype="int64")])
    tokens = tokens.sort_values(["request_id", "token_index"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(tokens, free.tokens, check_dtype=False)


any_sessions = st.lists(
    st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 3, 40, 700]), st.integers(1, 200), st.integers(1, 50)),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    sessions=any_sessions,
    variant=st.sampled_from(["kernels", "calibrated"]),
    caches=st.booleans(),
    varies=st.booleans(),
    blocks=st.sampled_from([11, 16, 200]),
    seqs=st.sampled_from([1, 3, 12]),
    budget=st.sampled_from([20, 128]),
    is_async=st.booleans(),
)
def test_each_turn_arrives_when_its_answer_was_delivered_and_thought_about(
    sessions: Sessions, variant: str, caches: bool, varies: bool, blocks: int, seqs: int, budget: int, is_async: bool
) -> None:
    base = CACHED if caches else PLAIN
    limits = {"num_kv_blocks": blocks, "max_num_seqs": seqs, "max_num_batched_tokens": budget}
    scenario = base.model_copy(
        update={
            "engine": base.engine.model_copy(update=limits),
            "simulation": base.simulation.model_copy(update={"host_variability": varies, "seed": 3}),
        }
    )
    bundle = BUNDLES[is_async]
    lengths, intervals = workload(sessions)
    prompts = prompts_of(lengths)
    result = simulate(scenario, lengths, intervals, bundle, variant, cache_dir=None, prompts=prompts)
    think = intervals["think_time_ns"].dropna().to_numpy(dtype="int64")
    assert waited_ns(result, intervals).tolist() == think.tolist()
    validate(RequestMetrics, result.requests, "here")
    written = {"previous_request_id", "workload_arrival_time_ns"} & set(result.requests)
    assert len(written) == (2 if len(think) else 0), "only where some turn waits"
    assert not written or result.requests["workload_arrival_time_ns"].equals(intervals["arrival_time_ns"])
    assert_same(result, told_beforehand(result, scenario, lengths, variant, bundle))


def test_compiled_and_plain_python_are_one_simulation() -> None:
    lengths, intervals = workload([[(5 * s, 10 + 7 * s, 3 + s)] + [(s % 4, 40, 9)] * (s % 5) for s in range(60)])
    ways, costs = BUNDLE.request_ways(3), BUNDLE.engine_tables(128, 3, 2)
    previous, think = (
        intervals[name].to_numpy(dtype="int64", na_value=-1) for name in ("previous_request_id", "think_time_ns")
    )
    turns = TurnColumns(previous, np.maximum(think, 0), 1000 + 7 * lengths.index.to_numpy(), ways.delivery_tables(8))
    columns = ("request_id", "arrival_time_ns", "num_prefill_tokens", "num_decode_tokens")
    requests = RequestColumns(*(lengths.assign(**intervals)[name].tolist() for name in columns))
    found: dict[Mode, list[Any]] = {}
    for mode in get_args(simulation_loop.Mode):
        loop = SimulationLoop(requests, Limits(16, 40, 1, 8, 128), costs, turns=turns, mode=mode)
        loop.run()
        columns = (*loop.history.steps(), *loop.history.tokens(), loop.scheduled_at_ns, loop.due_ns)
        found[mode] = [list(map(int, column)) for column in columns]
    assert found["python"] == found["compiled"]
    assert max(found["python"][-1]) > intervals["arrival_time_ns"].max()


def test_a_slower_engine_lets_later_turns_arrive_later() -> None:
    lengths, intervals = workload([[(0, 100, 20), (50, 150, 20), (10, 200, 20)], [(3, 30, 5)]])
    arrivals = []
    for factor in (1, 2):
        slow = support.bundle(PLAIN, overheads=support.constant_overheads(device=4 * factor * MS))
        result = simulate(PLAIN, lengths, intervals, slow, "calibrated", cache_dir=None)
        assert waited_ns(result, intervals).tolist() == [50 * MS, 10 * MS]
        arrivals.append(result.requests["arrival_time_ns"].tolist())
    first = intervals["previous_request_id"].isna().to_numpy()
    one, two = (np.array(each, dtype=np.int64) for each in arrivals)
    assert (one[first] == two[first]).all() and (one[~first] < two[~first]).all()


@pytest.mark.parametrize("variant", ["published", "kernels"])
def test_vidurs_own_loops_refuse_turns_that_wait(variant: str) -> None:
    scenario = support.scenario("simulation.loop=event")
    lengths, intervals = workload([[(0, 10, 2), (1, 20, 2)]])
    with pytest.raises(SimulationError, match="turns that wait for answers .* which variant " + variant):
        simulate(scenario, lengths, intervals, BUNDLE, variant, cache_dir=None)


@pytest.mark.parametrize(("previous", "think"), [([-1, 1], 0), ([-1, 0, 0], 0), ([-1, 0], -1), ([5, -1], 0)])
def test_turns_that_cannot_be_are_refused(previous: list[int], think: int) -> None:
    count = len(previous)
    turns = TurnColumns(previous, [think] * count, [0] * count, BUNDLE.request_ways(None).delivery_tables(4))
    ones = [1] * count
    with pytest.raises(SimulationError, match="expected an earlier one than its own place"):
        SimulationLoop(
            RequestColumns(range(count), range(count), ones, ones),
            Limits(16, 30, 1, 4, 64),
            BUNDLE.engine_tables(64, None, 1),
            turns=turns,
        )
