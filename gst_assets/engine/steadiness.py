"""How steady this machine is: equal pieces of work, repeated for some seconds, and how far the repeats are apart.

The answer is about the processor, which drives every engine; a GPU's own repeats are not tried. Standard library only.
It takes one core, so a caller must not run it while an engine measures.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gst_assets.engine import machine

REPEATS = 5
_PIECE_BYTES = 1 << 20
_MOVED_BYTES = 8 << 20
_PERCENTILE = 0.9


@dataclass(frozen=True)
class Steadiness:
    """What was seen. Spreads are (largest - smallest) / median over the repeats, as in a report's column `spread`."""

    seconds: float
    num_pieces: int
    piece_p50_ms: float
    spread_p50: float
    spread_p90: float
    worst_over_p50: float
    """The slowest piece of all, as a multiple of the median."""
    late_p99_ms: float
    """P99 of how much later than asked a sleep of 1 ms ended: what a driver's send times suffer."""
    cpu_others: float | None
    """Share of all cores' time that other programs took meanwhile; None where it is not reported."""
    cpu_steal: float | None
    """Share that the host of a virtual machine took; None where it is not reported."""


class _Repeat(NamedTuple):
    pieces_ns: list[int]
    late_ns: list[int]


def measure(seconds: float, on_share: Callable[[float], None] | None = None) -> Steadiness:
    """Repeat the same work `REPEATS` times for `seconds` altogether; `on_share` is called with the share that is done,
    from 0 to 1."""
    data, moved = bytes(_PIECE_BYTES), bytearray(_MOVED_BYTES)
    before = machine.processor_ticks()
    repeats: list[_Repeat] = []
    began = time.monotonic()
    for index in range(REPEATS):
        repeats.append(_repeat(began + seconds * (index + 1) / REPEATS, data, moved))
        if on_share is not None:
            on_share((index + 1) / REPEATS)
    others, steal = machine.shares(before, machine.processor_ticks())
    p50 = [statistics.median(one.pieces_ns) for one in repeats]
    p90 = [_percentile(one.pieces_ns, _PERCENTILE) for one in repeats]
    pieces = [piece for one in repeats for piece in one.pieces_ns]
    late = [one for repeat in repeats for one in repeat.late_ns]
    return Steadiness(
        seconds=round(time.monotonic() - began, 1),
        num_pieces=len(pieces),
        piece_p50_ms=round(statistics.median(pieces) / 1e6, 3),
        spread_p50=_spread(p50),
        spread_p90=_spread(p90),
        worst_over_p50=round(max(pieces) / statistics.median(pieces), 2),
        late_p99_ms=round(_percentile(late, 0.99) / 1e6, 3),
        cpu_others=others,
        cpu_steal=steal,
    )


def worth(found: Steadiness, pass_band: float, warn_band: float) -> str:
    """One sentence: is a measurement here worth anything, against the bands of the verdict?

    A cell of a report can be judged only where equal repeats differ by less than the band.
    """
    spread = max(found.spread_p50, found.spread_p90)
    told = (
        f"equal work, repeated, took times that differ by {100 * found.spread_p50:.1f} % (P50) and"
        f" {100 * found.spread_p90:.1f} % (P90)"
    )
    if spread <= pass_band / 2:
        answer = f"A measurement here is worth something: {told}, well inside the pass band of {100 * pass_band:g} %."
    elif spread <= pass_band:
        answer = (
            f"A measurement here is worth something, with more repeats: {told}, near the pass band of"
            f" {100 * pass_band:g} %."
        )
    elif spread <= warn_band:
        answer = (
            f"A measurement here shows large errors only: {told}, more than the pass band of {100 * pass_band:g} %."
        )
    else:
        answer = (
            f"A measurement here is worth little now: {told}, more than the warn band of {100 * warn_band:g} %, so most"
            " cells could not be judged."
        )
    causes = []
    if found.cpu_others is not None and found.cpu_others > 0.05:
        causes.append(f"other programs took {100 * found.cpu_others:.0f} % of the cores; end them")
    if found.cpu_steal is not None and found.cpu_steal > 0.01:
        causes.append(f"the host of this virtual machine took {100 * found.cpu_steal:.0f} %; a quieter host would help")
    return " ".join([answer, *(f"{cause[0].upper()}{cause[1:]}." for cause in causes)])


def _repeat(until_s: float, data: bytes, moved: bytearray) -> _Repeat:
    """Pieces of work until a moment of the monotonic clock, between them sleeps of 1 ms; at least one."""
    pieces: list[int] = []
    late: list[int] = []
    while not pieces or time.monotonic() < until_s:
        began_ns = time.perf_counter_ns()
        hashlib.sha256(data).digest()
        moved[: _MOVED_BYTES // 2] = moved[_MOVED_BYTES // 2 :]
        ended_ns = time.perf_counter_ns()
        pieces.append(ended_ns - began_ns)
        time.sleep(0.001)
        late.append(time.perf_counter_ns() - ended_ns - 1_000_000)
    return _Repeat(pieces, late)


def _spread(values: list[float]) -> float:
    return round((max(values) - min(values)) / statistics.median(values), 4)


def _percentile(values: list[int], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
