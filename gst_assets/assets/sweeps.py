"""The sweep: one workload simulated under many rates and engine settings. Measures nothing.

A graph of steps: one cuts the sweep into parts, each part is a step of its own that the executor may give to any
machine, one puts together what they found. Steps share nothing but the artifact store.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from gst_assets.assets.catalog import code_version
from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_passed,
    figure,
    load_tagged,
    report_link,
    scenario_facts,
    table_definition_metadata,
)
from gst_assets.assets.profiles import NAME as PROFILE
from gst_assets.assets.profiles import current_bundle
from gst_assets.assets.vidur_runs import TABLE_CACHE
from gst_assets.assets.workloads import WORKLOAD_SPEC, current_workload
from gst_assets.contracts.documents import SweepMeta, run_facts, timestamp_slug, write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import SimulationError
from gst_assets.executors import is_spread
from gst_assets.partitions import SCENARIOS
from gst_assets.progress import Progress, progress_line
from gst_assets.provenance import environment, sha256_bytes, sha256_file
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    from gst_assets.step_costs.bundle import Bundle
    from gst_assets.vidur_adapter.sweep_parts import Part
    from gst_assets.workload.spec import LoadedWorkload

_TABLE = "sweep.csv"
_KEPT = ".cache/sweeps"
_KEY_DIGITS = 16
_SHOWN_POINTS = 50
"""Rows in the metadata of a materialization, which stay in Dagster's event log for good."""


class SweepConfig(dg.Config):
    """How the sweep is run; its result does not depend on it."""

    workers: int = Field(
        default=0,
        ge=0,
        description="processes that simulate at once in a step; 0: one a CPU, one where steps are on many machines",
    )
    configurations_a_step: int = Field(
        default=0,
        ge=0,
        description="0: all in one step, or, where they are on many machines, a few seconds of simulation",
    )


class _CutConfig(dg.Config):
    configurations_a_step: int = 0


class _PartConfig(dg.Config):
    workers: int = 0


@dg.config_mapping
def _of_the_steps(val: SweepConfig) -> dict[str, Any]:
    return {
        "cut_sweep": {"config": {"configurations_a_step": val.configurations_a_step}},
        "simulate": {"config": {"workers": val.workers}},
    }


@dataclass(frozen=True)
class _Inputs:
    """What every step of a sweep starts from. `key` stands for everything that decides the sweep's rows."""

    scenario: Scenario
    store: ArtifactStore
    workload: "LoadedWorkload"
    bundle: "Bundle"
    key: str


def _inputs(
    context: dg.AssetExecutionContext, chosen: Scenario, artifacts: ArtifactRoot, profiling_root: VidurProfilingRoot
) -> _Inputs:
    store = artifacts.store()
    workload = current_workload(store, chosen, context)
    bundle = current_bundle(store, chosen, profiling_root.fixed(chosen), context)
    decided = {
        "scenario": chosen.model_dump(mode="json"),
        "workload": workload.meta.sha256,
        "profile": bundle.sha256 | {Kind.PROFILE.meta_name: sha256_file(bundle.directory / Kind.PROFILE.meta_name)},
        "code": code_version("sweeps"),
        "packages": environment()["packages"],
    }
    key = sha256_bytes(json.dumps(decided, sort_keys=True).encode())[:_KEY_DIGITS]
    return _Inputs(chosen, store, workload, bundle, key)


