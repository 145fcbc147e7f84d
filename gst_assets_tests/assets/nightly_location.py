"""The project's code location with small scenarios, for a daemon of a test: same assets, jobs, schedules and sensors."""

from __future__ import annotations

import dagster as dg

from gst_assets import definitions
from gst_assets.resources import ScenarioResource

SMALL = [
    "workload.num_requests=8",
    "workload.num_decode_tokens=6",
    "replay.repeats=1",
    "replay.warmup_requests=2",
    "profile.num_tokens=[1,32,512]",
    "profile.prefill_chunk_sizes=[1,512]",
    "profile.prefill_context_sizes=[0,1536]",
    "profile.decode_batch_sizes=[1,32]",
    "profile.decode_context_sizes=[1,2048]",
    "profile.operator_repeats=3",
    "profile.calibration_decode_batch_sizes=[1,32]",
    "profile.calibration_prefill_sizes=[8,448]",
    "profile.calibration_steps=5",
]

defs = dg.Definitions(
    assets=definitions.defs.assets,
    jobs=definitions.defs.jobs,
    schedules=definitions.defs.schedules,
    sensors=definitions.defs.sensors,
    resources={**(definitions.defs.resources or {}), "scenario": ScenarioResource(overrides=SMALL)},
    executor=definitions.defs.executor,
)
