"""What a sweep shows: which configurations are Pareto-optimal, the figure, the page with every point, and the summary.
The simulations are those of `vidur_adapter.sweep`.

A point's name is its place in sweep.csv, from 1.

matplotlib is imported on use, as in `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gst_assets.analysis.figures import Figure as ShownFigure
from gst_assets.analysis.report_blocks import Block, Facts, File, Files, Grid, Heading, Picture, Section, Text
from gst_assets.analysis.report_formats import page
from gst_assets.contracts.tables import SweepPoints, write_table
from gst_assets.formats import MISSING, brief_milliseconds, markdown_table, milliseconds, number
from gst_assets.scenario import HighestRate, Scenario, ServiceLevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMMARY = "summary.md"
REPORT = "report.html"
FIGURE = "pareto.png"
LATENCIES = {"ttft": "TTFT", "itl": "ITL", "e2e": "E2E"}
_NS_PER_MS = 1e6
_SETTINGS = {"max_num_seqs": "max seqs", "max_num_batched_tokens": "max tokens", "num_kv_blocks": "KV blocks"}
_SUMMARY_POINTS = 200
"""More points than a text shows: then only those that are Pareto-optimal."""
_DRAWN_GROUPS = 12
_NAMED_POINTS = 60
"""With more engine settings, or points, colour and label no longer keep them apart in a figure."""
_NAMES_ACROSS = 16
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
    optimal = np.zeros(len(latency), dtype=bool)
    known = np.flatnonzero(~np.isnan(latency))
    if not len(known):
        return optimal
    groups, of = np.unique(-throughput[known], return_inverse=True)  # most throughput first
    shortest = np.full(len(groups), np.inf)
    np.minimum.at(shortest, of, latency[known])
    before = np.concatenate([[np.inf], np.minimum.accumulate(shortest)[:-1]])  # with more throughput
    optimal[known] = (latency[known] == shortest[of]) & (latency[known] < before[of])
    return optimal


def sweep_table(points: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows of `vidur_adapter.sweep.point` as a `contracts.tables.SweepPoints` table, with the Pareto-optimal ones
    marked."""
    frame = pd.DataFrame(list(points))
    throughput = frame["output_tokens_per_s"].to_numpy(dtype="float64")
    for name in LATENCIES:
        frame[f"pareto_{name}"] = pareto(throughput, frame[f"{name}_p99_ns"].to_numpy(dtype="float64"))
    required, optional = SweepPoints.column_types()
    types = required | optional
    return frame.astype(types)[list(types)]


def write_sweep(frame: pd.DataFrame, scenario: Scenario, directory: Path) -> None:
    """Write sweep.csv, pareto.png, report.html and summary.md of the sweep of `scenario`. Equal tables give equal
    bytes.

    Raises:
        ContractError: the table breaks the contract.
    """
    write_table(SweepPoints, frame, directory)
    _draw(frame, directory / FIGURE)
    (directory / REPORT).write_text(page(_blocks(frame, scenario), directory, "."), encoding="utf-8")
    texts = [f"# {_title(scenario)}", caption(frame)]
    if (search := _search(scenario)) is not None:
        texts += [_searched(search), highest_rates_table(frame, search)]
    texts += [f"![Throughput against P99]({FIGURE})", summary_table(frame, most=_SUMMARY_POINTS)]
    (directory / SUMMARY).write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def caption(frame: pd.DataFrame) -> str:
    """What the figure shows, and what limits it."""
    fewest = int(frame["num_requests"].min())
    notes = [
        "Output tokens per second against P99 latency, one point a configuration"
        f"{' with its rate of requests' if _is_named(frame) else '; some of the optimal ones with their numbers'}."
        " Filled: Pareto-optimal, no other gives more tokens at no longer latency. Simulated; how far the simulation is"
        " from the engine is stated in the comparison."
    ]
    if not frame["p99_sufficient"].all():
        notes.append(f"**Insufficient samples: {fewest} requests are too few for a P99 of TTFT or E2E.**")
    outside = frame["steps_outside_calibration"].fillna(0).sum()
    if outside:
        notes.append(f"{outside:,} simulated steps lie outside what was calibrated.")
    return " ".join(notes)


