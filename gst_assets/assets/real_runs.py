"""The real engine's assets: request and token tables of every repeat, measured in one engine start or played back from
recorded runs. The op is in `measurements`."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from gst_assets.assets.checks import completeness_result, lateness_result
from gst_assets.assets.presentation import contract_passed, preview, table_definition_metadata
from gst_assets.assets.references import as_metadata, current
from gst_assets.assets.workloads import WORKLOAD_SPEC
from gst_assets.contracts.documents import timestamp_slug
from gst_assets.contracts.pointers import REAL_RUNS, refer
from gst_assets.contracts.store import ArtifactStore, Kind, Staging
from gst_assets.engine import recorded
from gst_assets.errors import ArtifactError, ContractError, EngineError, ProfileError
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import EngineResource, in_order
from gst_assets.scenario import Scenario, resolve_path

if TYPE_CHECKING:
    from gst_assets.analysis.run_reading import OwnRealRun
    from gst_assets.workload.spec import LoadedWorkload

NAMES = ("real_request_metrics", "real_token_metrics")
_REQUESTS, _TOKENS = "request_metrics.csv", "token_metrics.csv"
SPECS = [
    dg.AssetSpec(
        "real_request_metrics",
        deps=[WORKLOAD_SPEC],
        partitions_def=SCENARIOS,
        group_name="real_engine",
        kinds={"vllm", "csv"},
        metadata=table_definition_metadata(_REQUESTS),
        description=(
            "What the real engine did with each request: intended arrival, send, first token, completion. One run"
            " directory per repeat."
        ),
    ),
    dg.AssetSpec(
        "real_token_metrics",
        deps=[WORKLOAD_SPEC],
        partitions_def=SCENARIOS,
        group_name="real_engine",
        kinds={"vllm", "csv"},
        metadata=table_definition_metadata(_TOKENS),
        description="When each token of the real run was seen by the client.",
    ),
]


def results(
    store: ArtifactStore, scenario: Scenario, runs: "list[OwnRealRun]", names: Sequence[str]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Make `runs` the scenario's current ones, and report those of `NAMES` that were asked for."""
    ids = [run.meta.run_id for run in runs]
    pointed = refer(store, scenario, REAL_RUNS, [(Kind.REAL_RUN, name) for name in ids], run_ids=ids)
    first = runs[0]
    shared: dict[str, dg.MetadataValue | str | int | bool] = {
        **as_metadata(pointed),
        "group_id": first.meta.group_id,
        "num_repeats": len(runs),
        "recorded": scenario.engine.backend == recorded.BACKEND,
        "measured_at": first.meta.started_at.isoformat(),
        "measured_on": f"{first.meta.hardware.device_name}, {first.meta.env.get('platform', 'platform not recorded')}",
        "paths": dg.MetadataValue.md("\n".join(f"- `{run.directory}`" for run in runs)),
    }
    rows = {
        name: sum(len(getattr(run, table)) for run in runs)
        for name, table in zip(NAMES, ("requests", "tokens"), strict=True)
    }
    yield from (contract_passed(name, rows=rows[name], repeats=len(runs)) for name in names)
    if "real_request_metrics" in names:
        yield from (completeness_result(runs), lateness_result(runs))
        yield dg.MaterializeResult(
            asset_key="real_request_metrics",
            data_version=_data_version(runs, _REQUESTS),
            metadata={
                **shared,
                "dagster/row_count": rows["real_request_metrics"],
                "num_errors": sum(run.meta.num_errors for run in runs),
                "degraded_repeats": sum(run.meta.degraded for run in runs),
                "lateness_p99_ms": round(max(run.meta.lateness_ns["p99"] for run in runs) / 1e6, 3),
                "ttft_p50_ms": _median_ms(runs, "requests", "ttft_ns"),
                "engine_settings": dg.MetadataValue.json(first.meta.engine_settings.model_dump(mode="json")),
                "device": first.meta.hardware.device_name,
                "preview": preview(first.requests),
            },
        )
    if "real_token_metrics" in names:
        yield dg.MaterializeResult(
            asset_key="real_token_metrics",
            data_version=_data_version(runs, _TOKENS),
            metadata={
                **shared,
                "dagster/row_count": rows["real_token_metrics"],
                "itl_p50_ms": _median_ms(runs, "tokens", "token_latency_ns"),
                "preview": preview(first.tokens),
            },
        )


def measure(
    store: ArtifactStore,
    scenario: Scenario,
    workload: "LoadedWorkload",
    engine: EngineResource,
    log: Callable[[str], None],
) -> "list[OwnRealRun]":
    """Measure every repeat on this machine's engine and commit the runs: all of them, or those that were complete
    when it failed.

    Raises:
        EngineError: the engine failed. The repeats that are complete by then are committed all the same, but are not
            the scenario's current ones; the message says where they are. So it is when the run is cancelled.
    """
    group_id = f"{scenario.name}-{timestamp_slug(datetime.now(timezone.utc))}-{secrets.token_hex(2)}"
    with store.stage(Kind.REAL_RUN, group_id) as staging, keeping(store, staging.path):
        return adopted(store, engine.measure(scenario, workload.directory, group_id, staging.path, log))


