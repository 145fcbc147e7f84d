"""The cache of forest tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gst_assets.vidur_adapter import published
from gst_assets.vidur_adapter.table_cache import TableCache, code_sha256

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


def test_the_code_of_the_adapter_is_part_of_what_tables_are_of(tmp_path: Path) -> None:
    """A file edited, added or renamed gives another digest; equal files elsewhere the same."""
    package = Path(published.__file__).parent
    copy = tmp_path / "vidur_adapter"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def digest() -> str:
        code_sha256.cache_clear()
        return code_sha256(copy)

    same = digest()
    assert same == code_sha256(package) == code_sha256()
    edited = copy / "published.py"
    edited.write_text(edited.read_text().replace("RANDOM_STATE = ", "RANDOM_STATE = 1 + "))
    assert digest() != same
    shutil.copy(package / "published.py", edited)
    assert digest() == same
    (copy / "added.py").touch()
    added = digest()
    assert added != same
    (copy / "added.py").rename(copy / "renamed.py")
    assert digest() not in (same, added)
