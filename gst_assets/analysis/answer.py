"""The answer of a comparison, for each variant: how far, how sure, and what to do about it. Built from judged cells; computes no statistic, draws nothing.

`comparison.Comparison.answers` maps each variant to its `Answer`; what a reader sees first is made of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Judgement = Literal["pass", "warn", "fail", "cannot_judge"]
"""`fail` is outside the band; `cannot_judge` says that the data do not tell, which is no failure."""
Basis = Literal["repeats", "requests", "none"]
"""What an interval rests on: repeats of the engine and seeds of the simulation; with one repeat the requests, resampled; nothing."""
JUDGEMENT_WORDS: dict[Judgement, str] = {
    "pass": "pass",
    "warn": "warn",
    "fail": "outside the band",
    "cannot_judge": "cannot judge",
}


@dataclass(frozen=True)
class DecidingCell:
    """One judged figure of one variant.

    `real` and `simulated` in `unit`: nanoseconds, or a rate per second. `error` is (simulated - real) / real; `low` and `high` its 95 % interval on
    this workload (NaN: not known; `high` infinite: open), `basis` what that rests on. `carry_low` and `carry_high`: how far the error carries to
    other workloads of the kind (requests resampled; NaN: not known). `spread` is (max - min) / median of the real repeats, NaN with one. `reason`
    says why it cannot be judged, or what holds a pass back; else it is empty.
    """

    metric: str
    statistic: str
    name: str
    unit: Literal["ns", "per_s"]
    real: float
    simulated: float
    error: float
    low: float
    high: float
    spread: float
    verdict: Judgement
    basis: Basis
    reason: str = ""
    carry_low: float = float("nan")
    carry_high: float = float("nan")


@dataclass(frozen=True)
class NamedCause:
    """A cause of the error of one cell with `share`, the part of the error that goes with it when it is removed (signed; 1: all of it; NaN: not
    known), and the evidence in words."""

    cell: str
    name: str
    share: float
    evidence: str


@dataclass(frozen=True)
class Answer:
    """What a reader needs of one variant, first things first.

    `sentence` is plain text with `code` and **bold** marks: direction, size, certainty, use. `cells` decide the verdict (required metrics and
    statistics that have samples, in the scenario's order); `rates` are throughput and goodput, which do not. `causes` go by cell, largest share
    first. `more` says what would settle what cannot be judged; `marks` why it cannot be a pass.
    """

    variant: str
    verdict: Judgement
    sentence: str
    cells: tuple[DecidingCell, ...]
    rates: tuple[DecidingCell, ...] = ()
    causes: tuple[NamedCause, ...] = ()
    more: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
