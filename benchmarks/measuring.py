"""What the benchmark programs share: measuring a child process, timing two things side by side, describing the
machine, and tables.

What is measured belongs to the programs. Timings of one run are compared with each other only: other work on the
machine slows all of it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TypeVar

from gst_assets.provenance import cpu_name, package_versions

T = TypeVar("T", int, float)
ROWS = "--rows"
"""Option of a program that `bench.py` runs: print the ratios as JSON instead of a table."""


@dataclass(frozen=True)
class Child:
    """A program that ended well: its wall-clock and processor seconds, peak resident memory in GiB, and what it
    printed."""

    seconds: float
    cpu_seconds: float
    peak_gib: float
    output: str


@dataclass(frozen=True)
class Ratio:
    """`ours` over `baseline`, in the unit of both; element i of each was measured in round i, side by side."""

    what: str
    against: str
    ours: list[float]
    baseline: list[float]
    unit: str

    @property
    def ratios(self) -> list[float]:
        """Of each round."""
        return [one / other for one, other in zip(self.ours, self.baseline, strict=True)]


def measured(command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Child:
    """Run a program to its end, in the directory `cwd`, with `environment` added to this process's own. What it writes
    to standard error is shown only if it fails.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            errors.seek(0)
            raise SystemExit(
                f"{' '.join(command[:4])} ... ended with exit code {process.returncode}:\n{errors.read()[-2000:]}"
            )
    return Child(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, output)


def side_by_side(
    ours: Callable[[], object],
    baseline: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of both in each round, after a round that is not counted. Which one goes first alternates. `clock`:
    `time.process_time` measures the processor time of this process with all its threads, which other programs disturb
    less."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        pair = [(0, ours), (1, baseline)]
        for index, function in pair if number % 2 else reversed(pair):
            started = clock()
            function()
            if number >= 0:
                found[index].append(clock() - started)
    return found


def over_rounds(values: Sequence[float], digits: int) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; all columns but the first two are numbers."""
    rule = ["---" if index < 2 else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """One line per ratio: median (least to most) over its rounds, with both medians."""
    rows = [
        [
            one.what,
            one.against,
            over_rounds(one.ratios, 2),
            f"{statistics.median(one.ours):.3g} {one.unit}",
            f"{statistics.median(one.baseline):.3g} {one.unit}",
        ]
        for one in ratios
    ]
    return table(["measured", "baseline", "ratio", "measured", "baseline"], rows)


def tell(ratios: Sequence[Ratio]) -> None:
    """Print the ratios: as a table, or as JSON where the program was called with `--rows`."""
    print(json.dumps([asdict(one) for one in ratios]) if ROWS in sys.argv else ratio_table(ratios))


def told(output: str) -> list[Ratio]:
    """What a program that was called with `--rows` printed last."""
    return [Ratio(**one) for one in json.loads(output.splitlines()[-1])]


def machine() -> str:
    """The machine, its system, and the versions that matter, in one sentence each."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return (
        f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {pages / 2**30:.0f} GiB; {system}, Linux"
        f" {platform.release()}; Python {platform.python_version()}; {versions}."
    )


def positive(kind: type[T]) -> Callable[[str], T]:
    """An argparse type: a finite number above 0."""

    def parse(text: str) -> T:
        value = kind(text)  # type: ignore[call-arg]
        if not 0 < value < inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse: "invalid positive int value: '-5'"
    return parse


def around(page: Path, marker: str) -> tuple[str, str]:
    """What stands on a page up to `<!-- marker:begin -->` and from `<!-- marker:end -->` on, both with their marker.

    Raises:
        SystemExit: the page cannot be read, or has no such markers.
    """
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    try:
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    except OSError as error:
        raise SystemExit(f"{page}: {error.strerror}, expected a page with {begin.strip()} and {end}.") from None
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page}: has no lines {begin.strip()} and {end} to write between.")
    return before + begin, end + after


def write_between(page: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- marker:begin -->` and `<!-- marker:end -->` of a page.

    Raises:
        SystemExit: as `around`.
    """
    before, after = around(page, marker)
    page.write_text(f"{before}{text.strip()}\n{after}", encoding="utf-8")
