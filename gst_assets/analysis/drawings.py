"""How each figure of a report is drawn, from plain numbers and words: one class a figure.

Knows no comparison, so that a process that draws needs numpy and matplotlib alone (`drawing_process`); what is shown is
chosen in `figures`. PNGs are small, with the same bytes for the same drawing (and the same matplotlib). matplotlib is
imported on use, on the Agg canvas and without pyplot, so that nothing global is touched. Colours are those of Okabe and
Ito (2008), "Color Universal Design", and every series also has a line style or marker of its own, so that print without
colour stays legible.

Times are in milliseconds and errors in percent unless a name says otherwise; arrays are one-dimensional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_WIDTH_INCHES = 5.4
"""Narrow, so that 9-point letters are still read where a phone shows a figure 370 pixels wide."""
_DPI = 150
_REAL_COLOUR = "#000000"
STYLES: tuple[tuple[str, Any, str], ...] = (
    ("#0072B2", "solid", "o"),
    ("#E69F00", (0, (5, 2)), "^"),
    ("#009E73", (0, (1, 1)), "s"),
    ("#CC79A7", (0, (5, 1, 1, 1)), "D"),
)
"""Colour, line style and marker; the headline variant takes the first."""
_PHASES = (("waiting", "#BBBBBB", ""), ("prefill", "#56B4E9", "///"), ("decode", "#0072B2", ""))
"""Parts of a request's time: name, colour and hatch."""
_JUDGED: dict[str, tuple[str, str]] = {
    "pass": ("#009E73", "o"),
    "warn": ("#E69F00", "^"),
    "fail": ("#D55E00", "s"),
    "cannot_judge": ("#56698F", "D"),
}
"""Colour and marker of each judgement."""


class Drawing(Protocol):
    """What a figure shows."""

    def draw(self, canvas: Canvas) -> None:
        """Put it on an empty canvas."""


@dataclass(frozen=True)
class Sheet:
    """A drawing with the name of its file and its height."""

    file_name: str
    height_inches: float
    drawing: Drawing

    def save(self, directory: Path) -> None:
        """Draw it into its file in `directory`."""
        save(directory / self.file_name, (_WIDTH_INCHES, self.height_inches), _DPI, self.drawing.draw)


def save(path: Path, inches: tuple[float, float], dpi: int, draw: Callable[[Canvas], None]) -> None:
    """A figure of that size, as `draw` puts it on an empty canvas."""
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    # A user's own matplotlibrc must not change the report.
    with style.context("default"):
        canvas = Canvas(figsize=inches, dpi=dpi, layout="constrained")
        draw(canvas)
        # Laid out here, matplotlib does not draw everything once more only to lay it out.
        layout = canvas.get_layout_engine()
        assert layout is not None
        layout.execute(canvas)
        canvas.set_layout_engine(None)
        # Without the version string the bytes depend on the drawing only.
        canvas.savefig(path, format="png", metadata={"Software": None})


@dataclass(frozen=True)
class Style:
    """How a variant is drawn: its name in the legend, colour, matplotlib's line style, and marker."""

    label: str
    colour: str
    line: Any
    marker: str


@dataclass(frozen=True)
class ShownBands:
    """Errors up to these shares pass and warn, e.g. 0.05 and 0.1."""

    passes: float
    warns: float


