"""Confidence intervals for relative errors of dependent latencies: a circular block bootstrap over requests in order of
arrival.

Requests share batches and queues, so neighbours depend on each other, and so do the tokens of a request. Whole blocks
of neighbouring requests are therefore drawn, each with all its tokens, and the same blocks on both sides, which keeps
the pairing (Kunsch 1989, "The Jackknife and the Bootstrap for General Stationary Observations"; circular as in Politis
and Romano 1992, so that the ends count as much as the middle).

- Block length: twice the automatic choice of Politis and White (2004) with the correction of Patton, Politis and White
  (2009), for the circular bootstrap, as the largest over the series that the errors are made of and the latencies
  themselves; at least 2 n^(1/3), at most n / 4. Twice, because their choice minimises the error of a variance and not
  of a coverage, and covered less in the study.
- Sessions: where turns wait for the answers before them, the turns of a session depend on each other whatever lies
  between them. Then whole sessions are drawn, in order of their beginning, and a block's length counts them.
- Interval: the accelerated percentiles (Efron 1987, "Better Bootstrap Confidence Intervals": acceleration = skewness /
  6, without the bias term) of log(sim / real) over the replicates, about the estimate, widened by the fixed-b critical
  value of Kiefer and Vogelsang (2005), table 1 (Bartlett kernel, whose variance estimator the block bootstrap's is):
  long blocks are few, and plain percentile intervals then cover too little.
- Whether there is enough to resample: `Blocks.long_enough`, and `Replicates.independent`, the independent samples
  beyond a percentile that would leave its level as uncertain as the replicates show it. Nothing computed from the data
  can know busy periods that were not seen; these two say when few were.
- Repeats: the replicates hold every repeat; what repeats differ by is added as the t interval of their log ratios
  (degrees of freedom: repeats - 1), combined with the former by square-and-add (Zou and Donner 2008). Noise that is
  inside both is counted twice: wider, not narrower.

Replicates of percentiles are read off weighted counts at a grid of values, which is dense about each percentile: one
matrix product, whatever the number of tokens. Measured coverage: docs/comparison.md
(`benchmarks/interval_coverage.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from gst_assets.analysis.measures import PERCENTILES, STATISTICS, Samples
from gst_assets.analysis.repeats import t_quantile

LEVEL = 0.95
_TAILS = (0.025, 0.975)
_NORMAL = 1.959963984540054
"""The normal distribution is below it with the second share of `_TAILS`."""
NUM_REPLICATES = 1000
SEED = 20260101
MIN_STRETCHES = 10
"""Fewer blocks than this, where dependence makes them long, are too few to judge by."""
_LENGTHEN = 2.0
_MAX_ACCELERATION = 0.2
_MAX_UNITS = 4096
_DENSE_LEVELS = 101
_GLOBAL_LEVELS = 101


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval of a relative error; NaN where it is not known, infinite where it is open."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Blocks:
    """How requests are resampled: `order` are request ids by arrival, `length` the items of a block. Items are
    requests, or with `sessions` (by request id, numbered in the order in which they begin) whole sessions.

    Of very many items `unit` neighbours are drawn together, so that blocks begin at every `unit`-th item only: a
    block is several units long, and which of the neighbours it begins at makes no difference.
    """

    order: np.ndarray
    length: int
    num_replicates: int = NUM_REPLICATES
    seed: int = SEED
    sessions: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        """Requests of the workload, or sessions."""
        return len(self.order) if self.sessions is None else int(self.sessions.max()) + 1

    @property
    def items(self) -> str:
        """What they are, in words."""
        return "requests" if self.sessions is None else "sessions"

    @property
    def long_enough(self) -> bool:
        """Whether the run is long against the time over which items depend on each other. Blocks of the least length,
        which only the number of items decides, always are: what few items are worth is `Replicates.independent`."""
        return self.length <= least_length(self.num_items) or self.num_items >= MIN_STRETCHES * self.length

    @property
    def unit(self) -> int:
        """Items that are drawn together."""
        return -(-self.num_items // _MAX_UNITS)

    @property
    def num_units(self) -> int:
        """Units of the workload; the last may be smaller."""
        return -(-self.num_items // self.unit)

    @cached_property
    def unit_of(self) -> np.ndarray:
        """The unit of each request, by id."""
        if self.sessions is not None:
            return self.sessions // self.unit
        units = np.empty(self.num_items, dtype=np.int64)
        units[self.order] = np.arange(self.num_items) // self.unit
        return units

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each unit is drawn, float32 [replicates, units]."""
        n, length = self.num_units, max(1, round(self.length / self.unit))
        draws = -(-n // length)
        # The last block is cut, so that each replicate has n units.
        begin = np.random.default_rng(self.seed).integers(0, n, size=(self.num_replicates, draws))
        end = begin + length
        end[:, -1] = begin[:, -1] + n - (draws - 1) * length
        # +1 where a block begins and -1 where it ends; blocks that run over the end go on at the beginning.
        width = 2 * n + 1
        row = np.arange(self.num_replicates)[:, None] * width
        steps = np.bincount((row + begin).ravel(), minlength=self.num_replicates * width)
        steps -= np.bincount((row + end).ravel(), minlength=self.num_replicates * width)
        drawn = np.cumsum(steps.reshape(-1, width), axis=1)
        return (drawn[:, :n] + drawn[:, n : 2 * n]).astype(np.float32)


def block_length(repeats: Sequence[Sequence[np.ndarray]]) -> int:
    """Requests a block, for the series of each repeat (the same in each) by request in order of arrival. All have one
    length n.

    The most dependent series decides, each by its median over the repeats: the largest of many estimates is mostly the
    noisiest.
    """
    n = len(repeats[0][0])
    chosen = max(float(np.median([_politis_white(one) for one in same])) for same in zip(*repeats, strict=True))
    return max(1, min(max(math.ceil(_LENGTHEN * chosen), least_length(n)), n // 4))


def least_length(num_items: int) -> int:
    """Items a block where nothing depends on anything."""
    return max(1, min(math.ceil(_LENGTHEN * num_items ** (1 / 3)), num_items // 4))


def _politis_white(series: np.ndarray) -> float:
    """Optimal block length of the circular block bootstrap of a mean (Politis and White 2004, with the correction of
    2009)."""
    n = len(series)
    centred = series - series.mean()
    variance = float(centred @ centred) / n
    # Below the rounding of the mean there is no variation to depend on anything.
    if n < 8 or variance <= (1e-12 * float(np.abs(series).max() or 1.0)) ** 2:
        return 1.0
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))
    reach = math.ceil(math.sqrt(n)) + quiet
    lags = _autocovariances(centred, min(2 * reach, n - 1) + 1)
    small = np.abs(lags[1 : reach + 1] / lags[0]) < 2 * math.sqrt(math.log10(n) / n)
    runs = np.convolve(small, np.ones(quiet, dtype=int), mode="valid") == quiet
    first = int(runs.argmax()) if runs.any() else int(np.flatnonzero(~small).max()) + 1
    bandwidth = min(2 * max(first, 1), len(lags) - 1)
    lag = np.arange(1, bandwidth + 1)
    window = np.minimum(1.0, 2 * (1 - lag / bandwidth))
    long_run = lags[0] + 2 * float(window @ lags[1 : bandwidth + 1])
    slope = 2 * float((window * lag) @ lags[1 : bandwidth + 1])
    if long_run <= 0:
        return 1.0
    length = (2 * slope**2 / (4 / 3 * long_run**2)) ** (1 / 3) * n ** (1 / 3)
    return min(length, 3 * math.sqrt(n), n / 3)


def _autocovariances(centred: np.ndarray, count: int) -> np.ndarray:
    """Of a series without its mean, at the lags 0, 1, ... `count` - 1; by way of its spectrum (Wiener and Khinchin),
    which takes n log n where the sums take n times the lags."""
    size = 1 << (len(centred) + count).bit_length()  # so much room that the series does not meet itself
    spectrum = np.fft.rfft(centred, size)
    found: np.ndarray = np.fft.irfft(spectrum * spectrum.conj(), size)[:count] / len(centred)
    return found


def fixed_b_factor(length: int, num_items: int) -> float:
    """By how much an interval is widened for blocks of `length` of `num_items`: critical value over the normal one.

    Kiefer and Vogelsang (2005), "A New Asymptotic Theory for Heteroskedasticity-Autocorrelation Robust Tests", table 1,
    97.5 %.
    """
    b = length / num_items
    return (1.9600 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3) / 1.9600


# --- replicates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replicates:
    """Statistics of one side under resampling: `values` [replicates, STATISTICS] and `whole` [STATISTICS] of the same
    computation on every request once, which differs from the exact statistics by the grid.

    `independent` [STATISTICS]: how many independent samples beyond the percentile the samples are worth; for the mean,
    which depends on how large the largest are, half of those beyond P95. Infinite where no replicate differs.
    """

    values: np.ndarray
    whole: np.ndarray
    independent: np.ndarray


def replicate(samples: Samples, ordered: np.ndarray, blocks: Blocks) -> Replicates:
    """Mean and percentiles of clustered samples in every replicate. `ordered` are their values in ascending order."""
    grid = _grid(ordered)
    sums = np.bincount(blocks.unit_of, samples.sums, blocks.num_units)
    columns = np.column_stack([_counts(samples, blocks), sums, _counts_below(samples, grid, blocks)]).astype(np.float32)
    once = np.ones((1, blocks.num_units), dtype=np.float32)
    drawn, whole = blocks.weights @ columns, once @ columns
    return Replicates(_statistics(drawn, grid), _statistics(whole, grid)[0], _independent(drawn, whole, blocks))


def band(samples: Samples, ordered: np.ndarray, levels: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, ...]:
    """Pointwise 95 % band of the distribution function: values at the quantile `levels`, and its low and high ends
    there."""
    grid = np.unique(np.quantile(ordered, levels, method="lower"))
    columns = np.column_stack([_counts(samples, blocks), _counts_below(samples, grid, blocks)]).astype(np.float32)
    drawn = blocks.weights @ columns
    share = drawn[:, 1:] / drawn[:, :1]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(share, [tail, 1 - tail], axis=0)
    return grid, low, high


def _grid(ordered: np.ndarray) -> np.ndarray:
    """Ascending values, the largest among them, that lie dense about each percentile; all different values where they
    are few."""
    distance = np.linspace(-1, 1, _DENSE_LEVELS) ** 3
    levels = [np.linspace(0, 1, _GLOBAL_LEVELS)]
    for percentile in PERCENTILES:
        level = percentile / 100
        levels.append(level + np.where(distance < 0, min(level, 2 * (1 - level)), 1 - level) * distance)
    ranks = np.unique(np.ceil(np.clip(np.concatenate(levels), 0, 1) * (len(ordered) - 1)).astype(np.int64))
    return np.unique(ordered[ranks])


def _counts(samples: Samples, blocks: Blocks) -> np.ndarray:
    """Samples of each unit."""
    return np.bincount(blocks.unit_of, samples.counts, blocks.num_units)


def _counts_below(samples: Samples, grid: np.ndarray, blocks: Blocks) -> np.ndarray:
    """For each unit, how many of its samples are at most each grid value: [units, grid]."""
    at = np.searchsorted(grid, samples.values, side="left")
    at += np.repeat(blocks.unit_of * len(grid), samples.counts)
    counts = np.bincount(at, minlength=blocks.num_units * len(grid)).reshape(blocks.num_units, len(grid))
    return np.cumsum(counts, axis=1)


def _statistics(drawn: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Mean and percentiles from [replicates, 2 + grid] of sample counts, sums, and counts at most each grid value."""
    total = drawn[:, :1].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = drawn[:, 1].astype(np.float64) / total[:, 0]
    found = [mean]
    for percentile in PERCENTILES:
        # The inverse distribution function: the smallest grid value with at least this share at or below. Half a count
        # of rounding room.
        rank = (drawn[:, 2:] < total * (percentile / 100) - 0.5).sum(axis=1)
        found.append(grid[np.minimum(rank, len(grid) - 1)].astype(np.float64))
    return np.where(total > 0, np.column_stack(found), math.nan)


def _independent(drawn: np.ndarray, whole: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Of n independent samples the share s above a level has variance s (1 - s) / n. That n, from the variance over
    replicates (widened as the interval is), times the share beyond the percentile."""
    above, expected = (1 - one[:, 2:].astype(np.float64) / np.maximum(one[:, :1], 1) for one in (drawn, whole))
    factor = fixed_b_factor(blocks.length, blocks.num_items)
    found = []
    for percentile in (95, *PERCENTILES):
        at = min(int((expected[0] > 1 - percentile / 100).sum()), expected.shape[1] - 1)
        share, variance = float(expected[0, at]), float(np.var(above[:, at])) * factor**2
        # Equal samples at the percentile may leave nothing above it.
        known = share > 0 and variance > 0
        found.append((1 - percentile / 100) * share * (1 - share) / variance if known else math.inf)
    found[0] /= 2
    return np.array(found)


# --- intervals --------------------------------------------------------------------------------------------------------


def intervals(
    real: Sequence[Replicates],
    sim: Sequence[Replicates],
    real_ns: np.ndarray,
    sim_ns: np.ndarray,
    blocks: Blocks,
) -> list[Interval]:
    """95 % intervals of (sim - real) / real for each of `STATISTICS`.

    `real` and `sim` are the replicates of each repeat; `real_ns` and `sim_ns` the exact statistics of each, [repeats,
    STATISTICS]. A side's value is the median over repeats, as in the report.
    """
    drawn = _log_ratio(np.median([one.values for one in sim], axis=0), np.median([one.values for one in real], axis=0))
    centre = _log_ratio(np.median([one.whole for one in sim], axis=0), np.median([one.whole for one in real], axis=0))
    estimate = _log_ratio(np.median(sim_ns, axis=0), np.median(real_ns, axis=0))
    between = [_between_repeats(one) for one in _log_ratio(sim_ns, real_ns).T]
    factor = fixed_b_factor(blocks.length, blocks.num_items)
    found = []
    for column in range(len(STATISTICS)):
        if not math.isfinite(estimate[column]) or not math.isfinite(centre[column]) or np.isnan(drawn[:, column]).any():
            found.append(UNKNOWN)
            continue
        # Ends by order statistic, so that an infinite replicate (a real value of 0) opens the interval and breaks no
        # arithmetic.
        ends = np.quantile(drawn[:, column], _levels(drawn[:, column]), method="inverted_cdf") - centre[column]
        low, high = min(factor * ends[0], 0.0), max(factor * ends[1], 0.0)
        width = between[column]
        low, high = estimate[column] - math.hypot(low, width), estimate[column] + math.hypot(high, width)
        found.append(Interval(math.exp(low) - 1, math.exp(high) - 1 if high < 700 else math.inf))
    return found


def _levels(drawn: np.ndarray) -> list[float]:
    """Shares of the replicates below the ends of the interval: accelerated, so that the end on the side of the longer
    tail lies further out."""
    deviation = drawn - drawn.mean() if np.isfinite(drawn).all() else np.zeros(1)
    size = float(np.sqrt((deviation**2).mean()))
    # Replicates that differ by rounding only have no shape.
    skewness = float((deviation**3).mean()) / size**3 if size > 1e-9 else 0.0
    acceleration = min(max(skewness / 6, -_MAX_ACCELERATION), _MAX_ACCELERATION)
    if not acceleration:
        return list(_TAILS)
    # Not scipy's, whose import takes longer than all of the above.
    return [math.erfc(-z / (1 - acceleration * z) / math.sqrt(2)) / 2 for z in (-_NORMAL, _NORMAL)]


def _log_ratio(sim: np.ndarray, real: np.ndarray) -> np.ndarray:
    """log(sim / real); 0 where both are 0, infinite where one is, NaN where either is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(sim) - np.log(real)
    return np.where((sim == 0) & (real == 0), 0.0, ratio)


def _between_repeats(ratios: np.ndarray) -> float:
    """Half width of the t interval of a median over repeats, from the log ratio of each; 0 for one repeat."""
    repeats = len(ratios)
    if repeats < 2:
        return 0.0
    if not np.isfinite(ratios).all():
        return math.inf
    # The median of two is their mean; of more, its variance is at most about pi / 2 times that of the mean.
    inefficiency = 1.0 if repeats == 2 else math.pi / 2
    error = math.sqrt(inefficiency * float(np.var(ratios, ddof=1)) / repeats)
    return t_quantile(repeats - 1) * error


def dependence(real: Samples, sim: Samples, order: np.ndarray, sessions: np.ndarray | None = None) -> list[np.ndarray]:
    """What the errors of one measure are made of, by request in order of arrival: the linear part of log(mean sim /
    mean real), and at P50 and P90 the difference of the two sides' counts above their percentile; and the rank of each
    side's latency, since errors depend on load. `block_length` looks at how these depend on their neighbours.
    With `sessions` (`Blocks.sessions`) the sums over each, in the order in which they begin."""
    means = [float(side.values.mean(dtype=np.float64)) for side in (sim, real)]
    parts = [side.sums / (mean or 1.0) - side.counts for side, mean in zip((sim, real), means, strict=True)]
    series = [parts[0] - parts[1]]
    above = [side.num_above((50, 90)) for side in (sim, real)]
    series += [ours - theirs for ours, theirs in zip(*above, strict=True)]
    series += [_ranks(side) for side in (sim, real)]
    if sessions is not None:
        return [np.bincount(sessions, one - one.mean()) for one in series]
    return [one[order] for one in series]


def _ranks(samples: Samples) -> np.ndarray:
    """Rank of each request's mean latency; requests that were not compared are in the middle."""
    means = np.divide(
        samples.sums, samples.counts, out=np.full(len(samples.counts), math.nan), where=samples.counts > 0
    )
    ranks = pd.Series(means).rank()
    return ranks.fillna(ranks.mean()).to_numpy()
