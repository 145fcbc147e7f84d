"""The answer of a comparison, for each variant: how far, how sure, and what to do about it. Built from judged cells;
computes no statistic, draws nothing.

`judged_errors.Comparison.answers` maps each variant to its `Answer`; what a reader sees first is made of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gst_assets.analysis.cells import Basis, Cell, Rate
from gst_assets.analysis.repeats import (
    MOST_REPEATS_ADVISED,
    REPEATS_FOR_A_PASS,
    RepeatInterval,
    repeats_advised,
)
from gst_assets.analysis.verdict import Outcome

Judgement = Literal["pass", "warn", "fail", "cannot_judge"]
"""`fail` is outside the band; `cannot_judge` means that the data do not decide, which is no failure."""
_EXACT = 0.0005
"""Errors below this are reported as 0."""
JUDGEMENT_WORDS: dict[Judgement, str] = {
    "pass": "pass",
    "warn": "warn",
    "fail": "outside the band",
    "cannot_judge": "cannot judge",
}


@dataclass(frozen=True)
class DecidingCell:
    """One judged figure of one variant.

    `real` and `simulated` in `unit`: nanoseconds, or a rate per second. `error` is (simulated - real) / real; `low` and
    `high` its 95 % interval on this workload (NaN: not known; `high` infinite: open), `basis` what that rests on.
    `carry_low` and `carry_high`: how far the error carries to other workloads of the kind (requests resampled; NaN: not
    known). `spread` is (max - min) / median of the real repeats, NaN with one. `reason` says why it cannot be judged,
    or what holds a pass back; else it is empty.
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
    """A cause of the error of one cell with `share`, the part of the error that goes with it when it is removed
    (signed; 1: all of it; NaN: not known), and the evidence in words."""

    cell: str
    name: str
    share: float
    evidence: str


