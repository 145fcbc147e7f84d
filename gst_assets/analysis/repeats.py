"""How sure an error on this workload is: from repeats of the engine and seeds of the simulation, the only two things
that vary. Both sides play the same requests at the same times, or with the same think times, so nothing is resampled.

The estimate is the median over repeats of log(simulated / real), the error of a typical repeat. Its 95 % interval is
the wider of two:
- Student's t about the median, on the log ratios, for few values: the variance of the median of n normal values over
  that of their mean is exact for up to ten (`_INEFFICIENCY`).
- The range of the repeats, which holds the median of any distribution, however shaped, with probability 1 - 2^(1-n): 94
  % for five. This prevents an engine with two speeds (bimodal hosts) from being taken for one with one speed. Of nine
  repeats or more the order statistics that hold it with 95 %.

Seeds of the simulation have a t interval of their own, combined with it by square-and-add (Zou and Donner 2008). Welch
and Satterthwaite's degrees of freedom would be too many where two repeats agree by chance: 0.86 to 0.92 instead of 0.95
in the study.

Repeats are ordered in time and may drift. The t interval is widened by their lag-1 autocorrelation (corrected for its
bias of -1/n, positive only); where they rise or fall all the time (Spearman's correlation with the order, two-sided
level 10 %) they count as one observation. Four repeats or fewer cannot show that an engine has one speed: their
interval assumes it, and is flagged.

Coverage and false verdicts, measured: docs/comparison.md (`benchmarks/verdict_rates.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
REPEATS_FOR_A_PASS = 5
"""The least repeats whose range holds the median of any distribution with at least 93 %: fewer can warn or fail, and
not pass."""
MOST_REPEATS_ADVISED = 30
_INEFFICIENCY = {1: 1.0, 2: 1.0, 3: 1.346, 4: 1.192, 5: 1.434, 6: 1.288, 7: 1.473, 8: 1.345, 9: 1.494, 10: 1.383}
_TREND = {4: 1.0, 5: 0.9, 6: 0.829, 7: 0.714, 8: 0.643, 9: 0.600, 10: 0.564}
"""Critical values of Spearman's correlation, two-sided 10 % (Zar 1972, "Significance Testing of the Spearman Rank
Correlation Coefficient")."""
_T = (
    12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934, 2.5705818356363146,
    2.4469118511449786, 2.364624251592784, 2.306004135204166, 2.262157162798205, 2.228138851986274, 2.200985160091639,
    2.1788128296672284, 2.1603686564627913, 2.144786687917804, 2.131449545559776, 2.1199052992212546,
    2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864, 2.0796138447276795,
    2.0738730679040254, 2.0686576104190486, 2.0638985616280245, 2.0595385527532972, 2.0555294386428735,
    2.0518305164802846, 2.0484071417952454, 2.045229642132703, 2.0422724563012378,
)  # fmt: skip
"""`t_quantile` of 1, 2, ... degrees, as scipy computes it: importing scipy takes as long as judging a comparison."""
_MOST_AUTOCORRELATION = 0.9
_MOST_FOR_THE_RANGE = 8
_ROUNDING = 1e-9


@dataclass(frozen=True)
class RepeatInterval:
    """Log ratio of a typical repeat and the ends of its 95 % interval, as relative errors; NaN where not known.

    `drifts`: the repeats rise or fall all the time. `real_deviation` and `seed_deviation` are standard deviations of
    the log values of the two sides.
    """

    low: float
    high: float
    num_repeats: int
    drifts: bool
    real_deviation: float
    seed_deviation: float

    @property
    def few(self) -> bool:
        """Too few repeats to show that the engine has one speed."""
        return self.num_repeats < REPEATS_FOR_A_PASS


