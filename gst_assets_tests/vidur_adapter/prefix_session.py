"""One start of the real engine with prefix caching: the tokens it took from its cache, as JSON on the last line:
`python -m ... SCENARIO.json WORKLOAD`.

The workload is played as the driver plays it; then, in a cache that was emptied, each request alone; then some that
begin with the same blocks, of which the steps are reported. A process of its
own, since the engine needs its environment before torch is imported.
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
from gst_assets.scenario import read_resolved

SHARED_BLOCKS = 2


def cached(played: ReplayResult) -> list[int | None]:
    return [result.times.num_cached_tokens if result.times else None for result in played.results]


async def session(scenario_file: Path, workload: Path) -> dict[str, Any]:
    scenario = read_resolved(scenario_file)
    _, requests = read_play(Play(scenario, workload, "prefix"))
    async with open_vllm_engine(scenario) as engine:
        options = {"request_timeout_s": 60, "may_stop_early": False}
        together = await replay(engine, planned_requests(requests, scenario, 0), **options)
        await engine.forget()
        alone = []
        for one in planned_requests(requests, scenario, 1):
            alone += cached(await replay(engine, [PlannedRequest(one.request, 0, one.prompt_id)], **options))
        await engine.forget()
        began_ns, size = time.monotonic_ns(), scenario.engine.block_size
        beginning = list(range(500, 500 + SHARED_BLOCKS * size))
        alike = [
            PlannedRequest(EngineRequest(f"alike-{n}", [*beginning, *range(9 * n, 9 * n + 9)], 40 - 5 * n, n), 0, "")
            for n in range(4)
        ]
        played = await replay(engine, alike, **options)
        steps = await engine.iterations(max(result.times.last_token_ns for result in played.results))
        steps = steps[steps[:, IterationField.SCHEDULED_NS] >= began_ns]
        columns = [IterationField.DECODE_REQUESTS, IterationField.REREAD_CONTEXT_TOKENS]
        return {"together": cached(together), "alone": alone, "alike": steps[:, columns].tolist()}


if __name__ == "__main__":
    die_with_parent()
    os.environ.update(engine_environment(read_resolved(Path(sys.argv[1]))))
    print("facts " + json.dumps(asyncio.run(session(Path(sys.argv[1]), Path(sys.argv[2])))), flush=True)
