"""Operator times of the engine's own modules, taken inside the engine's worker process.

`OperatorTimer` is a vLLM worker extension: its methods run in the worker through `collective_rpc`, where
`self.model_runner` holds the real model, with its packed weights, and the real KV cache. On a CPU it walks the model in
the order of a real step and stamps the clock between operators, so that weights, activations and KV blocks come from
whatever level of the cache a real step finds them in. On a GPU, where launching an operator takes longer than running
it, each operator is timed in a captured graph that goes through all layers (`worker_graphs`): every layer has weights
and KV blocks of its own, so that these are as cold as in a real step. Grids, medians over points and tables belong to
`operator_tables`. Torch and vLLM are imported inside the functions that run in the worker.

On several devices (tensor parallelism) every rank times its share of the same batches at the same moment. The sum of a
layer's results over the ranks, which vLLM takes inside the last projection of attention and MLP, is timed as an
operator of its own, `all_reduce`, and left out of those projections. `embedding` and `lm_head` contain their own
collectives: a sum over the ranks, and the gathering of the logits.

Not timed, because they are no part of the model: building attention metadata, copying inputs, and the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gst_assets.engine.vllm_worker import WorkerReport
from gst_assets.errors import ProfileError
from gst_assets.profiling.worker_experts import (
    EVEN,
    ROUTER,
    ROUTINGS,
    SAME,
    ExpertBlock,
    RoutingWatch,
    all_apart,
    expert_blocks,
    take_distinct,
)
from gst_assets.profiling.worker_graphs import GraphClock
from gst_assets.profiling.worker_steps import StepWatch
from gst_assets.step_costs.shapes import ALL_REDUCES_PER_LAYER, EXPERT_OPERATORS, MLP_OPERATORS

_COMMON_OPERATORS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn",
    "attn_kv_cache_save",
    "attn_post_proj",
    "post_attention_layernorm",
)
"""Operators of any decoder layer by Vidur's names. `attn_rope` is rotary embedding, with q-norm and k-norm before it
where the model has them (Qwen3); biases are part of their projection; the norms include the residual add
that vLLM fuses into them; `attn` is the attention module's call less the KV-cache write it makes. With FP8 weights a
projection includes quantising its input, which an engine with compiled graphs fuses into the norm or activation before
it, but for `attn_post_proj`."""

_GATE, _CHOSEN = EXPERT_OPERATORS
_EXPERTS = {ROUTER: _CHOSEN, EVEN: f"{_CHOSEN}_even", SAME: f"{_CHOSEN}_same"}
"""The routing choice and the chosen experts: the router's own, and on the same tokens spread evenly and all sent to the
same experts."""


def layer_operators(has_experts: bool) -> tuple[str, ...]:
    """Operators of one decoder layer, with one MLP or with experts."""
    return (*_COMMON_OPERATORS, *((_GATE, *_EXPERTS.values()) if has_experts else MLP_OPERATORS))


def experts_operator(routing: str) -> str:
    """The operator of the experts under one of `worker_experts.ROUTINGS`."""
    return _EXPERTS[routing]


MODEL_OPERATORS = ("embedding", "final_norm", "lm_head", "sampling")
"""Operators that run once a step. Vidur has no column for them. `sampling` is greedy: the logits' conversion to float32
and their argmax."""

ALL_REDUCE = "all_reduce"
"""The sum of one tensor of hidden states, (tokens, hidden size), over the ranks; on several devices only."""
_ALL_REDUCE_EXECUTIONS = 32
"""Executions of `ALL_REDUCE` in one captured graph."""

_MODEL_OPERATOR_EXECUTIONS = 8
"""Executions of a once-a-step operator in one captured graph."""

Sequences = list[tuple[int, int]]
"""A batch: for each sequence its tokens already cached and its new tokens."""


class OperatorTimer(StepWatch, RoutingWatch, WorkerReport):
    """vLLM worker extension (`worker_extension_cls`). Every argument and result is plain data: it crosses processes."""

    def gst_operator_facts(self) -> dict[str, Any]:
        """What the running worker says about itself: device, attention backend and the shapes of its layers (per
        device).

        Raises:
            ProfileError: the attention backend writes the KV cache inside its attention kernel, the model has several
                KV-cache groups, or only some of its layers have experts.
        """
        import torch

        layer, blocks = self._gst_layers()[0], expert_blocks(self._gst_layers())
        attention = layer.self_attn
        groups = self.model_runner.attn_groups
        if len(groups) != 1 or len(groups[0]) != 1:
            raise ProfileError(
                f"the engine has {sum(map(len, groups))} attention groups; the profiler supports models whose layers"
                " all attend alike."
            )
        backend = attention.attn.attn_backend
        if getattr(backend, "forward_includes_kv_cache_update", True):
            raise ProfileError(
                f"attention backend {backend.get_name()} writes the KV cache inside its attention kernel, so"
                " attn_kv_cache_save cannot be timed apart."
            )
        device = self.model_runner.device
        return {
            "device_type": device.type,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "attention_backend": backend.get_name(),
            "architecture": self.vllm_config.model_config.architecture,
            "num_layers": len(self._gst_layers()),
            "hidden_size": attention.hidden_size,
            "num_q_heads": attention.total_num_heads,
            "num_kv_heads": attention.total_num_kv_heads,
            "head_dim": attention.head_dim,
            **(blocks[0].facts() if blocks else {"mlp_hidden_size": layer.mlp.down_proj.input_size}),
            "vocab_size": self.model_runner.model.lm_head.org_vocab_size,
            "tensor_parallel_size": self._gst_num_ranks(),
            "bytes_per_value": self.vllm_config.model_config.dtype.itemsize,
            "block_size": groups[0][0].kv_cache_spec.block_size,
            "num_kv_blocks": self.model_runner.kv_cache_config.num_blocks,
            "max_model_len": self.vllm_config.model_config.max_model_len,
            **{name: value for name, value in self._quantization().items() if value is not None},
        }

    def gst_time_batches(
        self, batches: Sequence[Sequence[Sequence[int]]], warmups: int, repeats: int, wanted: Sequence[str]
    ) -> list[list[dict[str, int]]]:
        """Time each of `batches` (`Sequences`) `repeats` times, after `warmups` untimed passes (a graph has warm-ups of
        its own).

        Returns for each batch and repeat the nanoseconds by operator; those of `layer_operators` are summed over all
        layers, `ALL_REDUCE` is of one. On a GPU only the operators `wanted` are timed, as capturing the others would
        cost time; a walk on the CPU goes through all, and those operators whose experts are set for the router
        are walks of their own.
        """
        import torch
        from vllm.forward_context import set_forward_context

        on_gpu = self.model_runner.device.type == "cuda"
        clock = self._gst_graph_clock() if on_gpu else None
        timed: list[list[dict[str, int]]] = []
        with torch.inference_mode(), self._gst_without_sums():
            for batch in batches:
                inputs, metadata, slots = self._gst_prepare([(int(context), int(new)) for context, new in batch])
                with set_forward_context(
                    metadata, self.vllm_config, num_tokens=len(inputs["token_ids"]), slot_mapping=slots
                ):
                    if clock is not None:
                        timed.append(self._gst_replay(inputs, clock, repeats, wanted))
                        continue
                    others = [routing for routing in (EVEN, SAME) if _EXPERTS[routing] in wanted]
                    for _ in range(warmups):
                        self._gst_walk(inputs, _HostLaps())
                    walks = []
                    for _ in range(repeats):
                        laps = _HostLaps()
                        self._gst_walk(inputs, laps)
                        walks.append(self._gst_per_sum(laps.totals()))
                        for routing in others:
                            laps = _HostLaps()
                            self._gst_walk(inputs, laps, routing)
                            walks[-1][_EXPERTS[routing]] = laps.totals()[_EXPERTS[routing]]
                    timed.append(walks)
        return timed

    def gst_distinct_experts(self, batches: Sequence[Sequence[Sequence[int]]]) -> list[dict[str, float]]:
        """How many experts of a layer are read for each of `batches`, as the mean over the layers, by routing: what
        `gst_time_batches` timed.

        Raises:
            ProfileError: the engine's experts are chosen where that cannot be seen.
        """
        import torch
        from vllm.forward_context import set_forward_context

        blocks = expert_blocks(self._gst_layers())
        found: list[dict[str, float]] = []
        with torch.inference_mode():
            for batch in batches:
                inputs, metadata, slots = self._gst_prepare([(int(context), int(new)) for context, new in batch])
                counts: dict[str, float] = {}
                with set_forward_context(
                    metadata, self.vllm_config, num_tokens=len(inputs["token_ids"]), slot_mapping=slots
                ):
                    for routing in ROUTINGS:
                        for block in blocks:
                            block.chosen = []
                        if self.model_runner.device.type == "cuda":
                            hidden = self.model_runner.model.model.embed_tokens(inputs["token_ids"])
                            with all_apart(blocks):
                                for block in blocks:
                                    block.run(hidden, block.project(hidden), routing)
                        else:
                            self._gst_walk(inputs, _HostLaps(), routing, blocks)
                        counts[routing] = take_distinct(blocks)
                found.append(counts)
        return found

    def _gst_replay(
        self, inputs: dict[str, Any], clock: GraphClock, repeats: int, wanted: Sequence[str]
    ) -> list[dict[str, int]]:
        """Times of the operators `wanted`, each in a graph of its own."""
        layers = self._gst_layers()
        blocks = dict(zip(map(id, layers), expert_blocks(layers), strict=False))
        with self._gst_kernels_that_quantise():
            per_layer, per_step = self._gst_operators(inputs, blocks)
        times: dict[str, list[int]] = {}
        if ALL_REDUCE in wanted:
            hidden = self.model_runner.model.model.embed_tokens(inputs["token_ids"])
            sums = partial(_times, partial(_summed, hidden), _ALL_REDUCE_EXECUTIONS)
            times[ALL_REDUCE] = clock.nanoseconds(ALL_REDUCE, sums, _ALL_REDUCE_EXECUTIONS, repeats)
        with (
            all_apart(list(blocks.values())),
            self._gst_without_kv_cache_writes() as writes,
            self._gst_kernels_that_quantise(),
        ):
            _each(per_layer["attn"], layers)  # so that the arguments of every write are known
            for name, run in per_layer.items():
                if name in wanted:
                    times[name] = clock.nanoseconds(name, partial(_each, run, layers), 1, repeats)
        if "attn_kv_cache_save" in wanted:
            times["attn_kv_cache_save"] = clock.nanoseconds(
                "attn_kv_cache_save", partial(_each, _call, writes), 1, repeats
            )
        for name, once in per_step.items():
            if name not in wanted:
                continue
            run_all = partial(_times, once, _MODEL_OPERATOR_EXECUTIONS)
            if name == "lm_head" and self._gst_num_ranks() > 1:  # its gathering is in no graph of the engine's
                times[name] = clock.launched_nanoseconds(run_all, _MODEL_OPERATOR_EXECUTIONS, repeats)
            else:
                times[name] = clock.nanoseconds(name, run_all, _MODEL_OPERATOR_EXECUTIONS, repeats)
        return [dict(zip(times, walk, strict=True)) for walk in zip(*times.values(), strict=True)]

    def _gst_operators(
        self, inputs: dict[str, Any], blocks: dict[int, ExpertBlock]
    ) -> tuple[dict[str, Callable[[Any], object]], dict[str, Callable[[], object]]]:
        """Every operator but the KV-cache write as a function of the layer, or of nothing, on inputs of the right
        shapes. `blocks`: the expert blocks by the id of their layer."""
        import torch
        from vllm import _custom_ops as kernels

        model = self.model_runner.model
        hidden = model.model.embed_tokens(inputs["token_ids"])
        first = self._gst_layers()[0]
        attention = first.self_attn
        normalised = _normalises_heads(attention)
        residual, normed = hidden.clone(), hidden.clone()
        qkv, _ = attention.qkv_proj(hidden)
        q, k, v = (
            part.contiguous() for part in qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
        )
        heads = (q.shape[0], -1, attention.head_dim)
        q_heads, k_heads = q.view(heads), k.view(heads)
        q_normed, k_normed = q_heads.clone(), k_heads.clone()
        if blocks:
            feed_forward = _experts_of(blocks, hidden)
        else:
            gate_up, _ = first.mlp.gate_up_proj(hidden)
            activated = first.mlp.act_fn.forward_cuda(gate_up)
            feed_forward = {
                "mlp_up_proj": lambda layer: layer.mlp.gate_up_proj(hidden),
                "mlp_act": lambda layer: layer.mlp.act_fn.forward_cuda(gate_up),
                "mlp_down_proj": lambda layer: layer.mlp.down_proj(activated),
            }
        last = hidden[inputs["last_rows"]]
        logits = model.compute_logits(last)

        # In the engine's graphs these run as compiled, fused kernels; a module called by itself would fall back to a
        # chain of small ones. vLLM's own CUDA kernels of the same operators are the nearest that can be called one by
        # one.
        def add_and_norm(norm: Any) -> None:
            kernels.fused_add_rms_norm(normed, residual, norm.weight, norm.variance_epsilon)

        def rope(layer: Any) -> None:
            own = layer.self_attn
            if normalised:
                kernels.rms_norm(q_normed, q_heads, own.q_norm.weight, own.q_norm.variance_epsilon)
                kernels.rms_norm(k_normed, k_heads, own.k_norm.weight, own.k_norm.variance_epsilon)
            own.rotary_emb.forward_cuda(inputs["positions"], q_normed.view(q.shape), k_normed.view(k.shape))

        return {
            "input_layernorm": lambda layer: add_and_norm(layer.input_layernorm),
            "attn_pre_proj": lambda layer: layer.self_attn.qkv_proj(hidden),
            "attn_rope": rope,
            "attn": lambda layer: layer.self_attn.attn(q, k, v),
            "attn_post_proj": lambda layer: layer.self_attn.o_proj(q),
            "post_attention_layernorm": lambda layer: add_and_norm(layer.post_attention_layernorm),
            **feed_forward,
        }, {
            "embedding": lambda: model.model.embed_tokens(inputs["token_ids"]),
            "final_norm": lambda: add_and_norm(model.model.norm),
            "lm_head": lambda: model.compute_logits(last),
            "sampling": lambda: logits.to(torch.float32).argmax(dim=-1),
        }

    @contextmanager
    def _gst_without_kv_cache_writes(self) -> Iterator[list[Callable[[], object]]]:
        """Within the block the attention module writes no KV cache; yields the writes left out, the latest of each
        layer, as functions."""
        left_out: dict[int, Callable[[], object]] = {}
        implementations = [layer.self_attn.attn.impl for layer in self._gst_layers()]

        def keep(index: int, write: Any) -> Any:
            def call(*arguments: Any, **keywords: Any) -> None:
                left_out[index] = partial(write, *arguments, **keywords)

            return call

        for index, implementation in enumerate(implementations):
            implementation.do_kv_cache_update = keep(index, implementation.do_kv_cache_update)
        writes: list[Callable[[], object]] = []
        try:
            yield writes
            writes += left_out.values()
        finally:
            for implementation in implementations:
                del implementation.do_kv_cache_update

    def _gst_graph_clock(self) -> GraphClock:
        """A new one on one device: the memory of its graphs is free with it. Of several ranks the worker's one, as
        they know the memory of each other's graphs until the engine ends."""
        if self._gst_num_ranks() == 1:
            return GraphClock()
        if not hasattr(self, "_gst_clock"):
            self._gst_clock = GraphClock(self._gst_ranks())
        return self._gst_clock

    def _gst_num_ranks(self) -> int:
        return int(self.vllm_config.parallel_config.tensor_parallel_size)

    def _gst_ranks(self) -> Any:
        """The group of ranks that share each layer; None where there is one."""
        if self._gst_num_ranks() == 1:
            return None
        from vllm.distributed.parallel_state import get_tp_group

        return get_tp_group()

    @contextmanager
    def _gst_without_sums(self) -> Iterator[None]:
        """Within the block the projections that end attention and MLP leave their results on the rank they are of.

        Raises:
            ProfileError: one of them does not sum its results; names it.
        """
        projections = (
            [module for layer in self._gst_layers() for module in (layer.self_attn.o_proj, layer.mlp.down_proj)]
            if self._gst_num_ranks() > 1
            else []
        )
        for projection in projections:
            if not projection.reduce_results:
                raise ProfileError(
                    f"{projection.prefix} leaves the sum over the ranks to another layer (reduce_results is false), so"
                    f" {ALL_REDUCE} cannot be timed apart. Set engine.tensor_parallel_size=1, or profile another model."
                )
        for projection in projections:
            projection.reduce_results = False
        try:
            yield
        finally:
            for projection in projections:
                projection.reduce_results = True

    def _gst_per_sum(self, totals: dict[str, int]) -> dict[str, int]:
        """The times of a walk, with `ALL_REDUCE` of one sum instead of all."""
        if ALL_REDUCE in totals:
            totals[ALL_REDUCE] = round(totals[ALL_REDUCE] / (ALL_REDUCES_PER_LAYER * len(self._gst_layers())))
        return totals

    @contextmanager
    def _gst_kernels_that_quantise(self) -> Iterator[None]:
        """Within the block the projections quantise their inputs with vLLM's CUDA kernel. Called by themselves they
        would compile the chain of small operators that the engine's graphs hold fused, once for each of them."""
        layers = self._gst_layers() if self._quantization()["quantization"] is not None else []
        projections = [
            linear
            for layer in layers
            for linear in (
                layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj,
            )
        ]  # fmt: skip
        quantisers = [linear.quant_method.fp8_linear.quant_fp8 for linear in projections]
        before = [quantiser._forward_method for quantiser in quantisers]
        for quantiser in quantisers:
            quantiser._forward_method = quantiser.forward_cuda
        try:
            yield
        finally:
            for quantiser, method in zip(quantisers, before, strict=True):
                quantiser._forward_method = method

    def _gst_layers(self) -> list[Any]:
        return list(self.model_runner.model.model.layers)

    def _gst_prepare(self, sequences: Sequences) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Inputs, attention metadata from the backend's own builder, and slot mapping of one batch.

        Sequences take consecutive KV blocks and start over when the cache is full: a batch larger than the cache then
        reads blocks twice, but with a whole cache in between.
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

    def _gst_walk(
        self,
        inputs: dict[str, Any],
        clock: _HostLaps,
        routing: str = ROUTER,
        blocks: Sequence[ExpertBlock] | None = None,
    ) -> Any:
        """One pass through the model as its own `forward` does it (vLLM's Qwen3, Qwen2, Llama and Mistral, Qwen3-MoE
        and Mixtral), with a lap after every operator; returns the logits. `routing` says which experts get the tokens;
        `blocks` are the layers' expert blocks, where they are watched. On several ranks within
        `_gst_without_sums`, and they begin together."""
        import torch

        model = self.model_runner.model
        positions, residual = inputs["positions"], None
        normalised = _normalises_heads(self._gst_layers()[0].self_attn)
        blocks = expert_blocks(self._gst_layers()) if blocks is None else blocks
        is_shared = self._gst_num_ranks() > 1
        with all_apart(blocks), self._gst_stamped_kv_cache_writes(clock):
            if is_shared:
                _summed(torch.zeros(1, model.config.hidden_size, dtype=self.vllm_config.model_config.dtype))
            clock.start()
            hidden = model.model.embed_tokens(inputs["token_ids"])
            clock.lap("embedding")
            for index, layer in enumerate(model.model.layers):
                attention = layer.self_attn
                if residual is None:
                    residual, hidden = hidden, layer.input_layernorm(hidden)
                else:
                    hidden, residual = layer.input_layernorm(hidden, residual)
                clock.lap("input_layernorm")
                qkv, _ = attention.qkv_proj(hidden)
                clock.lap("attn_pre_proj")
                q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
                if normalised:
                    heads = (*q.shape[:-1], -1, attention.head_dim)
                    q = attention.q_norm(q.view(heads)).view(q.shape)
                    k = attention.k_norm(k.view(heads)).view(k.shape)
                q, k = attention.rotary_emb(positions, q, k)
                clock.lap("attn_rope")
                hidden = attention.attn(q, k, v)
                clock.lap("attn")
                hidden, _ = attention.o_proj(hidden)
                clock.lap("attn_post_proj")
                if is_shared:
                    hidden = _summed(hidden)
                    clock.lap(ALL_REDUCE)
                hidden, residual = layer.post_attention_layernorm(hidden, residual)
                clock.lap("post_attention_layernorm")
                if blocks:
                    choice = blocks[index].project(hidden)
                    clock.lap(_GATE)
                    hidden = blocks[index].run(hidden, choice, routing)
                    clock.lap(_EXPERTS[routing])
                    continue
                gate_up, _ = layer.mlp.gate_up_proj(hidden)
                clock.lap("mlp_up_proj")
                hidden = layer.mlp.act_fn(gate_up)
                clock.lap("mlp_act")
                hidden, _ = layer.mlp.down_proj(hidden)
                clock.lap("mlp_down_proj")
                if is_shared:
                    hidden = _summed(hidden)
                    clock.lap(ALL_REDUCE)
            hidden, _ = model.model.norm(hidden, residual)
            clock.lap("final_norm")
            logits = model.compute_logits(hidden[inputs["last_rows"]])
            clock.lap("lm_head")
            logits.to(torch.float32).argmax(dim=-1)
            clock.lap("sampling")
            return logits

    @contextmanager
    def _gst_stamped_kv_cache_writes(self, clock: _HostLaps) -> Iterator[None]:
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
    """Time between laps on the host's monotonic clock, summed by name. A lap costs some 0.1 us; operators take 5 us and
    more."""

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


