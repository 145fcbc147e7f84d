"""Which tensor parallel degrees a scenario may ask for: those at which vLLM can share the model's layers."""

from __future__ import annotations

import pytest

from gst_assets.errors import ScenarioError
from gst_assets.scenario import load_scenario

EIGHT_HEADS = ["model.geometry.num_q_heads=8", "model.geometry.num_kv_heads=2"]


@pytest.mark.parametrize(
    ("degree", "overrides"),
    [
        (1, []),
        (2, []),
        (4, []),  # two key and value heads on four devices: each on two of them
        (8, EIGHT_HEADS),
        (3, ["model.geometry.num_q_heads=6", "model.geometry.num_kv_heads=3", "model.geometry.vocab_size=8256"]),
        (2, ["model.geometry.vocab_size=8191"]),  # padded to 8,192
    ],
)
def test_degrees_that_share_the_layers_evenly(degree: int, overrides: list[str]) -> None:
    scenario = load_scenario("smoke", [f"engine.tensor_parallel_size={degree}", *overrides])
    assert scenario.engine.tensor_parallel_size == degree


@pytest.mark.parametrize(
    ("degree", "overrides", "problem", "possible"),
    [
        (3, EIGHT_HEADS, "3 devices cannot share num_q_heads 8 evenly", "one of 1, 2, 4 and 8"),
        (
            6,
            ["model.geometry.num_q_heads=12", "model.geometry.num_kv_heads=4"],
            "6 devices can neither share num_kv_heads 4 evenly nor repeat them",
            "one of 1, 2 and 4",
        ),
        (
            4,
            ["model.geometry.mlp_hidden_size=770"],
            "4 devices cannot share mlp_hidden_size 770 evenly",
            "one of 1 and 2",
        ),
        (
            3,
            ["model.geometry.num_q_heads=6", "model.geometry.num_kv_heads=3"],
            "3 devices cannot share vocab_size 8192, padded to 8192, evenly",
            "1",
        ),
    ],
)
def test_others_are_refused_by_name_with_those_that_are_not(
    degree: int, overrides: list[str], problem: str, possible: str
) -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("smoke", [f"engine.tensor_parallel_size={degree}", *overrides])
    remedy = f"Set engine.tensor_parallel_size to {possible}"
    assert f"engine.tensor_parallel_size {degree} does not fit the model: {problem}. {remedy}" in str(raised.value)


def test_no_device_at_all_and_transformers_on_two_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"engine\.tensor_parallel_size: .*greater than or equal to 1"):
        load_scenario("smoke", ["engine.tensor_parallel_size=0"])
    with pytest.raises(ScenarioError, match="tensor_parallel_size 2: backend transformers runs on one device here"):
        load_scenario("transformers_cpu", ["engine.tensor_parallel_size=2"])


def test_one_device_leaves_what_was_written_before_as_it_was() -> None:
    plain, one = load_scenario("smoke"), load_scenario("smoke", ["engine.tensor_parallel_size=1"])
    assert "tensor_parallel_size" not in plain.engine.model_dump()
    assert plain.digest("engine") == one.digest("engine")
    assert plain.digest("engine") != load_scenario("smoke", ["engine.tensor_parallel_size=2"]).digest("engine")
