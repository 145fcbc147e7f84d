"""The search for capacity in the simulation: each probe is a simulation of its own. What is searched for is in
`search`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from gst_assets.capacity.search import CapacitySearch, probe_told, probe_workload, seen_in_tables
from gst_assets.scenario import Capacity, Scenario
from gst_assets.vidur_adapter.simulate import simulate

if TYPE_CHECKING:
    from gst_assets.step_costs.bundle import Bundle


def search_simulated(
    scenario: Scenario,
    settings: Capacity,
    lengths: pd.DataFrame,
    bundle: Bundle,
    variant: str,
    *,
    cache_dir: Path | None,
    log: Callable[[str], None],
) -> CapacitySearch:
    """Search the simulated capacity for requests of `lengths` (`contracts.tables.TraceLengths`); `log` is called for
    each probe.

    Raises:
        SimulationError, ProfileError: as `simulate`.
    """
    search = CapacitySearch(settings, variant)
    while (rate := search.next_rate_per_s()) is not None:
        drawn, intervals = probe_workload(lengths, settings, rate)
        result = simulate(scenario, drawn, intervals, bundle, variant, cache_dir=cache_dir)
        log(probe_told(search.record(seen_in_tables(result.requests, has_lateness=False))))
    return search
