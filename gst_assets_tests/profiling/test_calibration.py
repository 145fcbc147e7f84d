"""What calibration plays fits the engine, and what it saw becomes the tables it was made of."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.contracts import tables as contract
from gst_assets.errors import EngineError, ProfileError
from gst_assets.profiling import calibration
from gst_assets.profiling.calibration import (
    HEAD_START,
    LADDER,
    TRAFFIC,
    Calibrator,
    Driven,
    Round,
    SeenRequest,
    Stretch,
    ladder_sizes,
)
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.step_costs.terms import Features
from gst_assets.workload.digest import workload_digest
from gst_assets_tests.engine.memory_engine import SETTINGS, MemoryEngine
from gst_assets_tests.profiling.forward_model import Asked, stretch

SCENARIO = load_scenario("smoke")
CAPTURED = SETTINGS.model_copy(update={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]})
GRAPHS = CapturedGraphs(CAPTURED.cudagraph_capture_sizes)


# --- what is played ---------------------------------------------------------------------------------------------------


def test_the_ladder_has_every_graph_every_size_asked_for_and_whole_steps() -> None:
    asked = SCENARIO.profile.calibration_prefill_sizes
    assert ladder_sizes(SCENARIO, SETTINGS) == sorted({*asked, 512, 1024})
    assert ladder_sizes(SCENARIO, CAPTURED) == sorted({1, 2, 4, 8, 16, 32, 64, *asked, 512, 1024})
    short = SETTINGS.model_copy(update={"max_model_len": 512})
    assert ladder_sizes(SCENARIO, short) == sorted(size for size in asked if size < 512)


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_has_a_ladder_that_its_model_takes(name: str) -> None:
    scenario = load_scenario(name)
    engine, model = scenario.engine, scenario.model
    limits = {"max_num_batched_tokens": engine.max_num_batched_tokens, "max_model_len": model.max_model_len}
    sizes = ladder_sizes(scenario, SETTINGS.model_copy(update=limits))
    assert len(sizes) >= 4 and sizes == sorted(set(sizes)) and sizes[-1] < model.max_model_len


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.data())
def test_the_digest_depends_on_every_length_and_arrival(lengths: list[tuple[int, int]], data: st.DataObject) -> None:
    arrivals = data.draw(st.lists(st.integers(0, 10**12), min_size=len(lengths), max_size=len(lengths)))
    place = data.draw(st.integers(0, len(lengths) - 1))
    same = workload_digest(np.array(lengths), np.array(arrivals))
    assert same == workload_digest(lengths, arrivals)
    longer = [*lengths[:place], (lengths[place][0], lengths[place][1] + 1), *lengths[place + 1 :]]
    later = [*arrivals[:place], arrivals[place] + 1, *arrivals[place + 1 :]]
    assert len({same, workload_digest(longer, arrivals), workload_digest(lengths, later)}) == 3


def test_a_stretchs_digest_is_its_workloads_whenever_it_was_played() -> None:
    one = made_round(0).stretches[1]
    lengths = [(request.num_prefill_tokens, request.num_decode_tokens) for request in one.requests]
    begin = one.requests[0].arrival_time_ns
    arrivals = [request.arrival_time_ns - begin for request in one.requests]
    assert one.digest() == workload_digest(lengths, arrivals)
    later = [replace(request, arrival_time_ns=request.arrival_time_ns + 5) for request in one.requests]
    assert replace(one, requests=tuple(later)).digest() == one.digest()


# --- what was seen ----------------------------------------------------------------------------------------------------


def costs(term: str, kind: str, held: Features) -> float:
    """A device that decides how long steps take, but for the prompts of a ladder."""
    if term == "device":
        tokens = GRAPHS.padded(held.prefill_token + held.decode_request)
        return 4e6 + 1e4 * tokens + 10.0 * held.decode_context_token + 2.0 * held.attention_pair
    flat = {"prepare": 4e5, "launch": 6e5, "lead_in": 2e4, "drain": 3e4, "copy_out": 1e5, "process": 2e5, "prepare_after_idle": 1e5}  # fmt: skip
    return flat[term] * (1.5 if kind != "decode" and term in ("prepare", "launch") else 1.0)


def handover_ns(num_prefill_tokens: int) -> int:
    return 500_000 + 1_000 * num_prefill_tokens


def delivery_ns(num_decode_requests: int) -> int:
    return 400_000 + 10_000 * num_decode_requests


def made_stretch(name: str, kind: str, asked: list[Asked], begin_ns: int) -> Stretch:
    return stretch(
        name, kind, asked, costs, GRAPHS, queue_size=2, is_gpu=True, handover_ns=handover_ns, delivery_ns=delivery_ns,
        begin_ns=begin_ns,
    )  # fmt: skip


def made_round(index: int) -> Round:
    """A ladder of lone prompts, and traffic whose busy times begin with one request and go on with more."""
    rng = np.random.default_rng(index)
    begin_ns = 10**9 + index * 10**11
    ladder = [Asked(step, size, 1) for step, size in enumerate((8, 16, 64, 100, 200))]
    flowing, step = [], 0
    for _ in range(12):
        length = int(rng.integers(20, 60))
        flowing.append(Asked(step, int(rng.choice([20, 50, 100])), length))
        flowing += [
            Asked(step + int(later), int(rng.choice([20, 50, 100])), int(rng.integers(2, length - later)))
            for later in sorted(rng.choice(np.arange(3, length - 3), 4, replace=False))
        ]
        step += length
    return Round(
        [
            made_stretch(f"round {index} ladder", LADDER, ladder, begin_ns),
            made_stretch(f"round {index} traffic 5/s", TRAFFIC, flowing, begin_ns + 10**10),
        ]
    )


@pytest.fixture(scope="module")
def driven() -> Driven:
    return Driven([one for index in range(4) for one in made_round(index).stretches], CAPTURED, is_gpu=True)


@pytest.fixture(scope="module")
def made(driven: Driven) -> dict[str, pd.DataFrame]:
    return driven.tables()


def test_a_round_survives_text_and_array_to_the_last_bit() -> None:
    done = made_round(3)
    again = Round.of(done.as_text(), done.as_array())
    for one, other in zip(done.stretches, again.stretches, strict=True):
        assert (one.name, one.kind, one.requests) == (other.name, other.kind, other.requests)
        assert np.array_equal(one.steps, other.steps) and np.array_equal(one.watched, other.watched)
        assert one.digest() == other.digest()


def test_the_tables_keep_the_contract(made: dict[str, pd.DataFrame]) -> None:
    for model in (contract.Overheads, contract.HostSpeed, contract.CalibrationTraffic):
        contract.validate(model, made[model.file_name()], model.file_name())
    assert set(made) == {"overheads.csv", "host_speed.csv", "calibration_traffic.csv"}
    assert list(made["overheads.csv"].columns) == list(calibration.OVERHEAD_COLUMNS)


def test_the_ways_of_a_request_are_those_it_took(made: dict[str, pd.DataFrame]) -> None:
    rows = made["overheads.csv"]
    handover = rows[rows["term"] == "handover"].set_index("position")["ns"]
    for size in (20, 50, 100):
        assert handover[float(size)] == pytest.approx(handover_ns(size), rel=0.01)
    delivery = rows[rows["term"] == "delivery"].set_index("position")["ns"]
    for decodes in (0, 1, 2, 3, 4):
        assert delivery[float(decodes)] == pytest.approx(delivery_ns(decodes), rel=0.01)


def test_only_requests_that_met_an_engine_without_work_tell_the_handover(driven: Driven) -> None:
    """The others wait for the step that is under way. Here all are sent just before their step; those among others must not count."""
    rows, _ = driven._ways()
    handover = [row for row in rows if row["term"] == "handover"]
    alone = sum(
        bool(step[2] and not step[4]) for one in driven.stretches if one.kind == TRAFFIC for step in one.steps
    )  # steps with prompts and no decode
    assert {row["num_samples"] for row in handover} == {alone}


def test_the_trace_of_the_host_is_that_of_the_traffic(driven: Driven, made: dict[str, pd.DataFrame]) -> None:
    table = made["host_speed.csv"]
    flowing = [one for one in driven.stretches if one.kind == TRAFFIC]
    tokens = {(one.name, step) for one in flowing for step in range(len(one.steps))}
    assert (table["part"] == "delivery").sum() == len(tokens)
    busy = sum(int((one.steps[:, 4] > 0).sum()) for one in flowing)
    assert table["part"].isin(["decode", "prefill"]).sum() == busy
    assert table["ratio"].between(0.99, 1.01).all()


def test_the_traffic_is_there_as_its_clients_saw_it(driven: Driven, made: dict[str, pd.DataFrame]) -> None:
    table = made["calibration_traffic.csv"]
    flowing = [one for one in driven.stretches if one.kind == TRAFFIC]
    assert table["stretch"].unique().tolist() == [one.name for one in flowing]
    assert len(table) == sum(len(one.requests) for one in flowing)
    first = flowing[0]
    for number in (0, 3):
        row, request = table.iloc[number], first.requests[number]
        assert row["request_id"] == number
        assert row["arrival_time_ns"] == request.arrival_time_ns - first.requests[0].arrival_time_ns
        assert row["ttft_ns"] == request.token_times_ns[0] - request.arrival_time_ns
        assert row["e2e_ns"] == request.token_times_ns[-1] - request.arrival_time_ns
        assert row["itl_p50_ns"] == round(np.median(np.diff(request.token_times_ns)))
    assert not {LADDER, HEAD_START} & set(table["stretch"])


def test_a_request_with_one_token_has_no_gaps() -> None:
    asked = [Asked(0, 20, 1), Asked(1, 20, 3)]
    one = made_stretch("round 0 traffic 5/s", TRAFFIC, asked, 10**9)
    table = Driven([one], CAPTURED, is_gpu=True)._traffic_table([one])
    contract.validate(contract.CalibrationTraffic, table, "calibration_traffic.csv")
    assert table["itl_p50_ns"].isna().tolist() == table["itl_p90_ns"].isna().tolist() == [True, False]


def test_digests_are_by_the_name_of_the_stretch(driven: Driven) -> None:
    assert driven.digests() == {one.name: one.digest() for one in driven.stretches}
    assert len(set(driven.digests().values())) == 4 + 1  # the ladders are one workload, traffic another in each round


# --- refusals ---------------------------------------------------------------------------------------------------------


def lone(tokens: int, first_ns: int, last_ns: int) -> SeenRequest:
    return SeenRequest(30, tokens, 0, 0, tuple(range(1, tokens + 1)), first_ns, last_ns)


def test_a_requests_first_step_is_found_by_the_engines_stamps() -> None:
    one = made_round(0).stretches[1]
    for request in one.requests:
        step = calibration._step_of(request, one)
        assert one.steps[step, calibration.IterationField.COMPLETION_NS] == request.first_token_ns
        # vLLM's stamps are float seconds: up to a microsecond off.
        rounded = replace(
            request, first_token_ns=request.first_token_ns - 900, last_token_ns=request.last_token_ns + 900
        )
        assert calibration._step_of(rounded, one) == step


@pytest.mark.parametrize(("index", "change"), [(0, 1), (0, -1), (2, 1)])
def test_a_request_that_missed_a_step_or_lost_one_is_an_error(index: int, change: int) -> None:
    one = made_round(0).stretches[1]
    request = one.requests[index]
    wrong = replace(request, num_decode_tokens=request.num_decode_tokens + change)
    message = (
        rf"calibration round 0 traffic 5/s: a request with {wrong.num_decode_tokens} tokens took {request.num_decode_tokens} recorded engine steps\. "
        r".*give the engine more KV blocks \(engine\.num_kv_blocks\)"
    )
    with pytest.raises(ProfileError, match=message):
        calibration._step_of(wrong, one)
    broken = replace(one, requests=(*one.requests[:index], wrong, *one.requests[index + 1 :]))
    with pytest.raises(ProfileError, match="Steps were lost or the request was preempted"):
        Driven([broken], CAPTURED, is_gpu=True)._ways()


def test_a_token_after_the_last_recorded_step_is_an_error() -> None:
    one = made_round(0).stretches[1]
    end_ns = int(one.steps[-1, calibration.IterationField.COMPLETION_NS])
    with pytest.raises(ProfileError, match="recorded engine steps"):
        calibration._step_of(lone(2, end_ns, end_ns + 10**6), one)


def test_ways_that_were_hardly_seen_are_an_error() -> None:
    one = made_stretch("round 0 traffic 5/s", TRAFFIC, [Asked(0, 20, 30)], 10**9)
    with pytest.raises(
        ProfileError, match=r"overheads\.csv: handover seen fewer than 4 times .*profile\.traffic_rates_per_s"
    ):
        Driven([one], CAPTURED, is_gpu=True)._ways()


def test_records_of_one_stretch_that_disagree_are_named() -> None:
    done = made_round(0).stretches
    broken = replace(done[1], watched=done[1].watched[:-1])
    with pytest.raises(ProfileError, match="or not the same ones"):
        Driven([done[0], broken], CAPTURED, is_gpu=True).watched()


# --- driving ----------------------------------------------------------------------------------------------------------


def test_a_lone_prompt_is_sent_when_the_one_before_is_done() -> None:
    engine = MemoryEngine()
    seen = asyncio.run(Calibrator(engine, SCENARIO, is_gpu=False)._play_ladder(2))  # type: ignore[arg-type]
    assert [request.num_prefill_tokens for request in seen] == ladder_sizes(SCENARIO, SETTINGS)
    assert [name for what, name in engine.log if what == "begin"] == [f"ladder-2-{n}" for n in range(len(seen))]
    assert [what for what, _ in engine.log] == ["begin", "end"] * len(seen)
    for one, following in itertools.pairwise(seen):
        assert one.send_ns < one.token_times_ns[0] == one.first_token_ns <= following.send_ns


def test_an_engine_that_stalls_or_fails_ends_the_calibration() -> None:
    impatient = load_scenario("smoke", ["replay.request_timeout_s=0.05"])

    def play(engine: MemoryEngine) -> None:
        calibrator = Calibrator(engine, impatient, is_gpu=False)  # type: ignore[arg-type]
        asyncio.run(asyncio.wait_for(calibrator._play_ladder(0), 20))

    with pytest.raises(
        ProfileError,
        match=r"calibration ladder: a prompt of 16 tokens had no token after replay\.request_timeout_s 0\.05 s",
    ):
        play(MemoryEngine(hang={"ladder-0-1"}))
    engine = MemoryEngine()
    engine.died.set()
    with pytest.raises(EngineError, match="dead already"):
        play(engine)
