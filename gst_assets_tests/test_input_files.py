"""The boundary that every loader opens its file and parses its JSON through."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from gst_assets import input_files
from gst_assets.errors import WorkloadError
from gst_assets.input_files import (
    DEEPEST_JSON,
    InputKind,
    JsonProblem,
    foreign,
    lines,
    open_input,
    parse_json,
    read_bytes,
)

KIND = InputKind(WorkloadError, missing="nothing there.", expected="a list", remedy="Correct it.", most_bytes=10)


def test_a_file_within_its_bound_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, KIND) == b"0123456789"
    path.write_bytes(b"0123456789a")
    with pytest.raises(WorkloadError, match=r"has 11 bytes, expected a list of at most 10\. Correct it\."):
        open_input(path, KIND)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0")
    with open_input(path, KIND) as handle:
        handle.read(0)
        size = path.stat().st_size
        path.write_bytes(b"0" * 9)
        assert size == 1
        assert input_files.read_from(handle, path, KIND) == b"0" * 9  # grown before: what is there now is read

    class Growing:
        """A handle of a file to which another process writes between the look at its size and the reading."""

        def __init__(self) -> None:
            self.inner = path.open("rb")

        def fileno(self) -> int:
            return self.inner.fileno()

        def read(self, size: int) -> bytes:
            with path.open("ab") as other:
                other.write(b"more")
            return self.inner.read(size)

    with pytest.raises(WorkloadError, match="was written to while it was read"):
        input_files.read_from(Growing(), path, KIND)  # type: ignore[arg-type]


def test_lines_end_with_a_newline_and_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "LONGEST_LINE_BYTES", 5)
    path = tmp_path / "f"
    path.write_bytes(b"a\rb\n\nlast")
    with open_input(path, KIND) as handle:
        assert list(lines(handle, path, KIND)) == [(1, b"a\rb\n"), (2, b"\n"), (3, b"last")]
    path.write_bytes(b"a\n1234567")
    with open_input(path, KIND) as handle, pytest.raises(WorkloadError, match="line 2: more than"):
        list(lines(handle, path, KIND))


@pytest.mark.parametrize("text", ["plain", "", "a", "\x00a", '{"a": 1}', "<a", "PAR2", "\u0101\u0102" * 20])
def test_text_is_not_taken_for_something_else(text: str) -> None:
    assert foreign(text.encode()) is None


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ('{"a": 1,\n "b": }', "Expecting value", 2),
        ("NaN", "NaN is no JSON value", None),
        ("[1e999]", "the number 1e999 is too large", None),
        ("9" * 5000, "an integer of more digits", None),
        ("[" * (DEEPEST_JSON + 1) + "]" * (DEEPEST_JSON + 1), "nested deeper than 100", None),
        ('{"a":' * (DEEPEST_JSON + 1) + "1" + "}" * (DEEPEST_JSON + 1), "nested deeper than 100", None),
        ("[" * 100_000, "nested deeper than 100", None),
    ],
)
def test_what_is_no_json_here_says_why(text: str, reason: str, line: int | None) -> None:
    with pytest.raises(JsonProblem) as problem:
        parse_json(text)
    assert problem.value.reason.startswith(reason) and problem.value.line == line


def test_what_is_json_here() -> None:
    deep = "[" * DEEPEST_JSON + "]" * DEEPEST_JSON
    assert json.dumps(parse_json(deep)) == deep
    assert len(parse_json("[" + "[]," * 1000 + "[]]")) == 1001
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(JsonProblem, match="the key 'a' is written twice"):
        parse_json('{"b": {"x": 1, "a": 1, "a": 2}}', keys_once=True)
    assert parse_json("[0.1, 1e999]", exact=Decimal) == [Decimal("0.1"), Decimal("1e999")]
