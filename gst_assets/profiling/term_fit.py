"""Fitting a term of overheads.csv to samples: a curve over one position plus slopes, with the least sum of relative
absolute residuals.

That is a median in the sense of quantile regression (Koenker and Bassett 1978), found by iteratively reweighted least
squares. Which samples belong to which term is said by `step_samples`; how a term is read, by `step_costs.terms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gst_assets.step_costs.terms import BASE, REREAD, Features

Floats = NDArray[np.float64]

MIN_SAMPLES = 4
"""A position seen less often is no knot of a curve."""
_MIN_SLOPE_SAMPLES = 40
"""A doubling of the position with fewer samples has no slope of its own."""
_BIN_RATIO = 1.15
"""Positions of a term without fixed ones are put together within this ratio."""
_ITERATIONS = 60
_SHORTEST_RESIDUAL = 2e-3
"""Relative; below it residuals count alike."""
_SHORTEST_PERCENTILE = 1.0
"""What is fitted below this percentile of the samples (of their sizes) counts as if it were there: nothing is divided
by almost nothing."""
_RIDGE = 1e-9
_LEAST_FELT = {REREAD: 0.0, "warm_token": 1.0, "warmth": 0.1}
"""What a sample must exceed in a feature that most samples have next to nothing of, to say anything of its slope: the
warmth that a rest leaves is 1e-20, and noise divided by it is a price of years."""


def fit(
    term: str,
    kind: str,
    positions: Floats,
    held: Floats,
    durations_ns: Floats,
    slopes: Sequence[str] = (),
    *,
    are_fixed: bool = False,
    most_knots: int | None = None,
    has_slope_curves: bool = False,
) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.Overheads` for one term and kind of step.

    `positions` and `durations_ns` have shape (samples,), `held` (samples, len(Features)). `slopes` names the features
    that get one, 0 where no sample has enough of the feature; a slope that would be negative is 0, since no
    request makes a step shorter; a knot whose value would be negative is none, and the curve is straight across it,
    since few samples between far neighbours bent it there; a last one is 0 where slopes are left to explain the
    samples.
    `are_fixed`: the positions are few and known (captured graphs), each a knot of its own. `most_knots=1` makes the
    base one value. `has_slope_curves`: slopes are curves over the position too, with a knot for each doubling.
    """
    knots = _knots(positions, are_fixed) if most_knots != 1 else np.array([0.0])
    columns = []
    for name in slopes:
        feature = held[:, Features._fields.index(name)]
        # Beyond the batches that felt it its slope is that of the nearest ones that did.
        seen = positions[feature > _LEAST_FELT[name]] if name in _LEAST_FELT else positions
        if not len(seen):
            columns.append((name, 0.0, np.zeros(len(positions))))
            continue
        slope_knots = _doublings(seen) if has_slope_curves else np.array([0.0])
        columns += [
            (name, float(at), weight * feature)
            for at, weight in zip(slope_knots, _hats(positions, slope_knots).T, strict=True)
        ]
    kept = [column for column in columns if column[2].any()]
    has_base = 1.0
    while True:
        base = _hats(positions, knots) * has_base
        design = np.column_stack([base, *(values for _, _, values in kept)])
        solution = _least_absolute(design, durations_ns)
        lowest = int(np.argmin(solution[: len(knots)]))
        if len(knots) > 1 and solution[lowest] < 0:
            knots = np.delete(knots, lowest)
            continue
        if solution[lowest] < 0 and kept:
            has_base = 0.0
            continue
        found = dict(zip([(name, at) for name, at, _ in kept], solution[len(knots) :].tolist(), strict=True))
        if min(found.values(), default=0.0) >= 0:
            break
        kept = [column for column in kept if found[column[0], column[1]] >= 0]
        has_base = 1.0  # a base may have been negative only because of a slope that is gone now
    residuals = durations_ns - design @ solution
    low, high = np.percentile(residuals, [5, 95])
    common = {
        "term": term,
        "step_kind": kind,
        "num_samples": len(durations_ns),
        "residual_p05_ns": round(float(low)),
        "residual_p95_ns": round(float(high)),
    }
    rows = [
        {**common, "feature": BASE, "position": float(at), "ns": round(float(value), 3)}
        for at, value in zip(knots, solution, strict=False)
    ]
    return rows + [
        {
            **common,
            "feature": name,
            "position": at,
            "ns": round(found.get((name, at), 0.0), 6),
        }
        for name, at, _ in columns
    ]


def _doublings(positions: Floats) -> Floats:
    """Powers of two between the positions, those with enough samples around them to determine a slope."""
    places, counts = np.unique(np.round(np.log2(np.maximum(positions, 1.0))), return_counts=True)
    often: Floats = places[counts >= _MIN_SLOPE_SAMPLES]
    return 2.0**often if len(often) else 2.0 ** places[np.argmax(counts)][None]


def _knots(positions: Floats, are_fixed: bool) -> Floats:
    """Where a curve has its knots, shape (knots,): positions, or means of near ones, that were seen at least
    `MIN_SAMPLES` times. Where none was, the means of neighbouring samples in groups of that size."""
    if are_fixed:
        places, counts = np.unique(positions, return_counts=True)
        kept: Floats = places[counts >= MIN_SAMPLES]
        return kept if len(kept) else places[np.argmax(counts)][None]
    bins = np.round(np.log(np.maximum(positions, 1e-9)) / np.log(_BIN_RATIO)).astype(int)
    found = [positions[bins == each] for each in np.unique(bins)]
    often = [group for group in found if len(group) >= MIN_SAMPLES]
    if not often:
        often = np.array_split(np.sort(positions), max(len(positions) // MIN_SAMPLES, 1))
    return np.array([float(group.mean()) for group in often])


def _hats(positions: Floats, knots: Floats) -> Floats:
    """Weights of the knots at each position, shape (samples, knots): linear between two, all on the outermost
    beyond."""
    inside = np.clip(positions, knots[0], knots[-1])
    return np.column_stack([np.interp(inside, knots, unit) for unit in np.eye(len(knots))])


def _least_absolute(design: Floats, values: Floats) -> Floats:
    """The solution, shape (columns,), of a design of shape (samples, columns) with the least sum of absolute residuals,
    each relative to what is fitted. Relative to what was measured a sample that is too short would count more than one
    that is too long, and the fit would lie below the median."""
    # Columns of like size, so that a direction that the samples do not determine stays small.
    scale = np.maximum(np.abs(design).max(axis=0), 1e-12)
    scaled = design / scale
    ridge = _RIDGE * np.eye(design.shape[1]) * len(values)
    # The ridge acts on multiples of the median, so that it does not depend on the unit.
    unit = float(np.median(np.abs(values))) or 1.0
    shortest = max(float(np.percentile(np.abs(values), _SHORTEST_PERCENTILE)), 1.0)
    relative = 1.0 / np.maximum(np.abs(values), shortest)
    weights = np.ones(len(values))
    solution = np.zeros(design.shape[1])
    for _ in range(_ITERATIONS):
        rows = scaled * (relative * weights)[:, None]
        gram = scaled.T @ (rows * relative[:, None])
        solution = np.linalg.solve(gram * unit**2 + ridge, rows.T @ (values * relative) * unit) * unit
        fitted = scaled @ solution
        relative = 1.0 / np.maximum(np.abs(fitted), shortest)
        weights = 1.0 / np.maximum(np.abs(values - fitted) * relative, _SHORTEST_RESIDUAL)
    return solution / scale
