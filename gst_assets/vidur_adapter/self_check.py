"""Whether a simulation is still reproducible: the same inputs must give the same bytes, on every machine and in every
process.

Simulates and compares; what a difference means for a run belongs to the caller. No cached operator table is used, so
that the whole way from the profile's files to the tables is covered.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from gst_assets.analysis.run_reading import OwnSimulatedRun
from gst_assets.contracts.tables import (
    Iterations,
    RequestMetrics,
    Table,
    TokenMetrics,
    write_table,
    write_table_parts,
)
from gst_assets.errors import SimulationError
from gst_assets.provenance import environment, sha256_file
from gst_assets.scenario import Scenario
from gst_assets.step_costs.bundle import Bundle
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets.workload.spec import LoadedWorkload, check_made_for
from gst_assets.workload.tokenized import prompts_of

_SECTIONS = ("workload", "model", "engine", "simulation")


def check_same_bytes(run: OwnSimulatedRun, scenario: Scenario, workload: LoadedWorkload, bundle: Bundle) -> None:
    """Simulate `run` again and compare its tables byte by byte.

    Raises:
        SimulationError: the tables differ (names table, row, column and both values), or the inputs are not those of
            `run`.
        WorkloadError: the scenario has other settings than `run` was made with.
    """
    check_made_for(run.meta.params, scenario, run.directory, _SECTIONS, "vidur_request_metrics")
    for what, made_from, found in (
        ("workload", run.meta.workload_sha256, workload.meta.sha256),
        ("profile", run.meta.profile_sha256, bundle.sha256),
    ):
        changed = sorted(name for name in made_from.keys() | found.keys() if made_from.get(name) != found.get(name))
        if changed:
            raise SimulationError(
                f"{run.directory}: its {what} changed since ({changed[0]} has another digest), so it cannot be checked"
                " against itself. Materialize vidur_request_metrics and vidur_token_metrics again."
            )
    with tempfile.TemporaryDirectory() as area:
        result = simulate(
            scenario,
            workload.lengths,
            workload.intervals,
            bundle,
            run.meta.variant,
            cache_dir=None,
            prompts=prompts_of(workload, scenario),
        )
        again: tuple[tuple[type[Table], Path], ...] = (
            (RequestMetrics, write_table(RequestMetrics, result.requests, Path(area))),
            (TokenMetrics, write_table_parts(TokenMetrics, result.token_parts(), Path(area))),
            (Iterations, write_table(Iterations, result.iterations, Path(area))),
        )
        for model, path in again:
            _compare(run, model, path)


def _compare(run: OwnSimulatedRun, model: type[Table], again: Path) -> None:
    name = model.file_name()
    if run.meta.sha256.get(name) == sha256_file(again):
        return
    difference = first_difference(run.directory / name, again)
    versions = _changed_versions(run)
    raise SimulationError(
        f"{run.directory / name}: simulating the same inputs again gives other bytes; first difference: {difference}. "
        + (
            f"Changed since: {versions}. "
            if versions
            else "Versions are those it was made with, so the simulation is not deterministic. "
        )
        + "If the change is intended, materialize vidur_request_metrics and vidur_token_metrics again."
    )


def first_difference(before: Path, after: Path) -> str:
    """Where two CSV files first differ, in words: row (from 0, below the header), its keys, column, and both fields."""
    one, two = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (before, after))
    if list(one.columns) != list(two.columns):
        return f"columns {', '.join(one.columns)} before, {', '.join(two.columns)} now"
    rows = min(len(one), len(two))
    differs = (one.iloc[:rows] != two.iloc[:rows]).to_numpy()
    if not differs.any():
        return f"{len(one)} rows before, {len(two)} now"
    row, column = divmod(int(differs.argmax()), differs.shape[1])
    name = one.columns[column]
    key = " ".join(f"{key} {one[key].iloc[row]}" for key in ("request_id", "token_index", "iteration_id") if key in one)
    return f"row {row} ({key}), column {name}: {one[name].iloc[row]} before, {two[name].iloc[row]} now"


def _changed_versions(run: OwnSimulatedRun) -> str:
    before, now = run.meta.env.get("packages", {}), environment()["packages"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names)
