"""Which engine a scenario measures: its environment, its hardware, and opening it. What a backend does belongs to its
own module."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from gst_assets.contracts.documents import Hardware
from gst_assets.engine.hardware import check_hardware
from gst_assets.engine.protocol import Engine
from gst_assets.errors import EngineError
from gst_assets.scenario import CPU, Scenario


def engine_environment(scenario: Scenario) -> dict[str, str]:
    """Environment variables to be set before the engine's libraries are imported.

    Raises:
        EngineError: the scenario cannot be measured, or asks for more than this machine lets the process use.
    """
    match scenario.engine.backend:
        case "vllm":
            from gst_assets.engine import vllm_backend

            return vllm_backend.engine_environment(scenario)
        case "transformers":
            from gst_assets.engine import transformers_backend

            return transformers_backend.engine_environment(scenario)
        case "openai":
            return {}
        case _:
            raise _nothing_to_measure(scenario)


def engine_hardware(scenario: Scenario) -> Hardware:
    """The device the engine runs on: detected where it is this machine's, else as the scenario states it
    (`Hardware.stated`).

    Raises:
        EngineError: this machine has another device than the scenario names.
    """
    if scenario.engine.backend != "openai":
        return check_hardware(scenario.hardware, scenario.engine.tensor_parallel_size)
    wanted = scenario.hardware
    return Hardware(
        hardware_id=wanted.hardware_id,
        device_name=wanted.device_name or "not stated",
        device_count=1 if wanted.hardware_id == CPU else scenario.engine.tensor_parallel_size,
        stated=True,
    )


def open_engine(scenario: Scenario) -> AbstractAsyncContextManager[Engine]:
    """The scenario's engine, ready within the block and closed at its end. `engine_environment` must be set.

    Raises:
        EngineError: see the backends.
    """
    match scenario.engine.backend:
        case "vllm":
            from gst_assets.engine.vllm_backend import open_vllm_engine

            return open_vllm_engine(scenario)
        case "transformers":
            from gst_assets.engine.transformers_backend import open_transformers_engine

            return open_transformers_engine(scenario)
        case "openai":
            from gst_assets.engine.openai_backend import open_openai_engine

            return open_openai_engine(scenario)
        case _:
            raise _nothing_to_measure(scenario)


def _nothing_to_measure(scenario: Scenario) -> EngineError:
    return EngineError(
        f"engine.backend {scenario.engine.backend}: there is no engine to measure. Choose a scenario with backend vllm,"
        " transformers or openai; recorded runs are read by the asset real_request_metrics."
    )
