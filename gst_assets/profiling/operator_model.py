"""Operator time of an engine step, read off a bundle's tables by piecewise-linear interpolation.

Numpy and pandas only: it serves the measuring host (overheads are what a step costs beyond this prediction) and the Vidur adapter. The sum is
Vidur's: Vidur 0.0.26 adds up, per layer, every operator but `attn_kv_cache_save`. What a step costs beyond operators is not in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gst_assets.errors import ProfileError

PER_TOKEN_OPERATORS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)
"""Columns `time_stats.<name>.median` of mlp.csv."""

Floats = NDArray[np.float64]


class Grid(NamedTuple):
    """A rectangular table in ms per layer: two ascending axes in sequences or tokens (whoever gives it says which), and values of shape
    (len(first), len(second))."""

    first: Floats
    second: Floats
    values: Floats


class OperatorModel:
    """Interpolated operator times of one bundle. Times are milliseconds per layer unless the name says otherwise.

    Every function raises `ProfileError` for a point outside the profiled range, naming the range; nothing is extrapolated or clipped.
    """

    def __init__(self, mlp: pd.DataFrame, attention: pd.DataFrame, num_layers: int) -> None:
        """Tables as in `contracts.tables.MlpProfile` and `AttentionProfile`.

        Raises:
            ProfileError: the attention rows leave a hole in their grid.
        """
        self.num_layers = num_layers
        ordered = mlp.sort_values("num_tokens")
        self._tokens = _Axis("mlp.csv", "num_tokens", ordered["num_tokens"])
        self._per_token = {name: _floats(ordered[f"time_stats.{name}.median"]) for name in PER_TOKEN_OPERATORS}
        prefill, decode = attention[attention["is_prefill"]], attention[~attention["is_prefill"]]
        self._decode = _Surface(decode, "batch_size", "kv_cache_size", "decode", "time_stats.attn_decode.median")
        self._prefill = _Surface(
            prefill, "kv_cache_size", "prefill_chunk_size", "prefill", "time_stats.attn_prefill.median"
        )

    @property
    def profiled_tokens(self) -> Floats:
        """The token counts at which per-token operators were profiled, ascending."""
        return self._tokens.values

    def profiled_ms(self, operator: str) -> Floats:
        """What `per_token_ms` interpolates: ms of an operator at `profiled_tokens`."""
        return self._per_token[operator]

    @property
    def decode_grid(self) -> Grid:
        """What `attn_decode_ms` interpolates: by batch size in sequences and context in tokens."""
        return self._decode.grid

    @property
    def prefill_grid(self) -> Grid:
        """What `attn_prefill_ms` interpolates: by context and chunk, both in tokens."""
        return self._prefill.grid

    @property
    def shortest_decode_context(self) -> int:
        """The fewest cached tokens of a sequence in the decode grid."""
        return int(self._decode.second.values[0])

    def per_token_ms(self, operator: str, num_tokens: ArrayLike) -> Floats:
        """Time of one of `PER_TOKEN_OPERATORS` by new tokens in the step; the shape of `num_tokens`."""
        if operator not in self._per_token:
            raise ProfileError(f"mlp.csv has no operator {operator!r}; it has {', '.join(PER_TOKEN_OPERATORS)}.")
        below, weight = self._tokens.locate(num_tokens)
        values = self._per_token[operator]
        return _between(values[below], values[_next(below, values.shape[0])], weight)

    def attn_decode_ms(self, batch: ArrayLike, context: ArrayLike) -> Floats:
        """Decode attention of `batch` sequences with `context` cached tokens each; broadcast shapes."""
        return self._decode.at(batch, context)

    def attn_prefill_ms(self, context: ArrayLike, chunk: ArrayLike) -> Floats:
        """Prefill attention of one sequence: `chunk` new tokens after `context` cached ones; broadcast shapes."""
        return self._prefill.at(context, chunk)

    def step_ns(
        self, num_tokens: int, prefill_chunks: Sequence[tuple[int, int]], decode_contexts: Sequence[float]
    ) -> float:
        """Operator time of a whole step over all layers, in nanoseconds.

        `num_tokens`: new tokens of the step. `prefill_chunks`: (context, chunk) of each sequence in prefill. `decode_contexts`: cached tokens of
        each decoding sequence; as in Vidur their mean counts.
        """
        milliseconds = sum(float(self.per_token_ms(name, num_tokens)) for name in PER_TOKEN_OPERATORS)
        for context, chunk in prefill_chunks:
            milliseconds += float(self.attn_prefill_ms(context, chunk))
        if len(decode_contexts):
            milliseconds += float(self.attn_decode_ms(len(decode_contexts), float(np.mean(decode_contexts))))
        return milliseconds * 1e6 * self.num_layers


class _Axis:
    """One ascending coordinate of a table."""

    def __init__(self, table: str, name: str, values: pd.Series) -> None:
        self.table, self.name = table, name
        self.values = _floats(values)

    def locate(self, at: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
        """Index of the point at or below, and how far towards the next one (0 to 1)."""
        wanted = np.asarray(at, dtype=np.float64)
        low, high = self.values[0], self.values[-1]
        # `not (inside)` also catches NaN.
        outside = ~((wanted >= low) & (wanted <= high))
        if outside.any():
            found = float(wanted[outside].flat[0]) if wanted.ndim else float(wanted)
            raise ProfileError(
                f"{self.table}: {self.name} {found:g} is outside the profiled range {low:g} to {high:g}. "
                "Extend the grid under `profile` in the scenario and measure the profile again."
            )
        below = np.clip(np.searchsorted(self.values, wanted, side="right") - 1, 0, max(len(self.values) - 2, 0))
        width = self.values[_next(below, len(self.values))] - self.values[below]
        return below, np.divide(wanted - self.values[below], width, out=np.zeros_like(wanted), where=width > 0)


class _Surface:
    """A full rectangular grid, read bilinearly."""

    def __init__(self, rows: pd.DataFrame, first: str, second: str, kind: str, column: str) -> None:
        table = rows.pivot(index=first, columns=second, values=column).sort_index(axis=0).sort_index(axis=1)
        if table.empty:
            raise ProfileError(f"attention.csv: no {kind} rows. Measure the profile again.")
        self.values = table.to_numpy(dtype=np.float64, na_value=np.nan)
        holes = np.argwhere(np.isnan(self.values))
        if len(holes):
            i, j = holes[0]
            raise ProfileError(
                f"attention.csv: column {column}: the {kind} grid has no value at {first} {table.index[i]}, {second} {table.columns[j]} "
                f"({len(holes)} missing in all). Every combination must be there; measure the profile again."
            )
        self.first = _Axis(f"attention.csv ({kind})", first, table.index.to_series())
        self.second = _Axis(f"attention.csv ({kind})", second, table.columns.to_series())

    @property
    def grid(self) -> Grid:
        return Grid(self.first.values, self.second.values, self.values)

    def at(self, first: ArrayLike, second: ArrayLike) -> Floats:
        i, u = self.first.locate(first)
        j, v = self.second.locate(second)
        i_next, j_next = _next(i, self.values.shape[0]), _next(j, self.values.shape[1])
        low = _between(self.values[i, j], self.values[i, j_next], v)
        high = _between(self.values[i_next, j], self.values[i_next, j_next], v)
        return _between(low, high, u)


def _between(low: Floats, high: Floats, weight: Floats) -> Floats:
    return low + (high - low) * weight


def _next(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.minimum(index + 1, length - 1)


def _floats(values: pd.Series) -> Floats:
    return values.to_numpy(dtype=np.float64)
