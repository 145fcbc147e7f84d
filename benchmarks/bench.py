"""Quick versions of the benchmarks, one after the other: `make bench`, or `python benchmarks/bench.py [--write]`.

Each line is a ratio to a baseline that was measured in the same run, side by side; absolute times are of this machine
and of what else it did. `--write` puts the result into docs/benchmarks.md. Thorough versions are the programs
themselves (docs/benchmarks.md lists them).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from measuring import ROWS, Ratio, machine, measured, ratio_table, told, write_between

from gst_assets.provenance import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "benchmarks.md"
MARKER = "bench"
FOLDER = Path(__file__).resolve().parent
PROGRAMS: tuple[tuple[str, ...], ...] = (
    ("tokenizing.py", "200", "5"),
    ("workload_tables.py", "300000", "5"),
    ("pipeline_overhead.py", "3"),
    ("pacer_lateness.py", "--rates", "32", "--seconds", "4", "--rounds", "3"),
    ("comparison_scale.py", "--tokens", "300000", "--rounds", "3"),
)
SIMULATION = ("simulation_speed.py", "--sizes", "1000")
"""Its own lines state its ratios, so they are shown as they are."""


def main() -> None:
    """Run every program and print, or write, what they reported."""
    began = time.perf_counter()
    before = os.getloadavg()[0]
    ratios: list[Ratio] = []
    for program in PROGRAMS:
        ratios += told(_run(program, ROWS))
    simulation = _run(SIMULATION)
    minutes = (time.perf_counter() - began) / 60
    text = (
        f"{machine()} Load average {before:.1f} before, {os.getloadavg()[0]:.1f} after; {minutes:.1f} minutes.\n\n"
        f"{ratio_table(ratios)}\n\n"
        f"`python benchmarks/{' '.join(SIMULATION)}`:\n\n```\n{simulation.strip()}\n```"
    )
    print(text)
    if "--write" in sys.argv:
        write_between(PAGE, MARKER, text)


def _run(program: tuple[str, ...], *more: str) -> str:
    started = time.perf_counter()
    print(f"{' '.join(program)} ...", end=" ", file=sys.stderr, flush=True)
    output = measured([sys.executable, "-W", "ignore", str(FOLDER / program[0]), *program[1:], *more]).output
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return output


if __name__ == "__main__":
    main()
