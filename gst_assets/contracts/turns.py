"""What tables of a workload or a run say of turns that wait for the answers before them, said once for those who write,
check and read it. Needs nothing but the frames, so that a GPU host and the simulation have it too.
"""

from __future__ import annotations

import pandas as pd

PREVIOUS = "previous_request_id"
"""The request whose last token one waits for; in trace_intervals.csv and request_metrics.csv."""
WORKLOAD_ARRIVAL = "workload_arrival_time_ns"
"""The workload's own time of a request; in request_metrics.csv."""
PREVIOUS_TURN_FAILED = "PreviousTurnFailed"
"""The error type of a request that was not sent, because the one whose answer it waits for failed."""


def turns_wait(table: pd.DataFrame) -> bool:
    """Whether any request of the table waits for an answer. A closed loop in which none does (sessions of one turn) has
    the arrivals of an open loop, and its runs are those of one."""
    return PREVIOUS in table and bool(table[PREVIOUS].notna().any())
