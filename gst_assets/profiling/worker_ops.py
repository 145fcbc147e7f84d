"""Operator times of the engine's own modules, taken inside the engine's worker process.

`OperatorTimer` is a vLLM worker extension: its methods run in the worker through `collective_rpc`, where `self.model_runner` holds the real
model, with its packed weights, and the real KV cache. It walks the model in the order of a real step and stamps the clock between
operators, so that weights, activations and KV blocks come from whatever level of the cache a real step finds them in. Grids, medians over
points and tables belong to `operators`. Torch and vLLM are imported inside the functions that run in the worker.

Not timed, because they are no part of the model: building attention metadata, copying inputs, sampling, and the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gst_assets.engine.vllm_worker import WorkerReport
from gst_assets.errors import ProfileError

LAYER_OPERATORS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn",
    "attn_kv_cache_save",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
)
"""Operators of one decoder layer by Vidur's names. `attn_rope` is q-norm, k-norm and rotary embedding; the norms include the residual add
that vLLM fuses into them; `attn` is the attention module's call less the KV-cache write it makes."""

MODEL_OPERATORS = ("embedding", "final_norm", "lm_head")
"""Operators that run once a step. Vidur has no column for them."""

Sequences = list[tuple[int, int]]
"""A batch: for each sequence its tokens already cached and its new tokens."""


