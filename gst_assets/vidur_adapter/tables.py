"""Operator times as Vidur looks them up: mappings from a tuple of integers to milliseconds per layer.

`interpolated_tables` computes an entry when it is asked for; `ForestTables` keeps the entries predicted by Vidur's random forests in a cache keyed
by content. Which entries a step needs belongs to `predictor`. Knows neither Vidur nor scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS, Grid, OperatorModel
from gst_assets.vidur_adapter.overheads import Piece

Table = dict[tuple[float, ...], float]
"""By (num_tokens,), (batch_size, context) or (context, chunk)."""


class _Interpolated(dict[tuple[float, ...], float]):
    """A table whose entries are computed on first use."""

    def __init__(self, function: Callable[..., float]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: tuple[float, ...]) -> float:
        value = self[key] = self._function(*key)
        return value


class Surface:
    """A grid of `OperatorModel` read bilinearly one point at a time: the same operations in plain floats, so the same bits."""

    def __init__(self, grid: Grid, outside: Callable[[float, float], Any]) -> None:
        """`outside` is called with a point outside the grid, and raises."""
        self._firsts, self._seconds, rows = (part.tolist() for part in grid)
        self._rows: list[list[float]] = rows
        self._outside = outside
        self._located: dict[float, tuple[list[float], list[float], float]] = {}

    def at(self, first: float, second: float) -> float:
        """Value at a point, in the grid's ms per layer. Outside the grid `outside` is called, which raises."""
        low_row, high_row, across = self._row(first, second)
        below, above, along = _place(self._seconds, second, lambda: self._outside(first, second))
        low = low_row[below] + (low_row[above] - low_row[below]) * along
        high = high_row[below] + (high_row[above] - high_row[below]) * along
        return low + (high - low) * across

    def piece(self, first: float, second: float) -> Piece:
        """The formula of `at` around a point, as a function of the second coordinate."""
        low_row, high_row, across = self._row(first, second)
        below, above, _ = _place(self._seconds, second, lambda: self._outside(first, second))
        start, end = self._seconds[below], self._seconds[above]
        width = end - start or 1.0  # a grid of one point, which is the only one there is to ask for
        low, low_rise = low_row[below], low_row[above] - low_row[below]
        high, high_rise = high_row[below], high_row[above] - high_row[below]

        def at(second: Any) -> Any:
            along = (second - start) / width
            lower = low + low_rise * along
            return lower + (high + high_rise * along - lower) * across

        return Piece(at, end)

    def _row(self, first: float, second: float) -> tuple[list[float], list[float], float]:
        found = self._located.get(first)
        if found is None:
            below, above, across = _place(self._firsts, first, lambda: self._outside(first, second))
            found = self._located[first] = self._rows[below], self._rows[above], across
        return found


def _place(axis: list[float], at: float, outside: Callable[[], Any]) -> tuple[int, int, float]:
    """Indices of the points around `at` and how far it is from the one to the other."""
    if not axis[0] <= at <= axis[-1]:
        outside()
    below = min(bisect_right(axis, at) - 1, max(len(axis) - 2, 0))
    above = min(below + 1, len(axis) - 1)
    width = axis[above] - axis[below]
    return below, above, (at - axis[below]) / width if width > 0 else 0.0


def decode_surface(model: OperatorModel) -> Surface:
    """Decode attention by (batch size, mean context)."""
    return Surface(model.decode_grid, model.attn_decode_ms)


def prefill_surface(model: OperatorModel) -> Surface:
    """Prefill attention by (context, chunk)."""
    return Surface(model.prefill_grid, model.attn_prefill_ms)


def interpolated_tables(model: OperatorModel) -> dict[str, Table]:
    """Tables under Vidur's names that read `model` at whatever point is asked for.

    An entry outside the profiled range raises ProfileError when it is asked for.
    """

    tokens = model.profiled_tokens.tolist()

    def per_token(operator: str) -> Table:
        values = model.profiled_ms(operator).tolist()

        def at(num_tokens: float) -> float:
            below, above, along = _place(tokens, num_tokens, lambda: model.per_token_ms(operator, num_tokens))
            value: float = values[below] + (values[above] - values[below]) * along
            return value

        return _Interpolated(at)

    return {
        **{operator: per_token(operator) for operator in PER_TOKEN_OPERATORS},
        "attn_decode": _Interpolated(decode_surface(model).at),
        "attn_prefill": _Interpolated(prefill_surface(model).at),
    }


class TableCache:
    """Tables on disk, one npz per key. A file that is damaged counts as absent; nothing is ever unpickled."""

    def __init__(self, directory: Path, key: str) -> None:
        self.path = directory / f"vidur_tables_{key}.npz"

    def load(self) -> dict[str, Table] | None:
        """The tables, or None where the file is absent or damaged."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                names = [name.removeprefix("keys:") for name in stored.files if name.startswith("keys:")]
                return {
                    name: dict(
                        zip(map(tuple, stored[f"keys:{name}"].tolist()), stored[f"values:{name}"].tolist(), strict=True)
                    )
                    for name in names
                } or None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def store(self, tables: Mapping[str, Table]) -> None:
        """Write all tables under a temporary name, then rename: a reader sees the whole file or none."""
        arrays: dict[str, Any] = {}
        for name, table in tables.items():
            arrays[f"keys:{name}"] = np.array(list(table), dtype=np.int64)
            arrays[f"values:{name}"] = np.fromiter(table.values(), np.float64, len(table))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with unfinished.open("wb") as handle:
                np.savez(handle, **arrays)
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)


def content_key(frames: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> str:
    """Digest of everything the tables depend on: the profile's content and the settings of whoever computes them."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(frames):
        digest.update(f"\n{name}\n".encode())
        digest.update(frames[name].to_csv(index=False, lineterminator="\n").encode())
    return digest.hexdigest()[:32]
