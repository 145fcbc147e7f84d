"""Operator time of a step from its composition alone: Vidur's sum over operators, to the last bit, without Vidur's entities.

What `direct_loop` asks in place of Vidur's predictor, whose own sum (`predictor.KernelsPredictor.get_execution_time`) stays the reference.
A decode-only step is followed by others that hold one token more of each request; `Piece` says how far one formula serves them.
Tables belong to `tables`, overheads to `overheads`. Knows neither Vidur nor scikit-learn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gst_assets.errors import ProfileError
from gst_assets.vidur_adapter.overheads import Composition, Piece
from gst_assets.vidur_adapter.tables import Surface, Table

_SHORT_RUN = 16
"""Up to so many points are faster one by one than as an array."""


class StepShape(NamedTuple):
    """What a step holds, as far as its operators tell it apart."""

    num_decodes: int
    decode_context_tokens: int
    """KV tokens present before the step, over all decodes."""
    chunks: Sequence[tuple[int, int]]
    """(KV tokens present, new tokens) of each request in prefill."""

    @property
    def composition(self) -> Composition:
        """The same in sums."""
        return Composition(
            len(self.chunks),
            sum([new for _, new in self.chunks]),
            self.num_decodes,
            self.decode_context_tokens + sum([context for context, _ in self.chunks]),
        )


def shape_of(step: Composition) -> StepShape:
    """A step of this composition, tokens spread evenly. In mixed steps the context is the decoding requests', where there are any."""
    prefill_context = 0 if step.num_decode_requests else step.num_context_tokens
    return StepShape(
        step.num_decode_requests,
        step.num_context_tokens - prefill_context,
        list(
            zip(
                _spread(prefill_context, step.num_prefill_requests),
                _spread(step.num_prefill_tokens, step.num_prefill_requests),
                strict=True,
            )
        ),
    )