def repeat_interval(real: np.ndarray, sim: np.ndarray) -> RepeatInterval | None:
    """95 % interval of (sim - real) / real on this workload.

    `real` [repeats] in order of time, `sim` [repeats, seeds]: each seed's value after alignment to each repeat. Values
    of any positive unit. None with one repeat, or where a value is missing, or 0 on one side only.
    """
    num_repeats, num_seeds = sim.shape
    if num_repeats < 2 or not np.isfinite(real).all() or not np.isfinite(sim).all():
        return None
    if not real.any() and not sim.any():
        return RepeatInterval(0.0, 0.0, num_repeats, False, 0.0, 0.0)
    if real.min() <= 0 or sim.min() <= 0:
        return None
    ratios = np.log(np.median(sim, axis=1)) - np.log(real)
    seeds = np.log(np.median(sim, axis=0))
    centre = float(np.log(np.median(sim)) - np.log(np.median(real)))
    between, drifts = _error_of_median(ratios)
    of_seeds = math.sqrt(_inefficiency(num_seeds) / num_seeds) * _deviation(seeds)
    repeats_reach = t_quantile(num_repeats - 1) * between
    seeds_reach = t_quantile(num_seeds - 1) * of_seeds if of_seeds > 0 else 0.0
    lowest, highest = _range(ratios)
    low = centre - math.hypot(max(repeats_reach, centre - lowest), seeds_reach)
    high = centre + math.hypot(max(repeats_reach, highest - centre), seeds_reach)
    return RepeatInterval(
        math.exp(low) - 1,
        math.exp(high) - 1 if high < 700 else math.inf,
        num_repeats,
        drifts,
        _deviation(ratios),
        _deviation(seeds),
    )


def repeats_advised(relative_error: float, interval: RepeatInterval, band: float) -> int | None:
    """How many repeats would show an error of this size to be inside `band`, or outside it where it is larger, if
    further ones differ as these do and do not drift; None where `MOST_REPEATS_ADVISED` would not do."""
    distance = abs(math.log1p(math.copysign(band, relative_error)) - math.log1p(relative_error))
    for number in range(max(REPEATS_FOR_A_PASS, interval.num_repeats + 1), MOST_REPEATS_ADVISED + 1):
        reach = t_quantile(number - 1) * math.sqrt(_inefficiency(number) / number)
        if interval.real_deviation * max(reach, _expected_range(number)) < distance:
            return number
    return None


def _expected_range(number: int) -> float:
    """How far the order statistics of `_range` lie from the median, of normal values with a standard deviation of 1
    (Blom's approximation)."""
    _, rank = _range(np.arange(1.0, number + 1))
    return NormalDist().inv_cdf((rank - 0.375) / (number + 0.25))


def _error_of_median(ratios: np.ndarray) -> tuple[float, bool]:
    """Standard error of the median of repeats in order of time, and whether they drift."""
    number, deviation = len(ratios), _deviation(ratios)
    if deviation == 0.0:
        return 0.0, False
    error = deviation * math.sqrt(_inefficiency(number) / number)
    if number >= 3:
        centred = ratios - ratios.mean()
        correlation = float(centred[1:] @ centred[:-1]) / float(centred @ centred) + 1 / number
        correlation = min(max(correlation, 0.0), _MOST_AUTOCORRELATION)
        error *= math.sqrt((1 + correlation) / (1 - correlation))
    drifts = _drifts(ratios)
    return max(error, deviation) if drifts else error, drifts


def _drifts(ratios: np.ndarray) -> bool:
    number = len(ratios)
    if number < min(_TREND):
        return False
    ranks = np.argsort(np.argsort(ratios)).astype(np.float64)
    correlation = float(np.corrcoef(ranks, np.arange(number))[0, 1])
    # Beyond the table the normal approximation is close enough.
    return abs(correlation) >= _TREND.get(number, 1.645 / math.sqrt(number - 1)) - _ROUNDING


def _range(ratios: np.ndarray) -> tuple[float, float]:
    """Order statistics that hold the median of any distribution; of few repeats the smallest and the largest."""
    ordered, number = np.sort(ratios), len(ratios)
    cut = 0
    if number > _MOST_FOR_THE_RANGE:
        tail, term = 0.0, 0.5**number
        while tail + term <= (1 - LEVEL) / 2:
            tail += term
            cut += 1
            term *= (number - cut + 1) / cut
        cut = max(cut - 1, 0)
    return float(ordered[cut]), float(ordered[number - 1 - cut])


def _deviation(values: np.ndarray) -> float:
    """Standard deviation; 0 of one value, and of values that differ by rounding only."""
    found = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return found if found > _ROUNDING else 0.0


def _inefficiency(number: int) -> float:
    return _INEFFICIENCY.get(number, math.pi / 2)


def t_quantile(degrees: int) -> float:
    """Student's t that 95 % of the distribution with so many degrees of freedom, at least 1, do not exceed in size."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - (1 - LEVEL) / 2))
