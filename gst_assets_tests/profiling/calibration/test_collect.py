"""What calibration saw becomes the tables it was made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts import tables as contract
from gst_assets.engine.protocol import IterationField
from gst_assets.errors import ProfileError
from gst_assets.profiling.calibration import (
    HEAD_START,
    LADDER,
    TRAFFIC,
    SeenRequest,
)
from gst_assets.profiling.calibration.collect import OVERHEAD_COLUMNS, Driven, step_of
from gst_assets_tests.profiling.calibration.made_rounds import (
    CAPTURED,
    delivery_ns,
    handover_ns,
    made_round,
    made_stretch,
)
from gst_assets_tests.profiling.forward_model import Asked


@pytest.fixture(scope="module")
def driven() -> Driven:
    return Driven([one for index in range(4) for one in made_round(index).stretches], CAPTURED, is_gpu=True)


@pytest.fixture(scope="module")
def made(driven: Driven) -> dict[str, pd.DataFrame]:
    return driven.tables()


def test_the_tables_keep_the_contract(made: dict[str, pd.DataFrame]) -> None:
    for model in (contract.Overheads, contract.HostSpeed, contract.CalibrationTraffic):
        contract.validate(model, made[model.file_name()], model.file_name())
    assert set(made) == {"overheads.csv", "host_speed.csv", "calibration_traffic.csv"}
    assert list(made["overheads.csv"].columns) == list(OVERHEAD_COLUMNS)


def test_the_ways_of_a_request_are_those_it_took(made: dict[str, pd.DataFrame]) -> None:
    rows = made["overheads.csv"]
    handover = rows[rows["term"] == "handover"].set_index("position")["ns"]
    for size in (20, 50, 100):
        assert handover[float(size)] == pytest.approx(handover_ns(size), rel=0.01)
    delivery = rows[rows["term"] == "delivery"].set_index("position")["ns"]
    for decodes in (0, 1, 2, 3, 4):
        assert delivery[float(decodes)] == pytest.approx(delivery_ns(decodes), rel=0.01)


def test_only_requests_that_met_an_engine_without_work_tell_the_handover(driven: Driven) -> None:
    """The others wait for the step that is under way. Here all are sent just before their step; those among others must
    not count."""
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


def lone(tokens: int, first_ns: int, last_ns: int) -> SeenRequest:
    return SeenRequest(30, tokens, 0, 0, tuple(range(1, tokens + 1)), first_ns, last_ns)


def test_a_requests_first_step_is_found_by_the_engines_stamps() -> None:
    one = made_round(0).stretches[1]
    for request in one.requests:
        step = step_of(request, one)
        assert one.steps[step, IterationField.COMPLETION_NS] == request.first_token_ns
        # vLLM's stamps are float seconds: up to a microsecond off.
        rounded = replace(
            request, first_token_ns=request.first_token_ns - 900, last_token_ns=request.last_token_ns + 900
        )
        assert step_of(rounded, one) == step


@pytest.mark.parametrize(("index", "change"), [(0, 1), (0, -1), (2, 1)])
def test_a_request_that_missed_a_step_or_lost_one_is_an_error(index: int, change: int) -> None:
    one = made_round(0).stretches[1]
    request = one.requests[index]
    wrong = replace(request, num_decode_tokens=request.num_decode_tokens + change)
    message = (
        rf"calibration round 0 traffic 5/s: a request with {wrong.num_decode_tokens} tokens took"
        rf" {request.num_decode_tokens} recorded engine steps\. "
        r".*give the engine more KV blocks \(engine\.num_kv_blocks\)"
    )
    with pytest.raises(ProfileError, match=message):
        step_of(wrong, one)
    broken = replace(one, requests=(*one.requests[:index], wrong, *one.requests[index + 1 :]))
    with pytest.raises(ProfileError, match="Steps were lost or the request was preempted"):
        Driven([broken], CAPTURED, is_gpu=True)._ways()


def test_a_token_after_the_last_recorded_step_is_an_error() -> None:
    one = made_round(0).stretches[1]
    end_ns = int(one.steps[-1, IterationField.COMPLETION_NS])
    with pytest.raises(ProfileError, match="recorded engine steps"):
        step_of(lone(2, end_ns, end_ns + 10**6), one)


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
