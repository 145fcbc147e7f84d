"""The workload's assets: prompts, trace_lengths, trace_intervals, and workload_spec, which joins the three into one directory."""

import itertools
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from gst_assets.assets.presentation import contract_check_specs, contract_passed, preview, table_definition_metadata
from gst_assets.checks import reports_contract
from gst_assets.contracts.documents import (
    Hydra,
    PartMeta,
    WorkloadSchedule,
    WorkloadSource,
    read_document,
    write_document,
)
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import (
    PlannedRequests,
    TraceIntervals,
    TraceLengths,
    check_workload_tables,
    read_table,
    write_table,
)
from gst_assets.errors import ArtifactError, WorkloadError
from gst_assets.foreign_text import inert_line
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes, sha256_file
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import Scenario, resolve_path
from gst_assets.workload.arrivals import NS_PER_S, TraceTimes, build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import iterate_prompts, read_prompts, write_prompts
from gst_assets.workload.requests import plan_requests, trace_times
from gst_assets.workload.spec import (
    PATHS,
    LoadedWorkload,
    check_same_request,
    load_workload,
    schedule_of,
    workload_id,
    workload_meta,
)

GROUP = "workload"
_SOURCE, _TOKENIZER = "source", "tokenizer"
_REQUESTS = PlannedRequests.file_name()
_LENGTHS = TraceLengths.column_types()[0]
_FILES = {"prompts": PATHS.prompts, "trace_lengths": PATHS.trace_lengths, "trace_intervals": PATHS.trace_intervals}


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"json"},
    check_specs=contract_check_specs(["prompts"]),
    description="The prompts in stable order: the scenario's file with its digest, or texts of the lengths that a trace or a distribution gives.",
)
@reports_contract("prompts")
def prompts(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot, tokenizer: TokenizerResource
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    part = _PartWriter(store, "prompts", chosen, scenario.overrides)
    if chosen.workload.prompts is not None:
        source = resolve_path(chosen.workload.prompts)
        items = read_prompts(source)
        part.inputs = {_SOURCE: sha256_file(source)}
        part.source = WorkloadSource(kind="prompts", path=chosen.workload.prompts, sha256=part.inputs[_SOURCE])
        path, digest = part.write(lambda directory: write_prompts(items, directory / PATHS.prompts))
    else:
        loaded = tokenizer.load(chosen)
        plan = plan_requests(chosen, loaded)
        part.inputs = {_TOKENIZER: loaded.sha256} | ({_SOURCE: plan.source.sha256} if plan.source.sha256 else {})
        part.source = plan.source

        def fill(directory: Path) -> None:
            requests = plan.write_prompts(
                directory / PATHS.prompts, loaded, chosen.workload.seed, workers=tokenizer.workers
            )
            write_table(PlannedRequests, requests, directory)

        path, digest = part.write(fill)
    first = list(itertools.islice(iterate_prompts(path), 5))
    return dg.MaterializeResult(
        check_results=[contract_passed("prompts", **{_SOURCE: part.source.path or part.source.kind})],
        data_version=dg.DataVersion(digest),
        metadata={
            "source": dg.MetadataValue.json(part.source.model_dump(mode="json", exclude_none=True)),
            "path": dg.MetadataValue.path(str(path)),
            "first": dg.MetadataValue.md(
                "\n".join(f"- `{inert_line(item.prompt_id)}` {inert_line(item.text[:100])}" for item in first)
            ),
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
    part = _PartWriter(store, "trace_lengths", chosen, scenario.overrides)
    if (planned := _planned_requests(source)) is not None:
        # Counted with this tokenizer when the prompts were written.
        frame, tokenizer_digest = planned[list(_LENGTHS)], _part_meta(source).inputs_sha256[_TOKENIZER]
        part.inputs[_REQUESTS] = _part_meta(source).sha256[_REQUESTS]
    else:
        loaded = tokenizer.load(chosen)
        frame, tokenizer_digest = build_trace_lengths(chosen, read_prompts(source), loaded), loaded.sha256
    part.inputs |= {PATHS.prompts: prompts_digest, _TOKENIZER: tokenizer_digest}
    path, digest = part.write(lambda directory: write_table(TraceLengths, frame, directory))
    return dg.MaterializeResult(
        check_results=[contract_passed("trace_lengths", rows=len(frame))],
        data_version=dg.DataVersion(digest),
        metadata={
            "dagster/row_count": len(frame),
            "total_prefill_tokens": int(frame["num_prefill_tokens"].sum()),
            "total_decode_tokens": int(frame["num_decode_tokens"].sum()),
            "tokenizer": chosen.model.tokenizer,
            "tokenizer_sha256": tokenizer_digest,
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
    part = _PartWriter(store, "trace_intervals", chosen, scenario.overrides)
    part.inputs = {PATHS.prompts: prompts_digest}
    if (planned := _planned_requests(source)) is not None:
        count = len(planned)
        part.inputs[_REQUESTS] = _part_meta(source).sha256[_REQUESTS]
    else:
        count = chosen.workload.num_requests or sum(1 for _ in iterate_prompts(source))
    times = _trace_times(source, planned)
    frame = build_trace_intervals(chosen.workload.arrivals, count, chosen.workload.seed, times)
    path, digest = part.write(lambda directory: write_table(TraceIntervals, frame, directory))
    return dg.MaterializeResult(
        check_results=[contract_passed("trace_intervals", rows=len(frame))],
        data_version=dg.DataVersion(digest),
        metadata={
            "dagster/row_count": len(frame),
            **_rates(schedule_of(chosen.workload.arrivals, frame, times)),
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
    prompts_path, prompts_digest = sources["prompts"]
    prompts_meta = _part_meta(prompts_path)
    for part in ("trace_lengths", "trace_intervals"):
        made_from = _part_meta(sources[part][0]).inputs_sha256
        if (made_from[PATHS.prompts], made_from.get(_REQUESTS)) != (prompts_digest, prompts_meta.sha256.get(_REQUESTS)):
            raise WorkloadError(
                f"{sources[part][0]}: made from other prompts than the current ones. Materialize {part} again."
            )
    lengths = read_table(TraceLengths, sources["trace_lengths"][0])
    intervals = read_table(TraceIntervals, sources["trace_intervals"][0])
    check_workload_tables(lengths, intervals, [item.prompt_id for item in iterate_prompts(prompts_path)], chosen.file)
    schedule = schedule_of(
        chosen.workload.arrivals, intervals, _trace_times(prompts_path, _planned_requests(prompts_path))
    )
    digests = {_FILES[part]: digest for part, (_, digest) in sources.items()}
    tokenizer_digest = _part_meta(sources["trace_lengths"][0]).inputs_sha256[_TOKENIZER]
    identity = workload_id(digests)
    with store.stage(Kind.WORKLOAD, identity) as staging:
        for path, _ in sources.values():
            shutil.copyfile(path, staging.path / path.name)
        meta = workload_meta(
            chosen,
            scenario.overrides,
            tokenizer_digest,
            staging.digests(),
            len(lengths),
            prompts_meta.source,
            schedule,
        )
        write_document(meta, staging.path / Kind.WORKLOAD.meta_name)
        final = staging.commit(share=True)
    load_workload(final)
    # The metadata of a shared directory is the first scenario's; what this scenario asked for is kept with its pointer.
    pointer: dict[str, Any] = {"workload_id": identity, "params": chosen.model_dump(mode="json")}
    pointer[_SOURCE] = prompts_meta.inputs_sha256.get(_SOURCE)
    store.set_current(chosen.name, "workload", pointer)
    return dg.MaterializeResult(
        check_results=[contract_passed("workload_spec", requests=len(lengths))],
        data_version=dg.DataVersion(identity),
        metadata={
            "workload_id": identity,
            "num_requests": len(lengths),
            **_rates(schedule),
            "path": dg.MetadataValue.path(str(final)),
            "sha256": dg.MetadataValue.json(digests),
        },
    )


def current_workload(store: ArtifactStore, scenario: Scenario) -> LoadedWorkload:
    """The workload last materialized for a scenario, checked against what the scenario asks for now.

    Raises:
        ArtifactError: none materialized. WorkloadError: built with other settings.
    """
    pointer = store.current(scenario.name, "workload", "workload_id", "params", _SOURCE)
    if pointer is None:
        raise ArtifactError(
            f"{store}: no workload for scenario {scenario.name}. Materialize workload_spec for this partition first."
        )
    loaded = load_workload(store.open(Kind.WORKLOAD, pointer["workload_id"]))
    check_same_request(pointer["params"], scenario, loaded.directory)
    _check_source(pointer[_SOURCE], scenario, loaded.directory)
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
            f"{source}: changed or removed since {directory} was made from it. Materialize prompts, trace_lengths, trace_intervals and "
            "workload_spec again."
        )


class _PartWriter:
    """Commits one file of the workload under a name derived from its content, and makes it the scenario's current one."""

    def __init__(self, store: ArtifactStore, part: str, scenario: Scenario, overrides: list[str]) -> None:
        self.store, self.part, self.scenario, self.overrides = store, part, scenario, overrides
        self.inputs: dict[str, str] = {}
        self.source: WorkloadSource | None = None

    def write(self, fill: Callable[[Path], object]) -> tuple[Path, str]:
        with self.store.stage(Kind.WORKLOAD_PART, self.part) as staging:
            fill(staging.path)
            digests = staging.digests()
            digest = digests[_FILES[self.part]]
            content = "".join(value for _, value in sorted(digests.items()))
            inputs = "".join(f"{name}={value}" for name, value in sorted(self.inputs.items()))
            staging.artifact_id = f"{self.part}-{self.scenario.name}-{sha256_bytes((content + inputs).encode())[:16]}"
            meta = PartMeta(
                part=self.part,
                created_at=datetime.now(timezone.utc),
                sha256=digests,
                inputs_sha256=self.inputs,
                params=self.scenario.model_dump(mode="json"),
                hydra=Hydra(config_path=self.scenario.file, config_name=self.scenario.name, overrides=self.overrides),
                source=self.source,
            )
            write_document(meta, staging.path / Kind.WORKLOAD_PART.meta_name)
            final = staging.commit(share=True)
        params = self.scenario.model_dump(mode="json")
        self.store.set_current(self.scenario.name, self.part, {"artifact_id": staging.artifact_id, "params": params})
        return final / _FILES[self.part], digest


def _current_part(store: ArtifactStore, scenario: Scenario, part: str) -> tuple[Path, str]:
    pointer = store.current(scenario.name, part, "artifact_id", "params")
    if pointer is None:
        raise ArtifactError(
            f"{store}: no {part} for scenario {scenario.name}. Materialize {part} for this partition first."
        )
    directory = store.open(Kind.WORKLOAD_PART, pointer["artifact_id"])
    check_same_request(pointer["params"], scenario, directory)
    path = directory / _FILES[part]
    if part == "prompts":
        _check_source(_part_meta(path).inputs_sha256.get(_SOURCE), scenario, directory)
    return path, _part_meta(path).sha256[path.name]


def _part_meta(path: Path) -> PartMeta:
    return read_document(PartMeta, path.parent / Kind.WORKLOAD_PART.meta_name)


def _planned_requests(prompts_path: Path) -> pd.DataFrame | None:
    """The requests planned with the prompts, or None where the prompts come from a file."""
    path = prompts_path.parent / _REQUESTS
    return read_table(PlannedRequests, path) if path.exists() else None


def _trace_times(prompts_path: Path, planned: pd.DataFrame | None) -> TraceTimes | None:
    source = _part_meta(prompts_path).source
    return None if planned is None or source is None else trace_times(planned, source)


def _rates(schedule: WorkloadSchedule) -> dict[str, float]:
    found = {
        "schedule_span_s": schedule.span_ns / NS_PER_S,
        "asked_rate_per_s": schedule.asked_rate_per_s,
        "offered_rate_per_s": schedule.offered_rate_per_s,
        "time_scale": schedule.time_scale,
    }
    return {name: round(value, 3) for name, value in found.items() if value is not None}