class OperatorTimer(WorkerReport):
    """vLLM worker extension (`worker_extension_cls`). Every argument and result is plain data: it crosses processes."""

    def gst_operator_facts(self) -> dict[str, Any]:
        """What the running worker says about itself: device, attention backend and the shapes of its layers (per device).

        Raises:
            ProfileError: the attention backend writes the KV cache inside its attention kernel, or the model has several KV-cache groups.
        """
        import torch

        layer = self._gst_layers()[0]
        attention = layer.self_attn
        groups = self.model_runner.attn_groups
        if len(groups) != 1 or len(groups[0]) != 1:
            raise ProfileError(
                f"the engine has {sum(map(len, groups))} attention groups; the profiler supports models whose layers all attend alike."
            )
        backend = attention.attn.attn_backend
        if getattr(backend, "forward_includes_kv_cache_update", True):
            raise ProfileError(
                f"attention backend {backend.get_name()} writes the KV cache inside its attention kernel, so attn_kv_cache_save cannot be timed apart."
            )
        device = self.model_runner.device
        return {
            "device_type": device.type,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "attention_backend": backend.get_name(),
            "num_layers": len(self._gst_layers()),
            "hidden_size": attention.hidden_size,
            "num_q_heads": attention.total_num_heads,
            "num_kv_heads": attention.total_num_kv_heads,
            "head_dim": attention.head_dim,
            "mlp_hidden_size": layer.mlp.down_proj.input_size,
            "vocab_size": self.model_runner.model.lm_head.org_vocab_size,
            "tensor_parallel_size": self.vllm_config.parallel_config.tensor_parallel_size,
            "block_size": groups[0][0].kv_cache_spec.block_size,
            "num_kv_blocks": self.model_runner.kv_cache_config.num_blocks,
            "max_model_len": self.vllm_config.model_config.max_model_len,
        }

    def gst_time_batches(self, batches: Sequence[Sequence[Sequence[int]]], warmups: int) -> list[dict[str, int]]:
        """Time each of `batches` (`Sequences`) once, after `warmups` untimed passes.

        Returns for each batch the nanoseconds by operator; those of `LAYER_OPERATORS` are summed over all layers.
        """
        import torch
        from vllm.forward_context import set_forward_context

        timed: list[dict[str, int]] = []
        with torch.inference_mode():
            for batch in batches:
                inputs, metadata, slots = self._gst_prepare([(int(context), int(new)) for context, new in batch])
                with set_forward_context(
                    metadata, self.vllm_config, num_tokens=len(inputs["token_ids"]), slot_mapping=slots
                ):
                    for _ in range(warmups):
                        self._gst_walk(inputs, self._gst_clock())
                    clock = self._gst_clock()
                    self._gst_walk(inputs, clock)
                    timed.append(clock.totals())
        return timed

    def _gst_layers(self) -> list[Any]:
        return list(self.model_runner.model.model.layers)

    def _gst_prepare(self, sequences: Sequences) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Inputs, attention metadata from the backend's own builder, and slot mapping of one batch.

        Sequences take consecutive KV blocks and start over when the cache is full: a batch larger than the cache then reads blocks twice,
        but a whole cache apart.
        """
        import torch
        from vllm.v1.attention.backend import CommonAttentionMetadata

        runner = self.model_runner
        device = runner.device
        group = runner.attn_groups[0][0]
        block_size, num_blocks = group.kv_cache_spec.block_size, runner.kv_cache_config.num_blocks
        contexts = torch.tensor([context for context, _ in sequences], dtype=torch.int32)
        new = torch.tensor([tokens for _, tokens in sequences], dtype=torch.int32)
        lengths = contexts + new
        blocks = (lengths + block_size - 1) // block_size
        starts = torch.cumsum(blocks, 0) - blocks
        # Block 0 is the engine's null block.
        table = 1 + (starts[:, None] + torch.arange(int(blocks.max()))[None, :]) % (num_blocks - 1)
        positions = torch.cat([torch.arange(context, context + tokens) for context, tokens in sequences])
        owner = torch.repeat_interleave(torch.arange(len(sequences)), new)
        slots = table[owner, positions // block_size] * block_size + positions % block_size
        query_start = torch.zeros(len(sequences) + 1, dtype=torch.int32)
        query_start[1:] = torch.cumsum(new, 0)
        common = CommonAttentionMetadata(
            query_start_loc=query_start.to(device),
            query_start_loc_cpu=query_start,
            seq_lens=lengths.to(device),
            num_reqs=len(sequences),
            num_actual_tokens=len(positions),
            max_query_len=int(new.max()),
            max_seq_len=int(lengths.max()),
            block_table_tensor=table.to(torch.int32).to(device),
            slot_mapping=slots.to(torch.int64).to(device),
            seq_lens_cpu_upper_bound=lengths,
        )
        build = getattr(group, "build_metadata", None) or (lambda c: group.get_metadata_builder().build(0, c))
        metadata = build(common)
        vocabulary = runner.model.lm_head.org_vocab_size
        generator = torch.Generator().manual_seed(len(positions))
        inputs = {
            "token_ids": torch.randint(0, vocabulary, (len(positions),), generator=generator).to(device),
            # Rotary tables end at the model's limit; a position beyond it costs the same as one within.
            "positions": (positions % runner.model_config.max_model_len).to(device),
            "last_rows": (query_start[1:].to(torch.int64) - 1).to(device),
        }
        names = group.layer_names
        return inputs, dict.fromkeys(names, metadata), dict.fromkeys(names, common.slot_mapping)

    def _gst_fused(self, module: Any) -> Any:
        """How `module` runs as one kernel. On a GPU the engine's graphs hold compiled kernels, while a module called by itself falls back to
        a chain of small ones; vLLM's fused CUDA kernel of the same operator is the nearer stand-in. On the CPU the module is what runs."""
        return getattr(module, "forward_cuda", module) if self.model_runner.device.type == "cuda" else module

    def _gst_clock(self) -> _HostLaps | _CudaLaps:
        return _CudaLaps() if self.model_runner.device.type == "cuda" else _HostLaps()

    def _gst_walk(self, inputs: dict[str, Any], clock: _HostLaps | _CudaLaps) -> Any:
        """One pass through the model as its own `forward` does it (vLLM's Qwen3), with a lap after every operator; returns the logits."""
        model, fused = self.model_runner.model, self._gst_fused
        positions, residual = inputs["positions"], None
        with self._gst_stamped_kv_cache_writes(clock):
            clock.start()
            hidden = model.model.embed_tokens(inputs["token_ids"])
            clock.lap("embedding")
            for layer in model.model.layers:
                attention, mlp = layer.self_attn, layer.mlp
                if residual is None:
                    residual, hidden = hidden, fused(layer.input_layernorm)(hidden)
                else:
                    hidden, residual = fused(layer.input_layernorm)(hidden, residual)
                clock.lap("input_layernorm")
                qkv, _ = attention.qkv_proj(hidden)
                clock.lap("attn_pre_proj")
                q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
                heads = (*q.shape[:-1], -1, attention.head_dim)
                q = fused(attention.q_norm)(q.view(heads)).view(q.shape)
                k = fused(attention.k_norm)(k.view(heads)).view(k.shape)
                q, k = fused(attention.rotary_emb)(positions, q, k)
                clock.lap("attn_rope")
                hidden = attention.attn(q, k, v)
                clock.lap("attn")
                hidden, _ = attention.o_proj(hidden)
                clock.lap("attn_post_proj")
                hidden, residual = fused(layer.post_attention_layernorm)(hidden, residual)
                clock.lap("post_attention_layernorm")
                gate_up, _ = mlp.gate_up_proj(hidden)
                clock.lap("mlp_up_proj")
                hidden = fused(mlp.act_fn)(gate_up)
                clock.lap("mlp_act")
                hidden, _ = mlp.down_proj(hidden)
                clock.lap("mlp_down_proj")
            hidden, _ = model.model.norm(hidden, residual)
            clock.lap("final_norm")
            logits = model.compute_logits(hidden[inputs["last_rows"]])
            clock.lap("lm_head")
            return logits

    @contextmanager
    def _gst_stamped_kv_cache_writes(self, clock: _HostLaps | _CudaLaps) -> Iterator[None]:
        """Within the attention module, book the KV-cache write as an operator of its own."""
        implementations = [layer.self_attn.attn.impl for layer in self._gst_layers()]

        def stamped(write: Any) -> Any:
            def call(*arguments: Any, **keywords: Any) -> None:
                clock.lap("attn")
                write(*arguments, **keywords)
                clock.lap("attn_kv_cache_save")

            return call

        for implementation in implementations:
            implementation.do_kv_cache_update = stamped(implementation.do_kv_cache_update)
        try:
            yield
        finally:
            for implementation in implementations:
                del implementation.do_kv_cache_update


