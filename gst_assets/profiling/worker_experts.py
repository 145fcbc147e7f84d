"""Expert blocks of a mixture of experts, inside the engine's worker process: taken apart into router and experts, made
to choose given experts, and watched while requests are served.

`ExpertBlock` knows vLLM's modules (`Qwen3MoeSparseMoeBlock`, `MixtralMoE`; 0.22.1 and 0.32.0); what is timed belongs to
`worker_ops`, what is made of the rows to `operator_tables`. Torch is imported inside the functions.

vLLM's router (`fused_moe/router/base_router.py`) chooses in `_compute_routing`, from the logits of the block's `gate`;
the block calls its gate itself (Mixtral), or the fused layer does (Qwen3-MoE). Both are replaced on the instances, so
that the engine's own code runs in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from gst_assets.engine.vllm_worker import expert_kernel_of
from gst_assets.errors import ProfileError

ROUTER, EVEN, SAME = "router", "even", "same"
"""How tokens are given to experts: as the router chooses on hidden states of random tokens; spread as evenly as
possible; all to the same ones."""
ROUTINGS = (ROUTER, EVEN, SAME)


class ExpertBlock:
    """The expert block of one decoder layer."""

    def __init__(self, layer: Any) -> None:
        self._block = _feed_forward(layer)
        self._gate, self._router = self._block.gate, self._block.experts.router
        self._logits: Any = None
        self._routing = ROUTER
        self._given: dict[tuple[Any, ...], Any] = {}
        self.chosen: list[Any] | None = None
        """Where it is a list, the expert ids of every call are added to it, each of shape (tokens, experts per
        token)."""

    def facts(self) -> dict[str, Any]:
        """Its shapes, by the names of `scenario.Geometry`, and the kernel that computes it."""
        config = self._block.experts.moe_config
        return {
            "num_experts": self._router.global_num_experts,
            "num_experts_per_token": self._router.top_k,
            "norm_topk_prob": bool(self._router.renormalize),
            "mlp_hidden_size": config.intermediate_size_per_partition * config.tp_size,
            "expert_kernel": expert_kernel_of(_method(self._block.experts)),
        }

    def project(self, hidden: Any) -> Any:
        """The gate alone: logits of shape (tokens, experts)."""
        return type(self._gate).forward(self._gate, hidden)[0]

    def run(self, hidden: Any, logits: Any, routing: str = ROUTER) -> Any:
        """Routing choice by `logits` and experts on `hidden`, without the gate. Within `apart` only.

        The router always chooses; with another `routing` its choice is then replaced, so that all three take the same
        work but for the experts.
        """
        self._logits, self._routing = logits, routing
        return self._block(hidden)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block of code the gate is not called by the module, and the module's input is left unchanged."""
        with ExitStack() as undo:
            self._gate.forward = lambda _: (self._logits, None)
            undo.callback(delattr, self._gate, "forward")
            kernel = _kernel(self._block.experts)
            if getattr(kernel, "inplace", False):  # 0.22.1 writes the output over the input, which others read too
                kernel.inplace = False
                undo.callback(setattr, kernel, "inplace", True)
            undo.enter_context(self._choosing())
            yield

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block of code `chosen` is filled and nothing else is changed."""
        self._routing = ROUTER
        with self._choosing():
            yield

    @contextmanager
    def _choosing(self) -> Iterator[None]:
        choose = self._router._compute_routing

        def chosen(*arguments: Any, **keywords: Any) -> tuple[Any, Any]:
            weights, ids = choose(*arguments, **keywords)
            if self._routing != ROUTER:
                ids = self._ids(ids)
            if self.chosen is not None:
                self.chosen.append(ids)
            return weights, ids

        self._router._compute_routing = chosen
        try:
            yield
        finally:
            del self._router._compute_routing

    def _ids(self, like: Any) -> Any:
        """Expert ids of the shape, type and device of `like`. Made once, so that a captured graph does not make
        them."""
        import torch

        key = (self._routing, tuple(like.shape), like.dtype)
        if key not in self._given:
            tokens, chosen = like.shape
            places = (
                torch.arange(tokens * chosen if self._routing == EVEN else chosen) % self._router.global_num_experts
            )
            self._given[key] = places.expand(tokens, -1) if self._routing == SAME else places.view(tokens, chosen)
            self._given[key] = self._given[key].to(like.dtype).contiguous().to(like.device)
        return self._given[key]


def expert_blocks(layers: Sequence[Any]) -> list[ExpertBlock]:
    """The expert blocks of decoder layers; none of a dense decoder.

    Raises:
        ProfileError: only some layers have experts.
    """
    sparse = [layer for layer in layers if hasattr(_feed_forward(layer), "experts")]
    if sparse and len(sparse) < len(layers):
        raise ProfileError(
            f"{len(sparse)} of {len(layers)} layers have experts; the profiler supports models whose layers are all"
            " alike."
        )
    return [ExpertBlock(layer) for layer in sparse]


@contextmanager
def all_apart(blocks: Sequence[ExpertBlock]) -> Iterator[None]:
    """`ExpertBlock.apart` of all."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.apart())
        yield


