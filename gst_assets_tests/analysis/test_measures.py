from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats.mstats import mquantiles

from gst_assets.analysis.alignment import AlignedSide, align
from gst_assets.analysis.measures import (
    Samples,
    clustered,
    group_edges,
    is_sufficient,
    kolmogorov_smirnov,
    paired,
    percentile_ns,
    percentiles_of_counts_ns,
    relative_error,
    requests_in_system,
    samples_ns,
    statistics_ns,
    timeline,
    wasserstein_ns,
    whole,
)
from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets_tests.analysis.run_directories import Recipe, Request, write_real, write_simulation

SIDE = AlignedSide(
    requests=pd.DataFrame(
        {
            "request_id": [0, 2],
            "arrival_time_ns": [0, 3],
            "num_tokens": [3, 1],
            "ttft_ns": [7, 9],
            "e2e_ns": [30, 9],
        }
    ),
    tokens=pd.DataFrame(
        {
            "request_id": [0, 0, 0, 2],
            "token_index": [0, 1, 2, 0],
            "token_time_ns": [7, 17, 30, 12],
            "token_latency_ns": [0, 10, 13, 0],
        }
    ),
)
VALUES = st.lists(st.integers(0, 10**13), min_size=1, max_size=60)


def test_samples_of_each_measure() -> None:
    assert samples_ns(SIDE, "ttft").tolist() == [7, 9]
    assert samples_ns(SIDE, "itl").tolist() == [10, 13], "index 0 never enters"
    assert samples_ns(SIDE, "tpot").tolist() == [11.5], "(30 - 7) / 2; a request of one token has none"
    assert samples_ns(SIDE, "e2e").tolist() == [30, 9]
    assert samples_ns(SIDE, "normalized").tolist() == [10, 9]


def test_samples_know_their_requests() -> None:
    """Of three requests the second was not compared."""
    gaps = clustered(SIDE, "itl", 3)
    assert (gaps.counts.tolist(), gaps.sums.tolist(), gaps.num_requests) == ([2, 0, 0], [23, 0, 0], 1)
    assert clustered(SIDE, "tpot", 3).counts.tolist() == [1, 0, 0]
    assert clustered(SIDE, "e2e", 3).sums.tolist() == [30, 0, 9]


def test_samples_above_a_percentile_are_counted_by_request() -> None:
    """Ranks 5 and 9 of ten values are 50 and 90; the request without a sample has none above."""
    samples = Samples(np.array([10, 90, 60, 20, 30, 100, 40, 50, 70, 80]) - 10, np.array([3, 0, 3, 4]))
    above = samples.num_above((50, 90))
    assert [one.tolist() for one in above] == [[1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]


def test_percentiles_by_hand() -> None:
    # Type 7 on 10, 20, 30, 40: position (n - 1) p, so P50 is half-way between 20 and 30 and P90 is at 2.7.
    samples = np.array([10, 20, 30, 40])
    assert percentile_ns(samples, 50) == 25
    assert percentile_ns(samples, 90) == pytest.approx(37)
    assert statistics_ns(samples)[0] == 25


def test_no_samples_is_nan_and_not_zero() -> None:
    assert np.isnan(statistics_ns(np.array([], dtype="int64"))).all()


@given(VALUES, st.sampled_from([50, 90, 95, 99]))
def test_percentiles_against_scipy(samples: list[int], percentile: int) -> None:
    expected = mquantiles(samples, [percentile / 100], alphap=1, betap=1)[0]
    assert percentile_ns(np.sort(samples), percentile) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 9)), max_size=30))
def test_percentiles_of_counts_are_those_of_the_samples_to_the_bit(counted: list[tuple[int, int]]) -> None:
    values, counts = (np.array([pair[column] for pair in counted], dtype="int64") for column in (0, 1))
    ordered = np.sort(np.repeat(values, counts))
    percentiles = (0, 50, 90, 99, 100)
    expected = [percentile_ns(ordered, one) for one in percentiles]
    assert np.array_equal(percentiles_of_counts_ns(values, counts, percentiles), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("statistic", "needed"), [("mean", 20), ("p50", 20), ("p90", 100), ("p95", 200), ("p99", 1000)]
)
def test_ten_samples_beyond(statistic: str, needed: int) -> None:
    assert is_sufficient(statistic, needed, needed)
    assert not is_sufficient(statistic, needed - 1, needed - 1)
    assert not is_sufficient(statistic, 100_000, 19), "however many tokens, nineteen requests are nineteen observations"


@pytest.mark.parametrize(("sim", "real", "expected"), [(11, 10, 0.1), (9, 10, -0.1), (0, 0, 0.0), (1, 0, math.nan)])
def test_relative_error(sim: float, real: float, expected: float) -> None:
    assert relative_error(sim, real) == pytest.approx(expected, nan_ok=True)


@given(VALUES, VALUES)
def test_distances_against_scipy(one: list[int], other: list[int]) -> None:
    assert kolmogorov_smirnov(np.sort(one), np.sort(other)) == pytest.approx(stats.ks_2samp(one, other).statistic)
    size = min(len(one), len(other))
    expected = stats.wasserstein_distance(one[:size], other[:size])
    assert wasserstein_ns(np.sort(one[:size]), np.sort(other[:size])) == pytest.approx(expected)


