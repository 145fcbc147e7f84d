"""The core: equal to Vidur's event loop one step at a time, to Vidur's scheduler under any costs, compiled or not, and
hand-worked cases of asynchronous scheduling."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError, SimulationError
from gst_assets.scenario import Scenario
from gst_assets.step_costs import engine_costs as engine_costs_module
from gst_assets.step_costs import warmth
from gst_assets.step_costs.bundle import Bundle
from gst_assets.step_costs.cost_tables import CostTables
from gst_assets.step_costs.shapes import StepShape
from gst_assets.testing import simulation_inputs as support
from gst_assets.testing.simulation_inputs import constant_overheads
from gst_assets.vidur_adapter import core, predictor, registration, simulation_loop
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.vidur_adapter.simulation_loop import Mode, RequestColumns, SimulationLoop
from gst_assets_tests.vidur_adapter.reference_clocks import EngineClock, HostDeviceClock, StepByStepClock
from gst_assets_tests.vidur_adapter.scheduler_loop import SchedulerLoop

MS = 1_000_000
SCENARIO = support.scenario()
BUNDLE = support.bundle(SCENARIO)
Rows = list[dict[str, Any]]


def limited(loop: str, blocks: int, seqs: int, budget: int) -> Scenario:
    """The default scenario with these limits."""
    limits = {"num_kv_blocks": blocks, "max_num_seqs": seqs, "max_num_batched_tokens": budget}
    return SCENARIO.model_copy(
        update={
            "engine": SCENARIO.engine.model_copy(update=limits),
            "simulation": SCENARIO.simulation.model_copy(update={"loop": loop}),
        }
    )


# --- one step at a time -----------------------------------------------------------------------------------------------

lengths_of_prompts = st.one_of(st.integers(1, 200), st.sampled_from([31, 32, 33, 64, 128]))
"""Blocks hold 32 tokens."""


def compare_loops(of: Callable[[str], Scenario], rows: list[tuple[int, int, int]], bundle: Bundle) -> SimulationResult:
    """Both loops of `kernels` give equal tables and settings. Returns what the direct one gave."""
    lengths, intervals = support.workload(rows)
    direct, event = (
        simulate(of(loop), lengths, intervals, bundle, "kernels", cache_dir=None) for loop in ("direct", "event")
    )
    assert support.csv_bytes(direct) == support.csv_bytes(event)
    assert direct.settings == event.settings
    return direct


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40 * MS), lengths_of_prompts, st.integers(1, 80)), min_size=1, max_size=25),
    blocks=st.integers(10, 30),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
)
def test_the_core_equals_the_event_loop_to_the_byte(
    rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int
) -> None:
    compare_loops(lambda loop: limited(loop, blocks, seqs, budget), rows, BUNDLE)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 300 * MS, 4000 * MS]), lengths_of_prompts, st.integers(1, 700)),
        min_size=1,
        max_size=5,
    ),
    blocks=st.sampled_from([40, 200]),
)
def test_long_stretches_of_decodes_are_equal_too(rows: list[tuple[int, int, int]], blocks: int) -> None:
    compare_loops(lambda loop: limited(loop, blocks, 4, 512), rows, BUNDLE)


FLAT = support.bundle(SCENARIO, flat=True)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([-1, 0, 0, 0, 1]), lengths_of_prompts, st.integers(1, 20)),
        min_size=1,
        max_size=12,
    ),
    blocks=st.sampled_from([12, 200]),
)
def test_arrivals_at_the_end_of_a_step_are_seen_alike(rows: list[tuple[int, int, int, int]], blocks: int) -> None:
    # Steps of one request take equal time, so that an arrival after whole steps falls together with the end of one, or
    # a nanosecond off it.
    step = support.flat_step_ns(SCENARIO)
    timed = [(max(steps * step + beside, 0), prompt, decode) for steps, beside, prompt, decode in rows]
    compare_loops(lambda loop: limited(loop, blocks, 4, 128), timed, FLAT)


def test_the_event_loop_has_the_operators_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Vidur's loop asks of the predictor, it asks of the same sum as the core: at exact contexts and chunks."""
    seen: list[StepShape] = []
    times = BUNDLE.operator_times()
    own = predictor.OperatorSumPredictor.get_execution_time

    def watched(self: predictor.OperatorSumPredictor, batch: Any, stage: int) -> predictor.StepTime:
        shape, found = predictor.shape_of_batch(batch), own(self, batch, stage)
        assert found == (times.step_ns(shape), times.step_ns(shape))
        seen.append(shape)
        return found

    monkeypatch.setattr(predictor.OperatorSumPredictor, "get_execution_time", watched)
    rows = [(40 * MS * (i % 3), 1 + 29 * (i % 7), 1 + 50 * (i % 5)) for i in range(25)]
    steps = compare_loops(lambda loop: limited(loop, 40, 8, 64), rows, BUNDLE).iterations
    assert [shape.composition.num_context_tokens for shape in seen] == steps["num_context_tokens"].tolist()
    assert any(len(shape.chunks) > 1 for shape in seen) and any(shape.chunks and shape.num_decodes for shape in seen)


