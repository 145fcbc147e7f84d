from __future__ import annotations

import math

import pytest

from gst_assets.analysis.bootstrap import UNKNOWN, Interval
from gst_assets.analysis.verdict import Outcome, judge, worst
from gst_assets.scenario import Bands


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.05, 0.05, "pass"),
        (0.0, 0.0, "pass"),
        (0.01, 0.051, "warn"),
        (-0.1, 0.1, "warn"),
        (0.06, 0.1, "warn"),
        (0.09, 0.101, "inconclusive"),
        (-0.3, 0.3, "inconclusive"),
        (-0.2, 0.04, "inconclusive"),
        (0.101, 0.2, "fail"),
        (-0.9, -0.11, "fail"),
        (0.02, math.inf, "inconclusive"),
    ],
)
def test_an_interval_against_the_bands(low: float, high: float, outcome: Outcome) -> None:
    assert judge(0.03, Interval(low, high), Bands(), sufficient=True) == outcome


def test_what_cannot_be_judged() -> None:
    assert judge(0.0, Interval(0, 0), Bands(), sufficient=False) == "insufficient"
    assert judge(0.0, UNKNOWN, Bands(), sufficient=True) == "insufficient"
    assert judge(math.nan, UNKNOWN, Bands(), sufficient=True) == "fail", "the real value is 0, the simulated one is not"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.01, 0.01, "insufficient"), (0.06, 0.08, "insufficient"), (-0.2, 0.2, "insufficient"), (0.101, 0.2, "fail")],
)
def test_too_few_independent_samples_prove_a_failure_at_most(low: float, high: float, outcome: Outcome) -> None:
    assert judge(0.05, Interval(low, high), Bands(), sufficient=True, independent=False) == outcome


def test_few_repeats_are_no_pass_and_all_else_stands() -> None:
    for low, high, outcome in (
        (-0.01, 0.01, "warn"),
        (0.06, 0.08, "warn"),
        (0.2, 0.3, "fail"),
        (0.0, 0.2, "inconclusive"),
    ):
        assert judge(0.05, Interval(low, high), Bands(), sufficient=True, few_repeats=True) == outcome


def test_the_worst_decides() -> None:
    order: list[Outcome] = ["pass", "warn", "inconclusive", "insufficient", "fail"]
    for number in range(1, len(order) + 1):
        assert worst(order[:number]) == worst(reversed(order[:number])) == order[number - 1]
    assert worst([]) == "insufficient"


def test_a_mark_only_takes_the_pass_away() -> None:
    assert worst(["pass"], marked=True) == "warn"
    assert worst(["fail"], marked=True) == "fail"
    assert worst(["inconclusive"], marked=True) == "inconclusive"
