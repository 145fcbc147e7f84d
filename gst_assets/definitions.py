"""The one Definitions object and nothing else."""

from __future__ import annotations

import dagster as dg

from gst_assets.assets import (
    capacity,
    comparisons,
    profiles,
    real_runs,
    regression,
    sweeps,
    vidur_runs,
    workloads,
)
from gst_assets.automation import JOBS, SCHEDULES, SENSORS, as_product
from gst_assets.executors import chosen_executor
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot

defs = dg.Definitions(
    assets=as_product(
        dg.load_assets_from_modules(
            [workloads, real_runs, profiles, vidur_runs, sweeps, comparisons, regression, capacity]
        )
    ),
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources={
        "scenario": ScenarioResource(),
        "artifacts": ArtifactRoot(),
        "tokenizer": TokenizerResource(),
        "engine": EngineResource(),
        "profiling_root": VidurProfilingRoot(),
    },
    executor=chosen_executor(),
)
