"""The project's code location with tiny workloads and a made-up profile, for the daemon of a test: same assets, jobs,
schedules and sensors."""

from __future__ import annotations

import dagster as dg

from gst_assets import definitions
from gst_assets.resources import ScenarioResource, VidurProfilingRoot

PROFILES_VARIABLE = "GST_TEST_PROFILES"
TINY = [
    "workload.num_requests=6",
    "workload.num_decode_tokens=4",
    "replay.repeats=1",
    "replay.warmup_requests=1",
]

defs = dg.Definitions(
    assets=definitions.defs.assets,
    jobs=definitions.defs.jobs,
    schedules=definitions.defs.schedules,
    sensors=definitions.defs.sensors,
    resources={
        **(definitions.defs.resources or {}),
        "scenario": ScenarioResource(overrides=TINY),
        "profiling_root": VidurProfilingRoot(root=dg.EnvVar(PROFILES_VARIABLE)),
    },
    executor=definitions.defs.executor,
)
