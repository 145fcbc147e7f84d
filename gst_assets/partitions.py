"""The one partitions definition: a partition is a scenario (design decision: a measurement cannot be backfilled into
the past)."""

from __future__ import annotations

import dagster as dg

from gst_assets.scenario import scenario_names

SCENARIOS = dg.StaticPartitionsDefinition(scenario_names())
