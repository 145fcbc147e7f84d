"""A whole comparison without an engine: a recorded H200 run against a simulation on a made-up profile. Not a test module.

The profile is synthetic, so the size of the errors means nothing; everything that happens with them is real, in about 20 s.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from gst_assets.contracts.documents import Hardware, Hydra, ProfileMeta, write_document
from gst_assets.contracts.store import directory_digests
from gst_assets.contracts.tables import AttentionProfile, HostSpeed, MlpProfile, Overheads, write_table
from gst_assets.definitions import defs
from gst_assets.engine.recorded import list_recorded
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets_tests.vidur_adapter.support import Meta, SyntheticBundle, bundle, step_row, term_row

SCENARIO = "h200_spaced"
MADE_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def _asynchronous_overheads() -> list[dict[str, Any]]:
    """Terms of an engine that schedules asynchronously, by formulas."""
    mixed = [("mixed", 8), ("mixed", 64), ("mixed", 448), ("mixed_eager", 600), ("mixed_eager", 2000)]
    rows = [step_row("decode", 0, 0, n, 256 * n, 1_500_000 + 20_000 * n, "host") for n in (1, 8, 40)]
    rows += [step_row("decode", 0, 0, n, 256 * n, 100_000 + 5_000 * n, "process") for n in (1, 8, 40)]
    rows += [
        step_row(kind, 1, tokens, n, 256 * n, 6_000_000 + 5_000 * tokens + 20_000 * n, "host")
        for kind, tokens in mixed
        for n in (0, 8, 40)
    ]
    rows += [step_row("mixed", 1, 64, 0, 0, 7_500_000, "host_after_idle")]
    rows += [
        step_row(
            kind, min(tokens, 1), tokens, 1 - min(tokens, 1), 0, 2_000_000 + 7_000_000 * min(tokens, 1), "turnaround"
        )
        for kind, tokens in (("decode", 0), ("mixed", 64), ("mixed_eager", 600))
    ]
    rows += [step_row("decode", 0, 0, n, 0, 500_000, "device") for n in (1, 40)]
    rows += [step_row(kind, 1, tokens, 0, 0, 500_000, "device") for kind, tokens in mixed]
    return [*rows, term_row("handover", 64, 0, 300_000), term_row("delivery", 0, 1, 100_000)]


def _host_speed() -> pd.DataFrame:
    """Three seconds of a host whose speed does not change."""
    frame = pd.DataFrame({"time_ns": range(0, 3_000_000_000, 100_000_000), "ratio": 1.0})
    frame["has_prefill"] = [place % 2 == 0 for place in range(len(frame))]
    return frame.astype({"time_ns": "Int64"})


def write_profile(root: Path, *, scale: float = 1.0) -> Path:
    """A profiling root with a bundle for `SCENARIO` whose operators take `scale` times a formula; returns `root`."""
    scenario = load_scenario(SCENARIO)
    recorded = list_recorded(PROJECT_ROOT / "data" / "recorded" / SCENARIO)[0].meta
    made = bundle(scenario, scale=scale, overheads=_asynchronous_overheads())
    made = replace(made, meta=Meta(recorded.engine_settings), host_speed=_host_speed())
    return write_bundle(root, scenario, made, recorded.hardware)


def write_bundle(root: Path, scenario: Scenario, made: SyntheticBundle, hardware: Hardware) -> Path:
    """A profiling root with a made-up bundle of the scenario; returns `root`."""
    directory = root / scenario.hardware.hardware_id / scenario.model.name
    directory.mkdir(parents=True)
    assert made.overheads is not None
    tables = [(MlpProfile, made.mlp), (AttentionProfile, made.attention), (Overheads, made.overheads)]
    for model, frame in [*tables, *([(HostSpeed, made.host_speed)] if made.host_speed is not None else [])]:
        write_table(model, frame, directory)
    meta = ProfileMeta(
        run_id="synthetic",
        started_at=MADE_AT,
        ended_at=MADE_AT,
        git_commit=None,
        git_dirty=None,
        model=scenario.model.name,
        hardware=hardware,
        env={},
        params=scenario.model_dump(mode="json"),
        hydra=Hydra(config_path=scenario.file, config_name=scenario.name, overrides=[]),
        sha256=directory_digests(directory, "run_meta.json"),
        profiling_root=str(root),
        profile_key="synthetic",
        engine_settings=made.meta.engine_settings,
        calibration_sha256={"synthetic": "0" * 64},
    )
    write_document(meta, directory / "run_meta.json")
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
