"""The simulation's assets: the same two tables as the real run, one run directory per variant, and one more for every
further seed of a variant that depends on it."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from gst_assets.assets.checks import ALL_TOKENS, all_tokens_result, specs
from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_passed,
    load_tagged,
    preview,
    table_definition_metadata,
)
from gst_assets.assets.profiles import NAME as PROFILE
from gst_assets.assets.profiles import current_bundle
from gst_assets.assets.references import as_metadata, current
from gst_assets.assets.workloads import WORKLOAD_SPEC, current_workload
from gst_assets.contracts.documents import VidurRunMeta, run_facts, timestamp_slug, write_document
from gst_assets.contracts.pointers import VIDUR_RUNS, refer
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.foreign_text import inert
from gst_assets.formats import markdown_table, milliseconds
from gst_assets.partitions import SCENARIOS
from gst_assets.progress import Progress
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    from gst_assets.analysis.run_reading import OwnSimulatedRun
    from gst_assets.step_costs.bundle import Bundle
    from gst_assets.vidur_adapter.simulate import SimulationResult
    from gst_assets.workload.spec import LoadedWorkload

TABLE_CACHE = ".cache/vidur_tables"
_PREVIEWED = 100
"""Token rows of which the first are shown."""
NAMES = ("vidur_request_metrics", "vidur_token_metrics")
_REQUESTS, _TOKENS = "request_metrics.csv", "token_metrics.csv"


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "vidur_request_metrics",
            deps=[WORKLOAD_SPEC, PROFILE],
            partitions_def=SCENARIOS,
            group_name="simulation",
            kinds={"vidur", "csv"},
            metadata=table_definition_metadata(_REQUESTS),
            description=(
                "What Vidur predicts for each request, in every variant (published: Vidur as it ships; kernels: the"
                " same sums with corrections; calibrated: with measured overheads)."
            ),
        ),
        dg.AssetSpec(
            "vidur_token_metrics",
            deps=[WORKLOAD_SPEC, PROFILE],
            partitions_def=SCENARIOS,
            group_name="simulation",
            kinds={"vidur", "csv"},
            metadata=table_definition_metadata(_TOKENS),
            description="When each token appears in the simulation: the ends of simulated steps, never interpolated.",
        ),
    ],
    check_specs=[
        *contract_check_specs(NAMES),
        *specs("vidur_request_metrics", ALL_TOKENS),
    ],
    can_subset=True,  # both tables are written whichever is asked for: they are one run
)
def vidur_metrics(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from gst_assets.step_costs.bundle import check_bundle

    chosen, store = load_tagged(context, scenario, context.partition_key), artifacts.store()
    asked = {key.to_user_string() for key in context.selected_asset_keys}
    workload = current_workload(store, chosen, context)
    bundle = current_bundle(store, chosen, profiling_root.fixed(chosen), context)
    check_bundle(bundle, chosen, workload.lengths)
    group_id = f"{chosen.name}-{timestamp_slug(datetime.now(timezone.utc))}-{secrets.token_hex(2)}"
    runs = {
        variant: _simulate_and_commit(
            chosen, workload, bundle, variant, f"{group_id}-{variant}", store, context.log.info
        )
        for variant in chosen.simulation.variants
    }
    further = {
        variant: _further_seeds(chosen, workload, bundle, run, store, context.log.info) for variant, run in runs.items()
    }
    made = [run.meta.run_id for variant, run in runs.items() for run in (run, *further[variant])]
    pointed = refer(
        store,
        chosen,
        VIDUR_RUNS,
        [(Kind.VIDUR_RUN, name) for name in made],
        run_ids={variant: run.meta.run_id for variant, run in runs.items()},
        seed_run_ids={variant: [run.meta.run_id for run in others] for variant, others in further.items()},
    )
    if "vidur_request_metrics" in asked:
        yield all_tokens_result({run.meta.run_id: run.result.requests for run in runs.values()})
    headline = runs[chosen.simulation.variants[-1]]
    for name, file, counts, first_rows in (
        (NAMES[0], _REQUESTS, [len(run.result.requests) for run in runs.values()], headline.result.requests),
        (
            NAMES[1],
            _TOKENS,
            [run.result.num_tokens for run in runs.values()],
            next(headline.result.token_parts(_PREVIEWED)),
        ),
    ):
        if name not in asked:
            continue
        rows = sum(counts)
        yield contract_passed(name, rows=rows, variants=", ".join(runs))
        yield dg.MaterializeResult(
            asset_key=name,
            data_version=dg.DataVersion(sha256_bytes("".join(run.meta.sha256[file] for run in runs.values()).encode())),
            metadata={
                **as_metadata(pointed),
                "dagster/row_count": rows,
                "variants": ", ".join(runs),
                "seeds": ", ".join(f"{variant} {1 + len(others)}" for variant, others in further.items()),
                "num_preemptions": headline.meta.num_preemptions,
                "paths": dg.MetadataValue.md(
                    "\n".join(f"- {variant}: `{run.directory}`" for variant, run in runs.items())
                ),
                "simulated_settings": dg.MetadataValue.json(headline.meta.simulated_settings),
                "preview": preview(first_rows),
            },
        )


@dataclass(frozen=True)
class _Made:
    """A simulation in the store: where it is, and what it yielded."""

    directory: Path
    meta: VidurRunMeta
    result: "SimulationResult"


def _simulate_and_commit(
    scenario: Scenario,
    workload: "LoadedWorkload",
    bundle: "Bundle",
    variant: str,
    run_id: str,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> _Made:
    started = datetime.now(timezone.utc)
    result = _simulated(scenario, workload, bundle, variant, store, log)
    return _commit(scenario, workload, bundle, variant, run_id, store, started, result)


def _simulated(
    scenario: Scenario,
    workload: "LoadedWorkload",
    bundle: "Bundle",
    variant: str,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> "SimulationResult":
    from gst_assets.vidur_adapter.simulate import simulate
    from gst_assets.workload.tokenized import prompts_of

    with Progress(f"simulating {variant}, seed {scenario.simulation.seed}", 1, tell=log) as progress:
        return simulate(
            scenario,
            workload.lengths,
            workload.intervals,
            bundle,
            variant,
            cache_dir=store.root / TABLE_CACHE,
            prompts=prompts_of(workload, scenario),
            on_share=progress.at,
        )


def _further_seeds(
    scenario: Scenario,
    workload: "LoadedWorkload",
    bundle: "Bundle",
    first: _Made,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> list[_Made]:
    """The variant under `simulation.seed` + 1 and so on, `simulation.seeds` in all; none where the second seed gives
    the same tables as the first."""
    variant = first.meta.variant
    runs: list[_Made] = []
    for seed in range(scenario.simulation.seed + 1, scenario.simulation.seed + scenario.simulation.seeds):
        started = datetime.now(timezone.utc)
        seeded = scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update={"seed": seed})})
        result = _simulated(seeded, workload, bundle, variant, store, log)
        if not runs and result.has_times_of(first.result):
            return []
        run_id = f"{first.meta.run_id}-seed{seed}"
        runs.append(_commit(seeded, workload, bundle, variant, run_id, store, started, result))
    return runs


def _commit(
    scenario: Scenario,
    workload: "LoadedWorkload",
    bundle: "Bundle",
    variant: str,
    run_id: str,
    store: ArtifactStore,
    started: datetime,
    result: "SimulationResult",
) -> _Made:
    from gst_assets.contracts.tables import Iterations, RequestMetrics, TokenMetrics, write_table, write_table_parts

    with store.stage(Kind.VIDUR_RUN, run_id) as staging:
        write_table(RequestMetrics, result.requests, staging.path)
        write_table_parts(TokenMetrics, result.token_parts(), staging.path)
        write_table(Iterations, result.iterations, staging.path)
        (staging.path / "summary.md").write_text(_summary(run_id, variant, workload, bundle, result), encoding="utf-8")
        meta = VidurRunMeta(
            run_id=run_id,
            **run_facts(scenario, started),
            hardware=bundle.meta.hardware,
            inputs_sha256={
                **workload.meta.sha256,
                **{f"profile/{name}": digest for name, digest in bundle.sha256.items()},
            },
            sha256=staging.digests(),
            workload_dir=str(workload.directory),
            workload_id=workload.meta.workload_id,
            workload_sha256=workload.meta.sha256,
            profiling_root=str(bundle.directory),
            profile_sha256=bundle.sha256,
            variant=variant,
            predictor=result.settings["predictor"],
            simulated_settings=result.settings,
            num_preemptions=result.num_preemptions,
        )
        write_document(meta, staging.path / Kind.VIDUR_RUN.meta_name)
        return _Made(staging.commit(), meta, result)


def _summary(
    run_id: str, variant: str, workload: "LoadedWorkload", bundle: "Bundle", result: "SimulationResult"
) -> str:
    import numpy as np

    from gst_assets.analysis.measures import percentiles_of_counts_ns

    ttft = result.requests["ttft_ns"].to_numpy(dtype="int64")
    samples = {"TTFT": (ttft, np.ones_like(ttft)), "ITL": result.token_gaps_ns()}
    lines = [
        f"# Simulation {run_id}",
        "",
        (
            f"Vidur, variant `{variant}`, of workload `{workload.meta.workload_id}` ({workload.meta.num_requests}"
            f" requests) on the profile of {bundle.meta.hardware.device_name}."
        ),
        "",
        markdown_table(
            ["metric", "P50 ms", "P90 ms", "P99 ms", "samples"],
            [
                [
                    name,
                    *(milliseconds(value, ".3f", missing="-") for value in percentiles_of_counts_ns(*of, (50, 90, 99))),
                    str(of[1].sum()),
                ]
                for name, of in samples.items()
            ],
            tight=True,
        ),
    ]
    lines += ["", f"Preemptions: {result.num_preemptions}. Steps: {len(result.delivered_ns)}.", ""]
    return "\n".join(inert(line) for line in lines)


@dataclass(frozen=True)
class Simulations:
    """`first` by variant; `further`: the runs of each variant under further seeds, none of an exact variant."""

    first: dict[str, "OwnSimulatedRun"]
    further: dict[str, list["OwnSimulatedRun"]]


def current_vidur_runs(
    store: ArtifactStore,
    scenario: Scenario,
    context: dg.AssetExecutionContext | None = None,
    *,
    with_further: bool = True,
) -> Simulations:
    """The simulations that this run made, or else the newest that were made as the scenario asks; loaded and validated.
    `with_further`: those under further seeds too.

    Raises:
        ArtifactError: none made, or one incomplete or altered. WorkloadError: made with other settings.
    """
    from gst_assets.analysis.run_reading import load_own_run

    found = current(store, scenario, VIDUR_RUNS, context, *NAMES)

    def loaded(run_id: str) -> "OwnSimulatedRun":
        return load_own_run(found.open(store, Kind.VIDUR_RUN, run_id), "vidur")

    return Simulations(
        {variant: loaded(run_id) for variant, run_id in found.pointer.run_ids.items()},
        {variant: [loaded(one) for one in run_ids] for variant, run_ids in found.pointer.seed_run_ids.items()}
        if with_further
        else {},
    )
