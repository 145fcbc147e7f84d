"""A bundle in the artifact root serves the runs of today, whatever version measured it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.assets.profiles import bundle_of
from gst_assets.assets.real_runs import NAMES
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.engine import hardware
from gst_assets.errors import ProfileError
from gst_assets.resources import EngineResource
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import load_bundle
from gst_assets_tests.assets.test_recorded import WORKLOAD, refusal
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
    bundle, is_reused = bundle_of(store, scenario, EngineResource(), said.append)
    assert is_reused and said[0].startswith("reusing ")
    today = hardware.check_hardware(scenario.hardware)
    assert bundle.meta.hardware.device_count == today.device_count == 1


@pytest.mark.parametrize("together", ["true", "false"])
def test_a_profile_of_another_dtype_is_not_displaced_and_no_engine_is_started_for_it(
    tmp_path: Path, together: str
) -> None:
    store = ArtifactStore(tmp_path)
    path = tables.write_bundle(store.path(Kind.PROFILE, "cpu/qwen3-tiny"), load_scenario("smoke"))
    asked = [*WORKLOAD, *NAMES, "vidur_profile"]
    overrides = ["model.dtype=bfloat16", f"replay.between_calibration={together}"]
    error = refusal(tmp_path, asked, "smoke", overrides)
    assert isinstance(error, ProfileError)
    assert f"{path}: holds a profile with model.dtype float32, but the scenario's is bfloat16" in str(error)
    assert "give the scenario a model.name of its own (such as qwen3-tiny-bfloat16), which names the folder" in str(
        error
    )
    assert not (tmp_path / Kind.REAL_RUN.value).exists() and load_bundle(path).meta.engine_settings.dtype == "float32"


def test_a_profile_that_the_scenario_names_is_checked_before_an_engine_is_started(tmp_path: Path) -> None:
    other = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    tables.write_bundle(tmp_path / "profiles" / "cpu" / "qwen3-tiny", other)
    overrides = [f"profile.root={tmp_path / 'profiles'}", "replay.between_calibration=false"]
    error = refusal(tmp_path / "root", [*WORKLOAD, *NAMES, "vidur_profile"], "smoke", overrides)
    assert "measured at tensor parallel degree 2" in str(error)
    assert not (tmp_path / "root" / Kind.REAL_RUN.value).exists()
