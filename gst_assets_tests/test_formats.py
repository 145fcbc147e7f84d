"""Numbers are shown with the digits, signs and dashes that reports promise; a table's cells cannot break out of it."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from gst_assets import formats

NOTHING = (math.nan, None, pd.NA)


@pytest.mark.parametrize(
    ("value_ns", "shown", "brief", "signed"),
    [
        (0, "0.00", "0", "+0.00"),
        (1_234_000, "1.23", "1.23", "+1.23"),
        (500_000, "0.500", "0.5", "+0.500"),
        (12_345_000, "12.3", "12.3", "+12.3"),
        (-998_700, "-0.999", "-0.999", "-0.999"),
        (1_234_567_890, "1,235", "1,235", "+1,235"),
        (1_200, "0.00120", "0.0012", "+0.00120"),
    ],
)
def test_milliseconds(value_ns: int, shown: str, brief: str, signed: str) -> None:
    assert formats.milliseconds(value_ns) == shown
    assert formats.brief_milliseconds(value_ns) == brief
    assert formats.signed_milliseconds(value_ns) == signed


def test_a_format_decides_the_digits_and_nothing_else() -> None:
    assert [formats.milliseconds(1_234_567_890, spec) for spec in (".3f", ".1f", ".4g")] == [
        "1234.568",
        "1234.6",
        "1235",
    ]
    assert [formats.milliseconds(value, ".3f", missing="-") for value in NOTHING] == ["-"] * 3


def test_shares_errors_and_intervals() -> None:
    assert (formats.unsigned_percent(0.1234), formats.unsigned_percent(0.1234, 0)) == ("12.3 %", "12 %")
    assert (formats.signed_percent(0.1234), formats.signed_percent(-0.5)) == ("+12.3 %", "-50.0 %")
    assert (formats.error_percent(-0.016), formats.error_percent(math.nan)) == ("-1.6 %", "undefined")
    assert formats.interval(-0.008, 0.09) == "-0.8 to +9.0"
    assert formats.interval(-0.008, math.inf) == "-0.8 to open"
    assert formats.interval(math.nan, math.nan) == "–"


def test_numbers_rates_and_ranges() -> None:
    assert formats.number(1234.56, 1) == "1,234.6" and formats.number(1234.56, 1, grouped=False) == "1234.6"
    assert (formats.rate(17.04), formats.rate(1704.0)) == ("17.0", "1,704")
    assert formats.value_range([None, 2450.4, 1.0], 0) == "1 to 2,450"
    assert formats.value_range([2450.4, 2450.0], 0, grouped=False) == "2450"
    assert formats.value_range([None], 1) == "–"


@pytest.mark.parametrize("missing", NOTHING)
def test_what_is_missing_is_a_dash(missing: float) -> None:
    one_number = (
        formats.milliseconds,
        formats.signed_milliseconds,
        formats.rate,
        formats.unsigned_percent,
        formats.signed_percent,
    )
    assert [show(missing) for show in one_number] == ["–"] * len(one_number)
    assert formats.number(missing, 2) == "–"


def test_a_table_has_a_rule_that_aligns_its_columns() -> None:
    text = formats.markdown_table(["a", "b"], [["x", "1"], ["y", "2"]], right=[1])
    assert text == "| a | b |\n| --- | ---: |\n| x | 1 |\n| y | 2 |"
    assert formats.markdown_table(["a", "b"], [], right=[0], tight=True) == "| a | b |\n|---:|---|"


def test_no_cell_breaks_out_of_its_table() -> None:
    bad = "a|b\n| c | <img src=x> ![p](http://x) [l](http://x)"
    header, rule, row = formats.markdown_table([bad], [[bad]]).splitlines()
    for line in (header, row):
        assert line.replace("\\|", "").count("|") == 2
        assert "<img" not in line and "](" not in line
    assert rule == "| --- |"
