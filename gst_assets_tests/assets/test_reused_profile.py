"""A bundle in the artifact root serves the runs of today, whatever version measured it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.assets.profiles import bundle_of
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.engine import hardware
from gst_assets.resources import EngineResource
from gst_assets.scenario import load_scenario
from gst_assets_tests.profiling import tables


def test_a_bundle_that_counted_the_gpus_of_its_host_has_the_devices_of_the_runs_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulations take their hardware from it, and the gate compares that with the runs'."""
    scenario = load_scenario("smoke", ["hardware.hardware_id=h100", "hardware.device_name=Formula"])
    store = ArtifactStore(tmp_path)
    path = tables.write_bundle(store.path(Kind.PROFILE, "h100/qwen3-tiny"), scenario) / "run_meta.json"
    path.write_text(path.read_text().replace('"device_count": 1', '"device_count": 8'))
    monkeypatch.setattr(hardware, "present_gpus", lambda: ["Formula processor"] * 8)
    said: list[str] = []
    bundle, is_reused = bundle_of(store, scenario, EngineResource(), None, said.append)
    assert is_reused and said[0].startswith("reusing ")
    today = hardware.check_hardware(scenario.hardware)
    assert bundle.meta.hardware.device_count == today.device_count == 1
