"""Which engine a scenario opens; the backends themselves have tests of their own."""

from __future__ import annotations

import pytest

from gst_assets.engine.backends import engine_environment, engine_hardware, open_engine
from gst_assets.engine.vllm_backend import engine_environment as vllm_environment
from gst_assets.errors import EngineError
from gst_assets.scenario import load_scenario


def test_vllm_keeps_its_environment_and_looks_at_the_hardware() -> None:
    scenario = load_scenario("smoke")
    assert engine_environment(scenario) == vllm_environment(scenario)
    assert not engine_hardware(scenario).stated


def test_a_servers_hardware_is_as_stated_whatever_this_machine_has() -> None:
    hardware = engine_hardware(load_scenario("openai_server"))
    assert (hardware.hardware_id, hardware.stated) == ("a100", True)
    assert "A100" in hardware.device_name
    anything = load_scenario("smoke", ["engine.backend=openai", "engine.server={base_url: 'http://x'}"])
    assert engine_hardware(anything).device_name == "not stated"


def test_recorded_runs_are_nothing_to_measure() -> None:
    recorded = load_scenario("smoke", ["engine.backend=recorded", "engine.recorded=data/recorded/x"])
    for use in (engine_environment, open_engine):
        with pytest.raises(EngineError, match=r"engine\.backend recorded: there is no engine to measure"):
            use(recorded)
