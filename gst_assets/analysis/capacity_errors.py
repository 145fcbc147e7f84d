"""Capacity, real and simulated: how far the searches on both sides are apart, and whether that is close enough.

A search for capacity (`capacity.search`) ends with a rate that was kept and a higher one that was broken, so a capacity
is known to lie between two rates and an error between two bounds. Nothing is searched for here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gst_assets.analysis.answer import JUDGEMENT_WORDS, judgement
from gst_assets.analysis.bootstrap import Interval
from gst_assets.analysis.verdict import Outcome, judge
from gst_assets.contracts.documents import CapacityFound
from gst_assets.formats import interval
from gst_assets.scenario import Bands

ENGINE = "engine"
"""The real side of a search."""


@dataclass(frozen=True)
class CapacityError:
    """A row of `contracts.tables.CapacityErrors`, which says what the fields are. Missing values are NaN; an open upper
    end is infinite."""

    variant: str
    real_low_per_s: float
    real_high_per_s: float
    sim_low_per_s: float
    sim_high_per_s: float
    relative_error: float
    interval_low: float
    interval_high: float
    verdict: Outcome
    reason: str


def capacity_errors(
    found: Mapping[str, CapacityFound], variants: Collection[str], bands: Bands
) -> tuple[CapacityError, ...]:
    """One row for each of the variants that a search was made on; none where the engine's capacity was not searched.

    `found` maps a side (`engine`, or a variant) to its result. The engine's search is one run, which cannot show that
    the engine has one speed: at best `warn`.
    """
    real = found.get(ENGINE)
    if real is None:
        return ()
    return tuple(_error(variant, real, found[variant], bands) for variant in variants if variant in found)


def _error(variant: str, real: CapacityFound, simulated: CapacityFound, bands: Bands) -> CapacityError:
    (real_low, real_high), (sim_low, sim_high) = _ends(real), _ends(simulated)
    low = sim_low / real_high - 1
    high = sim_high / real_low - 1 if real_low else math.inf
    both = real.status == simulated.status == "found"
    error = _middle(sim_low, sim_high) / _middle(real_low, real_high) - 1 if both else math.nan
    # Beyond the band for certain is known even where a capacity is not; an error within it is not.
    beyond = low > bands.warn_band or high < -bands.warn_band
    outcome = judge(error if both else 0.0, Interval(low, high), bands, sufficient=both or beyond, few_repeats=True)
    reasons = [f"{side}: {one.reason}" for side, one in ((ENGINE, real), (variant, simulated)) if one.status != "found"]
    return CapacityError(variant, real_low, real_high, sim_low, sim_high, error, low, high, outcome, "; ".join(reasons))


def _ends(found: CapacityFound) -> tuple[float, float]:
    """Between which rates the capacity lies: 0 where none was kept, infinite where none was broken."""
    return found.capacity_per_s or 0.0, found.upper_per_s or math.inf


def _middle(low: float, high: float) -> float:
    """The search halves the logarithm of the rate."""
    return math.sqrt(low * high)


def capacity_sentence(errors: Collection[CapacityError], criterion: str) -> str:
    """The capacities in plain words, Markdown; empty without any."""
    if not errors:
        return ""
    first = next(iter(errors))
    told = [f"engine {_range(first.real_low_per_s, first.real_high_per_s)}"]
    told += [f"`{one.variant}` {_range(one.sim_low_per_s, one.sim_high_per_s)} ({_percents(one)})" for one in errors]
    return f"Capacity, requests/s ({criterion}): {'; '.join(told)}"


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {low:.3g}" if low else "not known"
    return f"between {low:.3g} and {high:.3g}" if low else f"less than {high:.3g}"


def _percents(one: CapacityError) -> str:
    word = JUDGEMENT_WORDS[judgement(one.verdict)]
    if math.isinf(one.interval_high):
        return word
    return f"{interval(one.interval_low, one.interval_high)} %, {word}"
