"""The sweep: one workload simulated under many rates and engine settings. Measures nothing."""

import json
import os
import secrets
from collections.abc import Iterator
from datetime import datetime, timezone

import dagster as dg

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
from gst_assets.contracts.store import Kind
from gst_assets.partitions import SCENARIOS
from gst_assets.progress import Progress
from gst_assets.provenance import environment, sha256_bytes, sha256_file
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot

_TABLE = "sweep.csv"
_KEPT = ".cache/sweeps"


class SweepConfig(dg.Config):
    """How the sweep is run; its result does not depend on it."""

    workers: int = 0
    """Processes that simulate at once; 0: one for each CPU."""


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "sweep",
            deps=[WORKLOAD_SPEC, PROFILE],
            partitions_def=SCENARIOS,
            group_name="simulation",
            kinds={"vidur", "csv", "matplotlib"},
            # Most scenarios sweep nothing: then there is nothing to materialize, and that is no failure.
            skippable=True,
            metadata=table_definition_metadata(_TABLE),
            description=(
                "Throughput and latencies of the scenario's requests under every combination of the rates and engine"
                " settings that its section `sweep` lists, simulated; Pareto-optimal ones are marked. Not materialized"
                " for a scenario without that section."
            ),
        )
    ],
    check_specs=contract_check_specs(["sweep"]),
    can_subset=True,  # else Dagster demands a result of the check also where nothing is materialized
)
def sweep(
    context: dg.AssetExecutionContext,
    config: SweepConfig,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    chosen, store = load_tagged(context, scenario, context.partition_key), artifacts.store()
    if chosen.sweep is None:
        context.log.info(f"scenario {chosen.name} has no section sweep: nothing to simulate, nothing materialized")
        return
    from gst_assets.analysis.sweep_report import FIGURE, SUMMARY, caption, summary_table, sweep_table, write_sweep
    from gst_assets.step_costs.bundle import check_bundle
    from gst_assets.vidur_adapter.sweep import KeptRows, point, simulate_all, sweep_jobs

    started = datetime.now(timezone.utc)
    workload = current_workload(store, chosen, context)
    bundle = current_bundle(store, chosen, profiling_root.fixed(chosen), context)
    jobs = sweep_jobs(chosen, workload.lengths, workload.intervals, bundle, store.root / TABLE_CACHE)
    for job in jobs:
        check_bundle(bundle, job.scenario, workload.lengths)
    workers = config.workers or len(os.sched_getaffinity(0))
    context.log.info(f"{len(jobs)} simulations of {len(workload.lengths)} requests, {workers} at once")
    decided = {
        "scenario": chosen.model_dump(mode="json"),
        "workload": workload.meta.sha256,
        "profile": bundle.sha256 | {Kind.PROFILE.meta_name: sha256_file(bundle.directory / Kind.PROFILE.meta_name)},
        "code": code_version("sweeps"),
        "packages": environment()["packages"],
    }
    kept = KeptRows(store.root / _KEPT, sha256_bytes(json.dumps(decided, sort_keys=True).encode())[:16])
    if kept.rows:
        context.log.info(f"{len(kept.rows)} of them were simulated by a run that did not end")
    with Progress("simulating", len(jobs), "configurations", before=len(kept.rows), tell=context.log.info) as progress:
        frame = sweep_table(simulate_all(jobs, point, workers=workers, on_done=progress.at, kept=kept))
    run_id = f"{chosen.name}-{timestamp_slug(started)}-{secrets.token_hex(2)}"
    with store.stage(Kind.SWEEP, run_id) as staging:
        write_sweep(frame, f"Sweep of {chosen.name}", staging.path)
        meta = SweepMeta(
            run_id=run_id,
            **run_facts(chosen, started),
            hardware=bundle.meta.hardware,
            workload_id=workload.meta.workload_id,
            variant=chosen.sweep.variant,
            num_configurations=len(frame),
            inputs_sha256={
                **workload.meta.sha256,
                **{f"profile/{name}": digest for name, digest in bundle.sha256.items()},
            },
            sha256=staging.digests(),
        )
        write_document(meta, staging.path / Kind.SWEEP.meta_name)
        final = staging.commit()
    kept.remove()
    yield contract_passed("sweep", rows=len(frame))
    yield dg.MaterializeResult(
        asset_key="sweep",
        data_version=dg.DataVersion(meta.sha256[_TABLE]),
        metadata={
            "open_report": report_link(Kind.SWEEP, run_id, SUMMARY),
            **scenario_facts(chosen),
            "dagster/row_count": len(frame),
            "summary": dg.MetadataValue.path(str(final / SUMMARY)),
            "pareto": figure(final / FIGURE),
            "caption": dg.MetadataValue.md(caption(frame)),
            "points": dg.MetadataValue.md(summary_table(frame)),
        },
    )
