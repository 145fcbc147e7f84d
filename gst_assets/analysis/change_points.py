"""Distinguishing a regression from noise: change points in a scenario's history, and a verdict for each series and for
the whole.

A series is an engine latency in nanoseconds (`engine`) or simulated over real latency (`fidelity`, 1 is exact), of one
metric and percentile, over the nights of one subject (same hardware, model, engine settings and workload). Change
points are found by Apache Otava (E-divisive with a t-test: Matteson and James 2014, arXiv:1306.4933; Fleming et al.
2023, "Hunter", doi:10.1145/3578244.3583719). Decides; writes and draws nothing.

Rule, for the newest change point of a series that is no older than `alarm_nights`:
- effect = median after / median before - 1; the noise floor is the robust relative standard deviation (1.4826 MAD /
  median) of one night around its segment's median.
- `regression` or `improvement`: p below `max_pvalue`, |effect| at least `min_effect` and at least the noise floor, and
  at least `min_nights_after` nights since. For an engine latency more is worse; for fidelity, farther from 1.
- `suspicious`: |effect| at least `min_effect`, but p below ten times `max_pvalue` only, or within the noise floor, or
  too few nights since; or a fidelity that moved without becoming clearly better or worse.
- otherwise `ok`; fewer than `min_nights` nights: `insufficient data`.
The scenario's verdict is the gravest of its series: regression, suspicious, improvement, ok; insufficient data if no
series was judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from gst_assets.analysis.history import History
from gst_assets.analysis.measures import MEASURE_NAMES, Measure
from gst_assets.contracts.tables import ChangePoints, LineMarks, RegressionVerdicts, Table, validate
from gst_assets.scenario import Regression as Rule

RegressionOutcome = Literal["ok", "suspicious", "regression", "improvement", "insufficient data"]
Side = Literal["engine", "fidelity"]

STATISTICS = ("p50", "p90")
"""Percentiles that are judged; P99 of a night rests on too few events."""
_GRAVITY: tuple[RegressionOutcome, ...] = ("regression", "suspicious", "improvement", "ok")
_MARKED = (
    "subject",
    "engine_version",
    "torch_version",
    "vidur_version",
    "driver",
    "host_cpu",
    "num_kv_blocks",
    "simulation_sha256",
    "profile_sha256",
)
_SUBJECT_PARTS = (
    "workload_id",
    "model",
    "hardware_id",
    "device_name",
    "device_count",
    "backend",
    "engine_settings_sha256",
)

TRACKED_MEASURES: tuple[Measure, ...] = ("ttft", "itl", "e2e")
"""Measures whose percentiles are followed from night to night."""


@dataclass(frozen=True)
class Change:
    """A change point: the first night after it, medians of the segments before and after it, and its p-value (two-sided
    t-test)."""

    night: int
    before: float
    after: float
    pvalue: float

    @property
    def effect(self) -> float:
        """after / before - 1."""
        return self.after / self.before - 1


@dataclass(frozen=True)
class SeriesVerdict:
    """One series: a row of `contracts.tables.RegressionVerdicts`, whose columns these are, with its values and all its
    change points."""

    side: Side
    metric: str
    statistic: str
    verdict: RegressionOutcome
    reason: str
    values: tuple[float, ...]
    nights: tuple[int, ...]
    changes: tuple[Change, ...] = ()
    change: Change | None = None
    noise_floor: float = np.nan
    repeat_spread: float = np.nan

    @property
    def name(self) -> str:
        """The series in words, e.g. `engine TTFT P50`."""
        return f"{self.side} {MEASURE_NAMES.get(self.metric, self.metric)} {self.statistic.upper()}"  # type: ignore[call-overload]


@dataclass(frozen=True)
class RegressionReport:
    """What the nights of the newest subject say. `nights` are their rows of the history, oldest first."""

    scenario: str
    verdict: RegressionOutcome
    rule: Rule
    series: tuple[SeriesVerdict, ...]
    nights: pd.DataFrame
    marks: pd.DataFrame
    history: History
    latencies: dict[tuple[str, str], pd.DataFrame] = field(repr=False)

    @property
    def verdicts(self) -> pd.DataFrame:
        """The series as a `RegressionVerdicts` frame."""
        rows = []
        for one in self.series:
            change = one.change
            rows.append(
                {
                    **{key: value for key, value in asdict(one).items() if key in _columns(RegressionVerdicts)},
                    "num_nights": len(one.values),
                    "last_value": one.values[-1] if one.values else None,
                    "baseline": change.before if change else _median(one.values),
                    "current": change.after if change else _median(one.values),
                    "effect": change.effect if change else None,
                    "pvalue": change.pvalue if change else None,
                    "changed_in": self._row(one, change)["comparison_id"] if change else "",
                    "nights_since": len(one.values) - change.night if change else None,
                }
            )
        return _typed(RegressionVerdicts, rows)

    @property
    def change_points(self) -> pd.DataFrame:
        """Every significant change of every series as a `ChangePoints` frame."""
        rows = []
        for one in self.series:
            cells = self.latencies.get((one.metric, one.statistic))
            starts = [0, *[change.night for change in one.changes], len(one.values)]
            for number, change in enumerate(one.changes):
                night = self._row(one, change)
                moved = {"real_change": np.nan, "sim_change": np.nan}
                if cells is not None:
                    cells = cells[cells["judged"]]
                    before, after = slice(starts[number], change.night), slice(change.night, starts[number + 2])
                    for side in ("real", "sim"):
                        values = cells[f"{side}_ns"].to_numpy()
                        moved[f"{side}_change"] = float(np.median(values[after]) / np.median(values[before]) - 1)
                rows.append(
                    {
                        "side": one.side,
                        "metric": one.metric,
                        "statistic": one.statistic,
                        "comparison_id": night["comparison_id"],
                        "measured_at": night["measured_at"],
                        "night": night["night"],
                        "before": change.before,
                        "after": change.after,
                        "effect": change.effect,
                        "pvalue": change.pvalue,
                        **moved,
                    }
                )
        return _typed(ChangePoints, rows)

    def _row(self, series: SeriesVerdict, change: Change) -> Any:
        return self.nights.iloc[series.nights[change.night]]


def judge_history(history: History, rule: Rule) -> RegressionReport:
    """The verdict over the nights of the newest measurement's subject; older subjects only leave a mark on the line."""
    measured = history.comparisons[history.comparisons["night"].notna()]
    newest = measured["subject"].iloc[-1] if len(measured) else ""
    nights = measured[measured["subject"] == newest].reset_index(drop=True)
    latencies = _cells(history, nights)
    series = []
    for side in ("engine", "fidelity"):
        for metric in TRACKED_MEASURES:
            for statistic in STATISTICS:
                cells = latencies.get((metric, statistic))
                if cells is None:
                    cells = pd.DataFrame(
                        {"real_ns": [], "sim_ns": [], "real_spread": [], "judged": np.array([], dtype=bool)}
                    )
                chosen = cells[cells["judged"]]
                values = chosen["real_ns"] if side == "engine" else chosen["sim_ns"] / chosen["real_ns"]
                series.append(
                    judge_series(
                        side, metric, statistic, values.to_numpy(dtype=float), rule,
                        nights=np.flatnonzero(cells["judged"].to_numpy()),
                        repeat_spread=_median(chosen["real_spread"].dropna().to_numpy(dtype=float)),
                        unjudged=len(cells) - len(chosen),
                    )
                )  # fmt: skip
    return RegressionReport(
        history.scenario, overall(series), rule, tuple(series), nights, line_marks(history), history, latencies
    )


