"""Measure a workload on the real engine: `python -m gst_assets.engine.run --workload DIR --scenario NAME|FILE.json --out DIR`.

One engine start, `replay.repeats` repeats; each becomes a complete run directory `OUT/<group_id>-r<k>/`. `--workload` and `--scenario` may be
given several times, in pairs, to play several workloads on one engine start; the scenarios must then agree about model, hardware and engine.
Also how the Dagster asset measures, in a child process. Needs no Dagster, pandera, Vidur or (with FILE.json) OmegaConf, so it runs on a
bare GPU host.

A run is `degraded` (kept, but said to be of lower worth, with the reasons) when any of these holds: the p99 of send time minus intended arrival
exceeds `replay.lateness_limit_ns`; no request was handed over; the engine died; iterations are recorded and cannot account for every token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import (
    VLLM_POLICY,
    EngineSettings,
    Hardware,
    MachineRecord,
    Pacing,
    RealRunMeta,
    WorkloadMeta,
    run_facts,
    timestamp_slug,
    write_document,
)
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.engine import machine, records
from gst_assets.engine import replay as replay_module
from gst_assets.engine.backends import engine_environment, engine_hardware, open_engine
from gst_assets.engine.launch import die_with_parent
from gst_assets.engine.protocol import Engine, EngineRequest, IterationField
from gst_assets.engine.replay import PlannedRequest, ReplayResult, WarmUp, replay, warm_up
from gst_assets.errors import EngineError, GstError, WorkloadError
from gst_assets.foreign_text import inert
from gst_assets.provenance import git_state
from gst_assets.scenario import Scenario, read_reference
from gst_assets.workload import load
from gst_assets.workload.tokenized import WorkloadRequest, requests_of


@dataclass(frozen=True)
class Play:
    """One workload to be played as its scenario says; its runs are named `<group_id>-r<k>`."""

    scenario: Scenario
    workload: Path
    group_id: str


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. A `GstError` is one `error: ` line on stderr and status 1."""
    die_with_parent()
    arguments = _parser().parse_args(argv)
    try:
        plays = _plays(arguments)
        os.environ.update(engine_environment(plays[0].scenario))
        asyncio.run(measure(plays, arguments.out))
    except GstError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gst_assets.engine.run", description=__doc__)
    parser.add_argument("--workload", type=Path, action="append", required=True, help="complete workload directory")
    add_scenario_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory in which the run directories appear")
    parser.add_argument("--group-id", help="prefix of the run ids (one workload only); default: scenario name and time")
    return parser


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """`--scenario` and `--override`, each any number of times, as every command that opens an engine for several scenarios takes them."""
    parser.add_argument(
        "--scenario",
        action="append",
        required=True,
        help="scenario name, or a resolved scenario (python -m gst_assets.scenario)",
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="applied to scenarios given by name; a resolved scenario has its own inside",
    )


def _plays(arguments: argparse.Namespace) -> list[Play]:
    scenarios = [read_reference(reference, arguments.override) for reference in arguments.scenario]
    if len(scenarios) != len(arguments.workload):
        raise EngineError(
            f"{len(arguments.workload)} --workload and {len(scenarios)} --scenario given, expected one scenario for each workload."
        )
    if arguments.group_id and len(scenarios) > 1:
        raise EngineError("--group-id names the runs of one workload. Leave it out to name them after their scenarios.")
    check_one_engine(scenarios)
    now = timestamp_slug(datetime.now(timezone.utc))
    return [
        Play(scenario, workload.resolve(), arguments.group_id or f"{scenario.name}-{now}")
        for scenario, workload in zip(scenarios, arguments.workload, strict=True)
    ]


