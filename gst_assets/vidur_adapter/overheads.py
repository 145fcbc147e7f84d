"""What a step and a request cost beyond the modelled operators, between and beyond the calibrated points.

Reads the terms of overheads.csv (`contracts.tables.Overheads`). How long the operators of a step take is asked of the caller, so that a
calibrated composition simulates to exactly its measured time. Measuring belongs to `profiling`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

import pandas as pd

from gst_assets.errors import ProfileError
from gst_assets.vidur_adapter.steps import CapturedGraphs


class Piece(NamedTuple):
    """One formula of a piecewise function."""

    at: Callable[[Any], Any]
    """Of a float or of an array of floats: the same operations, so the same bits."""
    until: float
    """It holds from the point it was asked for up to here, exclusive; at that point itself in any case."""


@dataclass(frozen=True)
class Knots:
    """A continuous function through measured points that need not fill a grid.

    Points are grouped by their first coordinate, each group is a function of the remaining ones, and values are linear between groups: on
    a full grid this is multilinear interpolation. Beyond the outermost group its value is held.
    """

    positions: tuple[float, ...]
    values: tuple[float | Knots, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[tuple[float, ...], float, int]]) -> Knots:
        """`points` are (coordinates, value, number of samples), all with the same number of coordinates, at least one.

        Points with equal coordinates become their mean, weighted by samples.
        """
        groups: dict[float, list[tuple[tuple[float, ...], float, int]]] = {}
        for coordinates, value, samples in points:
            groups.setdefault(coordinates[0], []).append((coordinates[1:], value, samples))
        values: list[float | Knots] = []
        for position in sorted(groups):
            group = groups[position]
            if group[0][0]:
                values.append(cls.through(group))
            elif len(group) == 1:  # not through the mean: a calibrated point keeps its value to the last bit
                values.append(group[0][1])
            else:
                values.append(sum(v * n for _, v, n in group) / sum(n for _, _, n in group))
        return cls(tuple(sorted(groups)), tuple(values))

    def at(self, *coordinates: float) -> float:
        """Value at `coordinates`."""
        x, rest = coordinates[0], coordinates[1:]
        index = bisect_left(self.positions, x)
        if index == len(self.positions):
            return self._value(index - 1, rest)
        if index == 0 or self.positions[index] == x:
            return self._value(index, rest)
        low, high = self.positions[index - 1], self.positions[index]
        below = self._value(index - 1, rest)
        return below + (x - low) / (high - low) * (self._value(index, rest) - below)

    def piece(self, *coordinates: float) -> Piece:
        """The formula of `at` around `coordinates`, as a function of the last one."""
        x, rest = coordinates[0], coordinates[1:]
        index = bisect_left(self.positions, x)
        is_held = index in (0, len(self.positions)) or self.positions[index] == x
        if not rest:
            return self._last_piece(index, is_held)
        if is_held:
            return self._inner(min(index, len(self.positions) - 1)).piece(*rest)
        low, high = self.positions[index - 1], self.positions[index]
        below, above, weight = (
            self._inner(index - 1).piece(*rest),
            self._inner(index).piece(*rest),
            (x - low) / (high - low),
        )

        def between(at: Any) -> Any:
            value = below.at(at)
            return value + weight * (above.at(at) - value)

        return Piece(between, min(below.until, above.until))

    def _last_piece(self, index: int, is_held: bool) -> Piece:
        values: tuple[Any, ...] = self.values
        if is_held:
            value = values[min(index, len(values) - 1)]
            return Piece(lambda at: value + 0.0 * at, self.positions[index] if index < len(values) else inf)
        low, high, start, rise = (
            *self.positions[index - 1 : index + 1],
            values[index - 1],
            values[index] - values[index - 1],
        )
        return Piece(lambda at: start + (at - low) / (high - low) * rise, high)

    def _inner(self, index: int) -> Knots:
        value = self.values[index]
        assert isinstance(value, Knots)
        return value

    def _value(self, index: int, rest: tuple[float, ...]) -> float:
        value = self.values[index]
        return value.at(*rest) if isinstance(value, Knots) else value


class Composition(NamedTuple):
    """What a step holds: `context_tokens` is KV tokens present before it, over all its requests."""

    num_prefill_requests: int
    num_prefill_tokens: int
    num_decode_requests: int
    num_context_tokens: int


class StepCosts(Protocol):
    """What a step costs under asynchronous scheduling, in ns, by its composition; see `clocks.AsynchronousClock` for how they add up."""

    def host_ns(self, step: Composition, at_ns: int, after_idle: bool) -> int:
        """For which forming and launching the step at simulated time `at_ns` keeps the host busy; `after_idle`: no step is out."""

    def device_ns(self, step: Composition) -> int:
        """For which the step keeps a device busy that never waits for the host."""

    def device_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """`device_ns` of consecutive steps of the same decodes, the first with `context_tokens` KV tokens over all of them; maybe of fewer."""

    def tail_ns(self, step: Composition) -> int:
        """From the end of the launch to the step's output, where the device was not behind; negative where the output is there earlier."""

    def process_ns(self, step: Composition) -> int:
        """From the step's output at the host until the host can form a step again."""

    def is_outside(self, step: Composition) -> bool:
        """Whether the composition lies outside what was calibrated."""