class _HostLaps:
    """Time between laps on the host's monotonic clock, summed by name. A lap costs some 0.1 us; operators take 5 us and more."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}

    def start(self) -> None:
        self._last = time.perf_counter_ns()

    def lap(self, name: str) -> None:
        now = time.perf_counter_ns()
        self._totals[name] = self._totals.get(name, 0) + now - self._last
        self._last = now

    def totals(self) -> dict[str, int]:
        """Nanoseconds by name."""
        return self._totals


class _CudaLaps:
    """The same on the device's clock. The stream first waits, so that the host launches everything ahead.

    Known limit: a GPU takes some thousand launches ahead, and a walk of 28 layers with its events is more than that. On an H200 host the laps
    of such a model came out at the rate of the host's launches (25 us and more each), not of the kernels: such a table must not be used.
    """

    _HEAD_START_CYCLES = 200_000_000  # some 100 ms at GPU clock rates, more than the launches of one walk take

    def __init__(self) -> None:
        self._names: list[str] = []
        self._events: list[Any] = []

    def start(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda._sleep(self._HEAD_START_CYCLES)
        self._record()

    def lap(self, name: str) -> None:
        self._names.append(name)
        self._record()

    def totals(self) -> dict[str, int]:
        """Nanoseconds by name."""
        import torch

        torch.cuda.synchronize()
        totals: dict[str, int] = {}
        for name, begin, end in zip(self._names, self._events, self._events[1:], strict=False):
            totals[name] = totals.get(name, 0) + round(begin.elapsed_time(end) * 1e6)
        return totals

    def _record(self) -> None:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)
