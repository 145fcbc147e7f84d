"""The report's figures, as small PNGs with the same bytes for the same comparison (and the same matplotlib).

Draws what `judged_errors` computed; computes no result of its own and never touches the samples, so that a large run
costs no more to draw. matplotlib is imported on use, on the Agg canvas and without pyplot, so that nothing global is
touched. Colours are those of Okabe and Ito (2008), "Color Universal Design", and every series also has a line style or
marker of its own, so that print without colour stays legible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gst_assets.analysis.answer import Answer, Judgement
from gst_assets.analysis.cells import Cell
from gst_assets.analysis.judged_errors import CURVE_LEVELS, Comparison
from gst_assets.analysis.measures import MEASURE_NAMES, Measure, Timeline
from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.scenario import Bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_WIDTH_INCHES = 5.4
"""Narrow, so that 9-point letters are still read where a phone shows a figure 370 pixels wide."""
_DPI = 150
_NS_PER_MS = 1e6
_MAX_SCATTER_POINTS = 2000
_MAX_TIMELINE_BINS = 600
_NUM_WORST = 8
_DISTRIBUTIONS: dict[Measure, str] = {
    "ttft": "time to first token",
    "itl": "per-token latency (gap to the previous token)",
}
_REAL_COLOUR = "#000000"
_STYLES = (
    ("#0072B2", "solid", "o"),
    ("#E69F00", (0, (5, 2)), "^"),
    ("#009E73", (0, (1, 1)), "s"),
    ("#CC79A7", (0, (5, 1, 1, 1)), "D"),
)
"""Colour, line style and marker; the headline variant takes the first."""
_LONGEST_NAME = 40
_PHASES = (("waiting", "#BBBBBB", ""), ("prefill", "#56B4E9", "///"), ("decode", "#0072B2", ""))
"""Parts of a request's time: name, colour and hatch."""
VERDICT_FIGURE = "answer.png"
"""The figure of the cells that decide; every comparison has it."""
_JUDGED: dict[Judgement, tuple[str, str]] = {
    "pass": ("#009E73", "o"),
    "warn": ("#E69F00", "^"),
    "fail": ("#D55E00", "s"),
    "cannot_judge": ("#56698F", "D"),
}
"""Colour and marker of each judgement."""


@dataclass(frozen=True)
class Figure:
    """One PNG: its file name inside `figs/`, a title of a few words, and what it shows."""

    file_name: str
    title: str
    caption: str


