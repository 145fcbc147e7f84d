"""One start of the real engine and what the tests want to know of it, as JSON on the last line: `python -m ...
SCENARIO.json`.

A process of its own, since the engine needs its environment before torch is imported and the last part kills its
processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gst_assets.engine import metric_rows
from gst_assets.engine.launch import die_with_parent
from gst_assets.engine.protocol import EngineRequest, IterationField
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.engine.vllm_backend import VllmEngine, engine_environment, open_vllm_engine
from gst_assets.engine.vllm_worker import WorkerReport
from gst_assets.errors import EngineError
from gst_assets.scenario import read_resolved
from gst_assets_tests.engine.under_way import UnderWay, found_together, vllm_process


class WorkerProbe(WorkerReport):
    """Runs inside the engine's worker."""

    def probe_double(self, value: int) -> tuple[int, int]:
        return 2 * value, os.getpid()

    def probe_fail(self) -> None:
        raise ValueError("probe went wrong")


def plan(name: str, lengths: list[tuple[int, int]]) -> list[PlannedRequest]:
    """All at 0; (prompt tokens, tokens asked) each. The prompts depend on the position only."""
    return [
        PlannedRequest(
            EngineRequest(f"{name}-{index}", [(7 * index + k) % 8000 for k in range(prompt)], asked, 0), 0, "p"
        )
        for index, (prompt, asked) in enumerate(lengths)
    ]


def outcome(played: ReplayResult) -> dict[str, Any]:
    return {
        "error_types": [result.error_type for result in played.results],
        "error_msgs": [result.error_msg for result in played.results],
        "counts": [len(result.token_ids) for result in played.results],
        "sent": [result.send_ns is not None for result in played.results],
        "bunched": sum(result.num_bunched_messages for result in played.results),
        "death": played.death,
    }


async def play(
    engine: VllmEngine | UnderWay, planned: list[PlannedRequest], timeout_s: float = 60
) -> tuple[ReplayResult, dict[str, Any]]:
    played = await replay(engine, planned, request_timeout_s=timeout_s, may_stop_early=False)  # type: ignore[arg-type]
    return played, outcome(played)


async def session(scenario_file: Path) -> dict[str, Any]:
    scenario = read_resolved(scenario_file)
    facts: dict[str, Any] = {}
    async with open_vllm_engine(scenario, f"{__spec__.name}.WorkerProbe") as engine:
        facts["settings"] = engine.settings().model_dump()
        facts["rpc"] = await engine.collective_rpc("probe_double", 21)
        try:
            await engine.collective_rpc("probe_fail")
        except EngineError as error:
            facts["rpc_error"] = str(error)
        facts["pid"] = os.getpid()

        # One request that cannot finish in time, as it was due almost a minute ago, among three that can; then all is as
        # if it had never been.
        late, *others = plan("t", [(8, 1500), (8, 4), (8, 4), (8, 4)])
        late = replace(late, arrival_time_ns=-58 * 10**9)
        _, facts["timeout"] = await play(engine, [late, *others], timeout_s=60)
        twice = [await play(engine, plan(name, [(40, 12)])) for name in ("a", "b")]
        facts["after_timeout"] = twice[0][1]
        facts["same_tokens"] = twice[0][0].results[0].token_ids == twice[1][0].results[0].token_ids

        # More at once than the engine may run together, and more prompt than fits one step.
        lengths = [(60, 12)] * 40
        burst = await found_together(engine, plan("burst", lengths), request_timeout_s=300, may_stop_early=False)
        facts["burst"] = outcome(burst)
        last_ns = max(result.times.last_token_ns or 0 for result in burst.results if result.times)
        steps = await engine.iterations(last_ns)
        assert steps is not None
        inside = metric_rows.steps_inside(steps, burst)
        facts["burst_steps"] = {field.name: inside[:, field].tolist() for field in IterationField}
        facts["burst_missing"] = metric_rows.steps_are_missing(steps, burst)
        facts["burst_prompt_tokens"] = sum(prompt for prompt, _ in lengths)
        facts["burst_stamps"] = [
            [result.send_ns, result.times.queued_ns, result.times.scheduled_ns, result.times.first_token_ns,
             result.token_times_ns[0], result.times.last_token_ns, result.token_times_ns[-1]]
            for result in burst.results if result.times
        ]  # fmt: skip
        facts["preemptions"] = [result.times.num_preemptions for result in burst.results if result.times]

        # The engine's process is killed while eight requests are under way and one is still to come.
        doomed = [*plan("d", [(8, 1900)] * 8), PlannedRequest(EngineRequest("late", [1], 1, 0), 3_600_000_000_000, "p")]
        watched = UnderWay(engine)
        playing = asyncio.create_task(play(watched, doomed, timeout_s=7200))
        await watched.when(with_token=8)
        os.kill(vllm_process(), signal.SIGKILL)
        _, facts["death"] = await playing  # noticed: neither the late one nor a timeout is waited for
        _, facts["after_death"] = await play(engine, plan("z", [(8, 4), (8, 4)]))
    return facts


if __name__ == "__main__":
    die_with_parent()
    os.environ.update(engine_environment(read_resolved(Path(sys.argv[1]))))
    print("facts " + json.dumps(asyncio.run(session(Path(sys.argv[1])))), flush=True)
