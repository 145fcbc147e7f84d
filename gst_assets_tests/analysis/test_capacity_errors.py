"""Two searches that each leave the capacity between two rates."""

from __future__ import annotations

import math

import pytest

from gst_assets.analysis.capacity_errors import capacity_errors, capacity_sentence
from gst_assets.contracts.documents import CapacityFound
from gst_assets.scenario import Bands

BANDS = Bands(pass_band=0.05, warn_band=0.10)


def found(low: float | None, high: float | None, status: str = "found", reason: str = "") -> CapacityFound:
    return CapacityFound.model_validate(
        {"status": status, "capacity_per_s": low, "upper_per_s": high, "num_probes": 5, "reason": reason}
    )


def test_an_error_lies_between_what_the_four_rates_allow() -> None:
    (one,) = capacity_errors({"engine": found(45.0, 48.0), "calibrated": found(46.0, 47.0)}, ["calibrated"], BANDS)
    assert (one.interval_low, one.interval_high) == (pytest.approx(46 / 48 - 1), pytest.approx(47 / 45 - 1))
    assert one.relative_error == pytest.approx(math.sqrt(46 * 47 / 45 / 48) - 1)


@pytest.mark.parametrize(
    ("simulated", "verdict"),
    [
        (found(46.0, 47.0), "warn"),  # within 5 %: one search of the engine is no proof of a pass
        (found(47.0, 49.0), "warn"),
        (found(49.0, 52.0), "inconclusive"),
        (found(53.0, 56.0), "fail"),
        (found(30.0, 32.0), "fail"),
        (found(64.0, None, "above_high", "met at the highest rate probed"), "fail"),
        (found(46.0, None, "above_high", "met at the highest rate probed"), "insufficient"),
        (found(None, 28.0, "below_low", "exceeded at the lowest rate probed"), "fail"),
        (found(44.0, None, "undetermined", "requests failed"), "insufficient"),
    ],
)
def test_verdicts(simulated: CapacityFound, verdict: str) -> None:
    (one,) = capacity_errors({"engine": found(45.0, 48.0), "calibrated": simulated}, ["calibrated"], BANDS)
    assert one.verdict == verdict
    assert bool(one.reason) is (simulated.status != "found")


def test_without_a_search_on_the_engine_there_is_nothing_to_compare() -> None:
    assert capacity_errors({"calibrated": found(46.0, 47.0)}, ["calibrated"], BANDS) == ()
    assert capacity_sentence((), "") == ""


def test_the_sentence_says_both_sides_the_error_and_the_verdict() -> None:
    both = {
        "engine": found(45.0, 48.0),
        "calibrated": found(46.0, 47.0),
        "kernels": found(64.0, None, "above_high", "x"),
    }
    errors = capacity_errors(both, ["kernels", "calibrated"], BANDS)
    assert (
        capacity_sentence(errors, "P99 delay of 100 ms")
        == "Capacity, requests/s (P99 delay of 100 ms): engine between 45 and 48; "
        "`kernels` at least 64 (outside the band); `calibrated` between 46 and 47 (-4.2 to +4.4 %, warn)"
    )