@dg.op(
    ins={WORKLOAD_SPEC: dg.In(dg.Nothing), PROFILE: dg.In(dg.Nothing)},
    # Most scenarios sweep nothing: then there is no part, the other steps are left out, and that is no failure.
    out=dg.DynamicOut(dg.Nothing, is_required=False),
    description="Names what is wrong with any configuration, and cuts into parts what was not simulated yet.",
)
def cut_sweep(
    context: dg.AssetExecutionContext,
    config: _CutConfig,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.DynamicOutput[None]]:
    chosen = load_tagged(context, scenario, context.partition_key)
    if chosen.sweep is None:
        context.log.info(f"scenario {chosen.name} has no section sweep: nothing to simulate, nothing materialized")
        return
    from gst_assets.step_costs.bundle import check_bundle
    from gst_assets.vidur_adapter.sweep import configurations, simulations_each
    from gst_assets.vidur_adapter.sweep_parts import SweepParts, cut, usual_size

    inputs = _inputs(context, chosen, artifacts, profiling_root)
    lengths = inputs.workload.lengths
    combined = configurations(chosen)
    # A profile covers an engine, whatever the rate.
    for one in {one.engine.model_dump_json(): one for one in combined}.values():
        check_bundle(inputs.bundle, one, lengths)
    known = SweepParts(inputs.store, inputs.key).rows()
    size = config.configurations_a_step or (
        usual_size(len(lengths) * simulations_each(chosen)) if is_spread() else len(combined)
    )
    parts = cut(len(combined), size, known, inputs.key)
    context.log.info(
        f"{len(combined)} configurations of {len(lengths)} requests, {len(known)} of them simulated by a run that did"
        f" not end; steps that simulate: {len(parts)}"
    )
    for part in parts:
        yield dg.DynamicOutput(None, mapping_key=part.name)


