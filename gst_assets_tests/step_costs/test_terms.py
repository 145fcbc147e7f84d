"""Overheads at, between and beyond calibrated points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.vidur_adapter.overheads import Composition, Knots, RequestOverheads, StepOverheads
from gst_assets.vidur_adapter.steps import CapturedGraphs
from gst_assets_tests.vidur_adapter.support import overheads_table, step_row, term_row

coordinates = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5))
points = st.dictionaries(coordinates, st.floats(-1e9, 1e9), min_size=1, max_size=30)


@given(points)
def test_a_measured_point_keeps_its_value_exactly(measured: dict[tuple[int, int, int], float]) -> None:
    knots = Knots.through([(tuple(map(float, at)), value, 1) for at, value in measured.items()])
    for at, value in measured.items():
        assert knots.at(*at) == value


@given(points, coordinates)
def test_values_stay_within_what_was_measured(
    measured: dict[tuple[int, int, int], float], at: tuple[int, int, int]
) -> None:
    knots = Knots.through([(tuple(map(float, where)), value, 1) for where, value in measured.items()])
    slack = 1e-6 * (1 + max(map(abs, measured.values())))
    assert min(measured.values()) - slack <= knots.at(*at) <= max(measured.values()) + slack


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_bilinear_function_is_reproduced_on_a_full_grid(x: float, y: float) -> None:
    def function(x: float, y: float) -> float:
        return 3 + 2 * x - 5 * y + 0.5 * x * y

    grid = [((float(a), float(b)), function(a, b), 1) for a in (0, 4, 10) for b in (0, 1, 10)]
    assert Knots.through(grid).at(x, y) == pytest.approx(function(x, y))


def test_the_edge_is_held_and_a_missing_corner_does_not_matter() -> None:
    knots = Knots.through([((8.0, 0.0), 10.0, 1), ((8.0, 4.0), 20.0, 1), ((16.0, 0.0), 30.0, 1)])
    assert knots.at(1, 0) == knots.at(8, 0) == 10
    assert knots.at(100, 100) == 30
    assert knots.at(12, 4) == 25  # halfway between (8, 4) and the only point at 16


def test_equal_points_become_their_mean_by_samples() -> None:
    assert Knots.through([((1.0,), 10.0, 1), ((1.0,), 20.0, 3)]).at(1) == 17.5


def _steps(rows: list[dict[str, object]], *kinds: str, graphs: CapturedGraphs | None = None) -> StepOverheads:
    return StepOverheads(
        overheads_table(rows),
        lambda step: 100.0 * step.num_prefill_tokens,
        graphs or CapturedGraphs(()),
        kinds,
        "b/overheads.csv",
    )


def test_a_step_overhead_is_the_measured_step_less_its_operators() -> None:
    overheads = _steps([step_row("mixed", 1, 8, 2, 64, 5000), step_row("mixed", 1, 16, 2, 64, 9000)])
    assert overheads.at(Composition(1, 8, 2, 0)) == 4200
    assert overheads.at(Composition(1, 12, 2, 0)) == 5800


def test_a_step_beyond_the_calibrated_grid_is_told() -> None:
    overheads = _steps([step_row("decode", 0, 0, n, 64 * n, 1000 * n) for n in (2, 4)])
    steps = [Composition(0, 0, decodes, 0) for decodes in (3, 1, 9)]
    assert [overheads.at(step) for step in steps] == [3000, 2000, 4000]
    assert [overheads.is_outside(step) for step in steps] == [False, True, True]


def test_decode_overheads_are_read_at_captured_sizes() -> None:
    overheads = _steps([step_row("decode", 0, 0, n, 64 * n, 1000 * n) for n in (4, 8)], graphs=CapturedGraphs([4, 8]))
    assert overheads.at(Composition(0, 0, 5, 0)) == 8000
    assert not overheads.is_outside(Composition(0, 0, 5, 0))


def test_a_kind_the_simulation_needs_must_be_calibrated() -> None:
    with pytest.raises(
        ProfileError, match=r"b/overheads.csv: no row with term step and step_kind mixed, which .* Profile again"
    ):
        _steps([step_row("decode", 0, 0, 1, 64, 1000)], "decode", "mixed")


def test_a_row_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(
        ProfileError, match=r"row 1 \(line 3\), column step_kind: found mixed_eager, but 8 prompt tokens"
    ):
        _steps([step_row("decode", 0, 0, 1, 64, 1000), step_row("mixed_eager", 1, 8, 0, 0, 1000)])


def test_request_terms_are_interpolated_and_must_exist() -> None:
    rows = [term_row("handover", 0, 0, 100), term_row("handover", 100, 0, 200), term_row("delivery", 0, 1, 50)]
    overheads = RequestOverheads(overheads_table(rows), "b/overheads.csv")
    assert [overheads.handover_ns(n) for n in (1, 50, 999)] == [101, 150, 200]
    assert overheads.delivery_ns(7) == 50
    with pytest.raises(ProfileError, match="no row with term delivery"):
        RequestOverheads(overheads_table(rows[:2]), "b/overheads.csv")