def _spread(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


class OperatorTimes(ABC):
    """Nanoseconds of whole steps over all layers, as Vidur adds them up (`vidur.entities.ExecutionTime`)."""

    def __init__(self, tables: Mapping[str, Table], num_layers: int, padded: Callable[[int], int]) -> None:
        """`tables` under Vidur's names, in ms per layer; `padded` says at how many tokens per-token operators are looked up."""
        self._tables = tables
        self._num_layers = num_layers
        self._padded = padded
        self._per_token: dict[int, tuple[float, float, float, float]] = {}

    def ns(self, shape: StepShape) -> float:
        """Of a step.

        Raises:
            ProfileError: it leaves the profiled range.
        """
        num_tokens = shape.num_decodes + sum([new for _, new in shape.chunks])
        return self._sum_ns(num_tokens, self._decode_ms(shape), self._prefill_ms(shape))

    def decode_piece(self, num_decodes: int, context: float) -> Piece:
        """Time in ns of steps of so many decodes and nothing else, as a function of their mean context in tokens.

        Raises:
            ProfileError: outside the profiled range.
        """
        attention, until = self._decode_attention(num_decodes, context)
        projections, norm, mlp, add = self._terms(num_decodes)
        layers = self._num_layers
        return Piece(
            lambda at: ((projections + attention(at) + 0.0 + norm) + mlp + add) * layers * 1e-3 * 1e9,
            until,
        )

    @abstractmethod
    def _decode_ms(self, shape: StepShape) -> float: ...

    @abstractmethod
    def _prefill_ms(self, shape: StepShape) -> float: ...

    @abstractmethod
    def _decode_attention(self, num_decodes: int, context: float) -> Piece: ...

    def _sum_ns(self, num_tokens: int, decode_ms: float, prefill_ms: float) -> float:
        # The order of Vidur's additions, less zeros: no communication, one pipeline stage.
        projections, norm, mlp, add = self._terms(num_tokens)
        block_ms = (projections + decode_ms + prefill_ms + norm) + mlp + add
        return block_ms * self._num_layers * 1e-3 * 1e9

    def _terms(self, num_tokens: int) -> tuple[float, float, float, float]:
        found = self._per_token.get(num_tokens)
        if found is None:
            key, tables = (self._padded(num_tokens),), self._tables
            found = self._per_token[num_tokens] = (
                tables["attn_pre_proj"][key] + tables["attn_post_proj"][key] + tables["attn_rope"][key],
                tables["input_layernorm"][key],
                tables["mlp_up_proj"][key]
                + tables["mlp_down_proj"][key]
                + tables["mlp_act"][key]
                + tables["post_attention_layernorm"][key],
                tables["add"][key],
            )
        return found


class VidurOperators(OperatorTimes):
    """At the points Vidur looks at: contexts rounded up to a granularity, chunks to 32, a chunk of one token counted as a decode."""

    def __init__(
        self, tables: Mapping[str, Table], num_layers: int, padded: Callable[[int], int], granularity: int
    ) -> None:
        super().__init__(tables, num_layers, padded)
        self._granularity = granularity

    def _decode_ms(self, shape: StepShape) -> float:
        single = [context for context, new in shape.chunks if new == 1]
        count = shape.num_decodes + len(single)
        if not count:
            return 0.0
        # Vidur's count for a sequence: tokens after the step, of a decode also the one it samples.
        kv_tokens = shape.decode_context_tokens + 2 * shape.num_decodes + sum(single) + len(single)
        return self._tables["attn_decode"][count, self._rounded(int(kv_tokens / count))]

    def _prefill_ms(self, shape: StepShape) -> float:
        table = self._tables["attn_prefill"]
        return sum([table[self._rounded(context), -(-new // 32) * 32] for context, new in shape.chunks if new != 1])

    def _decode_attention(self, num_decodes: int, context: float) -> Piece:
        rounded = self._rounded(int(context) + 2)
        value = self._tables["attn_decode"][num_decodes, rounded]
        return Piece(lambda at: value + 0.0 * at, rounded - 1.0)

    def _rounded(self, tokens: int) -> int:
        return -(-tokens // self._granularity) * self._granularity


class ExactOperators(OperatorTimes):
    """At exact contexts and chunks, a request counted as prefill by its state."""

    def __init__(
        self,
        tables: Mapping[str, Table],
        num_layers: int,
        padded: Callable[[int], int],
        decode: Surface,
        prefill: Surface,
    ) -> None:
        super().__init__(tables, num_layers, padded)
        self._decode, self._prefill = decode, prefill

    def _decode_ms(self, shape: StepShape) -> float:
        count = shape.num_decodes
        return self._decode.at(count, shape.decode_context_tokens / count) if count else 0.0

    def _prefill_ms(self, shape: StepShape) -> float:
        return sum([self._prefill.at(context, new) for context, new in shape.chunks])

    def _decode_attention(self, num_decodes: int, context: float) -> Piece:
        return self._decode.piece(num_decodes, context)


def decode_run_ns(
    piece_at: Callable[[float], Piece], num_decodes: int, context_tokens: int, num_steps: int
) -> list[int]:
    """Nanoseconds of consecutive steps of the same decodes, the first with `context_tokens` KV tokens present over all of them.

    `piece_at` gives the formula that holds from a mean context on. Fewer than `num_steps`, possibly none, where a step would take no time
    or leave the profiled range: whether it is ever reached is not known here. The first step raises what `piece_at` raises.
    """
    times: list[int] = []
    while len(times) < num_steps:
        context = context_tokens / num_decodes
        try:
            at, until = piece_at(context)
        except ProfileError:
            if times:
                break
            raise
        # A piece that ends in less than a step still serves the step it was asked for.
        length = max(int(min(until - context, num_steps - len(times))), 1)
        stop = context_tokens + length * num_decodes
        if length <= _SHORT_RUN:
            found = [round(at(tokens / num_decodes)) for tokens in range(context_tokens, stop, num_decodes)]
        else:
            found = np.rint(at(np.arange(context_tokens, stop, num_decodes) / num_decodes)).astype(np.int64).tolist()
        if min(found) <= 0:
            times += found[: next(index for index, ns in enumerate(found) if ns <= 0)]
            break
        times += found
        context_tokens = stop
    return times
