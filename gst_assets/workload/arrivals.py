"""Arrival schedules in integer nanoseconds, from a seed or from a trace's times.

What arrives belongs to `lengths` and `requests`. Same settings and seed give the same schedule, and a longer one starts
with the shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Arrivals, FixedInterval, Gamma, Piecewise, Poisson, Ramp, Static, TraceArrivals

NS_PER_S = 1_000_000_000
_LONGEST_NS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class TraceTimes:
    """Times of the requests selected from a trace.

    `time_ns`: int64 of shape (num_requests,), not decreasing, 0 at the first request. `num_selected` and `span_ns` are
    those of all requests selected, which may be more than are sent: a rate is scaled by them, so that it does not
    depend on `num_requests`.
    """

    time_ns: np.ndarray
    num_selected: int
    span_ns: int


@dataclass(frozen=True)
class Rates:
    """What was asked of a schedule, and what it is from start to end. `None`: nothing was asked, or the schedule has no
    length.

    `asked_per_s`: mean of the asked rate over the schedule's span. `offered_per_s`: gaps per second; the time before
    the first request is one unless it arrives at the start. `time_scale`: what a trace's gaps were multiplied by.
    """

    span_ns: int
    asked_per_s: float | None
    offered_per_s: float | None
    time_scale: float | None


def inter_arrival_ns(arrivals: Arrivals, num_requests: int, seed: int, trace: TraceTimes | None = None) -> np.ndarray:
    """Gaps before each request: int64 of shape (num_requests,), nanoseconds.

    Random gaps are variates of `numpy.random.Generator(PCG64(seed))`, drawn one after another and rounded to the
    nearest nanosecond; the arrival times are the exact sum of the rounded gaps. Ramps and pieces put the unit-rate
    process through the inverse of the rate's integral (time change of an inhomogeneous Poisson process: Cinlar,
    Introduction to Stochastic Processes, 1975, ch. 4.7) and round the arrival times.

    Raises:
        WorkloadError: a schedule longer than 64-bit nanoseconds hold (292 years); arrivals of a trace without its
            times.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    match arrivals:
        case FixedInterval():
            _refuse_endless(
                arrivals.interval_ns * (num_requests - 1.0), "interval_ns", arrivals.interval_ns, num_requests
            )
            gaps = np.full(num_requests, arrivals.interval_ns, dtype=np.int64)
            gaps[:1] = 0
            return gaps
        case Static():
            return np.zeros(num_requests, dtype=np.int64)
        case Poisson():
            gaps_ns = np.rint(generator.standard_exponential(num_requests) * (NS_PER_S / arrivals.rate_per_s))
            _refuse_endless(gaps_ns.sum(), "rate_per_s", arrivals.rate_per_s, num_requests)
            return gaps_ns.astype(np.int64)
        case Gamma():
            scale_ns = NS_PER_S / (arrivals.rate_per_s * arrivals.burstiness)
            gaps_ns = np.rint(generator.standard_gamma(arrivals.burstiness, num_requests) * scale_ns)
            _refuse_endless(gaps_ns.sum(), "rate_per_s", arrivals.rate_per_s, num_requests)
            return gaps_ns.astype(np.int64)
        case Ramp() | Piecewise():
            expected = np.cumsum(generator.standard_exponential(num_requests))
            seconds = (
                _ramp_time_s(arrivals, expected)
                if isinstance(arrivals, Ramp)
                else _piecewise_time_s(arrivals, expected)
            )
            times_ns = np.rint(seconds * NS_PER_S)
            _refuse_endless(times_ns[-1], "kind", arrivals.kind, num_requests)
            return np.diff(times_ns.astype(np.int64), prepend=0)
        case TraceArrivals():
            if trace is None or len(trace.time_ns) != num_requests:
                raise WorkloadError(
                    "workload.arrivals.kind trace: the requests have no times. Choose a trace with times, or arrivals"
                    " of another kind."
                )
            scale = time_scale(arrivals, trace)
            times_ns = trace.time_ns
            if scale != 1:
                scaled = np.rint(times_ns * scale)
                _refuse_endless(scaled[-1], "time_scale", scale, num_requests)
                times_ns = scaled.astype(np.int64)
            gaps = np.diff(times_ns, prepend=0)
            gaps[0] = arrivals.first_at_ns
            return gaps


def build_trace_intervals(
    arrivals: Arrivals,
    num_requests: int,
    seed: int,
    trace: TraceTimes | None = None,
    previous: np.ndarray | None = None,
) -> pd.DataFrame:
    """The trace_intervals table (`contracts.tables.TraceIntervals`) of a schedule. `previous`: with a closed loop the
    request that each one waits for, -1 for none, int64 of shape (num_requests,).

    Raises:
        WorkloadError: as `inter_arrival_ns`.
    """
    gaps = inter_arrival_ns(arrivals, num_requests, seed, trace)
    columns = {"request_id": np.arange(num_requests), "inter_arrival_ns": gaps, "arrival_time_ns": np.cumsum(gaps)}
    table = pd.DataFrame(columns).astype("Int64")
    if previous is not None:
        waits, arrival = previous >= 0, columns["arrival_time_ns"]
        table["previous_request_id"] = pd.array(previous, dtype="Int64")
        table["think_time_ns"] = pd.array(arrival - arrival[previous], dtype="Int64")
        table.loc[~waits, ["previous_request_id", "think_time_ns"]] = pd.NA
    return table


