"""The real engine on one resolved scenario after the other, and what it says of each model, as JSON on a line each:
`python -m ... SCENARIO.json ...`.

A process of its own, since the engine needs its environment before torch is imported; one for all, since that import
takes longer than the rest of it. The scenarios differ in their model only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from gst_assets.engine.launch import die_with_parent
from gst_assets.engine.replay import replay
from gst_assets.engine.vllm_backend import engine_environment, open_vllm_engine
from gst_assets.profiling.operator_tables import _facts
from gst_assets.profiling.worker_ops import MODEL_OPERATORS, layer_operators
from gst_assets.scenario import read_resolved
from gst_assets_tests.engine.engine_session import plan


async def session(scenario_file: Path) -> dict[str, Any]:
    scenario = read_resolved(scenario_file)
    async with open_vllm_engine(scenario, "gst_assets_tests.profiling.checked_run.CheckedTimer") as engine:
        played = await replay(engine, plan("a", [(40, 6), (9, 3)]), request_timeout_s=60, may_stop_early=False)
        wanted = [*layer_operators(scenario.model.geometry.num_experts is not None), *MODEL_OPERATORS]
        ((times,),) = await engine.collective_rpc("gst_time_batches", [[[0, 16]]], 1, 2, wanted)
        return {
            "reported": engine.settings().architecture,
            "facts": await _facts(engine, scenario),
            "counts": [len(result.token_ids) for result in played.results],
            "timed": sorted(times[-1]),
        }


if __name__ == "__main__":
    die_with_parent()
    os.environ.update(engine_environment(read_resolved(Path(sys.argv[1]))))
    for name in sys.argv[1:]:
        print("facts " + json.dumps(asyncio.run(session(Path(name)))), flush=True)
