"""Bytes and types of the contract's CSV files: nothing is converted in silence, and what is wrong is named by file,
line and column."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts.csv_files import (
    BOOLEAN,
    FLOAT,
    INTEGER,
    STRING,
    line_of_row,
    read_csv,
    write_csv,
    write_integers,
)
from gst_assets.errors import ContractError
from gst_assets_tests.contracts.frames import AWKWARD_TEXT

COLUMNS = {"n": INTEGER, "x": FLOAT, "s": STRING, "b": BOOLEAN}


def _read(tmp_path: Path, content: str | bytes, columns: dict[str, str] = COLUMNS) -> pd.DataFrame:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(path, columns)


def _error(tmp_path: Path, content: str | bytes, columns: dict[str, str] = COLUMNS) -> str:
    with pytest.raises(ContractError) as error:
        _read(tmp_path, content, columns)
    assert str(error.value).startswith(f"{tmp_path / 't.csv'}: ")
    return str(error.value).removeprefix(f"{tmp_path / 't.csv'}: ")


# --- values -----------------------------------------------------------------------------------------------------------


def test_types_are_exact_and_missing_values_stay_missing(tmp_path: Path) -> None:
    frame = _read(tmp_path, "n,x,s,b\n1,0.1,NA,True\n,,null,False\n-3,2,,true\n")
    expected = pd.DataFrame(
        {
            "n": pd.array([1, pd.NA, -3], dtype="Int64"),
            "x": [0.1, np.nan, 2.0],
            "s": pd.array(["NA", "null", ""], dtype="str"),
            "b": [True, False, True],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)


@pytest.mark.parametrize("neighbour", ["5", ""], ids=["without", "beside_a_missing_value"])
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**53 + 1, 0])
def test_large_integers_are_exact(tmp_path: Path, value: int, neighbour: str) -> None:
    frame = _read(tmp_path, f"n,s\n{value},a\n{neighbour},b\n", {"n": INTEGER, "s": STRING})
    assert int(frame["n"].iloc[0]) == value


@pytest.mark.parametrize("neighbour", ["5", ""], ids=["alone", "beside_a_missing_value"])
@pytest.mark.parametrize(
    "text",
    ["1.0", "1.", "1e3", " 1", "1 ", "+1", "1_000", "0x10", "True", "nan", "NaN", "inf", "-", "--1", "1-2", "x", "١",
     str(2**63), str(-(2**63) - 1), "9" * 30, "9" * 5000],
)  # fmt: skip
def test_what_is_no_plain_integer_is_refused(tmp_path: Path, text: str, neighbour: str) -> None:
    message = _error(tmp_path, f"n,s\n{neighbour},b\n{text},a\n", {"n": INTEGER, "s": STRING})
    assert message.startswith("line 3, column n: ")
    assert "is not an integer in plain digits that fits 64 bits" in message


def test_a_column_of_booleans_is_no_column_of_numbers(tmp_path: Path) -> None:
    for kind in (INTEGER, FLOAT):
        assert _error(tmp_path, "n\nTrue\nFalse\n", {"n": kind}).startswith("line 2, column n: 'True' is not a")


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999", "1_0", " 1.5", "+1.5", "x", "NA", "."]
)
def test_what_is_no_finite_number_is_refused(tmp_path: Path, text: str) -> None:
    message = _error(tmp_path, f"x,s\n1.5,b\n{text},a\n", {"x": FLOAT, "s": STRING})
    assert message == f"line 3, column x: {text!r} is not a finite number."


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=1, max_size=5))
def test_floats_keep_every_digit(values: list[float | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        write_csv(pd.DataFrame({"x": pd.Series(values, dtype="float64"), "n": 1}), path)
        read = read_csv(path, {"x": FLOAT})["x"]
        assert [None if value is None else value.hex() for value in values] == [
            None if np.isnan(value) else value.hex() for value in read.tolist()
        ]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(AWKWARD_TEXT),
        min_size=1,
        max_size=5,
    )
)
def test_text_stays_as_it_is(values: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        frame = pd.DataFrame({"n": range(len(values)), "s": pd.Series(values, dtype="str"), "m": pd.NA})
        write_csv(frame.astype({"n": "Int64", "m": "Int64"}), path)
        first = path.read_bytes()
        read = read_csv(path, {"n": INTEGER, "s": STRING, "m": INTEGER})
        assert read["s"].tolist() == values
        assert read["m"].isna().all()
        write_csv(read, path)
        assert path.read_bytes() == first


def test_text_that_utf8_cannot_hold_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"t\.csv: text '\\ud800' cannot be written as UTF-8"):
        write_csv(pd.DataFrame({"s": pd.Series(["\ud800"], dtype=object)}), tmp_path / "t.csv")


def test_floats_are_read_to_the_last_bit(tmp_path: Path) -> None:
    """Exact in pandas 3.1 by default; earlier versions were off by a bit in some of such numbers."""
    generator = np.random.Generator(np.random.PCG64(1))
    bits = generator.integers(0, 0x7FEF_FFFF_FFFF_FFFF, 5000)  # every finite positive float is as likely
    values = pd.DataFrame({"x": np.concatenate([bits.view(np.float64), generator.random(5000)]), "n": 1})
    write_csv(values, tmp_path / "t.csv")
    assert read_csv(tmp_path / "t.csv", {"x": FLOAT})["x"].equals(values["x"])


def test_a_boolean_in_other_words_is_refused(tmp_path: Path) -> None:
    assert _error(tmp_path, "b\nTrue\nyes\n", {"b": BOOLEAN}) == "line 3, column b: 'yes' is not True or False."
    assert _error(tmp_path, "b,n\nTrue,1\n,2\n", {"b": BOOLEAN}).startswith("line 3, column b: ''")


# --- columns ----------------------------------------------------------------------------------------------------------


def test_order_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("extra,opt,b,a\n01,2.5,3,4\n")
    frame = read_csv(path, {"a": INTEGER, "b": INTEGER}, optional={"none": STRING, "opt": FLOAT})
    assert list(frame.columns) == ["a", "b", "opt", "extra"]
    assert frame.iloc[0].tolist() == [4, 3, 2.5, "01"]


def test_missing_and_double_columns_are_named(tmp_path: Path) -> None:
    message = _error(tmp_path, "n,s\n1,a\n")
    assert message.startswith("columns x, b missing. Expected n, x, s, b; found n, s.")
    assert _error(tmp_path, "n,x,s,b,x\n").startswith("column x occurs more than once in the header.")


# --- the file itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty file, expected a header row"),
        (b"\n", "line 1 is blank, expected a header row"),
        (b"n,s\n1,a\n2", "line 3 has 1 field, expected 2 fields. Is the file cut off?"),
        (b"n,s\n1,a\n2\n", "line 3 has 1 field, expected 2 fields. Is the file cut off?"),
        (b"n,s\n1,a\n2,b,c\n", "line 3 has 3 fields, expected 2 fields"),
        (b"n,s\n1,a,c\n2,b,c\n", "line 2 has 3 fields, expected 2 fields"),
        (b"n,s\n1,a\n\n2,b\n", "line 3 is blank, expected 2 fields"),
        (b"n,s\n1,a\n\n", "line 3 is blank, expected 2 fields"),
        (b"n,s\n1,a\n2,\xff\n", "line 3: not UTF-8"),
        (b"n,\xe9\n1,a\n", "line 1: not UTF-8"),
        (b"\xef\xbb\xbfn,s\n1,a\n", "begins with a byte order mark"),
        (b"n,s\r\n1,a\r\n", "line 1 holds a carriage return"),
        (b"n,s\n1,a\r2,b\n", "line 2 holds a carriage return"),
        (b'n,s\n1,"a\n', "not valid CSV below line 1"),
        (b'n,s\n1,"a"b\n', "not valid CSV below line 1"),
        (b'"n,s\n1,a\n', "line 1: not a CSV header"),
        (b'n,s\n1,"a"\n2\n', "line 3 has 1 field, expected 2 fields"),
        (b'n,s\n1,"a\nb"\n2,c\nx,d\n', "line 5, column n: 'x' is not an integer"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    assert _error(tmp_path, content, {"n": INTEGER, "s": STRING}).startswith(says)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=7))
def test_a_line_with_other_than_the_expected_fields_never_passes(counts: list[int]) -> None:
    """Also where short and long lines add up to the right number of fields."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("a,b,c\n" + "".join(",".join("1" * count) + "\n" for count in counts))
        columns = dict.fromkeys("abc", INTEGER)
        if set(counts) == {3}:
            assert read_csv(path, columns)["c"].tolist() == [1] * len(counts)
            return
        line = next(number for number, count in enumerate(counts, start=2) if count != 3)
        with pytest.raises(ContractError, match=f"line {line} has {counts[line - 2]} field"):
            read_csv(path, columns)


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"none\.csv: file missing\. Materialize the asset"):
        read_csv(tmp_path / "none.csv", COLUMNS)
    with pytest.raises(ContractError, match="is a directory, expected a readable CSV file"):
        read_csv(tmp_path, COLUMNS)


