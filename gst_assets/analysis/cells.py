"""The figures that are judged: one latency statistic, or one rate, of one variant. `judged_errors` makes them; `causes`
and `answer` explain them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gst_assets.analysis.measures import MEASURE_NAMES, Measure
from gst_assets.analysis.rates import RATE_NAMES
from gst_assets.analysis.verdict import Outcome

Basis = Literal["repeats", "requests", "none"]
"""What an interval rests on: repeats of the engine and seeds of the simulation; with one repeat the requests,
resampled; nothing."""


@dataclass(frozen=True)
class Cell:
    """One metric, statistic and variant: a row of `contracts.tables.LatencyErrors`, whose docstring defines the
    columns.

    Missing values are NaN; an open end of the interval is infinite.
    """

    metric: Measure
    statistic: str
    variant: str
    real_ns: float
    sim_ns: float
    error_ns: float
    relative_error: float
    real_spread: float
    num_real_samples: int
    num_sim_samples: int
    verdict: Outcome
    interval_low: float
    interval_high: float
    error_to_noise: float
    required: bool
    num_independent: float
    interval_flagged: bool
    interval_basis: Basis
    carry_low: float
    carry_high: float
    drifts: bool
    reason: str

    @property
    def name(self) -> str:
        """The cell in words, e.g. `TTFT P50`."""
        return cell_name(self.metric, self.statistic)

    @property
    def sign(self) -> str:
        """`†` too few samples for a judgement, `‡` an interval that rests on too few repeats or independent samples,
        else nothing."""
        return "‡" if self.interval_flagged else "†" if self.verdict == "insufficient" else ""

    @property
    def error_size(self) -> float:
        """|relative_error|; an undefined one is larger than any other."""
        return math.inf if math.isnan(self.relative_error) else abs(self.relative_error)


@dataclass(frozen=True)
class Rate:
    """Throughput or goodput of one variant: a row of `contracts.tables.RateErrors`. Missing values are NaN."""

    metric: str
    variant: str
    real_per_s: float
    sim_per_s: float
    relative_error: float
    real_spread: float
    verdict: Outcome
    interval_low: float
    interval_high: float
    interval_basis: Basis
    reason: str

    @property
    def name(self) -> str:
        """The rate in words."""
        return RATE_NAMES[self.metric]


def cell_name(metric: Measure, statistic: str) -> str:
    return f"{MEASURE_NAMES[metric]} {statistic.upper() if statistic != 'mean' else 'mean'}"
