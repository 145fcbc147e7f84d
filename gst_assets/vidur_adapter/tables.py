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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS, OperatorModel

Table = dict[tuple[float, ...], float]
"""By (num_tokens,), (batch_size, context) or (context, chunk)."""


class _Interpolated(dict[tuple[float, ...], float]):
    """A table whose entries are computed on first use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: tuple[float, ...]) -> float:
        value = self[key] = float(self._function(*key))
        return value


def interpolated_tables(model: OperatorModel) -> dict[str, Table]:
    """Tables under Vidur's names that read `model` at whatever point is asked for.

    An entry outside the profiled range raises ProfileError when it is asked for.
    """

    def per_token(operator: str) -> Table:
        return _Interpolated(lambda num_tokens: model.per_token_ms(operator, num_tokens))

    return {
        **{operator: per_token(operator) for operator in PER_TOKEN_OPERATORS},
        "attn_decode": _Interpolated(model.attn_decode_ms),
        "attn_prefill": _Interpolated(model.attn_prefill_ms),
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