@pytest.mark.parametrize("degree", [2, 4])
def test_the_loops_agree_on_several_devices_and_pay_two_sums_a_layer(degree: int) -> None:
    """At four, its two key and value heads are on two devices each."""
    shared = support.scenario(f"engine.tensor_parallel_size={degree}")
    bundle, rows = support.bundle(shared), [(40 * MS * (i % 3), 1 + 29 * (i % 7), 1 + 50 * (i % 5)) for i in range(25)]

    def of(loop: str, scenario: Scenario = shared) -> Scenario:
        return scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update={"loop": loop})})

    found = compare_loops(of, rows, bundle)
    alone = compare_loops(lambda loop: of(loop, SCENARIO), rows, BUNDLE)
    assert found.settings["tensor_parallel_size"] == degree
    assert alone.settings["kv_bytes_per_token"] == 2 * found.settings["kv_bytes_per_token"]
    more_ms = (found.requests["ttft_ns"] - alone.requests["ttft_ns"]).iloc[0] / 1e6
    assert more_ms == pytest.approx(2 * 4 * (support.ALL_REDUCE_MS + 1e-4 * rows[0][1]))
    with pytest.raises(ProfileError, match=rf"bundle: measured at tensor parallel degree {degree} .* is 1\. Measure"):
        simulate(SCENARIO, *support.workload(rows), bundle, "calibrated", cache_dir=None)


def test_the_loops_agree_under_kv_pressure_with_preemptions() -> None:
    rows = [(1 * MS, 20 + 7 * (i % 11), 30 + 13 * (i % 5)) for i in range(60)]
    direct = compare_loops(lambda loop: limited(loop, 20, 8, 64), rows, BUNDLE)
    assert direct.num_preemptions > 10


# --- asynchronous scheduling ------------------------------------------------------------------------------------------


def constant_ms(**ms: float) -> Rows:
    """Terms of one value each, in ms (`support.constant_overheads`)."""
    return constant_overheads(**{name: value * MS for name, value in ms.items()})


DEVICE_BOUND = constant_ms(prepare=1, launch=1, lead_in=1, device=10, copy_out=1, process=1)
HOST_BOUND = constant_ms(prepare=3, launch=4, device=1, drain=1, copy_out=1, process=2)
PER_TOKEN = [*DEVICE_BOUND, support.cost_row("device", 1 * MS, "mixed", "attention_pair")]


def ahead(
    rows: Sequence[tuple[int, int, int]], costs: Rows, of: Scenario = SCENARIO, **bundle: Any
) -> SimulationResult:
    """Simulate requests given as (inter-arrival ms, prompt tokens, decode tokens) on an engine with asynchronous
    scheduling."""
    lengths, intervals = support.workload([(gap * MS, prompt, decode) for gap, prompt, decode in rows])
    made = support.bundle(SCENARIO, overheads=costs, **({"async_scheduling": True} | bundle))
    result = simulate(of, lengths, intervals, made, "calibrated", cache_dir=None)
    support.check(result, lengths, intervals, overlapping=True)
    return result


def stamps(result: SimulationResult) -> list[tuple[float, float]]:
    """(formed, handed out) of each step, in ms."""
    steps = result.iterations
    return [(s / MS, u / MS) for s, u in zip(steps["scheduled_time_ns"], steps["completion_time_ns"], strict=True)]


