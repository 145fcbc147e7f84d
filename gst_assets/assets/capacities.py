"""The search for capacity: on the simulation, and where the scenario asks for it on this machine's engine."""

import secrets
from collections.abc import Iterator
from datetime import datetime, timezone

import dagster as dg

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
from gst_assets.assets.references import as_metadata, made_in_run
from gst_assets.assets.vidur_runs import TABLE_CACHE
from gst_assets.assets.workloads import WORKLOAD_SPEC, current_workload
from gst_assets.contracts.documents import (
    CapacityFound,
    CapacityMeta,
    Hardware,
    read_document,
    run_facts,
    timestamp_slug,
    write_document,
)
from gst_assets.contracts.pointers import CAPACITY, Reference, first_difference, pointers, refer, understood
from gst_assets.contracts.store import ArtifactStore, Kind, open_directory
from gst_assets.executors import ENGINE_QUEUE
from gst_assets.foreign_text import inert_line
from gst_assets.partitions import SCENARIOS
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "capacity",
            deps=[WORKLOAD_SPEC, PROFILE],
            partitions_def=SCENARIOS,
            group_name="simulation",
            kinds={"vidur", "vllm", "csv"},
            # Most scenarios search for none: then there is nothing to materialize, and that is no failure.
            skippable=True,
            metadata=table_definition_metadata("capacity_probes.csv"),
            description=(
                "The highest rate at which the P99 of scheduling delay stays under a bound, on the simulator and, where"
                " capacity.sides says so, on the real engine: every probe with its verdict. Not materialized for a"
                " scenario without the section `capacity`."
            ),
        )
    ],
    check_specs=contract_check_specs(["capacity"]),
    can_subset=True,  # else Dagster demands a result of the check also where nothing is materialized
    op_tags=ENGINE_QUEUE,
)
def capacity(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    engine: EngineResource,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    chosen = load_tagged(context, scenario, context.partition_key)
    settings = chosen.capacity
    if settings is None:
        context.log.info(f"scenario {chosen.name} has no capacity section: nothing is searched for")
        return
    import pandas as pd

    from gst_assets.capacity.capacity_report import FIGURE, SUMMARY, probes_markdown, write_report
    from gst_assets.capacity.search import criterion, probes_table, result_sentence
    from gst_assets.capacity.simulated_probe import search_simulated
    from gst_assets.contracts.tables import CapacityProbes, read_table, write_table
    from gst_assets.step_costs.bundle import check_bundle

    store, started = artifacts.store(), datetime.now(timezone.utc)
    # Also where only the engine is searched: a workload that was built with other settings is not what the search would
    # be about.
    workload = current_workload(store, chosen, context)
    run_id = f"{chosen.name}-{timestamp_slug(started)}-{secrets.token_hex(2)}"
    tables: list[pd.DataFrame] = []
    found: dict[str, CapacityFound] = {}
    hardware: Hardware | None = None
    with store.stage(Kind.CAPACITY, run_id) as staging:
        measured = None
        if "engine" in settings.sides:
            with store.stage(Kind.CAPACITY, run_id) as area:
                directory = engine.capacity(chosen, run_id, area.path, context.log.info)
                open_directory(directory, Kind.CAPACITY)
                measured = read_document(CapacityMeta, directory / Kind.CAPACITY.meta_name)
                tables.append(read_table(CapacityProbes, directory / CapacityProbes.file_name()))
                found |= measured.found
                hardware = measured.hardware
        bundle = None
        if "simulator" in settings.sides:
            bundle = current_bundle(store, chosen, profiling_root.fixed(chosen), context)
            check_bundle(bundle, chosen, workload.lengths)
            hardware = hardware or bundle.meta.hardware
            for variant in chosen.simulation.variants:
                search = search_simulated(
                    chosen,
                    settings,
                    workload.lengths,
                    bundle,
                    variant,
                    cache_dir=store.root / TABLE_CACHE,
                    log=context.log.info,
                )
                tables.append(probes_table(search.probes))
                found[variant] = search.result()
        probes = pd.concat(tables, ignore_index=True)
        write_table(CapacityProbes, probes, staging.path)
        write_report(probes, found, settings, run_id, staging.path)
        assert hardware is not None  # one side at least was searched
        meta = CapacityMeta(
            run_id=run_id,
            **run_facts(chosen, started),
            hardware=hardware,
            sha256=staging.digests(),
            criterion=criterion(settings),
            found=found,
            engine_settings=measured.engine_settings if measured else None,
            profile_sha256=bundle.sha256 if bundle else None,
        )
        write_document(meta, staging.path / Kind.CAPACITY.meta_name)
        final = staging.commit()
    pointed = refer(store, chosen, CAPACITY, [(Kind.CAPACITY, run_id)], capacity_id=run_id)
    yield contract_passed("capacity", probes=len(probes), sides=", ".join(found))
    yield dg.MaterializeResult(
        asset_key="capacity",
        data_version=dg.DataVersion(meta.sha256[CapacityProbes.file_name()]),
        metadata={
            "dagster/row_count": len(probes),
            "result": dg.MetadataValue.md(
                "\n".join(f"- {inert_line(result_sentence(side, one))}" for side, one in found.items())
            ),
            "open_report": report_link(Kind.CAPACITY, run_id, SUMMARY),
            **scenario_facts(chosen),
            "criterion": meta.criterion,
            "report": dg.MetadataValue.path(str(final / SUMMARY)),
            "probes": dg.MetadataValue.md(probes_markdown(probes)),
            "delay_by_rate": figure(final / FIGURE),
            **{
                f"{side}_capacity_per_s": round(one.capacity_per_s, 3)
                for side, one in found.items()
                if one.status == "found" and one.capacity_per_s is not None
            },
            **as_metadata(pointed),
        },
    )


def current_capacity(
    store: ArtifactStore, scenario: Scenario, context: dg.AssetExecutionContext | None = None
) -> CapacityMeta | None:
    """The newest search for capacity with the scenario's settings; None: it searches for none, or none was made with
    them.

    Raises:
        ArtifactError: it was altered.
    """
    if scenario.capacity is None:
        return None
    own = made_in_run(context, [CAPACITY.asset]) if context is not None else None
    if own is not None and context is not None:
        known = [understood(own, CAPACITY, f"Dagster's record of run {context.run_id}")]
    else:
        known = [
            pointer
            for _, pointer in pointers(store, scenario.name, CAPACITY)
            if first_difference(pointer.params or {}, scenario, CAPACITY.settings) is None
        ]
    for pointer in known:
        if store.has(Kind.CAPACITY, pointer.capacity_id):
            directory = Reference(pointer).open(store, Kind.CAPACITY, pointer.capacity_id)
            return read_document(CapacityMeta, directory / Kind.CAPACITY.meta_name)
    return None
