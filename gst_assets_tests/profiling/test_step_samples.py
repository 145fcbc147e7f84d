"""Steps made of known parts: every part is read off their records again, whoever of host and device decides how long
they take."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts import tables as contract
from gst_assets.engine.protocol import IterationField
from gst_assets.errors import ProfileError
from gst_assets.profiling.step_samples import WatchedSteps, host_speed, of_all_ranks, step_rows
from gst_assets.profiling.term_fit import MIN_SAMPLES
from gst_assets.profiling.worker_steps import StepField
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.step_costs.terms import REREAD, Features, Terms
from gst_assets_tests.profiling.forward_model import Made, play

GRAPHS = CapturedGraphs([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
BATCHES = (1, 2, 3, 5, 8, 13, 21, 34, 55)
HEAD_START_NS = 60_000_000
HANDICAP = 1.5
"""How much slower the host of the steps with a head start is: they must not enter its terms."""


class Engine(NamedTuple):
    """Who decides how long steps take: factors on the device's time of steps with prompts, and on their launch."""

    device: float
    launch: float
    queue_size: int
    is_gpu: bool = True
    has_own_workers: bool = False

    def graphs(self) -> CapturedGraphs:
        return GRAPHS if self.is_gpu else CapturedGraphs(())

    def costs(self, term: str, kind: str, held: Features) -> float:
        """The truth."""
        prompts = kind != "decode"
        requests = held.prefill_request + held.decode_request
        match term:
            case "prepare":
                work = 3e5 * held.prefill_request + 1e3 * held.prefill_token + 4e3 * held.decode_request
                return 9e5 + work if prompts else 4e5 + 2e3 * held.decode_request
            case "launch":
                base = {"decode": 1.5e5, "mixed": 3e6, "mixed_eager": 8e6}[kind]
                return base + (self.launch * base + 1e5 * held.prefill_request if prompts else 0.0)
            case "lead_in":
                return (2e4 if prompts else 1e4) if self.is_gpu else 0.0
            case "device":
                tokens = self.graphs().padded(held.prefill_token + held.decode_request)
                if not prompts:
                    context = (20.0 + tokens / 8) * held.decode_context_token
                    context += (8.0 + tokens / 16) * held.reread_context_token
                    return 3e6 + 2e4 * tokens + context + 4e5 * held.warmth
                more = 1e5 * held.prefill_request + 5e3 * held.decode_request + 30.0 * held.decode_context_token
                more += 12.0 * held.reread_context_token
                return self.device * (1e6 + 1e4 * tokens + more + 4.0 * held.attention_pair)
            case "drain":
                return 3e4
            case "copy_out":
                return 1.2e5 + 5e2 * requests
            case "process":
                return 1.5e5 + 5e2 * requests
            case "form":
                return 2e5 + 1e3 * requests
            case "launch_after_idle":
                return 0.0
        assert term == "prepare_after_idle"
        return 2e5


