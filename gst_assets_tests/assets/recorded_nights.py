"""A whole comparison without an engine: recorded H100 runs against a simulation on their profile, made slower. Not a
test module.

The shipped profile with every time half as long again, so that the simulation is plainly too slow; everything else is
real, in about 20 s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from gst_assets.contracts.documents import Hardware, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.contracts.tables import AttentionProfile, HostSpeed, MlpProfile, Overheads, write_table
from gst_assets.definitions import defs
from gst_assets.scenario import Scenario, load_scenario, resolve_path
from gst_assets.step_costs.bundle import Bundle, find_bundle, load_bundle

SCENARIO = "h100_8b_quarter"
SLOWER = 1.5


def write_profile(root: Path, *, scale: float = 1.0, **settings: Any) -> Path:
    """A profiling root with the shipped bundle of `SCENARIO` whose every time is `SLOWER * scale` times as long;
    returns `root`.

    `settings` replace those of the engine that was measured.
    """
    scenario = load_scenario(SCENARIO)
    assert scenario.profile.root is not None
    shipped = load_bundle(find_bundle(resolve_path(scenario.profile.root), scenario))
    assert shipped.overheads is not None
    longer = replace(
        shipped,
        mlp=_longer(shipped.mlp, scale),
        attention=_longer(shipped.attention, scale),
        overheads=_longer(shipped.overheads, scale),
        meta=shipped.meta.model_copy(
            update={"engine_settings": shipped.meta.engine_settings.model_copy(update=settings)}
        ),
    )
    return write_bundle(root, scenario, longer, shipped.meta.hardware)


def _longer(table: pd.DataFrame, scale: float) -> pd.DataFrame:
    times = [name for name in table.columns if name == "ns" or name.startswith("time_stats.")]
    return table.assign(**{name: table[name] * SLOWER * scale for name in times})


def write_bundle(root: Path, scenario: Scenario, made: Bundle, hardware: Hardware) -> Path:
    """A profiling root with that bundle of the scenario, as measured on `hardware`; returns `root`."""
    directory = root / scenario.hardware.hardware_id / scenario.model.name
    directory.mkdir(parents=True)
    assert made.overheads is not None
    tables = [(MlpProfile, made.mlp), (AttentionProfile, made.attention), (Overheads, made.overheads)]
    for model, frame in [*tables, *([(HostSpeed, made.host_speed)] if made.host_speed is not None else [])]:
        write_table(model, frame, directory)
    changes = {
        "hardware": hardware,
        "profiling_root": str(root),
        "sha256": directory_digests(directory, Kind.PROFILE.meta_name),
    }
    write_document(made.meta.model_copy(update=changes), directory / Kind.PROFILE.meta_name)
    return root


def materialize(
    root: Path, profiles: Path, selection: str, instance: dg.DagsterInstance | None = None, **changes: Any
) -> dg.ExecuteInProcessResult:
    """Materialize assets of `SCENARIO` in this process; `selection` as on the command line. Does not raise."""
    job = defs.resolve_implicit_global_asset_job_def()
    keys = dg.AssetSelection.from_string(selection).resolve(defs.resolve_asset_graph())
    return job.execute_in_process(
        asset_selection=sorted(keys),
        partition_key=SCENARIO,
        instance=instance,
        raise_on_error=False,
        run_config={
            "resources": {
                "artifacts": {"config": {"root": str(root)}},
                "profiling_root": {"config": {"root": str(profiles)}},
                "scenario": {"config": {"overrides": list(changes.get("overrides", []))}},
            }
        },
    )
