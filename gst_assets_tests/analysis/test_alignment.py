from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.analysis.alignment import AlignedPair, Counts, align, joined, same_turns_wait, sessions_of
from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets.errors import ComparisonError
from gst_assets_tests.analysis.run_directories import (
    MS,
    WORKLOAD_SHA256,
    Recipe,
    Request,
    steady,
    write_real,
    write_simulation,
)


def _align(tmp_path: Path, real: Recipe, sim: Recipe) -> AlignedPair:
    return align(
        load_run(write_real(tmp_path / "r", real), "real"), load_run(write_simulation(tmp_path / "s", sim), "vidur")
    )


def test_early_stops_errors_and_requests_without_a_token(tmp_path: Path) -> None:
    real = Recipe(
        [
            Request(0, (10, 20, 30), prompt=1, asked=3),
            Request(5, (15, 25), prompt=2, asked=4),
            Request(6, (16,), prompt=3, asked=3, status="error"),
            Request(7, (), prompt=4, asked=3),
            Request(8, (18,), prompt=5, asked=3),
        ]
    )
    sim = Recipe(
        [
            Request(0, (11, 22, 33), prompt=1),
            Request(5, (16, 27, 38, 49), prompt=2),
            Request(6, (17, 28, 39), prompt=3),
            Request(7, (18, 29, 40), prompt=4),
            Request(8, (20, 31, 42), prompt=5),
        ]
    )
    pair = _align(tmp_path, real, sim)
    assert pair.counts == Counts(
        num_requests=5,
        num_compared=3,
        num_errors=1,
        num_no_token=1,
        num_early_stops=2,
        num_tokens_compared=6,
        num_tokens_cut=4,
    )
    assert pair.real.requests.to_dict("list") == {
        "request_id": [0, 1, 4],
        "arrival_time_ns": [0, 5, 8],
        "num_prefill_tokens": [1, 2, 5],
        "ttft_ns": [10, 10, 10],
        "num_tokens": [3, 2, 1],
        "e2e_ns": [30, 20, 10],
    }
    assert pair.sim.requests["ttft_ns"].tolist() == [11, 11, 12]
    # The end of the compared tokens, not of the simulated request.
    assert pair.sim.requests["e2e_ns"].tolist() == [33, 22, 12]
    assert pair.sim.tokens["token_time_ns"].tolist() == [11, 22, 33, 16, 27, 20]
    assert pair.sim.tokens["token_latency_ns"].tolist() == [0, 11, 11, 0, 11, 0]


def test_both_sides_hold_the_same_requests_and_tokens(tmp_path: Path) -> None:
    pair = _align(
        tmp_path,
        Recipe([Request(0, (1, 2), asked=5), Request(3, (4, 5, 6))]),
        Recipe([Request(0, (1, 2, 3, 4, 5)), Request(3, (4, 5, 6))]),
    )
    for name in ("request_id", "token_index"):
        assert pair.real.tokens[name].tolist() == pair.sim.tokens[name].tolist()


def test_workloads_with_another_id(tmp_path: Path) -> None:
    with pytest.raises(
        ComparisonError,
        match=r"run r is of workload wl-0000000000000001, run s of workload wl-other. Compare runs of one workload",
    ):
        _align(tmp_path, steady(2, 2), steady(2, 2).with_meta(workload_id="wl-other"))


def test_workloads_with_one_id_and_other_files(tmp_path: Path) -> None:
    other = {**WORKLOAD_SHA256, "trace_intervals.csv": "9" * 64}
    with pytest.raises(
        ComparisonError, match=r"trace_intervals.csv has sha256 333333333333 in the first and 999999999999"
    ):
        _align(tmp_path, steady(2, 2), steady(2, 2).with_meta(workload_sha256=other))


def test_a_request_on_one_side_only(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"r has 3 requests, .*s has 2: 1 is only in the first \(request 2\)"):
        _align(tmp_path, steady(3, 2), steady(2, 2))


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        (Request(10 * MS, (30 * MS,), prompt=9, asked=2), "num_prefill_tokens is 8 in"),
        (Request(10 * MS, (30 * MS,), asked=3), "num_decode_tokens is 2 in"),
        (Request(11 * MS, (30 * MS,), asked=2), "arrival_time_ns is 10000000 in"),
    ],
)
def test_lengths_and_arrivals_that_differ(tmp_path: Path, changed: Request, column: str) -> None:
    sim = Recipe([steady(1, 2).requests[0], changed])
    with pytest.raises(ComparisonError, match=f"request 1: {column}"):
        _align(tmp_path, steady(2, 2), sim)


