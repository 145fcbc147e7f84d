"""Reading JSON, JSON lines and CSV of other programs: every value by its type, every error with file and line or
item. Meaning belongs to the formats, files as such to `input_files`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gst_assets.errors import ResultsError
from gst_assets.input_files import InputKind, JsonProblem, lines, open_input, parse_json, read_text

_LARGEST = 4e18
"""Numbers beyond it do not fit 64-bit nanoseconds."""
_MOST_DIGITS = 19
"""Of a whole number up to `_LARGEST`."""
_KIND = InputKind(
    ResultsError,
    missing="no such file. Correct the path.",
    expected="a file of results",
    remedy="Name the file that the program wrote.",
    most_bytes=4 << 30,
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
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
            return value  # as it stands: a float has 53 bits
        number = self._number(value)
        if number is None or number < 0 or number != int(number):
            raise self.error(key, "a whole number of at least 0")
        return int(number)

    def flag(self, key: str) -> bool:
        """True or false; false where the key is not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return bool(value)

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
                value = float(value) if value.strip() == value and value.isascii() and "_" not in value else None
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
        return parse_json(text, keys_once=True)
    except JsonProblem as problem:
        where = f"{path}: line {problem.line}" if problem.line is not None else str(path)
        if problem.reason == "Extra data":
            raise ResultsError(
                f"{where}: a second JSON value begins. Results that were appended to one file have to be split; give"
                " one result a file."
            ) from None
        # Only a text that ends or breaks somewhere has a line; what is forbidden anywhere in it is not cut off.
        cut_off = " Is the file cut off?" if problem.line is not None else ""
        raise ResultsError(f"{where}: not valid JSON ({problem.reason}).{cut_off}") from None


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
    with open_input(path, _KIND) as handle:
        for number, line in lines(handle, path, _KIND):
            where = f"{path}: line {number}"
            if not line.strip():
                continue
            try:
                value = parse_json(line.decode("utf-8"), keys_once=True)
            except UnicodeDecodeError as error:
                raise ResultsError(f"{where}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
            except JsonProblem as problem:
                raise ResultsError(f"{where}: not valid JSON ({problem.reason}). Is the file cut off?") from None
            if not isinstance(value, dict):
                raise ResultsError(f"{where}: expected a JSON object, found {type(value).__name__}.")
            found.append(Item(value, where))
    if not found:
        raise ResultsError(f"{path}: empty, expected a JSON object a line. Name the file that the program wrote.")
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


def _text(path: Path) -> str:
    text = read_text(path, _KIND)
    if not text.strip():
        raise ResultsError(f"{path}: empty. Name the file that the program wrote.")
    return text
