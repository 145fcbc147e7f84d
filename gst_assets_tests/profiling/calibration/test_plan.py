"""What calibration plays fits the engine and the model."""

from __future__ import annotations

import pytest

from gst_assets.profiling.calibration import (
    ladder_sizes,
)
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets_tests.engine.memory_engine import SETTINGS
from gst_assets_tests.profiling.calibration.made_rounds import (
    CAPTURED,
    SCENARIO,
)


def test_the_ladder_has_every_graph_every_size_asked_for_and_whole_steps() -> None:
    asked = SCENARIO.profile.calibration_prefill_sizes
    assert ladder_sizes(SCENARIO, SETTINGS) == sorted({*asked, 512, 1024})
    assert ladder_sizes(SCENARIO, CAPTURED) == sorted({1, 2, 4, 8, 16, 32, 64, *asked, 512, 1024})
    short = SETTINGS.model_copy(update={"max_model_len": 512})
    assert ladder_sizes(SCENARIO, short) == sorted(size for size in asked if size < 512)


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_has_a_ladder_that_its_model_takes(name: str) -> None:
    scenario = load_scenario(name)
    engine, model = scenario.engine, scenario.model
    limits = {"max_num_batched_tokens": engine.max_num_batched_tokens, "max_model_len": model.max_model_len}
    sizes = ladder_sizes(scenario, SETTINGS.model_copy(update=limits))
    assert len(sizes) >= 4 and sizes == sorted(set(sizes)) and sizes[-1] < model.max_model_len
