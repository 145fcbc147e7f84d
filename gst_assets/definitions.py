"""The one Definitions object and nothing else."""

from __future__ import annotations

import dagster as dg

from gst_assets.assets import (
    capacities,
    comparisons,
    measurements,
    regression,
    sweeps,
    vidur_runs,
    workloads,
)
from gst_assets.assets.catalog import cataloged
from gst_assets.automation import JOBS, SCHEDULES, with_freshness
from gst_assets.executors import chosen_executor
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot
from gst_assets.sensors import SENSORS
from gst_assets.step_lines import LOGGER, step_lines

defs = dg.Definitions(
    assets=with_freshness(
        cataloged(
            dg.load_assets_from_modules(
                [workloads, measurements, vidur_runs, sweeps, comparisons, regression, capacities]
            )
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
    loggers={"console": dg.colored_console_logger, LOGGER: step_lines},
)
