"""What a step holds, which kind of step that makes it, and to how many tokens captured graphs pad it.

What a step of a shape costs belongs to `operators` and `terms`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

DECODE, MIXED, MIXED_EAGER = "decode", "mixed", "mixed_eager"
"""Kinds of steps: no prompt token; at least one; more tokens than the largest captured graph, prompts among them."""

MLP_OPERATORS = ("mlp_up_proj", "mlp_act", "mlp_down_proj")
"""Of a layer with one MLP, by Vidur's names."""
EXPERT_OPERATORS = ("moe_router", "moe_experts")
"""In place of `MLP_OPERATORS` where a layer has experts: the gate's projection, and the routing choice with the chosen
experts. Vidur has no names for them."""

ALL_REDUCES_PER_LAYER = 2
"""On several devices that share each layer: after attention's output projection and after the MLP's."""

VIDUR_BYTES_PER_VALUE = 2
"""By which Vidur 0.0.26 divides `size` of all_reduce.csv to get at tokens, whatever the dtype
(`SklearnExecutionTimePredictor._get_all_reduce_df_with_derived_features`)."""


class Composition(NamedTuple):
    """What a step holds, in sums: `num_context_tokens` is KV tokens present before it, over all its requests."""

    num_prefill_requests: int
    num_prefill_tokens: int
    num_decode_requests: int
    num_context_tokens: int


class StepShape(NamedTuple):
    """What a step holds, as far as its cost depends on it."""

    num_decodes: int
    decode_context_tokens: int
    """KV tokens present before the step, over all decodes."""
    chunks: Sequence[tuple[int, int]]
    """(KV tokens present, new tokens) of each request in prefill."""
    reread_context_tokens: int = 0
    """Of `decode_context_tokens`, those in KV blocks that another decode of the step reads too, counted for all of
    these but one."""

    @property
    def num_prefill_tokens(self) -> int:
        """New tokens of all requests in prefill."""
        return sum([new for _, new in self.chunks])

    @property
    def num_tokens(self) -> int:
        """New tokens of the step."""
        return self.num_decodes + self.num_prefill_tokens

    @property
    def num_attention_pairs(self) -> int:
        """See `attention_pairs`, over all requests in prefill."""
        return sum([attention_pairs(context, new) for context, new in self.chunks])

    @property
    def composition(self) -> Composition:
        """The same in sums."""
        return Composition(
            len(self.chunks),
            self.num_prefill_tokens,
            self.num_decodes,
            self.decode_context_tokens + sum([context for context, _ in self.chunks]),
        )


def attention_pairs(context: int, new: int) -> int:
    """(query, key) pairs that causal attention looks at for `new` tokens after `context` ones: each token sees the
    context, those before it and itself."""
    return new * context + new * (new + 1) // 2


class CapturedGraphs:
    """The token counts for which the engine captured graphs (`EngineSettings.cudagraph_capture_sizes`); none where it
    runs eagerly."""

    def __init__(self, capture_sizes: Sequence[int]) -> None:
        self.sizes = tuple(sorted(capture_sizes))

    def kind(self, num_prefill_tokens: int, num_decode_requests: int) -> str:
        """`DECODE`, `MIXED` or `MIXED_EAGER`."""
        if num_prefill_tokens == 0:
            return DECODE
        beyond = bool(self.sizes) and num_prefill_tokens + num_decode_requests > self.sizes[-1]
        return MIXED_EAGER if beyond else MIXED

    def padded(self, num_tokens: int) -> int:
        """Tokens the kernels really process: the next captured size, or `num_tokens` itself beyond the largest and
        without graphs."""
        place = bisect_left(self.sizes, num_tokens)
        return self.sizes[place] if place < len(self.sizes) else num_tokens

    def reachable_kinds(self, max_num_batched_tokens: int) -> tuple[str, ...]:
        """The kinds a simulation may meet when a step holds at most `max_num_batched_tokens`."""
        return tuple(dict.fromkeys(self.kind(tokens, 0) for tokens in (0, 1, max_num_batched_tokens)))
