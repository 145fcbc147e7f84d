"""The simulation's assets: the same two tables as the real run, one run directory per variant, and one more for every
further seed of a variant that depends on it."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import dagster as dg
import numpy as np

from gst_assets.analysis.run_reading import OwnSimulatedRun, load_own_run
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
from gst_assets.contracts.tables import Iterations, RequestMetrics, TokenMetrics, write_table
from gst_assets.foreign_text import inert
from gst_assets.formats import markdown_table, milliseconds
from gst_assets.partitions import SCENARIOS
from gst_assets.progress import Progress
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario
from gst_assets.step_costs.bundle import Bundle, check_bundle
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.workload.spec import LoadedWorkload
from gst_assets.workload.tokenized import prompts_of

TABLE_CACHE = ".cache/vidur_tables"
NAMES = ("vidur_request_metrics", "vidur_token_metrics")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "vidur_request_metrics",
            deps=[WORKLOAD_SPEC, PROFILE],
            partitions_def=SCENARIOS,
            group_name="simulation",
            kinds={"vidur", "csv"},
            metadata=table_definition_metadata(RequestMetrics),
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
            metadata=table_definition_metadata(TokenMetrics),
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
        yield all_tokens_result(runs)
    headline = runs[chosen.simulation.variants[-1]]
    for name, model, table in (
        ("vidur_request_metrics", RequestMetrics, "requests"),
        ("vidur_token_metrics", TokenMetrics, "tokens"),
    ):
        if name not in asked:
            continue
        rows = sum(len(getattr(run, table)) for run in runs.values())
        yield contract_passed(name, rows=rows, variants=", ".join(runs))
        yield dg.MaterializeResult(
            asset_key=name,
            data_version=dg.DataVersion(
                sha256_bytes("".join(run.meta.sha256[model.file_name()] for run in runs.values()).encode())
            ),
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
                "preview": preview(getattr(headline, table)),
            },
        )


def _simulate_and_commit(
    scenario: Scenario,
    workload: LoadedWorkload,
    bundle: Bundle,
    variant: str,
    run_id: str,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> OwnSimulatedRun:
    started = datetime.now(timezone.utc)
    result = _simulated(scenario, workload, bundle, variant, store, log)
    return _commit(scenario, workload, bundle, variant, run_id, store, started, result)


def _simulated(
    scenario: Scenario,
    workload: LoadedWorkload,
    bundle: Bundle,
    variant: str,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> SimulationResult:
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
    workload: LoadedWorkload,
    bundle: Bundle,
    first: OwnSimulatedRun,
    store: ArtifactStore,
    log: Callable[[str], None],
) -> list[OwnSimulatedRun]:
    """The variant under `simulation.seed` + 1 and so on, `simulation.seeds` in all; none where the second seed gives
    the same tables as the first."""
    variant = first.meta.variant
    runs: list[OwnSimulatedRun] = []
    for seed in range(scenario.simulation.seed + 1, scenario.simulation.seed + scenario.simulation.seeds):
        started = datetime.now(timezone.utc)
        seeded = scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update={"seed": seed})})
        result = _simulated(seeded, workload, bundle, variant, store, log)
        if not runs and _same_times(first, result):
            return []
        run_id = f"{first.meta.run_id}-seed{seed}"
        runs.append(_commit(seeded, workload, bundle, variant, run_id, store, started, result))
    return runs


def _same_times(run: OwnSimulatedRun, result: SimulationResult) -> bool:
    """Whether every token comes at the same time: then nothing else differs either."""
    times = result.tokens["token_time_ns"].to_numpy(dtype="int64")
    return bool(np.array_equal(run.tokens["token_time_ns"].to_numpy(dtype="int64"), times))


def _commit(
    scenario: Scenario,
    workload: LoadedWorkload,
    bundle: Bundle,
    variant: str,
    run_id: str,
    store: ArtifactStore,
    started: datetime,
    result: SimulationResult,
) -> OwnSimulatedRun:
    with store.stage(Kind.VIDUR_RUN, run_id) as staging:
        write_table(RequestMetrics, result.requests, staging.path)
        write_table(TokenMetrics, result.tokens, staging.path)
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
        return load_own_run(staging.commit(), "vidur")


def _summary(run_id: str, variant: str, workload: LoadedWorkload, bundle: Bundle, result: SimulationResult) -> str:
    tokens = result.tokens[result.tokens["token_index"] > 0]["token_latency_ns"].astype("float64")
    ttft = result.requests["ttft_ns"].dropna().astype("float64")
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
                    *(milliseconds(float(values.quantile(q)), ".3f", missing="-") for q in (0.5, 0.9, 0.99)),
                    str(len(values)),
                ]
                for name, values in (("TTFT", ttft), ("ITL", tokens))
            ],
            tight=True,
        ),
    ]
    lines += ["", f"Preemptions: {result.num_preemptions}. Steps: {len(result.iterations)}.", ""]
    return "\n".join(inert(line) for line in lines)


@dataclass(frozen=True)
class Simulations:
    """`first` by variant; `further`: the runs of each variant under further seeds, none of an exact variant."""

    first: dict[str, OwnSimulatedRun]
    further: dict[str, list[OwnSimulatedRun]]


def current_vidur_runs(
    store: ArtifactStore, scenario: Scenario, context: dg.AssetExecutionContext | None = None
) -> Simulations:
    """The simulations that this run made, or else the newest that were made as the scenario asks; loaded and validated.

    Raises:
        ArtifactError: none made, or one incomplete or altered. WorkloadError: made with other settings.
    """
    found = current(store, scenario, VIDUR_RUNS, context, *NAMES)

    def loaded(run_id: str) -> OwnSimulatedRun:
        return load_own_run(found.open(store, Kind.VIDUR_RUN, run_id), "vidur")

    return Simulations(
        {variant: loaded(run_id) for variant, run_id in found.pointer.run_ids.items()},
        {variant: [loaded(one) for one in run_ids] for variant, run_ids in found.pointer.seed_run_ids.items()},
    )
