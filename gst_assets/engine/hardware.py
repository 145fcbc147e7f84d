"""Which device is present, and whether it is the one the scenario names. Engine settings are compared by the
backends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from gst_assets.contracts.documents import Hardware
from gst_assets.errors import EngineError
from gst_assets.provenance import cpu_name
from gst_assets.scenario import CPU, HardwareSection

_FP8_CAPABILITY = (8, 9)
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
# Asked of another interpreter: naming a GPU through torch opens a context on it, which takes memory and forbids forking
# afterwards.
_LIST_GPUS = """
import json
try:
    import torch
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
except ImportError:
    names = []
print(json.dumps(names))
"""


def present_gpus() -> list[str]:
    """Names of the CUDA devices torch sees on this machine, in torch's order; empty without a GPU or without torch
    (takes seconds)."""
    asked = subprocess.run([sys.executable, "-c", _LIST_GPUS], capture_output=True, text=True, check=False)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"torch cannot list this machine's GPUs: {reason}. Check the driver with nvidia-smi.")
    return json.loads(asked.stdout.strip().splitlines()[-1])


def check_hardware(wanted: HardwareSection, tensor_parallel_size: int = 1) -> Hardware:
    """The devices an engine will use, if they are those the scenario names: for `cpu` the processor, else the first
    `tensor_parallel_size` GPUs.

    `device_count` is 1 for a CPU, whatever the number of processes on it, else the GPUs that are used.

    Raises:
        EngineError: no GPU, too few of them, or a device whose name does not contain `device_name`; says what was
            expected, what is present and the remedy.
    """
    if wanted.hardware_id == CPU:
        _check_name(wanted, cpu_name())
        return Hardware(hardware_id=CPU, device_name=cpu_name(), device_count=1)
    names = present_gpus()
    if not names:
        raise EngineError(
            f"hardware_id {wanted.hardware_id}: expected a GPU named like {wanted.device_name!r}, but this machine has"
            f" none (processor: {cpu_name()}). {_REMEDY}"
        )
    if len(names) < tensor_parallel_size:
        raise EngineError(
            f"engine.tensor_parallel_size {tensor_parallel_size}: needs as many GPUs, but this machine shows"
            f" {len(names)} ({', '.join(names)}). Lower engine.tensor_parallel_size to {len(names)} or less, or run on"
            " a host with more (CUDA_VISIBLE_DEVICES hides GPUs)."
        )
    used = names[:tensor_parallel_size]
    for name in used:
        _check_name(wanted, name)
    if len(set(used)) > 1:
        raise EngineError(
            f"engine.tensor_parallel_size {tensor_parallel_size}: the GPUs are not alike ({', '.join(used)}), and the"
            " slowest would decide. Choose equal ones with CUDA_VISIBLE_DEVICES."
        )
    return Hardware(
        hardware_id=wanted.hardware_id,
        device_name=used[0],
        device_count=tensor_parallel_size,
        driver=_nvidia_driver(),
    )


_REMEDY = (
    "Choose a scenario with hardware_id cpu, or run on the GPU host with "
    "`gst measure --workload DIR --scenario FILE.json --out DIR`."
)


def _check_name(wanted: HardwareSection, found: str) -> None:
    if wanted.device_name and wanted.device_name not in found:
        raise EngineError(
            f"hardware_id {wanted.hardware_id}: expected a device whose name contains {wanted.device_name!r}, but this"
            f" machine has {found!r}. {_REMEDY}"
        )


def check_fp8_units(device_name: str, capability: tuple[int, int] | None) -> None:
    """The GPU multiplies FP8 matrices. `capability` is its CUDA compute capability (major, minor); None: not known.

    Raises:
        EngineError: it does not; names the GPU, its capability, what was expected and the remedy.
    """
    if capability is None or capability < _FP8_CAPABILITY:
        has = "an unknown compute capability" if capability is None else f"compute capability {_dotted(capability)}"
        raise EngineError(
            f"model.quantization fp8: {device_name} has {has}, but FP8 matrix units come with"
            f" {_dotted(_FP8_CAPABILITY)} and higher (L4, L40S, H100, H200; not A100). Without them vLLM would store"
            " the weights in FP8 and compute in model.dtype, which is another engine. Set model.quantization=null, or"
            " measure on such a GPU."
        )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _nvidia_driver() -> str | None:
    """Version of the loaded NVIDIA kernel driver, e.g. `580.95.05`; None where it is not that driver."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group() if found else None
