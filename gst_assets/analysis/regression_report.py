"""Writing a regression directory: summary.md, tables/*.csv, figs/*.png and its metadata document, from a
`RegressionReport`.

Words, layout and drawing only. The same history and rule give the same bytes: nothing of the clock or the machine
enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gst_assets.analysis.change_points import STATISTICS, TRACKED_MEASURES, RegressionReport, SeriesVerdict
from gst_assets.analysis.drawings import save
from gst_assets.analysis.measures import MEASURE_NAMES, Measure
from gst_assets.contracts.documents import HistoryMeta, RegressionMeta, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.contracts.tables import ChangePoints, LineMarks, RegressionVerdicts, write_table
from gst_assets.formats import markdown_table, milliseconds, signed_percent, unsigned_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SUMMARY = "summary.md"
TABLES = "tables"
FIGURES = "figs"
ENGINE_FIGURE = "engine_latency.png"
FIDELITY_FIGURE = "fidelity.png"
_INCHES = (8.2, 6.6)
_DPI = 100
_SHOWN_NIGHTS = 120
_STYLES = {"p50": ("#0072B2", "o"), "p90": ("#E69F00", "^")}
_VERDICT_COLOURS = {"regression": "#D55E00", "improvement": "#009E73"}
_SHOWN_MARKS = 20


def write_regression(report: RegressionReport, history: HistoryMeta, directory: Path) -> RegressionMeta:
    """Write the whole directory, which exists and is empty; its metadata document last."""
    tables, figures = directory / TABLES, directory / FIGURES
    tables.mkdir()
    figures.mkdir()
    write_table(RegressionVerdicts, report.verdicts, tables)
    write_table(ChangePoints, report.change_points, tables)
    write_table(LineMarks, report.marks, tables)
    drawn = write_figures(report, figures)
    (directory / SUMMARY).write_text(summary(report, drawn), encoding="utf-8")
    meta = RegressionMeta(
        scenario=report.scenario,
        verdict=report.verdict,
        rule=report.rule.model_dump(mode="json"),
        nights=list(report.nights["comparison_id"]),
        history_sha256=history.sha256,
        sha256=directory_digests(directory, Kind.REGRESSION.meta_name),
    )
    write_document(meta, directory / Kind.REGRESSION.meta_name)
    return meta


def verdict_line(report: RegressionReport) -> str:
    """The result in a sentence of Markdown."""
    nights = f"{len(report.nights)} comparable night{'s' if len(report.nights) != 1 else ''}"
    deciding = [one for one in report.series if one.verdict == report.verdict]
    if report.verdict == "insufficient data":
        return f"**INSUFFICIENT DATA**: {nights} of the newest subject, at least {report.rule.min_nights} are needed."
    if report.verdict == "ok":
        return f"**OK**: {len(deciding)} series judged over {nights}, none changed."
    told = "; ".join(f"{one.name}: {one.reason}" for one in deciding[:3])
    more = f"; and {len(deciding) - 3} more" if len(deciding) > 3 else ""
    return f"**{report.verdict.upper()}** over {nights}: {told}{more}."


def verdict_table(report: RegressionReport) -> str:
    """The Markdown table of every series."""
    header = [
        "series",
        "verdict",
        "nights",
        "baseline",
        "current",
        "effect",
        "noise of a night",
        "spread of repeats",
        "why",
    ]
    rows = []
    for one, row in zip(report.series, report.verdicts.to_dict("records"), strict=True):
        rows.append(
            [
                one.name,
                _marked(one),
                str(row["num_nights"]),
                _value(one, row["baseline"]),
                _value(one, row["current"]),
                signed_percent(row["effect"]),
                unsigned_percent(row["noise_floor"]),
                unsigned_percent(row["repeat_spread"]),
                one.reason,
            ]
        )
    return markdown_table(header, rows)


def summary(report: RegressionReport, figures: Sequence[str]) -> str:
    """The report in Markdown."""
    rule = report.rule
    sections = [
        f"# Regression report: {report.scenario}",
        verdict_line(report),
        verdict_table(report),
        *[f"![{Path(name).stem}]({FIGURES}/{name})" for name in figures],
        "## What changed on the line",
        _marks_table(report),
        "## Nights",
        _nights(report),
        "## Method",
        (
            "Only nights of one subject are compared: same hardware, model, engine settings and workload. Change"
            f" points by Apache Otava (E-divisive, t-test), window {rule.window_nights} nights, p below"
            f" {rule.max_pvalue:g}, effect at least {rule.min_effect:.0%} and at least the noise of one night; a change"
            f" is reported for {rule.alarm_nights} nights and confirmed after {rule.min_nights_after}. At least"
            f" {rule.min_nights} nights. How well this detects and how often it errs: docs/nightly.md."
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _marks_table(report: RegressionReport) -> str:
    if report.marks.empty:
        return "Nothing recorded changed between the measurements."
    shown = report.marks.tail(_SHOWN_MARKS)
    rows = [
        [row["measured_at"], f"`{row['comparison_id']}`", row["what"], row["before"] or "–", row["after"] or "–",
         "yes: nothing across it is compared" if row["breaks"] else "no"]
        for row in shown.to_dict("records")
    ]  # fmt: skip
    text = markdown_table(["measured", "comparison", "what", "before", "after", "breaks the line"], rows)
    left = len(report.marks) - len(shown)
    return text + (f"\n\n{left} earlier ones are in {TABLES}/{LineMarks.file_name()}." if left else "")


def _nights(report: RegressionReport) -> str:
    everything = report.history.comparisons
    unknown = int((everything["subject"] == "").sum())
    parts = [
        f"{len(everything)} comparisons in the history, {len(report.nights)} nights of the newest subject",
        f"{int(everything['night'].isna().sum()) - unknown} compared a measurement that was compared again later",
        f"{unknown} did not record what they measured and are left out",
        (
            f"{int((report.nights['num_marks'] > 0).sum())} of the nights are marked (degraded run, or settings that"
            " the simulation did not share)"
        ),
    ]
    return "; ".join(parts) + "."


# --- figures ----------------------------------------------------------------------------------------------------------


def write_figures(report: RegressionReport, directory: Path) -> list[str]:
    """Draw the engine's latencies and the fidelity over the nights; returns the file names. Without nights nothing is
    drawn."""
    if not len(report.nights):
        return []
    for name, side in ((ENGINE_FIGURE, "engine"), (FIDELITY_FIGURE, "fidelity")):
        save(directory / name, _INCHES, _DPI, partial(_draw, report=report, side=side))
    return [ENGINE_FIGURE, FIDELITY_FIGURE]


def verdict_figure(report: RegressionReport) -> str:
    """File name of the figure that shows what decided: the engine's latencies, unless only the fidelity got the
    verdict."""
    deciding = {one.side for one in report.series if one.verdict == report.verdict}
    return FIDELITY_FIGURE if deciding == {"fidelity"} else ENGINE_FIGURE


def _draw(canvas: Canvas, report: RegressionReport, side: str) -> None:
    grid = canvas.subplots(len(TRACKED_MEASURES), 1, sharex=True)
    for axes, metric in zip(grid, TRACKED_MEASURES, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        _panel(axes, report, side, metric)
    _night_axis(grid[-1], report.nights)
    handles, labels = grid[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False)


def _panel(axes: Axes, report: RegressionReport, side: str, metric: Measure) -> None:
    series = {one.statistic: one for one in report.series if one.side == side and one.metric == metric}
    first = max(0, len(report.nights) - _SHOWN_NIGHTS)
    for statistic in STATISTICS:
        cells = report.latencies.get((metric, statistic))
        if cells is None:
            continue
        colour, marker = _STYLES[statistic]
        values = cells["real_ns"] / 1e6 if side == "engine" else 100 * (cells["sim_ns"] / cells["real_ns"] - 1)
        # Hollow: too few samples beyond the percentile, so shown and not judged.
        fill = [colour if judged else "none" for judged in cells["judged"][first:]]
        nights = np.arange(first, len(values))
        axes.plot(nights, values[first:], color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter(
            nights, values[first:], s=16, marker=marker, facecolors=fill, edgecolors=colour, label=statistic.upper()
        )
        _segments(axes, series[statistic], side, colour, first)
    if side == "fidelity":
        axes.axhline(0, color="#000000", linewidth=0.8)
    unit = "[ms]" if side == "engine" else "error [%]"
    axes.set_ylabel(f"{MEASURE_NAMES[metric]} {unit}")
    for position in _mark_positions(report):
        if position >= first:
            axes.axvline(position - 0.5, color="#666666", linewidth=0.9, linestyle=(0, (1, 2)))


def _segments(axes: Axes, one: SeriesVerdict, side: str, colour: str, first: int) -> None:
    """Medians between change points, and a line at each change point that still alarms."""
    starts = [0, *[change.night for change in one.changes], len(one.values)]
    for start, end in pairwise(starts):
        if end <= start:
            continue
        level = float(np.median(one.values[start:end]))
        shown = level / 1e6 if side == "engine" else 100 * (level - 1)
        span = [max(one.nights[start], first), one.nights[end - 1]]
        if span[1] >= first:
            axes.plot(span, [shown, shown], color=colour, linewidth=2.0, alpha=0.9)
    if one.change and one.verdict in _VERDICT_COLOURS and one.nights[one.change.night] >= first:
        axes.axvline(
            one.nights[one.change.night] - 0.5, color=_VERDICT_COLOURS[one.verdict], linewidth=1.4, label=one.verdict
        )


def _mark_positions(report: RegressionReport) -> list[int]:
    marked = set(report.marks["comparison_id"])
    return [number for number, name in enumerate(report.nights["comparison_id"]) if name in marked]


def _night_axis(axes: Axes, nights: pd.DataFrame) -> None:
    first = max(0, len(nights) - _SHOWN_NIGHTS)
    every = max(1, -(-(len(nights) - first) // 8))
    shown = list(range(first, len(nights), every))
    axes.set_xticks(shown, [str(nights["measured_at"].iloc[number])[:10] for number in shown])
    axes.set_xlabel("measured; dotted: hardware, version, settings or profile changed")


# --- formatting -------------------------------------------------------------------------------------------------------


def _marked(one: SeriesVerdict) -> str:
    return one.verdict if one.verdict in ("ok", "insufficient data") else f"**{one.verdict}**"


def _value(one: SeriesVerdict, value: float) -> str:
    if pd.isna(value):
        return "–"
    return f"{milliseconds(value, ',.3g')} ms" if one.side == "engine" else signed_percent(value - 1)
