"""Writing a comparison directory: summary.md, report.html, tables/*.csv, figs/*.png, and building its metadata
document.

What the report says is in `report_content` and `report_tables`, how it looks in `report_formats`. The same comparison
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gst_assets.analysis.drawing_process import DrawingProcess
from gst_assets.analysis.figures import planned_figures
from gst_assets.analysis.judged_errors import Comparison
from gst_assets.analysis.report_blocks import Grid
from gst_assets.analysis.report_content import FIGURES, REPORT, TABLES, content, verdict_sentence
from gst_assets.analysis.report_formats import grid_markdown, markdown, page
from gst_assets.analysis.report_tables import deciding_grid, latency_grid, ranking_grid
from gst_assets.analysis.run_reading import RealRun, SimulatedRun, read_profile
from gst_assets.contracts.documents import ComparisonMeta
from gst_assets.contracts.store import Kind
from gst_assets.contracts.tables import (
    AlignmentCounts,
    CachedTokens,
    CapacityErrors,
    ErrorCauses,
    ErrorGroups,
    GateChecks,
    LatencyErrors,
    PairedErrors,
    RateErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    StageErrors,
    StepCosts,
    StepErrors,
    write_table,
)
from gst_assets.provenance import environment, git_state, sha256_file, utc_now

__all__ = [
    "REPORT",
    "SUMMARY",
    "comparison_meta",
    "latency_table",
    "side_by_side",
    "verdict_sentence",
    "write_comparison",
]

SUMMARY = "summary.md"


def write_comparison(comparison: Comparison, directory: Path, drawing: DrawingProcess | None) -> None:
    """Write everything but the metadata document into `directory`, which exists and is empty. `drawing` draws the
    figures meanwhile; without it the report shows its tables alone.

    The caller writes `comparison_meta(...)` last, so that an interrupted directory is never taken for a comparison.

    Raises:
        ComparisonError: the figures cannot be drawn.
    """
    tables, figures = directory / TABLES, directory / FIGURES
    planned = planned_figures(comparison) if drawing is not None else []
    if drawing is not None:
        figures.mkdir()
        drawing.begin([sheet for _, sheet in planned], figures)
    tables.mkdir()
    for model, frame in (
        (LatencyErrors, comparison.latency_errors),
        (RepeatLatencies, comparison.repeat_latencies),
        (RequestErrors, comparison.request_errors),
        (RateErrors, comparison.rate_errors),
        (PairedErrors, comparison.paired_errors),
        (ErrorGroups, comparison.error_groups),
        (RunTotals, comparison.run_totals),
        (GateChecks, comparison.gate_checks),
        (AlignmentCounts, comparison.alignment_counts),
        (SettingsParity, comparison.settings_parity),
        (StageErrors, comparison.stage_errors),
        (StepErrors, comparison.step_errors),
        (StepCosts, comparison.step_costs),
        (ErrorCauses, comparison.error_causes),
        *([(CachedTokens, comparison.cached_tokens)] if not comparison.cached_tokens.empty else []),
        *([(CapacityErrors, comparison.capacity_errors)] if comparison.capacities else []),
    ):
        write_table(model, frame, tables)
    profile = read_profile(comparison.simulations[comparison.headline])
    blocks = content(comparison, [figure for figure, _ in planned], profile)
    (directory / SUMMARY).write_text(markdown(blocks, FIGURES), encoding="utf-8")
    if drawing is not None:
        drawing.finish()  # the page has the figures inside
    (directory / REPORT).write_text(page(blocks, directory, FIGURES), encoding="utf-8")


def latency_table(comparison: Comparison) -> str:
    """The Markdown table of real and simulated latencies in milliseconds, one row per metric and statistic."""
    return grid_markdown(latency_grid(comparison))


def headline_table(comparison: Comparison) -> str:
    """The Markdown table of the cells that decide. Under 1,000 characters: the Dagster UI folds away what is longer."""
    return grid_markdown(deciding_grid(comparison.answer))


def side_by_side(comparison: Comparison) -> Grid | None:
    """Several simulations for a terminal: a column each, best first, with verdict, errors, intervals; None of one."""
    return ranking_grid(comparison, is_brief=True) if len(comparison.variants) > 1 else None


def comparison_meta(
    comparison: Comparison, *, run_id: str, started_at: datetime, sha256: Mapping[str, str]
) -> ComparisonMeta:
    """The comparison's run_meta.json. `sha256` digests the files written so far; scenario, model and hardware are the
    first repeat's."""
    commit, dirty = git_state()
    first = comparison.real_repeats[0]
    runs: list[RealRun | SimulatedRun] = [*comparison.real_repeats, *comparison.simulations.values()]
    runs += [run for seeds in comparison.further_seeds.values() for run in seeds]
    return ComparisonMeta.model_validate(
        {
            "run_id": run_id,
            "started_at": started_at,
            "ended_at": utc_now(),
            "git_commit": commit,
            "git_dirty": dirty,
            "model": first.meta.model,
            "hardware": first.meta.hardware.model_dump() if first.meta.hardware else None,
            "env": environment(),
            "params": first.meta.params,
            "hydra": first.meta.hydra.model_dump(),
            "inputs_sha256": {
                f"{run.meta.run_id}/{file}": digest for run in runs for file, digest in _run_digests(run).items()
            },
            "sha256": dict(sha256),
            "real_run_dir": str(first.directory),
            "sim_run_dir": str(comparison.simulations[comparison.headline].directory),
            "real_run_dirs": [str(run.directory) for run in comparison.real_repeats],
            "sim_run_dirs": {name: str(run.directory) for name, run in comparison.simulations.items()},
            "seed_run_dirs": {
                name: [str(run.directory) for run in runs] for name, runs in comparison.further_seeds.items()
            },
            "workload_id": first.meta.workload_id,
            "headline_variant": comparison.headline,
            "verdict": comparison.verdict.outcome,
            "marks": list(comparison.marks),
            "measured": _measured(first, comparison.simulations[comparison.headline]),
        }
    )


def _measured(real: RealRun, sim: SimulatedRun) -> dict[str, Any] | None:
    """What a history needs; None where a run of another program does not state it."""
    meta = real.meta
    if meta.group_id is None or meta.started_at is None or meta.engine_settings is None:
        return None
    return {
        "group_id": meta.group_id,
        "measured_at": meta.started_at,
        "engine_settings": meta.engine_settings.model_dump(),
        "env": meta.env,
        "sim_env": sim.meta.env,
        "profile_sha256": sim.meta.profile_sha256,
    }


def _run_digests(run: RealRun | SimulatedRun) -> dict[str, str]:
    """Digests of a run's files, its own metadata document included."""
    name = Kind.REAL_RUN.meta_name
    return {**run.meta.sha256, name: sha256_file(run.directory / name)}
