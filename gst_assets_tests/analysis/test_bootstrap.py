from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.interval_coverage import coverage, errors_of, verdicts
from gst_assets.analysis.bootstrap import Blocks, band, block_length, dependence, fixed_b_factor, replicate
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
    one_by_one = errors_of([real], sim)[1]
    monkeypatch.setattr("gst_assets.analysis.bootstrap._MAX_UNITS", 300)
    assert (Blocks(np.arange(2000), 30).unit, Blocks(np.arange(2000), 30).num_units) == (7, 286)
    for apart, together in zip(one_by_one, errors_of([real], sim)[1], strict=True):
        width = apart.high - apart.low
        assert together.high - together.low == pytest.approx(width, rel=0.35)
        assert together.low == pytest.approx(apart.low, abs=0.35 * width)


def test_replicates_are_those_of_the_resampled_tokens() -> None:
    """Against repeating each request's tokens as often as it was drawn: means are equal, percentiles within the grid's spacing."""
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


def test_a_band_holds_the_distribution() -> None:
    samples = _samples(np.random.default_rng(1).lognormal(15, 0.5, 300))
    values, low, high = band(samples, samples.ordered(), np.linspace(0, 1, 50), Blocks(np.arange(300), 5))
    share = np.searchsorted(samples.ordered(), values, side="right") / 300
    assert (low <= share).all() and (share <= high).all() and (high - low).max() > 0.02
    assert (low[-1], high[-1]) == (1, 1)


# --- block length and widening ----------------------------------------------------------------------------------------


def test_blocks_grow_with_dependence() -> None:
    lengths = [block_length([_ar(1000, phi)]) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < 30 and lengths[0] < lengths[1] < lengths[2]
    assert lengths[0] >= 2 * 1000 ** (1 / 3)


def test_the_most_dependent_series_decides() -> None:
    free, bound = _ar(400, 0.0), _ar(400, 0.9)
    assert block_length([free, bound]) == block_length([bound]) > block_length([free])


def test_blocks_of_degenerate_series() -> None:
    assert block_length([np.zeros(100)]) == 10, "the floor"
    assert block_length([np.arange(40.0)]) == 10, "a trend: a quarter of the requests"
    assert block_length([np.zeros(3)]) == 1


def test_politis_white_by_hand() -> None:
    """AR(1): g = sum |k| R(k), long-run variance = sum R(k); the published optimum of the circular bootstrap from the true autocovariances."""
    from gst_assets.analysis.bootstrap import _politis_white

    n, phi = 200_000, 0.5
    slope, long_run = 2 * phi / (1 - phi) ** 2, (1 + phi) / (1 - phi)
    expected = (2 * slope**2 / (4 / 3 * long_run**2)) ** (1 / 3) * n ** (1 / 3)
    assert _politis_white(_ar(n, phi)) == pytest.approx(expected, rel=0.15)


def test_widening() -> None:
    assert fixed_b_factor(1, 10**9) == pytest.approx(1)
    # b = 0.1: (1.96 + 0.29694 + 0.00416 - 0.00053) / 1.96.
    assert fixed_b_factor(10, 100) == pytest.approx(2.26057 / 1.96, rel=1e-4)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_equal_sides_have_no_interval_to_speak_of() -> None:
    samples = _samples(np.random.default_rng(0).lognormal(15, 0.5, 200))
    errors, found = errors_of([samples], samples)
    assert errors.tolist() == [0.0] * len(STATISTICS)
    assert {(one.low, one.high) for one in found} == {(0.0, 0.0)}


def test_all_equal_latencies() -> None:
    errors, found = errors_of([_samples(np.full(50, 20.0))], _samples(np.full(50, 21.0)))
    assert errors == pytest.approx([0.05] * len(STATISTICS))
    for one in found:
        assert (one.low, one.high) == pytest.approx((0.05, 0.05))


def test_a_planted_scale_is_exact() -> None:
    """Every latency times 1.2: so is every replicate, whatever is drawn."""
    values = np.random.default_rng(0).lognormal(15, 0.5, 200)
    _, found = errors_of([_samples(values)], _samples(1.2 * values))
    for one in found:
        assert (one.low, one.high) == pytest.approx((0.2, 0.2), abs=1e-4)


def test_a_planted_shift_and_tail_are_found() -> None:
    """5 ms more for everyone moves P50 and P90; ten times as long for 3 % of the requests moves P99 only."""
    rng = np.random.default_rng(0)
    values = rng.normal(100e6, 10e6, 4000)
    shifted = errors_of([_samples(values)], _samples(values + 5e6))[1]
    for column, level in ((1, 100.0), (2, 112.8)):
        assert shifted[column].low - 0.002 <= 5 / level <= shifted[column].high + 0.002
    tail = np.where(rng.random(4000) < 0.03, 10 * values, values)
    found = dict(zip(STATISTICS, errors_of([_samples(values)], _samples(tail))[1], strict=True))
    assert found["p99"].low > 1 and abs(found["p50"].high) < 0.02


def test_a_real_value_of_zero_leaves_the_interval_open() -> None:
    """Half the real gaps are 0: the median is 0 in some replicates."""
    real = np.where(np.arange(100) % 2 == 0, 0.0, 5e6) + np.where(np.arange(100) > 98, 1.0, 0.0)
    real[:3] = 5e6
    _, found = errors_of([_samples(real)], _samples(np.full(100, 5e6)))
    assert math.isinf(found[1].high)


def test_repeats_that_differ_widen_the_interval() -> None:
    values = np.random.default_rng(0).lognormal(15, 0.5, 300)
    same = errors_of([_samples(values)] * 3, _samples(values))[1][0]
    apart = errors_of([_samples(values * one) for one in (0.97, 1.0, 1.03)], _samples(values))[1][0]
    # t(2) = 4.303, s = 3 %, median of three: 4.303 sqrt(pi / 2) 0.03 / sqrt(3) = 9.3 %.
    assert same.high - same.low == pytest.approx(0, abs=1e-6)
    assert math.log1p(apart.high) == pytest.approx(0.0934, abs=0.002)


def test_dependence_series_are_flat_for_equal_sides_and_not_otherwise() -> None:
    values = np.random.default_rng(0).lognormal(15, 0.5, 100)
    one, other = _samples(values), _samples(values[::-1].copy())
    assert all((series == 0).all() for series in dependence(one, one, np.arange(100)))
    assert all(np.ptp(series) > 0 for series in dependence(one, other, np.arange(100)))


# --- coverage, in short; benchmarks/interval_coverage.py is the whole study ---------------------------------------------


@pytest.mark.parametrize(("system", "measure"), [("independent", "ttft"), ("ar", "itl")])
def test_coverage(system: str, measure: str) -> None:
    """Of 80 intervals of a true 95 % at least 69 hold the truth (the chance of fewer is below 0.2 %)."""
    found = coverage(system, 300, measure, 80)
    assert all(share >= 69 / 80 for name, share in found.items() if "width" not in name)


def test_a_false_pass_is_rare_and_a_true_one_possible() -> None:
    true, given = verdicts("ar", 300, 1.06, 60)
    assert true > 0.05 and given["pass"] <= 4
    true, given = verdicts("independent", 1000, 1.0, 20)
    assert abs(true) < 0.01 and given["pass"] >= 15 and not given["fail"]
