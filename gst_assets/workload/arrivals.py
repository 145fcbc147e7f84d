"""Arrival schedules in integer nanoseconds, from a seed.

What arrives belongs to `lengths`. Same settings and seed give the same schedule, and a longer one starts with the shorter one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Arrivals, FixedInterval, Poisson

NS_PER_S = 1_000_000_000


def inter_arrival_ns(arrivals: Arrivals, num_requests: int, seed: int) -> np.ndarray:
    """Gaps before each request: int64 of shape (num_requests,), nanoseconds.

    Poisson gaps are exponential variates of `numpy.random.Generator(PCG64(seed))`, drawn one after another and rounded to the nearest
    nanosecond; the arrival times are the exact sum of the rounded gaps.

    Raises:
        WorkloadError: a schedule longer than 64-bit nanoseconds hold (292 years).
    """
    if isinstance(arrivals, FixedInterval):
        gaps = np.full(num_requests, arrivals.interval_ns, dtype=np.int64)
        gaps[:1] = 0
        return gaps
    if isinstance(arrivals, Poisson):
        generator = np.random.Generator(np.random.PCG64(seed))
        gaps_ns = np.rint(generator.standard_exponential(num_requests) * (NS_PER_S / arrivals.rate_per_s))
        if gaps_ns.sum() >= np.iinfo(np.int64).max:
            raise WorkloadError(
                f"workload.arrivals.rate_per_s {arrivals.rate_per_s}: {num_requests} arrivals would last {gaps_ns.sum() / NS_PER_S:.3g} s, more than "
                "64-bit nanoseconds hold. Raise the rate."
            )
        return gaps_ns.astype(np.int64)
    return np.zeros(num_requests, dtype=np.int64)


def build_trace_intervals(arrivals: Arrivals, num_requests: int, seed: int) -> pd.DataFrame:
    """The trace_intervals table (`contracts.tables.TraceIntervals`) of a schedule."""
    gaps = inter_arrival_ns(arrivals, num_requests, seed)
    columns = {"request_id": np.arange(num_requests), "inter_arrival_ns": gaps, "arrival_time_ns": np.cumsum(gaps)}
    return pd.DataFrame(columns).astype("Int64")
