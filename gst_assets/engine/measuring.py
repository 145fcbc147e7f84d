"""One engine start on which workloads are played, each as often as its scenario says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from gst_assets.engine import machine
from gst_assets.engine.backends import engine_hardware, open_engine
from gst_assets.engine.open_files import allow_connections, most_at_once
from gst_assets.engine.plays import (
    Play,
    check_output,
    lone_warm_up_requests,
    planned_requests,
    read_play,
    warm_up_requests,
)
from gst_assets.engine.protocol import Engine
from gst_assets.engine.replay import replay, schedule_s, warm_up
from gst_assets.engine.run_directory import Measurement, device_text, write_run
from gst_assets.errors import EngineError
from gst_assets.progress import Progress
from gst_assets.workload.tokenized import WorkloadRequest


async def measure(plays: Sequence[Play], out: Path) -> list[Path]:
    """Play every workload `replay.repeats` times on one engine start; returns the run directories in order.

    Raises:
        EngineError: hardware or settings differ from the scenario, or the engine failed. When it died during a repeat,
            that repeat is written with its error rows first.
        WorkloadError, ArtifactError, ContractError: a workload directory is incomplete, altered, or does not fit its
            scenario.
    """
    for play in plays:
        for repeat in range(play.scenario.replay.repeats):
            if (out / f"{play.group_id}-r{repeat}").exists():
                raise EngineError(
                    f"{out / f'{play.group_id}-r{repeat}'}: already exists. Runs are never overwritten; use another"
                    " --group-id."
                )
    scenario = plays[0].scenario
    hardware = engine_hardware(scenario)
    _say(f"hardware: {device_text(hardware)}")
    asked = []
    for play in plays:
        asked.append(read_play(play))
        _say(f"workload {asked[-1][0].workload_id}: {len(asked[-1][1])} requests")
    check_output([play.group_id for play in plays], out)
    if scenario.engine.backend == "openai":
        for play, (_, requests) in zip(plays, asked, strict=True):
            _allow_connections(play, requests)
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
                lone_warm_up_requests(play.scenario),
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
                        f"{died}. {directory.name} holds what was measured until then; of"
                        f" {play.scenario.replay.repeats} repeats of the scenario {repeat or 'none'} could be finished."
                        " See the engine's lines above and run again."
                    )
    return written


def _allow_connections(play: Play, requests: Sequence[WorkloadRequest]) -> None:
    """Every request of a server is a connection until it has ended, which is at most its time limit after its
    arrival; of a session whose turns wait for answers one is open at most."""
    settings = play.scenario.replay
    together = most_at_once(session_spans_ns(requests, int(settings.request_timeout_s * 1e9)))
    why = f"{play.scenario.name} (requests of {settings.request_timeout_s:g} s at most, replay.request_timeout_s)"
    allow_connections(max(together, settings.warmup_requests), why)


def session_spans_ns(requests: Sequence[WorkloadRequest], timeout_ns: int) -> list[tuple[int, int]]:
    """When each session can be under way: from its first turn's arrival until every turn has taken its time limit and
    every think time is over. A request that waits for none, and for which none waits, is a session of its own."""
    spans: dict[int, tuple[int, int]] = {}
    for place, request in enumerate(requests):
        if request.previous is None:
            begin_ns = due_ns = request.arrival_time_ns
        else:
            begin_ns, before_ns = spans.pop(request.previous)
            due_ns = before_ns + request.think_time_ns
        spans[place] = begin_ns, due_ns + timeout_ns
    return list(spans.values())


async def play_repeat(
    engine: Engine, common: Measurement, requests: Sequence[WorkloadRequest], repeat: int, out: Path
) -> tuple[Path, str | None]:
    """Play once and write the run directory; returns it and why the engine died, if it did."""
    scenario = common.scenario
    await engine.forget()
    what = f"{scenario.name}: repeat {repeat + 1} of {scenario.replay.repeats}"
    _say(f"{what}: playing")
    started_at = datetime.now(timezone.utc)
    planned = planned_requests(requests, scenario, repeat)
    with machine.watched(common.hardware) as watch, Progress(what, schedule_s(planned)) as progress:
        played = await replay(
            engine,
            planned,
            request_timeout_s=scenario.replay.request_timeout_s,
            may_stop_early=scenario.engine.sampling.may_stop_early,
            realtime=scenario.replay.realtime_priority,
            progress=progress,
        )
    seen = watch.record(played.start_ns)
    last_ns = max((result.times.last_token_ns or 0 for result in played.results if result.times), default=0)
    steps = await engine.iterations(last_ns)
    directory = write_run(common, played, steps, repeat, started_at, engine.backend, out, seen)
    failed = sum(bool(result.error_type) for result in played.results)
    _say(f"{what}: {len(requests) - failed} requests ok, {failed} failed: {directory}")
    return directory, played.death


def _say(line: str) -> None:
    print(line, flush=True)
