from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import interval_coverage
from benchmarks.interval_coverage import coverage, judged, verdicts, wrong_share
from gst_assets.analysis.bootstrap import (
    Blocks,
    _levels,
    band,
    block_length,
    dependence,
    fixed_b_factor,
    least_length,
    replicate,
)  # fmt: skip
from gst_assets.analysis.measures import STATISTICS, Samples, statistics_ns


def _samples(values: np.ndarray) -> Samples:
    """[requests] or [requests, tokens]."""
    flat = values.reshape(len(values), -1)
    return Samples(flat.ravel(), np.full(len(flat), flat.shape[1]))


def _ar(n: int, phi: float, seed: int = 0) -> np.ndarray:
    rng, series = np.random.default_rng(seed), [0.0]
    for _ in range(n - 1):
        series.append(phi * series[-1] + rng.normal())
    return np.array(series)


# --- resampling -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.data())
def test_draws_are_whole_blocks_of_neighbours_in_order_of_arrival(n: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, n))
    order = np.array(data.draw(st.permutations(range(n))))
    blocks = Blocks(order, length, num_replicates=20)
    weights = blocks.weights
    assert weights.shape == (20, n) and blocks.unit == 1
    assert (weights.sum(axis=1) == n).all()
    # Built one block after another, from the same draws.
    draws = -(-n // length)
    begins = np.random.default_rng(blocks.seed).integers(0, n, size=(20, draws))
    for row, starts in zip(weights, begins, strict=True):
        drawn = [(start + step) % n for start in starts for step in range(length)][:n]
        assert row[blocks.unit_of][order].tolist() == np.bincount(drawn, minlength=n).tolist()


def test_very_many_requests_are_drawn_in_units_to_the_same_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real = _samples(rng.lognormal(15, 0.5, (2000, 4)))
    sim = _samples(real.values.reshape(2000, 4) * rng.lognormal(0, 0.2, (2000, 1)))
    one_by_one = judged([real], sim).intervals
    monkeypatch.setattr("gst_assets.analysis.bootstrap._MAX_UNITS", 300)
    interval_coverage._blocks.cache_clear()
    assert (Blocks(np.arange(2000), 30).unit, Blocks(np.arange(2000), 30).num_units) == (7, 286)
    for apart, together in zip(one_by_one, judged([real], sim).intervals, strict=True):
        width = apart.high - apart.low
        assert together.high - together.low == pytest.approx(width, rel=0.35)
        assert together.low == pytest.approx(apart.low, abs=0.35 * width)
    interval_coverage._blocks.cache_clear()


def test_replicates_are_those_of_the_resampled_tokens() -> None:
    """Against repeating each request's tokens as often as it was drawn: means are equal, percentiles within the grid's
    spacing."""
    rng = np.random.default_rng(3)
    values = rng.lognormal(15, 0.6, (120, 30)).astype(np.int64)
    samples, blocks = _samples(values), Blocks(np.arange(120), 6, num_replicates=25)
    found = replicate(samples, samples.ordered(), blocks).values
    for row, weights in zip(found, blocks.weights, strict=True):
        drawn = np.sort(np.repeat(values, weights.astype(int), axis=0).ravel())
        exact = statistics_ns(drawn)
        assert row[0] == pytest.approx(exact[0], rel=1e-5)
        # In ranks, since the grid is made of them: within half a per cent of the samples.
        ranks = np.searchsorted(drawn, row[1:]) / len(drawn)
        assert ranks == pytest.approx([0.5, 0.9, 0.95, 0.99], abs=0.005)


@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_the_ends_of_an_interval_are_accelerated_by_its_skewness(power: int) -> None:
    """Efron's levels with scipy's distribution; without skewness the nominal ones."""
    drawn = np.random.default_rng(power).gamma(4, size=500) ** power
    deviation = drawn - drawn.mean()
    skewness = float((deviation**3).mean() / (deviation**2).mean() ** 1.5) if power else 0.0
    z = stats.norm.ppf([0.025, 0.975])
    expected = stats.norm.cdf(z / (1 - min(max(skewness / 6, -0.2), 0.2) * z))
    assert _levels(drawn) == pytest.approx(expected, abs=1e-12)


def test_a_band_holds_the_distribution() -> None:
    samples = _samples(np.random.default_rng(1).lognormal(15, 0.5, 300))
    values, low, high = band(samples, samples.ordered(), np.linspace(0, 1, 50), Blocks(np.arange(300), 5))
    share = np.searchsorted(samples.ordered(), values, side="right") / 300
    assert (low <= share).all() and (share <= high).all() and (high - low).max() > 0.02
    assert (low[-1], high[-1]) == (1, 1)


def test_independent_samples_are_as_many_as_there_are_and_fewer_where_they_come_together() -> None:
    """Of 2,000 independent samples 200 lie beyond P90. Where 20 neighbours are equal, they are worth a twentieth;
    tokens likewise."""
    rng = np.random.default_rng(5)
    free, length = rng.lognormal(15, 0.5, 2000), 40
    alone = replicate(_samples(free), np.sort(free), Blocks(np.arange(2000), length)).independent
    assert alone[1:4] == pytest.approx([1000, 200, 100], rel=0.3)
    shared = np.repeat(rng.lognormal(15, 0.5, 100), 20)
    together = replicate(_samples(shared), np.sort(shared), Blocks(np.arange(2000), 4 * length)).independent
    assert together[1:3] == pytest.approx([50, 10], rel=0.4)
    tokens = np.repeat(rng.lognormal(15, 0.5, 300), 16).reshape(300, 16)
    assert replicate(_samples(tokens), np.sort(tokens.ravel()), Blocks(np.arange(300), 8)).independent[1] < 200


def test_a_run_is_long_only_against_its_dependence() -> None:
    assert Blocks(np.arange(60), least_length(60)).long_enough, "eight blocks, and nothing depends on anything"
    assert Blocks(np.arange(1000), 100).long_enough
    assert not Blocks(np.arange(1000), 101).long_enough


# --- block length and widening ----------------------------------------------------------------------------------------


def test_blocks_grow_with_dependence() -> None:
    lengths = [block_length([[_ar(1000, phi)]]) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < 30 and lengths[0] < lengths[1] < lengths[2]
    assert lengths[0] >= 2 * 1000 ** (1 / 3)


def test_the_most_dependent_series_decides() -> None:
    free, bound = _ar(400, 0.0), _ar(400, 0.9)
    assert block_length([[free, bound]]) == block_length([[bound]]) > block_length([[free]])
    assert block_length([[free], [bound], [free]]) == block_length([[free]]), "the median over repeats"


def test_blocks_of_degenerate_series() -> None:
    assert block_length([[np.zeros(100)]]) == least_length(100) == 10, "the floor"
    assert block_length([[np.arange(40.0)]]) == 10, "a trend: a quarter of the requests"
    assert block_length([[np.zeros(3)]]) == 1


def test_politis_white_by_hand() -> None:
    """AR(1): g = sum |k| R(k), long-run variance = sum R(k); the published optimum of the circular bootstrap from the
    true autocovariances."""
    from gst_assets.analysis.bootstrap import _politis_white

    n, phi = 200_000, 0.5
    slope, long_run = 2 * phi / (1 - phi) ** 2, (1 + phi) / (1 - phi)
    expected = (2 * slope**2 / (4 / 3 * long_run**2)) ** (1 / 3) * n ** (1 / 3)
    assert _politis_white(_ar(n, phi)) == pytest.approx(expected, rel=0.15)


def test_widening() -> None:
    assert fixed_b_factor(1, 10**9) == pytest.approx(1)
    # b = 0.1: (1.96 + 0.29694 + 0.00416 - 0.00053) / 1.96.
    assert fixed_b_factor(10, 100) == pytest.approx(2.26057 / 1.96, rel=1e-4)


def test_ends_lie_further_out_on_the_side_of_the_longer_tail() -> None:
    """Efron's levels by hand: of skewness 0.6, a = 0.1, so Phi(-1.96 / 1.196) and Phi(1.96 / 0.804); at most a = 0.2;
    none without skewness."""
    shares = (np.arange(20_000) + 0.5) / 20_000
    gamma = stats.gamma.ppf(shares, (2 / 0.6) ** 2)
    assert _levels(gamma) == pytest.approx([0.0506, 0.9926], abs=5e-4)
    assert _levels(-gamma) == pytest.approx([0.0074, 0.9494], abs=5e-4)
    assert _levels(stats.expon.ppf(shares)) == pytest.approx([0.0796, 0.99937], abs=5e-4)
    assert _levels(stats.norm.ppf(shares)) == pytest.approx([0.025, 0.975], abs=1e-6)
    assert _levels(np.array([0.0, 0.0, 1e-12])) == _levels(np.array([1.0, math.inf])) == pytest.approx([0.025, 0.975])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_equal_sides_have_no_interval_to_speak_of() -> None:
    samples = _samples(np.random.default_rng(0).lognormal(15, 0.5, 200))
    found = judged([samples], samples)
    assert found.errors.tolist() == [0.0] * len(STATISTICS)
    assert {(one.low, one.high) for one in found.intervals} == {(0.0, 0.0)}


def test_all_equal_latencies() -> None:
    found = judged([_samples(np.full(50, 20.0))], _samples(np.full(50, 21.0)))
    assert found.errors == pytest.approx([0.05] * len(STATISTICS))
    assert found.independent.all(), "nothing varies"
    for one in found.intervals:
        assert (one.low, one.high) == pytest.approx((0.05, 0.05))


def test_a_planted_scale_is_exact() -> None:
    """Every latency times 1.2: so is every replicate, whatever is drawn."""
    values = np.random.default_rng(0).lognormal(15, 0.5, 200)
    found = judged([_samples(values)], _samples(1.2 * values)).intervals
    for one in found:
        assert (one.low, one.high) == pytest.approx((0.2, 0.2), abs=1e-4)


def test_a_planted_shift_and_tail_are_found() -> None:
    """5 ms more for everyone moves P50 and P90; ten times as long for 3 % of the requests moves P99 only."""
    rng = np.random.default_rng(0)
    values = rng.normal(100e6, 10e6, 4000)
    shifted = judged([_samples(values)], _samples(values + 5e6)).intervals
    for column, level in ((1, 100.0), (2, 112.8)):
        assert shifted[column].low - 0.002 <= 5 / level <= shifted[column].high + 0.002
    tail = np.where(rng.random(4000) < 0.03, 10 * values, values)
    found = dict(zip(STATISTICS, judged([_samples(values)], _samples(tail)).intervals, strict=True))
    assert found["p99"].low > 1 and abs(found["p50"].high) < 0.02


def test_a_real_value_of_zero_leaves_the_interval_open() -> None:
    """Half the real gaps are 0: the median is 0 in some replicates."""
    real = np.where(np.arange(100) % 2 == 0, 0.0, 5e6) + np.where(np.arange(100) > 98, 1.0, 0.0)
    real[:3] = 5e6
    found = judged([_samples(real)], _samples(np.full(100, 5e6))).intervals
    assert math.isinf(found[1].high)


def test_repeats_that_differ_widen_the_interval() -> None:
    values = np.random.default_rng(0).lognormal(15, 0.5, 300)
    same = judged([_samples(values)] * 3, _samples(values)).intervals[0]
    apart = judged([_samples(values * one) for one in (0.97, 1.0, 1.03)], _samples(values)).intervals[0]
    # t(2) = 4.303, s = 3 %, median of three: 4.303 sqrt(pi / 2) 0.03 / sqrt(3) = 9.3 %.
    assert same.high - same.low == pytest.approx(0, abs=1e-6)
    assert math.log1p(apart.high) == pytest.approx(0.0934, abs=0.002)


def test_dependence_series_are_flat_for_equal_sides_and_not_otherwise() -> None:
    values = np.random.default_rng(0).lognormal(15, 0.5, 100)
    one, other = _samples(values), _samples(values[::-1].copy())
    *errors, real, sim = dependence(one, one, np.arange(100))
    assert all((series == 0).all() for series in errors)
    assert real.tolist() == sim.tolist() == (np.argsort(np.argsort(values)) + 1).tolist(), (
        "ranks of the latencies themselves"
    )
    assert all(np.ptp(series) > 0 for series in dependence(one, other, np.arange(100)))


# --- coverage, in short; benchmarks/interval_coverage.py is the whole study ---------------------------------------------


@pytest.mark.parametrize(("system", "measure"), [("independent", "ttft"), ("ar", "itl")])
def test_coverage(system: str, measure: str) -> None:
    """Of 80 intervals of a true 95 % at least 69 hold the truth (the chance of fewer is below 0.2 %)."""
    found = coverage(system, 300, measure, 80)
    assert len(found) >= 4 and all(one.of_all >= 69 / 80 for one in found.values())


def test_what_would_cover_too_little_is_not_quoted() -> None:
    """Bursts, of which 300 requests hold six: intervals of P90 miss the truth far too often, and hardly ever go without
    the flag."""
    found = coverage("queue", 300, "ttft", 40)
    assert found["p90"].of_all < 0.93
    assert all(found[one].quoted <= 0.15 for one in ("mean", "p50", "p90", "p95"))
    assert coverage("independent", 300, "ttft", 20)["p90"].quoted >= 0.9


def test_a_false_pass_is_rare_and_a_true_one_possible() -> None:
    true, given = verdicts("ar", 300, 1.06, 40, measure="itl")
    assert true > 0.05 and given["pass"] <= 3 and wrong_share(true, given) <= 3 / 40
    true, given = verdicts("independent", 300, 1.0, 20, measure="itl")
    assert abs(true) < 0.01 and given["pass"] >= 13 and not wrong_share(true, given)


def test_wrong_verdicts_are_those_that_the_true_error_contradicts() -> None:
    given = Counter({"pass": 1, "warn": 2, "fail": 4, "inconclusive": 1})
    assert [wrong_share(true, given) for true in (0.04, -0.07, 0.2)] == [4 / 8, 5 / 8, 3 / 8]