def tokens(result: SimulationResult, request: int) -> list[float]:
    of = result.tokens[result.tokens["request_id"] == request]
    return [t / MS for t in of["token_time_ns"]]


def test_decode_steps_follow_each_other_on_a_slow_device() -> None:
    # Step 0: formed 0, forward 1, launched 2, on the device from 1 to 1 + 1 + 10 = 12, tokens at the host at 13. Step
    # 1: formed 2, done 12 + 11 = 23, tokens 24. The host takes step 0's tokens at 13 and forms step 2 at 14: done 34,
    # tokens 35. Step 3: formed 25, tokens 46.
    result = ahead([(0, 10, 4)], DEVICE_BOUND)
    assert result.settings["async_scheduling"] is True
    assert stamps(result) == [(0, 13), (2, 24), (14, 35), (25, 46)]
    assert tokens(result, 0) == [13, 24, 35, 46]


def test_decode_steps_follow_each_other_on_a_slow_host() -> None:
    # Step 0: formed 0, launched 7, done 8 (a ms after the launch), tokens 9. Step 1: formed 7, launched 14, done 15,
    # tokens 16. The host takes step 0's tokens at 14, when it has launched step 1, and is free at 16. Step 2: formed
    # 16, launched 23, tokens 25; step 1's at 23. Step 3: formed 25.
    result = ahead([(0, 10, 4)], HOST_BOUND)
    assert stamps(result) == [(0, 14), (7, 23), (16, 32), (25, 34)]


def test_the_next_step_is_formed_before_a_complete_one_is_handed_out() -> None:
    # A prompt that arrives at 3 is in step 1, though step 0 is complete by then: its own launch is what step 0 waits
    # for.
    result = ahead([(0, 10, 2), (3, 20, 1)], HOST_BOUND)
    assert stamps(result) == [(0, 14), (7, 16)]
    assert result.iterations["num_prefill_tokens"].tolist() == [10, 20]


def test_a_prompt_that_arrives_during_a_step_makes_the_gap_before_it_long() -> None:
    # Its pairs of tokens (10 of a prompt of 4) take a ms each. Steps 0 to 3 as above, a ms later for the first prompt's
    # only pair: tokens 14, 25, 36,
    # 47. The prompt arrives at 20, while step 2 (formed at 15) is out, and is first seen at 26, in step 3: done 46 + 10
    # = 56, tokens 57.
    result = ahead([(0, 1, 6), (20, 4, 2)], PER_TOKEN)
    assert stamps(result)[:4] == [(0, 14), (2, 25), (15, 36), (26, 57)]
    assert tokens(result, 1)[0] == 57
    assert result.requests["scheduled_time_ns"].tolist() == [0, 26 * MS]


def test_a_prompt_is_not_scheduled_twice_and_a_finished_request_not_again() -> None:
    result = ahead([(0, 1024, 1)], DEVICE_BOUND)
    assert result.iterations["num_prefill_tokens"].tolist() == [512, 512]
    assert result.iterations["num_context_tokens"].tolist() == [0, 512]
    assert len(tokens(result, 0)) == 1


def test_a_place_is_free_only_when_the_last_output_is_handed_out() -> None:
    # One place. Request 0 ends with step 1 (formed 2, handed out 24); request 1 arrives at 0, and is admitted when that
    # is processed, at 25. Its step meets an idle device: forward 26, done 37, tokens 38.
    result = ahead([(0, 10, 2), (0, 10, 1)], DEVICE_BOUND, limited("direct", 1024, 1, 512))
    assert stamps(result) == [(0, 13), (2, 24), (25, 38)]
    assert result.iterations["num_running"].tolist() == [1, 1, 1]
    assert result.iterations["num_waiting"].tolist() == [1, 1, 0]


def test_an_idle_engine_begins_at_once_and_takes_longer_to_prepare() -> None:
    result = ahead([(0, 10, 1), (50, 10, 1)], constant_ms(prepare=1, device=10, prepare_after_idle=4))
    assert stamps(result) == [(0, 15), (50, 65)]


def test_one_step_at_a_time_waits_for_each_of_them() -> None:
    # Tokens of a step at 13 after it is formed, processed at 14.
    result = ahead([(0, 10, 3)], DEVICE_BOUND, async_scheduling=False)
    assert result.settings["async_scheduling"] is False
    assert stamps(result) == [(0, 13), (14, 27), (28, 41)]


