"""The report's figures, as small PNGs with the same bytes for the same comparison (and the same matplotlib).

Draws what `comparison` computed; computes no result of its own. matplotlib is imported on use, on the Agg canvas and without pyplot, so
that nothing global is touched. Colours are those of Okabe and Ito (2008), "Color Universal Design", and every series also has a line style
or marker of its own, so that print without colour stays legible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gst_assets.analysis.comparison import Comparison
from gst_assets.analysis.latencies import METRIC_NAMES, Metric, samples_ns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (7.2, 4.2)
_DPI = 110
_NS_PER_MS = 1e6
_MAX_CURVE_POINTS = 1000
_MAX_SCATTER_POINTS = 2000
_DISTRIBUTIONS: dict[Metric, str] = {
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


@dataclass(frozen=True)
class Figure:
    """One PNG: its file name inside `figs/`, a title of a few words, and what it shows."""

    file_name: str
    title: str
    caption: str


def write_figures(comparison: Comparison, directory: Path) -> list[Figure]:
    """Draw every figure that has samples into `directory`; returns them in reading order.

    A metric without samples (one token a request has no inter-token latency) gets no figure rather than an empty one.
    """
    figures = []
    for metric, what in _DISTRIBUTIONS.items():
        if _has_samples(comparison, metric):
            figure = Figure(
                f"{metric}_cdf.png",
                f"Distribution of {METRIC_NAMES[metric]}",
                f"Cumulative distribution of {METRIC_NAMES[metric]}, {what}. Thin black: one line per real repeat. A logarithmic axis "
                "begins at the lowest 1 %; what lies below enters at its left edge.",
            )
            _draw(directory / figure.file_name, _cdf, comparison, metric)
            figures.append(figure)
    figure = Figure(
        "ttft_per_request.png",
        "TTFT per request",
        "TTFT of each request, simulated against real (median over repeats). On the diagonal the simulation is exact; above it, it is "
        f"too slow. Shaded: within {100 * comparison.bands.warn_band:g} %.",
    )
    _draw(directory / figure.file_name, _scatter, comparison, "ttft")
    return [*figures, figure]


def _has_samples(comparison: Comparison, metric: Metric) -> bool:
    return any(len(samples_ns(pair.real, metric)) for pair in comparison.pairs.values())


def _draw(path: Path, draw: Callable[[Axes, Comparison, Metric], None], comparison: Comparison, metric: Metric) -> None:
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    # A user's own matplotlibrc must not change the report.
    with style.context("default"):
        canvas = Canvas(figsize=_INCHES, layout="constrained")
        axes = canvas.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, comparison, metric)
        # Without the version string the bytes depend on the drawing only.
        canvas.legend(loc="outside upper left", ncols=5, frameon=False)
        canvas.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def _cdf(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    shown = []
    repeats = comparison.real_repeats
    for number, run in enumerate(repeats):
        samples = samples_ns(comparison.pairs[run.meta.run_id, comparison.variants[0]].real, metric)
        label = "real" if len(repeats) == 1 else f"real ({len(repeats)} repeats)"
        axes.plot(*_curve(samples), color=_REAL_COLOUR, linewidth=1.0, label=None if number else label, zorder=5)
        shown.append(samples)
    for variant, (colour, line, _) in _styled(comparison).items():
        # Alignments to several repeats differ only by early stops and errors; pooled, equal ones leave the curve as it is.
        samples = np.concatenate(
            [samples_ns(comparison.pairs[run.meta.run_id, variant].sim, metric) for run in repeats]
        )
        axes.plot(*_curve(samples), color=colour, linestyle=line, linewidth=2.0, label=f"Vidur {variant}", zorder=4)
        shown.append(samples)
    axes.set_xlabel(f"{METRIC_NAMES[metric]} [ms]")
    axes.set_ylabel("share of " + ("tokens" if metric == "itl" else "requests"))
    axes.set_yticks([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    axes.set_ylim(0, 1.02)
    # Bunched tokens have gaps of nearly 0, which would stretch the axis: it begins at the lowest 1 % of the positive values, and what
    # lies below enters at the left edge with its share.
    lows = [np.percentile(samples[samples > 0], 1) for samples in shown if (samples > 0).any()]
    low, high = min(lows, default=0) / _NS_PER_MS, max(samples.max() for samples in shown) / _NS_PER_MS
    if _log_if_wide(axes, low, high, ("x",)):
        axes.set_xlim(low / 1.1, high * 1.1)


def _curve(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds and share at or below. Many samples are drawn as `_MAX_CURVE_POINTS` quantiles."""
    if len(samples) > _MAX_CURVE_POINTS:
        shares = np.linspace(0, 1, _MAX_CURVE_POINTS)
        return np.quantile(samples, shares) / _NS_PER_MS, shares
    values = np.sort(samples) / _NS_PER_MS
    return np.repeat(values, 2), np.repeat(np.arange(len(values) + 1) / len(values), 2)[1:-1]


def _scatter(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    errors = comparison.request_errors
    columns = [f"real_{metric}_ns", f"sim_{metric}_ns"]
    medians = errors.groupby(["variant", "request_id"], sort=True)[columns].median().astype("float64") / _NS_PER_MS
    shown = medians.to_numpy().ravel()
    # 5 % of room beyond the outermost points, and an extent even where all are equal.
    low, high = shown.min() * 0.95, max(shown.max() * 1.05, 1e-6)
    line = np.array([low, high])
    axes.plot(line, line, color="#666666", linewidth=1.0, label="exact", zorder=2)
    band = comparison.bands.warn_band
    axes.fill_between(line, line * (1 - band), line * (1 + band), color="#000000", alpha=0.08, linewidth=0, zorder=1)
    for variant, (colour, _, marker) in _styled(comparison).items():
        points = medians.loc[variant]
        every = -(-len(points) // _MAX_SCATTER_POINTS)
        points = points.iloc[::every]
        label = f"Vidur {variant}" + (f" (every {every}th request)" if every > 1 else "")
        axes.plot(
            points[columns[0]], points[columns[1]], linestyle="none", marker=marker, markersize=5, markerfacecolor="none",
            markeredgecolor=colour, markeredgewidth=1.2, label=label, zorder=3,
        )  # fmt: skip
    axes.set_xlabel(f"real {METRIC_NAMES[metric]} [ms]")
    axes.set_ylabel(f"simulated {METRIC_NAMES[metric]} [ms]")
    _log_if_wide(axes, shown.min(), shown.max(), ("x", "y"))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


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
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    return True