def test_paired_by_hand() -> None:
    """Errors +10 %, -20 %, +30 %; the fourth has no relative error, the fifth none at all."""
    found = paired(np.array([10, 10, 10, 0, 0]), np.array([11, 8, 13, 5, 0]))
    assert (found.num_requests, found.num_undefined) == (5, 1)
    assert found.mape == pytest.approx(0.6 / 4)
    assert found.median_ape == pytest.approx(0.15)
    assert found.bias == pytest.approx(0.2 / 4)
    assert found.mean_error_ns == pytest.approx((1 - 2 + 3 + 5) / 5)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=40))
def test_rank_correlation_against_scipy(pairs: list[tuple[int, int]]) -> None:
    real, sim = (np.array(side) for side in zip(*pairs, strict=True))
    found = paired(real, sim).rank_correlation
    if np.ptp(real) == 0 or np.ptp(sim) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(real, sim).statistic)


def test_requests_in_the_system() -> None:
    """Four requests: the second arrives while the first is there, the third when both have gone, the fourth with the
    third."""
    requests = pd.DataFrame({"arrival_time_ns": [0, 5, 20, 20], "e2e_ns": [10, 5, 3, 3]})
    assert requests_in_system(AlignedSide(requests, SIDE.tokens)).tolist() == [0, 1, 0, 0]


def test_groups_of_equal_size_keep_equal_values_together() -> None:
    assert group_edges(np.array([1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [2, 4, 6, 8]
    assert group_edges(np.array([5, 5, 5])).tolist() == [5]


def test_samples_in_order() -> None:
    assert Samples(np.array([3, 1, 2]), np.array([2, 1])).ordered().tolist() == [1, 2, 3]


# --- a run as a whole -------------------------------------------------------------------------------------------------


def _run(folder: Path, requests: list[Request]) -> tuple[RealRun, AlignedSide]:
    real = load_run(write_real(folder / "r", Recipe(requests)), "real")
    sim = load_run(write_simulation(folder / "s", Recipe(requests)), "vidur")
    return real, align(real, sim).real


def test_a_run_as_a_whole_by_hand(tmp_path: Path) -> None:
    """Two requests: waiting 0-2 and 3-4 s, running 2-5 and 4-9 s; the second was scheduled 0.25 s after it arrived, the
    first 0.75 s."""
    s = 1_000_000_000
    run, side = _run(tmp_path, [Request(0, (2 * s, 5 * s)), Request(3 * s, (4 * s, 6 * s, 9 * s))])
    line = timeline(run, side)
    assert line.source == "request times, prefill counted as waiting"
    assert line.time_ns.tolist() == [0, 2 * s, 3 * s, 4 * s, 5 * s, 9 * s]
    assert (line.running.tolist(), line.waiting.tolist()) == ([0, 1, 1, 2, 1, 0], [1, 0, 1, 0, 0, 0])
    found = whole(run, side, line)
    assert (found.duration_ns, found.requests_per_s, found.tokens_per_s) == (9 * s, 2 / 9, 5 / 9)
    assert (found.mean_running, found.max_running) == pytest.approx(((1 + 1 + 2 + 4) / 9, 2))
    assert (found.mean_waiting, found.max_waiting) == pytest.approx((3 / 9, 1))
    assert math.isnan(found.scheduling_delay_ns) and math.isnan(found.num_preemptions), "not recorded is not 0"
    told = run.requests.assign(scheduled_time_ns=[3 * s // 4, 3 * s + s // 4], num_preemptions=[0, 2])
    found = whole(replace(run, requests=told), side, line)
    assert (found.scheduling_delay_ns, found.num_preemptions) == (s / 2, 2)
    line = timeline(replace(run, requests=told), side)
    found = whole(replace(run, requests=told), side, line)
    assert line.source == "request times" and found.mean_waiting == pytest.approx(1 / 9)
    early = told.assign(scheduled_time_ns=[3 * s // 4, 2 * s])
    assert timeline(replace(run, requests=early), side).source == "request times, prefill counted as waiting"


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3), min_size=1, max_size=12))
def test_queue_lengths_against_littles_law(drawn: list[tuple[int, int, int]]) -> None:
    """Mean number in a state = total time spent in it / duration (Little 1961), which needs no timeline."""
    times = sorted((arrival, arrival + wait, arrival + wait + length) for arrival, wait, length in drawn)
    with tempfile.TemporaryDirectory() as folder:
        run, side = _run(Path(folder), [Request(arrival, (first, last)) for arrival, first, last in times])
    found = whole(run, side, timeline(run, side))
    duration = max(last for *_, last in times) - times[0][0]
    if duration == 0:
        assert math.isnan(found.mean_running)
        return
    assert found.mean_waiting == pytest.approx(sum(first - arrival for arrival, first, _ in times) / duration)
    assert found.mean_running == pytest.approx(sum(last - first for _, first, last in times) / duration)


def test_a_recorded_timeline_is_taken_as_it_is(tmp_path: Path) -> None:
    run, side = _run(tmp_path, [Request(0, (5, 9))])
    rows = {"scheduled_time_ns": [4, 1], "completion_time_ns": [6, 3], "num_running": [2, 1], "num_waiting": [0, 7]}
    line = timeline(replace(run, iterations=pd.DataFrame(rows)), side)
    assert (line.source, line.time_ns.tolist()) == ("iterations.csv", [1, 4, 6])
    assert (line.running.tolist(), line.waiting.tolist()) == ([1, 2, 0], [7, 0, 0])