def test_hand_over_and_delivery_are_outside_the_engine() -> None:
    costs = [row for row in DEVICE_BOUND if row["term"] not in ("handover", "delivery")]
    costs += [support.cost_row("handover", ns, position=at) for at, ns in ((10, 300_000), (20, 400_000))]
    costs += [support.cost_row("delivery", ns, position=at) for at, ns in ((0, 50_000), (1, 70_000))]
    result = ahead([(7, 15, 3)], costs)
    assert stamps(result) == [(7.35, 20.35), (9.35, 31.35), (21.35, 42.35)]
    assert tokens(result, 0) == [20.4, 31.42, 42.42]
    request = result.requests.iloc[0]
    assert (request["ttft_ns"], request["scheduled_time_ns"]) == (13_400_000, 7_350_000)


def test_steps_outside_the_calibration_are_counted() -> None:
    # Calibrated with up to 2 tokens a step on the device. Three requests decode together in four steps.
    costs = [row for row in DEVICE_BOUND if (row["term"], row["feature"]) != ("device", "base")]
    costs += [support.cost_row("device", 10 * MS, kind, position=n) for kind in ("decode", "mixed") for n in (1, 2)]
    assert ahead([(0, 10, 5)] * 3, costs).settings["steps_outside_calibration"] == 4
    assert ahead([(0, 10, 5)] * 2, costs).settings["steps_outside_calibration"] == 0


parts_ms = {
    name: st.integers(0, 6) for name in ("prepare", "launch", "lead_in", "copy_out", "process", "prepare_after_idle")
}
any_costs = st.builds(
    constant_ms, device=st.integers(1, 9), device_mixed=st.integers(1, 30), drain=st.integers(0, 3), **parts_ms
)
# With and without workers that are processes of their own.
any_costs |= st.tuples(any_costs, st.integers(0, 3)).map(
    lambda drawn: [*drawn[0], support.cost_row("form", drawn[1] * MS)]
)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=20),
    blocks=st.integers(10, 30),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
    costs=st.just(support.default_overheads()) | any_costs,
)
def test_any_workload_keeps_the_contract_ahead(
    rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int, costs: Rows
) -> None:
    result = ahead(rows, costs, limited("direct", blocks, seqs, budget))
    steps = result.iterations
    assert (steps["num_prefill_tokens"] + steps["num_decode_requests"]).max() <= budget
    assert steps["num_running"].max() <= seqs
    # At most two steps are under way: step n + 2 is formed after the output of step n.
    formed, handed_out = steps["scheduled_time_ns"].to_numpy(), steps["completion_time_ns"].to_numpy()
    assert (formed[2:] >= handed_out[:-2]).all()
    assert (handed_out[1:] >= handed_out[:-1]).all()


# --- any costs ---------------------------------------------------------------------------------------------------------


def clock_of(costs: Rows | None, queue_size: int) -> EngineClock:
    """The reference clock with these costs, or without any that of operator sums."""
    if costs is None:
        return StepByStepClock(BUNDLE.operator_times())
    return HostDeviceClock(support.bundle(SCENARIO, overheads=costs).engine_costs(512, seed=None), queue_size)


def tables_of(costs: Rows | None, queue_size: int) -> CostTables:
    """The same as the core takes them."""
    if costs is None:
        return BUNDLE.operator_times().tables(512)
    return support.bundle(SCENARIO, overheads=costs).engine_costs(512, seed=None).tables(512, queue_size)


def happened(loop: SimulationLoop | SchedulerLoop) -> list[list[int]]:
    """Everything a loop reports, once it has run."""
    with registration.quiet():
        loop.run()
    columns = (*loop.history.steps(), *loop.history.tokens(), loop.scheduled_at_ns, loop.num_preemptions)
    return [*(list(map(int, column)) for column in columns), [loop.num_outside]]


def columns(rows: Sequence[tuple[int, int, int]], unit_ns: int) -> RequestColumns:
    """Requests given as (time since the one before, prompt tokens, decode tokens), numbered from 100."""
    arrivals = list(accumulate(gap * unit_ns for gap, _, _ in rows))
    return RequestColumns(
        range(100, 100 + len(rows)), arrivals, [prompt for _, prompt, _ in rows], [decode for _, _, decode in rows]
    )


