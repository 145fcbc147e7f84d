"""The search for capacity: which rate to probe next, what a probe shows, and the result of the search.

Capacity is the highest rate of Poisson arrivals at which the P99 of scheduling delay (first scheduled - intended
arrival) stays under a bound (as Agrawal et al., "Vidur", MLSys 2024, define it). The search does no probing itself, so
that it is the same on an engine and in a simulation: ask `next_rate_per_s`, play `probe_workload` at that rate,
`record` what was seen.

Importable on a GPU host (numpy, pandas, pydantic). How an engine plays a probe belongs to `engine_probe`, what is
written for people to `capacity_report`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import CapacityFound
from gst_assets.formats import milliseconds, number
from gst_assets.scenario import Capacity, Poisson
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.bisection import RateBisection

LEAST_BEYOND = 10
"""A P99 with fewer requests beyond it rests on a handful of them (as `measures.MIN_SAMPLES_BEYOND`)."""
_BEYOND_P99 = 0.01

PROBE_TYPES = {
    "side": "str",
    "probe_index": "Int64",
    "rate_per_s": "float64",
    "seed": "Int64",
    "num_requests": "Int64",
    "num_failed": "Int64",
    "p50_delay_ns": "float64",
    "p99_delay_ns": "float64",
    "max_delay_ns": "Int64",
    "p99_lateness_ns": "float64",
    "requests_per_s": "float64",
    "tokens_per_s": "float64",
    "verdict": "str",
    "is_sufficient": "bool",
    "reason": "str",
}
"""Columns of `contracts.tables.CapacityProbes`."""


@dataclass(frozen=True)
class Seen:
    """What one probe saw, as arrays over its requests in nanoseconds since the probe began.

    `arrival_ns`, `scheduled_ns` and `completion_ns` float64 of shape (num_requests,), NaN where a request failed or its
    time is unknown; `lateness_ns` likewise, None where there is no driver (a simulation). `death`: why the engine died,
    if it did.
    """

    arrival_ns: np.ndarray
    scheduled_ns: np.ndarray
    completion_ns: np.ndarray
    lateness_ns: np.ndarray | None
    num_tokens: int
    death: str | None = None


@dataclass(frozen=True)
class Probe:
    """A row of `contracts.tables.CapacityProbes`, which says what the fields are."""

    side: str
    probe_index: int
    rate_per_s: float
    seed: int
    num_requests: int
    num_failed: int
    p50_delay_ns: float | None
    p99_delay_ns: float | None
    max_delay_ns: int | None
    p99_lateness_ns: float | None
    requests_per_s: float | None
    tokens_per_s: float | None
    verdict: str
    is_sufficient: bool
    reason: str


def criterion(settings: Capacity) -> str:
    """What is searched for, in words."""
    return (
        f"highest rate of Poisson arrivals, between {settings.low_rate_per_s:g} and {settings.high_rate_per_s:g}"
        f" requests/s and to {100 * settings.relative_tolerance:g} %, at which the P99 of scheduling delay (first"
        f" scheduled - intended arrival) over {settings.num_requests} requests is at most"
        f" {settings.max_p99_delay_ms:g} ms"
    )


def drawn_rows(num_rows: int, settings: Capacity) -> np.ndarray:
    """Which requests of a workload of `num_rows` a probe consists of, in order: int64 of shape
    (settings.num_requests,). Every request once, in an order of the seed's, before any comes again; the same for every
    rate."""
    generator = np.random.Generator(np.random.PCG64([settings.seed, 1]))
    passes = [generator.permutation(num_rows) for _ in range(-(-settings.num_requests // num_rows))]
    return np.concatenate(passes)[: settings.num_requests]


def probe_intervals(settings: Capacity, rate_per_s: float) -> pd.DataFrame:
    """The probe's arrivals (`contracts.tables.TraceIntervals`): the seed's gaps, scaled to the rate."""
    return build_trace_intervals(Poisson(kind="poisson", rate_per_s=rate_per_s), settings.num_requests, settings.seed)


def probe_workload(lengths: pd.DataFrame, settings: Capacity, rate_per_s: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lengths and arrivals (`contracts.tables.TraceLengths`, `TraceIntervals`) of a probe of the workload
    `lengths`."""
    drawn = lengths.iloc[drawn_rows(len(lengths), settings)].reset_index(drop=True)
    drawn["request_id"] = pd.array(np.arange(len(drawn)), dtype="Int64")
    return drawn, probe_intervals(settings, rate_per_s)