@pytest.mark.parametrize("status", ["ok", "error"])
def test_a_simulation_with_fewer_tokens_than_were_measured(tmp_path: Path, status: str) -> None:
    requests = steady(2, 3).requests
    short = Request(requests[1].arrival_ns, requests[1].token_ns[:2], asked=3, status=status)
    usable = 2 if status == "ok" else 0
    with pytest.raises(
        ComparisonError, match=rf"request 1: .*s has {usable} usable tokens \(status {status}\), .*r has 3"
    ):
        _align(tmp_path, steady(2, 3), Recipe([requests[0], short]))


def test_nothing_to_compare(tmp_path: Path) -> None:
    real = Recipe([Request(0, (), asked=1, status="error"), Request(0, (), asked=1)])
    with pytest.raises(ComparisonError, match="none of the 2 requests can be compared: 1 failed and 1 gave no token"):
        _align(tmp_path, real, Recipe([Request(0, (1,)), Request(0, (1,))]))


@st.composite
def _recipes(draw: st.DrawFn) -> tuple[Recipe, Recipe]:
    """A simulation that ran to the requested lengths, and a real run with other times, early stops, failures and empty
    requests."""
    real, sim = [], []
    arrival = 0
    for _ in range(draw(st.integers(1, 6))):
        arrival += draw(st.integers(0, 50))
        asked = draw(st.integers(1, 5))
        gaps = st.lists(st.integers(0, 100), min_size=asked, max_size=asked)
        status = draw(st.sampled_from(["ok", "ok", "ok", "error"]))
        times = tuple(int(t) for t in arrival + np.cumsum(draw(gaps)))[: draw(st.integers(0, asked))]
        real.append(Request(arrival, times, asked=asked, status=status))
        sim.append(Request(arrival, tuple(int(t) for t in arrival + np.cumsum(draw(gaps))), asked=asked))
    return Recipe(real), Recipe(sim)


@settings(deadline=None, max_examples=40)
@given(_recipes())
def test_alignment_keeps_exactly_what_was_measured(recipes: tuple[Recipe, Recipe]) -> None:
    real, sim = recipes
    expected = [i for i, request in enumerate(real.requests) if request.status == "ok" and request.token_ns]
    with tempfile.TemporaryDirectory() as folder:
        if not expected:
            with pytest.raises(ComparisonError, match="can be compared"):
                _align(Path(folder), real, sim)
            return
        pair = _align(Path(folder), real, sim)
    assert pair.real.requests["request_id"].tolist() == pair.sim.requests["request_id"].tolist() == expected
    for side, recipe in ((pair.real, real), (pair.sim, sim)):
        times = [recipe.requests[i].token_ns[: len(real.requests[i].token_ns)] for i in expected]
        assert side.tokens["token_time_ns"].tolist() == [t for series in times for t in series]
        assert side.requests["e2e_ns"].tolist() == [
            series[-1] - recipe.requests[i].arrival_ns for i, series in zip(expected, times, strict=True)
        ]
    counts = pair.counts
    assert counts.num_requests == counts.num_compared + counts.num_errors + counts.num_no_token
    assert counts.num_tokens_cut == sum(
        len(sim.requests[i].token_ns) - len(real.requests[i].token_ns) for i in expected
    )


def test_turns_wait_for_the_same_requests_after_joining_by_name(tmp_path: Path) -> None:
    """Three sessions, the one of b0, b1, b2 in another order among the rest, and in the first run's order backwards."""
    names = ["a0", "b0", "b1", "c0", "b2", "a1"]
    waits = {"b1": "b0", "b2": "b1", "a1": "a0"}
    run = load_run(write_real(tmp_path / "r", steady(6, 2)), "real")

    def of(order: list[str]) -> RealRun:
        previous = [order.index(waits[name]) if name in waits else pd.NA for name in order]
        requests = run.requests.assign(
            source_request_id=order,
            previous_request_id=pd.array(previous, dtype="Int64"),
            workload_arrival_time_ns=run.requests["arrival_time_ns"],
        )
        return replace(run, requests=requests)

    other = of(names)
    for order in (["c0", "a0", "a1", "b0", "b1", "b2"], ["b2", "a1", "b1", "c0", "b0", "a0"]):
        first = of(order)
        again = joined(first, other)
        assert again.requests["source_request_id"].tolist() == order
        assert same_turns_wait(first, again)
        sessions = sessions_of(again)
        assert sessions is not None
        assert {name[0] for name in order} == {"a", "b", "c"} and len(set(sessions.tolist())) == 3
        assert all((sessions[i] == sessions[k]) == (order[i][0] == order[k][0]) for i in range(6) for k in range(6)), (
            order
        )