def check_one_engine(scenarios: Sequence[Scenario]) -> None:
    """The scenarios differ in name and can all be served by one engine.

    Raises:
        EngineError
    """
    first = scenarios[0]
    for other in scenarios[1:]:
        for section in ("model", "hardware", "engine"):
            if other.digest(section) != first.digest(section):
                raise EngineError(
                    f"scenarios {first.name} and {other.name} differ in {section}, so one engine cannot serve both. Run them apart."
                )
    names = [scenario.name for scenario in scenarios]
    if len(set(names)) < len(names):
        raise EngineError(f"scenarios {', '.join(names)}: name each scenario once.")


async def measure(plays: Sequence[Play], out: Path) -> list[Path]:
    """Play every workload `replay.repeats` times on one engine start; returns the run directories in order.

    Raises:
        EngineError: hardware or settings differ from the scenario, or the engine failed. When it died during a repeat, that repeat is
            written with its error rows first.
        WorkloadError, ArtifactError, ContractError: a workload directory is incomplete, altered, or does not fit its scenario.
    """
    for play in plays:
        for repeat in range(play.scenario.replay.repeats):
            if (out / f"{play.group_id}-r{repeat}").exists():
                raise EngineError(
                    f"{out / f'{play.group_id}-r{repeat}'}: already exists. Runs are kept; use another --group-id."
                )
    scenario = plays[0].scenario
    hardware = engine_hardware(scenario)
    _say(f"hardware: {_device(hardware)}")
    asked = []
    for play in plays:
        asked.append(read_play(play))
        _say(f"workload {asked[-1][0].workload_id}: {len(asked[-1][1])} requests")
    check_output([play.group_id for play in plays], out)
    began = time.monotonic()
    written: list[Path] = []
    _say(f"opening {scenario.engine.backend}")
    async with open_engine(scenario) as engine:
        started_s = time.monotonic() - began
        _say(f"engine ready after {started_s:.1f} s: {engine.settings().engine_version}")
        for play, (meta, requests) in zip(plays, asked, strict=True):
            warmed = await warm_up(
                engine,
                warm_up_requests(play.scenario, requests),
                request_timeout_s=play.scenario.replay.request_timeout_s,
            )
            _say(f"{play.scenario.name}: warm-up of {warmed.num_requests} requests took {warmed.seconds:.1f} s")
            common = Measurement(
                play.scenario,
                play.workload,
                meta,
                hardware,
                engine.settings(),
                warmed,
                started_s,
                play.group_id,
            )
            for repeat in range(play.scenario.replay.repeats):
                directory, died = await play_repeat(engine, common, requests, repeat, out)
                written.append(directory)
                if died:
                    raise EngineError(
                        f"{died} {directory} holds what was measured until then; repeats {repeat + 1} to {play.scenario.replay.repeats} "
                        "of the scenario could not be finished. See the engine's lines above and run again."
                    )
    return written


