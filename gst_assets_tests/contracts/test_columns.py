"""The listing of the tables' columns says what the models say, and can be read without them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gst_assets.contracts import columns, tables
from gst_assets.provenance import PROJECT_ROOT


def test_the_listing_is_that_of_the_models() -> None:
    listed = (PROJECT_ROOT / "gst_assets" / "contracts" / "columns.json").read_text(encoding="utf-8")
    assert listed == columns.listing(), "write it again: python -m gst_assets.contracts.columns"


def test_a_table_is_found_by_its_file() -> None:
    found = columns.columns_of(tables.RequestMetrics.file_name())
    assert found[0] == ("request_id", "Int64", False, False, "primary key, 0..N-1")
    assert [one.name for one in found] == list(tables.RequestMetrics.to_schema().columns)
    with pytest.raises(KeyError):
        columns.columns_of("no_table.csv")


def test_reading_it_imports_neither_pandas_nor_pandera() -> None:
    program = (
        "import sys; from gst_assets.contracts.columns import columns_of; columns_of('mlp.csv')\n"
        "print(*({'pandas', 'numpy', 'pandera'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
