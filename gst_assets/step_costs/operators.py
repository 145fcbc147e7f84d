"""Operator time of a step: the one place that adds operators up.

The sum is Vidur's (`vidur.entities.ExecutionTime`, 0.0.26): per layer every operator but the KV-cache write, on several
devices two all-reduces among them, and nothing that runs once a step. `WholeStepOperators` adds what Vidur leaves out,
for comparison with the time of a whole step. Variant `published` does not come here: there Vidur's own predictor adds
up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.errors import ProfileError
from gst_assets.step_costs.cost_tables import CostTables, padded_tokens, without_parts
from gst_assets.step_costs.interpolation import Axis, Curve, Formula, Surface
from gst_assets.step_costs.shapes import (
    ALL_REDUCES_PER_LAYER,
    EXPERT_OPERATORS,
    MLP_OPERATORS,
    CapturedGraphs,
    StepShape,
)

PER_TOKEN_OPERATORS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    *MLP_OPERATORS,
    "add",
)
"""Columns `time_stats.<name>.median` of mlp.csv, in ms per layer."""

_ROUTING = "router"
"""Of the rows that are added up: the router's own choice. The other rows bound what another spread would take."""

_SHORT_RUN = 16
"""Up to so many points are faster one by one than as an array."""


class OperatorTimes:
    """Nanoseconds of whole steps over all layers. Tokens are padded to captured graphs; contexts and chunks are taken
    as they are.

    Every function raises `ProfileError` for a point outside the profiled range, naming the range; nothing is
    extrapolated or clipped.
    """

    def __init__(
        self,
        mlp: pd.DataFrame,
        attention: pd.DataFrame,
        num_layers: int,
        graphs: CapturedGraphs,
        *,
        all_reduce: pd.DataFrame | None = None,
        experts: pd.DataFrame | None = None,
    ) -> None:
        """Tables as in `contracts.tables.MlpProfile`, `AttentionProfile` and, of several devices, `AllReduceProfile`,
        of a mixture of experts `ExpertsProfile`.

        Raises:
            ProfileError: the attention rows leave a hole in their grid.
        """
        self._num_layers, self._graphs = num_layers, graphs
        ordered = mlp.sort_values("num_tokens")
        axis = Axis("mlp.csv", "num_tokens", ordered["num_tokens"].tolist())
        in_mlp = [name for name in PER_TOKEN_OPERATORS if experts is None or name not in MLP_OPERATORS]
        self._per_token = [Curve(axis, ordered[f"time_stats.{name}.median"]) for name in in_mlp]
        if experts is not None:
            chosen = experts[experts["routing"] == _ROUTING].sort_values("num_tokens")
            axis = Axis("experts.csv", "num_tokens", chosen["num_tokens"].tolist())
            self._per_token += [Curve(axis, chosen[f"time_stats.{name}.median"]) for name in EXPERT_OPERATORS]
        if all_reduce is not None:
            ordered = all_reduce.sort_values("num_tokens")
            axis = Axis("all_reduce.csv", "num_tokens", ordered["num_tokens"].tolist())
            times = ordered["time_stats.all_reduce.median"] * ALL_REDUCES_PER_LAYER
            self._per_token.append(Curve(axis, times))
        prefill, decode = attention[attention["is_prefill"]], attention[~attention["is_prefill"]]
        self._decode = Surface(decode, "batch_size", "kv_cache_size", "time_stats.attn_decode.median", "decode")
        self._prefill = Surface(
            prefill, "kv_cache_size", "prefill_chunk_size", "time_stats.attn_prefill.median", "prefill"
        )
        self._token_sums_ms: dict[int, float] = {}

    def ns(self, shape: StepShape) -> float:
        """Of a step."""
        return (self._tokens_ms(shape.num_tokens) + self._decode_ms(shape) + self._prefill_ms(shape)) * self._scale

    def step_ns(self, shape: StepShape) -> int:
        """Of a step, rounded."""
        return round(self.ns(shape))

    def decode_piece(self, num_decodes: int, context: float) -> Formula:
        """Time in ns of steps of so many decodes and nothing else, as a function of their mean context in tokens."""
        attention, until = self._decode.piece(num_decodes, context)
        tokens_ms, scale = self._tokens_ms(num_decodes), self._scale
        return Formula(lambda at: (tokens_ms + attention(at) + 0.0) * scale, until)

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """`step_ns` of consecutive steps of the same decodes, the first with `context_tokens` KV tokens over all of
        them; maybe of fewer."""
        return _run_ns(lambda context: self.decode_piece(num_decodes, context), num_decodes, context_tokens, num_steps)

    def tables(self, max_num_batched_tokens: int) -> CostTables:
        """The same for steps of at most so many tokens, as arrays; not-a-number where `ns` raises."""
        decode_batches, decode_contexts, decode_ms = (np.array(one, dtype=np.float64) for one in self._decode.grid)
        prefill_contexts, prefill_chunks, prefill_ms = (np.array(one, dtype=np.float64) for one in self._prefill.grid)
        return without_parts(
            is_operator_sum=True,
            queue_size=1,
            padded_tokens=padded_tokens(self._graphs, max_num_batched_tokens),
            largest_graph=max(self._graphs.sizes, default=0),
            tokens_ms=np.array([self._known_tokens_ms(tokens) for tokens in range(max_num_batched_tokens + 1)]),
            scale=self._scale,
            decode_batches=decode_batches,
            decode_contexts=decode_contexts,
            decode_ms=decode_ms,
            prefill_contexts=prefill_contexts,
            prefill_chunks=prefill_chunks,
            prefill_ms=prefill_ms,
        )

    def _known_tokens_ms(self, num_tokens: int) -> float:
        try:
            return self._tokens_ms(num_tokens)
        except ProfileError:
            return math.nan

    @property
    def _scale(self) -> float:
        return self._num_layers * 1e6

    def _tokens_ms(self, num_tokens: int) -> float:
        found = self._token_sums_ms.get(num_tokens)
        if found is None:
            padded = self._graphs.padded(num_tokens)
            found = self._token_sums_ms[num_tokens] = sum(curve.at(padded) for curve in self._per_token)
        return found

    def _decode_ms(self, shape: StepShape) -> float:
        count = shape.num_decodes
        return self._decode.at(count, shape.decode_context_tokens / count) if count else 0.0

    def _prefill_ms(self, shape: StepShape) -> float:
        return sum([self._prefill.at(context, new) for context, new in shape.chunks])


