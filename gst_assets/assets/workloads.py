"""The workload's assets: prompts, trace_lengths, trace_intervals, and workload_spec, which joins the three into one directory."""

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from gst_assets.assets.presentation import contract_check_specs, contract_passed, preview, table_definition_metadata
from gst_assets.checks import reports_contract
from gst_assets.contracts.documents import Hydra, PartMeta, read_document, write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import TraceIntervals, TraceLengths, check_workload_tables, read_table, write_table
from gst_assets.errors import ArtifactError, WorkloadError
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes, sha256_file
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import Scenario, resolve_path
from gst_assets.workload.arrivals import NS_PER_S, build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import prompts_of_requests, read_prompts, write_prompts
from gst_assets.workload.spec import (
    PATHS,
    LoadedWorkload,
    check_same_request,
    load_workload,
    workload_id,
    workload_meta,
)

GROUP = "workload"
_SOURCE = "source"
_FILES = {"prompts": PATHS.prompts, "trace_lengths": PATHS.trace_lengths, "trace_intervals": PATHS.trace_intervals}


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"json"},
    check_specs=contract_check_specs(["prompts"]),
    description="The scenario's prompts, in stable order, copied into the artifact root with their digest.",
)
@reports_contract("prompts")
def prompts(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    source = resolve_path(chosen.workload.prompts)
    items = read_prompts(source)
    part = _PartWriter(store, "prompts", chosen, scenario.overrides)
    part.inputs = {_SOURCE: sha256_file(source)}
    path, digest = part.write(lambda directory: write_prompts(items, directory / PATHS.prompts))
    return dg.MaterializeResult(
        check_results=[contract_passed("prompts", prompts=len(items))],
        data_version=dg.DataVersion(digest),
        metadata={
            "num_prompts": len(items),
            "source": chosen.workload.prompts,
            "path": dg.MetadataValue.path(str(path)),
            "first": dg.MetadataValue.md("\n".join(f"- `{item.prompt_id}` {item.text[:100]}" for item in items[:5])),
        },
    )


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"csv", "huggingface"},
    deps=[prompts],
    metadata=table_definition_metadata(TraceLengths),
    check_specs=contract_check_specs(["trace_lengths"]),
    description="Prompt length in tokens and tokens requested, per request.",
)
@reports_contract("trace_lengths")
def trace_lengths(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot, tokenizer: TokenizerResource
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    source, prompts_digest = _current_part(store, chosen, "prompts")
    loaded = tokenizer.load(chosen)
    frame = build_trace_lengths(chosen, read_prompts(source), loaded)
    part = _PartWriter(store, "trace_lengths", chosen, scenario.overrides)
    part.inputs = {PATHS.prompts: prompts_digest, "tokenizer": loaded.sha256}
    path, digest = part.write(lambda directory: write_table(TraceLengths, frame, directory))
    return dg.MaterializeResult(
        check_results=[contract_passed("trace_lengths", rows=len(frame))],
        data_version=dg.DataVersion(digest),
        metadata={
            "dagster/row_count": len(frame),
            "total_prefill_tokens": int(frame["num_prefill_tokens"].sum()),
            "total_decode_tokens": int(frame["num_decode_tokens"].sum()),
            "tokenizer": chosen.model.tokenizer,
            "tokenizer_sha256": loaded.sha256,
            "path": dg.MetadataValue.path(str(path)),
            "preview": preview(frame),
        },
    )


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"csv"},
    deps=[prompts],
    metadata=table_definition_metadata(TraceIntervals),
    check_specs=contract_check_specs(["trace_intervals"]),
    description="When each request arrives, in integer nanoseconds from workload start.",
)
@reports_contract("trace_intervals")
def trace_intervals(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    source, prompts_digest = _current_part(store, chosen, "prompts")
    count = len(prompts_of_requests(read_prompts(source), chosen.workload.num_requests))
    frame = build_trace_intervals(chosen.workload.arrivals, count, chosen.workload.seed)
    part = _PartWriter(store, "trace_intervals", chosen, scenario.overrides)
    part.inputs = {PATHS.prompts: prompts_digest}
    path, digest = part.write(lambda directory: write_table(TraceIntervals, frame, directory))
    return dg.MaterializeResult(
        check_results=[contract_passed("trace_intervals", rows=len(frame))],
        data_version=dg.DataVersion(digest),
        metadata={
            "dagster/row_count": len(frame),
            **_rates(frame),
            "path": dg.MetadataValue.path(str(path)),
            "preview": preview(frame),
        },
    )


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"json", "csv"},
    deps=[prompts, trace_lengths, trace_intervals],
    check_specs=contract_check_specs(["workload_spec"]),
    description="The complete workload directory that drives both the real engine and the simulation. Its id comes from its content.",
)
@reports_contract("workload_spec")
def workload_spec(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    sources = {part: _current_part(store, chosen, part) for part in _FILES}
    prompts_digest = sources["prompts"][1]
    for part in ("trace_lengths", "trace_intervals"):
        made_from = _part_meta(sources[part][0]).inputs_sha256[PATHS.prompts]
        if made_from != prompts_digest:
            raise WorkloadError(
                f"{sources[part][0]}: made from other prompts than the current ones. Materialize {part} again."
            )
    lengths = read_table(TraceLengths, sources["trace_lengths"][0])
    intervals = read_table(TraceIntervals, sources["trace_intervals"][0])
    check_workload_tables(
        lengths, intervals, [item.prompt_id for item in read_prompts(sources["prompts"][0])], chosen.file
    )
    digests = {_FILES[part]: digest for part, (_, digest) in sources.items()}
    tokenizer_digest = _part_meta(sources["trace_lengths"][0]).inputs_sha256["tokenizer"]
    identity = workload_id(digests)
    with store.stage(Kind.WORKLOAD, identity) as staging:
        for path, _ in sources.values():
            shutil.copyfile(path, staging.path / path.name)
        meta = workload_meta(chosen, scenario.overrides, tokenizer_digest, staging.digests(), len(lengths))
        write_document(meta, staging.path / Kind.WORKLOAD.meta_name)
        final = staging.commit(share=True)
    load_workload(final)
    # The metadata of a shared directory is the first scenario's; what this scenario asked for is kept with its pointer.
    pointer: dict[str, Any] = {"workload_id": identity, "params": chosen.model_dump(mode="json")}
    pointer[_SOURCE] = _part_meta(sources["prompts"][0]).inputs_sha256[_SOURCE]
    store.set_current(chosen.name, "workload", pointer)
    return dg.MaterializeResult(
        check_results=[contract_passed("workload_spec", requests=len(lengths))],
        data_version=dg.DataVersion(identity),
        metadata={
            "workload_id": identity,
            "num_requests": len(lengths),
            **_rates(intervals),
            "path": dg.MetadataValue.path(str(final)),
            "sha256": dg.MetadataValue.json(digests),
        },
    )


def current_workload(store: ArtifactStore, scenario: Scenario) -> LoadedWorkload:
    """The workload last materialized for a scenario, checked against what the scenario asks for now.

    Raises:
        ArtifactError: none materialized. WorkloadError: built with other settings.
    """
    pointer = store.current(scenario.name, "workload")
    if pointer is None:
        raise ArtifactError(
            f"{store}: no workload for scenario {scenario.name}. Materialize workload_spec for this partition first."
        )
    loaded = load_workload(store.open(Kind.WORKLOAD, pointer["workload_id"]))
    check_same_request(pointer["params"], scenario, loaded.directory)
    _check_source(pointer[_SOURCE], scenario, loaded.directory)
    return loaded


def _check_source(sha256: str, scenario: Scenario, directory: Path) -> None:
    """The prompts file that the scenario names still is the one that was read.

    Raises:
        WorkloadError
    """
    source = resolve_path(scenario.workload.prompts)
    if not source.is_file() or sha256_file(source) != sha256:
        raise WorkloadError(
            f"{source}: changed or removed since {directory} was made from it. Materialize prompts, trace_lengths, trace_intervals and "
            "workload_spec again."
        )


class _PartWriter:
    """Commits one file of the workload under a name derived from its content, and makes it the scenario's current one."""

    def __init__(self, store: ArtifactStore, part: str, scenario: Scenario, overrides: list[str]) -> None:
        self.store, self.part, self.scenario, self.overrides = store, part, scenario, overrides
        self.inputs: dict[str, str] = {}

    def write(self, fill: Callable[[Path], object]) -> tuple[Path, str]:
        with self.store.stage(Kind.WORKLOAD_PART, self.part) as staging:
            fill(staging.path)
            digests = staging.digests()
            digest = digests[_FILES[self.part]]
            inputs = "".join(f"{name}={value}" for name, value in sorted(self.inputs.items()))
            staging.artifact_id = f"{self.part}-{self.scenario.name}-{sha256_bytes((digest + inputs).encode())[:16]}"
            meta = PartMeta(
                part=self.part,
                created_at=datetime.now(timezone.utc),
                sha256=digests,
                inputs_sha256=self.inputs,
                params=self.scenario.model_dump(mode="json"),
                hydra=Hydra(config_path=self.scenario.file, config_name=self.scenario.name, overrides=self.overrides),
            )
            write_document(meta, staging.path / Kind.WORKLOAD_PART.meta_name)
            final = staging.commit(share=True)
        params = self.scenario.model_dump(mode="json")
        self.store.set_current(self.scenario.name, self.part, {"artifact_id": staging.artifact_id, "params": params})
        return final / _FILES[self.part], digest


def _current_part(store: ArtifactStore, scenario: Scenario, part: str) -> tuple[Path, str]:
    pointer = store.current(scenario.name, part)
    if pointer is None:
        raise ArtifactError(
            f"{store}: no {part} for scenario {scenario.name}. Materialize {part} for this partition first."
        )
    directory = store.open(Kind.WORKLOAD_PART, pointer["artifact_id"])
    check_same_request(pointer["params"], scenario, directory)
    path = directory / _FILES[part]
    if part == "prompts":
        _check_source(_part_meta(path).inputs_sha256[_SOURCE], scenario, directory)
    return path, _part_meta(path).sha256[path.name]


def _part_meta(path: Path) -> PartMeta:
    return read_document(PartMeta, path.parent / Kind.WORKLOAD_PART.meta_name)


def _rates(intervals: pd.DataFrame) -> dict[str, float | int]:
    span_ns = int(intervals["arrival_time_ns"].iloc[-1])
    rates: dict[str, float | int] = {"schedule_span_s": round(span_ns / NS_PER_S, 3)}
    if span_ns > 0:
        rates["offered_rate_per_s"] = round(len(intervals) * NS_PER_S / span_ns, 3)
    return rates