@dg.op(
    ins={"cut": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
    description="Simulates the configurations that its key names, and keeps what they gave in the artifact store.",
)
def simulate(
    context: dg.AssetExecutionContext,
    config: _PartConfig,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> None:
    from gst_assets.vidur_adapter.sweep import KeptRows, points, simulate_all, sweep_jobs
    from gst_assets.vidur_adapter.sweep_parts import Part, SweepParts

    inputs = _inputs(context, scenario.load(context.partition_key), artifacts, profiling_root)
    part = Part.named(str(context.op_execution_context.get_mapping_key()))
    _check_same(inputs, part)
    done = SweepParts(inputs.store, inputs.key)
    known = done.rows()
    left = [number for number in range(part.first, part.last + 1) if number not in known]
    workload = inputs.workload
    jobs = sweep_jobs(
        inputs.scenario, workload.lengths, workload.intervals, inputs.bundle, inputs.store.root / TABLE_CACHE, left
    )
    kept = KeptRows(inputs.store.root / _KEPT, f"{inputs.key}_{part.first}_{part.last}")
    before = sum(number in jobs for number in kept.rows)
    if before:
        context.log.info(f"{before} of {len(jobs)} configurations were simulated by a run that did not end")
    workers = config.workers or (1 if is_spread() else len(os.sched_getaffinity(0)))
    with Progress("simulating", len(jobs), "configurations", before=before, tell=context.log.info) as progress:
        rows = simulate_all(jobs, points, workers=workers, on_done=progress.at, kept=kept)
    if rows:
        done.add(rows)
    kept.remove()
    if part.count > 1:
        context.log.info(_share_of_run(context, part))


def _check_same(inputs: _Inputs, part: "Part") -> None:
    if not inputs.key.startswith(part.key):
        raise SimulationError(
            f"scenario {inputs.scenario.name}: this worker would simulate something else ({inputs.key}) than the step"
            f" that cut the sweep ({part.key}): its code, packages, scenario file, workload or profile differ. Give"
            " every worker the same commit, packages and files, and materialize the sweep again."
        )


def _share_of_run(context: dg.AssetExecutionContext, part: "Part") -> str:
    """How far the run has come, the step that asks included, whoever simulates the other parts."""
    own = f"{context.op_execution_context.op.name}["
    steps = [one for one in context.instance.get_run_step_stats(context.run.run_id) if f".{own}" in one.step_key]
    ended = sum(1 for one in steps if one.end_time is not None) + 1
    began = min(one.start_time for one in steps if one.start_time is not None)
    return progress_line("the whole sweep", ended, time.time() - began, part.count, "parts")


@dg.op(
    ins={"parts": dg.In(dg.Nothing)},
    out={
        "sweep": dg.Out(dg.Nothing, is_required=False),
        "sweep_contract": dg.Out(dg.Nothing, is_required=False),
    },
    description="Puts together what the parts found: table, figure, page and summary.",
)
def gather_sweep(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from gst_assets.analysis.sweep_report import (
        FIGURE,
        REPORT,
        SUMMARY,
        caption,
        summary_table,
        sweep_table,
        write_sweep,
    )
    from gst_assets.vidur_adapter.sweep import KeptRows, configurations
    from gst_assets.vidur_adapter.sweep_parts import SweepParts

    inputs = _inputs(context, scenario.load(context.partition_key), artifacts, profiling_root)
    chosen, store, workload, bundle = inputs.scenario, inputs.store, inputs.workload, inputs.bundle
    assert chosen.sweep is not None  # else there was no part
    # The run's, not this step's: it is when the simulations began.
    record = context.instance.get_run_record_by_id(context.run.run_id)
    started = datetime.fromtimestamp(record.start_time, timezone.utc) if record and record.start_time else None
    started = started or datetime.now(timezone.utc)
    parts = SweepParts(store, inputs.key)
    found = parts.complete(len(configurations(chosen)))
    frame = sweep_table([row for rows in found for row in rows])
    run_id = f"{chosen.name}-{timestamp_slug(started)}-{secrets.token_hex(2)}"
    with store.stage(Kind.SWEEP, run_id) as staging:
        write_sweep(frame, chosen, staging.path)
        meta = SweepMeta(
            run_id=run_id,
            **run_facts(chosen, started),
            hardware=bundle.meta.hardware,
            workload_id=workload.meta.workload_id,
            variant=chosen.sweep.variant,
            num_configurations=len(found),
            inputs_sha256={
                **workload.meta.sha256,
                **{f"profile/{name}": digest for name, digest in bundle.sha256.items()},
            },
            sha256=staging.digests(),
        )
        write_document(meta, staging.path / Kind.SWEEP.meta_name)
        final = staging.commit()
    yield contract_passed("sweep", rows=len(frame))
    yield dg.MaterializeResult(
        asset_key="sweep",
        data_version=dg.DataVersion(meta.sha256[_TABLE]),
        metadata={
            "open_report": report_link(Kind.SWEEP, run_id, REPORT),
            **scenario_facts(chosen),
            "dagster/row_count": len(frame),
            "summary": dg.MetadataValue.path(str(final / SUMMARY)),
            "pareto": figure(final / FIGURE),
            "caption": dg.MetadataValue.md(caption(frame)),
            "points": dg.MetadataValue.md(summary_table(frame, most=_SHOWN_POINTS)),
        },
    )
    # Last: a run that is killed before has everything still.
    parts.remove()
    KeptRows.remove_all(store.root / _KEPT, inputs.key)


@dg.graph(
    name="sweep",
    ins={WORKLOAD_SPEC: dg.GraphIn(), PROFILE: dg.GraphIn()},
    out={"sweep": dg.GraphOut(), "sweep_contract": dg.GraphOut()},
    config=_of_the_steps,
)
def _steps(workload_spec: Any, vidur_profile: Any) -> dict[str, Any]:
    parts = cut_sweep(workload_spec=workload_spec, vidur_profile=vidur_profile).map(simulate)
    made, checked = gather_sweep(parts.collect())
    return {"sweep": made, "sweep_contract": checked}


sweep = dg.AssetsDefinition.from_graph(
    _steps,
    keys_by_input_name={name: dg.AssetKey(name) for name in (WORKLOAD_SPEC, PROFILE)},
    keys_by_output_name={"sweep": dg.AssetKey("sweep")},
    partitions_def=SCENARIOS,
    group_name="simulation",
    tags_by_output_name={"sweep": {f"dagster/kind/{kind}": "" for kind in ("vidur", "csv", "matplotlib")}},
    metadata_by_output_name={"sweep": table_definition_metadata(_TABLE)},
    descriptions_by_output_name={
        "sweep": (
            "Throughput and latencies of the scenario's requests under every combination of the rates and engine"
            " settings that its section `sweep` lists, simulated; Pareto-optimal ones are marked. Not materialized for"
            " a scenario without that section."
        )
    },
    check_specs=contract_check_specs(["sweep"]),
)