def _experts_of(blocks: dict[int, ExpertBlock], hidden: Any) -> dict[str, Callable[[Any], object]]:
    """Operators of expert blocks as functions of the layer. Logits are made here, once: the graph of the experts has no
    gate in it."""
    logits = {key: block.project(hidden) for key, block in blocks.items()}

    def run(routing: str) -> Callable[[Any], object]:
        return lambda layer: blocks[id(layer)].run(hidden, logits[id(layer)], routing)

    return {
        _GATE: lambda layer: blocks[id(layer)].project(hidden),
        **{name: run(routing) for routing, name in _EXPERTS.items()},
    }


def _normalises_heads(attention: Any) -> bool:
    """Whether queries and keys are normalised by head before the rotary embedding, as Qwen3 does."""
    return hasattr(attention, "q_norm")


def _summed(hidden: Any) -> Any:
    """The sum over the ranks, by whatever means the engine uses."""
    from vllm.distributed import tensor_model_parallel_all_reduce

    return tensor_model_parallel_all_reduce(hidden)


def _each(run: Callable[[Any], object], items: Sequence[Any]) -> None:
    for item in items:
        run(item)


def _call(function: Callable[[], object]) -> None:
    function()


def _times(run: Callable[[], object], number: int) -> None:
    for _ in range(number):
        run()