@dataclass(frozen=True)
class Answer:
    """What a reader needs of one variant, first things first.

    `sentence` is plain text with `code` and **bold** marks: direction, size, certainty, use. `cells` decide the verdict
    (required metrics and statistics that have samples, in the scenario's order); `rates` are throughput and goodput,
    which do not. `causes` go by cell, largest share first. `more` says what would settle what cannot be judged; `marks`
    why it cannot be a pass.
    """

    variant: str
    verdict: Judgement
    sentence: str
    cells: tuple[DecidingCell, ...]
    rates: tuple[DecidingCell, ...] = ()
    causes: tuple[NamedCause, ...] = ()
    more: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The verdict in a few words. Where some cells cannot be judged, also what is known of the others: `pass at ITL
        and E2E, cannot judge TTFT`. With marks `warn` is the best that a cell can be."""
        groups: tuple[tuple[Judgement, set[Judgement]], ...] = (("pass", {"pass"}), ("warn", {"warn"}))
        if self.marks:
            groups = (("warn", {"pass", "warn"}),)
        known = [f"{JUDGEMENT_WORDS[word]} at {at}" for word, verdicts in groups if (at := self._at(verdicts))]
        if self.verdict != "cannot_judge" or not known:
            return JUDGEMENT_WORDS[self.verdict]
        return ", ".join([*known, f"{JUDGEMENT_WORDS['cannot_judge']} {self._at({'cannot_judge'})}"])

    def _at(self, verdicts: set[Judgement]) -> str:
        """The cells of these judgements, those of a metric together where all of them have one."""
        names = []
        for metric in dict.fromkeys(cell.metric for cell in self.cells):
            mine = [cell for cell in self.cells if cell.metric == metric]
            judged = [cell for cell in mine if cell.verdict in verdicts]
            names += [metric.upper()] if judged and len(judged) == len(mine) else [cell.name for cell in judged]
        return _listed(names)


@dataclass(frozen=True)
class Situation:
    """What an answer depends on beyond its cells. `advised` are the intervals from repeats by cell name; `num_requests`
    those compared in the smallest repeat; `repeatable`: the engine could be run again."""

    num_repeats: int
    num_seeds: int
    num_requests: int
    repeatable: bool
    marks: tuple[str, ...]
    advised: Mapping[str, RepeatInterval]
    pass_band: float
    warn_band: float


def judgement(outcome: Outcome) -> Judgement:
    """An outcome of `verdict` as a reader sees it."""
    return "cannot_judge" if outcome == "inconclusive" or outcome == "insufficient" else outcome


def build_answer(
    variant: str,
    outcome: Outcome,
    cells: Sequence[Cell],
    rates: Sequence[Rate],
    causes: Sequence[NamedCause],
    situation: Situation,
) -> Answer:
    """The answer of one variant. `cells` are its required ones in the order of the report, those without any sample
    among them."""
    present = [cell for cell in cells if cell.num_real_samples]
    deciding = tuple(_deciding(cell) for cell in present)
    told = tuple(
        DecidingCell(
            one.metric,
            "",
            one.name,
            "per_s",
            one.real_per_s,
            one.sim_per_s,
            one.relative_error,
            one.interval_low,
            one.interval_high,
            one.real_spread,
            judgement(one.verdict),
            one.interval_basis,
            one.reason,
        )
        for one in rates
    )
    verdict = judgement(outcome)
    return Answer(
        variant=variant,
        verdict=verdict,
        sentence=_sentence(variant, verdict, deciding, situation),
        cells=deciding,
        rates=told,
        causes=tuple(causes),
        more=_more(present, situation),
        marks=situation.marks,
    )


def _deciding(cell: Cell) -> DecidingCell:
    return DecidingCell(
        metric=cell.metric,
        statistic=cell.statistic,
        name=cell.name,
        unit="ns",
        real=cell.real_ns,
        simulated=cell.sim_ns,
        error=cell.relative_error,
        low=cell.interval_low,
        high=cell.interval_high,
        spread=cell.real_spread,
        verdict=judgement(cell.verdict),
        basis=cell.interval_basis,
        reason=cell.reason,
        carry_low=cell.carry_low,
        carry_high=cell.carry_high,
    )


# --- the sentence -----------------------------------------------------------------------------------------------------


def _sentence(variant: str, verdict: Judgement, cells: Sequence[DecidingCell], situation: Situation) -> str:
    """Direction and size, certainty, use."""
    if not cells:
        return f"`{variant}`: no latency that decides has a sample, so nothing can be said."
    parts = [f"`{variant}` {_size(cells)}", _certainty(cells, situation), _use(verdict, cells, situation)]
    return " ".join(f"{part[0].upper() if part[0] != '`' else part[0]}{part[1:]}." for part in parts if part)


def _size(cells: Sequence[DecidingCell]) -> str:
    known = [cell for cell in cells if not math.isnan(cell.error)]
    unbounded = [cell.name for cell in cells if math.isnan(cell.error)]
    if not known:
        return f"has no bound to its error at {_listed(unbounded)}, where the real value is 0"
    worst = max(known, key=lambda cell: abs(cell.error))
    sizes = sorted(abs(cell.error) for cell in known)
    every = {1: "the one cell", 2: "both cells"}.get(len(known), f"all {_number(len(known))} cells")
    least, most = _percent(sizes[0]), _percent(sizes[-1])
    by = f"{most} %" if least == most else f"{least} to {most} %"
    if sizes[-1] < _EXACT:
        text = f"is exact in {every}"
    elif all(cell.error < _EXACT for cell in known):
        text = f"is too fast in {every}, by {by}"
    elif all(cell.error > -_EXACT for cell in known):
        text = f"is too slow in {every}, by {by}"
    else:
        fast, slow = (_percent(max(sign * cell.error for cell in known)) for sign in (-1, 1))
        text = f"is between {fast} % too fast and {slow} % too slow in {every}"
    if sizes[-1] >= _EXACT and len(known) > 1:
        text += f"; most at {worst.name}: {_signed(worst)}"
    elif len(known) == 1:
        text += f": {worst.name} {_signed(worst)}"
    if unbounded:
        text += f"; without bound at {_listed(unbounded)}, where the real value is 0"
    return text


def _certainty(cells: Sequence[DecidingCell], situation: Situation) -> str:
    spreads = sorted(cell.spread for cell in cells if not math.isnan(cell.spread))
    if situation.num_repeats < 2:
        return "one real repeat: how much the engine differs when it runs again is not known"
    least, most = (_percent(one) for one in (spreads[0], spreads[-1])) if spreads else ("0", "0")
    by = f"by {most} %" if least == most else f"by {least} to {most} %"
    text = (
        f"{_number(situation.num_repeats)} real repeats differ {by}"
        if most != "0"
        else f"{_number(situation.num_repeats)} real repeats do not differ"
    )
    return text + (
        f"; the intervals include {_number(situation.num_seeds)} seeds of the simulation"
        if situation.num_seeds > 1
        else ""
    )


def _use(verdict: Judgement, cells: Sequence[DecidingCell], situation: Situation) -> str:
    close, wide = (f"{100 * band:g} %" for band in (situation.pass_band, situation.warn_band))
    if verdict == "pass":
        return f"good enough for sizing within {close}"
    if verdict == "warn":
        limits = [cell for cell in cells if cell.verdict == "warn" and not cell.reason]
        if limits:
            return f"good enough for sizing within {wide}, not within {close}"
        wide_cells = [cell for cell in cells if cell.verdict == "warn" and cell not in _held_by_few(cells, situation)]
        if wide_cells:
            return f"good enough for sizing within {wide}, not within {close}: {wide_cells[0].reason}"
        held = [*situation.marks[:1], *(cell.reason for cell in cells if cell.verdict == "warn")][:1]
        if not held:
            return f"good enough for sizing within {wide}"
        return f"within {close} as far as the data show; not a pass: {held[0]}"
    outside = [cell for cell in cells if cell.verdict == "fail"]
    if verdict == "fail":
        errors = [cell.error for cell in outside]
        kept = [cell.name for cell in cells if cell.verdict in ("pass", "warn")]
        side = (
            ", which it predicts too fast"
            if all(one < 0 for one in errors)
            else ", which it predicts too slow"
            if all(one > 0 for one in errors)
            else ""
        )
        rest = f"; {_listed(kept)} {'is' if len(kept) == 1 else 'are'} within it" if kept else ""
        return (
            f"outside the {wide} band at {_listed([cell.name for cell in outside])}{side}: not good enough"
            f" for sizing{rest}"
        )
    unknown = [cell for cell in cells if cell.verdict == "cannot_judge"]
    rest = ""
    warned = [cell for cell in cells if cell.verdict == "warn"]
    few = _held_by_few(cells, situation)
    for known, band in (
        ([cell for cell in cells if cell.verdict == "pass"], close),
        ([cell for cell in warned if cell not in few], wide),
        (few, f"{close}, but no pass: {few[0].reason}" if few else close),
    ):
        if known:
            names = [cell.name for cell in known]
            rest += f"; {_listed(names)} {'is' if len(names) == 1 else 'are'} within {band}"
    reasons = list(dict.fromkeys(cell.reason for cell in unknown if cell.reason))
    why = f" ({reasons[0]})" if reasons else ""
    return f"cannot judge whether it is within the {wide} band at {_listed([cell.name for cell in unknown])}{why}{rest}"


def _held_by_few(cells: Sequence[DecidingCell], situation: Situation) -> list[DecidingCell]:
    """Those inside the pass band that are not a pass, for a reason of their own."""
    return [
        cell
        for cell in cells
        if cell.verdict == "warn" and cell.reason and max(-cell.low, cell.high) <= situation.pass_band
    ]


def _signed(cell: DecidingCell) -> str:
    """`+1.2 % (0.4 to 2.0)`, or without the interval where none is known."""
    text = f"{'+' if cell.error > 0 else '-' if cell.error < 0 else ''}{_percent(abs(cell.error))} %"
    if math.isnan(cell.low):
        return text
    ends = [
        "open" if math.isinf(one) else f"{'-' if one < 0 and _percent(abs(one)) != '0' else ''}{_percent(abs(one))}"
        for one in (cell.low, cell.high)
    ]
    return f"{text} ({ends[0]} to {ends[1]})"


def _percent(share: float) -> str:
    """Unsigned per cent: one digit after the point below 10, none above; `0` below half a tenth."""
    value = 100 * share
    return "0" if value < 0.05 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _number(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


# --- what would settle it ---------------------------------------------------------------------------------------------


def _more(cells: Sequence[Cell], situation: Situation) -> tuple[str, ...]:
    """What would settle what cannot be judged, and what a pass is held back by. Nothing is advised that a recorded run
    cannot do."""
    short = [cell for cell in cells if cell.verdict == "insufficient" and cell.reason.endswith("would do")]
    found = [f"{cell.name}: {cell.reason}" for cell in short]
    if not situation.repeatable:
        return tuple(found)
    held = [cell for cell in cells if _held_back(cell, situation)]
    undecided = [cell for cell in cells if cell.verdict == "inconclusive"]
    if situation.num_repeats < 2 and any(judgement(cell.verdict) == "cannot_judge" for cell in cells):
        found.append(f"{REPEATS_FOR_A_PASS} repeats would show how much the engine differs when it runs again")
        return tuple(found)
    numbers = {cell.name: _advised(cell, situation) for cell in undecided}
    hopeless = [name for name, number in numbers.items() if number is None]
    some = [number for number in numbers.values() if number is not None]
    if held:
        some.append(REPEATS_FOR_A_PASS)
    if some:
        names = [name for name, number in numbers.items() if number is not None] + [cell.name for cell in held]
        found.append(f"about {max(some)} repeats would do for {_listed(names)}")
    if hopeless:
        found.append(
            f"{_listed(hopeless)}: more than {MOST_REPEATS_ADVISED} repeats that differ as these do; a quieter machine"
            " would decide sooner"
        )
    return tuple(found)


def _held_back(cell: Cell, situation: Situation) -> bool:
    """Inside the pass band, and a warn only for being too few repeats."""
    inside = max(abs(cell.interval_low), abs(cell.interval_high)) <= situation.pass_band
    return cell.verdict == "warn" and cell.interval_flagged and inside


def _advised(cell: Cell, situation: Situation) -> int | None:
    interval = situation.advised.get(cell.name)
    if interval is None or math.isnan(cell.relative_error):
        return None
    return repeats_advised(cell.relative_error, interval, situation.warn_band)