def take_distinct(blocks: Sequence[ExpertBlock]) -> float:
    """Experts that got a token in the calls that `chosen` holds, as the mean over them, and begin anew.

    Raises:
        ProfileError: a block did not choose where it is watched.
    """
    counts = [ids.unique().numel() for block in blocks for ids in block.chosen or ()]
    if len(counts) < len(blocks):
        raise ProfileError(
            "the engine's experts are chosen inside their kernel, so the profiler can neither see nor set the choice."
        )
    for block in blocks:
        block.chosen = []
    return sum(counts) / len(counts)


class RoutingWatch:
    """Mixed into vLLM's worker class: which experts are read in steps that serve requests.

    Watching takes time of every step, and on a GPU steps run without captured graphs meanwhile, in which nothing could
    be watched. So it is used apart from everything that is timed.
    """

    model_runner: Any

    def gst_watch_experts(self) -> None:
        """Begin to watch."""
        blocks = expert_blocks(list(self.model_runner.model.model.layers))
        runner, rows = self.model_runner, []
        execute = runner.execute_model

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            for block in blocks:
                block.chosen = []
            output = execute(scheduler_output, *args, **kwargs)
            if tokens := scheduler_output.total_num_scheduled_tokens:
                each = [ids[:tokens].unique().numel() for block in blocks for ids in block.chosen or ()]
                rows.append([tokens, len(scheduler_output.num_scheduled_tokens), sum(each), len(each)])
            return output

        stack = ExitStack()
        for block in blocks:
            stack.enter_context(block.watched())
        runner.execute_model = execute_model
        stack.callback(delattr, runner, "execute_model")
        if (dispatcher := getattr(runner, "cudagraph_dispatcher", None)) is not None:
            # Without keys it finds no graph for any step (vllm/v1/cudagraph_dispatcher.py).
            stack.callback(setattr, dispatcher, "keys_initialized", dispatcher.keys_initialized)
            dispatcher.keys_initialized = False
        self._gst_routing = (stack, rows)

    def gst_take_experts(self) -> list[list[int]]:
        """Stop watching. For each step: its tokens, its requests, the experts that were read, added up over the layers
        that were seen, and the number of these; 0 layers where steps do not run where they can be watched."""
        stack, rows = self._gst_routing
        del self._gst_routing
        stack.close()
        return rows


def _feed_forward(layer: Any) -> Any:
    return layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe


def _method(experts: Any) -> Any:
    """vLLM's method of the fused layer (`FusedMoEMethodBase`): its own in 0.22.1, of one further down in 0.32.0."""
    return getattr(experts, "routed_experts", experts).quant_method


def _kernel(experts: Any) -> Any:
    """What computes the experts (vLLM's `FusedMoEKernel.impl`)."""
    return getattr(getattr(_method(experts), "moe_kernel", None), "impl", None)
