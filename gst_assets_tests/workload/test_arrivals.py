"""Arrival schedules: exact integers, reproducible, and the longer starts with the shorter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gst_assets.contracts.tables import TraceIntervals, validate
from gst_assets.errors import WorkloadError
from gst_assets.scenario import Arrivals, FixedInterval, Gamma, Piece, Piecewise, Poisson, Ramp, Static, TraceArrivals
from gst_assets.workload.arrivals import NS_PER_S, TraceTimes, build_trace_intervals, inter_arrival_ns, rates

SCHEDULES: list[Arrivals] = [
    FixedInterval(kind="fixed_interval", interval_ns=500_000_000),
    Poisson(kind="poisson", rate_per_s=7.5),
    Static(kind="static"),
    Gamma(kind="gamma", rate_per_s=7.5, burstiness=0.25),
    Ramp(kind="ramp", start_rate_per_s=0, end_rate_per_s=20, duration_s=5),
    Ramp(kind="ramp", start_rate_per_s=20, end_rate_per_s=2, duration_s=5),
    Piecewise(
        kind="piecewise",
        pieces=tuple(Piece(duration_s=2, rate_per_s=rate) for rate in (0, 5, 0, 50)),
    ),
]


@pytest.mark.parametrize("arrivals", SCHEDULES, ids=lambda item: item.kind)
@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_every_schedule_keeps_the_contract(arrivals: Arrivals, count: int, seed: int) -> None:
    frame = build_trace_intervals(arrivals, count, seed)
    validate(TraceIntervals, frame, "trace_intervals.csv")
    assert len(frame) == count
    longer = build_trace_intervals(arrivals, count + 17, seed)
    assert longer.head(count).equals(frame)


def test_fixed_interval_starts_at_zero_and_static_stays_there() -> None:
    fixed = build_trace_intervals(SCHEDULES[0], 4, seed=1)
    assert fixed["arrival_time_ns"].tolist() == [0, 500_000_000, 1_000_000_000, 1_500_000_000]
    assert build_trace_intervals(SCHEDULES[2], 3, seed=1)["arrival_time_ns"].tolist() == [0, 0, 0]


def test_poisson_gaps_are_exponential_at_the_asked_rate() -> None:
    gaps = inter_arrival_ns(Poisson(kind="poisson", rate_per_s=50.0), 20_000, seed=3)
    # Against scipy's distribution, not our own formula. The seed is fixed, so the p-value is a fact and not a lottery.
    assert stats.kstest(gaps / NS_PER_S, "expon", args=(0, 1 / 50.0)).pvalue > 0.01
    assert gaps.dtype == np.int64


def test_poisson_values_are_pinned() -> None:
    """The published stream of PCG64(20260101): a change here breaks every recorded workload."""
    gaps = inter_arrival_ns(Poisson(kind="poisson", rate_per_s=1.0), 3, seed=20260101)
    assert gaps.tolist() == [106134843, 2695523295, 970899715]


def test_seeds_differ() -> None:
    one, other = (inter_arrival_ns(SCHEDULES[1], 10, seed) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_a_schedule_beyond_64_bits_names_the_rate() -> None:
    with pytest.raises(WorkloadError, match=r"workload\.arrivals\.rate_per_s 1e-12: 3 arrivals would last"):
        inter_arrival_ns(Poisson(kind="poisson", rate_per_s=1e-12), 3, seed=1)


def test_gamma_gaps_have_the_asked_shape() -> None:
    gaps = inter_arrival_ns(Gamma(kind="gamma", rate_per_s=50.0, burstiness=0.5), 20_000, seed=3)
    assert stats.kstest(gaps / NS_PER_S, "gamma", args=(0.5, 0, 1 / 25.0)).pvalue > 0.01


def test_a_ramp_and_pieces_have_the_asked_counts() -> None:
    ramp = Ramp(kind="ramp", start_rate_per_s=0, end_rate_per_s=200, duration_s=100)
    times_s = build_trace_intervals(ramp, 30_000, 1)["arrival_time_ns"].to_numpy(dtype="int64") / NS_PER_S
    # The integral of the rate: 2,500 by half of the ramp, 10,000 by its end, 200 a second from there; tolerance five
    # standard deviations.
    for until_s, expected in ((50, 2_500), (100, 10_000), (150, 20_000)):
        assert abs((times_s < until_s).sum() - expected) < 5 * expected**0.5
    pieces = Piecewise(
        kind="piecewise", pieces=tuple(Piece(duration_s=10, rate_per_s=rate) for rate in (0, 100, 0, 500))
    )
    times_s = build_trace_intervals(pieces, 10_000, 1)["arrival_time_ns"].to_numpy(dtype="int64") / NS_PER_S
    assert abs(((times_s >= 10) & (times_s < 20)).sum() - 1_000) < 160
    assert not (times_s < 10).any() and not ((times_s > 20) & (times_s < 30)).any()


def test_trace_times_are_kept_scaled_and_shifted_as_asked() -> None:
    times = TraceTimes(np.array([0, 7, 7, 20], dtype=np.int64), num_selected=5, span_ns=40)
    kept = build_trace_intervals(TraceArrivals(kind="trace"), 4, 0, times)
    assert kept["arrival_time_ns"].tolist() == [0, 7, 7, 20]
    later = build_trace_intervals(TraceArrivals(kind="trace", time_scale=2.0, first_at_ns=5), 4, 0, times)
    assert later["arrival_time_ns"].tolist() == [5, 19, 19, 45]
    asked = TraceArrivals(kind="trace", rate_per_s=1.0)
    scaled = build_trace_intervals(asked, 4, 0, times)
    # Five requests over 40 ns have four gaps, so one per second stretches them to 4 s, though only four are sent.
    assert scaled["arrival_time_ns"].tolist() == [0, 700_000_000, 700_000_000, 2_000_000_000]
    found = rates(asked, scaled, times)
    assert (found.asked_per_s, found.offered_per_s, found.time_scale) == (1.0, 1.5, 1e8)
    with pytest.raises(WorkloadError, match="the requests have no times"):
        build_trace_intervals(asked, 4, 0)


def test_the_rate_there_is_stands_beside_the_one_asked() -> None:
    fixed = rates(SCHEDULES[0], build_trace_intervals(SCHEDULES[0], 4, 1))
    assert (fixed.asked_per_s, fixed.offered_per_s) == (2.0, 2.0)
    still = rates(SCHEDULES[2], build_trace_intervals(SCHEDULES[2], 4, 1))
    assert (still.span_ns, still.asked_per_s, still.offered_per_s) == (0, None, None)


def _steep(start: float, end: float, duration: float) -> Ramp:
    return Ramp(kind="ramp", start_rate_per_s=start, end_rate_per_s=end, duration_s=duration)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "arrivals",
    [
        *(Gamma(kind="gamma", rate_per_s=rate, burstiness=shape) for rate in (1e-15, 1e9) for shape in (1e-6, 1e6)),
        *(Poisson(kind="poisson", rate_per_s=rate) for rate in (1e-15, 1e9)),
        *(_steep(start, end, long) for start in (0, 1e-15, 1e9) for end in (1e-15, 1e9) for long in (1e-9, 1e12)),
        *(
            Piecewise(kind="piecewise", pieces=(Piece(duration_s=long, rate_per_s=first), Piece(duration_s=1, rate_per_s=last)))
            for long in (1e-9, 1e12) for first in (0, 1e-15, 1e9) for last in (1e-15, 1e9)
        ),
    ],
    ids=repr,
)  # fmt: skip
def test_the_most_extreme_schedules_hold_or_are_refused(arrivals: Arrivals) -> None:
    try:
        frame = build_trace_intervals(arrivals, 500, seed=1)
    except WorkloadError as error:
        assert "more than 64-bit nanoseconds hold" in str(error)
        return
    validate(TraceIntervals, frame, "trace_intervals")
    asked = rates(arrivals, frame).asked_per_s
    assert asked is None or 0 < asked < 1e10