def _optimal(frame: pd.DataFrame) -> pd.Series:
    """Which points are Pareto-optimal in some latency."""
    return frame[[f"pareto_{name}" for name in LATENCIES]].any(axis=1)


def summary_table(frame: pd.DataFrame, *, most: int) -> str:
    """One line a configuration, in milliseconds; optimal values are bold. Of more than `most` only those that are
    optimal in some latency, which is said."""
    header = ["#", "rate/s", *_SETTINGS.values(), "requests/s", "tokens/s", "goodput/s"]
    header += [f"{label} P50 / P90 / P99 [ms]" for label in LATENCIES.values()] + [
        "scheduling delay P99 [ms]",
        "preemptions",
    ]
    shown = frame if len(frame) <= most else frame[_optimal(frame)]
    rows = []
    for place, row in zip(shown.index, shown.to_dict("records"), strict=True):
        cells = [str(place + 1), "" if pd.isna(row["rate_per_s"]) else f"{row['rate_per_s']:g}"]
        cells += [str(row[name]) for name in _SETTINGS]
        cells += [f"{row['requests_per_s']:.2f}", f"{row['output_tokens_per_s']:.0f}"]
        cells += ["" if pd.isna(row["goodput_per_s"]) else f"{row['goodput_per_s']:.2f}"]
        for name in LATENCIES:
            values = " / ".join(milliseconds(row[f"{name}_p{percentile}_ns"], ".4g") for percentile in (50, 90, 99))
            cells.append(f"**{values}**" if row[f"pareto_{name}"] else values)
        cells += [milliseconds(row["scheduling_delay_p99_ns"], ".4g"), str(row["num_preemptions"])]
        rows.append(cells)
    table = markdown_table(header, rows, right=range(len(header)), tight=True)
    if len(shown) == len(frame):
        return table
    return f"{_told_of_optimal(frame)} All are in sweep.csv and {REPORT}.\n\n{table}"


def _told_of_optimal(frame: pd.DataFrame) -> str:
    return f"{int(_optimal(frame).sum())} of {len(frame):,} points are Pareto-optimal in some latency."


# --- the highest rate -------------------------------------------------------------------------------------------------


def _search(scenario: Scenario) -> HighestRate | None:
    return scenario.sweep.highest_rate if scenario.sweep is not None else None


def _searched(search: HighestRate) -> str:
    return (
        f"Highest rate, between {search.low_rate_per_s:g} and {search.high_rate_per_s:g} requests/s and to"
        f" {100 * search.relative_tolerance:g} %, at which at least {100 * search.least_share:g} % of the requests meet"
        " the service level."
    )


def highest_rates(frame: pd.DataFrame, search: HighestRate) -> list[tuple[str, ...]]:
    """Of each combination of engine settings, in the order of the table: the settings, the highest rate tried that
    keeps the service level, the lowest that does not, and how many were tried."""
    rows = []
    for settings, group in frame.groupby(list(_SETTINGS), sort=False):
        is_kept = group["level_share"] >= search.least_share
        kept, broken = group.loc[is_kept, "rate_per_s"], group.loc[~is_kept, "rate_per_s"]
        rows.append(
            (
                *(str(value) for value in settings),
                f"{kept.max():.4g}" if len(kept) else f"below {search.low_rate_per_s:g}",
                f"{broken.min():.4g}" if len(broken) else MISSING,
                str(len(group)),
            )
        )
    return rows


_HIGHEST_HEADER = (*_SETTINGS.values(), "highest rate/s", "not kept at", "rates tried")


