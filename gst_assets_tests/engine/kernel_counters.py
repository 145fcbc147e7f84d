"""What Linux counted of the processor's time, read without the package's own reader, so that a record can be held
against it whatever else the machine does. No test stands here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Counted(NamedTuple):
    """Clock ticks since boot over all cores; `own` is this process alone."""

    total: int
    busy: int
    own: int

    def since(self, before: Counted) -> Counted:
        return Counted(*(now - then for now, then in zip(self, before, strict=True)))


def counted() -> Counted:
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy, times = user + nice + system + irq + softirq, os.times()
    own = round((times.user + times.system) * os.sysconf("SC_CLK_TCK"))
    return Counted(busy + idle + iowait + steal, busy, own)


def process_ticks(pid: int) -> int:
    """Clock ticks that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def bounds_of_others(inside: Counted, around: Counted) -> tuple[float, float]:
    """Least and greatest share of all cores that others can have had in a span that holds the span of `inside` and lies
    within that of `around`: a stall between two readings widens the bounds, so that it cannot break a comparison."""
    rounding = 2  # each counter is a whole number of ticks
    least = max(0, inside.busy - around.own - rounding) / max(1, around.total + rounding)
    most = max(0, around.busy - inside.own + rounding) / max(1, inside.total - rounding)
    return least, most