@contextmanager
def keeping(store: ArtifactStore, runs: Path) -> Iterator[None]:
    """When the block fails or is cancelled (Ctrl-C, SIGTERM, the UI), what is complete and valid of the repeats under
    `runs` is kept in the store.

    Raises:
        EngineError, ProfileError: that of the block; its message says where the repeats are and how they are compared.
        BaseException: that of the block, with a note that says the same.
    """
    try:
        yield
    except BaseException as error:
        kept = [store.adopt(Kind.REAL_RUN, run.name, run) for run in in_order(runs) if _is_valid(run)]
        if not kept:
            raise
        places = ", ".join(str(place) for place in kept)
        group = kept[0].with_name(kept[0].name.rpartition("-r")[0])
        told = (
            f"Kept: {places}. They are not the scenario's current runs. To compare them with a simulation of this"
            f" workload (gst runs --kind simulated): gst compare '{group}-r*' SIMULATED."
        )
        if isinstance(error, EngineError | ProfileError):
            raise type(error)(f"{error} {told}") from error
        error.add_note(told)
        raise


def _is_valid(run: Path) -> bool:
    from gst_assets.analysis.run_reading import load_own_run

    try:
        load_own_run(run, "real")
    except (ArtifactError, ContractError):
        return False
    return True


def adopted(store: ArtifactStore, measured: Sequence[Path]) -> "list[OwnRealRun]":
    """The measured runs, moved into the store once all of them are valid."""
    from gst_assets.analysis.run_reading import load_own_run

    runs = [load_own_run(directory, "real") for directory in measured]
    return [replace(run, directory=store.adopt(Kind.REAL_RUN, run.directory.name, run.directory)) for run in runs]


def play_back(
    store: ArtifactStore, scenario: Scenario, workload: "LoadedWorkload", log: Callable[[str], None]
) -> "list[OwnRealRun]":
    """Expand the scenario's recorded runs into the store; a run that is already there with the same content is
    reused."""
    from gst_assets.analysis.run_reading import load_own_run

    assert scenario.engine.recorded is not None  # the scenario's validation
    root = resolve_path(scenario.engine.recorded)
    kept = recorded.list_recorded(root)
    chosen = recorded.chosen_runs(kept, scenario, workload.meta)
    log(f"playing back {len(chosen)} of {len(kept)} recorded runs of {root}; nothing is measured")
    with store.stage(Kind.REAL_RUN, f"{scenario.name}-recorded") as staging:
        runs = [load_own_run(recorded.expand(run.directory, staging.path), "real") for run in chosen]
        return [replace(run, directory=_commit_same(store, run.directory)) for run in runs]


def _commit_same(store: ArtifactStore, directory: Path) -> Path:
    """Commit an expanded run under its own id, or find it there with the same content.

    Raises:
        ArtifactError: the id is taken by other content.
    """
    meta = (directory / Kind.REAL_RUN.meta_name).read_bytes()
    final = Staging(store, Kind.REAL_RUN, directory.name, directory).commit(share=True)
    # The digests that were compared are those of the files the metadata lists, not of the metadata itself.
    if (final / Kind.REAL_RUN.meta_name).read_bytes() != meta:
        raise ArtifactError(
            f"{final / Kind.REAL_RUN.meta_name}: differs from that of the recorded run of this id. Remove {final} and"
            " materialize again."
        )
    return final


def current_real_runs(
    store: ArtifactStore, scenario: Scenario, context: dg.AssetExecutionContext | None = None
) -> "list[OwnRealRun]":
    """The repeats that this run measured, or else the newest that were measured as the scenario asks; loaded and
    validated.

    Raises:
        ArtifactError: none measured, or one incomplete or altered. WorkloadError: measured with other settings.
    """
    from gst_assets.analysis.run_reading import load_own_run

    found = current(store, scenario, REAL_RUNS, context, *NAMES)
    return [load_own_run(found.open(store, Kind.REAL_RUN, run_id), "real") for run_id in found.pointer.run_ids]


def _data_version(runs: "list[OwnRealRun]", file_name: str) -> dg.DataVersion:
    return dg.DataVersion(sha256_bytes("".join(run.meta.sha256[file_name] for run in runs).encode()))


def _median_ms(runs: "list[OwnRealRun]", table: str, column: str) -> float | str:
    """Median over all repeats in milliseconds; token latencies without index 0."""
    import pandas as pd

    frames = [getattr(run, table) for run in runs]
    if column == "token_latency_ns":
        frames = [frame[frame["token_index"] > 0] for frame in frames]
    values = pd.concat([frame[column] for frame in frames]).dropna().astype("float64")
    return round(float(values.median()) / 1e6, 3) if len(values) else "no samples"
