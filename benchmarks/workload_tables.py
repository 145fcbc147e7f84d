"""Arrival schedules and the contract's CSV files, compared with numpy and pandas alone: `python
benchmarks/workload_tables.py [REQUESTS] [ROUNDS]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import Ratio, side_by_side, tell

from gst_assets.contracts.tables import TraceIntervals, read_table, write_table
from gst_assets.scenario import Poisson
from gst_assets.workload.arrivals import build_trace_intervals

RATE_PER_S = 20.0


def main() -> None:
    """Print the ratios."""
    numbers = [int(one) for one in sys.argv[1:] if one.isdigit()]
    count, rounds = (*numbers, *(1_000_000, 5)[len(numbers) :])
    arrivals = Poisson(kind="poisson", rate_per_s=RATE_PER_S)

    def drawn() -> np.ndarray:
        gaps = np.random.Generator(np.random.PCG64(1)).standard_exponential(count) * (1e9 / RATE_PER_S)
        return np.cumsum(np.rint(gaps).astype(np.int64))

    frame = build_trace_intervals(arrivals, count, 1)
    assert (frame["arrival_time_ns"].to_numpy(dtype="int64") == drawn()).all()
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder), Path(folder) / "plain.csv"
        schedule = side_by_side(lambda: build_trace_intervals(arrivals, count, 1), drawn, rounds)
        writing = side_by_side(
            lambda: write_table(TraceIntervals, frame, ours), lambda: frame.to_csv(plain, index=False), rounds
        )
        path = ours / TraceIntervals.file_name()
        assert path.read_bytes() == plain.read_bytes()
        reading = side_by_side(lambda: read_table(TraceIntervals, path), lambda: pd.read_csv(plain), rounds)
    rows = f"{count:,} requests"
    tell(
        [
            Ratio(f"Poisson schedule of {rows}, as a table", "numpy draws and sums the same times", *schedule, "s"),
            Ratio(f"trace_intervals.csv of {rows}: validated, written", "pandas writes it", *writing, "s"),
            Ratio(f"trace_intervals.csv of {rows}: read, checked, validated", "pandas reads it", *reading, "s"),
        ]
    )


if __name__ == "__main__":
    main()