def write_figures(comparison: Comparison, directory: Path) -> list[Figure]:
    """Draw every figure that has samples into `directory`; returns them in reading order, that of the deciding cells
    first.

    A metric without samples (one token a request has no inter-token latency) gets no figure rather than an empty one.
    """
    figures: list[Figure] = []

    def add(name: str, title: str, caption: str, height: float, draw: Callable[[Canvas], None]) -> None:
        figure = Figure(name, title, caption)
        _save(directory / name, height, draw)
        figures.append(figure)

    bands, answer = comparison.bands, comparison.answer
    add(
        VERDICT_FIGURE,
        "The errors that decide",
        f"Errors of `{comparison.headline}` with their 95 % intervals, on this workload. Left of 0 the simulation is"
        f" too fast. Dark band: within {100 * bands.pass_band:g} % (pass); light band: within {100 * bands.warn_band:g}"
        " % (warn).",
        1.1 + 0.4 * max(len(answer.cells), 2),
        lambda canvas: _answer(canvas, answer, bands),
    )
    rows = len({(cell.metric, cell.statistic) for cell in comparison.cells if cell.num_real_samples})
    add(
        "errors.png",
        "Errors and their intervals",
        "Relative error of each statistic of every variant with its 95 % interval; negative: the simulation is too"
        " fast. Bands as above. Bold: decides. †: too few samples, no interval.",
        1.3 + 0.2 * rows,
        lambda canvas: _errors(canvas, comparison),
    )
    for metric, what in _DISTRIBUTIONS.items():
        if _has_samples(comparison, metric):
            band = " Grey: 95 % band of the real distribution." if metric in comparison.real_bands else ""
            add(
                f"{metric}_cdf.png",
                f"Distribution of {MEASURE_NAMES[metric]}",
                f"Cumulative distribution of {MEASURE_NAMES[metric]}, {what}. Thin black: one line per real"
                f" repeat.{band} A logarithmic axis begins at the lowest 1 %; what lies below enters at its left edge.",
                4.2,
                partial(_cdf, comparison=comparison, metric=metric),
            )
    add(
        "qq.png",
        "Quantiles against quantiles",
        "Each quantile of the simulation against the same quantile of the real run (first repeat). On the diagonal the"
        f" distributions agree. Shaded: within {100 * bands.warn_band:g} %.",
        3.7,
        lambda canvas: _quantiles(canvas, comparison),
    )
    add(
        "ttft_per_request.png",
        "TTFT per request",
        "TTFT of each request, simulated against real (median over repeats). On the diagonal the simulation is exact;"
        f" above it, it is too slow. Shaded: within {100 * bands.warn_band:g} %.",
        4.2,
        lambda canvas: _scatter(canvas, comparison, "ttft"),
    )
    if comparison.error_groups["median"].notna().any():
        add(
            "error_drivers.png",
            "Error against prompt length and load",
            f"Relative TTFT error of each request of `{comparison.headline}` against its prompt length, and against how"
            " many other requests were in the system when it arrived. Black: median of each of up to four groups of"
            " about equal size, with its 10 to 90 % range.",
            3.7,
            lambda canvas: _drivers(canvas, comparison),
        )
    source = " and ".join(sorted({comparison.timelines[name].source for name in _timeline_names(comparison)}))
    add(
        "timeline.png",
        "Requests running and waiting",
        f"Requests running and waiting over time, real (first repeat) and `{comparison.headline}`, from {source}. Of"
        " many changes the largest count in each stretch is drawn.",
        4.6,
        lambda canvas: _timelines(canvas, comparison),
    )
    add(
        "worst_requests.png",
        "The worst misses",
        f"The requests whose end-to-end latency `{comparison.headline}` misses by most (first repeat): real above,"
        f" simulated below. {_phases_told(comparison)}",
        1.4 + 0.52 * min(_NUM_WORST, len(comparison.pairs[_headline_pair(comparison)].real.requests)),
        lambda canvas: _worst(canvas, comparison),
    )
    return figures


def _has_samples(comparison: Comparison, metric: Measure) -> bool:
    return any(name == metric for name, _ in comparison.curves)


def _headline_pair(comparison: Comparison) -> tuple[str, str]:
    return comparison.real_repeats[0].meta.run_id, comparison.headline


def _headline_runs(comparison: Comparison) -> tuple[RealRun | SimulatedRun, RealRun | SimulatedRun]:
    return comparison.real_repeats[0], comparison.simulations[comparison.headline]


