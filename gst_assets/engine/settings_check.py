"""Whether a running engine has the settings of the scenario. The backends find them out."""

from __future__ import annotations

from typing import Any

from gst_assets.contracts.documents import EngineSettings
from gst_assets.errors import EngineError
from gst_assets.scenario import Scenario


def check_settings(scenario: Scenario, found: EngineSettings, *, is_recorded: bool = False) -> None:
    """The running engine has the scenario's settings; those the scenario leaves open (null), or the engine
    does not report, are not compared. `is_recorded`: `found` is what a recorded run was measured with.

    Raises:
        EngineError: names the first setting that differs, what was asked, what the engine runs with, and the remedy.
    """
    engine, model = scenario.engine, scenario.model
    if found.architecture is not None and found.architecture != model.geometry.architecture:
        raise EngineError(
            f"model: the scenario's is a {model.geometry.architecture}, but {found.backend} {found.engine_version} runs"
            f" a {found.architecture}. Set model.config to what model.checkpoint holds."
        )
    if found.quantization != model.quantization:
        kernels = f" ({found.quantized_kernels})" if found.quantized_kernels else ""
        remedy = (
            f"Set model.quantization={found.quantization or 'null'}, or name a model.checkpoint for"
            f" {model.quantization or 'no quantisation'}"
            if found.quantization in (None, "fp8")
            else "Name a model.checkpoint in bfloat16 or float16; for model.quantization=fp8, on a GPU with FP8 units"
        )
        raise EngineError(
            f"model.quantization: the scenario asks for {model.quantization or 'none'}, but {found.backend}"
            f" {found.engine_version} runs with {found.quantization or 'none'}{kernels}. {remedy}."
        )
    asked: dict[str, Any] = {
        "model.dtype": model.dtype,
        "model.max_model_len": model.max_model_len,
        "engine.max_num_seqs": engine.max_num_seqs,
        "engine.max_num_batched_tokens": engine.max_num_batched_tokens,
        "engine.block_size": engine.block_size,
        "engine.enable_prefix_caching": engine.enable_prefix_caching,
        "engine.async_scheduling": engine.async_scheduling,
        "engine.enforce_eager": engine.enforce_eager,
    }
    if found.tensor_parallel_size is not None:
        asked["engine.tensor_parallel_size"] = engine.tensor_parallel_size
    if engine.num_kv_blocks is not None:
        asked["engine.num_kv_blocks"] = engine.num_kv_blocks
    got = {name: getattr(found, name.split(".")[1]) for name in asked}
    if engine.cudagraph_max_capture_size is not None and not engine.enforce_eager:
        asked["engine.cudagraph_max_capture_size"] = engine.cudagraph_max_capture_size
        got["engine.cudagraph_max_capture_size"] = max(found.cudagraph_capture_sizes, default=0)
    for name, value in asked.items():
        if got[name] != value:
            wanted, runs_with = in_yaml(value), in_yaml(got[name])
            other = "point engine.recorded to runs of its own" if is_recorded else f"use a build that supports {wanted}"
            raise EngineError(
                f"{name}: the scenario asks for {wanted}, but {found.backend} {found.engine_version} runs with"
                f" {runs_with}. The simulation would assume other settings than were measured: set {name}={runs_with}"
                f" in the scenario, or {other}."
            )
    if not found.enable_chunked_prefill:
        raise EngineError(
            f"{found.backend} {found.engine_version} runs without chunked prefill, which the simulation assumes. Use a"
            " model and build that support it."
        )


def in_yaml(value: object) -> str:
    """A setting's value as a scenario's file and an override spell it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
