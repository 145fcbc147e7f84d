"""What an error beyond the pass band is likely due to, by rules over what was measured. No rule guesses: each names its evidence, and where none fits
the error is `unexplained`.

Rules, in order of how directly their evidence speaks. A setting that differs only counts where it could matter: where a step, or the KV cache, came
as far as the smaller of the two limits on either side.

1. `noise`: the error is within what the real repeats differ by. Nothing further is looked for, since nothing could be told from it.
2. `chunk size`, `sequence limit`, `KV blocks`: max_num_batched_tokens, max_num_seqs, num_kv_blocks or block_size differ and were reached.
3. `scheduling`: the policy, chunked prefill, prefix caching or asynchronous scheduling differs.
4. `no step overheads`: the variant simulates operators only (`published`, `kernels`), and its steps are too fast.
5. `outside calibration`: steps of compositions that the profile was not calibrated at, where the edge's value was held.
6. `preemptions`: their number differs.
7. `lateness`: the driver's, which only the real side has, is at least half of an error that makes the simulation too fast.
8. `step time, decode` and `step time, mixed`: steps of this kind take longer or shorter, beyond the pass band, to the side of the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gst_assets.analysis.measures import MAIN_MEASURES
from gst_assets.analysis.runs import RealRun, SimulatedRun

if TYPE_CHECKING:
    from gst_assets.analysis.comparison import Cell

STATISTICS = ("p50", "p90", "p99")
NOISE, UNEXPLAINED = "noise", "unexplained"
_LEAST_OUTSIDE = 0.01
"""Share of the simulated steps outside calibration from which on they are named."""
_MOST_OF_IT = 0.5
"""Share of an error from which on lateness is named."""
_NEARLY_FULL = 0.9
"""Share of the KV blocks from which on their number counts as reached: requests hold blocks that are partly empty."""
_LIMITS = {"max_num_batched_tokens": "chunk size", "max_num_seqs": "sequence limit"}
_BLOCKS = ("num_kv_blocks", "block_size")
_POLICIES = ("scheduling_policy", "enable_chunked_prefill", "enable_prefix_caching", "async_scheduling")


@dataclass(frozen=True)
class Cause:
    """A likely cause and the evidence for it, in words."""

    name: str
    evidence: str


@dataclass(frozen=True)
class Measured:
    """What the rules look at. Frames are those of `contracts.tables` of the same names."""

    real_repeats: Sequence[RealRun]
    simulations: Mapping[str, SimulatedRun]
    settings_parity: pd.DataFrame
    stage_errors: pd.DataFrame
    step_errors: pd.DataFrame
    pass_band: float


def cause_rows(cells: Sequence[Cell], measured: Measured) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.ErrorCauses`: of every cell of TTFT, ITL and E2E at P50, P90 and P99 beyond the pass band, in each variant, but for
    those with too few samples for an interval."""
    rows = []
    for cell in cells:
        if (
            cell.metric not in MAIN_MEASURES
            or cell.statistic not in STATISTICS
            or cell.error_size <= measured.pass_band
        ):
            continue
        if not cell.num_real_samples or (cell.verdict == "insufficient" and math.isnan(cell.interval_low)):
            continue
        for rank, cause in enumerate(likely_causes(cell, measured), start=1):
            rows.append(
                {
                    "variant": cell.variant,
                    "metric": cell.metric,
                    "statistic": cell.statistic,
                    "relative_error": cell.relative_error,
                    "rank": rank,
                    "cause": cause.name,
                    "evidence": cause.evidence,
                }
            )
    return rows


def likely_causes(cell: Cell, measured: Measured) -> list[Cause]:
    """The causes of one cell's error, in order of rank; at least one."""
    if cell.error_size <= cell.real_spread:
        text = f"the error is no larger than what {len(measured.real_repeats)} real repeats differ by, {100 * cell.real_spread:.1f} %"
        return [Cause(NOISE, text)]
    sim = measured.simulations[cell.variant]
    found = [
        *_limits(cell, sim, measured),
        *_scheduling(cell, measured),
        *_operators_only(cell, sim, measured),
        *_outside(sim),
        *_preemptions(sim, measured),
        *_lateness(cell, measured),
        *_steps(cell, measured),
    ]
    return found or [Cause(UNEXPLAINED, _whereabouts(cell, measured))]


