"""What a sweep shows: which configurations are Pareto-optimal, the figure, and the summary. The simulations are those
of `vidur_adapter.sweep`.

matplotlib is imported on use, as in `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gst_assets.contracts.tables import SweepPoints, write_table
from gst_assets.formats import markdown_table, milliseconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "summary.md"
FIGURE = "pareto.png"
LATENCIES = {"ttft": "TTFT", "itl": "ITL", "e2e": "E2E"}
_NS_PER_MS = 1e6
_WIDTH_INCHES = 6.4
_PANEL_INCHES = 2.5
_DPI = 130
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = "o^sDvP"


def pareto(throughput: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """Which points no other dominates: none has at least their throughput and at most their latency, and one of the two
    better.

    bool of shape (points,); a point without a latency (NaN) is never optimal. Equal points are optimal together.
    """
    better = (throughput[None, :] >= throughput[:, None]) & (latency[None, :] <= latency[:, None])
    strictly = (throughput[None, :] > throughput[:, None]) | (latency[None, :] < latency[:, None])
    return ~(better & strictly).any(axis=1) & ~np.isnan(latency)


def sweep_table(points: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `vidur_adapter.sweep.point` as a `contracts.tables.SweepPoints` table, with the Pareto-optimal ones
    marked."""
    frame = pd.DataFrame(list(points))
    throughput = frame["output_tokens_per_s"].to_numpy(dtype="float64")
    for name in LATENCIES:
        frame[f"pareto_{name}"] = pareto(throughput, frame[f"{name}_p99_ns"].to_numpy(dtype="float64"))
    required, _ = SweepPoints.column_types()
    return frame.astype(required)[list(required)]


def write_sweep(frame: pd.DataFrame, title: str, directory: Path) -> None:
    """Write sweep.csv, pareto.png and summary.md. Equal tables give equal bytes.

    Raises:
        ContractError: the table breaks the contract.
    """
    write_table(SweepPoints, frame, directory)
    _draw(frame, directory / FIGURE)
    (directory / SUMMARY).write_text(
        f"# {title}\n\n{caption(frame)}\n\n![Throughput against P99]({FIGURE})\n\n{summary_table(frame)}\n",
        encoding="utf-8",
    )


def caption(frame: pd.DataFrame) -> str:
    """What the figure shows, and what limits it."""
    fewest = int(frame["num_requests"].min())
    notes = [
        "Output tokens per second against P99 latency, one point a configuration with its rate of requests. Filled:"
        " Pareto-optimal, no other gives more tokens at no longer latency. Simulated; how far the simulation is from"
        " the engine is stated in the comparison."
    ]
    if not frame["p99_sufficient"].all():
        notes.append(f"**Insufficient samples: {fewest} requests are too few for a P99 of TTFT or E2E.**")
    outside = frame["steps_outside_calibration"].fillna(0).sum()
    if outside:
        notes.append(f"{outside:,} simulated steps lie outside what was calibrated.")
    return " ".join(notes)


def summary_table(frame: pd.DataFrame) -> str:
    """One line a configuration, in milliseconds; optimal values are bold."""
    header = ["rate/s", "max seqs", "max tokens", "KV blocks", "requests/s", "tokens/s", "goodput/s"]
    header += [f"{label} P50 / P90 / P99 [ms]" for label in LATENCIES.values()] + [
        "scheduling delay P99 [ms]",
        "preemptions",
    ]
    rows = []
    for row in frame.to_dict("records"):
        cells = ["" if pd.isna(row["rate_per_s"]) else f"{row['rate_per_s']:g}"]
        cells += [str(row[name]) for name in ("max_num_seqs", "max_num_batched_tokens", "num_kv_blocks")]
        cells += [f"{row['requests_per_s']:.2f}", f"{row['output_tokens_per_s']:.0f}"]
        cells += ["" if pd.isna(row["goodput_per_s"]) else f"{row['goodput_per_s']:.2f}"]
        for name in LATENCIES:
            values = " / ".join(milliseconds(row[f"{name}_p{percentile}_ns"], ".4g") for percentile in (50, 90, 99))
            cells.append(f"**{values}**" if row[f"pareto_{name}"] else values)
        cells += [milliseconds(row["scheduling_delay_p99_ns"], ".4g"), str(row["num_preemptions"])]
        rows.append(cells)
    return markdown_table(header, rows, right=range(len(header)), tight=True)


def _draw(frame: pd.DataFrame, path: Path) -> None:
    from matplotlib import style

    # A user's own matplotlibrc must not change the figure.
    with style.context("default"):
        # Without the version string the bytes depend on the drawing only.
        pareto_figure(frame).savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def pareto_figure(frame: pd.DataFrame) -> Figure:
    """A panel for each latency; colour and marker show the engine settings, lines join the rates of each, and each
    point is labelled with its rate."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    settings = ["max_num_seqs", "max_num_batched_tokens", "num_kv_blocks"]
    varied = [name for name in settings if frame[name].nunique() > 1]
    groups = list(frame.groupby(settings, sort=False))
    canvas = Figure(figsize=(_WIDTH_INCHES, 0.5 + _PANEL_INCHES * len(LATENCIES)), layout="constrained")
    panels = canvas.subplots(len(LATENCIES), 1, sharex=True)
    for axes, (name, label) in zip(panels, LATENCIES.items(), strict=True):
        for number, (key, group) in enumerate(groups):
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            latency = group[f"{name}_p99_ns"].to_numpy(dtype="float64") / _NS_PER_MS
            tokens = group["output_tokens_per_s"].to_numpy(dtype="float64")
            optimal = group[f"pareto_{name}"].to_numpy(dtype=bool)
            told = ", ".join(f"{one} {value}" for one, value in zip(settings, key, strict=True) if one in varied)
            drawn = {"color": colour, "marker": marker, "markersize": 6}
            axes.plot(tokens, latency, **drawn, linewidth=0.8, markerfacecolor="white", label=told or "as the scenario")
            axes.plot(tokens[optimal], latency[optimal], **drawn, linestyle="none")
            for rate, x, y in zip(group["rate_per_s"], tokens, latency, strict=True):
                if not (pd.isna(rate) or np.isnan(y)):
                    axes.annotate(
                        f"{rate:g}/s",
                        (x, y),
                        xytext=(5, -2),
                        textcoords="offset points",
                        ha="left",
                        va="top",
                        fontsize=7,
                        color=colour,
                    )
        if (frame[f"{name}_p99_ns"].dropna() > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.08, y=0.16)
        axes.set_ylabel(f"{label} P99 [ms]", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("output tokens/s", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return canvas
