"""Reading and writing the contract's CSV files: UTF-8, header row, comma, `\n`, integers as plain digits.

Only bytes and column types are handled here; the meaning of columns belongs to `tables`. Importable on a GPU host
(pandas only).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from gst_assets.errors import ContractError

INTEGER = "Int64"
"""Nullable integer: an empty field is a missing value, never zero."""
FLOAT = "float64"
STRING = "str"
BOOLEAN = "bool"


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` as a contract CSV. Missing values become empty fields; floats keep every digit."""
    frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def read_csv(path: Path, columns: Mapping[str, str], *, optional: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a contract CSV with exact types.

    `columns` and `optional` map a column to `INTEGER`, `FLOAT`, `STRING` or `BOOLEAN`. Columns may stand in any order in the file;
    the frame has the required ones first, then the optional ones present, then any the contract does not know (as text).

    Raises:
        ContractError: file missing or empty, a required column missing, a column twice, or a field of the wrong type
            (names file, line and column).
    """
    optional = optional or {}
    header = _read_header(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise ContractError(
            f"{path}: column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing. Expected {', '.join(columns)}; "
            f"found {', '.join(header)}. Write the file with the columns of the contract."
        )
    known = {**columns, **{k: v for k, v in optional.items() if k in header}}
    types = {name: known.get(name, STRING) for name in header}
    frame = _parse(path, types)
    order = [*known, *[name for name in header if name not in known]]
    return frame[order]


def _read_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            header = next(csv.reader(handle), None)
    except FileNotFoundError:
        raise ContractError(f"{path}: file missing. Materialize the asset that writes it.") from None
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: not UTF-8 ({error}). Write the file as UTF-8.") from None
    if not header:
        raise ContractError(f"{path}: empty file, expected a header row.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ContractError(f"{path}: column {', '.join(twice)} occurs more than once in the header. Keep one.")
    return header


def _parse(path: Path, types: Mapping[str, str]) -> pd.DataFrame:
    pandas_types = {name: kind for name, kind in types.items() if kind != BOOLEAN}
    pandas_types |= {name: STRING for name, kind in types.items() if kind == BOOLEAN}
    try:
        frame = pd.read_csv(
            path, dtype=pandas_types, keep_default_na=False, na_values=_missing_markers(types), encoding="utf-8"
        )
    except (ValueError, TypeError, pd.errors.ParserError):
        raise _locate_bad_field(path, types) from None
    for name, kind in types.items():
        if kind == BOOLEAN:
            frame[name] = _to_bool(path, name, frame[name])
    return frame


def _missing_markers(types: Mapping[str, str]) -> dict[str, list[str]]:
    # A text column keeps "" and "NA" as text: a prompt may be called NA.
    return {name: [""] for name, kind in types.items() if kind in (INTEGER, FLOAT)}


def _to_bool(path: Path, name: str, column: pd.Series) -> pd.Series:
    values = column.map({"True": True, "False": False, "true": True, "false": False})
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax())
        raise ContractError(f"{path}: line {row + 2}, column {name}: {column.iloc[row]!r} is not True or False.")
    return values.astype(bool)


def _locate_bad_field(path: Path, types: Mapping[str, str]) -> ContractError:
    """Find the first field that does not parse. Slow, and only reached once the fast reader has failed."""
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle)
        header = next(reader)
        for row in reader:
            line = reader.line_num
            if not row:
                continue
            if len(row) != len(header):
                return ContractError(
                    f"{path}: line {line} has {len(row)} fields, expected {len(header)}. Is the file cut off?"
                )
            for name, text in zip(header, row, strict=True):
                kind = types[name]
                if text == "" or kind in (STRING, BOOLEAN):
                    continue
                try:
                    int(text) if kind == INTEGER else float(text)
                except ValueError:
                    wanted = "an integer in plain digits" if kind == INTEGER else "a number"
                    return ContractError(f"{path}: line {line}, column {name}: {text!r} is not {wanted}.")
    return ContractError(f"{path}: the file does not parse as CSV with columns {', '.join(types)}.")
