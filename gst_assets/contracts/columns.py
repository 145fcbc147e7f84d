"""The columns of the contract's tables, for those who show them and must not wait for pandera: Dagster's definitions.

`columns.json` next to this file is written from the models in `tables` by `python -m gst_assets.contracts.columns`; a
test holds the two equal. What else the columns must hold is in `tables` alone.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_LISTING = Path(__file__).with_name("columns.json")


class Column(NamedTuple):
    """One column of a table: its name, its pandas type, whether values may be missing or must differ, and what it
    is."""

    name: str
    dtype: str
    nullable: bool
    unique: bool
    description: str


def columns_of(file_name: str) -> list[Column]:
    """The columns of the table of that file, e.g. `request_metrics.csv`, in contract order.

    Raises:
        KeyError: no table of the contract.
    """
    return [Column(*row) for row in _listed()[file_name]]


@cache
def _listed() -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = json.loads(_LISTING.read_text(encoding="utf-8"))
    return found


def listing() -> str:
    """What `columns.json` must hold, from the models."""
    from gst_assets.contracts import tables

    models = (getattr(tables, name) for name in tables.__all__)
    schemas = [
        model.to_schema()
        for model in models
        if isinstance(model, type)
        and issubclass(model, tables.Table)
        and model not in (tables.Table, tables.FilledTable)
    ]
    rows = {
        str(schema.name): [
            Column(name, str(column.dtype), column.nullable, column.unique, column.description or "")
            for name, column in schema.columns.items()
        ]
        for schema in schemas
    }
    tables_told = (
        f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in columns) + "\n ]"
        for name, columns in sorted(rows.items())
    )
    return "{\n" + ",\n".join(tables_told) + "\n}\n"


if __name__ == "__main__":
    _LISTING.write_text(listing(), encoding="utf-8")
