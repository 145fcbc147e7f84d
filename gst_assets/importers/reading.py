"""Reading JSON, JSON lines and CSV of other programs: every value by its type, every error with file and line or
item. Meaning belongs to the formats.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gst_assets.errors import ResultsError

_MOST_BYTES = 4 << 30
_LARGEST = 4e18
"""Numbers beyond it do not fit 64-bit nanoseconds."""
_KINDS = (
    (b"\x1f\x8b", "gzip-compressed. Unpack it first"),
    (b"PK\x03\x04", "a zip archive. Unpack it first"),
    (b"PAR1", "a Parquet file. Export the results as the format's own JSON or CSV"),
    (b"\xff\xfe", "UTF-16. Save it as UTF-8"),
    (b"\xfe\xff", "UTF-16. Save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file. Fetch it with git lfs pull"),
)


class Item:
    """One JSON object or CSV row. Each getter returns the value of a key, or raises `ResultsError` with the place, the
    key and what was expected.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, key: str, expected: str) -> ResultsError:
        """What to raise where the value of `key` is not as expected."""
        if key not in self.values:
            known = ", ".join(list(self.values)[:12]) or "nothing"
            return ResultsError(f"{self.where}: {key} missing, expected {expected}; found {known:.300}.")
        return ResultsError(f"{self.where}: {key} is {self.values[key]!r:.80}, expected {expected}.")

    def has(self, key: str) -> bool:
        """Whether the key is there with a value; JSON's null and an empty field are none."""
        return self.values.get(key) not in (None, "")

    def number(self, key: str, *, least: float = -_LARGEST) -> float:
        """A finite number, at least `least`."""
        value = self._number(self.values.get(key))
        if value is None or value < least:
            raise self.error(key, "a finite number" if least == -_LARGEST else f"a finite number of at least {least:g}")
        return value

    def count(self, key: str) -> int:
        """A whole number of at least 0; `64.0` is one, as Vidur writes it."""
        value = self.values.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
            return value  # as it stands: a float has 53 bits
        number = self._number(value)
        if number is None or number < 0 or number != int(number):
            raise self.error(key, "a whole number of at least 0")
        return int(number)

    def text(self, key: str) -> str:
        """Text of at least a character."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "text")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers of at least 0."""
        values = self.values.get(key)
        found = [self._number(one) for one in values] if isinstance(values, list) else [None]
        if any(one is None or one < 0 for one in found):
            bad = next((place for place, one in enumerate(found) if one is None or one < 0), 0)
            where = f"{key}[{bad}]" if isinstance(values, list) else key
            raise ResultsError(
                f"{self.where}: {where} is {(values[bad] if isinstance(values, list) else values)!r:.80}, expected "
                f"{'a finite number of at least 0' if isinstance(values, list) else 'a list of numbers'}."
            )
        return [one for one in found if one is not None]

    def item(self, key: str) -> Item:
        """An object within this one."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Item(value, f"{self.where}, {key}")

    def items(self, key: str) -> list[Item]:
        """A list of objects within this one."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return objects(value, f"{self.where}, {key}")

    @staticmethod
    def _number(value: Any) -> float | None:
        if isinstance(value, str):
            try:
                value = float(value) if value.strip() == value and value and "_" not in value else None
            except ValueError:
                return None
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if abs(value) <= _LARGEST and math.isfinite(value) else None


def objects(values: Sequence[Any], where: str) -> list[Item]:
    """List elements that must be objects, each with its number from 0."""
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise ResultsError(f"{where}: item {number} is {value!r:.60}, expected an object.")
    return [Item(value, f"{where}: item {number}") for number, value in enumerate(values)]


def read_json(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        ResultsError: unreadable, something else than JSON, or a number that JSON has not (NaN); names the line.
    """
    text = _text(path)
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise ResultsError(
                f"{path}: line {error.lineno}: a second JSON value begins. Results that were appended to one file "
                "have to be split; give one result a file."
            ) from None
        raise ResultsError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}). Is the file cut off?") from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: not valid JSON ({error}).") from None


def read_object(path: Path) -> Item:
    """The JSON object of a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ResultsError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return Item(value, str(path))


def read_json_lines(path: Path) -> list[Item]:
    """The JSON objects of a file, one a line; blank lines are left out.

    Raises:
        ResultsError: names the first line that is no JSON object, or a file without any.
    """
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_once_each)
        except (ValueError, RecursionError) as error:
            raise ResultsError(f"{path}: line {number}: not valid JSON ({error}). Is the file cut off?") from None
        if not isinstance(value, dict):
            raise ResultsError(f"{path}: line {number}: expected a JSON object, found {type(value).__name__}.")
        found.append(Item(value, f"{path}: line {number}"))
    if not found:
        raise ResultsError(f"{path}: no line with a JSON object.")
    return found


def read_rows(path: Path, columns: Sequence[str]) -> list[Item]:
    """The rows of a CSV file with a header that has at least `columns`.

    Raises:
        ResultsError: a column missing, or a line with another number of fields than the header.
    """
    rows: Iterator[list[str]] = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    found: list[Item] = []
    try:
        csv.field_size_limit(1 << 30)
        header = next(rows, [])
        missing = [name for name in columns if name not in header]
        if missing:
            raise ResultsError(
                f"{path}: line 1: column {', '.join(missing)} missing; found "
                f"{', '.join(header) or 'nothing':.300}. Is it a file of this format?"
            )
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ResultsError(f"{path}: line 1: column {twice:.80} is there twice. Remove one of them.")
        for row in rows:
            line = rows.line_num  # type: ignore[attr-defined]
            if len(row) != len(header):
                raise ResultsError(
                    f"{path}: line {line} has {len(row)} fields, expected {len(header)}. Is the file cut off?"
                )
            found.append(Item(dict(zip(header, row, strict=True)), f"{path}: line {line}"))
    except csv.Error as error:
        line = rows.line_num  # type: ignore[attr-defined]
        raise ResultsError(f"{path}: line {line}: not valid CSV ({error}).") from None
    if not found:
        raise ResultsError(f"{path}: no row below the header.")
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ResultsError(f"{path}: a directory, expected a file. Name the file in it.")
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            raise ResultsError(f"{path}: no regular file. Save the results to a file first.")
        if path.stat().st_size > _MOST_BYTES:
            raise ResultsError(f"{path}: larger than {_MOST_BYTES >> 30} GiB. Import a part of it.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file. Correct the path.") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}). Check the path and the permissions.") from None
    for mark, what in _KINDS:
        if data.startswith(mark):
            raise ResultsError(f"{path}: {what}.")
    if not data.strip():
        raise ResultsError(f"{path}: empty.")
    if data.lstrip()[:1] == b"<":
        raise ResultsError(f"{path}: an HTML or XML page, not results. Was a login or error page saved in its place?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ResultsError(f"{path}: line {line}: not UTF-8 ({error.reason}). Save it as UTF-8.") from None
