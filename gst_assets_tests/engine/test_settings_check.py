"""The settings of a running engine against those of the scenario."""

from __future__ import annotations

from typing import Any

import pytest

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.settings_check import check_settings, in_yaml
from gst_assets.errors import EngineError
from gst_assets.scenario import load_scenario
from gst_assets_tests.engine.memory_engine import SETTINGS


def test_equal_settings_pass_and_open_ones_are_not_compared() -> None:
    check_settings(load_scenario("smoke"), SETTINGS)
    open_blocks = load_scenario("smoke", ["engine.num_kv_blocks=null"])
    check_settings(open_blocks, SETTINGS.model_copy(update={"num_kv_blocks": 77}))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.dtype", "bfloat16"),
        ("model.max_model_len", 1024),
        ("engine.max_num_seqs", 16),
        ("engine.max_num_batched_tokens", 2048),
        ("engine.block_size", 16),
        ("engine.num_kv_blocks", 1023),
        ("engine.enable_prefix_caching", True),
        ("engine.async_scheduling", True),
        ("engine.enforce_eager", False),
    ],
)
def test_every_setting_that_differs_is_named_with_both_values(name: str, found: Any) -> None:
    scenario = load_scenario("smoke")
    section, key = name.split(".")
    asked = getattr(getattr(scenario, section), key)
    with pytest.raises(EngineError) as raised:
        check_settings(scenario, SETTINGS.model_copy(update={key: found}))
    asked, found = in_yaml(asked), in_yaml(found)
    assert f"{name}: the scenario asks for {asked}, but memory 1 runs with {found}" in str(raised.value)
    assert f"set {name}={found} in the scenario, or use a build that supports {asked}." in str(raised.value)


def test_values_are_spelled_as_in_a_scenario() -> None:
    assert [in_yaml(value) for value in (True, False, None, 1, 0, "float16")] == [
        "true", "false", "null", "1", "0", "float16",
    ]  # fmt: skip


def test_the_degree_is_compared_where_the_engine_tells_it() -> None:
    scenario = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    for told in (None, 2):
        check_settings(scenario, SETTINGS.model_copy(update={"tensor_parallel_size": told}))
    with pytest.raises(EngineError, match=r"engine\.tensor_parallel_size: the scenario asks for 2, .* runs with 1"):
        check_settings(scenario, SETTINGS.model_copy(update={"tensor_parallel_size": 1}))


def test_runs_recorded_before_there_were_degrees_are_of_one_device() -> None:
    known = SETTINGS.model_dump(exclude={"tensor_parallel_size", "backend"})
    assert EngineSettings(backend="vllm", **known).tensor_parallel_size == 1
    assert EngineSettings(backend="transformers", **known).tensor_parallel_size == 1
    assert EngineSettings(backend="openai", **known).tensor_parallel_size is None


def test_chunked_prefill_and_the_captured_graphs_are_compared_too() -> None:
    with pytest.raises(EngineError, match="without chunked prefill"):
        check_settings(load_scenario("smoke"), SETTINGS.model_copy(update={"enable_chunked_prefill": False}))
    graphs = load_scenario("smoke", ["engine.enforce_eager=false", "engine.cudagraph_max_capture_size=512"])
    found = SETTINGS.model_copy(update={"enforce_eager": False, "cudagraph_capture_sizes": [1, 2, 256]})
    with pytest.raises(EngineError, match=r"cudagraph_max_capture_size: the scenario asks for 512, .* runs with 256"):
        check_settings(graphs, found)


def test_the_architecture_is_compared_where_the_engine_tells_it() -> None:
    check_settings(load_scenario("smoke"), SETTINGS.model_copy(update={"architecture": "Qwen3ForCausalLM"}))
    with pytest.raises(EngineError) as raised:
        check_settings(load_scenario("smoke"), SETTINGS.model_copy(update={"architecture": "LlamaForCausalLM"}))
    assert "model: the scenario's is a Qwen3ForCausalLM, but memory 1 runs a LlamaForCausalLM" in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "found", "kernels", "message"),
    [
        ("fp8", None, None,
         "asks for fp8, but memory 1 runs with none. Set model.quantization=null, or name a model.checkpoint for fp8."),
        (None, "fp8", "Cutlass", "asks for none, but memory 1 runs with fp8 (Cutlass). Set model.quantization=fp8, or"),
        ("fp8", "fp8_per_tensor, weights stored as int32", "MarlinKernel",
         "asks for fp8, but memory 1 runs with fp8_per_tensor, weights stored as int32 (MarlinKernel). Name a"
         " model.checkpoint in bfloat16 or float16; for model.quantization=fp8, on a GPU with FP8 units."),
        (None, "awq, weights stored as unknown", None, "asks for none, but memory 1 runs with awq"),
    ],
)  # fmt: skip
def test_quantisation_is_compared_and_a_fallback_is_named(
    asked: str | None, found: str | None, kernels: str | None, message: str
) -> None:
    gpu = ["hardware.hardware_id=h100", "hardware.device_name=H100", "model.dtype=float16"]
    scenario = load_scenario("smoke", [*gpu, f"model.quantization={asked or 'null'}"])
    told = SETTINGS.model_copy(update={"dtype": "float16", "quantization": found, "quantized_kernels": kernels})
    with pytest.raises(EngineError) as raised:
        check_settings(scenario, told)
    assert f"model.quantization: the scenario {message}" in str(raised.value)
    check_settings(scenario, told.model_copy(update={"quantization": asked}))


def test_settings_without_quantisation_are_written_as_before() -> None:
    assert not {"quantization", "quantized_kernels"} & set(SETTINGS.model_dump())
