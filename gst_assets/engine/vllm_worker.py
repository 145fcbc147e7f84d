"""What vLLM's worker process reports about itself: the settings it really runs with. Called through `collective_rpc`.

A class of a further package that is to run inside the worker derives from `WorkerReport`, since vLLM takes one extension only.
Importing this module imports nothing of vLLM.
"""

from __future__ import annotations

from typing import Any


class WorkerReport:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    vllm_config: Any
    model_runner: Any

    def report_settings(self) -> dict[str, Any]:
        """The settings of `contracts.documents.EngineSettings` that vLLM knows, from the configuration this worker runs with."""
        config = self.vllm_config
        model, scheduler, cache = config.model_config, config.scheduler_config, config.cache_config
        layers = config.compilation_config.static_forward_context.values()
        backends = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
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
        }
