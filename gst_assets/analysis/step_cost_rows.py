"""Rows of the step-cost table: predicted service times of steps that really ran, and the real ones.

What is wrong there is the cost model's; what else is wrong is the scheduler's or the queue's. Predicting belongs to
`step_costs.recorded_steps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.analysis.run_reading import RealRun, SimulatedRun, read_profile
from gst_assets.step_costs.recorded_steps import NEEDED, REREAD_TOKENS, service_times


def step_cost_rows(real_repeats: Sequence[RealRun], simulation: SimulatedRun) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.StepCosts`, one for each kind of step, over all repeats. None where the simulation is
    not `calibrated`, its bundle is no longer available, or no real run recorded what is needed.

    Raises:
        ProfileError: the bundle has no row of a term that is needed.
    """
    from gst_assets.step_costs.bundle import load_bundle

    recorded = [
        run.iterations for run in real_repeats
        if run.iterations is not None and _needed(run) <= set(run.iterations.columns) and len(run.iterations)
    ]  # fmt: skip
    root = simulation.meta.profiling_root
    is_own = simulation.meta.variant == "calibrated" and read_profile(simulation) is not None
    if not is_own or root is None or not recorded:
        return []
    bundle = load_bundle(Path(root))
    settings = bundle.meta.engine_settings
    costs = bundle.engine_costs(settings.max_num_batched_tokens, None)
    found = [
        one
        for iterations in recorded
        for one in service_times(iterations, costs, bundle.graphs, 2 if settings.async_scheduling else 1)
    ]
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        real = np.array([one.real for one in found if one.kind == kind])
        predicted = np.array([one.predicted for one in found if one.kind == kind])
        errors = predicted / real - 1
        rows.append(
            {
                "step_kind": kind,
                "num_steps": len(real),
                "real_median_ns": round(float(np.median(real))),
                "predicted_median_ns": round(float(np.median(predicted))),
                "median_error": float(np.median(errors)),
                "p90_absolute_error": float(np.percentile(np.abs(errors), 90)),
                "total_error": float(predicted.sum() / real.sum() - 1),
            }
        )
    return rows


def _needed(run: RealRun) -> set[str]:
    """Columns without which the run's steps are not predicted. What decodes share is 0 where there is no prefix cache,
    and not known where there is one that a run of an earlier version did not record."""
    settings = run.meta.engine_settings
    return {*NEEDED, REREAD_TOKENS} if settings is not None and settings.enable_prefix_caching else set(NEEDED)
