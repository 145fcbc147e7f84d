"""The report's figures: which there are, what each shows, and in which words.

Chooses from what `judged_errors` computed; computes no result of its own and never touches the samples, so that a large
run costs no more to draw. How a figure looks belongs to `drawings`, who draws to `drawing_process`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gst_assets.analysis import drawings
from gst_assets.analysis.drawings import STYLES, Drawing, Sheet, ShownBands, Style
from gst_assets.analysis.judged_errors import CURVE_LEVELS, Comparison
from gst_assets.analysis.measures import MEASURE_NAMES, Measure, Timeline
from gst_assets.analysis.run_reading import RealRun, SimulatedRun

_NS_PER_MS = 1e6
_MAX_SCATTER_POINTS = 2000
_MAX_TIMELINE_BINS = 600
_NUM_WORST = 8
_DISTRIBUTIONS: dict[Measure, str] = {
    "ttft": "time to first token",
    "itl": "per-token latency (gap to the previous token)",
}
_LONGEST_NAME = 40
VERDICT_FIGURE = "answer.png"
"""The figure of the cells that decide; every comparison has it."""


@dataclass(frozen=True)
class Figure:
    """One PNG: its file name inside `figs/`, a title of a few words, and what it shows."""

    file_name: str
    title: str
    caption: str


def planned_figures(comparison: Comparison) -> list[tuple[Figure, Sheet]]:
    """Every figure that has samples, in reading order, that of the deciding cells first.

    A metric without samples (one token a request has no inter-token latency) gets no figure rather than an empty one.
    """
    figures: list[tuple[Figure, Sheet]] = []

    def add(name: str, title: str, caption: str, height: float, drawing: Drawing) -> None:
        figures.append((Figure(name, title, caption), Sheet(name, height, drawing)))

    bands, answer = comparison.bands, comparison.answer
    add(
        VERDICT_FIGURE,
        "The errors that decide",
        f"Errors of `{comparison.headline}` with their 95 % intervals, on this workload. Left of 0 the simulation is"
        f" too fast. Dark band: within {100 * bands.pass_band:g} % (pass); light band: within {100 * bands.warn_band:g}"
        " % (warn).",
        1.1 + 0.4 * max(len(answer.cells), 2),
        _answer(comparison),
    )
    rows = len({(cell.metric, cell.statistic) for cell in comparison.cells if cell.num_real_samples})
    add(
        "errors.png",
        "Errors and their intervals",
        "Relative error of each statistic of every variant with its 95 % interval; negative: the simulation is too"
        " fast. Bands as above. Bold: decides. †: too few samples, no interval.",
        1.3 + 0.2 * rows,
        _errors(comparison),
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
                _distribution(comparison, metric),
            )
    add(
        "qq.png",
        "Quantiles against quantiles",
        "Each quantile of the simulation against the same quantile of the real run (first repeat). On the diagonal the"
        f" distributions agree. Shaded: within {100 * bands.warn_band:g} %.",
        3.7,
        _quantiles(comparison),
    )
    add(
        "ttft_per_request.png",
        "TTFT per request",
        "TTFT of each request, simulated against real (median over repeats). On the diagonal the simulation is exact;"
        f" above it, it is too slow. Shaded: within {100 * bands.warn_band:g} %.",
        4.2,
        _scatter(comparison, "ttft"),
    )
    if comparison.error_groups["median"].notna().any():
        add(
            "error_drivers.png",
            "Error against prompt length and load",
            f"Relative TTFT error of each request of `{comparison.headline}` against its prompt length, and against how"
            " many other requests were in the system when it arrived. Black: median of each of up to four groups of"
            " about equal size, with its 10 to 90 % range.",
            3.7,
            _drivers(comparison),
        )
    source = " and ".join(sorted({comparison.timelines[name].source for name in _timeline_names(comparison)}))
    add(
        "timeline.png",
        "Requests running and waiting",
        f"Requests running and waiting over time, real (first repeat) and `{comparison.headline}`, from {source}. Of"
        " many changes the largest count in each stretch is drawn.",
        4.6,
        _timelines(comparison),
    )
    add(
        "worst_requests.png",
        "The worst misses",
        f"The requests whose end-to-end latency `{comparison.headline}` misses by most (first repeat): real above,"
        f" simulated below. {_phases_told(comparison)}",
        1.4 + 0.52 * min(_NUM_WORST, len(comparison.pairs[_headline_pair(comparison)].real.requests)),
        _worst(comparison),
    )
    return figures


def _has_samples(comparison: Comparison, metric: Measure) -> bool:
    return any(name == metric for name, _ in comparison.curves)


def _headline_pair(comparison: Comparison) -> tuple[str, str]:
    return comparison.real_repeats[0].meta.run_id, comparison.headline


def _headline_runs(comparison: Comparison) -> tuple[RealRun | SimulatedRun, RealRun | SimulatedRun]:
    return comparison.real_repeats[0], comparison.simulations[comparison.headline]


# --- errors -----------------------------------------------------------------------------------------------------------


def _bands(comparison: Comparison) -> ShownBands:
    return ShownBands(comparison.bands.pass_band, comparison.bands.warn_band)


def _answer(comparison: Comparison) -> Drawing:
    rows = [
        drawings.DecidingRow(cell.name, cell.verdict, cell.error, cell.low, cell.high)
        for cell in comparison.answer.cells
    ]
    return drawings.DecidingErrors(tuple(rows), _bands(comparison))


def _errors(comparison: Comparison) -> Drawing:
    keys = list(dict.fromkeys((cell.metric, cell.statistic) for cell in comparison.cells if cell.num_real_samples))
    rows = {key: number for number, key in enumerate(keys)}
    styles, series = _styles(comparison), []
    for number, (variant, style) in enumerate(styles.items()):
        cells = [
            cell
            for cell in comparison.cells
            if cell.variant == variant and cell.num_real_samples and np.isfinite(cell.relative_error)
        ]
        offset = (number - (len(styles) - 1) / 2) * (0.5 / max(len(styles), 1))
        at = [rows[cell.metric, cell.statistic] + offset for cell in cells]
        intervals = [
            (y, 100 * cell.interval_low, 100 * cell.interval_high, cell.interval_flagged)
            for cell, y in zip(cells, at, strict=True)
            if np.isfinite(cell.interval_low)
        ]
        errors = np.array([100 * cell.relative_error for cell in cells])
        is_headline = variant == comparison.headline
        series.append(drawings.ErrorSeries(style, is_headline, np.array(at), errors, tuple(intervals)))
    shown = {(cell.metric, cell.statistic): cell for cell in comparison.cells if cell.variant == comparison.headline}
    labels = [(f"{shown[key].name} {shown[key].sign}".rstrip(), shown[key].required) for key in keys]
    return drawings.ErrorIntervals(tuple(labels), tuple(series), _bands(comparison))


# --- distributions ----------------------------------------------------------------------------------------------------


def _distribution(comparison: Comparison, metric: Measure) -> Drawing:
    band = comparison.real_bands.get(metric)
    return drawings.Distribution(
        name=MEASURE_NAMES[metric],
        samples="tokens" if metric == "itl" else "requests",
        levels=CURVE_LEVELS,
        real=tuple(comparison.curves[metric, run.meta.run_id] / _NS_PER_MS for run in comparison.real_repeats),
        simulated=_simulated_curves(comparison, metric),
        band=None if band is None else (band.values_ns / _NS_PER_MS, band.low, band.high),
    )


def _quantiles(comparison: Comparison) -> Drawing:
    first = comparison.real_repeats[0].meta.run_id
    marked = tuple(int(np.abs(CURVE_LEVELS - level).argmin()) for level in (0.5, 0.9, 0.99))
    panels = [
        drawings.QuantilePanel(
            MEASURE_NAMES[metric],
            comparison.curves[metric, first] / _NS_PER_MS,
            _simulated_curves(comparison, metric),
            marked,
        )
        for metric in _DISTRIBUTIONS
        if _has_samples(comparison, metric)
    ]
    return drawings.Quantiles(tuple(panels), comparison.bands.warn_band)


def _simulated_curves(comparison: Comparison, metric: Measure) -> tuple[tuple[Style, np.ndarray], ...]:
    return tuple(
        (style, comparison.curves[metric, variant] / _NS_PER_MS)
        for variant, style in _styles(comparison).items()
        if (metric, variant) in comparison.curves
    )


# --- request by request -----------------------------------------------------------------------------------------------


def _scatter(comparison: Comparison, metric: Measure) -> Drawing:
    columns = [f"real_{metric}_ns", f"sim_{metric}_ns"]
    medians = _per_request(comparison.request_errors, columns) / _NS_PER_MS
    drawn = []
    for variant, style in _styles(comparison).items():
        points = medians.loc[variant]
        every = -(-len(points) // _MAX_SCATTER_POINTS)
        points = points.iloc[::every]
        shown = replace(style, label=f"{style.label} (every {every}th request)") if every > 1 else style
        real, simulated = (points[name].to_numpy() for name in columns)
        drawn.append((shown, real, simulated))
    values = medians.to_numpy()
    extent = (float(values.min()), float(values.max()))
    return drawings.RequestScatter(MEASURE_NAMES[metric], tuple(drawn), extent, comparison.bands.warn_band)


def _per_request(errors: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Medians over the real repeats, by variant and request, as floats."""
    floats = errors[["variant", "request_id"]].assign(**{name: errors[name].astype("float64") for name in columns})
    if errors["run_id"].nunique() == 1:
        return floats.set_index(["variant", "request_id"])
    return floats.groupby(["variant", "request_id"], sort=True)[columns].median()


