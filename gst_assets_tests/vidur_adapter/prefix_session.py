"""One start of the real engine with prefix caching: the tokens it took from its cache, as JSON on the last line:
`python -m ... SCENARIO.json WORKLOAD`.

The workload is played as the driver plays it; then, in a cache that was emptied, each request alone. A process of its
own, since the engine needs its environment before torch is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from gst_assets.engine.launch import die_with_parent
from gst_assets.engine.plays import Play, planned_requests, read_play
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.engine.vllm_backend import engine_environment, open_vllm_engine
from gst_assets.scenario import read_resolved


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
        return {"together": cached(together), "alone": alone}


if __name__ == "__main__":
    die_with_parent()
    os.environ.update(engine_environment(read_resolved(Path(sys.argv[1]))))
    print("facts " + json.dumps(asyncio.run(session(Path(sys.argv[1]), Path(sys.argv[2])))), flush=True)
