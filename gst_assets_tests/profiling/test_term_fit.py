"""A term that was planted is found again, whatever outliers lie on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts import tables
from gst_assets.profiling.term_fit import MIN_SAMPLES, fit
from gst_assets.step_costs.terms import Features

SEEDS = st.integers(0, 2**32 - 1)


def held_of(rng: np.random.Generator, number: int) -> np.ndarray:
    """Random compositions, shape (number, len(Features))."""
    highest = Features(5, 500, 60, 80_000, 120_000)
    return np.column_stack([rng.integers(0, most + 1, number) for most in highest]).astype(float)


def with_outliers(rng: np.random.Generator, ns: np.ndarray, share: float = 0.15) -> np.ndarray:
    """Some samples up to five times as long, as where a host was held up."""
    return ns * np.where(rng.random(len(ns)) < share, rng.uniform(1.2, 5.0, len(ns)), 1.0)


def base_of(rows: list[dict[str, Any]]) -> dict[float, float]:
    return {row["position"]: row["ns"] for row in rows if row["feature"] == "base"}


def slope_of(rows: list[dict[str, Any]], feature: str) -> dict[float, float]:
    return {row["position"]: row["ns"] for row in rows if row["feature"] == feature}


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.lists(st.floats(1e6, 1e7), min_size=1, max_size=6), st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_planted_curves_and_slopes_are_found_under_outliers(
    seed: int, curve: list[float], request_share: float, pair_share: float
) -> None:
    """Slopes that make a fifth of a step's time and more where their feature is largest: what makes less than 0.2 % is
    not separated."""
    rng = np.random.default_rng(seed)
    per_request, per_pair = request_share * max(curve) / 5, pair_share * max(curve) / 120_000
    positions = 2.0 ** rng.integers(0, len(curve), 400)
    held = held_of(rng, 400)
    exact = np.array(curve)[np.log2(positions).astype(int)]
    exact = exact + per_request * held[:, 0] + per_pair * held[:, 4]
    slopes = ("prefill_request", "attention_pair")
    rows = fit("device", "mixed", positions, held, with_outliers(rng, exact), slopes, are_fixed=True)
    assert base_of(rows) == pytest.approx({2.0**n: ns for n, ns in enumerate(curve)}, rel=0.01)
    assert slope_of(rows, "prefill_request")[0.0] == pytest.approx(per_request, rel=0.01)
    assert slope_of(rows, "attention_pair")[0.0] == pytest.approx(per_pair, rel=0.01)
    assert {row["num_samples"] for row in rows} == {400}
    frame = pd.DataFrame(rows).astype(dict.fromkeys(["num_samples", "residual_p05_ns", "residual_p95_ns"], "Int64"))
    tables.validate(tables.Overheads, frame, "overheads.csv")


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    held, positions = held_of(rng, 200), np.zeros(200)
    ns = with_outliers(rng, 3e6 + 2e5 * held[:, 0] + 1e3 * held[:, 1])
    one, other = (
        fit("prepare", "mixed", positions, held, ns * unit, ("prefill_request", "prefill_token"), most_knots=1)
        for unit in (1.0, factor)
    )
    assert [row["ns"] for row in other] == pytest.approx([row["ns"] * factor for row in one], rel=1e-3, abs=1e-3)


def test_a_slope_that_would_be_negative_is_0_and_the_others_are_fitted_without_it() -> None:
    rng = np.random.default_rng(1)
    held = held_of(rng, 500)
    ns = 4e6 + 1e5 * held[:, 0] - 2e3 * held[:, 1]
    slopes = ("prefill_request", "prefill_token")
    rows = fit("prepare", "mixed", np.zeros(500), held, ns, slopes, most_knots=1)
    assert slope_of(rows, "prefill_token") == {0.0: 0.0}
    alone = fit("prepare", "mixed", np.zeros(500), held, ns, slopes[:1], most_knots=1)
    assert base_of(rows) == base_of(alone) and slope_of(rows, slopes[0]) == slope_of(alone, slopes[0])


def test_a_feature_that_was_never_there_has_slope_0() -> None:
    rng = np.random.default_rng(2)
    held = held_of(rng, 100)
    held[:, 2] = 0
    rows = fit("prepare", "mixed", np.zeros(100), held, 1e6 + 1e5 * held[:, 0], ("prefill_request", "decode_request"))
    assert slope_of(rows, "decode_request") == {0.0: 0.0}
    assert slope_of(rows, "prefill_request")[0.0] == pytest.approx(1e5, rel=0.01)


def test_fixed_positions_are_knots_of_their_own_where_seen_often_enough() -> None:
    positions = np.array([8.0] * 20 + [9.0] * 20 + [10.0] * (MIN_SAMPLES - 1))
    rows = fit("device", "decode", positions, np.zeros((len(positions), 5)), positions * 1e5, are_fixed=True)
    assert base_of(rows) == pytest.approx({8.0: 8e5, 9.0: 9e5}, rel=1e-3)
    rare = np.array([8.0, 9.0, 9.0])
    rows = fit("device", "decode", rare, np.zeros((3, 5)), rare * 1e5, are_fixed=True)
    assert set(base_of(rows)) == {9.0}


def test_other_positions_are_put_together_and_rare_ones_left_out() -> None:
    """Near ones share a knot at their mean; one seen less often than the others need is none."""
    positions = np.array([100.0, 101.0, 102.0, 103.0] * 10 + [200.0] * 10 + [400.0] * (MIN_SAMPLES - 1))
    rows = fit("handover", "any", positions, np.zeros((len(positions), 5)), positions * 1e4)
    assert base_of(rows) == pytest.approx({101.5: 1.015e6, 200.0: 2e6}, rel=0.01)


@pytest.mark.parametrize(("number", "knots"), [(2, [15.0]), (7, [40.0]), (8, [25.0, 65.0])])
def test_positions_that_are_all_seen_once_are_knots_in_groups(number: int, knots: list[float]) -> None:
    each = np.arange(1, number + 1) * 10.0
    assert list(base_of(fit("handover", "any", each, np.zeros((number, 5)), each * 1e4))) == knots


def test_one_knot_is_one_value_whatever_the_positions_and_no_outlier_draws_it() -> None:
    positions = np.array([1.0, 10.0, 100.0] * 20)
    rows = fit("lead_in", "mixed", positions, np.zeros((60, 5)), np.array([3e4, 3e4, 9e5] * 20), most_knots=1)
    assert base_of(rows) == pytest.approx({0.0: 3e4}, rel=0.01)


def test_slope_curves_have_a_knot_for_each_doubling_seen_often_enough() -> None:
    rng = np.random.default_rng(3)
    positions = rng.choice([1.0, 2.0, 4.0, 8.0, 16.0], 1000)
    positions[:10] = 512.0  # too few to determine a slope
    held = held_of(rng, 1000)
    slope = 30.0 + 2.0 * np.log2(positions)
    exact = 5e6 + 1e4 * positions + slope * held[:, 3]
    rows = fit(
        "device", "decode", positions, held, with_outliers(rng, exact), ("decode_context_token",), are_fixed=True,
        has_slope_curves=True,
    )  # fmt: skip
    found = slope_of(rows, "decode_context_token")
    assert found == pytest.approx({1.0: 30.0, 2.0: 32.0, 4.0: 34.0, 8.0: 36.0, 16.0: 38.0}, rel=0.01)


WARMTH = Features._fields.index("warmth")


def test_a_slope_has_no_knot_where_its_feature_is_next_to_nothing() -> None:
    """As on a GPU whose batches of 32 never came within seconds of a prompt: their warmth is 1e-20, and what lies on
    their times by chance is no price of it."""
    rng = np.random.default_rng(7)
    positions = np.repeat([8.0, 16.0, 32.0, 64.0], 200)
    held = np.zeros((800, len(Features._fields)))
    held[:, WARMTH] = np.where(positions == 32.0, 1e-20 * rng.random(800), rng.random(800))
    ns = 1e6 + 1e4 * positions + 2e5 * held[:, WARMTH] + rng.normal(0.0, 2e3, 800)
    # What would be blamed on warmth.
    ns[(positions == 32.0) & (held[:, WARMTH] > 0.5e-20)] += 5e4
    rows = fit("device", "decode", positions, held, ns, ("warmth",), are_fixed=True, has_slope_curves=True)
    assert slope_of(rows, "warmth") == pytest.approx({8.0: 2e5, 16.0: 2e5, 64.0: 2e5}, rel=0.05)
    held[:, WARMTH] *= 1e-20
    rows = fit("device", "decode", positions, held, ns, ("warmth",), are_fixed=True, has_slope_curves=True)
    assert slope_of(rows, "warmth") == {0.0: 0.0}


def test_residuals_are_percentiles_of_sample_less_fit() -> None:
    ns = 1e6 + np.arange(-50, 51) * 1e3
    (row,) = fit("copy_out", "any", np.zeros(101), np.zeros((101, 5)), ns, most_knots=1)
    assert row["ns"] == pytest.approx(1e6, rel=2e-3)
    assert row["residual_p05_ns"] == pytest.approx(-45e3, abs=3e3)
    assert row["residual_p95_ns"] == pytest.approx(45e3, abs=3e3)


@given(SEEDS, st.integers(20, 60), st.floats(1.0, 2.5))
def test_a_curve_of_few_and_noisy_samples_takes_time_everywhere(seed: int, count: int, sigma: float) -> None:
    """As the term `handover` of a short calibration: its times differ by more than their curve rises."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(16, 256, count)
    rows = fit("handover", "any", positions, np.zeros((count, 5)), 1e6 * rng.lognormal(0, sigma, count))
    assert min(base_of(rows).values()) >= 0