# --- the errors that decide -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecidingRow:
    """One cell with its error and the ends of its interval as shares (NaN: not known; infinite: open)."""

    name: str
    judgement: str
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class DecidingErrors:
    """One row a deciding cell, on a plain axis; the error is written at its point's right end."""

    rows: tuple[DecidingRow, ...]
    band: ShownBands

    def draw(self, canvas: Canvas) -> None:
        axes = _axes(canvas.add_subplot())
        axes.grid(False, axis="y")
        for band, colour in ((self.band.warns, "#E6E6E6"), (self.band.passes, "#CCCCCC")):
            axes.axvspan(-100 * band, 100 * band, color=colour, linewidth=0, zorder=0)
        axes.axvline(0, color="#666666", linewidth=0.8, zorder=1)
        ends = [-100 * self.band.warns, 100 * self.band.warns]
        for row, cell in enumerate(self.rows):
            colour, marker = _JUDGED[cell.judgement]
            reach = np.array([value for value in (cell.low, cell.error, cell.high) if np.isfinite(value)]) * 100
            if not len(reach):
                axes.annotate(
                    "no bound", (0, row), xytext=(6, 5), textcoords="offset points", fontsize=9, color="#333333"
                )
                continue
            ends.extend(reach)
            if np.isfinite(cell.low):
                right = 100 * cell.high if np.isfinite(cell.high) else 1e9
                axes.plot(
                    [100 * cell.low, right], [row, row], color=colour, linewidth=3, solid_capstyle="butt", zorder=3
                )
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
        axes.set_ylim(max(len(self.rows), 2) - 0.45, -0.75)
        axes.set_yticks(range(len(self.rows)), [cell.name for cell in self.rows], fontsize=10)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+,g}" if value else "0")
        axes.set_xlabel("error: (simulated - real) / real [%]")


# --- errors with their intervals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorSeries:
    """A variant's errors at their places on the axis; `intervals` are (place, low, high, whether flagged), an open end
    infinite."""

    style: Style
    filled: bool
    at: np.ndarray
    errors: np.ndarray
    intervals: tuple[tuple[float, float, float, bool], ...]


@dataclass(frozen=True)
class ErrorIntervals:
    """Every cell's error with its interval; `rows` are the labels and whether they are bold."""

    rows: tuple[tuple[str, bool], ...]
    series: tuple[ErrorSeries, ...]
    band: ShownBands

    def draw(self, canvas: Canvas) -> None:
        axes = _axes(canvas.add_subplot())
        axes.grid(False, axis="y")
        for band, colour in ((self.band.warns, "#EEEEEE"), (self.band.passes, "#D5D5D5")):
            axes.axvspan(-100 * band, 100 * band, color=colour, linewidth=0, zorder=0)
        axes.axvline(0, color="#666666", linewidth=0.8, zorder=1)
        shown_ends = [-100 * self.band.warns, 100 * self.band.warns]
        for one in self.series:
            shown_ends.extend(one.errors)
            for at, low, high, flagged in one.intervals:
                ends = np.array([low, high])
                shown_ends.extend(ends[np.isfinite(ends)])
                line = {"linestyle": (0, (1, 1)), "linewidth": 1.4} if flagged else {"linewidth": 2.0}
                axes.plot(
                    np.minimum(ends, 1e6), [at, at], color=one.style.colour, solid_capstyle="butt", zorder=3, **line
                )
            axes.plot(
                one.errors,
                one.at,
                linestyle="none",
                marker=one.style.marker,
                markersize=5,
                color=one.style.colour,
                markerfacecolor=one.style.colour if one.filled else "white",
                label=one.style.label,
                zorder=4,
            )
        axes.set_yticks(range(len(self.rows)), [label for label, _ in self.rows], fontsize=8)
        for label, (_, bold) in zip(axes.get_yticklabels(), self.rows, strict=True):
            label.set_fontweight("bold" if bold else "normal")
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        scale_errors(axes, 1.1 * min(shown_ends), 1.1 * max(shown_ends))
        axes.set_xlabel("relative error (simulated - real) / real [%]")
        _legend(canvas, axes)


def scale_errors(axes: Axes, low: float, high: float) -> None:
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