ENGINES = {
    "device_bound": Engine(device=4.0, launch=0.0, queue_size=2),
    "host_bound": Engine(device=0.2, launch=2.0, queue_size=2),
    "mixed": Engine(device=1.0, launch=0.5, queue_size=2),
    "synchronous": Engine(device=1.0, launch=0.5, queue_size=1),
    "workers": Engine(device=1.0, launch=2.0, queue_size=2, has_own_workers=True),
    "cpu": Engine(device=4.0, launch=0.0, queue_size=1, is_gpu=False),
}
by_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def traffic(rng: np.random.Generator, number: int, *, head_start: bool = False, slow: bool = True) -> list[Made]:
    """Busy times of some ten steps: prompts first, then decodes with prompts among them. A tenth of the steps meets a
    slow host."""
    made: list[Made] = []
    while len(made) < number:
        for place in range(int(rng.integers(6, 16))):
            decodes = int(rng.choice(BATCHES)) if place else 0
            has_prompt = place == 0 or rng.random() < 0.4
            chunks: list[tuple[int, int]] = []
            if has_prompt:
                # Past the captured graphs of a few sizes, as where most chunks fill the step.
                tokens = int(rng.choice([700, 1100, 2048])) if rng.random() < 0.4 else int(2 ** rng.uniform(2, 9))
                tokens = max(tokens - decodes, 4)
                count = int(rng.integers(1, 4))
                sizes = [tokens // count] * (count - 1) + [tokens - tokens // count * (count - 1)]
                chunks = [(int(rng.choice([0, 0, 2048])), size) for size in sizes]
            slowness = HANDICAP if head_start and chunks else 1.0
            if slow and rng.random() < 0.1:
                slowness *= rng.uniform(1.3, 4.0)
            sleep = HEAD_START_NS if head_start and chunks else 0
            shape = StepShape(decodes, decodes * int(rng.integers(20, 3000)), chunks)
            made.append(Made(shape, place == 0, slowness, sleep))
    return made


def sharing(number: int, *, slow: bool = True) -> list[Made]:
    """Traffic of decodes that share up to four fifths of their context. Batches of up to five share nothing, as where
    few requests meet."""
    rng = np.random.default_rng(3)

    def shared(shape: StepShape) -> StepShape:
        most = 0.8 * shape.decode_context_tokens if shape.num_decodes > 5 else 0.0
        return shape._replace(reread_context_tokens=int(rng.uniform(0, most)))

    return [one._replace(shape=shared(one.shape)) for one in traffic(rng, number, slow=slow)]


def recorded(engine: Engine, made: list[Made], begin_ns: int = 10**9) -> tuple[np.ndarray, np.ndarray]:
    """What both records hold of an engine that plays these steps."""
    return play(
        made,
        engine.costs,
        engine.graphs(),
        queue_size=engine.queue_size,
        is_gpu=engine.is_gpu,
        begin_ns=begin_ns,
        has_own_workers=engine.has_own_workers,
    )


def watched_steps(engine: Engine, steps: np.ndarray, rows: np.ndarray) -> WatchedSteps:
    """These records of the engine."""
    return WatchedSteps(steps, rows, engine.graphs(), is_gpu=engine.is_gpu, has_own_workers=engine.has_own_workers)


@cache
def watched(engine: Engine, number: int = 2500) -> WatchedSteps:
    """Traffic, and on a GPU as much with a head start, as a calibration plays them."""
    rng = np.random.default_rng(0)
    stretches = [traffic(rng, number)]
    if engine.is_gpu:
        stretches.append(traffic(rng, number, head_start=True))
    records, begin_ns = [], 10**9
    for made in stretches:
        steps, rows = recorded(engine, made, begin_ns)
        begin_ns = int(steps[-1, IterationField.COMPLETION_NS]) + 10**8
        records.append((steps, rows))
    steps, rows = (np.concatenate(parts) for parts in zip(*records, strict=True))
    return watched_steps(engine, steps, rows)


def rows_of(steps: WatchedSteps) -> list[dict[str, Any]]:
    """With what ran ahead of a sleeping device taken for no traffic."""
    return step_rows(steps, ~steps.has_head_start)


# --- recovery ---------------------------------------------------------------------------------------------------------


@by_engine
def test_every_term_is_recovered(engine: Engine) -> None:
    """Each read at every step, and what the step was made of."""
    steps = watched(engine)
    rows = rows_of(steps)
    terms = Terms(pd.DataFrame(rows), steps.graphs, "overheads.csv")
    kinds = ("decode", "mixed", "mixed_eager") if engine.is_gpu else ("decode", "mixed")
    assert set(steps.kinds.tolist()) == set(kinds)
    shown = {(row["term"], row["step_kind"]) for row in rows}
    wanted = [("prepare", kind) for kind in kinds] + [("device", kind) for kind in kinds]
    wanted += [
        ("copy_out", "any"),
        ("process", "any"),
        ("prepare_after_idle", "any"),
        ("lead_in", "decode"),
        ("lead_in", "mixed"),
    ]
    wanted += [("launch", kind) for kind in kinds]
    wanted += [("form", "any")] if engine.has_own_workers else []
    assert engine.has_own_workers == (("form", "any") in shown)
    assert set(wanted) <= shown
    for term, kind in wanted:
        if term == "launch" and not engine.is_gpu:
            assert {row["ns"] for row in rows if row["term"] == "launch"} == {0.0}
            continue
        for index in range(0, len(steps), 7):
            own, held = str(steps.kinds[index]), steps.features[index]
            if kind in (own, "any"):
                found, truth = terms.step_ns(term, own, held), engine.costs(term, own, held)
                assert found == pytest.approx(truth, rel=0.02), (term, own, held)


@by_engine
def test_the_slopes_are_those_planted(engine: Engine) -> None:
    frame = pd.DataFrame(rows_of(watched(engine)))
    slope = frame.set_index(["term", "step_kind", "feature", "position"])["ns"]
    assert slope["prepare", "mixed", "prefill_request", 0.0] == pytest.approx(3e5, rel=0.02)
    assert slope["prepare", "mixed", "prefill_token", 0.0] == pytest.approx(1e3, rel=0.02)
    assert slope["device", "mixed", "attention_pair", 0.0] == pytest.approx(4 * engine.device, rel=0.05)
    assert slope["device", "decode", "decode_context_token", 64.0] == pytest.approx(
        20 + (64 if engine.is_gpu else 55) / 8, rel=0.05
    )


def test_context_that_decodes_share_has_slopes_of_its_own_where_any_is_shared() -> None:
    engine = ENGINES["mixed"]
    records = play(sharing(5000), engine.costs, GRAPHS, queue_size=2, is_gpu=True)
    frame = pd.DataFrame(rows_of(WatchedSteps(*records, GRAPHS, is_gpu=True)))
    device = frame[frame["term"] == "device"].set_index(["step_kind", "feature", "position"])["ns"]
    for position in (16.0, 64.0):
        assert device["decode", REREAD, position] == pytest.approx(8 + position / 16, rel=0.1)
        assert device["decode", "decode_context_token", position] == pytest.approx(20 + position / 8, rel=0.05)
    assert device["mixed", REREAD, 0.0] == pytest.approx(12, rel=0.1)
    assert device["mixed", "decode_context_token", 0.0] == pytest.approx(30, rel=0.05)
    assert min(device.loc["decode", REREAD].index) == 8.0  # no slope of batches that shared nothing
    terms = Terms(frame, GRAPHS, "overheads.csv")
    few = Features(0, 0, 2, 1000, 0)
    saved = terms.step_ns("device", "decode", few._replace(decode_context_token=2000)) - terms.step_ns(
        "device", "decode", few._replace(reread_context_token=1000)
    )
    assert saved == pytest.approx(1000 * (20 + 2 / 8 - 8 - 8 / 16), rel=0.1)


def test_where_nothing_was_shared_reading_again_costs_what_reading_costs() -> None:
    frame = pd.DataFrame(rows_of(watched(ENGINES["mixed"])))
    assert REREAD not in set(frame["feature"])
    terms = Terms(frame, GRAPHS, "overheads.csv")
    for kind in ("decode", "mixed", "mixed_eager"):
        held = Features(0 if kind == "decode" else 1, 0 if kind == "decode" else 600, 8, 4000, 0)
        shared = held._replace(decode_context_token=1000, reread_context_token=3000)
        assert terms.step_ns("device", kind, shared) == pytest.approx(terms.step_ns("device", kind, held), rel=1e-12)


@pytest.mark.parametrize("name", ["host_bound", "mixed", "synchronous"])
def test_the_drain_is_that_of_steps_whose_device_was_not_behind(name: str) -> None:
    rows = rows_of(watched(ENGINES[name]))
    found = {row["step_kind"]: row["ns"] for row in rows if row["term"] == "drain"}
    assert set(found) == {"decode", "mixed", "mixed_eager"}
    assert found["mixed_eager"] == pytest.approx(3e4, rel=0.02)


def test_a_device_that_is_always_behind_has_no_drain() -> None:
    rows = rows_of(watched(ENGINES["device_bound"]))
    drains = [row for row in rows if row["term"] == "drain" and row["step_kind"] == "decode"]
    assert [(row["ns"], row["num_samples"]) for row in drains] == [(0.0, 0)]


def test_what_a_waiting_device_or_a_launch_makes_longer_is_no_sample_of_the_device() -> None:
    """A host-bound step ends with its launch on the device: its length there says nothing of the device."""
    engine = ENGINES["host_bound"]
    steps = watched(engine)
    for kind in ("mixed", "mixed_eager"):
        places, ns = steps.samples()["device", kind]
        truth = np.array([engine.costs("device", kind, steps.features[n]) for n in places.tolist()])
        assert len(places) > 100
        assert np.allclose(ns, truth, rtol=0, atol=1)
        assert steps.has_head_start[places].all()


@by_engine
def test_head_starts_tell_the_device_and_nothing_else(engine: Engine) -> None:
    steps = watched(engine)
    for (term, _), (places, _) in steps.samples().items():
        if term in ("prepare", "launch", "lead_in", "drain"):
            assert not steps.has_head_start[places].any(), term
    if engine.is_gpu:
        assert steps.has_head_start.sum() > 500


@by_engine
def test_the_parts_of_single_steps_are_exact(engine: Engine) -> None:
    """With a host that is never slow, each sample is the truth itself."""
    made = traffic(np.random.default_rng(5), 600, slow=False)
    steps = watched_steps(engine, *recorded(engine, made))
    seen = steps.samples()
    own = ("form",) if engine.has_own_workers else ()
    assert ("form", "any") in seen or not own
    for term in ("prepare", "launch", "copy_out", "process", "lead_in", *own):
        parts = [(places, ns) for (name, _), (places, ns) in seen.items() if name == term]
        assert sum(len(places) for places, _ in parts) > 20, term
        for places, ns in parts:
            if term == "launch" and not engine.is_gpu:
                assert not ns.any()
                continue
            truth = [engine.costs(term, str(steps.kinds[n]), steps.features[n]) for n in places.tolist()]
            exact = np.isclose(ns, truth, rtol=0, atol=2)
            # The last tokens before an idle time may meet a host that still processes those before them.
            least = 0.95 if term == "copy_out" and engine.queue_size > 1 else 1.0
            assert exact.mean() >= least and (ns >= np.array(truth) - 2).all(), term


def test_after_idle_is_what_the_first_step_of_new_requests_takes_more() -> None:
    for engine in ENGINES.values():
        steps = watched(engine)
        first = steps.is_after_idle
        assert (steps.held[first, 2] == 0).all() and first.sum() > 100
        found = {row["step_kind"]: row["ns"] for row in rows_of(steps) if row["term"] == "prepare_after_idle"}
        assert found["any"] == pytest.approx(2e5, rel=0.02)


def test_idle_times_that_met_a_slow_host_are_set_beside_its_speed() -> None:
    """Two of three busy times run on a host at half its speed. They are short, so that most steps after idle meet it
    and most others do not."""
    engine, rng = ENGINES["device_bound"], np.random.default_rng(4)
    made: list[Made] = []
    for number in range(240):
        slowness, length = (2.0, 2) if number % 3 else (1.0, 20)
        sizes = [*(int(2 ** rng.uniform(3, 9)) for _ in range(length)), 700]
        prompts = [Made(StepShape(int(rng.integers(1, 20)), 2000, [(0, size)]), False, slowness) for size in sizes]
        decodes = [Made(StepShape(int(rng.choice(BATCHES)), 2000, ()), False, slowness) for _ in range(4 * length)]
        made += [Made(StepShape(0, 0, [(0, sizes[0])]), True, slowness), *prompts, *decodes]
    steps, rows = play(made, engine.costs, engine.graphs(), queue_size=engine.queue_size, is_gpu=engine.is_gpu)
    # Busy times some seconds apart: a host keeps its speed for about a second.
    apart_ns = np.cumsum([5 * 10**9 if one.is_after_idle else 0 for one in made])[:, None]
    moments = [
        IterationField.SCHEDULED_NS,
        IterationField.OUTPUT_NS,
        IterationField.COMPLETION_NS,
        IterationField.LAUNCHED_NS,
    ]
    steps[:, moments] += apart_ns
    rows[:, : StepField.HEAD_START_NS] += apart_ns
    found = rows_of(WatchedSteps(steps, rows, engine.graphs(), is_gpu=engine.is_gpu))
    after_idle = {row["step_kind"]: row["ns"] for row in found if row["term"] == "prepare_after_idle"}
    assert after_idle["any"] == pytest.approx(2e5, rel=0.05)


def test_what_watching_takes_is_no_part_of_the_launch() -> None:
    engine = ENGINES["host_bound"]
    made = traffic(np.random.default_rng(5), 600, slow=False)
    records = play(made, engine.costs, GRAPHS, queue_size=2, is_gpu=True, watching_ns=90_000)
    steps = WatchedSteps(*records, GRAPHS, is_gpu=True)
    for kind in ("decode", "mixed", "mixed_eager"):
        places, ns = steps.samples()["launch", kind]
        assert np.allclose(
            ns, [engine.costs("launch", kind, steps.features[n]) for n in places.tolist()], rtol=0, atol=1
        )


@by_engine
def test_too_few_idle_times_in_traffic_are_made_up_for_by_the_others(engine: Engine) -> None:
    steps = watched(engine)
    idle = steps.is_after_idle
    for number, expected in ((MIN_SAMPLES, MIN_SAMPLES), (MIN_SAMPLES - 1, int(idle.sum()))):
        is_serving = np.zeros(len(steps), dtype=bool)
        is_serving[np.flatnonzero(idle)[:number]] = True
        rows = step_rows(steps, is_serving)
        assert {
            row["num_samples"] for row in rows if (row["term"], row["step_kind"]) == ("prepare_after_idle", "any")
        } == {expected}


def test_process_ends_with_the_next_step_while_requests_go_on() -> None:
    engine = ENGINES["mixed"]
    steps = watched(engine)
    places, _ = steps.samples()["process", "any"]
    # The step after the last one of a busy time comes after it: nothing followed from its tokens.
    before_idle = np.flatnonzero(steps.is_after_idle) - 1
    assert not set(before_idle.tolist()) & set(places.tolist())


# --- refusals ---------------------------------------------------------------------------------------------------------


def records(number: int = 40) -> tuple[np.ndarray, np.ndarray]:
    engine = ENGINES["mixed"]
    return play(traffic(np.random.default_rng(3), number), engine.costs, GRAPHS, queue_size=2, is_gpu=True)


@pytest.mark.parametrize("lost", [0, 17, -1])
def test_records_of_other_steps_are_refused(lost: int) -> None:
    steps, rows = records()
    WatchedSteps(steps, rows, GRAPHS, is_gpu=True)
    message = (
        rf"the engine recorded {len(steps)} steps and its worker {len(steps) - 1}, .* Nothing else may use the engine"
    )
    with pytest.raises(ProfileError, match=message):
        WatchedSteps(steps, np.delete(rows, lost, axis=0), GRAPHS, is_gpu=True)
    with pytest.raises(ProfileError, match="or not the same ones"):  # as many, of another moment
        WatchedSteps(steps, np.concatenate([rows[5:], rows[:5]]), GRAPHS, is_gpu=True)
    late = rows.copy()
    late[lost, StepField.BEGUN_NS] = steps[lost, IterationField.OUTPUT_NS] + 1
    with pytest.raises(ProfileError, match="or not the same ones"):
        WatchedSteps(steps, late, GRAPHS, is_gpu=True)


def test_a_part_that_was_hardly_seen_is_an_error() -> None:
    engine = ENGINES["mixed"]
    decodes = [Made(StepShape(0, 0, [(0, 8)]), is_after_idle=True), *[Made(StepShape(1, 50, ()))] * 40]
    steps = WatchedSteps(*play(decodes, engine.costs, GRAPHS, queue_size=2, is_gpu=True), GRAPHS, is_gpu=True)
    with pytest.raises(
        ProfileError,
        match=r"overheads\.csv: .*prepare of mixed steps.* seen fewer than 4 times .*profile\.traffic_rates_per_s",
    ):
        rows_of(steps)


# --- speed of the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "cpu"])
def test_the_trace_holds_each_busy_steps_slowness_in_order(name: str) -> None:
    engine = ENGINES[name]
    steps = watched(engine)
    rows = rows_of(steps)
    made = traffic(np.random.default_rng(8), 200)
    played = WatchedSteps(
        *play(made, engine.costs, engine.graphs(), queue_size=engine.queue_size, is_gpu=engine.is_gpu),
        engine.graphs(),
        is_gpu=engine.is_gpu,
    )
    deliveries = (played.output_ns[:3], np.array([1.5, 0.9, 0.0]))
    table = contract.validate(contract.HostSpeed, host_speed([played], [deliveries], rows, 500_000), "host_speed.csv")
    on_host = table[table["part"] != "delivery"]
    busy = [step for step in made if not step.is_after_idle]
    assert on_host["part"].tolist() == ["prefill" if step.shape.chunks else "decode" for step in busy]
    assert on_host["ratio"].to_numpy() == pytest.approx(np.array([step.slowness for step in busy]), rel=0.02)
    assert table.loc[table["part"] == "delivery", "ratio"].tolist() == [1.5, 0.9, 0.001]
    gaps = table["time_ns"].diff().dropna().astype(int)
    assert table["time_ns"].iloc[0] == 0 and gaps.max() == 500_000


def test_steps_of_several_ranks_begin_with_the_last_and_end_with_rank_0() -> None:
    #        begun, forward, launched, device begun, device ended, head start, watching
    first = [[100, 110, 150, 120, 200, 7, 3]]
    second = [[101, 105, 160, 125, 190, 7, 9]]
    assert of_all_ranks([first], is_gpu=True).tolist() == first
    # Watching is that of the rank that launched last: 160 - 9 is when it would have, 160 - 3 is nobody's moment.
    assert of_all_ranks([first, second], is_gpu=True).tolist() == [[101, 110, 160, 125, 200, 7, 9]]
    assert of_all_ranks([first, second], is_gpu=False).tolist() == [[101, 110, 150, 125, 200, 7, 9]]
    assert of_all_ranks([[], []], is_gpu=True).shape == (0, len(first[0]))
    with pytest.raises(ProfileError, match="workers ran 1, 0 steps"):
        of_all_ranks([first, []], is_gpu=True)
