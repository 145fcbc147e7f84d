"""One repeat as a complete run directory: tables, metadata and summary.

A run is `degraded` (written, but marked as less reliable, with the reasons) when any of these holds: the p99 of send
time minus intended arrival exceeds `replay.lateness_limit_ns`; no request was sent; the engine died; more than 5
% of the tokens came together with the one before; iterations are recorded and cannot account for every token.
What the rows of the tables are belongs to `metric_rows`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import (
    VLLM_POLICY,
    EngineSettings,
    Hardware,
    MachineRecord,
    PacingRecord,
    RealRunMeta,
    WorkloadMeta,
    run_facts,
    write_document,
)
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.engine import machine, metric_rows
from gst_assets.engine import replay as replay_module
from gst_assets.engine.protocol import IterationField
from gst_assets.engine.replay import ReplayResult, WarmUp
from gst_assets.errors import EngineError
from gst_assets.foreign_text import inert
from gst_assets.formats import markdown_table, milliseconds
from gst_assets.scenario import Scenario
from gst_assets.staging import staged_directory

_TOGETHER = 0.05
"""Share of tokens that came together with the one before beyond which gaps are more of the delivery than of the
engine."""


@dataclass(frozen=True)
class Measurement:
    """What every repeat of one play has in common."""

    scenario: Scenario
    workload_dir: Path
    workload: WorkloadMeta
    hardware: Hardware
    settings: EngineSettings
    warm_up: WarmUp
    engine_start_s: float
    group_id: str


def write_run(
    common: Measurement,
    played: ReplayResult,
    steps: np.ndarray | None,
    repeat: int,
    started_at: datetime,
    backend: str,
    out: Path,
    seen: MachineRecord | None = None,
) -> Path:
    """Write one repeat as a complete run directory, staged next to its place and renamed into it; returns its path.
    `seen` is the machine while it was played.

    Raises:
        EngineError: the directory exists.
    """
    scenario, run_id = common.scenario, f"{common.group_id}-r{repeat}"
    requests, tokens = metric_rows.request_metrics(played, backend), metric_rows.token_metrics(played)
    missing = steps is not None and metric_rows.steps_are_missing(steps, played)
    lateness = metric_rows.lateness_ns(played)
    reasons = _degraded_reasons(played, lateness, scenario.replay.lateness_limit_ns, missing)
    num_errors = int((requests["status"] == "error").sum())
    with staged_run(out / run_id) as folder:
        csv_files.write_csv(requests, folder / "request_metrics.csv")
        csv_files.write_csv(tokens, folder / "token_metrics.csv")
        facts: dict[str, Any] = {
            "lateness_ns": lateness,
            "degraded": bool(reasons),
            "degraded_reasons": reasons,
            "pacing": _pacing(played.pacing),
            "num_bunched_messages": sum(result.num_bunched_messages for result in played.results),
            "num_errors": num_errors,
            "num_early_stops": _early_stops(played),
            "iterations_missing": missing,
        }
        if steps is not None:
            inside = metric_rows.steps_inside(steps, played)
            has_prefix_cache = common.settings.enable_prefix_caching
            iterations = metric_rows.iterations(steps, played, has_prefix_cache=has_prefix_cache)
            csv_files.write_csv(iterations, folder / "iterations.csv")
            facts["tracing_ns_per_step"] = metric_rows.percentiles(inside[:, IterationField.TRACING_NS].tolist())
        latencies = metric_rows.latency_percentiles(requests, tokens)
        (folder / "summary.md").write_text(
            _summary(common, run_id, facts, latencies, len(requests), seen), encoding="utf-8"
        )
        meta = RealRunMeta(
            run_id=run_id,
            **run_facts(scenario, started_at),
            hardware=common.hardware,
            inputs_sha256={f"workload/{name}": digest for name, digest in common.workload.sha256.items()},
            sha256=directory_digests(folder, Kind.REAL_RUN.meta_name),
            workload_dir=str(common.workload_dir),
            workload_id=common.workload.workload_id,
            workload_sha256=common.workload.sha256,
            backend=backend,
            group_id=common.group_id,
            repeat_index=repeat,
            num_repeats=scenario.replay.repeats,
            engine_settings=common.settings,
            warmup=asdict(common.warm_up),
            engine_start_s=round(common.engine_start_s, 3),
            machine=seen,
            **facts,
        )
        write_document(meta, folder / Kind.REAL_RUN.meta_name)
    return out / run_id


def _degraded_reasons(
    played: ReplayResult, lateness_ns: dict[str, int], limit_ns: int, steps_missing: bool
) -> list[str]:
    reasons = []
    if not lateness_ns:
        reasons.append("no request was sent")
    elif lateness_ns["p99"] > limit_ns:
        reasons.append(
            f"lateness p99 {_ms(lateness_ns['p99'])} ms exceeds replay.lateness_limit_ns, {_ms(limit_ns)} ms"
        )
    if played.death:
        reasons.append(f"the engine died: {played.death}")
    if (together := _together(played)) > _TOGETHER:
        reasons.append(
            f"{100 * together:.0f} % of the tokens after the first came together with the one before: engine, server or"
            " proxy hold tokens back"
        )
    if steps_missing:
        reasons.append("the recorded iterations cannot account for every token")
    return reasons


def _together(played: ReplayResult) -> float:
    """Share of the tokens after the first that reached the client at the time of the one before."""
    gaps = [np.diff(np.asarray(result.token_times_ns, dtype=np.int64)) for result in played.results]
    every = np.concatenate([np.empty(0, dtype=np.int64), *gaps])
    return float((every == 0).mean()) if len(every) else 0.0


def _pacing(pacing: replay_module.Pacing | None) -> PacingRecord | None:
    if pacing is None:
        return None
    return PacingRecord(
        timer=pacing.timer,
        spin_ns=pacing.spin_ns,
        priority=pacing.priority.name,
        priority_reason=pacing.priority.reason,
    )


def _early_stops(played: ReplayResult) -> int:
    return sum(
        not result.error_type and len(result.token_ids) < item.request.num_decode_tokens
        for item, result in zip(played.planned, played.results, strict=True)
    )


def staged_run(final: Path) -> AbstractContextManager[Path]:
    """A folder next to `final` that becomes it when the block ends well, and is removed otherwise.

    Raises:
        EngineError: `final` exists.
    """

    def refused(error: OSError) -> EngineError:
        return EngineError(
            f"{final}: cannot be created ({error.strerror}). Runs are never overwritten; use another --group-id."
        )

    return staged_directory(final, refused)


def _summary(
    common: Measurement,
    run_id: str,
    facts: dict[str, Any],
    latencies: dict[str, dict[str, int]],
    num_requests: int,
    seen: MachineRecord | None,
) -> str:
    settings = common.settings
    rows = [
        [label, *(_ms(latencies[key].get(name)) for name in ("p50", "p90", "p99"))]
        for key, label in (("ttft", "TTFT"), ("itl", "ITL"))
    ]
    lines = [
        f"# Real run {run_id}",
        "",
        (
            f"Scenario {common.scenario.name}, workload {common.workload.workload_id}, model"
            f" {common.scenario.model.name}, on {device_text(common.hardware)}."
        ),
        (
            f"{settings.backend} {settings.engine_version}, {settings.dtype}{_quantised(settings)}, attention"
            f" {settings.attention_backend}{_experts(settings)}:"
            f" max_num_seqs {settings.max_num_seqs}, max_num_batched_tokens {settings.max_num_batched_tokens},"
            f" {settings.num_kv_blocks} KV blocks of {settings.block_size} tokens, prefix caching"
            f" {settings.enable_prefix_caching}, async scheduling {settings.async_scheduling}, eager"
            f" {settings.enforce_eager}{_shared(settings)}."
        ),
        *_labels(settings),
        "",
        markdown_table(["ms", "P50", "P90", "P99"], rows, tight=True),
        "",
        (
            f"{num_requests} requests: {facts['num_errors']} failed, {facts['num_early_stops']} stopped early. "
            f"Messages with more than one token: {facts['num_bunched_messages']}."
        ),
        (
            f"Driver lateness (send time minus intended arrival), ms: p50 {_ms(facts['lateness_ns'].get('p50'))}, "
            f"p99 {_ms(facts['lateness_ns'].get('p99'))}, max {_ms(facts['lateness_ns'].get('max'))}."
        ),
        _pacing_line(facts["pacing"]),
        *([f"Machine: {machine.told(seen)}."] if seen else []),
        f"Degraded: {'yes: ' + '; '.join(facts['degraded_reasons']) if facts['degraded'] else 'no'}.",
        "",
    ]
    return "\n".join(inert(line) for line in lines)


def _experts(settings: EngineSettings) -> str:
    return f", experts by {settings.expert_kernel}" if settings.expert_kernel else ""


def _shared(settings: EngineSettings) -> str:
    """How many devices share each layer, in words; empty for one, or where that is not known."""
    degree = settings.tensor_parallel_size
    return f", tensor parallel degree {degree}" if degree and degree > 1 else ""


def _pacing_line(pacing: PacingRecord | None) -> str:
    if pacing is None:
        return "How the driver was paced is not recorded."
    reason = f" ({pacing.priority_reason})" if pacing.priority_reason else ""
    return (
        f"Driver paced by {pacing.timer} and a spin of {_ms(pacing.spin_ns)} ms, its thread at {pacing.priority}"
        f" priority{reason}."
    )


def device_text(hardware: Hardware) -> str:
    return f"{hardware.device_name} (stated by the scenario, not detected)" if hardware.stated else hardware.device_name


def _quantised(settings: EngineSettings) -> str:
    if settings.quantization is None:
        return ""
    kernels = f" ({settings.quantized_kernels})" if settings.quantized_kernels else ""
    return f", weights {settings.quantization}{kernels}"


def _labels(settings: EngineSettings) -> list[str]:
    """What a reader must know of an engine that is not vLLM started by this program."""
    lines = []
    if settings.scheduling_policy != VLLM_POLICY:
        lines.append(
            f"**Not vLLM's scheduler**: steps are formed by policy {settings.scheduling_policy} of {settings.backend};"
            " a simulation of vLLM's assumes another."
        )
    if settings.transport == "http":
        lines.append(
            "**HTTP is inside the measurement**: connection, HTTP and JSON on both sides and the server's front end are"
            " part of every time."
        )
    if settings.not_read_back:
        lines.append(f"Stated by the scenario, not read back from the engine: {', '.join(settings.not_read_back)}.")
    if settings.not_told:
        lines.append(f"Not reported by the server, and modelled by no simulation: {', '.join(settings.not_told)}.")
    return lines


def _ms(nanoseconds: int | None) -> str:
    return milliseconds(nanoseconds, ".3f", missing="-")
