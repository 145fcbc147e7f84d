"""One start of the real engine with prefix caching: the tokens it took from its cache, each time as JSON on a line:
`python -m ... SCENARIO.json WORKLOAD [SCENARIO.json WORKLOAD ...]`.

The first workload is played as the driver plays it; then, in a cache that was emptied, the requests of each workload
one by one; then some that begin with the same blocks, of which the steps are reported. The scenarios differ in their
workloads only. A process of its own, since the engine needs its environment before torch is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gst_assets.engine.launch import die_with_parent
from gst_assets.engine.plays import Play, planned_requests, read_play
from gst_assets.engine.protocol import EngineRequest, IterationField
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.engine.vllm_backend import engine_environment, open_vllm_engine
from gst_assets.scenario import Scenario, read_resolved
from gst_assets_tests.engine.under_way import found_together

SHARED_BLOCKS = 2


def cached(played: ReplayResult) -> list[int | None]:
    return [result.times.num_cached_tokens if result.times else None for result in played.results]


async def session(scenarios: list[Scenario], workloads: list[Path]) -> None:
    options: dict[str, Any] = {"request_timeout_s": 60, "may_stop_early": False}
    asked = [
        read_play(Play(scenario, workload, "prefix"))[1]
        for scenario, workload in zip(scenarios, workloads, strict=True)
    ]
    async with open_vllm_engine(scenarios[0]) as engine:
        together = await replay(engine, planned_requests(asked[0], scenarios[0], 0), **options)
        say(cached(together))
        for place, (scenario, requests) in enumerate(zip(scenarios, asked, strict=True), start=1):
            await engine.forget()
            alone = []
            for one in planned_requests(requests, scenario, place):
                alone += cached(await replay(engine, [PlannedRequest(one.request, 0, one.prompt_id)], **options))
            say(alone)
        await engine.forget()
        began_ns = time.monotonic_ns()
        played = await found_together(engine, alike(scenarios[0].engine.block_size), **options)
        steps = await engine.iterations(max(result.times.last_token_ns for result in played.results))
        steps = steps[steps[:, IterationField.SCHEDULED_NS] >= began_ns]
        say(steps[:, [IterationField.DECODE_REQUESTS, IterationField.REREAD_CONTEXT_TOKENS]].tolist())


def alike(block_size: int) -> list[PlannedRequest]:
    """Four requests that begin with the same blocks."""
    beginning = list(range(500, 500 + SHARED_BLOCKS * block_size))
    return [
        PlannedRequest(EngineRequest(f"alike-{n}", [*beginning, *range(9 * n, 9 * n + 9)], 40 - 5 * n, n), 0, "")
        for n in range(4)
    ]


def say(found: list[Any]) -> None:
    print("facts " + json.dumps(found), flush=True)


if __name__ == "__main__":
    die_with_parent()
    asked = [read_resolved(Path(one)) for one in sys.argv[1::2]]
    os.environ.update(engine_environment(asked[0]))
    asyncio.run(session(asked, [Path(one) for one in sys.argv[2::2]]))