# --- settings ---------------------------------------------------------------------------------------------------------


def _limits(cell: Cell, sim: SimulatedRun, measured: Measured) -> Iterator[Cause]:
    differing = _differing(cell, measured)
    runs: list[RealRun | SimulatedRun] = [*measured.real_repeats, sim]
    for name, cause in _LIMITS.items():
        if name not in differing:
            continue
        peak = _peak(runs, _step_tokens if name == "max_num_batched_tokens" else _step_requests)
        reached = _reached(peak, _least(name, sim, measured))
        unit = "tokens" if name == "max_num_batched_tokens" else "requests"
        if reached is not False:
            told = (
                "no run recorded its steps, so whether it was reached is not known"
                if reached is None
                else f"a step had {peak:.0f} {unit}"
            )
            yield Cause(cause, f"{name}: {differing[name]}; {told}")
    blocks = [name for name in _BLOCKS if name in differing]
    if blocks:
        capacity = _kv_capacity(sim, measured)
        peak = _peak(runs, _kv_tokens)
        reached = _reached(peak, capacity * _NEARLY_FULL)
        number = max(
            [
                sim.meta.num_preemptions,
                *(count for run in measured.real_repeats if (count := _preempted(run)) is not None),
            ]
        )
        if reached is not False or number:
            told = (
                f"{number} preemptions"
                if number
                else "no run recorded its steps, so whether they were filled is not known"
            )
            if reached:
                told = f"up to {peak:.0f} of {capacity:.0f} tokens held" + (f", {number} preemptions" if number else "")
            yield Cause("KV blocks", f"{'; '.join(f'{name}: {differing[name]}' for name in blocks)}; {told}")


def _scheduling(cell: Cell, measured: Measured) -> Iterator[Cause]:
    differing = _differing(cell, measured)
    told = [f"{name}: {differing[name]}" for name in _POLICIES if name in differing]
    if told:
        yield Cause("scheduling", "; ".join(told))


def _differing(cell: Cell, measured: Measured) -> dict[str, str]:
    """By setting that differs: the engine's value and the simulation's, in words."""
    parity = measured.settings_parity
    rows = parity[(parity["variant"] == cell.variant) & (parity["parity"] == "differs")]
    return {
        str(setting): f"engine {real}, simulated {simulated}"
        for setting, real, simulated in zip(rows["setting"], rows["real"], rows["simulated"], strict=True)
    }


def _least(name: str, sim: SimulatedRun, measured: Measured) -> float:
    """The smallest value of a limit on either side."""
    values = [float(getattr(run.meta.engine_settings, name)) for run in measured.real_repeats]
    return min([*values, float(sim.meta.simulated_settings[name])])


def _kv_capacity(sim: SimulatedRun, measured: Measured) -> float:
    """Tokens that the smallest cache of either side holds. A side that does not tell number and size of its blocks is left out."""
    caches: list[tuple[int | None, int | None]] = [
        (run.meta.engine_settings.num_kv_blocks, run.meta.engine_settings.block_size) for run in measured.real_repeats
    ]
    assumed = sim.meta.simulated_settings
    caches.append((assumed.get("num_kv_blocks"), assumed.get("block_size")))
    return min(float(blocks * size) for blocks, size in caches if blocks and size)


def _peak(runs: Sequence[RealRun | SimulatedRun], of: Any) -> float | None:
    """The largest value over all recorded steps; None where no run recorded any."""
    tables = [run.iterations for run in runs if run.iterations is not None and len(run.iterations)]
    return max((float(of(table).max()) for table in tables), default=None)


def _reached(peak: float | None, limit: float) -> bool | None:
    return None if peak is None else peak >= limit


def _step_tokens(table: pd.DataFrame) -> pd.Series:
    return table["num_prefill_tokens"] + table["num_decode_requests"]


def _step_requests(table: pd.DataFrame) -> pd.Series:
    return table["num_prefill_requests"] + table["num_decode_requests"]


def _kv_tokens(table: pd.DataFrame) -> pd.Series:
    return table["num_context_tokens"] + _step_tokens(table)


# --- the simulation's own terms ---------------------------------------------------------------------------------------


