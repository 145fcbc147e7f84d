"""Interpolation is exact where it must be, refuses or holds what lies beyond, and its formulas are its values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.step_costs.interpolation import Axis, Curve, HeldCurve, Surface

coordinates = st.lists(st.integers(0, 1000), min_size=1, max_size=8, unique=True).map(sorted)
values = st.floats(-1e6, 1e6)


@st.composite
def points(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Ascending positions and a value at each."""
    positions = draw(coordinates)
    return positions, draw(st.lists(values, min_size=len(positions), max_size=len(positions)))


@st.composite
def surfaces(draw: st.DrawFn) -> tuple[Surface, list[int], list[int], np.ndarray]:
    """A surface, its two axes and its values, shape (first, second)."""
    first, second = draw(coordinates), draw(coordinates)
    count = len(first) * len(second)
    grid = np.array(draw(st.lists(values, min_size=count, max_size=count))).reshape(len(first), len(second))
    return surface(first, second, grid), first, second, grid


def surface(first: list[int], second: list[int], grid: np.ndarray) -> Surface:
    rows = [(a, b, grid[i, j]) for i, a in enumerate(first) for j, b in enumerate(second)]
    return Surface(pd.DataFrame(rows, columns=["batch", "context", "ms"]), "batch", "context", "ms", "decode")


# --- one coordinate ---------------------------------------------------------------------------------------------------


@given(points())
def test_a_measured_point_keeps_its_value(measured: tuple[list[int], list[float]]) -> None:
    positions, heights = measured
    for curve in (Curve(Axis("t.csv", "x", positions), heights), HeldCurve(positions, heights)):
        assert [curve.at(x) for x in positions] == pytest.approx(heights, abs=1e-9)


def test_between_two_points_a_curve_is_straight() -> None:
    curve = Curve(Axis("t.csv", "x", [0, 4, 10]), [1.0, 3.0, 0.0])
    assert [curve.at(x) for x in (0, 1, 2, 4, 5, 8, 10)] == [1.0, 1.5, 2.0, 3.0, 2.5, 1.0, 0.0]


@given(points(), st.floats(-100, 1100))
def test_a_held_curve_is_numpys_interpolation(measured: tuple[list[int], list[float]], x: float) -> None:
    positions, heights = measured
    assert HeldCurve(positions, heights).at(x) == pytest.approx(
        np.interp(x, positions, heights), abs=1e-9 * (1 + max(map(abs, heights)))
    )


def test_a_held_curve_keeps_its_outermost_values() -> None:
    curve = HeldCurve([8, 16], [10.0, 30.0])
    assert [curve.at(x) for x in (0, 8, 12, 16, 1e9)] == [10.0, 10.0, 20.0, 30.0, 30.0]
    assert [HeldCurve([3], [7.0]).at(x) for x in (0, 3, 9)] == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("x", [0.99, 513, float("nan"), float("inf"), -1])
def test_beyond_its_points_a_curve_is_refused_with_table_range_and_remedy(x: float) -> None:
    curve = Curve(Axis("mlp.csv", "num_tokens", [1, 512]), [1.0, 2.0])
    with pytest.raises(
        ProfileError,
        match=rf"mlp\.csv: num_tokens {x:g} is outside the profiled range 1 to 512\. Extend the grid under `profile`",
    ):
        curve.at(x)


# --- two coordinates --------------------------------------------------------------------------------------------------


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_bilinear_function_is_reproduced(x: float, y: float) -> None:
    def function(x: float, y: float) -> float:
        return 3 + 2 * x - 5 * y + 0.5 * x * y

    axes = [0, 4, 10], [0, 1, 10]
    grid = np.array([[function(a, b) for b in axes[1]] for a in axes[0]])
    assert surface(*axes, grid).at(x, y) == pytest.approx(function(x, y))


@given(surfaces(), st.data())
def test_a_surface_keeps_its_points_and_stays_within_them(
    made: tuple[Surface, list[int], list[int], np.ndarray], data: st.DataObject
) -> None:
    of, first, second, grid = made
    slack = 1e-9 * (1 + np.abs(grid).max())
    assert [[of.at(a, b) for b in second] for a in first] == [pytest.approx(row, abs=slack) for row in grid.tolist()]
    x, y = (data.draw(st.floats(axis[0], axis[-1])) for axis in (first, second))
    assert grid.min() - slack <= of.at(x, y) <= grid.max() + slack


@given(surfaces(), st.data())
def test_a_piece_is_the_surface_until_it_ends(
    made: tuple[Surface, list[int], list[int], np.ndarray], data: st.DataObject
) -> None:
    of, first, second, _ = made
    x, y = (data.draw(st.floats(axis[0], axis[-1])) for axis in (first, second))
    piece = of.piece(x, y)
    inside = [z for z in np.linspace(y, second[-1], 9).tolist() if z == y or z < piece.until]
    one_by_one = [of.at(x, z) for z in inside]
    assert [piece.at(z) for z in inside] == one_by_one
    assert np.broadcast_to(piece.at(np.array(inside)), len(inside)).tolist() == one_by_one
    assert piece.until > y or y == second[-1]


def test_a_surface_of_one_point_serves_that_point_alone() -> None:
    of = surface([0], [32], np.array([[7.0]]))
    assert of.at(0, 32) == 7.0
    with pytest.raises(ProfileError, match=r"attention\.csv \(decode\): batch 1 is outside the profiled range 0 to 0"):
        of.at(1, 32)
    with pytest.raises(ProfileError, match=r"attention\.csv \(decode\): context 31 is outside .* 32 to 32"):
        of.at(0, 31)


def test_a_hole_and_an_empty_grid_are_named() -> None:
    rows = pd.DataFrame({"batch": [1, 1, 8], "context": [0, 256, 0], "ms": [1.0, 2.0, 3.0]})
    with pytest.raises(
        ProfileError,
        match=r"attention\.csv: column ms: the decode grid has no value at batch 8, context 256 \(1 missing in all\)",
    ):
        Surface(rows, "batch", "context", "ms", "decode")
    with pytest.raises(ProfileError, match=r"attention\.csv: no prefill rows\. Measure the profile again"):
        Surface(rows[:0], "batch", "context", "ms", "prefill")


def test_rows_in_any_order_make_the_same_surface() -> None:
    grid = np.arange(6.0).reshape(2, 3)
    rows = pd.DataFrame(
        [(a, b, grid[i, j]) for j, b in reversed(list(enumerate([0, 10, 20]))) for i, a in enumerate([1, 2])],
        columns=["batch", "context", "ms"],
    )
    mixed = Surface(rows, "batch", "context", "ms", "decode")
    assert mixed.at(1.5, 5) == surface([1, 2], [0, 10, 20], grid).at(1.5, 5) == 2.0
