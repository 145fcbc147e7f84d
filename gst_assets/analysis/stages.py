"""Where in a request's life, and in which engine steps, an error arises. Names no cause; that is `causes`.

Stages of a request, in order, which add up to its end-to-end latency:
- `queueing` from the intended arrival to the first scheduling; the driver's lateness and the way to the scheduler are
  in it;
- `prefill` from there to the first token seen;
- `decode` from there to the last compared token.
Where either side does not record when a request was first scheduled, the first two cannot be separated: `first_token`
is both.

A step takes the time from its forming, or from the end of the step before where that is later, to its own end. Under
asynchronous scheduling the next step is formed before the one before it has ended, and the time until then is not its
own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import SCHEDULED, AlignedPair
from gst_assets.analysis.measures import relative_error
from gst_assets.analysis.run_reading import RealRun, SimulatedRun

COMPOSITION = ("num_prefill_requests", "num_prefill_tokens", "num_decode_requests")
STEP_KINDS = ("decode", "mixed")
"""decode: no prompt token in the step; mixed: at least one."""
_MOST_STEPS = 50_000
"""Of longer runs the first so many steps are aligned: the time for it grows with the square."""


def stage_rows(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    pairs: Mapping[tuple[str, str], AlignedPair],
) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.StageErrors`: means over the compared requests of all repeats, so that the stages'
    errors add up to that of the end-to-end latency, which is the last row of each variant."""
    rows = []
    for variant in simulations:
        real_parts: dict[str, list[np.ndarray]] = {}
        sim_parts: dict[str, list[np.ndarray]] = {}
        sides = [(run, pairs[run.meta.run_id, variant]) for run in real_repeats]
        told = all(SCHEDULED in pair.real.requests for _, pair in sides)
        for _, pair in sides:
            for parts, side in ((real_parts, pair.real), (sim_parts, pair.sim)):
                for stage, values in _stages(side.requests, told=told).items():
                    parts.setdefault(stage, []).append(values)
        means = {
            stage: (float(np.concatenate(real_parts[stage]).mean()), float(np.concatenate(sim_parts[stage]).mean()))
            for stage in real_parts
        }
        e2e_error = means["e2e"][1] - means["e2e"][0]
        late = [one for run, pair in sides if (one := _lateness(run, pair)) is not None]
        for stage, (real_ns, sim_ns) in means.items():
            rows.append(
                {
                    "variant": variant,
                    "stage": stage,
                    "num_requests": sum(len(pair.real.requests) for _, pair in sides),
                    "real_mean_ns": real_ns,
                    "sim_mean_ns": sim_ns,
                    "error_ns": sim_ns - real_ns,
                    "relative_error": relative_error(sim_ns, real_ns),
                    "share_of_e2e_error": (sim_ns - real_ns) / e2e_error if e2e_error else math.nan,
                    "real_lateness_ns": (
                        float(np.concatenate(late).mean())
                        if stage in ("queueing", "first_token") and len(late) == len(sides)
                        else math.nan
                    ),
                }
            )
    return rows


def _stages(requests: pd.DataFrame, *, told: bool) -> dict[str, np.ndarray]:
    """Nanoseconds in each stage, float64 of shape (compared requests,)."""
    ttft, e2e = (requests[name].to_numpy(dtype="float64") for name in ("ttft_ns", "e2e_ns"))
    if not told:
        return {"first_token": ttft, "decode": e2e - ttft, "e2e": e2e}
    waited = (requests[SCHEDULED] - requests["arrival_time_ns"]).to_numpy(dtype="float64")
    return {"queueing": waited, "prefill": ttft - waited, "decode": e2e - ttft, "e2e": e2e}


def _lateness(run: RealRun, pair: AlignedPair) -> np.ndarray | None:
    if "send_time_ns" not in run.requests:
        return None
    chosen = run.requests.iloc[pair.real.requests["request_id"].to_numpy()]
    if chosen["send_time_ns"].isna().any():
        return None
    return (chosen["send_time_ns"] - chosen["arrival_time_ns"]).to_numpy(dtype="float64")


# --- steps ------------------------------------------------------------------------------------------------------------


def step_rows(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.StepErrors`: every simulation against every real repeat, and every further repeat
    against the first one, which is the scale to read the others by. Runs without iterations have no row."""
    recorded = [run for run in real_repeats if run.iterations is not None and len(run.iterations)]
    rows = []
    for run in recorded:
        others = [
            (name, sim) for name, sim in simulations.items() if sim.iterations is not None and len(sim.iterations)
        ]
        compared: list[tuple[str, RealRun | SimulatedRun]] = [*others]
        if run is not recorded[0]:
            compared.append((recorded[0].meta.run_id, recorded[0]))
        for name, other in compared:
            rows += _step_rows(run, name, other)
    return rows


def _step_rows(real: RealRun, name: str, other: RealRun | SimulatedRun) -> list[dict[str, Any]]:
    one, two = real.iterations, other.iterations
    assert one is not None and two is not None
    share = same_composition(one, two)
    rows = []
    for kind in ("all", *STEP_KINDS):
        times = [durations_ns(table)[of_kind(table, kind)] for table in (one, two)]
        means = [float(part.mean()) if len(part) else math.nan for part in times]
        rows.append(
            {
                "run_id": real.meta.run_id,
                "compared_with": name,
                "step_kind": kind,
                "num_real_steps": len(times[0]),
                "num_other_steps": len(times[1]),
                "real_mean_ns": means[0],
                "other_mean_ns": means[1],
                "relative_difference": relative_error(means[1], means[0]) if not math.isnan(sum(means)) else math.nan,
                "same_composition": share if kind == "all" else math.nan,
            }
        )
    return rows


def of_kind(iterations: pd.DataFrame, kind: str) -> np.ndarray:
    """Which steps are `decode`, `mixed` (see `STEP_KINDS`) or of `all` kinds, bool."""
    if kind == "all":
        return np.ones(len(iterations), dtype=bool)
    mixed = iterations["num_prefill_tokens"].to_numpy(dtype="int64") > 0
    return mixed if kind == "mixed" else ~mixed


def durations_ns(iterations: pd.DataFrame) -> np.ndarray:
    """The time of each step of a `contracts.tables.Iterations` table as this module defines it, int64."""
    scheduled, completed = (
        iterations[name].to_numpy(dtype="int64") for name in ("scheduled_time_ns", "completion_time_ns")
    )
    before = np.concatenate([scheduled[:1], completed[:-1]])
    return completed - np.maximum(scheduled, before)


def same_composition(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Share of the steps of `one` that `other` has with the same prompt requests, prompt tokens and decodes, in the
    same order: the longest common subsequence over the number of steps of `one`. Both are
    `contracts.tables.Iterations`, with at least one step."""
    first, second = (
        list(map(tuple, table[list(COMPOSITION)].to_numpy(dtype="int64")[:_MOST_STEPS].tolist()))
        for table in (one, other)
    )
    return longest_common_subsequence(first, second) / len(first)


def longest_common_subsequence(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common subsequence, with a row of the table in the bits of one integer (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited")."""
    places: dict[Any, int] = {}
    for index, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << index
    whole = (1 << len(one)) - 1
    row = whole
    for item in other:
        if (found := places.get(item)) is not None:
            matched = row & found
            row = ((row + matched) | (row - matched)) & whole
    return len(one) - row.bit_count()
