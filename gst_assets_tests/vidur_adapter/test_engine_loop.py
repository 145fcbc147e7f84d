"""The engine loop: equal to Vidur's event loop one step at a time, to Vidur's scheduler under any clock, and hand-worked cases of asynchronous scheduling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
from gst_assets.vidur_adapter.operator_times import StepShape
from gst_assets.vidur_adapter.overheads import Composition
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError, SimulationError
from gst_assets.vidur_adapter import engine_loop, predictor, registration
from gst_assets.vidur_adapter.clocks import AsynchronousClock, EngineClock, SynchronousClock
from gst_assets.vidur_adapter.engine_loop import EngineLoop, Limits, RequestColumns
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.vidur_adapter import support
from gst_assets_tests.vidur_adapter.scheduler_loop import SchedulerLoop

MS = 1_000_000
SCENARIO = support.scenario()
BUNDLE = support.bundle(SCENARIO)
ASYNCHRONOUS = support.bundle(SCENARIO, async_scheduling=True)


def limited(loop: str, blocks: int, seqs: int, budget: int) -> Any:
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


def compare_loops(
    of: Callable[[str], Any], rows: list[tuple[int, int, int]], bundle: Any, variant: str
) -> SimulationResult:
    """Both loops give equal tables and settings. Returns what the direct one gave."""
    lengths, intervals = support.workload(rows)
    direct, event = (
        simulate(of(loop), lengths, intervals, bundle, variant, cache_dir=None) for loop in ("direct", "event")
    )
    assert support.csv_bytes(direct) == support.csv_bytes(event)
    assert direct.settings == event.settings
    return direct


@pytest.mark.parametrize("variant", ["kernels", "calibrated"])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40 * MS), lengths_of_prompts, st.integers(1, 80)), min_size=1, max_size=25),
    blocks=st.integers(10, 30),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
)
def test_the_engine_loop_equals_the_event_loop_to_the_byte(
    variant: str, rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int
) -> None:
    compare_loops(lambda loop: limited(loop, blocks, seqs, budget), rows, BUNDLE, variant)


@pytest.mark.parametrize("variant", ["kernels", "calibrated"])
@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 300 * MS, 4000 * MS]), lengths_of_prompts, st.integers(1, 700)),
        min_size=1,
        max_size=5,
    ),
    blocks=st.sampled_from([40, 200]),
)
def test_long_stretches_of_decodes_are_equal_too(variant: str, rows: list[tuple[int, int, int]], blocks: int) -> None:
    compare_loops(lambda loop: limited(loop, blocks, 4, 512), rows, BUNDLE, variant)


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
    # Steps of one request take equal time, so that an arrival after whole steps falls together with the end of one, or a nanosecond beside it.
    step = support.flat_step_ns(SCENARIO)
    timed = [(max(steps * step + beside, 0), prompt, decode) for steps, beside, prompt, decode in rows]
    compare_loops(lambda loop: limited(loop, blocks, 4, 128), timed, FLAT, "kernels")


@pytest.mark.parametrize("kind", ["interpolation", "forest"])
@pytest.mark.parametrize("variant", ["kernels", "calibrated"])
def test_operator_times_are_vidurs_own_sum_to_the_last_bit(
    variant: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(predictor.FOREST, "n_estimators", 2)
    own_sum = predictor.KernelsPredictor._operators_ns
    num_compared = 0

    def compared(self: predictor.KernelsPredictor, batch: Any) -> float:
        nonlocal num_compared
        num_compared += 1
        found = own_sum(self, batch)
        shape = predictor.shape_of_batch(batch)
        assert self.operators.ns(shape) == found
        if not shape.chunks:
            context = shape.decode_context_tokens / shape.num_decodes
            assert self.operators.decode_piece(shape.num_decodes, context).at(context) == found
        return found

    monkeypatch.setattr(predictor.KernelsPredictor, "_operators_ns", compared)

    def of(loop: str) -> Any:
        made = limited(loop, 40, 8, 64)
        return made.model_copy(update={"simulation": made.simulation.model_copy(update={"predictor": kind})})

    compare_loops(of, [(40 * MS * (i % 3), 1 + 29 * (i % 7), 1 + 50 * (i % 5)) for i in range(25)], BUNDLE, variant)
    assert num_compared > 100


@pytest.mark.parametrize("variant", ["kernels", "calibrated"])
def test_the_loops_agree_under_kv_pressure_with_preemptions(variant: str) -> None:
    rows = [(1 * MS, 20 + 7 * (i % 11), 30 + 13 * (i % 5)) for i in range(60)]
    direct = compare_loops(lambda loop: limited(loop, 20, 8, 64), rows, BUNDLE, variant)
    assert direct.num_preemptions > 10


# --- asynchronous scheduling ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCosts:
    """Costs in ms; a prompt token adds `per_prefill_token` to the device."""

    host: int = 1
    device: int = 5
    tail: int = 2
    process: int = 0
    per_prefill_token: int = 0

    def host_ns(self, step: Composition, at_ns: int, after_idle: bool) -> int:  # noqa: ARG002 - as StepCosts
        del step
        return self.host * MS

    def device_ns(self, step: Composition) -> int:
        return (self.device + self.per_prefill_token * step.num_prefill_tokens) * MS

    def device_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        return [self.device_ns(Composition(0, 0, num_decodes, context_tokens))] * num_steps

    def tail_ns(self, step: Composition) -> int:
        # With an idle device the work of the step follows its launch.
        return self.tail * MS + self.per_prefill_token * step.num_prefill_tokens * MS

    def process_ns(self, step: Composition) -> int:
        del step
        return self.process * MS

    def is_outside(self, step: Composition) -> bool:
        return step.num_prefill_tokens == 77


def without_client() -> support.SyntheticBundle:
    """A bundle of an asynchronous engine with no time to or from the client, which makes a simulation easier to follow."""
    overheads = [support.term_row("handover", 1, 0, 1), support.term_row("delivery", 0, 1, 1)]
    made = support.bundle(SCENARIO, async_scheduling=True, overheads=overheads)
    assert made.overheads is not None
    made.overheads["median_ns"] = 0  # the contract wants medians above 0
    return made


WITHOUT_CLIENT = without_client()


def ahead(
    patch: pytest.MonkeyPatch, rows: Sequence[tuple[int, int, int]], costs: LinearCosts, of: Any = SCENARIO
) -> SimulationResult:
    """Simulate requests given as (inter-arrival ms, prompt tokens, decode tokens) with these costs."""
    patch.setattr(predictor, "AsynchronousStepCosts", lambda *_: costs)
    lengths, intervals = support.workload([(gap * MS, prompt, decode) for gap, prompt, decode in rows])
    result = simulate(of, lengths, intervals, WITHOUT_CLIENT, "calibrated", cache_dir=None)  # type: ignore[arg-type]
    assert result.settings["async_scheduling"] is True
    return result


def stamps(result: SimulationResult) -> list[tuple[float, float]]:
    """(formed, handed out) of each step, in ms."""
    steps = result.iterations
    return [(s / MS, u / MS) for s, u in zip(steps["scheduled_time_ns"], steps["completion_time_ns"], strict=True)]


def tokens(result: SimulationResult, request: int) -> list[float]:
    of = result.tokens[result.tokens["request_id"] == request]
    return [t / MS for t in of["token_time_ns"]]


def test_decode_steps_run_at_the_pace_of_a_slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # host 1, device 5, tail 2. Step 0: formed 0, launched 1, done 3. Step 1: formed 1, done max(3 + 5, 2 + 2) = 8; the host takes step 0's
    # output at 3 and forms step 2 at 3: done 13. Step 3 is formed at 8, done 18.
    result = ahead(monkeypatch, [(0, 10, 4)], LinearCosts())
    assert stamps(result) == [(0, 3), (1, 8), (3, 13), (8, 18)]
    assert tokens(result, 0) == [3, 8, 13, 18]


def test_decode_steps_run_at_the_pace_of_a_slow_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # host 4, device 1, tail 2, process 1. Step 0: formed 0, launched 4, done 6. Step 1: formed 4, launched 8, done 10. The host takes step 0's
    # output at 8, when it has launched step 1, and is free at 9. Step 2: formed 9, launched 13, done 15; output of step 1 at 13.
    result = ahead(monkeypatch, [(0, 10, 4)], LinearCosts(host=4, device=1, tail=2, process=1))
    assert stamps(result) == [(0, 8), (4, 13), (9, 18), (14, 20)]


def test_the_next_step_is_formed_before_a_complete_one_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # host 4, device 1, tail 0: step 0 is complete when it is launched, at 4. The host forms step 1 first, and takes the output at 8.
    result = ahead(monkeypatch, [(0, 10, 4)], LinearCosts(host=4, device=1, tail=0))
    assert stamps(result) == [(0, 8), (4, 12), (8, 16), (12, 16)]
    # A prompt that arrives at 3 is in step 1, though step 0 is complete by then: its own launch is what step 0 waits for.
    result = ahead(monkeypatch, [(0, 10, 2), (3, 20, 1)], LinearCosts(host=4, device=1, tail=0))
    assert stamps(result) == [(0, 8), (4, 8)]
    assert result.iterations["num_prefill_tokens"].tolist() == [10, 20]


def test_a_prompt_that_arrives_during_a_step_makes_the_gap_before_it_long(monkeypatch: pytest.MonkeyPatch) -> None:
    # The prompt of 20 tokens arrives at 10, while step 3 (formed at 9) is under way, and is first seen at 14, in step 4.
    result = ahead(monkeypatch, [(0, 1, 6), (10, 20, 2)], LinearCosts(per_prefill_token=1))
    # Step 0 holds a prompt of 1: done at 4 and everything after one later than above: 4, 9, 14, 19. Step 4, formed at 14: done 19 + 25 = 44.
    assert stamps(result)[:6] == [(0, 4), (1, 9), (4, 14), (9, 19), (14, 44), (19, 49)]
    assert tokens(result, 1) == [44, 49]
    assert result.requests["scheduled_time_ns"].tolist() == [0, 14 * MS]


def test_a_prompt_is_not_scheduled_twice_and_a_finished_request_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ahead(monkeypatch, [(0, 1024, 1)], LinearCosts())
    assert result.iterations["num_prefill_tokens"].tolist() == [512, 512]
    assert result.iterations["num_context_tokens"].tolist() == [0, 512]
    assert len(tokens(result, 0)) == 1


def test_a_place_is_free_only_when_the_last_output_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # One place. Request 0 ends with step 1 (formed 1, handed out 8); request 1 arrives at 0 and can be seen at 3 but admitted at 8 only.
    result = ahead(monkeypatch, [(0, 10, 2), (0, 10, 1)], LinearCosts(), limited("direct", 1024, 1, 512))
    # Step 2: formed 8, launched 9, done max(8 + 5, 9 + 2) = 13.
    assert stamps(result) == [(0, 3), (1, 8), (8, 13)]
    assert result.iterations["num_running"].tolist() == [1, 1, 1]
    assert result.iterations["num_waiting"].tolist() == [1, 1, 0]


def test_an_idle_engine_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ahead(monkeypatch, [(0, 10, 1), (50, 10, 1)], LinearCosts())
    assert stamps(result) == [(0, 3), (50, 55 - 2)]


def test_steps_outside_the_calibration_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ahead(monkeypatch, [(0, 77, 3)], LinearCosts())
    assert result.settings["steps_outside_calibration"] == 1


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=20),
    blocks=st.integers(10, 30),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
    costs=st.builds(
        LinearCosts, host=st.integers(0, 5), device=st.integers(1, 9), tail=st.integers(0, 5), process=st.integers(0, 2)
    ),
)
def test_any_workload_keeps_the_contract_ahead(
    rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int, costs: LinearCosts
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "AsynchronousStepCosts", lambda *_: costs)
        lengths, intervals = support.workload([(gap * MS, prompt, decode) for gap, prompt, decode in rows])
        of = limited("direct", blocks, seqs, budget)
        result = simulate(of, lengths, intervals, ASYNCHRONOUS, "calibrated", cache_dir=None)
    support.check(result, lengths, intervals, overlapping=True)
    steps = result.iterations
    assert (steps["num_prefill_tokens"] + steps["num_decode_requests"]).max() <= budget
    assert steps["num_running"].max() <= seqs
    # At most two steps are under way: step n + 2 is formed after the output of step n.
    formed, handed_out = steps["scheduled_time_ns"].to_numpy(), steps["completion_time_ns"].to_numpy()
    assert (formed[2:] >= handed_out[:-2]).all()
    assert (handed_out[1:] >= handed_out[:-1]).all()


def as_the_scheduler_would(run: Callable[[], SimulationResult]) -> list[SimulationResult]:
    """A simulation as it is, with every step formed by itself, and with every step formed by Vidur's scheduler."""
    results = [run()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_loop.EngineLoop, "_run_decodes", lambda *_: False)
        results.append(run())
        patch.setattr("gst_assets.vidur_adapter.simulate.EngineLoop", SchedulerLoop)
        results.append(run())
    return results


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 60), lengths_of_prompts, st.integers(1, 90)), min_size=1, max_size=15),
    blocks=st.integers(10, 40),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
    costs=st.builds(
        LinearCosts, host=st.integers(0, 5), device=st.integers(1, 9), tail=st.integers(0, 5), process=st.integers(0, 2)
    ),
)
def test_steps_ahead_are_those_the_scheduler_would_form(
    rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int, costs: LinearCosts
) -> None:
    of = limited("direct", blocks, seqs, budget)
    with pytest.MonkeyPatch.context() as patch:
        at_once, *one_by_one = as_the_scheduler_would(lambda: ahead(patch, rows, costs, of))
    for result in one_by_one:
        assert support.csv_bytes(result) == support.csv_bytes(at_once)