def highest_rates_table(frame: pd.DataFrame, search: HighestRate) -> str:
    """`highest_rates` in Markdown."""
    columns = range(len(_HIGHEST_HEADER))
    return markdown_table(_HIGHEST_HEADER, highest_rates(frame, search), right=columns, tight=True)


# --- the page ---------------------------------------------------------------------------------------------------------


def _title(scenario: Scenario) -> str:
    return f"Sweep of {scenario.name}"


def _blocks(frame: pd.DataFrame, scenario: Scenario) -> list[Block]:
    search = _search(scenario)
    optimal = frame[_optimal(frame)].sort_values("output_tokens_per_s", ascending=False, kind="stable")
    blocks: list[Block] = [Heading(_title(scenario), 1), _facts(frame, scenario)]
    if search is not None:
        grid = Grid(_HIGHEST_HEADER, tuple(highest_rates(frame, search)), 0, sortable=True)
        blocks += [Heading("Highest rate"), Text(_searched(search)), grid]
    return [
        *blocks,
        Picture(ShownFigure(FIGURE, "Throughput against P99", caption(frame))),
        Heading("Pareto-optimal"),
        Text(f"{_told_of_optimal(frame)} A click on the head of a column sorts by it. Times in ms."),
        _grid(optimal),
        Section("Every point", (_grid(frame),), f"{len(frame):,}, with all settings"),
        Section(
            "Files", (Files((File("sweep.csv", "every point"), File(FIGURE, "the figure"))),), "what else is there"
        ),
    ]


def _facts(frame: pd.DataFrame, scenario: Scenario) -> Facts:
    assert scenario.sweep is not None
    facts = [
        ("model", scenario.model.name),
        ("hardware", scenario.hardware.hardware_id),
        ("simulation", scenario.sweep.variant),
        ("requests", f"{int(frame['num_requests'].min()):,}"),
        ("points", f"{len(frame):,}"),
    ]
    if scenario.sweep.service_level is not None:
        facts.append(("service level", _level(scenario.sweep.service_level)))
    return Facts(tuple(facts))


def _level(level: ServiceLevel) -> str:
    bounds = {"TTFT": level.ttft_ns, "TPOT": level.tpot_ns, "E2E": level.e2e_ns}
    return ", ".join(f"{name} {brief_milliseconds(ns)} ms" for name, ns in bounds.items() if ns is not None)


def _grid(frame: pd.DataFrame) -> Grid:
    """Points with every setting and every figure."""
    percentiles = [
        (f"{name}_p{percentile}_ns", f"{label} P{percentile}")
        for name, label in LATENCIES.items()
        for percentile in (50, 90, 99)
    ]
    header = ("#", "rate/s", *_SETTINGS.values(), "optimal in", "requests/s", "tokens/s", "goodput/s", "within level %")
    header += (*(label for _, label in percentiles), "delay P99", "preemptions", "outside calibration")
    rows = []
    for place, row in zip(frame.index, frame.to_dict("records"), strict=True):
        share = row["level_share"]
        rows.append(
            (
                str(place + 1),
                MISSING if pd.isna(row["rate_per_s"]) else f"{row['rate_per_s']:.4g}",
                *(str(row[name]) for name in _SETTINGS),
                " ".join(label for name, label in LATENCIES.items() if row[f"pareto_{name}"]),
                f"{row['requests_per_s']:.2f}",
                f"{row['output_tokens_per_s']:.0f}",
                number(row["goodput_per_s"], 2, grouped=False),
                MISSING if pd.isna(share) else f"{100 * share:.1f}",
                *(milliseconds(row[name], ".4g") for name, _ in percentiles),
                milliseconds(row["scheduling_delay_p99_ns"], ".4g"),
                str(row["num_preemptions"]),
                MISSING if pd.isna(row["steps_outside_calibration"]) else str(row["steps_outside_calibration"]),
            )
        )
    return Grid(header, tuple(rows), 1, sortable=True)


# --- the figure -------------------------------------------------------------------------------------------------------