def _drivers(comparison: Comparison) -> Drawing:
    errors = comparison.request_errors
    errors = errors[errors["variant"] == comparison.headline]
    real = errors["real_ttft_ns"].to_numpy(dtype="float64")
    wrong = errors["ttft_error_ns"].to_numpy(dtype="float64")
    relative = 100 * np.divide(wrong, real, out=np.full(len(real), np.nan), where=real > 0)
    groups = comparison.error_groups
    groups = groups[(groups["variant"] == comparison.headline) & (groups["metric"] == "ttft")]
    every = -(-len(errors) // _MAX_SCATTER_POINTS)
    panels = []
    for factor, label in (
        ("num_prefill_tokens", "prompt length [tokens]"),
        ("num_in_system", "other requests in the system [requests]"),
    ):
        mine = groups[(groups["factor"] == factor) & groups["median"].notna()]
        low, high = (mine[name].to_numpy(dtype="float64") for name in ("low", "high"))
        median = 100 * mine["median"].to_numpy()
        reach = np.abs(100 * mine[["p10", "p90"]].to_numpy().T - median)
        at = errors[factor].to_numpy(dtype="float64")[::every]
        panels.append(drawings.DriverPanel(label, at, low, high, median, reach))
    return drawings.ErrorDrivers(tuple(panels), relative[::every], every, comparison.bands.warn_band)


# --- over time --------------------------------------------------------------------------------------------------------


def _timeline_names(comparison: Comparison) -> tuple[str, str]:
    return comparison.real_repeats[0].meta.run_id, comparison.headline


def _timelines(comparison: Comparison) -> Drawing:
    real, sim = (comparison.timelines[name] for name in _timeline_names(comparison))
    end = max(float(line.time_ns[-1]) for line in (real, sim))
    panels = [
        drawings.CountPanel(
            what,
            _steps(real, what, end),
            _steps(sim, what, end),
            any(getattr(line, what).any() for line in (real, sim)),
        )
        for what in ("running", "waiting")
    ]
    return drawings.CountsOverTime(tuple(panels), _legend_name(comparison, comparison.headline))


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


def _worst(comparison: Comparison) -> Drawing:
    pair = comparison.pairs[_headline_pair(comparison)]
    real, sim = pair.real.requests, pair.sim.requests
    size = np.abs(sim["e2e_ns"].to_numpy() - real["e2e_ns"].to_numpy())
    measured, simulation = _headline_runs(comparison)
    requests = []
    for row in np.argsort(-size, kind="stable")[:_NUM_WORST]:
        told = real.iloc[row]
        error = sim["e2e_ns"].iloc[row] - told["e2e_ns"]
        label = (
            f"request {told['request_id']}: {told['num_prefill_tokens']} + {told['num_tokens']}"
            f" tokens\n{error / _NS_PER_MS:+,.1f} ms"
        )
        phases = _phases(told, measured), _phases(sim.iloc[row], simulation)
        requests.append(drawings.MissedRequest(label, *phases))
    return drawings.WorstRequests(tuple(requests))


def _phases(request: pd.Series, run: RealRun | SimulatedRun) -> tuple[float, ...]:
    """Milliseconds waiting, in prefill, in decode. Waiting is 0 where the run does not record when the request was
    scheduled."""
    scheduled = _scheduled(run)
    moment = scheduled.iloc[int(request["request_id"])] if scheduled is not None else None
    waiting = 0 if moment is None or pd.isna(moment) else int(moment) - int(request["arrival_time_ns"])
    waiting = min(max(waiting, 0), int(request["ttft_ns"]))
    parts = (waiting, request["ttft_ns"] - waiting, request["e2e_ns"] - request["ttft_ns"])
    return tuple(float(part) / _NS_PER_MS for part in parts)


# --- shared -----------------------------------------------------------------------------------------------------------


def _legend_name(comparison: Comparison, variant: str) -> str:
    """A variant's name as matplotlib shows it: it takes `$` for the begin of a formula, leaves names with an underscore
    in front out of legends, and lets long ones push the axes away."""
    text = comparison.label(variant)
    text = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")


def _styles(comparison: Comparison) -> dict[str, Style]:
    """Each variant's style, in the order of the scenario, the headline last and so with the first style."""
    last = len(comparison.variants) - 1
    return {
        name: Style(_legend_name(comparison, name), *STYLES[(last - number) % len(STYLES)])
        for number, name in enumerate(comparison.variants)
    }