def overall(series: Sequence[SeriesVerdict]) -> RegressionOutcome:
    """The gravest verdict of the series that were judged."""
    found = {one.verdict for one in series}
    return next((verdict for verdict in _GRAVITY if verdict in found), "insufficient data")


def judge_series(
    side: Side,
    metric: str,
    statistic: str,
    values: np.ndarray,
    rule: Rule,
    *,
    nights: np.ndarray | None = None,
    repeat_spread: float = np.nan,
    unjudged: int = 0,
) -> SeriesVerdict:
    """Judge one series of positive values, oldest first. `nights` are their positions among the subject's nights
    (default 0..)."""
    positions = np.arange(len(values)) if nights is None else nights

    def verdict(outcome: RegressionOutcome, reason: str, **more: Any) -> SeriesVerdict:
        return SeriesVerdict(
            side, metric, statistic, outcome, reason, tuple(float(value) for value in values),
            tuple(int(position) for position in positions), repeat_spread=repeat_spread, **more,
        )  # fmt: skip

    if len(values) < rule.min_nights:
        few = f"; {unjudged} more had too few samples" if unjudged else ""
        return verdict("insufficient data", f"{len(values)} nights, fewer than {rule.min_nights}{few}")
    strong, weak = find_changes(values, rule)
    noise = noise_floor(values, strong)
    since = len(values) - rule.alarm_nights
    recent = [change for change in strong if change.night >= since]
    shared: dict[str, Any] = {"changes": tuple(strong), "noise_floor": noise}
    if recent:
        change = recent[-1]
        outcome, reason = _judge_change(side, change, len(values) - change.night, noise, rule)
        return verdict(outcome, reason, change=change, **shared)
    hints = [change for change in weak if change.night >= since and abs(change.effect) >= rule.min_effect]
    if hints:
        change = hints[-1]
        reason = f"{change.effect:+.1%}, but p = {change.pvalue:.2g} is above {rule.max_pvalue:g}"
        return verdict("suspicious", reason, change=change, **shared)
    return verdict("ok", f"no change of {rule.min_effect:.0%} or more in the last {rule.alarm_nights} nights", **shared)


