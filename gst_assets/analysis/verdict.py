"""When a simulation is close enough: the verdict of one error, and the worst of several. Computes no error and no
interval.

A cell (measure x statistic x variant) is judged by equivalence: it has to be shown that the error is small, not merely
that it was not shown to be large. With the 95 % interval of its relative error on this workload (`repeats`; with one
repeat that of `bootstrap`) and the bands of the scenario:

- `pass` the whole interval lies inside the pass band;
- `warn` the whole interval lies inside the warn band, or inside the pass band with fewer than five repeats, which
  cannot show that the engine has one speed;
- `fail` the whole interval lies outside the warn band, or the error is undefined (the real value is 0 and the simulated
  one is not);
- `inconclusive` the interval straddles the warn band's edge: the data do not say;
- `insufficient` fewer than 20 requests or too few samples beyond the percentile (two; with one repeat ten): too little
  to form an interval worth reading. With one repeat also, unless it is a `fail`, where the samples are worth fewer than
  ten independent ones, or the run is short against the time over which requests depend on each other: such intervals
  cover too little, mostly by missing how bad the simulation gets in busy periods that were not seen. That invalidates a
  pass, but not a failure. And where tokens were delivered several at a time, so that the
  latency is the delivery's and not the engine's.

`inconclusive` and `insufficient` are no failures: to the reader both are "cannot judge" (`answer.judgement`).

A variant's outcome is the worst of its required cells in the order pass < warn < inconclusive < insufficient < fail. A
proven failure stands whatever else is unknown; what is unknown outweighs what is good, since a pass claims every
required cell; and of the two kinds of unknown, insufficient says less. A marked variant (`gate`) is at best `warn`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

from gst_assets.analysis.bootstrap import Interval
from gst_assets.scenario import Bands

Outcome = Literal["pass", "warn", "inconclusive", "insufficient", "fail"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""From best to worst."""


def judge(
    relative_error: float,
    interval: Interval,
    bands: Bands,
    *,
    sufficient: bool,
    independent: bool = True,
    few_repeats: bool = False,
) -> Outcome:
    """Outcome of one cell. A missing interval of a defined error (nothing was left in some replicate) is
    `insufficient`."""
    if not sufficient:
        return "insufficient"
    if math.isnan(relative_error):
        return "fail"
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "insufficient"
    if interval.low > bands.warn_band or interval.high < -bands.warn_band:
        return "fail"
    if not independent:
        return "insufficient"
    if -bands.pass_band <= interval.low and interval.high <= bands.pass_band:
        return "warn" if few_repeats else "pass"
    if -bands.warn_band <= interval.low and interval.high <= bands.warn_band:
        return "warn"
    return "inconclusive"


def worst(outcomes: Iterable[Outcome], *, marked: bool = False) -> Outcome:
    """The worst of the outcomes; `insufficient` of none. Marked, it is `warn` at best."""
    found: Outcome = max(outcomes, key=OUTCOMES.index, default="insufficient")
    return "warn" if marked and found == "pass" else found