@pytest.mark.parametrize("costs", [LinearCosts(), LinearCosts(host=4, device=1, process=1)])
def test_steps_ahead_are_the_schedulers_under_kv_pressure(monkeypatch: pytest.MonkeyPatch, costs: LinearCosts) -> None:
    rows = [(1, 20 + 7 * (i % 11), 30 + 13 * (i % 5)) for i in range(30)]
    of = limited("direct", 20, 8, 64)
    results = as_the_scheduler_would(lambda: ahead(monkeypatch, rows, costs, of))
    assert results[0].num_preemptions > 0
    assert len({support.csv_bytes(result) for result in results}) == 1


# --- any clock ---------------------------------------------------------------------------------------------------------


class LinearTimes:
    """Steps that run one after the other, in ns: by their requests, prompt tokens and context."""

    def step_ns(self, shape: StepShape) -> int:
        of = shape.composition
        return 1000 + 50 * of.num_prefill_tokens + 100 * of.num_decode_requests + of.num_context_tokens

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        contexts = range(context_tokens, context_tokens + num_steps * num_decodes, num_decodes)
        return [self.step_ns(StepShape(num_decodes, context, [])) for context in contexts]

    def is_outside(self, step: Composition) -> bool:
        return step.num_decode_requests == 3


def happened(loop: EngineLoop | SchedulerLoop) -> list[list[int]]:
    """Everything a loop tells, once it has run."""
    with registration.quiet():
        loop.run()
    columns = (*loop.history.steps(), *loop.history.tokens(), loop.scheduled_at_ns, loop.num_preemptions)
    return [*(list(map(int, column)) for column in columns), [loop.clock.now_ns, loop.steps_outside_calibration]]