def time_scale(arrivals: TraceArrivals, trace: TraceTimes) -> float:
    """The number that a trace's gaps are multiplied by.

    Raises:
        WorkloadError: a rate is asked of requests that all have the same time.
    """
    if arrivals.time_scale is not None:
        return arrivals.time_scale
    if arrivals.rate_per_s is None:
        return 1.0
    if trace.span_ns == 0:
        raise WorkloadError(
            f"workload.arrivals.rate_per_s {arrivals.rate_per_s}: the {trace.num_selected} requests selected from the"
            " trace all have the same time, so no scale gives them a rate. Select more of the trace, or choose"
            " arrivals of another kind."
        )
    return (trace.num_selected - 1) * NS_PER_S / (arrivals.rate_per_s * trace.span_ns)


def rates(arrivals: Arrivals, intervals: pd.DataFrame, trace: TraceTimes | None = None) -> Rates:
    """The rate over the whole schedule `intervals`, and the one asked for."""
    times_ns = intervals["arrival_time_ns"]
    first_ns, last_ns = int(times_ns.iloc[0]), int(times_ns.iloc[-1])
    # The wait before the first request is a gap of the process, but not where a schedule is defined to begin with a
    # request.
    begins_with_request = first_ns == 0 or isinstance(arrivals, TraceArrivals)
    gaps, span_ns = (len(intervals) - 1, last_ns - first_ns) if begins_with_request else (len(intervals), last_ns)
    offered = gaps * NS_PER_S / span_ns if span_ns > 0 else None
    scale = time_scale(arrivals, trace) if isinstance(arrivals, TraceArrivals) and trace is not None else None
    return Rates(span_ns, _asked_per_s(arrivals, span_ns / NS_PER_S), offered, scale)


def _asked_per_s(arrivals: Arrivals, span_s: float) -> float | None:
    match arrivals:
        case FixedInterval():
            return NS_PER_S / arrivals.interval_ns
        case Poisson() | Gamma() | TraceArrivals():
            return arrivals.rate_per_s
        case Static():
            return None
        case Ramp() | Piecewise():
            expected = (
                _ramp_expected(arrivals, span_s)
                if isinstance(arrivals, Ramp)
                else _piecewise_expected(arrivals, span_s)
            )
            return expected / span_s if span_s > 0 else None


def _ramp_expected(ramp: Ramp, time_s: float) -> float:
    """Requests expected until `time_s`: the integral of the rate."""
    within = min(time_s, ramp.duration_s)
    slope = (ramp.end_rate_per_s - ramp.start_rate_per_s) / ramp.duration_s
    return within * (ramp.start_rate_per_s + slope * within / 2) + (time_s - within) * ramp.end_rate_per_s


def _ramp_time_s(ramp: Ramp, expected: np.ndarray) -> np.ndarray:
    """Inverse of `_ramp_expected`."""
    at_end = _ramp_expected(ramp, ramp.duration_s)
    slope = (ramp.end_rate_per_s - ramp.start_rate_per_s) / ramp.duration_s
    within = np.minimum(expected, at_end)
    # The root of slope/2 t^2 + start t = expected in the form that is exact for slope 0 and start 0. Rounding must not
    # make the root negative.
    speed = np.sqrt(np.maximum(ramp.start_rate_per_s**2 + 2 * slope * within, 0))
    time_s = 2 * within / (ramp.start_rate_per_s + speed)
    return np.where(expected <= at_end, time_s, ramp.duration_s + (expected - at_end) / ramp.end_rate_per_s)


def _piecewise_expected(piecewise: Piecewise, time_s: float) -> float:
    """Requests expected until `time_s`: the integral of the rate."""
    begins_s, before, rate = _running_pieces(piecewise)
    index = int(np.searchsorted(begins_s, time_s, side="right")) - 1
    if index < 0:
        return 0.0
    reached = before[index] + (time_s - begins_s[index]) * rate[index]
    return float(reached if index + 1 == len(rate) else min(reached, before[index + 1]))


def _piecewise_time_s(piecewise: Piecewise, expected: np.ndarray) -> np.ndarray:
    """Inverse of `_piecewise_expected`."""
    begins_s, before, rate = _running_pieces(piecewise)
    index = np.maximum(np.searchsorted(before, expected, side="left") - 1, 0)
    return begins_s[index] + (expected - before[index]) / rate[index]


def _running_pieces(piecewise: Piecewise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each piece with a rate above 0: when it begins in seconds, requests expected before it, and its rate per
    second."""
    duration = np.array([piece.duration_s for piece in piecewise.pieces])
    rate = np.array([piece.rate_per_s for piece in piecewise.pieces])
    begins_s = np.cumsum(duration) - duration
    before = np.cumsum(duration * rate) - duration * rate
    running = rate > 0
    return begins_s[running], before[running], rate[running]


def _refuse_endless(span_ns: float, setting: str, value: object, num_requests: int) -> None:
    if span_ns >= _LONGEST_NS:
        raise WorkloadError(
            f"workload.arrivals.{setting} {value}: {num_requests} arrivals would last {span_ns / NS_PER_S:.3g} s, more"
            " than 64-bit nanoseconds hold. Raise the rate."
        )
