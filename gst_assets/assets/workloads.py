"""The workload's assets: prompts, trace_lengths, trace_intervals and workload_spec, the directory that holds them, made
by one op.

The op is deterministic: whichever of them are asked for, it builds the whole directory, whose id comes from its
content.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_failed,
    contract_passed,
    load_tagged,
    preview,
    table_definition_metadata,
)
from gst_assets.assets.references import as_metadata, current
from gst_assets.contracts.documents import WorkloadPaths, WorkloadSchedule
from gst_assets.contracts.pointers import WORKLOAD, refer
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ContractError, WorkloadError
from gst_assets.foreign_text import inert_line
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_file
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import Scenario, resolve_path

if TYPE_CHECKING:
    from gst_assets.workload.spec import LoadedWorkload

GROUP = "workload"
WORKLOAD_SPEC = "workload_spec"
_SOURCE = "source"
_PATHS = WorkloadPaths()
_FILES = {"prompts": _PATHS.prompts, "trace_lengths": _PATHS.trace_lengths, "trace_intervals": _PATHS.trace_intervals}
_SPECS = [
    dg.AssetSpec(
        "prompts",
        partitions_def=SCENARIOS,
        group_name=GROUP,
        kinds={"json"},
        metadata={
            "dagster/column_schema": dg.TableSchema(
                columns=[
                    dg.TableColumn("prompt_id", "string", "unique and stable"),
                    dg.TableColumn("text", "string", "the prompt; further keys of a line are preserved unchanged"),
                ]
            ),
            "file": _PATHS.prompts,
        },
        description=(
            "The prompts in stable order: the scenario's file with its digest, or texts of the lengths that a trace or"
            " a distribution gives."
        ),
    ),
    dg.AssetSpec(
        "trace_lengths",
        deps=["prompts"],
        partitions_def=SCENARIOS,
        group_name=GROUP,
        kinds={"csv", "huggingface"},
        metadata=table_definition_metadata(_PATHS.trace_lengths),
        description="Prompt length in tokens and tokens requested, per request.",
    ),
    dg.AssetSpec(
        "trace_intervals",
        deps=["prompts"],
        partitions_def=SCENARIOS,
        group_name=GROUP,
        kinds={"csv"},
        metadata=table_definition_metadata(_PATHS.trace_intervals),
        description="When each request arrives, in integer nanoseconds from workload start.",
    ),
    dg.AssetSpec(
        WORKLOAD_SPEC,
        deps=["prompts", "trace_lengths", "trace_intervals"],
        partitions_def=SCENARIOS,
        group_name=GROUP,
        kinds={"json", "csv"},
        description=(
            "The complete workload directory that drives both the real engine and the simulation. Its id comes from its"
            " content."
        ),
    ),
]


@dg.multi_asset(specs=_SPECS, check_specs=contract_check_specs([*_FILES, WORKLOAD_SPEC]), can_subset=True)
def workload(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot, tokenizer: TokenizerResource
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    chosen, store = load_tagged(context, scenario, context.partition_key), artifacts.store()
    asked_for = {key.to_user_string() for key in context.selected_asset_keys}
    try:
        built = _built(store, chosen, tokenizer)
    except ContractError as error:
        # Its message begins with the file, or with the scenario where the files do not fit together.
        name = Path(str(error).partition(":")[0]).name
        asset = next((asset for asset, file in _FILES.items() if file == name), WORKLOAD_SPEC)
        if asset in asked_for:
            yield contract_failed(asset, error)
        raise
    if WORKLOAD_SPEC in asked_for:
        # On the command line nothing else says which directory to copy to a GPU host.
        context.log.info(f"workload: {built.directory}")
        # The metadata of a shared directory is the first scenario's; what this scenario asked for is stored with its
        # pointer.
        made, source = built.meta.workload_id, built.meta.source
        pointed = refer(
            store,
            chosen,
            WORKLOAD,
            [(Kind.WORKLOAD, made)],
            workload_id=made,
            source=source.sha256 if source else None,
        )
    for asset, facts, metadata in (
        _told_prompts(built),
        _told_lengths(built),
        _told_intervals(built),
        _told_spec(built),
    ):
        if asset in asked_for:
            digest = built.meta.sha256[_FILES[asset]] if asset in _FILES else built.meta.workload_id
            metadata |= as_metadata(pointed) if asset == WORKLOAD_SPEC else {}
            yield contract_passed(asset, **facts)
            yield dg.MaterializeResult(asset_key=asset, data_version=dg.DataVersion(digest), metadata=metadata)


def _built(store: ArtifactStore, scenario: Scenario, tokenizer: TokenizerResource) -> "LoadedWorkload":
    """The scenario's workload, committed and read back."""
    from gst_assets.workload import build, load

    with store.stage(Kind.WORKLOAD, "unnamed") as staging:
        built = build(
            scenario,
            staging.path,
            tokenizer=tokenizer.load(scenario),
            workers=tokenizer.workers,
        )
        staging.artifact_id = built.meta.workload_id
        final = staging.commit(share=True)
    # A shared directory states how another scenario made the same content; this is about this one.
    return dataclasses.replace(load(final), meta=built.meta)


