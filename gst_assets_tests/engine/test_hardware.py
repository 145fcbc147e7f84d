"""The machine is the one the scenario names, or one clear error says what to do."""

from __future__ import annotations

import pytest

from gst_assets.engine import hardware
from gst_assets.errors import EngineError
from gst_assets.provenance import cpu_name
from gst_assets.scenario import HardwareSection


def test_the_processor_is_reported() -> None:
    found = hardware.check_hardware(HardwareSection(hardware_id="cpu"))
    assert (found.hardware_id, found.device_name, found.device_count) == ("cpu", cpu_name(), 1)


def test_another_processor_than_named_is_an_error() -> None:
    with pytest.raises(EngineError, match="contains 'Cray-1', but this machine has"):
        hardware.check_hardware(HardwareSection(hardware_id="cpu", device_name="Cray-1"))


def test_a_gpu_that_is_not_there_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError) as raised:
        hardware.check_hardware(HardwareSection(hardware_id="a100", device_name="A100"))
    message = str(raised.value)
    assert "hardware_id a100: expected a GPU named like 'A100', but this machine has none" in message
    assert cpu_name() in message
    assert "Choose a scenario with hardware_id cpu" in message and "gst measure" in message


def test_another_gpu_than_named_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "present_gpus", lambda: ["NVIDIA H200", "NVIDIA H200"])
    with pytest.raises(EngineError, match="contains 'A100', but this machine has 'NVIDIA H200'"):
        hardware.check_hardware(HardwareSection(hardware_id="a100", device_name="A100"))
    found = hardware.check_hardware(HardwareSection(hardware_id="h200", device_name="H200"))
    assert (found.device_name, found.device_count) == ("NVIDIA H200", 1)


def test_an_engine_on_several_gpus_needs_as_many_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = HardwareSection(hardware_id="h100x2", device_name="H100")
    names = ["NVIDIA H100", "NVIDIA H100", "NVIDIA H200"]
    monkeypatch.setattr(hardware, "present_gpus", lambda: names)
    assert hardware.check_hardware(wanted, 2).device_count == 2
    names[1] = "NVIDIA H100 PCIe"
    with pytest.raises(EngineError, match=r"GPUs are not alike \(NVIDIA H100, NVIDIA H100 PCIe\)"):
        hardware.check_hardware(wanted, 2)
    with pytest.raises(EngineError, match="contains 'H100', but this machine has 'NVIDIA H200'"):
        hardware.check_hardware(wanted, 3)
    del names[1:]
    with pytest.raises(EngineError, match="tensor_parallel_size 2: needs as many GPUs, but this machine shows 1"):
        hardware.check_hardware(wanted, 2)


def test_fp8_needs_a_gpu_that_multiplies_it() -> None:
    for capability in ((8, 9), (9, 0), (10, 0)):
        hardware.check_fp8_units("a GPU", capability)
    with pytest.raises(EngineError) as raised:
        hardware.check_fp8_units("NVIDIA A100-SXM4-80GB", (8, 0))
    message = str(raised.value)
    assert message.startswith(
        "model.quantization fp8: NVIDIA A100-SXM4-80GB has compute capability 8.0, but FP8 matrix"
    )
    assert "come with 8.9 and higher" in message and "Set model.quantization=null, or measure on such" in message
    with pytest.raises(EngineError, match="a GPU has an unknown compute capability"):
        hardware.check_fp8_units("a GPU", None)
