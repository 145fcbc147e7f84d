"""What this package runs inside vLLM's worker process, called through `collective_rpc`: the report of the settings it
really runs with, and a repair without which a seeded request can end vLLM's CPU build.

A class of a further package that is to run inside the worker derives from `WorkerReport`, since vLLM takes one
extension only. Importing this module imports nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_COMMUNICATORS = (
    ("fi_pcie_ipc_ar_comm", "flashinfer_pcie"),
    ("fi_ar_comm", "flashinfer"),
    ("ca_comm", "custom"),
    ("symm_mem_comm", "symm_mem"),
    ("pynccl_comm", "nccl"),
)
"""Attributes of vLLM's communicator for NVIDIA GPUs (`device_communicators/cuda_communicator.py`), in the order in
which its `all_reduce` tries them for a tensor; each takes what its size limit allows."""


def all_reduce_ways(config: Any) -> str | None:
    """What may sum a layer's results over the ranks, in the order in which vLLM tries it, with commas; None at one
    rank."""
    if config.parallel_config.tensor_parallel_size == 1:
        return None
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group().device_communicator
    distributed = getattr(group, "dist_module", None)
    if distributed is not None:  # the CPU build's
        return "shared_memory" if type(distributed).__name__ == "_CPUSHMDistributed" else "gloo"
    ways = ["fused_with_norm"] if config.compilation_config.pass_config.fuse_allreduce_rms else []
    for attribute, name in _COMMUNICATORS:
        found = getattr(group, attribute, None)
        if found is not None and not found.disabled:
            ways.append(name)
    return ",".join(ways)


def expert_kernel_of(method: Any) -> str:
    """The class of what computes the experts of one layer, from its vLLM method (`FusedMoEMethodBase`): that of its
    kernel, of the function of 0.22.1's CPU build, or else of the method itself."""
    kernel = getattr(method, "moe_kernel", None)
    return type(getattr(method, "cpu_fused_moe", method) if kernel is None else kernel.fused_experts).__name__


_ONLINE_FP8 = "fp8_per_tensor"
"""vLLM's method that quantises weights in bfloat16 or float16 to FP8 as it starts, one scale for each projection."""
_E4M3 = "float8_e4m3fn"


def quantization_of(method: str | None, weights: Collection[str], kernels: Collection[str]) -> dict[str, str | None]:
    """`quantization` and `quantized_kernels` of `contracts.documents.EngineSettings`, from vLLM's name of the method,
    the types of the projections' weights, and the classes of the kernels that compute with them.

    `fp8` is said of weights that are all e4m3: where a GPU has no FP8 units, vLLM packs four of them into an integer
    for its Marlin kernels, which compute in the activations' type.
    """
    if method is None:
        return {"quantization": None, "quantized_kernels": None}
    is_fp8 = method == _ONLINE_FP8 and set(weights) == {_E4M3}
    name = "fp8" if is_fp8 else f"{method}, weights stored as {', '.join(sorted(set(weights)))}"
    return {"quantization": name, "quantized_kernels": ",".join(sorted(set(kernels)))}


class WorkerReport:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    vllm_config: Any
    model_runner: Any

    def report_settings(self) -> dict[str, Any]:
        """The settings of `contracts.documents.EngineSettings` that vLLM knows, from the configuration this worker runs
        with."""
        config = self.vllm_config
        model, scheduler, cache = config.model_config, config.scheduler_config, config.cache_config
        layers = config.compilation_config.static_forward_context.values()
        backends = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
        return {
            "architecture": model.architecture,
            "dtype": str(model.dtype).removeprefix("torch."),
            **self._quantization(),
            "max_model_len": model.max_model_len,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "block_size": cache.block_size,
            "num_kv_blocks": self.model_runner.kv_cache_config.num_blocks,
            "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "async_scheduling": bool(scheduler.async_scheduling),
            "enforce_eager": bool(model.enforce_eager),
            "cudagraph_capture_sizes": sorted(config.compilation_config.cudagraph_capture_sizes or []),
            "attention_backend": ",".join(sorted(backends)),
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "all_reduce": all_reduce_ways(config),
            "expert_kernel": self._expert_kernel(),
        }

    def _expert_kernel(self) -> str | None:
        """What computes the experts, with commas where layers differ; None where there are none."""
        from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

        methods = [getattr(module, "quant_method", None) for module in self.model_runner.get_model().modules()]
        kernels = {expert_kernel_of(method) for method in methods if isinstance(method, FusedMoEMethodBase)}
        return ",".join(sorted(kernels)) or None

    def _quantization(self) -> dict[str, str | None]:
        from vllm.model_executor.layers.linear import LinearBase

        modules = self.model_runner.get_model().modules()
        linears = [module for module in modules if isinstance(module, LinearBase)]
        return quantization_of(
            self.vllm_config.model_config.quantization,
            {_type_of_weights(linear) for linear in linears},
            {type(getattr(linear.quant_method, "fp8_linear", linear.quant_method)).__name__ for linear in linears},
        )

    def make_seeds_rewindable(self) -> None:
        """Let requests with a seed of their own have their prompt cut into chunks on vLLM's CPU build.

        After a step that processed only part of a prompt, vLLM (`GPUModelRunner._bookkeeping_sync`, 0.32.0) drops the
        token it sampled and winds the request's generator back through its offset. A CPU generator has none: it raises,
        and the engine dies. Here every generator gets an offset of its own kind: winding back means starting again from
        the seed, which is exact since no token was returned yet.
        """
        import torch

        class RewindableGenerator(torch.Generator):
            def get_offset(self) -> int:
                return 0

            def set_offset(self, offset: int) -> None:  # noqa: ARG002
                self.manual_seed(self.initial_seed())

        class Generators(dict[int, torch.Generator]):
            def __setitem__(self, index: int, generator: torch.Generator) -> None:
                if not isinstance(generator, RewindableGenerator):
                    seed = generator.initial_seed()
                    generator = RewindableGenerator(device="cpu")
                    generator.manual_seed(seed)
                super().__setitem__(index, generator)

        batch = self.model_runner.input_batch
        batch.generators = Generators(batch.generators)


def _type_of_weights(linear: Any) -> str:
    weight = getattr(linear, "weight", None)  # other methods have their own names for what they pack
    return "unknown" if weight is None else str(weight.dtype).removeprefix("torch.")
