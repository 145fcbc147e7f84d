"""What is measured of an aligned side, and the statistics of it. What a latency is, is defined here and nowhere else.

Latencies (nanoseconds; `docs/comparison.md` says where other tools differ)
- `ttft` time to first token: `first_token_time_ns - arrival_time_ns`, one sample a request. Arrival is the intended
  one.
- `itl` inter-token latency: the gap to the previous token, pooled over all tokens with `token_index` > 0. None where a
  side knows no token times.
- `tpot` time per output token: a request's mean gap, (last compared token - first token) / (tokens - 1), one sample a
  request of two tokens or more. Long requests weigh more in ITL than in TPOT.
- `e2e` end-to-end latency: time of the last compared token - arrival, one sample a request.
- `normalized` normalised latency: E2E / compared tokens, one sample a request.
- `normalized_execution` normalised execution latency: (last compared token - first scheduled) / compared tokens, one
  sample a request. With `normalized` the two latencies that Vidur's paper reports (Agrawal et al., MLSys 2024). None
  where a side does not record scheduling.

Percentiles interpolate linearly between order statistics (numpy's `linear`, type 7 of Hyndman and Fan 1996, "Sample
Quantiles in Statistical Packages").

How sure a statistic is, belongs to `bootstrap`; whether an error is small enough, to `verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import SCHEDULED, AlignedSide
from gst_assets.analysis.run_reading import RealRun, SimulatedRun

Measure = Literal["ttft", "itl", "tpot", "e2e", "normalized", "normalized_execution"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
MEASURE_NAMES: dict[Measure, str] = {
    "ttft": "TTFT",
    "itl": "ITL",
    "tpot": "TPOT",
    "e2e": "E2E",
    "normalized": "E2E per token",
    "normalized_execution": "execution per token",
}
PER_REQUEST: tuple[Measure, ...] = ("ttft", "tpot", "e2e", "normalized", "normalized_execution")
"""Measures with one sample a request, which can be paired."""
MAIN_MEASURES: tuple[Measure, ...] = ("ttft", "itl", "e2e")
"""Those whose dependence decides the block length, that are drawn with a band, and whose errors are explained."""

PERCENTILES = (50, 90, 95, 99)
STATISTICS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
MIN_SAMPLES_BEYOND = 10
"""A percentile with fewer samples beyond it rests on a handful of events; it is shown, and not judged."""
MIN_SAMPLES_BEYOND_IN_REPEATS = 2
"""As many have to lie beyond a percentile where repeats say how much it varies: then it does not depend on the largest
sample alone."""
MIN_REQUESTS = 20
"""Tokens of a request depend on each other, so requests are what is counted: with fewer of them nothing is judged."""


@dataclass(frozen=True)
class Samples:
    """Samples of one measure, clustered by request.

    `values` in nanoseconds (int64 or float64), ordered by request; `counts[i]` of them belong to request i of the
    workload, 0 where it was not compared.
    """

    values: np.ndarray
    counts: np.ndarray

    @property
    def num_requests(self) -> int:
        """Requests that contribute a sample."""
        return int(np.count_nonzero(self.counts))

    def ordered(self) -> np.ndarray:
        """The values in ascending order."""
        return np.sort(self.values)

    @cached_property
    def sums(self) -> np.ndarray:
        """Sum of the values of each request, float64."""
        return self._by_request(self.values, np.float64)

    def num_above(self, percentiles: Sequence[float]) -> list[np.ndarray]:
        """For each percentile, how many samples of each request are above the one of its rank (not interpolated),
        float64."""
        ranks = [int(len(self.values) * percentile / 100) for percentile in percentiles]
        levels = np.partition(self.values, ranks)[ranks]
        return [self._by_request(self.values > level, np.int64).astype(np.float64) for level in levels]

    def _by_request(self, numbers: np.ndarray, dtype: type) -> np.ndarray:
        """Sum of `numbers`, one a sample, of each request; in one pass, which memory bounds where samples are many."""
        total: np.ndarray = np.zeros(len(numbers) + 1, dtype=dtype)
        np.cumsum(numbers, dtype=dtype, out=total[1:])
        ends = np.cumsum(self.counts)
        return total[ends] - total[ends - self.counts]


def samples_ns(side: AlignedSide, measure: Measure) -> np.ndarray:
    """Samples of one side in nanoseconds, in request (and token) order."""
    if measure == "itl":
        latencies = side.tokens["token_latency_ns"].to_numpy()
        return latencies[side.tokens["token_index"].to_numpy() > 0]
    requests = side.requests
    tokens = requests["num_tokens"].to_numpy()
    if measure == "tpot":
        some = tokens > 1
        return (requests["e2e_ns"].to_numpy() - requests["ttft_ns"].to_numpy())[some] / (tokens[some] - 1)
    if measure == "normalized":
        return requests["e2e_ns"].to_numpy() / tokens
    if measure == "normalized_execution":
        if SCHEDULED not in requests:
            return np.zeros(0)
        waited = requests[SCHEDULED].to_numpy() - requests["arrival_time_ns"].to_numpy()
        return (requests["e2e_ns"].to_numpy() - waited) / tokens
    return requests[f"{measure}_ns"].to_numpy()


def clustered(side: AlignedSide, measure: Measure, num_requests: int) -> Samples:
    """Samples of one side with the count of each of the workload's `num_requests` requests."""
    tokens = side.requests["num_tokens"].to_numpy()
    per_request = {"itl": tokens - 1, "tpot": (tokens > 1).astype(np.int64)}.get(measure, np.ones_like(tokens))
    if (measure == "normalized_execution" and SCHEDULED not in side.requests) or (
        measure == "itl" and side.tokens.empty
    ):
        per_request = np.zeros_like(tokens)
    counts = np.zeros(num_requests, dtype=np.int64)
    counts[side.requests["request_id"].to_numpy()] = per_request
    return Samples(samples_ns(side, measure), counts)