def columns(rows: Sequence[tuple[int, int, int]], unit_ns: int) -> RequestColumns:
    """Requests given as (time since the one before, prompt tokens, decode tokens), numbered from 100."""
    arrivals = list(accumulate(gap * unit_ns for gap, _, _ in rows))
    return RequestColumns(
        range(100, 100 + len(rows)), arrivals, [prompt for _, prompt, _ in rows], [decode for _, _, decode in rows]
    )


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    rows=st.lists(st.tuples(st.integers(0, 60), lengths_of_prompts, st.integers(1, 90)), min_size=1, max_size=30),
    block_size=st.sampled_from([1, 7, 16, 32]),
    num_spare_blocks=st.one_of(st.integers(0, 12), st.just(500)),
    num_null_blocks=st.integers(0, 2),
    max_num_seqs=st.integers(1, 12),
    max_num_batched_tokens=st.one_of(st.integers(1, 8), st.integers(1, 200)),  # also so few that decodes leave a prompt none
    costs=st.none()
    | st.builds(
        LinearCosts,
        host=st.integers(0, 5), device=st.integers(1, 9), tail=st.integers(0, 5), process=st.integers(0, 2),
        per_prefill_token=st.integers(0, 1),
    ),
)  # fmt: skip
def test_every_step_is_vidurs_schedulers_own(
    data: st.DataObject,
    rows: list[tuple[int, int, int]],
    block_size: int,
    num_spare_blocks: int,
    num_null_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    costs: LinearCosts | None,
) -> None:
    largest = max(-(-(prompt + decode - 1) // block_size) for _, prompt, decode in rows)
    num_blocks = largest + num_spare_blocks + num_null_blocks
    limits = Limits(block_size, num_blocks, num_null_blocks, max_num_seqs, max_num_batched_tokens)
    requests = columns(rows, data.draw(st.sampled_from([100, 3000, MS])))

    def clock() -> EngineClock:
        return SynchronousClock(LinearTimes()) if costs is None else AsynchronousClock(costs)

    loop = EngineLoop(requests, limits, clock())
    assert happened(loop) == happened(SchedulerLoop(requests, limits, clock()))
    # Everything was given back.
    assert loop._scheduler.num_free_blocks == num_blocks - num_null_blocks
    assert loop._scheduler.num_running == 0


@pytest.mark.parametrize("costs", [None, LinearCosts(), LinearCosts(host=4, device=1, process=1)])
def test_the_schedulers_steps_with_many_preemptions(costs: LinearCosts | None) -> None:
    requests = columns([(i % 3, 1 + 37 * i % 90, 1 + 53 * i % 120) for i in range(300)], 3000 if costs is None else MS)
    limits = Limits(16, 30, 1, 16, 64)

    def clock() -> EngineClock:
        return SynchronousClock(LinearTimes()) if costs is None else AsynchronousClock(costs)

    loop = EngineLoop(requests, limits, clock())
    assert happened(loop) == happened(SchedulerLoop(requests, limits, clock()))
    assert sum(loop.num_preemptions) > 50


def test_a_request_preempted_while_its_last_step_runs_is_not_computed_again() -> None:
    # Step 4 gives request 101 its last token. Step 5 is formed before that is handed out: request 100 has filled its second block, the four
    # blocks are held, and 101 loses its two. The one left over could hold its prompt.
    requests, limits = columns([(0, 4, 10), (0, 1, 5)], MS), Limits(4, 4, 0, 8, 64)
    loop = EngineLoop(requests, limits, AsynchronousClock(LinearCosts()))
    assert happened(loop) == happened(SchedulerLoop(requests, limits, AsynchronousClock(LinearCosts())))
    assert loop.num_preemptions == [0, 1]
    assert loop.history.steps().num_prefill_tokens.tolist() == [5] + 9 * [0]
    assert loop.history.steps().num_waiting.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


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
        EngineLoop(
            RequestColumns([7, 8], arrivals, prompts, decodes),
            Limits(16, 30, 1, 4, 64),
            AsynchronousClock(LinearCosts()),
        )


def test_requests_that_can_never_be_scheduled_are_told() -> None:
    requests = RequestColumns([7, 8, 9], [0, 0, 5], [10, 500, 1], [3, 1, 1])
    loop = EngineLoop(requests, Limits(16, 30, 1, 4, 64), AsynchronousClock(LinearCosts()))
    with pytest.raises(SimulationError, match=r"2 requests can never be scheduled, the first is request 8\. Raise"):
        loop.run()


def test_three_steps_under_way_are_refused() -> None:
    clock = AsynchronousClock(LinearCosts())
    clock.queue_size = 3
    with pytest.raises(ValueError, match="up to 3 steps under way, expected 1 or 2"):
        EngineLoop(RequestColumns([0], [0], [1], [1]), Limits(16, 30, 1, 4, 64), clock)


# --- the seam ----------------------------------------------------------------------------------------------------------


def test_a_bundle_without_the_terms_is_refused() -> None:
    lengths, intervals = support.workload([(0, 10, 2)])
    with pytest.raises(ProfileError, match=r"overheads.csv: no row of term host .* async_scheduling"):
        simulate(SCENARIO, lengths, intervals, ASYNCHRONOUS, "calibrated", cache_dir=None)


def test_the_event_loop_refuses_asynchronous_scheduling() -> None:
    lengths, intervals = support.workload([(0, 10, 2)])
    with pytest.raises(SimulationError, match=r"simulation.loop is event, .* Set simulation.loop=direct"):
        simulate(limited("event", 30, 8, 64), lengths, intervals, ASYNCHRONOUS, "calibrated", cache_dir=None)


def test_kernels_stay_synchronous() -> None:
    lengths, intervals = support.workload([(0, 10, 2), (1, 20, 5)])
    ahead_bundle, plain = (
        simulate(SCENARIO, lengths, intervals, b, "kernels", cache_dir=None) for b in (ASYNCHRONOUS, BUNDLE)
    )
    assert ahead_bundle.settings["async_scheduling"] is False
    assert support.csv_bytes(ahead_bundle) == support.csv_bytes(plain)