def test_a_last_row_with_every_field_is_whole_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'n,s\n1,a\n2,"b,c"')
    assert read_csv(path, {"n": INTEGER, "s": STRING}).to_numpy().tolist() == [[1, "a"], [2, "b,c"]]


def test_a_field_may_be_longer_than_pythons_own_bound(tmp_path: Path) -> None:
    path, long = tmp_path / "t.csv", "x," * 70_000
    write_csv(pd.DataFrame({"n": pd.array([1], dtype="Int64"), "s": [long]}), path)
    assert read_csv(path, {"n": INTEGER, "s": STRING})["s"].tolist() == [long]
    assert line_of_row(path, 0) == 2


def test_a_blank_line_of_a_single_column_is_no_missing_value(tmp_path: Path) -> None:
    assert _error(tmp_path, "n\n1\n\n2\n", {"n": INTEGER}).startswith("line 3 is blank")


def test_header_alone_is_a_frame_without_rows_of_the_right_types(tmp_path: Path) -> None:
    frame = _read(tmp_path, "n,x,s,b\n")
    assert len(frame) == 0
    assert [str(kind) for kind in frame.dtypes] == ["Int64", "float64", "str", "bool"]


@pytest.mark.parametrize("with_pyarrow", [True, False])
def test_integers_written_in_parts_are_the_whole_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_pyarrow: bool
) -> None:
    frame = pd.DataFrame({"a": range(10), "b": [-(10**18), 0, None, 7, 8] * 2}, dtype="Int64")
    write_csv(frame, tmp_path / "whole.csv")
    if not with_pyarrow:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_integers((frame[begin : begin + 3] for begin in range(0, 10, 3)), tmp_path / "parts.csv")
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "whole.csv").read_text().splitlines()[:3] == ["a,b", "0,-1000000000000000000", "1,0"]


def test_line_of_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"x\ny\nz"\n2,w\n3,v\n')
    assert [line_of_row(path, row) for row in range(3)] == [2, 5, 6]
    with pytest.raises(IndexError):
        line_of_row(path, 3)


def test_the_reader_needs_neither_dagster_nor_pandera() -> None:
    """It runs on a bare GPU host."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('dagster', 'pandera', 'vidur', 'omegaconf', 'sklearn', 'scipy')))\n"
        "import gst_assets.contracts.csv_files, gst_assets.contracts.documents, gst_assets.contracts.store\n"
        "import gst_assets.scenario, gst_assets.provenance\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=600)