class WholeStepOperators:
    """Nanoseconds of everything that was timed alone, what Vidur leaves out included: what a step on the device should
    add up to."""

    def __init__(
        self,
        operators: OperatorTimes,
        attention: pd.DataFrame,
        unmodelled: pd.DataFrame,
        num_layers: int,
        graphs: CapturedGraphs,
    ) -> None:
        """`unmodelled` is `contracts.tables.UnmodelledOperators`."""
        self._operators, self._num_layers, self._graphs = operators, num_layers, graphs
        self._once = {
            str(name): Curve(Axis("unmodelled.csv", "num_rows", rows["num_rows"].tolist()), rows["median_ms"])
            for name, rows in unmodelled.sort_values("num_rows").groupby("operator")
        }
        # The write of the KV cache depends on new tokens alone: its rows without context, by tokens.
        first = attention[attention["is_prefill"] & (attention["kv_cache_size"] == 0)].sort_values("prefill_chunk_size")
        axis = Axis("attention.csv (prefill)", "prefill_chunk_size", first["prefill_chunk_size"].tolist())
        self._kv_write = Curve(axis, first["time_stats.attn_kv_cache_save.median"])

    def ns(self, shape: StepShape) -> float:
        """Of a step; raises as `OperatorTimes`."""
        tokens = self._graphs.padded(shape.num_tokens)
        sequences = shape.num_decodes + len(shape.chunks)
        once = sum(self._once[name].at(tokens) for name in ("embedding", "final_norm"))
        once += sum(self._once[name].at(sequences) for name in ("lm_head", "sampling"))
        return self._operators.ns(shape) + (self._kv_write.at(tokens) * self._num_layers + once) * 1e6


def _run_ns(piece_at: Callable[[float], Formula], num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
    times: list[int] = []
    while len(times) < num_steps:
        context = context_tokens / num_decodes
        try:
            at, until = piece_at(context)
        except ProfileError:
            # Whether a step outside the profiled range is ever reached is not known here.
            if times:
                break
            raise
        # A piece that ends in less than a step still serves the step it was asked for.
        length = max(int(min(until - context, num_steps - len(times))), 1)
        stop = context_tokens + length * num_decodes
        contexts: Any = range(context_tokens, stop, num_decodes)
        if length <= _SHORT_RUN:
            times += [round(at(tokens / num_decodes)) for tokens in contexts]
        else:
            times += np.rint(at(np.array(contexts) / num_decodes)).astype(np.int64).tolist()
        context_tokens = stop
    return times