def statistics_ns(ordered: np.ndarray) -> np.ndarray:
    """Mean and percentiles of ascending samples in the order of `STATISTICS`; NaN without samples."""
    if not len(ordered):
        return np.full(len(STATISTICS), math.nan)
    return np.array([ordered.mean(dtype=np.float64), *(percentile_ns(ordered, one) for one in PERCENTILES)])


def percentile_ns(ordered: np.ndarray, percentile: float) -> float:
    """Percentile of ascending samples (linear interpolation); NaN without samples."""
    return _percentile(ordered.__getitem__, len(ordered), percentile)


def percentiles_of_counts_ns(values: np.ndarray, counts: np.ndarray, percentiles: Sequence[float]) -> list[float]:
    """`percentile_ns` of samples given as values in any order and how often each occurs, shape (values,) both."""
    order = np.argsort(values, kind="stable")
    ordered, ends = values[order], np.cumsum(counts[order])
    size = int(ends[-1]) if len(ends) else 0

    def at(rank: int) -> float:
        return ordered[np.searchsorted(ends, rank, side="right")]

    return [_percentile(at, size, one) for one in percentiles]


def _percentile(at: Callable[[int], float], size: int, percentile: float) -> float:
    """Of `size` samples, of which `at` gives the one of a rank from 0."""
    if not size:
        return math.nan
    position = (size - 1) * percentile / 100
    below = int(position)
    above = min(below + 1, size - 1)
    return float(at(below) + (float(at(above)) - float(at(below))) * (position - below))


def is_sufficient(statistic: str, num_samples: int, num_requests: int, beyond: int = MIN_SAMPLES_BEYOND) -> bool:
    """Whether a statistic can be judged: 20 requests, and so many samples beyond a percentile (ten: 100 for P90, 200
    for P95, 1,000 for P99)."""
    return num_requests >= MIN_REQUESTS and num_samples >= samples_needed(statistic, beyond)


