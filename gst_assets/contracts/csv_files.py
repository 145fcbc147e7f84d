"""Reading and writing the contract's CSV files: UTF-8, header row, comma, `\\n`, integers as plain digits.

Only bytes and column types are handled here; the meaning of columns belongs to `tables`. Importable on a GPU host
(pandas only).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pandas as pd

from gst_assets.contracts.packed_files import PACKED, unpacked
from gst_assets.errors import ContractError
from gst_assets.input_files import LONGEST_LINE_BYTES, InputKind, decoded, read_bytes, refuse_foreign

INTEGER = "Int64"
"""Nullable integer: an empty field is a missing value, never zero."""
FLOAT = "float64"
"""Finite number: an empty field is a missing value (NaN); `inf` and `nan` in words are refused."""
STRING = "str"
BOOLEAN = "bool"

_EXPECTED = {
    INTEGER: "an integer in plain digits that fits 64 bits",
    FLOAT: "a finite number",
    BOOLEAN: "True or False",
}
_WRITTEN_AS = {
    INTEGER: r"-?[0-9]+",
    FLOAT: r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
}
_KIND = InputKind(
    ContractError,
    missing="file missing. Materialize the asset that writes it.",
    expected="a readable CSV file",
    remedy="Correct the path, or the file's permissions.",
    most_bytes=8 << 30,
)
_NEEDS_QUOTES = re.compile('[,"\r\n]')
# pandas' number parser skips blanks and a plus sign. A file that holds one of these anywhere is parsed by `_WRITTEN_AS`
# instead.
_TOLERATED_BY_PANDAS = (b" ", b"+", b"\t", b"\x0b", b"\x0c")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` as a contract CSV. Missing values become empty fields; floats keep every digit.

    Raises:
        ContractError: text that UTF-8 cannot hold (half of a surrogate pair).
    """
    table = _columns_of(frame)
    if table is not None:
        with path.open("wb") as handle:
            _write_columns(table, handle, has_header=True)
        return
    text = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
    try:
        # The csv module quotes a field for the line end in use, `\n`, only; unquoted, a lone `\r` would read back as
        # the end of a row.
        has_return = any(frame[name].astype("str").str.contains("\r", regex=False).any() for name in text)
        quoting: Literal[0, 2] = 2 if has_return else 0  # csv.QUOTE_NONNUMERIC, csv.QUOTE_MINIMAL
        frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8", quoting=quoting)
    except UnicodeEncodeError as error:
        raise ContractError(
            f"{path}: text {error.object[error.start : error.end]!r} cannot be written as UTF-8. Replace it."
        ) from None


def write_integers(parts: Iterable[pd.DataFrame], path: Path) -> None:
    """As `write_csv` of the parts one below the other, with one of them in memory at a time. There is at least one;
    all have the same columns, of integers."""
    with path.open("wb") as handle:
        for number, part in enumerate(parts):
            table = _columns_of(part)
            if table is not None:
                _write_columns(table, handle, has_header=number == 0)
            else:
                handle.write(part.to_csv(index=False, header=number == 0, lineterminator="\n").encode())


