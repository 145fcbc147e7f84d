"""Recorded replays become tables that the contract's models accept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts import tables
from gst_assets.engine import metric_rows
from gst_assets.engine.protocol import EngineRequest, IterationField, RequestTimes
from gst_assets.engine.replay import PlannedRequest, ReplayResult, RequestResult
from gst_assets.errors import ContractError

START = 7_000_000_000


@st.composite
def replays(draw: st.DrawFn) -> ReplayResult:
    """Any mixture of finished, early-stopped, failed and never-sent requests."""
    planned, results, arrival = [], [], 0
    for index in range(draw(st.integers(1, 8))):
        arrival += draw(st.integers(0, 10**9))
        asked = draw(st.integers(1, 6))
        planned.append(
            PlannedRequest(EngineRequest(str(index), [1] * draw(st.integers(1, 9)), asked, 0), arrival, f"NA{index}")
        )
        result = RequestResult()
        if draw(st.booleans()):
            result.send_ns = START + arrival + draw(st.integers(0, 10**6))
            gaps = draw(st.lists(st.integers(0, 10**7), min_size=1, max_size=asked))
            result.token_times_ns = (result.send_ns + np.cumsum(gaps)).tolist()
            result.token_ids = draw(st.lists(st.integers(0, 8191), min_size=len(gaps), max_size=len(gaps)))
            known = draw(st.booleans())
            cached = draw(st.none() | st.integers(0, len(planned[-1].request.prompt_token_ids) - 1))
            stamped = RequestTimes(scheduled_ns=result.send_ns, num_preemptions=1, num_cached_tokens=cached)
            result.times = stamped if known else None
        if not result.token_ids or draw(st.booleans()):
            result.fail("EngineError", "broke, with a comma\nand a line end")
        results.append(result)
    return ReplayResult(planned, results, START, START + 10**12, None)


@settings(deadline=None, max_examples=60)
@given(replays())
def test_every_replay_gives_tables_the_contract_accepts(played: ReplayResult) -> None:
    requests, tokens = metric_rows.request_metrics(played, "memory"), metric_rows.token_metrics(played)
    tables.validate(tables.RequestMetrics, requests, "requests")
    tables.validate(tables.TokenMetrics, tokens, "tokens")
    tables.check_run_tables(requests, tokens, "run")
    required, optional = tables.RequestMetrics.column_types()
    told = any(result.times and result.times.num_cached_tokens is not None for result in played.results)
    # The first two are of imported runs, the others of closed loops.
    turns = {"previous_request_id", "workload_arrival_time_ns"}
    absent = {"source_request_id", "queued_time_ns", *turns, *(() if told else ("num_cached_tokens",))}
    assert list(requests.columns) == [name for name in (*required, *optional) if name not in absent]
    assert len(tokens) == sum(len(result.token_ids) for result in played.results)


@settings(deadline=None, max_examples=20)
@given(played=replays())
def test_tables_survive_the_files(played: ReplayResult, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    for model, frame in (
        (tables.RequestMetrics, metric_rows.request_metrics(played, "memory")),
        (tables.TokenMetrics, metric_rows.token_metrics(played)),
    ):
        path = tables.write_table(model, frame, folder)
        pd.testing.assert_frame_equal(tables.read_table(model, path), frame)


def _played(tokens: int = 3) -> ReplayResult:
    item = PlannedRequest(EngineRequest("0", [1, 2], tokens, 0), 10, "p")
    times = [START + 100 * (index + 1) for index in range(tokens)]
    result = RequestResult(send_ns=START + 15, token_times_ns=times, token_ids=list(range(tokens)))
    return ReplayResult([item], [result], START, START + 10_000, None)


def test_cached_tokens_stand_in_a_column_of_their_own_where_the_engine_tells_them() -> None:
    played = _played()
    assert "num_cached_tokens" not in metric_rows.request_metrics(played, "memory")
    played.results[0].times = RequestTimes(num_cached_tokens=0)
    table = metric_rows.request_metrics(played, "memory")
    assert list(table.columns)[-1] == "num_cached_tokens" and table["num_cached_tokens"].tolist() == [0]
    played.results[0].times = RequestTimes(num_cached_tokens=3)  # of a prompt of two tokens
    with pytest.raises(ContractError, match="num_cached_tokens must not exceed num_prefill_tokens"):
        tables.validate(tables.RequestMetrics, metric_rows.request_metrics(played, "memory"), "requests")


def test_times_are_relative_to_run_start_and_lateness_to_the_intended_arrival() -> None:
    played = _played()
    row = metric_rows.request_metrics(played, "memory").iloc[0]
    assert (row["arrival_time_ns"], row["send_time_ns"]) == (10, 15)
    assert (row["first_token_time_ns"], row["ttft_ns"], row["completion_time_ns"]) == (100, 90, 300)
    assert metric_rows.token_metrics(played)["token_latency_ns"].tolist() == [0, 100, 100]
    assert metric_rows.lateness_ns(played) == {"p50": 5, "p99": 5, "max": 5}


def _step(scheduled: int, prefill: int, decode: int) -> list[int]:
    row = [0] * len(IterationField)
    row[IterationField.SCHEDULED_NS], row[IterationField.COMPLETION_NS] = START + scheduled, START + scheduled + 50
    row[IterationField.PREFILL_REQUESTS], row[IterationField.DECODE_REQUESTS] = prefill, decode
    row[IterationField.PREFILL_TOKENS] = 2 * prefill
    row[IterationField.CONTEXT_TOKENS] = 7 * prefill + 9 * decode
    row[IterationField.PREFILL_CONTEXT_TOKENS] = 7 * prefill
    row[IterationField.ATTENTION_PAIRS] = 17 * prefill
    return row


def test_iterations_are_those_inside_the_run() -> None:
    steps = np.array([_step(-500, 1, 0), _step(20, 1, 0), _step(120, 0, 1), _step(220, 0, 1), _step(20_000, 0, 1)])
    frame = metric_rows.iterations(steps, _played(), has_prefix_cache=False)
    tables.validate(tables.Iterations, frame, "iterations")
    assert frame["iteration_id"].tolist() == [0, 1, 2]
    assert frame["scheduled_time_ns"].tolist() == [20, 120, 220]
    assert frame["num_decode_requests"].tolist() == [0, 1, 1]
    assert frame["num_context_tokens"].tolist() == [7, 9, 9]
    assert frame["num_prefill_context_tokens"].tolist() == [7, 0, 0]
    assert frame["num_attention_pairs"].tolist() == [17, 0, 0]
    assert list(frame.columns)[-2:] == ["num_prefill_context_tokens", "num_attention_pairs"]
    assert frame["launched_time_ns"].isna().all()  # 0: not seen
    assert not metric_rows.steps_are_missing(steps, _played())


def test_what_decodes_read_again_is_told_of_an_engine_with_a_prefix_cache_alone() -> None:
    steps = np.array([_step(20, 1, 0), _step(120, 0, 1)])
    assert "num_reread_context_tokens" not in metric_rows.iterations(steps, _played(), has_prefix_cache=False)
    none_shared = metric_rows.iterations(steps, _played(), has_prefix_cache=True)
    assert none_shared["num_reread_context_tokens"].tolist() == [0, 0]
    steps[1, IterationField.REREAD_CONTEXT_TOKENS] = 32
    frame = metric_rows.iterations(steps, _played(), has_prefix_cache=True)
    tables.validate(tables.Iterations, frame, "iterations")
    assert frame["num_reread_context_tokens"].tolist() == [0, 32]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_step_is_noticed(lost: int) -> None:
    steps = [_step(20, 1, 0), _step(120, 0, 1), _step(220, 0, 1)]
    del steps[lost]
    assert metric_rows.steps_are_missing(np.array(steps), _played())


def test_no_iterations_are_an_empty_table() -> None:
    frame = metric_rows.iterations(
        np.empty((0, len(IterationField)), dtype=np.int64), _played(), has_prefix_cache=False
    )
    tables.validate(tables.Iterations, frame, "iterations")
    assert frame.empty


def test_percentiles_exclude_token_zero_and_failed_requests() -> None:
    played = _played()
    latencies = metric_rows.latency_percentiles(
        metric_rows.request_metrics(played, "m"), metric_rows.token_metrics(played)
    )
    assert latencies == {"ttft": {"p50": 90, "p90": 90, "p99": 90}, "itl": {"p50": 100, "p90": 100, "p99": 100}}
    assert metric_rows.percentiles([]) == {}


def test_iterations_are_in_time_order_whatever_order_they_were_recorded_in() -> None:
    steps = np.array([_step(220, 0, 1), _step(20, 1, 0), _step(120, 0, 1)])
    frame = metric_rows.iterations(steps, _played(), has_prefix_cache=False)
    assert frame["iteration_id"].tolist() == [0, 1, 2]
    assert frame["scheduled_time_ns"].tolist() == [20, 120, 220]
    assert frame["num_prefill_tokens"].tolist() == [2, 0, 0]