# --- distributions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distribution:
    """Cumulative distributions at `levels`: a line for each real repeat and each variant. `band`: values, and the ends
    of the 95 % band of the real distribution there."""

    name: str
    samples: str
    levels: np.ndarray
    real: tuple[np.ndarray, ...]
    simulated: tuple[tuple[Style, np.ndarray], ...]
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    def draw(self, canvas: Canvas) -> None:
        axes = _axes(canvas.add_subplot())
        if self.band is not None:
            axes.fill_between(*self.band, step="post", color="#BBBBBB", linewidth=0, label="95 % band", zorder=1)
        for number, curve in enumerate(self.real):
            label = "real" if len(self.real) == 1 else f"real ({len(self.real)} repeats)"
            axes.plot(curve, self.levels, color=_REAL_COLOUR, linewidth=1.0, label=None if number else label, zorder=5)
        for style, curve in self.simulated:
            axes.plot(
                curve,
                self.levels,
                color=style.colour,
                linestyle=style.line,
                linewidth=2.0,
                label=style.label,
                zorder=4,
            )
        axes.set_xlabel(f"{self.name} [ms]")
        axes.set_ylabel(f"share of {self.samples}")
        axes.set_yticks([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
        axes.set_ylim(0, 1.02)
        # Bunched tokens have gaps of nearly 0, which would stretch the axis: it begins at the lowest 1 %.
        shown = [*self.real, *(curve for _, curve in self.simulated)]
        lows = [np.interp(0.01, self.levels, curve) for curve in shown]
        positive = [low for low in lows if low > 0]
        low, high = min(positive, default=0), max(curve[-1] for curve in shown)
        if _log_if_wide(axes, low, high, ("x",)):
            axes.set_xlim(low / 1.1, high * 1.1)
        _legend(canvas, axes)


@dataclass(frozen=True)
class QuantilePanel:
    """Quantiles of each variant against the real ones at the same levels, with markers at the places `marked`."""

    name: str
    real: np.ndarray
    simulated: tuple[tuple[Style, np.ndarray], ...]
    marked: tuple[int, ...]


@dataclass(frozen=True)
class Quantiles:
    """Panels from left to right; the headline is the last variant of each."""

    panels: tuple[QuantilePanel, ...]
    warns: float

    def draw(self, canvas: Canvas) -> None:
        grid = canvas.subplots(1, len(self.panels), squeeze=False)[0]
        for axes, panel in zip(grid, self.panels, strict=True):
            _axes(axes)
            real, marked = panel.real, list(panel.marked)
            _diagonal(axes, np.concatenate([real, *(curve for _, curve in panel.simulated)]), self.warns)
            for number, (style, curve) in enumerate(panel.simulated, 1):
                axes.plot(
                    real,
                    curve,
                    color=style.colour,
                    linestyle=style.line,
                    linewidth=1.6,
                    label=style.label,
                    zorder=3,
                )
                axes.plot(
                    real[marked], curve[marked], linestyle="none", marker=style.marker, markersize=6,
                    color=style.colour, markerfacecolor="white",
                    label="P50, P90, P99" if number == len(panel.simulated) else None, zorder=4,
                )  # fmt: skip
            axes.set_xlabel(f"real {panel.name} [ms]")
            axes.set_ylabel(f"simulated {panel.name} [ms]")
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


@dataclass(frozen=True)
class RequestScatter:
    """A point a request: simulated against real. `extent`: the least and the largest value, also of requests that are
    not shown."""

    name: str
    points: tuple[tuple[Style, np.ndarray, np.ndarray], ...]
    extent: tuple[float, float]
    warns: float

    def draw(self, canvas: Canvas) -> None:
        axes = _axes(canvas.add_subplot())
        _diagonal(axes, np.array(self.extent), self.warns)
        for style, real, simulated in self.points:
            axes.plot(
                real,
                simulated,
                linestyle="none",
                marker=style.marker,
                markersize=5,
                markerfacecolor="none",
                markeredgecolor=style.colour,
                markeredgewidth=1.2,
                label=style.label,
                zorder=3,
            )
        axes.set_xlabel(f"real {self.name} [ms]")
        axes.set_ylabel(f"simulated {self.name} [ms]")
        _legend(canvas, axes)


@dataclass(frozen=True)
class DriverPanel:
    """Where requests are on one axis, and of each group the edges there, the median error, and its distances to the
    errors at 10 and 90 % [2, groups]."""

    label: str
    at: np.ndarray
    low: np.ndarray
    high: np.ndarray
    median: np.ndarray
    reach: np.ndarray


@dataclass(frozen=True)
class ErrorDrivers:
    """The error of a request against what may drive it. Every so many requests are shown."""

    panels: tuple[DriverPanel, ...]
    errors: np.ndarray
    every: int
    warns: float

    def draw(self, canvas: Canvas) -> None:
        grid = canvas.subplots(1, len(self.panels), sharey=True)
        for axes, panel in zip(grid, self.panels, strict=True):
            _axes(axes)
            axes.axhspan(
                -100 * self.warns,
                100 * self.warns,
                color="#000000",
                alpha=0.08,
                linewidth=0,
                label=f"within {100 * self.warns:g} %",
            )
            axes.axhline(0, color="#666666", linewidth=0.8)
            axes.plot(
                panel.at,
                self.errors,
                linestyle="none",
                marker="o",
                markersize=4,
                markerfacecolor="none",
                markeredgecolor=STYLES[0][0],
                markeredgewidth=0.8,
                alpha=0.6,
                label="a request" + (f" (every {self.every}th)" if self.every > 1 else ""),
                zorder=3,
            )
            axes.errorbar(
                (panel.low + panel.high) / 2,
                panel.median,
                yerr=panel.reach,
                xerr=(panel.high - panel.low) / 2,
                linestyle="none",
                marker="s",
                markersize=5,
                color="black",
                linewidth=1.4,
                capsize=3,
                label="group median, 10-90 %",
                zorder=5,
            )
            axes.set_xlabel(panel.label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        grid[0].set_ylabel("TTFT error [%]")
        _legend(canvas, grid[0])


# --- over time --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountPanel:
    """Requests that are `what` (running, waiting) over time, as steps: seconds and counts of both sides. `any_at_all`:
    whether there is one at any time."""

    what: str
    real: tuple[np.ndarray, np.ndarray]
    simulated: tuple[np.ndarray, np.ndarray]
    any_at_all: bool


@dataclass(frozen=True)
class CountsOverTime:
    """Panels below each other; `label` names the simulation."""

    panels: tuple[CountPanel, ...]
    label: str

    def draw(self, canvas: Canvas) -> None:
        grid = canvas.subplots(len(self.panels), 1, sharex=True)
        for axes, panel in zip(grid, self.panels, strict=True):
            _axes(axes)
            axes.fill_between(*panel.real, step="post", color="#CCCCCC", linewidth=0)
            axes.plot(*panel.real, drawstyle="steps-post", label="real", color=_REAL_COLOUR, linewidth=0.8)
            dashed = {"color": STYLES[0][0], "linewidth": 1.4, "linestyle": (0, (4, 1.5))}
            axes.plot(*panel.simulated, drawstyle="steps-post", label=self.label, **dashed)
            axes.set_ylabel(f"{panel.what} [requests]")
            axes.set_ylim(bottom=0)
            if not panel.any_at_all:
                axes.set_ylim(0, 1)
                axes.text(
                    0.5,
                    0.5,
                    f"none {panel.what} at any time, on either side",
                    transform=axes.transAxes,
                    ha="center",
                    color="#444444",
                )
            axes.yaxis.get_major_locator().set_params(integer=True)
        grid[-1].set_xlabel("time since run start [s]")
        _legend(canvas, grid[0])


@dataclass(frozen=True)
class MissedRequest:
    """A request in words, and the lengths of its phases (waiting, prefill, decode) on both sides."""

    label: str
    real: tuple[float, ...]
    simulated: tuple[float, ...]


@dataclass(frozen=True)
class WorstRequests:
    """A pair of bars a request, the worst miss first."""

    requests: tuple[MissedRequest, ...]

    def draw(self, canvas: Canvas) -> None:
        axes = _axes(canvas.add_subplot())
        axes.grid(False, axis="y")
        for number, request in enumerate(self.requests):
            for offset, lengths in ((-0.19, request.real), (0.19, request.simulated)):
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
        axes.set_yticks(list(range(len(self.requests))), [one.label for one in self.requests], fontsize=8)
        axes.set_ylim(len(self.requests) - 0.4, -0.6)
        axes.set_xlabel("time since arrival [ms]  (upper bar real, lower bar simulated)")
        _legend(canvas, axes)


# --- shared -----------------------------------------------------------------------------------------------------------


def _axes(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(canvas: Canvas, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


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
