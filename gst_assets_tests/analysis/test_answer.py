"""The sentence of an answer: direction, size, certainty, use; and what would settle what cannot be judged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest

from gst_assets.analysis.answer import Answer, Situation, build_answer, judgement
from gst_assets.analysis.cells import Cell
from gst_assets.analysis.measures import Measure
from gst_assets.analysis.repeats import RepeatInterval
from gst_assets.analysis.verdict import OUTCOMES, Outcome

SITUATION = Situation(
    num_repeats=5, num_seeds=1, num_requests=100, repeatable=False, marks=(), advised={}, pass_band=0.05, warn_band=0.10
)


def cell(name: str, error: float, outcome: Outcome, *, half: float = 0.01, reason: str = "") -> Cell:
    """Of a metric and a percentile in words, e.g. `E2E P50`."""
    metric, statistic = name.lower().split()
    return Cell(
        metric=cast(Measure, metric),
        statistic=statistic,
        variant="calibrated",
        real_ns=1e6,
        sim_ns=1e6 * (1 + error),
        error_ns=1e6 * error,
        relative_error=error,
        real_spread=0.02,
        num_real_samples=100,
        num_sim_samples=100,
        verdict=outcome,
        interval_low=error - half,
        interval_high=error + half,
        error_to_noise=abs(error) / 0.02,
        required=True,
        num_independent=math.nan,
        interval_flagged=False,
        interval_basis="repeats",
        carry_low=math.nan,
        carry_high=math.nan,
        drifts=False,
        reason=reason,
    )


def answer(outcome: Outcome, *cells: Cell, situation: Situation = SITUATION) -> Answer:
    return build_answer("calibrated", outcome, cells, [], [], situation)


def test_each_outcome_is_told_in_one_of_four_words() -> None:
    assert [judgement(one) for one in OUTCOMES] == ["pass", "warn", "cannot_judge", "cannot_judge", "fail"]


@pytest.mark.parametrize(
    ("outcome", "cells", "says"),
    [
        (
            "pass",
            [cell("TTFT P50", 0.012, "pass"), cell("E2E P50", 0.03, "pass")],
            "`calibrated` is too slow in both cells, by 1.2 to 3.0 %; most at E2E P50: +3.0 % (2.0 to 4.0). Five real repeats differ by 2.0 %. "
            "Good enough for sizing within 5 %.",
        ),
        (
            "warn",
            [cell("TTFT P50", -0.07, "warn"), cell("E2E P50", 0.02, "pass")],
            "`calibrated` is between 7.0 % too fast and 2.0 % too slow in both cells; most at TTFT P50: -7.0 % (-8.0 to -6.0). Five real repeats "
            "differ by 2.0 %. Good enough for sizing within 10 %, not within 5 %.",
        ),
        (
            "fail",
            [cell("TTFT P50", -0.2, "fail"), cell("E2E P50", -0.03, "pass")],
            "`calibrated` is too fast in both cells, by 3.0 to 20 %; most at TTFT P50: -20 % (-21 to -19). Five real repeats differ by 2.0 %. Outside "
            "the 10 % band at TTFT P50, which it predicts too fast: not good enough for sizing; E2E P50 is within it.",
        ),
        (
            "inconclusive",
            [cell("TTFT P50", 0.0, "pass"), cell("E2E P50", 0.08, "inconclusive", half=0.05, reason="the interval crosses the edge")],
            "`calibrated` is too slow in both cells, by 0 to 8.0 %; most at E2E P50: +8.0 % (3.0 to 13). Five real repeats differ by "
            "2.0 %. Cannot judge whether it is within the 10 % band at E2E P50 (the interval crosses the edge); TTFT P50 is within 5 %.",
        ),
        (
            "inconclusive",
            [cell("TTFT P50", 0.08, "inconclusive", half=0.05), cell("ITL P50", -0.01, "warn", reason="fewer than five repeats"),
             cell("E2E P50", 0.07, "warn", reason="the repeats drift")],
            "`calibrated` is between 1.0 % too fast and 8.0 % too slow in all three cells; most at TTFT P50: +8.0 % (3.0 to 13). Five real "
            "repeats differ by 2.0 %. Cannot judge whether it is within the 10 % band at TTFT P50; E2E P50 is within 10 %; ITL P50 is "
            "within 5 %, but no pass: fewer than five repeats.",
        ),
    ],
)  # fmt: skip
def test_the_sentence(outcome: Outcome, cells: list[Cell], says: str) -> None:
    assert answer(outcome, *cells).sentence == says


@pytest.mark.parametrize(
    ("outcome", "verdicts", "says", "marked_says"),
    [
        ("inconclusive", ["inconclusive", "insufficient", "pass", "pass", "pass", "warn"],
         "pass at ITL and E2E P50, warn at E2E P90, cannot judge TTFT", "warn at ITL and E2E, cannot judge TTFT"),
        ("inconclusive", ["inconclusive"] * 6, "cannot judge", "cannot judge"),
        ("warn", ["pass"] * 5 + ["warn"], "warn", "warn"),
        ("fail", ["fail", "inconclusive", "pass", "pass", "pass", "pass"], "outside the band", "outside the band"),
    ],
)  # fmt: skip
def test_the_headline_says_what_is_known_where_some_cells_cannot_be_judged(
    outcome: Outcome, verdicts: list[Outcome], says: str, marked_says: str
) -> None:
    names = ["TTFT P50", "TTFT P90", "ITL P50", "ITL P90", "E2E P50", "E2E P90"]
    cells = [cell(name, 0.01, verdict) for name, verdict in zip(names, verdicts, strict=True)]
    assert answer(outcome, *cells).headline == says
    marked = answer(outcome, *cells, situation=replace(SITUATION, marks=("a check failed",)))
    assert marked.headline == marked_says


def test_an_exact_simulation_and_no_cell_at_all() -> None:
    assert answer("pass", cell("TTFT P50", 0.0, "pass", half=0)).sentence.startswith(
        "`calibrated` is exact in the one cell"
    )
    assert "nothing can be said" in answer("insufficient").sentence


def test_a_mark_is_what_holds_a_pass_back() -> None:
    marked = replace(SITUATION, marks=("real run r1 is degraded",))
    found = answer("warn", cell("TTFT P50", 0.0, "pass"), situation=marked)
    assert found.sentence.endswith("Within 5 % as far as the data show; not a pass: real run r1 is degraded.")


def test_a_wider_error_with_a_reason_is_not_said_to_be_within_the_pass_band() -> None:
    drifting = cell("TTFT P50", -0.07, "warn", reason="the repeats drift")
    few = cell("E2E P50", 0.01, "warn", reason="fewer than five repeats")
    assert answer("warn", drifting, few).sentence.endswith(
        "Good enough for sizing within 10 %, not within 5 %: the repeats drift."
    )
    assert answer("warn", few).sentence.endswith(
        "Within 5 % as far as the data show; not a pass: fewer than five repeats."
    )


def test_only_an_engine_that_can_run_again_is_told_how_many_repeats_would_do() -> None:
    undecided = cell("E2E P50", 0.06, "inconclusive", half=0.06)
    advised = {"E2E P50": RepeatInterval(0.0, 0.12, 5, drifts=False, real_deviation=0.03, seed_deviation=0.0)}
    live = replace(SITUATION, repeatable=True, advised=advised)
    (more,) = answer("inconclusive", undecided, situation=live).more
    assert more.startswith("about ") and more.endswith(" repeats would do for E2E P50")
    assert answer("inconclusive", undecided, situation=replace(live, repeatable=False)).more == ()
    noisy = {"E2E P50": replace(advised["E2E P50"], real_deviation=0.5)}
    (more,) = answer("inconclusive", undecided, situation=replace(live, advised=noisy)).more
    assert "more than 30 repeats" in more and "quieter machine" in more


def test_one_live_repeat_is_told_to_take_five() -> None:
    alone = replace(SITUATION, num_repeats=1, repeatable=True)
    unknown = cell("E2E P50", 0.06, "insufficient", reason="one repeat")
    assert answer("insufficient", unknown, situation=alone).more == (
        "5 repeats would show how much the engine differs when it runs again",
    )