def _judge_change(
    side: Side, change: Change, nights_since: int, noise: float, rule: Rule
) -> tuple[RegressionOutcome, str]:
    moved = f"{change.effect:+.1%} for {nights_since} night{'s' if nights_since > 1 else ''}, p = {change.pvalue:.2g}"
    if abs(change.effect) < rule.min_effect:
        return "ok", f"{moved}: below the minimum effect of {rule.min_effect:.0%}"
    if abs(change.effect) < noise:
        return "suspicious", f"{moved}: within the noise of one night ({noise:.1%})"
    if nights_since < rule.min_nights_after:
        return "suspicious", f"{moved}: to be confirmed by {rule.min_nights_after} nights"
    if side == "engine":
        return ("regression", f"slower: {moved}") if change.effect > 0 else ("improvement", f"faster: {moved}")
    errors = f"error {change.before - 1:+.1%} -> {change.after - 1:+.1%}, ratio {moved}"
    growth = abs(change.after - 1) - abs(change.before - 1)
    if abs(growth) < rule.min_effect:
        return "suspicious", f"moved, but neither clearly better nor worse: {errors}"
    return ("regression", f"less faithful: {errors}") if growth > 0 else ("improvement", f"more faithful: {errors}")


def find_changes(values: np.ndarray, rule: Rule) -> tuple[list[Change], list[Change]]:
    """Change points with p below `max_pvalue` and a mean change of `min_effect`, and the weak ones (ten times the
    p-value), by night."""
    from otava.analysis import compute_change_points

    with warnings.catch_warnings():
        # Segments without any spread (a simulation repeats itself exactly): the test then says p = 0, with a warning.
        warnings.simplefilter("ignore", RuntimeWarning)
        strong, weak = compute_change_points(
            [float(value) for value in values],
            window_len=rule.window_nights,
            max_pvalue=rule.max_pvalue,
            min_magnitude=rule.min_effect,
        )
    return _with_medians(strong, values), _with_medians(weak or [], values)


def _with_medians(found: Sequence[Any], values: np.ndarray) -> list[Change]:
    points = sorted({int(one.index): float(one.stats.pvalue) for one in found}.items())
    edges = [0, *[index for index, _ in points], len(values)]
    changes = []
    for number, (index, pvalue) in enumerate(points):
        before, after = (float(np.median(values[edges[n] : edges[n + 1]])) for n in (number, number + 1))
        changes.append(Change(index, before, after, pvalue))
    return changes


def noise_floor(values: np.ndarray, changes: Sequence[Change]) -> float:
    """Robust relative standard deviation of one night: 1.4826 MAD of the values over their segment's median."""
    edges = [0, *[change.night for change in changes], len(values)]
    parts = [values[start:end] for start, end in pairwise(edges)]
    relative = np.concatenate([part / np.median(part) - 1 for part in parts])
    return float(1.4826 * np.median(np.abs(relative)))


def line_marks(history: History) -> pd.DataFrame:
    """What changed between successive measurements on the scenario's line, as a `LineMarks` frame.

    A change of subject is reported by the parts of it that the history has; where none of them differs, as `subject`.
    """
    measured = history.comparisons[history.comparisons["night"].notna()].astype(object).fillna("")
    rows = []
    for before, after in zip(measured.to_dict("records"), measured.to_dict("records")[1:], strict=False):
        breaks = before["subject"] != after["subject"]
        changed = [name for name in _SUBJECT_PARTS if breaks and before[name] != after[name]]
        names = [*(changed or (["subject"] if breaks else [])), *[n for n in _MARKED[1:] if before[n] != after[n]]]
        rows += [
            {
                "comparison_id": after["comparison_id"], "measured_at": after["measured_at"], "what": name,
                "before": str(before[name]), "after": str(after[name]),
                "breaks": name in _SUBJECT_PARTS or name == "subject",
            }
            for name in names
        ]  # fmt: skip
    return _typed(LineMarks, rows)


def _cells(history: History, nights: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """By metric and percentile: one row a night with real_ns, sim_ns of the headline variant, real_spread, and whether
    it is judged."""
    wanted = nights[["comparison_id", "headline_variant"]].rename(columns={"headline_variant": "variant"})
    rows = wanted.merge(history.latencies, on=["comparison_id", "variant"], how="left")
    found = {}
    for (metric, statistic), part in rows.groupby(["metric", "statistic"], sort=False):
        cells = nights[["comparison_id"]].merge(part, on="comparison_id", how="left")
        enough = cells["verdict"].notna() & (cells["verdict"] != "insufficient")
        cells["judged"] = enough & (cells["real_ns"] > 0) & (cells["sim_ns"] > 0)
        found[str(metric), str(statistic)] = cells
    return found


def _median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def _columns(model: type[Table]) -> list[str]:
    return list(model.to_schema().columns)


def _typed(model: type[Table], rows: list[dict[str, Any]]) -> pd.DataFrame:
    required, _ = model.column_types()
    frame = pd.DataFrame(rows, columns=list(required))
    return validate(model, frame.astype(required), model.file_name())
