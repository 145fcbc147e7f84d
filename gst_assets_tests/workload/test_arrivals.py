"""Arrival schedules: exact integers, reproducible, and the longer starts with the shorter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gst_assets.contracts.tables import TraceIntervals, validate
from gst_assets.errors import WorkloadError
from gst_assets.scenario import Arrivals, FixedInterval, Poisson, Static
from gst_assets.workload.arrivals import NS_PER_S, build_trace_intervals, inter_arrival_ns

SCHEDULES: list[Arrivals] = [
    FixedInterval(kind="fixed_interval", interval_ns=500_000_000),
    Poisson(kind="poisson", rate_per_s=7.5),
    Static(kind="static"),
]


@pytest.mark.parametrize("arrivals", SCHEDULES, ids=lambda item: item.kind)
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