def _columns_of(frame: pd.DataFrame) -> Any:
    """The frame as a pyarrow table, which is written many times faster than by rows and byte for byte the same; None
    where it cannot be: without pyarrow, and for floats (whose digits differ), text that needs quotes, and a lone column
    (whose empty fields need quotes)."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ImportError:
        return None
    names = [str(name) for name in frame.columns]
    if len(names) < 2 or frame.empty or _NEEDS_QUOTES.search("".join(names)):
        return None
    columns = []
    for position in range(len(names)):
        values = frame.iloc[:, position]
        if values.dtype == "bool":
            values = values.map({True: "True", False: "False"}).astype("str")
        if isinstance(values.dtype, pd.StringDtype):
            try:
                column = pa.array(values, pa.large_string())
            except (UnicodeEncodeError, pa.ArrowInvalid):
                return None
            if pc.any(pc.match_substring_regex(column, _NEEDS_QUOTES.pattern)).as_py():
                return None
        elif pd.api.types.is_integer_dtype(values.dtype):
            column = pa.array(values)
        else:
            return None
        columns.append(column)
    return pa.Table.from_arrays(columns, names=names)


def _write_columns(table: Any, handle: BinaryIO, *, has_header: bool) -> None:
    from pyarrow import csv as pa_csv

    if has_header:
        handle.write(",".join(table.column_names).encode() + b"\n")
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none", batch_size=1 << 16)
    pa_csv.write_csv(table, handle, options)


def read_csv(path: Path, columns: Mapping[str, str], *, optional: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a contract CSV with exact types; packed, if its name ends with `.xz`.

    `columns` and `optional` map a column to `INTEGER`, `FLOAT`, `STRING` or `BOOLEAN`. Columns may stand in any order
    in the file; the frame has the required ones first, then the optional ones present, then any the contract does not
    know (as text). No value is converted: `1.0` or ` 1` in an integer column is an error, and text such as `NA` stays
    text.

    Raises:
        ContractError: file missing, empty, cut off, not UTF-8, with other line ends; a required column missing or a
            column twice; a line with too few or too many fields; a field of the wrong type (names file, line and
            column).
        ArtifactError: packed, and not whole.
    """
    optional = optional or {}
    data = _read_bytes(path)
    header = _header(path, data)
    missing = [name for name in columns if name not in header]
    if missing:
        raise ContractError(
            f"{path}: column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing. Expected"
            f" {', '.join(columns)}; found {', '.join(header):.500}. Write the file with the columns of the contract."
        )
    _check_field_counts(path, data, len(header))
    known = {**columns, **{name: kind for name, kind in optional.items() if name in header}}
    order = {**known, **{name: STRING for name in header if name not in known}}
    return _parse(path, data, header, order)


def line_of_row(path: Path, row: int) -> int:
    """Line (from 1) on which row `row` (from 0, below the header) begins; a quoted field may span several lines."""
    for number, (line, _) in enumerate(_rows(_content(path))):
        if number == row + 1:
            return line
    raise IndexError(f"{path} has no row {row}")


def _content(path: Path) -> bytes:
    data = read_bytes(path, _KIND)
    return unpacked(data, path, "Restore it from version control.") if path.suffix == PACKED else data


def _read_bytes(path: Path) -> bytes:
    data = _content(path)
    if not data:
        raise ContractError(f"{path}: empty file, expected a header row. Materialize the asset that writes it again.")
    refuse_foreign(data, path, _KIND)
    if not data.isascii():
        decoded(data, path, _KIND)
    # Other programs leave the last line end out. Whether the row is whole is seen from its fields; that no digit of it
    # is missing, from the file's digest.
    if not data.endswith(b"\n"):
        data += b"\n"
    returned = data.find(b"\r", 0, data.index(b"\n") + 1) if b'"' in data else data.find(b"\r")
    if returned >= 0:
        line = data.count(b"\n", 0, returned) + 1
        raise ContractError(f"{path}: line {line} holds a carriage return. Write lines that end with \\n alone.")
    return data


def _header(path: Path, data: bytes) -> list[str]:
    try:
        _, header = next(_rows(data))
    except csv.Error as error:
        raise ContractError(f"{path}: line 1: not a CSV header ({error}).") from None
    if not header:
        raise ContractError(f"{path}: line 1 is blank, expected a header row.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ContractError(
            f"{path}: column {', '.join(twice):.300} occurs more than once in the header. Remove all but one."
        )
    return header