any_rows = st.lists(st.tuples(st.integers(0, 60), lengths_of_prompts, st.integers(1, 90)), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    rows=any_rows,
    block_size=st.sampled_from([1, 7, 16, 32]),
    num_spare_blocks=st.one_of(st.integers(0, 12), st.just(500)),
    num_null_blocks=st.integers(0, 2),
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.one_of(
        st.integers(1, 8), st.integers(1, 200)
    ),  # also so few that decodes leave a prompt none
    costs=st.none() | any_costs,
    queue_size=st.integers(1, 2),
)
def test_every_step_is_vidurs_schedulers_own(
    data: st.DataObject,
    rows: list[tuple[int, int, int]],
    block_size: int,
    num_spare_blocks: int,
    num_null_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    costs: Rows | None,
    queue_size: int,
) -> None:
    largest = max(-(-(prompt + decode - 1) // block_size) for _, prompt, decode in rows)
    num_blocks = largest + num_spare_blocks + num_null_blocks
    limits = Limits(block_size, num_blocks, num_null_blocks, max_num_seqs, max_num_batched_tokens)
    requests = columns(rows, data.draw(st.sampled_from([100, 3000, MS])))
    loop = SimulationLoop(requests, limits, tables_of(costs, queue_size), mode="python")
    assert happened(loop) == happened(SchedulerLoop(requests, limits, clock_of(costs, queue_size)))
    assert loop.num_free_blocks == num_blocks - num_null_blocks  # everything was given back


@pytest.mark.parametrize("mode", ["python", "compiled"])
@pytest.mark.parametrize("costs", [None, DEVICE_BOUND, HOST_BOUND])
def test_the_schedulers_steps_with_many_preemptions(costs: Rows | None, mode: Mode) -> None:
    requests = columns([(i % 3, 1 + 37 * i % 90, 1 + 53 * i % 120) for i in range(300)], 3000 if costs is None else MS)
    limits = Limits(16, 30, 1, 16, 64)
    loop = SimulationLoop(requests, limits, tables_of(costs, 2), mode=mode)
    assert happened(loop) == happened(SchedulerLoop(requests, limits, clock_of(costs, 2)))
    assert sum(loop.num_preemptions) > 50


def test_a_request_preempted_while_its_last_step_runs_is_not_computed_again() -> None:
    # Step 4 gives request 101 its last token. Step 5 is formed before that is handed out: request 100 has filled its
    # second block, the four blocks are held, and 101 loses its two. The one left over could hold its prompt.
    requests, limits = columns([(0, 4, 10), (0, 1, 5)], MS), Limits(4, 4, 0, 8, 64)
    loop = SimulationLoop(requests, limits, tables_of(DEVICE_BOUND, 2))
    assert happened(loop) == happened(SchedulerLoop(requests, limits, clock_of(DEVICE_BOUND, 2)))
    assert loop.num_preemptions == [0, 1]
    assert loop.history.steps().num_prefill_tokens.tolist() == [5] + 9 * [0]
    assert loop.history.steps().num_waiting.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    rows=any_rows,
    num_spare_blocks=st.one_of(st.integers(0, 12), st.just(500)),
    max_num_seqs=st.integers(1, 12),
    speeds=st.lists(
        st.tuples(
            st.integers(0, 2 * 10**9), st.sampled_from(support.SPEED_PARTS), st.sampled_from([0.5, 1.0, 2.0, 8.0])
        ),
        max_size=60,
    ),
    queue_size=st.integers(1, 2),
    hardware_id=st.sampled_from(["cpu", "h100"]),
    has_cache=st.booleans(),
)
def test_compiled_and_plain_python_are_one_simulation(
    rows: list[tuple[int, int, int]],
    num_spare_blocks: int,
    max_num_seqs: int,
    speeds: list[tuple[int, str, float]],
    queue_size: int,
    hardware_id: str,
    has_cache: bool,
) -> None:
    """On a host of any speed, with slopes and a device that may be the host, with and without a prefix cache."""
    speed = support.speed_table(sorted([(0, part, 1.0) for part in support.SPEED_PARTS] + speeds))
    made = support.bundle(SCENARIO, host_speed=speed, hardware_id=hardware_id)
    tables = made.engine_costs(512, seed=3).tables(512, queue_size)
    largest = max(-(-(prompt + decode - 1) // 16) for _, prompt, decode in rows)
    limits, requests = Limits(16, largest + num_spare_blocks + 1, 1, max_num_seqs, 128), columns(rows, MS)
    keys = [list(range(prompt // 16)) for _, prompt, _ in rows] if has_cache else None
    plain, compiled = (
        SimulationLoop(requests, limits, tables, prompt_keys=keys, mode=mode) for mode in get_args(simulation_loop.Mode)
    )
    assert happened(plain) == happened(compiled)
    assert plain.num_cached_tokens == compiled.num_cached_tokens


@pytest.mark.parametrize("form_ns", [None, 90_000], ids=["one_process", "own_workers"])
def test_the_core_is_the_reference_clock_on_a_host_of_changing_speed(form_ns: float | None) -> None:
    """With every feature of a real bundle's terms. They are added up in the same order, so equal to the nanosecond."""
    speed = support.speed_table(
        [(at * 40 * MS, part, 1 + (at % 7) / 5) for at in range(50) for part in support.SPEED_PARTS]
    )
    rows = support.default_overheads()
    rows += [] if form_ns is None else [support.cost_row("form", form_ns + 1_000 * n, position=n) for n in (1, 32)]
    costs = support.bundle(SCENARIO, overheads=rows, host_speed=speed).engine_costs(512, seed=3)
    assert costs.has_own_workers == (form_ns is not None)
    requests = columns([(i % 40, 1 + 37 * i % 300, 1 + 53 * i % 90) for i in range(200)], MS)
    limits = Limits(16, 400, 1, 16, 256)
    for queue_size in (1, 2):
        loop = SimulationLoop(requests, limits, costs.tables(512, queue_size))
        assert happened(loop) == happened(SchedulerLoop(requests, limits, HostDeviceClock(costs, queue_size)))


def test_a_full_buffer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, limits = (
        columns([(i % 3, 1 + 37 * i % 90, 1 + 53 * i % 120) for i in range(60)], MS),
        Limits(16, 30, 1, 4, 64),
    )
    whole = happened(SimulationLoop(requests, limits, tables_of(DEVICE_BOUND, 2)))
    monkeypatch.setattr(simulation_loop, "_BUFFER_STEPS", 7)
    monkeypatch.setattr(simulation_loop, "_LEAST_SPANS", 16)
    assert happened(SimulationLoop(requests, limits, tables_of(DEVICE_BOUND, 2))) == whole


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("costs", [None, HOST_BOUND])
def test_a_simulation_that_goes_on_compiled_is_the_same(
    monkeypatch: pytest.MonkeyPatch, costs: Rows | None, has_cache: bool
) -> None:
    """After 50 steps in plain Python, in the middle of preemptions; and a process that had them begins compiled."""
    requests = columns([(i % 3, 1 + 37 * i % 90, 1 + 53 * i % 120) for i in range(60)], MS)
    keys = [list(range(count // 16)) for count in requests.num_prefill_tokens] if has_cache else None
    made = [
        SimulationLoop(requests, Limits(16, 30, 1, 16, 64), tables_of(costs, 2), prompt_keys=keys, mode=mode)
        for mode in ("python", None, None)
    ]
    monkeypatch.setattr(simulation_loop, "_PLAIN_BUFFER_STEPS", 7)
    monkeypatch.setattr(simulation_loop, "_MOST_PLAIN_STEPS", 50)
    monkeypatch.setattr(simulation_loop._Process, "plain_steps", 0)
    plain, *others = (happened(loop) for loop in made)
    assert sum(made[0].num_preemptions) > 10
    assert others == [plain, plain]
    assert all(loop.num_cached_tokens == made[0].num_cached_tokens for loop in made)
    assert simulation_loop._Process.plain_steps in range(50, 57)


def test_many_requests_begin_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_loop, "_MOST_PLAIN_REQUESTS", 4)
    for count, counted in ((5, 0), (4, 4)):
        monkeypatch.setattr(simulation_loop._Process, "plain_steps", 0)
        SimulationLoop(columns([(1, 1, 1)] * count, 1000 * MS), Limits(16, 30, 1, 4, 64), tables_of(None, 1)).run()
        assert simulation_loop._Process.plain_steps == counted


def test_compiled_steps_take_a_small_part_of_plain_ones() -> None:
    """Some 0.05 us beside 10 us or more. With reference counts, or with calls that copy what describes the arrays, it
    is 0.5 to 3 us, and nothing else would tell."""
    requests, limits = columns([(50, 100, 120)] * 2000, MS), Limits(16, 4000, 1, 64, 512)
    taken_s: dict[Mode, float] = {}
    for mode in get_args(Mode):
        for _ in range(3):  # the first one loads the compiled code
            loop = SimulationLoop(requests, limits, tables_of(None, 1), mode=mode)
            began = time.process_time()
            loop.run()
            taken_s[mode] = min(taken_s.get(mode, inf), time.process_time() - began)
    assert taken_s["compiled"] * 20 < taken_s["python"]


def test_constants_are_those_of_the_terms() -> None:
    assert (core.WARM_TIME_CONSTANT_NS, core.WARM_MANY_TOKENS) == (warmth._TIME_CONSTANT_NS, warmth._MANY_TOKENS)
    assert core.SPEED_BLOCK_NS == engine_costs_module._BLOCK_NS


@pytest.mark.parametrize(
    ("arrivals", "prompts", "decodes", "problem"),
    [
        ([5, 4], [1, 1], [1, 1], r"request 8 arrives at 4 ns \(the one before it at 5 ns\)"),
        ([0, 0], [0, 1], [1, 1], r"request 7 .* with 0 prompt tokens and 1 to give"),
        ([0, 0], [1, 1], [1, 0], r"request 8 .* with 1 prompt tokens and 0 to give"),
    ],
)
def test_requests_out_of_order_or_without_tokens_are_refused(
    arrivals: list[int], prompts: list[int], decodes: list[int], problem: str
) -> None:
    with pytest.raises(SimulationError, match=problem):
        SimulationLoop(
            RequestColumns([7, 8], arrivals, prompts, decodes), Limits(16, 30, 1, 4, 64), tables_of(DEVICE_BOUND, 2)
        )


def test_requests_that_can_never_be_scheduled_are_told() -> None:
    requests = RequestColumns([7, 8, 9], [0, 0, 5], [10, 500, 1], [3, 1, 1])
    loop = SimulationLoop(requests, Limits(16, 30, 1, 4, 64), tables_of(DEVICE_BOUND, 2))
    with pytest.raises(SimulationError, match=r"2 requests can never be scheduled, the first is request 8\. Raise"):
        loop.run()


def test_three_steps_under_way_are_refused() -> None:
    with pytest.raises(ValueError, match="a queue of 3 steps, expected 1 or 2"):
        SimulationLoop(RequestColumns([0], [0], [1], [1]), Limits(16, 30, 1, 4, 64), tables_of(DEVICE_BOUND, 3))


# --- the seam ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["process", "device"])
def test_a_bundle_without_a_term_is_refused(term: str) -> None:
    with pytest.raises(ProfileError, match=rf"bundle/overheads\.csv: no {term} rows of step_kind"):
        ahead([(0, 10, 2)], [row for row in DEVICE_BOUND if row["term"] != term])


def test_calibrated_has_the_core_whatever_the_loop_of_kernels() -> None:
    rows = [(0, 10, 2), (1, 20, 5)]
    by_loop = [ahead(rows, DEVICE_BOUND, limited(loop, 1024, 8, 512)) for loop in ("direct", "event")]
    assert support.csv_bytes(by_loop[0]) == support.csv_bytes(by_loop[1])


def test_kernels_stay_synchronous() -> None:
    lengths, intervals = support.workload([(0, 10, 2), (1, 20, 5)])
    ahead_bundle, plain = (
        simulate(SCENARIO, lengths, intervals, made, "kernels", cache_dir=None)
        for made in (support.bundle(SCENARIO, async_scheduling=True), BUNDLE)
    )
    assert ahead_bundle.settings["async_scheduling"] is False
    assert support.csv_bytes(ahead_bundle) == support.csv_bytes(plain)
