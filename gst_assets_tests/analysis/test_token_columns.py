from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gst_assets.analysis import token_columns
from gst_assets.analysis.token_columns import COLUMNS, read_tokens
from gst_assets.errors import ContractError

GOOD = "request_id,token_index,token_time_ns,token_latency_ns\n0,0,5,0\n0,1,9,4\n2,0,9007199254740993,0\n"
WITHOUT_LATENCY = "token_time_ns,token_index,request_id\n5,0,0\n9,1,0\n7,0,2\n"


def _file(folder: Path, text: str) -> Path:
    path = folder / "token_metrics.csv"
    path.write_text(text)
    return path


def test_integers_are_exact_and_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    frame, derived = read_tokens(_file(tmp_path, GOOD))
    assert frame["token_time_ns"].tolist() == [5, 9, 2**53 + 1] and not derived
    assert (frame.dtypes == np.int64).all()
    other, _ = read_tokens(
        _file(
            tmp_path,
            "token_latency_ns,token_time_ns,token_index,request_id\n0,5,0,0\n4,9,1,0\n0,9007199254740993,0,2\n",
        )
    )
    pd.testing.assert_frame_equal(frame, other)


@pytest.mark.parametrize("extra", ["", ",a note", ",7"], ids=["plain", "with text", "with a number"])
def test_without_latencies_they_are_the_differences(tmp_path: Path, extra: str) -> None:
    lines = WITHOUT_LATENCY.splitlines()
    head = lines[0] + (",more" if extra else "")
    frame, derived = read_tokens(_file(tmp_path, "\n".join([head, *(line + extra for line in lines[1:])]) + "\n"))
    assert derived and list(frame.columns) == list(COLUMNS)
    assert frame["token_latency_ns"].tolist() == [0, 4, 0]


def test_both_ways_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, GOOD)
    fast, _ = read_tokens(path)
    monkeypatch.setattr(token_columns, "_read_plain", lambda _: None)
    pd.testing.assert_frame_equal(fast, read_tokens(path)[0])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (GOOD.replace("0,1,9,4", "0,2,9,4"), "token_index must count 0, 1, 2"),
        (GOOD.replace("0,1,9,4", "0,1,4,-1"), "token_latency_ns|token_time_ns must not decrease"),
        (GOOD.replace("0,1,9,4", "0,1,9,3"), "token_latency_ns must be the difference"),
        (GOOD.replace("0,1,9,4", "0,1,,4"), "expected a value in every row"),
        (GOOD.replace("0,1,9,4", "0,1,0x9,4"), "is not an integer in plain digits"),
        (GOOD.replace("0,1,9,4", "0,1, 9,4"), "is not an integer in plain digits"),
        (GOOD.replace("0,1,9,4", "0,1,9.0,4"), "is not an integer in plain digits"),
        (GOOD.replace("0,1,9,4", "0,1,9"), "has 3 fields, expected 4"),
        (GOOD.replace("0,1,9,4\n", "0,1,9,4\n\n"), "is blank, expected 4"),
        (GOOD.rstrip().rpartition(",")[0], "expected [0-9]+ fields. Is the file cut off"),
        (GOOD.replace("token_index", "index"), "column token_index missing"),
        (GOOD.replace("2,0,", "-2,0,"), "expected at least 0"),
        (WITHOUT_LATENCY.replace("9,1,0", ",1,0"), "column token_time_ns: found no value"),
        (WITHOUT_LATENCY.replace("9,1,0", "4,1,0"), "token_time_ns must not decrease|token_latency_ns"),
    ],
)
def test_what_breaks_the_contract_is_named(tmp_path: Path, changed: str, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        read_tokens(_file(tmp_path, changed))