def samples_needed(statistic: str, beyond: int = MIN_SAMPLES_BEYOND) -> int:
    """Samples of which so many lie beyond a percentile; for the mean as for no percentile."""
    share = 100 - int(statistic[1:]) if statistic != "mean" else 100
    return -(-beyond * 100 // share)


def relative_error(sim: float, real: float) -> float:
    """(sim - real) / real; 0 where both are 0, NaN where only the real value is 0 or either is missing."""
    if real == 0:
        return 0.0 if sim == 0 else math.nan
    return (sim - real) / real


# --- distances and paired errors --------------------------------------------------------------------------------------


def wasserstein_ns(one: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 distance of two ascending samples of equal size, in their unit: the mean gap between equal ranks.

    (For empirical distributions of one size the optimal transport pairs order statistics; Villani 2003, "Topics in
    Optimal Transportation", 2.18.) NaN where a side has no sample.
    """
    return float(np.abs(one - other).mean()) if len(one) and len(other) else math.nan


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    """Largest gap between the distribution functions of two ascending samples: an effect size in 0..1.

    No p-value goes with it: requests share batches, so the samples are not independent.
    """
    if not len(one) or not len(other):
        return math.nan
    gaps = []
    for at in (one, other):
        gaps.append(
            np.abs(
                np.searchsorted(one, at, side="right") / len(one)
                - np.searchsorted(other, at, side="right") / len(other)
            ).max()
        )
    return float(max(gaps))


@dataclass(frozen=True)
class Paired:
    """Errors of one measure, request by request. Relative ones are over the requests whose real value is not 0.

    `mape` mean and `median_ape` median of |relative error|; `bias` mean of the signed one; `rank_correlation`
    Spearman's, NaN where one side is constant.
    """

    num_requests: int
    num_undefined: int
    mape: float
    median_ape: float
    bias: float
    mean_error_ns: float
    rank_correlation: float


def paired(real: np.ndarray, sim: np.ndarray) -> Paired:
    """Errors of simulated values against the real values of the same requests."""
    if not len(real):
        return Paired(0, 0, *[math.nan] * 5)
    error = sim.astype(np.float64) - real
    defined = (real != 0) | (error == 0)
    relative = np.divide(error, real, out=np.zeros(len(real)), where=real != 0)[defined]
    size = np.abs(relative)
    some = len(relative) > 0
    return Paired(
        num_requests=len(real),
        num_undefined=int((~defined).sum()),
        mape=float(size.mean()) if some else math.nan,
        median_ape=float(np.median(size)) if some else math.nan,
        bias=float(relative.mean()) if some else math.nan,
        mean_error_ns=float(error.mean()),
        rank_correlation=_spearman(real, sim),
    )


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (one, other)]
    if len(one) < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# --- a run as a whole -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A run as a whole, over the compared requests of one side.

    `duration_ns` first arrival to last compared token; queue lengths are time averages and peaks over it, from
    `Timeline`; `scheduling_delay_ns` mean of `scheduled_time_ns - arrival_time_ns`, NaN where the run does not record
    it.
    """

    duration_ns: float
    requests_per_s: float
    tokens_per_s: float
    mean_running: float
    max_running: float
    mean_waiting: float
    max_waiting: float
    scheduling_delay_ns: float
    num_preemptions: float


@dataclass(frozen=True)
class Timeline:
    """Requests running and waiting as step functions: from `time_ns[i]` on, until the next. `source` says where they
    are from."""

    time_ns: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    source: Literal["iterations.csv", "request times", "request times, prefill counted as waiting"]


def timeline(run: RealRun | SimulatedRun, side: AlignedSide) -> Timeline:
    """Running and waiting requests over time.

    From iterations.csv where the run has it (the scheduler's own counts after it formed a step); else from the compared
    requests: waiting from arrival until scheduled, running from there to the last token. Where the run does not record
    when a request was scheduled, its prefill cannot be separated from its waiting: it waits until its first token.
    """
    table = run.iterations
    if table is not None and len(table):
        time, running, waiting = (
            table[name].to_numpy(dtype="int64") for name in ("scheduled_time_ns", "num_running", "num_waiting")
        )
        order = np.argsort(time, kind="stable")
        # The last step's requests are gone when it completes.
        end = int(table["completion_time_ns"].max())
        return Timeline(
            np.append(time[order], max(end, int(time.max()))),
            np.append(running[order], 0),
            np.append(waiting[order], 0),
            "iterations.csv",
        )
    arrival, ttft, e2e = (side.requests[name].to_numpy() for name in ("arrival_time_ns", "ttft_ns", "e2e_ns"))
    begin, told = arrival + ttft, False
    if "scheduled_time_ns" in run.requests:
        column = run.requests["scheduled_time_ns"].iloc[side.requests["request_id"].to_numpy()]
        scheduled = column.to_numpy(dtype="int64", na_value=-1)
        told = bool(((scheduled >= arrival) & (scheduled <= arrival + e2e)).all())
        begin = scheduled if told else begin
    times = np.unique(np.concatenate([arrival, begin, arrival + e2e]))
    arrived, begun, ended = (
        np.searchsorted(np.sort(moments), times, side="right") for moments in (arrival, begin, arrival + e2e)
    )
    source: Literal["request times", "request times, prefill counted as waiting"] = (
        "request times" if told else "request times, prefill counted as waiting"
    )
    return Timeline(times, begun - ended, arrived - begun, source)


def whole(run: RealRun | SimulatedRun, side: AlignedSide, line: Timeline) -> Whole:
    """Throughput, queue lengths and scheduling delay of one side of an aligned pair."""
    requests = side.requests
    end = int((requests["arrival_time_ns"] + requests["e2e_ns"]).max())
    duration = end - int(requests["arrival_time_ns"].min())
    seconds = duration / 1e9 if duration else math.nan
    lengths = np.diff(line.time_ns)
    weight = lengths / lengths.sum() if len(lengths) and lengths.sum() else None
    ids = requests["request_id"].to_numpy()
    table = run.requests.iloc[ids]
    delay = math.nan
    if "scheduled_time_ns" in table and table["scheduled_time_ns"].notna().all():
        delay = float((table["scheduled_time_ns"] - table["arrival_time_ns"]).mean())
    known = "num_preemptions" in table and table["num_preemptions"].notna().all()
    return Whole(
        duration_ns=float(duration),
        requests_per_s=len(requests) / seconds,
        tokens_per_s=float(requests["num_tokens"].sum()) / seconds,
        mean_running=float(line.running[:-1] @ weight) if weight is not None else math.nan,
        max_running=float(line.running.max()),
        mean_waiting=float(line.waiting[:-1] @ weight) if weight is not None else math.nan,
        max_waiting=float(line.waiting.max()),
        scheduling_delay_ns=delay,
        num_preemptions=float(table["num_preemptions"].sum()) if known else math.nan,
    )


def requests_in_system(side: AlignedSide) -> np.ndarray:
    """For each compared request, how many other compared ones had arrived and not finished when it arrived."""
    arrival, e2e = side.requests["arrival_time_ns"].to_numpy(), side.requests["e2e_ns"].to_numpy()
    arrived = np.searchsorted(np.sort(arrival), arrival, side="left")
    ended = np.searchsorted(np.sort(arrival + e2e), arrival, side="right")
    # Of requests that arrive together none is there yet; one that took no time has ended by its own arrival.
    return np.maximum(arrived - ended, 0)


def group_edges(values: np.ndarray, groups: Sequence[float] = (0.25, 0.5, 0.75)) -> np.ndarray:
    """Upper edges (inclusive) that cut values into at most four groups of about equal size; equal values stay
    together."""
    return np.unique(np.append(np.quantile(values, groups, method="lower"), values.max()))