def test_a_knot_that_would_be_negative_is_none() -> None:
    """Samples on a slope that hits zero before the knot they share."""
    low = np.linspace(100.0, 110.0, 20)
    positions = np.concatenate([low, np.linspace(150.0, 170.0, 20)])
    ns = np.concatenate([5e5 - 4.9e4 * (low - 100), np.full(20, 2e6)])
    rows = fit("handover", "any", positions, np.zeros((len(positions), 5)), np.maximum(ns, 1e3))
    assert min(base_of(rows).values()) >= 0 and len(base_of(rows)) >= 1


def test_a_last_knot_that_would_be_negative_is_0_where_slopes_explain_the_samples() -> None:
    """Few steps on a machine that does much else: those with requests long, those without short."""
    requests = np.array([1, 1, 1, 1, 2, 2, 2, 2], dtype=float)
    held = np.zeros((8, len(Features._fields)))
    held[:, 0] = requests
    rows = fit("device", "mixed", np.full(8, 128.0), held, 25e6 * requests - 15e6, ("prefill_request",))
    assert base_of(rows) == {128.0: 0.0}
    assert 10e6 <= slope_of(rows, "prefill_request")[0.0] <= 17.5e6
    without = fit("device", "mixed", np.full(8, 128.0), held, 1e6 / requests, ("prefill_request",))
    assert base_of(without)[128.0] > 0 and slope_of(without, "prefill_request")[0.0] == 0


def test_a_base_that_a_dropped_slope_had_made_negative_comes_back() -> None:
    """Requests and tokens that go together: what is left when a slope is dropped is fitted as if it had never been
    asked for."""
    dropped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        held = np.zeros((12, len(Features._fields)))
        held[:, 0] = rng.integers(1, 4, 12)
        held[:, 1] = held[:, 0] * 150 + rng.normal(0, 8, 12)
        ns = 3.5e4 * held[:, 0] + rng.normal(0, 1e4, 12)
        asked = ("prefill_request", "prefill_token")
        rows = fit("prepare", "mixed", np.zeros(12), held, ns, asked, most_knots=1)
        left = tuple(name for name in asked if slope_of(rows, name)[0.0] > 0)
        dropped += 0 < len(left) < len(asked)
        assert base_of(rows) == base_of(fit("prepare", "mixed", np.zeros(12), held, ns, left, most_knots=1))
    assert dropped > 10
