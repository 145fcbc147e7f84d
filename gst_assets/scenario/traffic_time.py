"""How long a scenario sends requests to an engine, from its settings alone.

The schedule itself, to the nanosecond, belongs to `workload.arrivals`.
"""

from __future__ import annotations

from gst_assets.scenario.sections import Scenario
from gst_assets.scenario.workload_section import FixedInterval, Gamma, Poisson, TraceArrivals, Workload


def traffic_s(scenario: Scenario) -> float | None:
    """Seconds in which all repeats of the scenario's workload send requests, as its rate lets expect; None where the
    settings do not say.

    They do not where all requests arrive at once or at a changing rate, where a file says how many there are or when,
    and for a search for capacity, which stops when it has found its rate. The engine's start, its warm-up, the end of
    the last requests and the profile come on top.
    """
    span_s = _span_s(scenario.workload) if scenario.capacity is None else None
    return None if span_s is None else span_s * scenario.replay.repeats


def _span_s(workload: Workload) -> float | None:
    """Seconds from the start until the last request is expected."""
    requests, arrivals = _requests(workload), workload.arrivals
    if requests is None:
        return None
    if isinstance(arrivals, FixedInterval):
        return (requests - 1) * arrivals.interval_ns / 1e9
    if isinstance(arrivals, (Poisson, Gamma)):
        return requests / arrivals.rate_per_s
    if isinstance(arrivals, TraceArrivals) and arrivals.rate_per_s is not None:
        return requests / arrivals.rate_per_s
    return None


def _requests(workload: Workload) -> float | None:
    """Requests sent; of sessions the mean."""
    if workload.num_requests is not None:
        return workload.num_requests
    sessions = workload.sessions
    return None if sessions is None else sessions.num_sessions * (sessions.min_turns + sessions.max_turns) / 2