def _rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line it begins on. One Python step a row: for headers, quoted files and error messages."""
    # Python's own bound of 131,072 characters is for the process. What `write_csv` writes has none.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE_BYTES))
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline=""), strict=True)
    line = 1
    for row in reader:
        yield line, row
        line = reader.line_num + 1


def _check_field_counts(path: Path, data: bytes, expected: int) -> None:
    """Every line must have `expected` fields: pandas would fill a short one with empty fields."""
    if b'"' in data:
        _count_fields_by_line(path, data, expected)
        return
    lines, commas = (int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord(mark))) for mark in "\n,")
    second = data.index(b"\n") + 1
    in_second = data.count(b",", second, data.find(b"\n", second)) if lines > 1 else expected - 1
    # With the right total a short line needs a long one elsewhere, and pandas refuses every long line but the second.
    if commas != lines * (expected - 1) or in_second != expected - 1 or b"\n\n" in data:
        _count_fields_by_line(path, data, expected)


def _count_fields_by_line(path: Path, data: bytes, expected: int) -> None:
    line = 0
    try:
        for line, row in _rows(data):
            if len(row) != expected:
                found = f"has {len(row)} field{'s' if len(row) > 1 else ''}" if row else "is blank"
                raise ContractError(f"{path}: line {line} {found}, expected {expected} fields. Is the file cut off?")
    except csv.Error as error:
        raise ContractError(
            f"{path}: not valid CSV below line {line} ({error}). Quote fields that hold commas, quotes or line ends."
        ) from None


def _parse(path: Path, data: bytes, header: list[str], types: Mapping[str, str]) -> pd.DataFrame:
    text_columns = {name: STRING for name, kind in types.items() if kind in (STRING, BOOLEAN)}
    columns: dict[str, pd.Series] = {}
    if not any(mark in data for mark in _TOLERATED_BY_PANDAS):
        # Fast: let pandas infer the numbers, and use what it inferred where that shows that every field was written as
        # required.
        inferred = _pandas_read(path, data, header, text_columns)
        for name, kind in types.items():
            dtype = inferred[name].dtype
            if kind == INTEGER and dtype == np.int64:
                nothing_missing = np.zeros(len(inferred), dtype=bool)
                columns[name] = pd.Series(pd.arrays.IntegerArray(inferred[name].to_numpy(), nothing_missing))
            elif kind == FLOAT and dtype in (np.float64, np.int64) and not np.isinf(inferred[name]).any():
                columns[name] = inferred[name].astype(np.float64)
            elif kind == STRING:
                columns[name] = inferred[name]
    rest = [name for name in types if name not in columns]
    if rest:
        text = _pandas_read(path, data, header, dict.fromkeys(rest, STRING), rest)
        columns |= {name: _from_text(path, name, text[name], types[name]) for name in rest}
    return pd.DataFrame({name: columns[name] for name in types}, copy=False)


def _pandas_read(
    path: Path, data: bytes, header: list[str], dtype: Mapping[str, str], only: list[str] | None = None
) -> pd.DataFrame:
    try:
        return pd.read_csv(
            io.BytesIO(data),
            names=header,
            header=0,
            index_col=False,  # else a first row with a field too many would make pandas take its first column as index
            dtype=dict(dtype),
            # With `usecols` pandas accepts lines that are too long, so it never stands in the first read of a file.
            usecols=only if only is not None and len(only) < len(header) else None,
            na_filter=False,  # a prompt may be called NA; a number column with empty fields is inferred as text
            skip_blank_lines=False,
            low_memory=False,
            encoding="utf-8",
        )
    except pd.errors.ParserError as error:
        _count_fields_by_line(path, data, len(header))
        raise ContractError(f"{path}: not valid CSV ({error}).") from None


def _from_text(path: Path, name: str, text: pd.Series, kind: str) -> pd.Series:
    """Convert one column field by field, naming the first that is not written as its type requires."""
    if kind == STRING:
        return text
    if kind == BOOLEAN:
        values = text.map({"True": True, "False": False, "true": True, "false": False})
        _require(path, name, text, kind, values.notna())
        return values.astype(bool)
    empty = text == ""
    _require(path, name, text, kind, empty | text.str.fullmatch(_WRITTEN_AS[kind]))
    if kind == FLOAT:
        numbers = text.where(~empty, "nan").to_numpy(dtype=object).astype(np.float64)
        _require(path, name, text, kind, pd.Series(~np.isinf(numbers)))
        return pd.Series(numbers)
    digits = text.where(~empty, "0").to_numpy(dtype=object)
    try:
        integers = digits.astype(np.int64)
    except (OverflowError, ValueError):  # ValueError: Python refuses to convert more than a few thousand digits
        limits = np.iinfo(np.int64)
        fits = [len(one.lstrip("-0")) < 20 and limits.min <= int(one) <= limits.max for one in digits]
        _require(path, name, text, kind, pd.Series(fits))
        raise
    return pd.Series(pd.arrays.IntegerArray(integers, empty.to_numpy(dtype=bool)))


def _require(path: Path, name: str, text: pd.Series, kind: str, good: pd.Series) -> None:
    if not good.all():
        row = int((~good.to_numpy(dtype=bool)).argmax())
        raise ContractError(
            f"{path}: line {line_of_row(path, row)}, column {name}: {text.iloc[row]!r:.80} is not {_EXPECTED[kind]}."
        )