class StepOverheads:
    """Nanoseconds a step takes beyond its operators: measured step less operator time, at calibrated compositions and between them.

    Decode steps: by (padded) decode requests, then mean context. Mixed steps: by prefill tokens, decode requests, then prefill requests.
    """

    def __init__(
        self,
        overheads: pd.DataFrame,
        operators_ns: Callable[[Composition], float],
        graphs: CapturedGraphs,
        required_kinds: Sequence[str],
        where: str,
    ) -> None:
        """`operators_ns` is what the simulation's own predictor says of a composition.

        Raises:
            ProfileError: no `step` row of a kind the simulation may meet, or a row's kind differs from that of its composition.
        """
        self._graphs = graphs
        self._knots: dict[str, Knots] = {}
        self._bounds: dict[str, tuple[tuple[float, float], ...]] = {}
        points: dict[str, list[tuple[tuple[float, ...], float, int]]] = {}
        steps = overheads[overheads["term"] == "step"]
        for index, row in steps.iterrows():
            step = Composition(
                int(row["num_prefill_requests"]),
                int(row["num_prefill_tokens"]),
                int(row["num_decode_requests"]),
                int(row["num_context_tokens"]),
            )
            kind = graphs.kind(step.num_prefill_tokens, step.num_decode_requests)
            if kind != row["step_kind"]:
                raise ProfileError(
                    f"{where}: row {index} (line {int(str(index)) + 2}), column step_kind: found {row['step_kind']}, but {step.num_prefill_tokens} prompt "
                    f"tokens and {step.num_decode_requests} decodes make a {kind} step under the engine settings of the bundle. Profile again."
                )
            point = (
                self._coordinates(kind, step),
                float(row["median_ns"]) - operators_ns(step),
                int(row["num_samples"]),
            )
            points.setdefault(kind, []).append(point)
        for kind in required_kinds:
            if kind not in points:
                raise ProfileError(
                    f"{where}: no row with term step and step_kind {kind}, which the simulation needs. Profile again with calibration of {kind} steps."
                )
        for kind, found in points.items():
            self._knots[kind] = Knots.through(found)
            axes = 1 if kind == "decode" else 2
            self._bounds[kind] = tuple(
                (min(p[0][axis] for p in found), max(p[0][axis] for p in found)) for axis in range(axes)
            )

    def at(self, step: Composition) -> float:
        """Overhead of a step in ns. Outside what was calibrated the edge's value holds; `is_outside` tells."""
        kind = self._graphs.kind(step.num_prefill_tokens, step.num_decode_requests)
        return self._knots[kind].at(*self._coordinates(kind, step))

    def decode_piece(self, num_decodes: int, context: float) -> Piece:
        """Overhead of steps of so many decodes and nothing else, by their mean context."""
        return self._knots["decode"].piece(float(self._graphs.padded(num_decodes)), context)

    def is_outside(self, step: Composition) -> bool:
        """Whether the step's tokens or requests lie outside what was calibrated."""
        kind = self._graphs.kind(step.num_prefill_tokens, step.num_decode_requests)
        coordinates = self._coordinates(kind, step)
        return any(not low <= x <= high for x, (low, high) in zip(coordinates, self._bounds[kind], strict=False))

    def _coordinates(self, kind: str, step: Composition) -> tuple[float, ...]:
        if kind == "decode":
            return (
                float(self._graphs.padded(step.num_decode_requests)),
                step.num_context_tokens / step.num_decode_requests,
            )
        return (float(step.num_prefill_tokens), float(step.num_decode_requests), float(step.num_prefill_requests))


class RequestOverheads:
    """Nanoseconds between driver and scheduler: `handover_ns` by prompt tokens, `delivery_ns` by decoding requests in the step."""

    def __init__(self, overheads: pd.DataFrame, where: str) -> None:
        """Raises:
        ProfileError: a term has no row.
        """
        self._handover = self._term(overheads, "handover", "num_prefill_tokens", where)
        self._delivery = self._term(overheads, "delivery", "num_decode_requests", where)

    def handover_ns(self, num_prefill_tokens: int) -> int:
        """From the request's arrival to the earliest moment the scheduler can see it."""
        return round(self._handover.at(num_prefill_tokens))

    def delivery_ns(self, num_decode_requests: int) -> int:
        """From the end of a step to the client seeing its tokens, first tokens included."""
        return round(self._delivery.at(num_decode_requests))

    def as_settings(self) -> dict[str, dict[str, float]]:
        """The terms' points, for the record."""
        return {
            "handover_ns_by_prefill_tokens": _as_dict(self._handover),
            "delivery_ns_by_decode_requests": _as_dict(self._delivery),
        }

    @staticmethod
    def _term(overheads: pd.DataFrame, term: str, axis: str, where: str) -> Knots:
        rows = overheads[overheads["term"] == term]
        if rows.empty:
            raise ProfileError(f"{where}: no row with term {term}, which variant calibrated needs. Profile again.")
        return Knots.through(
            [
                ((float(position),), float(median), int(samples))
                for position, median, samples in zip(rows[axis], rows["median_ns"], rows["num_samples"], strict=True)
            ]
        )


def _as_dict(knots: Knots) -> dict[str, float]:
    return {
        f"{position:g}": value
        for position, value in zip(knots.positions, knots.values, strict=True)
        if not isinstance(value, Knots)
    }