def _operators_only(cell: Cell, sim: SimulatedRun, measured: Measured) -> Iterator[Cause]:
    if sim.meta.simulated_settings.get("step_overheads") is not False or not cell.relative_error < 0:
        return
    step = _step(cell, "all", measured)
    if step is None:
        yield Cause("no step overheads", "the variant simulates operators only; steps were not recorded on both sides")
    elif step.relative < -measured.pass_band:
        yield Cause("no step overheads", f"the variant simulates operators only; {step.text}")


def _outside(sim: SimulatedRun) -> Iterator[Cause]:
    outside = sim.meta.simulated_settings.get("steps_outside_calibration")
    if not outside or sim.iterations is None or not len(sim.iterations):
        return
    share = outside / len(sim.iterations)
    if share >= _LEAST_OUTSIDE:
        text = f"{outside} of {len(sim.iterations)} simulated steps ({100 * share:.1f} %) lie outside what was calibrated, where the nearest value was held"
        yield Cause("outside calibration", text)


# --- what happened ----------------------------------------------------------------------------------------------------


def _preempted(run: RealRun) -> int | None:
    if "num_preemptions" not in run.requests or run.requests["num_preemptions"].isna().any():
        return None
    return int(run.requests["num_preemptions"].sum())


def _preemptions(sim: SimulatedRun, measured: Measured) -> Iterator[Cause]:
    real = [_preempted(run) for run in measured.real_repeats]
    known = [count for count in real if count is not None]
    if len(known) < len(real) or min(known) <= sim.meta.num_preemptions <= max(known):
        return
    yield Cause(
        "preemptions", f"{' / '.join(map(str, known))} in the real repeats, {sim.meta.num_preemptions} simulated"
    )


def _lateness(cell: Cell, measured: Measured) -> Iterator[Cause]:
    if cell.metric == "itl" or not cell.error_ns < 0:
        return
    runs = [run.requests for run in measured.real_repeats if "send_time_ns" in run.requests]
    if len(runs) < len(measured.real_repeats):
        return
    late = [(table["send_time_ns"] - table["arrival_time_ns"]).dropna().to_numpy(dtype="float64") for table in runs]
    if not all(len(one) for one in late):
        return
    at = float(np.median([np.percentile(one, int(cell.statistic[1:])) for one in late]))
    if at >= _MOST_OF_IT * -cell.error_ns:
        text = f"the driver handed requests over {_ms(at)} ms late at {cell.statistic.upper()}, of an error of {_ms(cell.error_ns)} ms"
        yield Cause("lateness", text)


@dataclass(frozen=True)
class _Step:
    relative: float
    text: str


def _step(cell: Cell, kind: str, measured: Measured) -> _Step | None:
    """How the time of steps differs, in the middle of the real repeats; None where it is not known."""
    table = measured.step_errors
    rows = table[(table["beside"] == cell.variant) & (table["step_kind"] == kind)].dropna(
        subset=["relative_difference"]
    )
    if rows.empty:
        return None
    relative = float(rows["relative_difference"].median())
    what = "steps" if kind == "all" else f"{kind} steps"
    text = (
        f"{what} take {_ms(rows['other_mean_ns'].median())} ms simulated, {_ms(rows['real_mean_ns'].median())} ms real ({100 * relative:+.1f} %; "
        f"{rows['num_real_steps'].median():.0f} real steps)"
    )
    return _Step(relative, text)


def _steps(cell: Cell, measured: Measured) -> Iterator[Cause]:
    for kind in ("decode", "mixed"):
        step = _step(cell, kind, measured)
        if step and abs(step.relative) > measured.pass_band and step.relative * cell.relative_error > 0:
            yield Cause(f"step time, {kind}", step.text)


def _whereabouts(cell: Cell, measured: Measured) -> str:
    """For an error without a cause: what is known of its place."""
    table = measured.stage_errors
    stages = table[(table["variant"] == cell.variant) & (table["stage"] != "e2e")]
    largest = stages.iloc[int(stages["error_ns"].abs().to_numpy().argmax())]
    known = f"no rule fits; the largest part of the mean error is in {largest['stage']}, {_ms(largest['error_ns'])} ms a request"
    step = _step(cell, "all", measured)
    return f"{known}; {step.text}" if step else f"{known}; steps were not recorded on both sides"


def _ms(nanoseconds: float) -> str:
    """Three significant digits, or all before the point."""
    value = nanoseconds / 1e6
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
