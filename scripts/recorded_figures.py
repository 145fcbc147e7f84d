"""Compute the figures of docs/recorded.md from the runs under data/recorded: `python scripts/recorded_figures.py
[--check]`.

Rewrites what stands between the page's two markers; with --check it only says, by its exit status, whether the page is
up to date.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets.engine import recorded
from gst_assets.engine.metric_rows import latency_percentiles
from gst_assets.provenance import PROJECT_ROOT

RECORDED = PROJECT_ROOT / "data" / "recorded"
PAGE = PROJECT_ROOT / "docs" / "recorded.md"
BEGIN, END = "<!-- figures:begin -->\n", "<!-- figures:end -->\n"
SECOND_NS = 1_000_000_000
SLOW = 1.15
"""A second of a repeat is slow when its median ITL is this many times the median of the same second over all
repeats."""

Column = tuple[str, Callable[[RealRun], float], str]


def columns() -> list[Column]:
    """Name, value of a run, and format of each figure."""
    found: list[Column] = []
    for key in ("ttft", "itl"):
        for name in ("p50", "p90", "p99"):
            found.append((f"{key.upper()} {name.upper()} ms", _latency_ms(key, name), ".3f" if key == "itl" else ".2f"))
    for name in ("p50", "p99", "max"):
        found.append((f"late {name} ms", _lateness_ms(name), ".3f"))
    found.append(("output tokens/s", throughput_per_s, ".1f"))
    return found


def _latency_ms(key: str, name: str) -> Callable[[RealRun], float]:
    return lambda run: latency_percentiles(run.requests, run.tokens)[key][name] / 1e6


def _lateness_ms(name: str) -> Callable[[RealRun], float]:
    return lambda run: run.meta.lateness_ns[name] / 1e6


def throughput_per_s(run: RealRun) -> float:
    """Output tokens by the time of the last token since run start, per second."""
    return len(run.tokens) / (int(run.tokens["token_time_ns"].max()) / SECOND_NS)


def section(scenario: str, runs: Sequence[RealRun]) -> list[str]:
    """The tables of one scenario's repeats."""
    first = runs[0]
    lines = [
        f"### {scenario}",
        (
            f"{len(first.requests)} requests, {len(first.tokens)} output tokens, workload `{first.meta.workload_id}`,"
            f" measured {first.meta.started_at:%Y-%m-%d %H:%M:%S} to {runs[-1].meta.ended_at:%H:%M:%S} UTC."
        ),
        "",
    ]
    values = {name: [value(run) for run in runs] for name, value, _ in columns()}
    rows = [
        [
            f"r{run.meta.repeat_index}",
            *(format(values[name][i], form) for name, _, form in columns()),
            str(run.meta.num_bunched_messages),
        ]
        for i, run in enumerate(runs)
    ]
    rows.append(["spread", *(_percent(_spread(values[name])) for name, _, _ in columns()), ""])
    rows.append(["spread without r0", *(_percent(_spread(values[name][1:])) for name, _, _ in columns()), ""])
    rows.append(
        ["r0 to median of the others", *(_signed(_first_to_rest(values[name])) for name, _, _ in columns()), ""]
    )
    lines += _table(["repeat", *(name for name, _, _ in columns()), "bunched"], rows)
    header = ["repeat", *(f"TTFT, quarter {quarter}" for quarter in range(1, 5)), "slow seconds", "which"]
    return [*lines, "", *_table(header, _where_slow(runs)), ""]


def _where_slow(runs: Sequence[RealRun]) -> list[list[str]]:
    seconds, quarters = relative_seconds(runs), relative_quarters(runs)
    rows = []
    for i, run in enumerate(runs):
        slow = [int(second) for second in seconds.index[seconds[i] > SLOW]]
        which = ", ".join(f"{second} ({seconds[i][second]:.2f}x)" for second in slow)
        ratios = [f"{ratio:.2f}x" for ratio in quarters[i]]
        rows.append([f"r{run.meta.repeat_index}", *ratios, f"{len(slow)} of {len(seconds)}", which])
    return rows


def relative_quarters(runs: Sequence[RealRun]) -> pd.DataFrame:
    """Median over each quarter of the requests, in order of arrival, of a request's TTFT over the median TTFT of that
    request in all repeats."""
    ttft = pd.concat([run.requests["ttft_ns"].astype("float64") for run in runs], axis=1, keys=range(len(runs)))
    relative = ttft.div(ttft.median(axis=1), axis=0)
    return relative.groupby(relative.index * 4 // len(relative)).median()


def relative_seconds(runs: Sequence[RealRun]) -> pd.DataFrame:
    """Median ITL of each second of each repeat, over the median of the same second of all repeats (equal work: same
    workload)."""
    medians = []
    for run in runs:
        gaps = run.tokens[run.tokens["token_index"] > 0].astype("int64")
        medians.append(gaps.groupby(gaps["token_time_ns"] // SECOND_NS)["token_latency_ns"].median())
    seconds = pd.concat(medians, axis=1, keys=range(len(runs))).dropna()
    return seconds.div(seconds.median(axis=1), axis=0)


def _spread(values: Sequence[float]) -> float:
    return float((max(values) - min(values)) / pd.Series(values).median())


def _first_to_rest(values: Sequence[float]) -> float:
    return float(values[0] / pd.Series(values[1:]).median() - 1)


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _signed(value: float) -> str:
    return f"{value * 100:+.1f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def figures() -> str:
    """All sections, from the recorded runs as the contract's readers see them."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as area:
        for folder in sorted(path for path in RECORDED.iterdir() if path.is_dir()):
            kept = recorded.list_recorded(folder)
            runs = [load_run(recorded.expand(run.directory, Path(area)), "real") for run in kept]
            lines += section(folder.name, runs)
    return "\n".join(lines)


def main() -> int:
    """Write or check the page; returns the exit status."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    wanted = before + BEGIN + figures() + END + rest.split(END)[1]
    if sys.argv[1:] == ["--check"]:
        return int(wanted != text)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
