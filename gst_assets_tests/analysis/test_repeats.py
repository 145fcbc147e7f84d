from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from gst_assets.analysis.repeats import (
    MOST_REPEATS_ADVISED,
    REPEATS_FOR_A_PASS,
    RepeatInterval,
    _range,
    repeat_interval,
    repeats_advised,
    t_quantile,
)
from gst_assets.analysis.verdict import judge
from gst_assets.scenario import Bands

VALUES = st.lists(st.floats(1.0, 100.0), min_size=2, max_size=12)


def interval(real: list[float], *sim: float) -> RepeatInterval:
    found = repeat_interval(np.array(real), np.tile(np.array(sim), (len(real), 1)))
    assert found is not None
    return found


def test_two_repeats_by_hand() -> None:
    """log ratios of +-0.01 about 0: t of one degree, 12.706, times 0.01414 / sqrt(2)."""
    found = interval([100 * math.exp(-0.01), 100 * math.exp(0.01)], 100.0)
    assert found.high == pytest.approx(math.expm1(12.7062 * 0.01 - math.log(math.cosh(0.01))), rel=1e-4)
    assert found.few and not found.drifts


def test_no_repeat_no_interval() -> None:
    assert repeat_interval(np.array([1.0]), np.array([[1.0]])) is None
    assert repeat_interval(np.array([1.0, math.nan]), np.ones((2, 1))) is None
    assert repeat_interval(np.array([1.0, 0.0]), np.ones((2, 1))) is None, "a ratio to 0"
    both = repeat_interval(np.zeros(2), np.zeros((2, 1)))
    assert both is not None and (both.low, both.high) == (0, 0)


@given(VALUES, st.floats(0.2, 5))
def test_the_interval_holds_the_estimate_and_of_few_repeats_every_one(real: list[float], factor: float) -> None:
    sim = factor * float(np.median(real))
    found = interval(real, sim)
    assert found.low - 1e-9 <= factor - 1 <= found.high + 1e-9
    if len(real) <= 8:
        errors = sim / np.array(real) - 1
        assert found.low <= errors.min() + 1e-9 and errors.max() <= found.high + 1e-9


@given(VALUES, st.floats(0.2, 5), st.floats(1e-3, 1e3))
def test_units_do_not_matter_and_a_factor_moves_the_ends(real: list[float], factor: float, unit: float) -> None:
    one = interval(real, 10.0)
    two = interval([value * unit for value in real], 10.0 * unit * factor)
    for before, after in ((one.low, two.low), (one.high, two.high)):
        assert 1 + after == pytest.approx((1 + before) * factor, rel=1e-6)


def test_equal_repeats_and_an_exact_simulation_leave_no_doubt() -> None:
    found = interval([5.0] * 5, 5.5)
    assert found.low == found.high == pytest.approx(0.1)


@pytest.mark.parametrize("number", range(2, 20))
def test_the_range_holds_the_median_of_any_distribution(number: int) -> None:
    low, high = (int(one) for one in _range(np.arange(number, dtype=float)))
    missed = 2 * stats.binom.cdf(low, number, 0.5)
    assert low + high == number - 1
    if number >= REPEATS_FOR_A_PASS:
        assert missed <= 0.07 and (number <= 8 or missed <= 0.05)


def test_drift_is_found_and_widens() -> None:
    rising, mixed = [1.0, 1.01, 1.02, 1.03, 1.04], [1.02, 1.0, 1.04, 1.01, 1.03]
    one, other = interval(rising, 1.02), interval(mixed, 1.02)
    assert one.drifts and not other.drifts
    assert one.high - one.low > 1.5 * (other.high - other.low)


def test_four_repeats_that_drift_count_as_one() -> None:
    """Log values 0, 1, 2, 3 % with a deviation of 1.291 %: t of three degrees, 3.182, times the whole deviation."""
    found = interval([math.exp(0.01 * k) for k in range(4)], math.exp(0.015))
    assert found.drifts and math.log1p(found.high) == pytest.approx(3.18245 * 0.0129099, rel=1e-3)


def test_two_speeds_are_not_taken_for_one() -> None:
    """Three repeats of five at the slow speed: the fast one is inside the interval."""
    found = interval([1.0, 1.25, 1.25, 1.0, 1.25], 1.25)
    assert found.high >= 0.25 - 1e-9


def test_seeds_widen_and_their_middle_counts() -> None:
    real = [1.0, 1.001, 0.999, 1.0, 1.0]
    one, five = interval(real, 1.0), interval(real, 0.98, 0.99, 1.0, 1.01, 1.02)
    assert five.low < one.low and one.high < five.high
    assert five.seed_deviation > 0 == one.seed_deviation


def test_the_number_advised_does() -> None:
    """Values placed evenly by the normal distribution: as many as advised, with the deviation of the four, keep the
    band; one fewer do not."""
    found = interval([1.0, 1.03, 0.97, 1.01], 1.04)
    number = repeats_advised(0.04, found, 0.10)
    assert number is not None and number > 4
    assert judge_after(number, found.real_deviation) == "warn" and judge_after(4, found.real_deviation) == "warn"
    noisier = interval([1.0, 1.05, 0.95, 1.02], 1.04)
    number = repeats_advised(0.04, noisier, 0.10)
    assert number is not None and number > 5
    assert judge_after(number + 3, noisier.real_deviation) == "warn", "evenly placed values reach a little further"
    assert judge_after(number - 1, noisier.real_deviation) == "inconclusive"
    assert repeats_advised(0.099, found, 0.10) is None, f"not even {MOST_REPEATS_ADVISED} would do"


def judge_after(number: int, deviation: float) -> str:
    from gst_assets.analysis.bootstrap import Interval

    spots = stats.norm.ppf((np.arange(number) + 0.5) / number)
    spots *= deviation / spots.std(ddof=1)
    # Smallest and largest take turns, so that nothing drifts.
    spots = np.array([spots[k // 2 if k % 2 else -1 - k // 2] for k in range(number)])
    found = interval(np.exp(spots).tolist(), 1.04)
    return judge(0.04, Interval(found.low, found.high), Bands(), sufficient=True)


# --- coverage, in short; benchmarks/verdict_rates.py is the whole study -------------------------------------------------


@pytest.mark.parametrize("engine", ["steady", "two speeds between", "wandering"])
def test_five_repeats_hold_the_truth_and_rarely_mislead(engine: str) -> None:
    from benchmarks.verdict_rates import measured, trial

    rates = measured(5, [trial(engine, seed) for seed in range(60)])
    # 120 intervals: 0.93 less two standard errors.
    assert rates.unflagged > 0.88
    assert rates.false_pass < 0.09 and rates.false_fail < 0.09


def test_quantiles_are_those_of_student() -> None:
    """To the last digit, in the table and beyond it: what is stored depends on them."""
    assert [t_quantile(degrees) for degrees in range(1, 40)] == [
        float(special.stdtrit(degrees, 0.975)) for degrees in range(1, 40)
    ]
