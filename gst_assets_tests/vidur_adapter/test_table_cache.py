"""The cache of forest tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.vidur_adapter.table_cache import TableCache

TABLES = {"attn_decode": {(1, 16): 0.25, (2, 16): 0.5}, "add": {(1,): 1e-9, (8,): 0.1}}


def test_tables_come_back_as_they_were_stored(tmp_path: Path) -> None:
    cache = TableCache(tmp_path / "new", "k")
    assert cache.load() is None
    cache.store(TABLES)
    assert cache.load() == TABLES
    assert [path.name for path in cache.path.parent.iterdir()] == ["vidur_tables_k.npz"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, damage: str) -> None:
    cache = TableCache(tmp_path, "k")
    cache.store(TABLES)
    stored = cache.path.read_bytes()
    middle = len(stored) // 3
    cache.path.write_bytes(
        {
            "empty": b"",
            "cut": stored[: len(stored) // 2],
            "flipped": stored[:middle] + bytes(255 - b for b in stored[middle : middle + 64]) + stored[middle + 64 :],
            "text": b"not a zip file",
        }[damage]
    )
    assert cache.load() is None
    cache.store(TABLES)
    assert cache.load() == TABLES