class CapacitySearch:
    """A bisection of the rate that ends where a probe cannot be judged."""

    def __init__(self, settings: Capacity, side: str) -> None:
        self._settings, self._side = settings, side
        self.probes: list[Probe] = []
        self._rates = RateBisection(settings.low_rate_per_s, settings.high_rate_per_s, settings.relative_tolerance)

    def next_rate_per_s(self) -> float | None:
        """The rate to be probed next; None when the search is over."""
        if self.probes and self.probes[-1].verdict == "unjudged":
            return None
        return self._rates.next_rate_per_s()

    def record(self, seen: Seen) -> Probe:
        """Judge what the probe at `next_rate_per_s` saw, and take it into account."""
        rate = self.next_rate_per_s()
        assert rate is not None, "the search is over"
        probe = judge(seen, self._settings, self._side, len(self.probes), rate)
        self.probes.append(probe)
        if probe.verdict != "unjudged":
            self._rates.record(rate, is_met=probe.verdict == "kept")
        return probe

    def result(self) -> CapacityFound:
        """The result of the search, which must be over."""
        last, settings = self.probes[-1], self._settings
        reason = ""
        status = "found"
        if last.verdict == "unjudged":
            status, reason = "undetermined", f"the probe at {last.rate_per_s:.4g} requests/s: {last.reason}"
        elif self._rates.met_per_s is None:
            status, reason = (
                "below_low",
                f"the bound is exceeded at the lowest rate probed, {settings.low_rate_per_s:g} requests/s",
            )
        elif self._rates.missed_per_s is None:
            status, reason = (
                "above_high",
                f"the bound is met at the highest rate probed, {settings.high_rate_per_s:g} requests/s",
            )
        flags = []
        if not all(probe.is_sufficient for probe in self.probes):
            flags.append(
                f"a P99 of {settings.num_requests} requests has fewer than {LEAST_BEYOND} beyond it; set"
                " capacity.num_requests to 1000 or more"
            )
        late = [probe for probe in self.probes if (probe.p99_lateness_ns or 0) > settings.max_p99_delay_ms * 1e5]
        if late:
            flags.append(
                f"the driver's own lateness is more than a tenth of the bound at P99 in {len(late)} of"
                f" {len(self.probes)} probes"
            )
        return CapacityFound.model_validate(
            {
                "status": status,
                "capacity_per_s": self._rates.met_per_s,
                "upper_per_s": self._rates.missed_per_s,
                "num_probes": len(self.probes),
                "reason": reason,
                "flags": flags,
            }
        )


