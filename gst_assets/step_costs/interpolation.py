"""Reading between measured points: the one place that interpolates.

`Curve` and `Surface` are linear between their points and refuse what lies outside; `HeldCurve` holds its outermost
values there. Points are read one at a time in plain floats, or by formulas (`Formula`) that serve a whole stretch of
decode steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.errors import ProfileError


class Formula(NamedTuple):
    """One formula of a piecewise function."""

    at: Callable[[Any], Any]
    """Of a float or of an array of floats: the same operations, so the same bits."""
    until: float
    """It holds from the point it was asked for up to here, exclusive; at that point itself in any case."""


class Axis:
    """One ascending coordinate of a table."""

    def __init__(self, table: str, column: str, values: Sequence[float]) -> None:
        """`table` and `column` are named in errors."""
        self.table, self.column = table, column
        self.values = [float(value) for value in values]

    def place(self, at: float) -> tuple[int, int, float]:
        """Indices of the points around `at`, and how far it is from the one to the other (0 to 1).

        Raises:
            ProfileError: it lies outside the measured range, or is not a number.
        """
        values = self.values
        if not values[0] <= at <= values[-1]:
            raise ProfileError(
                f"{self.table}: {self.column} {at:g} is outside the profiled range {values[0]:g} to {values[-1]:g}. "
                "Extend the grid under `profile` in the scenario and measure the profile again."
            )
        below = min(bisect_right(values, at) - 1, max(len(values) - 2, 0))
        above = min(below + 1, len(values) - 1)
        width = values[above] - values[below]
        return below, above, (at - values[below]) / width if width > 0 else 0.0


class Curve:
    """A function of one coordinate."""

    def __init__(self, axis: Axis, values: Iterable[float]) -> None:
        self._axis, self._values = axis, [float(value) for value in values]

    def at(self, x: float) -> float:
        """Value at `x`; raises as `Axis.place`."""
        below, above, along = self._axis.place(x)
        return self._values[below] + (self._values[above] - self._values[below]) * along


class HeldCurve:
    """A function of one coordinate whose outermost values hold beyond its points."""

    def __init__(self, positions: Sequence[float], values: Sequence[float]) -> None:
        """`positions` ascending."""
        self._axis, self._values = Axis("", "", positions), [float(value) for value in values]
        self._known: dict[float, float] = {}

    def at(self, x: float) -> float:
        """Value at `x`."""
        # Positions are whole numbers of tokens or requests, and the same few are asked for again and again.
        found = self._known.get(x)
        if found is None:
            positions = self._axis.values
            below, above, along = self._axis.place(min(max(x, positions[0]), positions[-1]))
            found = self._values[below] + (self._values[above] - self._values[below]) * along
            self._known[x] = found
        return found

    def over(self, size: int) -> NDArray[np.float64]:
        """`at` of 0, 1, ... `size` - 1, to the bit."""
        positions, values = np.array(self._axis.values), np.array(self._values)
        x = np.clip(np.arange(size, dtype=np.float64), positions[0], positions[-1])
        below = np.minimum(np.searchsorted(positions, x, side="right") - 1, max(len(positions) - 2, 0))
        above = np.minimum(below + 1, len(positions) - 1)
        width = positions[above] - positions[below]
        along = np.divide(x - positions[below], width, out=np.zeros(size), where=width > 0)
        found: NDArray[np.float64] = values[below] + (values[above] - values[below]) * along
        return found


class Surface:
    """A full rectangular grid, read bilinearly."""

    def __init__(self, rows: pd.DataFrame, first: str, second: str, column: str, kind: str) -> None:
        """Rows of attention.csv: `column` by the coordinates `first` and `second`. `kind` names the rows in errors.

        Raises:
            ProfileError: there are no rows, or a point of the grid has no value.
        """
        table = rows.pivot(index=first, columns=second, values=column).sort_index(axis=0).sort_index(axis=1)
        if table.empty:
            raise ProfileError(f"attention.csv: no {kind} rows. Measure the profile again.")
        holes = table.isna().to_numpy()
        if holes.any():
            i, j = (int(place[0]) for place in holes.nonzero())
            raise ProfileError(
                f"attention.csv: column {column}: the {kind} grid has no value at {first} {table.index[i]}, {second}"
                f" {table.columns[j]} ({int(holes.sum())} missing in all). Every combination must be there; measure the"
                " profile again."
            )
        name = f"attention.csv ({kind})"
        self._first, self._second = (
            Axis(name, first, table.index.tolist()),
            Axis(name, second, [float(each) for each in table.columns]),
        )
        self._rows: list[list[float]] = table.to_numpy(dtype="float64").tolist()
        self._located: dict[float, tuple[list[float], list[float], float]] = {}

    @property
    def grid(self) -> tuple[list[float], list[float], list[list[float]]]:
        """The first coordinates, the second ones, and the values of shape (first, second)."""
        return self._first.values, self._second.values, self._rows

    def at(self, first: float, second: float) -> float:
        """Value at a point; raises as `Axis.place`."""
        return float(self.piece(first, second).at(second))

    def piece(self, first: float, second: float) -> Formula:
        """The formula of `at` around a point, as a function of the second coordinate; raises as `Axis.place`."""
        found = self._located.get(first)
        if found is None:
            below, above, across = self._first.place(first)
            found = self._located[first] = self._rows[below], self._rows[above], across
        low_row, high_row, across = found
        below, above, _ = self._second.place(second)
        start, end = self._second.values[below], self._second.values[above]
        width = end - start or 1.0  # a grid of one point, which is the only one there is to ask for
        low, low_rise = low_row[below], low_row[above] - low_row[below]
        high, high_rise = high_row[below], high_row[above] - high_row[below]

        def at(second: Any) -> Any:
            along = (second - start) / width
            lower = low + low_rise * along
            return lower + (high + high_rise * along - lower) * across

        return Formula(at, end)