def check_output(group_ids: Sequence[str], out: Path) -> None:
    """Directories of these names can be created in `out`: found out before the engine starts, not after the first repeat.

    Raises:
        EngineError: a name that is no plain file name, or an `out` that cannot be written.
        EnvironmentVariableError: the code's revision, which every run records, cannot be told.
    """
    git_state()
    for group_id in group_ids:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", group_id):
            raise EngineError(
                f"--group-id {group_id!r}: expected a plain name of letters, digits, dots, dashes and underscores."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise EngineError(
            f"--out {out}: no directory can be created there ({error.strerror}). Name a writable directory."
        ) from None


def check_scenario_of(meta: WorkloadMeta, play: Play) -> None:
    """The workload's schedule and output lengths are those of the scenario it is paired with (its prompts may come from another path)."""
    built, asked = meta.params.get("workload", {}), play.scenario.workload.model_dump(mode="json")
    for key in ("arrivals", "num_decode_tokens"):
        if built.get(key) != asked[key]:
            raise WorkloadError(
                f"{play.workload}: built with workload.{key} = {built.get(key)}, but scenario {play.scenario.name} asks for {asked[key]}. "
                "Pair each --workload with its own --scenario."
            )


async def play_repeat(
    engine: Engine, common: Measurement, requests: Sequence[WorkloadRequest], repeat: int, out: Path
) -> tuple[Path, str | None]:
    """Play once and write the run directory; returns it and why the engine died, if it did."""
    scenario = common.scenario
    await engine.forget()
    _say(f"repeat {repeat + 1} of {scenario.replay.repeats}: playing")
    started_at = datetime.now(timezone.utc)
    with machine.watched(common.hardware) as watch:
        played = await replay(
            engine,
            _plan(requests, scenario, repeat),
            request_timeout_s=scenario.replay.request_timeout_s,
            may_stop_early=scenario.engine.sampling.may_stop_early,
            realtime=scenario.replay.realtime_priority,
        )
    seen = watch.record(played.start_ns)
    last_ns = max((result.times.last_token_ns or 0 for result in played.results if result.times), default=0)
    steps = await engine.iterations(last_ns)
    directory = write_run(common, played, steps, repeat, started_at, engine.backend, out, seen)
    failed = sum(bool(result.error_type) for result in played.results)
    _say(
        f"repeat {repeat + 1} of {scenario.replay.repeats}: {len(requests) - failed} requests ok, {failed} failed: {directory}"
    )
    return directory, played.death


# --- what is asked ----------------------------------------------------------------------------------------------------


def read_play(play: Play) -> tuple[WorkloadMeta, list[WorkloadRequest]]:
    """A play's workload, checked and tokenized.

    Raises:
        WorkloadError, ArtifactError, ContractError: incomplete, altered, or does not fit its scenario.
    """
    workload = load(play.workload, contract=False)
    check_scenario_of(workload.meta, play)
    return workload.meta, requests_of(workload, play.scenario)


def _plan(requests: Sequence[WorkloadRequest], scenario: Scenario, repeat: int) -> list[PlannedRequest]:
    seed = scenario.engine.sampling.seed
    return [
        PlannedRequest(
            EngineRequest(f"r{repeat}-{index}", item.prompt_token_ids, item.num_decode_tokens, seed + index),
            item.arrival_time_ns,
            item.prompt_id,
        )
        for index, item in enumerate(requests)
    ]


def warm_up_requests(scenario: Scenario, requests: Sequence[WorkloadRequest]) -> list[EngineRequest]:
    """Prompts as long as the workload's, of random tokens: the workload's own would warm a prefix cache."""
    rng = np.random.Generator(np.random.PCG64(scenario.workload.seed))
    model, replay_settings = scenario.model, scenario.replay
    prompts = [requests[index % len(requests)].prompt_token_ids for index in range(replay_settings.warmup_requests)]
    return [
        EngineRequest(
            f"warm-{index}",
            rng.integers(0, model.geometry.vocab_size, len(prompt)).tolist(),
            min(replay_settings.warmup_decode_tokens, model.max_model_len - len(prompt)),
            scenario.engine.sampling.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]


# --- what is written --------------------------------------------------------------------------------------------------


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
    """Write one repeat as a complete run directory, staged beside its place and renamed into it; returns its path. `seen` is the machine while
    it was played.

    Raises:
        EngineError: the directory exists.
    """
    scenario, run_id = common.scenario, f"{common.group_id}-r{repeat}"
    requests, tokens = records.request_metrics(played, backend), records.token_metrics(played)
    missing = steps is not None and records.steps_are_missing(steps, played)
    lateness = records.lateness_ns(played)
    reasons = _degraded_reasons(played, lateness, scenario.replay.lateness_limit_ns, missing)
    num_errors = int((requests["status"] == "error").sum())
    with staged(out, run_id) as folder:
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
            inside = records.steps_inside(steps, played)
            csv_files.write_csv(records.iterations(steps, played), folder / "iterations.csv")
            facts["tracing_ns_per_step"] = records.percentiles(inside[:, IterationField.TRACING_NS].tolist())
        latencies = records.latency_percentiles(requests, tokens)
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
        reasons.append("no request was handed over")
    elif lateness_ns["p99"] > limit_ns:
        reasons.append(
            f"lateness p99 {_ms(lateness_ns['p99'])} ms exceeds replay.lateness_limit_ns, {_ms(limit_ns)} ms"
        )
    if played.death:
        reasons.append(f"the engine died: {played.death}")
    if steps_missing:
        reasons.append("the recorded iterations cannot account for every token")
    return reasons


def _pacing(pacing: replay_module.Pacing | None) -> Pacing | None:
    if pacing is None:
        return None
    return Pacing(
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


@contextmanager
def staged(out: Path, run_id: str) -> Iterator[Path]:
    """A folder beside `out/run_id` that becomes it when the block ends well, and is removed otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".{run_id}.{os.getpid()}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
        try:
            folder.rename(out / run_id)
        except OSError as error:
            raise EngineError(
                f"{out / run_id}: cannot be created ({error.strerror}). Runs are kept; use another --group-id."
            ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
        f"| {label} | " + " | ".join(_ms(latencies[key].get(name)) for name in ("p50", "p90", "p99")) + " |"
        for key, label in (("ttft", "TTFT"), ("itl", "ITL"))
    ]
    lines = [
        f"# Real run {run_id}",
        "",
        f"Scenario {common.scenario.name}, workload {common.workload.workload_id}, model {common.scenario.model.name}, on {_device(common.hardware)}.",
        f"{settings.backend} {settings.engine_version}, {settings.dtype}, attention {settings.attention_backend}: max_num_seqs {settings.max_num_seqs}, "
        f"max_num_batched_tokens {settings.max_num_batched_tokens}, {settings.num_kv_blocks} KV blocks of {settings.block_size} tokens, "
        f"prefix caching {settings.enable_prefix_caching}, async scheduling {settings.async_scheduling}, eager {settings.enforce_eager}.",
        *_labels(settings),
        "",
        "| ms | P50 | P90 | P99 |",
        "|---|---|---|---|",
        *rows,
        "",
        f"{num_requests} requests: {facts['num_errors']} failed, {facts['num_early_stops']} stopped early. "
        f"Messages with more than one token: {facts['num_bunched_messages']}.",
        f"Driver lateness (send time minus intended arrival), ms: p50 {_ms(facts['lateness_ns'].get('p50'))}, "
        f"p99 {_ms(facts['lateness_ns'].get('p99'))}, max {_ms(facts['lateness_ns'].get('max'))}.",
        _pacing_line(facts["pacing"]),
        *([f"Machine: {machine.told(seen)}."] if seen else []),
        f"Degraded: {'yes: ' + '; '.join(facts['degraded_reasons']) if facts['degraded'] else 'no'}.",
        "",
    ]
    return "\n".join(inert(line) for line in lines)


def _pacing_line(pacing: Pacing | None) -> str:
    if pacing is None:
        return "How the driver was paced is not recorded."
    reason = f" ({pacing.priority_reason})" if pacing.priority_reason else ""
    return f"Driver paced by {pacing.timer} and a spin of {_ms(pacing.spin_ns)} ms, its thread at {pacing.priority} priority{reason}."


def _device(hardware: Hardware) -> str:
    return (
        f"{hardware.device_name} (stated by the scenario, not looked at)" if hardware.stated else hardware.device_name
    )


def _labels(settings: EngineSettings) -> list[str]:
    """What a reader must know of an engine that is not vLLM started by this program."""
    lines = []
    if settings.scheduling_policy != VLLM_POLICY:
        lines.append(
            f"**Not vLLM's scheduler**: steps are formed by policy {settings.scheduling_policy} of {settings.backend}; a simulation of vLLM's assumes another."
        )
    if settings.transport == "http":
        lines.append(
            "**HTTP is inside the measurement**: connection, HTTP and JSON on both sides and the server's front end are part of every time."
        )
    if settings.not_read_back:
        lines.append(f"Stated by the scenario, not read back from the engine: {', '.join(settings.not_read_back)}.")
    return lines


def _ms(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else f"{nanoseconds / 1e6:.3f}"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