def judge(seen: Seen, settings: Capacity, side: str, index: int, rate_per_s: float) -> Probe:
    """A probe and its verdict.

    A request that failed has no delay. The bound is exceeded for certain where it would be even if every one of those
    had been scheduled at once; else a probe with failed requests is not judged. Nor is one in which the engine died,
    whatever its delays: there is no engine left to search on.
    """
    delay = seen.scheduled_ns - seen.arrival_ns
    known = ~np.isnan(delay) & ~np.isnan(seen.completion_ns)
    num_failed = int((~known).sum())
    bound_ns = settings.max_p99_delay_ms * 1e6
    told = delay[known]
    verdict, reason = "unjudged", ""
    if seen.death:
        reason = f"the engine died: {seen.death}"
    elif np.percentile(np.where(known, delay, 0.0), 99) > bound_ns:
        verdict = "broken"
    elif num_failed:
        reason = f"{num_failed} of {len(delay)} requests failed, so the P99 of their delay is not known"
    else:
        verdict = "kept"
    late = None if seen.lateness_ns is None else seen.lateness_ns[~np.isnan(seen.lateness_ns)]
    span_s = (seen.completion_ns[known].max() - seen.arrival_ns.min()) / 1e9 if len(told) else math.nan
    return Probe(
        side=side,
        probe_index=index,
        rate_per_s=rate_per_s,
        seed=settings.seed,
        num_requests=len(delay),
        num_failed=num_failed,
        p50_delay_ns=_percentile(told, 50),
        p99_delay_ns=_percentile(told, 99),
        max_delay_ns=int(told.max()) if len(told) else None,
        p99_lateness_ns=None if late is None else _percentile(late, 99),
        requests_per_s=len(told) / span_s if span_s > 0 else None,
        tokens_per_s=seen.num_tokens / span_s if span_s > 0 else None,
        verdict=verdict,
        is_sufficient=len(delay) * _BEYOND_P99 >= LEAST_BEYOND,
        reason=reason,
    )


def _percentile(values: np.ndarray, percent: int) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def seen_in_tables(requests: pd.DataFrame, *, has_lateness: bool, death: str | None = None) -> Seen:
    """What a probe saw, from its request_metrics table. `has_lateness`: a driver sent the requests."""
    ok = (requests["status"] == "ok").to_numpy(dtype=bool)

    def of(name: str) -> np.ndarray:
        return np.where(ok, requests[name].to_numpy(dtype="float64", na_value=math.nan), math.nan)

    arrival = requests["arrival_time_ns"].to_numpy(dtype="float64")
    late = requests["send_time_ns"].to_numpy(dtype="float64", na_value=math.nan) - arrival if has_lateness else None
    tokens = int(requests["num_decode_tokens_actual"].to_numpy(dtype="int64")[ok].sum())
    return Seen(arrival, of("scheduled_time_ns"), of("completion_time_ns"), late, tokens, death)


def probes_table(probes: list[Probe]) -> pd.DataFrame:
    """The table `contracts.tables.CapacityProbes`."""
    return pd.DataFrame([asdict(probe) for probe in probes], columns=list(PROBE_TYPES)).astype(PROBE_TYPES)


def probe_told(probe: Probe) -> str:
    """One line for people who watch the search."""
    delay = "-" if probe.p99_delay_ns is None else f"{milliseconds(probe.p99_delay_ns, '.1f')} ms"
    late = "-" if probe.p99_lateness_ns is None else f"{milliseconds(probe.p99_lateness_ns, '.2f')} ms"
    served = number(probe.requests_per_s, 2, grouped=False, missing="-")
    why = f" ({probe.reason})" if probe.reason else ""
    return (
        f"probe {probe.probe_index}: {probe.rate_per_s:.3f} requests/s: P99 delay {delay}, lateness {late}, served"
        f" {served} requests/s, {probe.num_failed} failed: {probe.verdict}{why}"
    )


def result_sentence(side: str, found: CapacityFound) -> str:
    """One line for people."""
    match found.status:
        case "found":
            told = f"{found.capacity_per_s:.2f} requests/s (met there, exceeded at {found.upper_per_s:.2f})"
        case "above_high":
            told = f"at least {found.capacity_per_s:.2f} requests/s ({found.reason})"
        case "below_low":
            told = f"not known ({found.reason})"
        case _:
            between = " and ".join(
                f"{what} {rate:.2f}"
                for what, rate in (("met at", found.capacity_per_s), ("exceeded at", found.upper_per_s))
                if rate is not None
            )
            told = f"not known ({found.reason}{'; ' + between if between else ''})"
    flags = "".join(f" Flag: {flag}." for flag in found.flags)
    return f"{side}: {told}, {found.num_probes} probes.{flags}"