_Told = tuple[str, dict[str, int | str], dict[str, Any]]
"""An asset, what its contract check looked at, and its metadata."""


def _told_prompts(built: "LoadedWorkload") -> _Told:
    from gst_assets.workload.prompts import iterate_prompts

    source, path = built.meta.source, built.directory / _PATHS.prompts
    assert source is not None  # `build` always records it
    first = list(itertools.islice(iterate_prompts(path), 5))
    metadata = {
        "source": dg.MetadataValue.json(source.model_dump(mode="json", exclude_none=True)),
        "path": dg.MetadataValue.path(str(path)),
        "first": dg.MetadataValue.md(
            "\n".join(f"- `{inert_line(item.prompt_id)}` {inert_line(item.text[:100])}" for item in first)
        ),
    }
    return "prompts", {_SOURCE: source.path or source.kind}, metadata


def _told_lengths(built: "LoadedWorkload") -> _Told:
    metadata = {
        "dagster/row_count": len(built.lengths),
        "total_prefill_tokens": int(built.lengths["num_prefill_tokens"].sum()),
        "total_decode_tokens": int(built.lengths["num_decode_tokens"].sum()),
        "tokenizer": built.meta.tokenizer_ref,
        "tokenizer_sha256": built.meta.tokenizer_sha256,
        "path": dg.MetadataValue.path(str(built.directory / _PATHS.trace_lengths)),
        "preview": preview(built.lengths),
    }
    return "trace_lengths", {"rows": len(built.lengths)}, metadata


def _told_intervals(built: "LoadedWorkload") -> _Told:
    metadata = {
        "dagster/row_count": len(built.intervals),
        **_rates(built.meta.schedule),
        "path": dg.MetadataValue.path(str(built.directory / _PATHS.trace_intervals)),
        "preview": preview(built.intervals),
    }
    return "trace_intervals", {"rows": len(built.intervals)}, metadata


def _told_spec(built: "LoadedWorkload") -> _Told:
    metadata = {
        "workload_id": built.meta.workload_id,
        "num_requests": len(built.lengths),
        **_rates(built.meta.schedule),
        "path": dg.MetadataValue.path(str(built.directory)),
        "sha256": dg.MetadataValue.json({file: built.meta.sha256[file] for file in _FILES.values()}),
    }
    return WORKLOAD_SPEC, {"requests": len(built.lengths)}, metadata


def current_workload(
    store: ArtifactStore, scenario: Scenario, context: dg.AssetExecutionContext | None = None
) -> "LoadedWorkload":
    """The workload that this run built, or else the newest that was built with what the scenario asks for.

    Raises:
        ArtifactError: none materialized, or altered. WorkloadError: built with other settings, or from a file that
            changed since.
    """
    from gst_assets.workload import load

    found = current(store, scenario, WORKLOAD, context)
    loaded = load(found.open(store, Kind.WORKLOAD, found.pointer.workload_id))
    _check_source(found.pointer.source, scenario, loaded.directory)
    return loaded


def _check_source(sha256: str | None, scenario: Scenario, directory: Path) -> None:
    """The file that the scenario takes its prompts or requests from still is the one that was read.

    Raises:
        WorkloadError
    """
    workload = scenario.workload
    named = workload.trace.path if workload.trace is not None else workload.prompts
    if named is None:
        return
    source = resolve_path(named)
    if not source.is_file() or sha256_file(source) != sha256:
        raise WorkloadError(
            f"{source}: changed or removed since {directory} was made from it. Materialize prompts, trace_lengths,"
            " trace_intervals and workload_spec again."
        )


def _rates(schedule: WorkloadSchedule | None) -> dict[str, float]:
    from gst_assets.workload.arrivals import NS_PER_S

    assert schedule is not None  # `build` always records it
    found = {
        "schedule_span_s": schedule.span_ns / NS_PER_S,
        "asked_rate_per_s": schedule.asked_rate_per_s,
        "offered_rate_per_s": schedule.offered_rate_per_s,
        "time_scale": schedule.time_scale,
    }
    return {name: round(value, 3) for name, value in found.items() if value is not None}
