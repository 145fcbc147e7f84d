"""Tables that Vidur's forests predicted, stored on disk by content: mappings from a tuple of integers to milliseconds
per layer.

The parts of a key belong to `published`. Knows neither Vidur nor scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.contracts.npz_files import read_npz
from gst_assets.errors import ContractError
from gst_assets.provenance import sha256_bytes, sha256_file
from gst_assets.staging import staged_file

Table = dict[tuple[float, ...], float]
"""By (num_tokens,), (batch_size, context) or (context, chunk)."""
_ADAPTER = Path(__file__).resolve().parent


@lru_cache(maxsize=2)
def code_sha256(directory: Path = _ADAPTER) -> str:
    """Digest of the Python files of `directory`, by default of the package whose code computes, writes and reads the
    tables.

    Of all its files, not of the few that matter today: tables that are computed again cost seconds; tables of other
    code give a wrong result.
    """
    files = sorted(directory.rglob("*.py"))
    return sha256_bytes("".join(f"{file.relative_to(directory)} {sha256_file(file)}\n" for file in files).encode())


class TableCache:
    """Tables on disk, one npz per key. A file that is damaged counts as absent; nothing is ever unpickled."""

    def __init__(self, directory: Path, key: str) -> None:
        self.path = directory / f"vidur_tables_{key}.npz"

    def load(self) -> dict[str, Table] | None:
        """The tables, or None where the file is absent or damaged."""
        try:
            stored = read_npz(self.path)
        except ContractError:
            return None
        names = [name.removeprefix("keys:") for name in stored if name.startswith("keys:")]
        tables = {name: _table(stored[f"keys:{name}"], stored.get(f"values:{name}")) for name in names}
        whole = {name: table for name, table in tables.items() if table is not None}
        return whole if whole and len(whole) == len(tables) else None

    def store(self, tables: Mapping[str, Table]) -> None:
        """Write all tables under a temporary name, then rename: a reader sees the whole file or none."""
        arrays: dict[str, Any] = {}
        for name, table in tables.items():
            arrays[f"keys:{name}"] = np.array(list(table), dtype=np.int64)
            arrays[f"values:{name}"] = np.fromiter(table.values(), np.float64, len(table))
        with staged_file(self.path) as unfinished, unfinished.open("wb") as handle:
            np.savez(handle, **arrays)


def _table(keys: np.ndarray, values: np.ndarray | None) -> Table | None:
    """The table that two arrays of a file are, or None where `store` does not write such arrays."""
    if (
        values is None
        or keys.dtype != np.int64
        or values.dtype != np.float64
        or keys.ndim != 2
        or values.shape != keys.shape[:1]
    ):
        return None
    if not np.isfinite(values).all():
        return None
    return dict(zip(map(tuple, keys.tolist()), values.tolist(), strict=True))