def _save(path: Path, height: float, draw: Callable[[Canvas], None]) -> None:
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    # A user's own matplotlibrc must not change the report.
    with style.context("default"):
        canvas = Canvas(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
        draw(canvas)
        # Laid out here, matplotlib does not draw everything once more only to lay it out.
        layout = canvas.get_layout_engine()
        assert layout is not None
        layout.execute(canvas)
        canvas.set_layout_engine(None)
        # Without the version string the bytes depend on the drawing only.
        canvas.savefig(path, format="png", metadata={"Software": None})


def _axes(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(canvas: Canvas, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


# --- the errors that decide -------------------------------------------------------------------------------------------


def _answer(canvas: Canvas, answer: Answer, bands: Bands) -> None:
    """One row a deciding cell, on a plain axis; the error is written at its point's right end."""
    axes = _axes(canvas.add_subplot())
    axes.grid(False, axis="y")
    for band, colour in ((bands.warn_band, "#E6E6E6"), (bands.pass_band, "#CCCCCC")):
        axes.axvspan(-100 * band, 100 * band, color=colour, linewidth=0, zorder=0)
    axes.axvline(0, color="#666666", linewidth=0.8, zorder=1)
    ends = [-100 * bands.warn_band, 100 * bands.warn_band]
    for row, cell in enumerate(answer.cells):
        colour, marker = _JUDGED[cell.verdict]
        reach = np.array([value for value in (cell.low, cell.error, cell.high) if np.isfinite(value)]) * 100
        if not len(reach):
            axes.annotate("no bound", (0, row), xytext=(6, 5), textcoords="offset points", fontsize=9, color="#333333")
            continue
        ends.extend(reach)
        if np.isfinite(cell.low):
            right = 100 * cell.high if np.isfinite(cell.high) else 1e9
            axes.plot([100 * cell.low, right], [row, row], color=colour, linewidth=3, solid_capstyle="butt", zorder=3)
        if np.isfinite(cell.error):
            axes.plot([100 * cell.error], [row], marker=marker, markersize=8, color=colour, zorder=4)
            axes.annotate(
                f"{100 * cell.error:+.1f} %",
                (100 * cell.error, row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                color="#222222",
                zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
            )
    low, high = min(ends), max(ends)
    room = 0.12 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(max(len(answer.cells), 2) - 0.45, -0.75)
    axes.set_yticks(range(len(answer.cells)), [cell.name for cell in answer.cells], fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+,g}" if value else "0")
    axes.set_xlabel("error: (simulated - real) / real [%]")


# --- errors with their intervals --------------------------------------------------------------------------------------


def _errors(canvas: Canvas, comparison: Comparison) -> None:
    axes = _axes(canvas.add_subplot())
    axes.grid(False, axis="y")
    keys = list(dict.fromkeys((cell.metric, cell.statistic) for cell in comparison.cells if cell.num_real_samples))
    rows = {key: number for number, key in enumerate(keys)}
    bands = comparison.bands
    for band, colour in ((bands.warn_band, "#EEEEEE"), (bands.pass_band, "#D5D5D5")):
        axes.axvspan(-100 * band, 100 * band, color=colour, linewidth=0, zorder=0)
    axes.axvline(0, color="#666666", linewidth=0.8, zorder=1)
    styles, shown_ends = _styled(comparison), [-100 * bands.warn_band, 100 * bands.warn_band]
    for number, (variant, (colour, _, marker)) in enumerate(styles.items()):
        cells = [
            cell
            for cell in comparison.cells
            if cell.variant == variant and cell.num_real_samples and np.isfinite(cell.relative_error)
        ]
        offset = (number - (len(styles) - 1) / 2) * (0.5 / max(len(styles), 1))
        at = [rows[cell.metric, cell.statistic] + offset for cell in cells]
        values = np.array([100 * cell.relative_error for cell in cells])
        shown_ends.extend(values)
        for cell, y in zip(cells, at, strict=True):
            if np.isfinite(cell.interval_low):
                ends = 100 * np.array([cell.interval_low, cell.interval_high])
                shown_ends.extend(ends[np.isfinite(ends)])
                style = {"linestyle": (0, (1, 1)), "linewidth": 1.4} if cell.interval_flagged else {"linewidth": 2.0}
                axes.plot(np.minimum(ends, 1e6), [y, y], color=colour, solid_capstyle="butt", zorder=3, **style)
        axes.plot(
            values,
            at,
            linestyle="none",
            marker=marker,
            markersize=5,
            color=colour,
            markerfacecolor=colour if variant == comparison.headline else "white",
            label=_legend_name(comparison, variant),
            zorder=4,
        )
    shown = {(cell.metric, cell.statistic): cell for cell in comparison.cells if cell.variant == comparison.headline}
    axes.set_yticks(range(len(keys)), [_row_label(shown[key]) for key in keys], fontsize=8)
    for label, key in zip(axes.get_yticklabels(), keys, strict=True):
        label.set_fontweight("bold" if shown[key].required else "normal")
    axes.set_ylim(len(keys) - 0.4, -0.6)
    _scale_errors(axes, 1.1 * min(shown_ends), 1.1 * max(shown_ends))
    axes.set_xlabel("relative error (simulated - real) / real [%]")
    _legend(canvas, axes)


def _scale_errors(axes: Axes, low: float, high: float) -> None:
    """The axis of relative errors [%] between two ends. Far errors must not squeeze the bands to a line: then linear up
    to 20 %, logarithmic beyond."""
    from matplotlib.ticker import NullLocator

    if max(-low, high) > 60:
        axes.set_xscale("symlog", linthresh=20, linscale=1.5)
        axes.set_xticks(_apart(axes, low, high), minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+,g}" if value else "0")
    axes.set_xlim(low, high)


def _apart(axes: Axes, low: float, high: float) -> list[float]:
    """Ticks between two ends of a logarithmic axis about 0, none closer to its neighbour than the width of its label;
    those near 0 go first."""
    place = axes.xaxis.get_transform().transform
    room = (place(np.array([high])) - place(np.array([low]))).item() * 0.13
    ticks = [0.0]
    for sign, end in ((-1, -low), (1, high)):
        last = 0.0
        for size in (5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000, 1_000_000):
            if size <= end and place(np.array([size])).item() - place(np.array([last])).item() >= room:
                last = float(size)
                ticks.append(sign * last)
    return sorted(ticks)


def _row_label(cell: Cell) -> str:
    return f"{cell.name} {cell.sign}".rstrip()


# --- distributions ----------------------------------------------------------------------------------------------------


def _cdf(canvas: Canvas, comparison: Comparison, metric: Measure) -> None:
    axes = _axes(canvas.add_subplot())
    shown = []
    repeats = comparison.real_repeats
    if metric in comparison.real_bands:
        band = comparison.real_bands[metric]
        axes.fill_between(
            band.values_ns / _NS_PER_MS,
            band.low,
            band.high,
            step="post",
            color="#BBBBBB",
            linewidth=0,
            label="95 % band",
            zorder=1,
        )
    for number, run in enumerate(repeats):
        curve = comparison.curves[metric, run.meta.run_id]
        label = "real" if len(repeats) == 1 else f"real ({len(repeats)} repeats)"
        axes.plot(
            curve / _NS_PER_MS,
            CURVE_LEVELS,
            color=_REAL_COLOUR,
            linewidth=1.0,
            label=None if number else label,
            zorder=5,
        )
        shown.append(curve)
    for variant, (colour, line, _) in _styled(comparison).items():
        if (metric, variant) not in comparison.curves:
            continue
        curve = comparison.curves[metric, variant]
        axes.plot(
            curve / _NS_PER_MS,
            CURVE_LEVELS,
            color=colour,
            linestyle=line,
            linewidth=2.0,
            label=_legend_name(comparison, variant),
            zorder=4,
        )
        shown.append(curve)
    axes.set_xlabel(f"{MEASURE_NAMES[metric]} [ms]")
    axes.set_ylabel("share of " + ("tokens" if metric == "itl" else "requests"))
    axes.set_yticks([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    axes.set_ylim(0, 1.02)
    # Bunched tokens have gaps of nearly 0, which would stretch the axis: it begins at the lowest 1 %.
    lows = [np.interp(0.01, CURVE_LEVELS, curve) for curve in shown]
    positive = [low for low in lows if low > 0]
    low, high = min(positive, default=0) / _NS_PER_MS, max(curve[-1] for curve in shown) / _NS_PER_MS
    if _log_if_wide(axes, low, high, ("x",)):
        axes.set_xlim(low / 1.1, high * 1.1)
    _legend(canvas, axes)


def _quantiles(canvas: Canvas, comparison: Comparison) -> None:
    metrics = [metric for metric in _DISTRIBUTIONS if _has_samples(comparison, metric)]
    grid = canvas.subplots(1, len(metrics), squeeze=False)[0]
    first, styles = comparison.real_repeats[0].meta.run_id, _styled(comparison)
    for axes, metric in zip(grid, metrics, strict=True):
        _axes(axes)
        real = comparison.curves[metric, first] / _NS_PER_MS
        curves = {
            variant: comparison.curves[metric, variant] / _NS_PER_MS
            for variant in styles
            if (metric, variant) in comparison.curves
        }
        _diagonal(axes, np.concatenate([real, *curves.values()]), comparison.bands.warn_band)
        for variant in curves:
            colour, line, marker = styles[variant]
            axes.plot(
                real,
                curves[variant],
                color=colour,
                linestyle=line,
                linewidth=1.6,
                label=_legend_name(comparison, variant),
                zorder=3,
            )
            marked = [int(np.abs(CURVE_LEVELS - level).argmin()) for level in (0.5, 0.9, 0.99)]
            axes.plot(
                real[marked], curves[variant][marked], linestyle="none", marker=marker, markersize=6, color=colour,
                markerfacecolor="white", label="P50, P90, P99" if variant == comparison.headline else None, zorder=4,
            )  # fmt: skip
        axes.set_xlabel(f"real {MEASURE_NAMES[metric]} [ms]")
        axes.set_ylabel(f"simulated {MEASURE_NAMES[metric]} [ms]")
    _legend(canvas, grid[0])


def _diagonal(axes: Axes, shown: np.ndarray, band: float) -> None:
    """The line of equal values with a band, over the range of what is shown; both axes alike, logarithmic where it is
    wide."""
    # Room beyond the outermost points for their markers, and an extent even where all are equal.
    room = 1.15 if _log_if_wide(axes, float(shown.min()), float(shown.max()), ("x", "y")) else 1.05
    low, high = shown.min() / room, max(shown.max() * room, 1e-6)
    line = np.array([low, high])
    axes.plot(line, line, color="#666666", linewidth=1.0, label="exact", zorder=2)
    axes.fill_between(line, line * (1 - band), line * (1 + band), color="#000000", alpha=0.08, linewidth=0, zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


# --- request by request -----------------------------------------------------------------------------------------------


def _scatter(canvas: Canvas, comparison: Comparison, metric: Measure) -> None:
    axes = _axes(canvas.add_subplot())
    errors = comparison.request_errors
    columns = [f"real_{metric}_ns", f"sim_{metric}_ns"]
    medians = _per_request(errors, columns) / _NS_PER_MS
    _diagonal(axes, medians.to_numpy().ravel(), comparison.bands.warn_band)
    for variant, (colour, _, marker) in _styled(comparison).items():
        points = medians.loc[variant]
        every = -(-len(points) // _MAX_SCATTER_POINTS)
        points = points.iloc[::every]
        label = _legend_name(comparison, variant) + (f" (every {every}th request)" if every > 1 else "")
        axes.plot(
            points[columns[0]],
            points[columns[1]],
            linestyle="none",
            marker=marker,
            markersize=5,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=1.2,
            label=label,
            zorder=3,
        )
    axes.set_xlabel(f"real {MEASURE_NAMES[metric]} [ms]")
    axes.set_ylabel(f"simulated {MEASURE_NAMES[metric]} [ms]")
    _legend(canvas, axes)


def _per_request(errors: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Medians over the real repeats, by variant and request, as floats."""
    floats = errors[["variant", "request_id"]].assign(**{name: errors[name].astype("float64") for name in columns})
    if errors["run_id"].nunique() == 1:
        return floats.set_index(["variant", "request_id"])
    return floats.groupby(["variant", "request_id"], sort=True)[columns].median()


def _drivers(canvas: Canvas, comparison: Comparison) -> None:
    errors = comparison.request_errors
    errors = errors[errors["variant"] == comparison.headline]
    real = errors["real_ttft_ns"].to_numpy(dtype="float64")
    wrong = errors["ttft_error_ns"].to_numpy(dtype="float64")
    relative = 100 * np.divide(wrong, real, out=np.full(len(real), np.nan), where=real > 0)
    groups = comparison.error_groups
    groups = groups[(groups["variant"] == comparison.headline) & (groups["metric"] == "ttft")]
    every = -(-len(errors) // _MAX_SCATTER_POINTS)
    colour = _STYLES[0][0]
    panels = (
        ("num_prefill_tokens", "prompt length [tokens]"),
        ("num_in_system", "other requests in the system [requests]"),
    )
    grid = canvas.subplots(1, 2, sharey=True)
    for axes, (factor, label) in zip(grid, panels, strict=True):
        _axes(axes)
        at = errors[factor].to_numpy(dtype="float64")
        axes.axhspan(
            -100 * comparison.bands.warn_band,
            100 * comparison.bands.warn_band,
            color="#000000",
            alpha=0.08,
            linewidth=0,
            label=f"within {100 * comparison.bands.warn_band:g} %",
        )
        axes.axhline(0, color="#666666", linewidth=0.8)
        axes.plot(
            at[::every],
            relative[::every],
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=0.8,
            alpha=0.6,
            label="a request" + (f" (every {every}th)" if every > 1 else ""),
            zorder=3,
        )
        mine = groups[(groups["factor"] == factor) & groups["median"].notna()]
        low, high = (mine[name].to_numpy(dtype="float64") for name in ("low", "high"))
        median = 100 * mine["median"].to_numpy()
        spread = np.abs(100 * mine[["p10", "p90"]].to_numpy().T - median)
        axes.errorbar(
            (low + high) / 2,
            median,
            yerr=spread,
            xerr=(high - low) / 2,
            linestyle="none",
            marker="s",
            markersize=5,
            color="black",
            linewidth=1.4,
            capsize=3,
            label="group median, 10-90 %",
            zorder=5,
        )
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0].set_ylabel("TTFT error [%]")
    _legend(canvas, grid[0])


# --- over time --------------------------------------------------------------------------------------------------------


def _timeline_names(comparison: Comparison) -> tuple[str, str]:
    return comparison.real_repeats[0].meta.run_id, comparison.headline


def _timelines(canvas: Canvas, comparison: Comparison) -> None:
    real, sim = _timeline_names(comparison)
    colour = _STYLES[0][0]
    end = max(float(comparison.timelines[name].time_ns[-1]) for name in (real, sim))
    grid = canvas.subplots(2, 1, sharex=True)
    for axes, what in zip(grid, ("running", "waiting"), strict=True):
        _axes(axes)
        for name, label, style in (
            (real, "real", {"color": _REAL_COLOUR, "linewidth": 0.8}),
            (sim, _legend_name(comparison, sim), {"color": colour, "linewidth": 1.4, "linestyle": (0, (4, 1.5))}),
        ):
            seconds, counts = _steps(comparison.timelines[name], what, end)
            if name == real:
                axes.fill_between(seconds, counts, step="post", color="#CCCCCC", linewidth=0)
            axes.plot(seconds, counts, drawstyle="steps-post", label=label, **style)
        axes.set_ylabel(f"{what} [requests]")
        axes.set_ylim(bottom=0)
        if not any(getattr(comparison.timelines[name], what).any() for name in (real, sim)):
            axes.set_ylim(0, 1)
            axes.text(
                0.5,
                0.5,
                f"none {what} at any time, on either side",
                transform=axes.transAxes,
                ha="center",
                color="#444444",
            )
        axes.yaxis.get_major_locator().set_params(integer=True)
    grid[1].set_xlabel("time since run start [s]")
    _legend(canvas, grid[0])


def _steps(timeline: Timeline, what: str, end_ns: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and counts; of many changes, the largest count in each of `_MAX_TIMELINE_BINS` equal stretches."""
    counts, times = getattr(timeline, what), timeline.time_ns
    if len(times) <= 2 * _MAX_TIMELINE_BINS:
        return times / 1e9, counts
    edges = np.linspace(float(times[0]), end_ns, _MAX_TIMELINE_BINS + 1)
    group = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, _MAX_TIMELINE_BINS - 1)
    largest = np.full(_MAX_TIMELINE_BINS, -1, dtype=np.int64)
    np.maximum.at(largest, group, counts)
    # A stretch without a change keeps the last count before it; one with changes may also begin with it.
    last = np.searchsorted(times, edges[:-1], side="right") - 1
    return edges[:-1] / 1e9, np.maximum(largest, counts[np.maximum(last, 0)])


def _phases_told(comparison: Comparison) -> str:
    """Which parts of a request's time can be separated."""
    runs = _headline_runs(comparison)
    missing = [name for name, run in zip(("real run", "simulation"), runs, strict=True) if _scheduled(run) is None]
    if not missing:
        return (
            "Waiting: arrival to first scheduled; prefill: from there to the first token; decode: to the last compared"
            " token."
        )
    return (
        f"The {' and the '.join(missing)} record{'s' if len(missing) == 1 else ''} no scheduled_time_ns, so waiting is"
        " part of prefill there."
    )


def _scheduled(run: RealRun | SimulatedRun) -> pd.Series | None:
    column = run.requests.get("scheduled_time_ns")
    return column if column is not None and column.notna().any() else None


def _worst(canvas: Canvas, comparison: Comparison) -> None:
    pair = comparison.pairs[_headline_pair(comparison)]
    real, sim = pair.real.requests, pair.sim.requests
    size = np.abs(sim["e2e_ns"].to_numpy() - real["e2e_ns"].to_numpy())
    chosen = np.argsort(-size, kind="stable")[:_NUM_WORST]
    axes = _axes(canvas.add_subplot())
    axes.grid(False, axis="y")
    runs = _headline_runs(comparison)
    labels, ticks = [], []
    for number, row in enumerate(chosen):
        for offset, (side, run) in zip((-0.19, 0.19), zip((real, sim), runs, strict=True), strict=True):
            lengths = _phases(side.iloc[row], run)
            begin = 0.0
            for length, (name, colour, hatch) in zip(lengths, _PHASES, strict=True):
                axes.barh(
                    number + offset,
                    length,
                    height=0.34,
                    left=begin,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.4,
                    label=name if number == 0 and offset < 0 else None,
                )
                begin += length
        told = real.iloc[row]
        error = sim["e2e_ns"].iloc[row] - told["e2e_ns"]
        ticks.append(number)
        labels.append(
            f"request {told['request_id']}: {told['num_prefill_tokens']} + {told['num_tokens']}"
            f" tokens\n{error / _NS_PER_MS:+,.1f} ms"
        )
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.set_xlabel("time since arrival [ms]  (upper bar real, lower bar simulated)")
    _legend(canvas, axes)


def _phases(request: pd.Series, run: RealRun | SimulatedRun) -> list[float]:
    """Milliseconds waiting, in prefill, in decode. Waiting is 0 where the run does not record when the request was
    scheduled."""
    scheduled = _scheduled(run)
    moment = scheduled.iloc[int(request["request_id"])] if scheduled is not None else None
    waiting = 0 if moment is None or pd.isna(moment) else int(moment) - int(request["arrival_time_ns"])
    waiting = min(max(waiting, 0), int(request["ttft_ns"]))
    parts = (waiting, request["ttft_ns"] - waiting, request["e2e_ns"] - request["ttft_ns"])
    return [float(part) / _NS_PER_MS for part in parts]


# --- shared -----------------------------------------------------------------------------------------------------------


def _legend_name(comparison: Comparison, variant: str) -> str:
    """A variant's name as matplotlib shows it: it takes `$` for the begin of a formula, leaves names with an underscore
    in front out of legends, and lets long ones push the axes away."""
    text = comparison.label(variant)
    text = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")


def _styled(comparison: Comparison) -> dict[str, tuple[str, object, str]]:
    """Each variant's style, in the order of the scenario, the headline last and so with the first style."""
    last = len(comparison.variants) - 1
    return {name: _STYLES[(last - number) % len(_STYLES)] for number, name in enumerate(comparison.variants)}


def _log_if_wide(axes: Axes, low: float, high: float, which: tuple[str, ...]) -> bool:
    """Make axes logarithmic, and return True, where the range spans more than a decade; a range from 0 stays linear."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not (low > 0 and high > 10 * low):
        return False
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    return True
