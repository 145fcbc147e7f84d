"""Which rate to try next when the question is the highest rate that meets a bound.

What a bound is, and whether a rate meets it, belongs to who asks: the search for capacity (`capacity.search`) and
sweeps (`vidur_adapter.sweep`). Importable on a GPU host (standard library only).
"""

from __future__ import annotations

import math


class RateBisection:
    """Both ends of the interval, then the middle of what is left on the logarithm of the rate, until that is narrower
    than the tolerance. Takes it that whoever meets the bound at a rate meets it at every lower one."""

    def __init__(self, low_rate_per_s: float, high_rate_per_s: float, relative_tolerance: float) -> None:
        """`relative_tolerance`: of the width of what is left, relative to its lower end."""
        self._low, self._high, self._tolerance = low_rate_per_s, high_rate_per_s, relative_tolerance
        self.met_per_s: float | None = None
        """The highest rate tried that meets the bound."""
        self.missed_per_s: float | None = None
        """The lowest rate tried that does not."""

    def next_rate_per_s(self) -> float | None:
        """The rate to be tried next; None when the search is over."""
        met, missed = self.met_per_s, self.missed_per_s
        if met is None:
            return self._low if missed is None else None
        if missed is None:
            return self._high if met < self._high else None
        return math.sqrt(met * missed) if missed > met * (1 + self._tolerance) else None

    @staticmethod
    def most_rates(low_rate_per_s: float, high_rate_per_s: float, relative_tolerance: float) -> int:
        """How many rates are tried at most: both ends, and one for each halving of what is between."""
        width = math.log(high_rate_per_s / low_rate_per_s) / math.log1p(relative_tolerance)
        return 2 + max(0, math.ceil(math.log2(width))) if width > 0 else 2

    def record(self, rate_per_s: float, *, is_met: bool) -> None:
        """Take into account what was seen at the rate of `next_rate_per_s`."""
        if is_met:
            self.met_per_s = rate_per_s
        else:
            self.missed_per_s = rate_per_s