def _draw(frame: pd.DataFrame, path: Path) -> None:
    from matplotlib import style

    # A user's own matplotlibrc must not change the figure.
    with style.context("default"):
        # Without the version string the bytes depend on the drawing only.
        pareto_figure(frame).savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def _is_named(frame: pd.DataFrame) -> bool:
    """Whether the figure labels every point."""
    return len(frame) <= _NAMED_POINTS and frame.groupby(list(_SETTINGS)).ngroups <= _DRAWN_GROUPS


def pareto_figure(frame: pd.DataFrame) -> Figure:
    """A panel for each latency. Colour and marker show the engine settings, lines join the rates of each, and each
    point is labelled with its rate; where there are too many for that, the optimal ones are joined, and some of them
    labelled with their number."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    is_named = _is_named(frame)
    canvas = Figure(figsize=(_WIDTH_INCHES, 0.5 + _PANEL_INCHES * len(LATENCIES)), layout="constrained")
    panels = canvas.subplots(len(LATENCIES), 1, sharex=True)
    for axes, (name, label) in zip(panels, LATENCIES.items(), strict=True):
        if is_named:
            _draw_every_point(axes, frame, name)
        else:
            _draw_many_points(axes, frame, name)
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


def _draw_every_point(axes: Axes, frame: pd.DataFrame, name: str) -> None:
    varied = [one for one in _SETTINGS if frame[one].nunique() > 1]
    for number_of_group, (key, group) in enumerate(frame.groupby(list(_SETTINGS), sort=False)):
        colour = _COLOURS[number_of_group % len(_COLOURS)]
        latency = group[f"{name}_p99_ns"].to_numpy(dtype="float64") / _NS_PER_MS
        tokens = group["output_tokens_per_s"].to_numpy(dtype="float64")
        optimal = group[f"pareto_{name}"].to_numpy(dtype=bool)
        told = ", ".join(f"{one} {value}" for one, value in zip(_SETTINGS, key, strict=True) if one in varied)
        drawn: dict[str, Any] = {"color": colour, "marker": _MARKERS[number_of_group % len(_MARKERS)], "markersize": 6}
        axes.plot(tokens, latency, **drawn, linewidth=0.8, markerfacecolor="white", label=told or "as the scenario")
        axes.plot(tokens[optimal], latency[optimal], **drawn, linestyle="none")
        for rate, x, y in zip(group["rate_per_s"], tokens, latency, strict=True):
            if not (pd.isna(rate) or np.isnan(y)):
                _label(axes, f"{rate:.4g}/s", x, y, colour)


def _draw_many_points(axes: Axes, frame: pd.DataFrame, name: str) -> None:
    latency = frame[f"{name}_p99_ns"].to_numpy(dtype="float64") / _NS_PER_MS
    tokens = frame["output_tokens_per_s"].to_numpy(dtype="float64")
    optimal = np.flatnonzero(frame[f"pareto_{name}"].to_numpy(dtype=bool))
    optimal = optimal[np.argsort(tokens[optimal], kind="stable")]
    axes.plot(
        tokens, latency, color="#9aa0aa", marker=".", markersize=3, linestyle="none", label=f"{len(frame):,} points"
    )
    axes.plot(
        tokens[optimal], latency[optimal], color=_COLOURS[0], marker="o", markersize=4, linewidth=0.8, label="optimal"
    )
    apart, last = (tokens.max() - tokens.min()) / _NAMES_ACROSS, -np.inf
    for place in optimal:
        if tokens[place] - last >= apart:
            _label(axes, f"#{frame.index[place] + 1}", tokens[place], latency[place], _COLOURS[0])
            last = tokens[place]


def _label(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    placed: dict[str, Any] = {"xytext": (5, -2), "textcoords": "offset points", "ha": "left", "va": "top"}
    axes.annotate(text, (x, y), **placed, fontsize=7, color=colour)
