"""What is checked about each entity, beyond the contract: the specs, and a result made from what an asset already
computed.

Every check is a spec of its asset's own op: a separate `@asset_check` would be a step of its own. A check that would
make what follows wrong is an ERROR and blocks it; one that is an opinion is a WARN. A failing check says why and shows
the rows. Nothing is computed here that the domain packages compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from gst_assets.assets.presentation import check_spec, contract_failed, frame_markdown
from gst_assets.errors import ContractError, SimulationError
from gst_assets.formats import milliseconds

if TYPE_CHECKING:
    import pandas as pd

    from gst_assets.analysis.change_points import RegressionReport
    from gst_assets.analysis.judged_errors import Comparison
    from gst_assets.analysis.run_reading import OwnRealRun, OwnSimulatedRun

_ROWS = 10
_GRAVITY = ("fail", "inconclusive", "warn")
REPORT = "report"
"""Metadata key of a failing check under which a message finds the report."""


@dataclass(frozen=True)
class AssetCheck:
    """A check's name, whether its errors block what depends on the asset, and what it holds."""

    name: str
    blocking: bool
    description: str


COMPLETENESS = AssetCheck(
    "completeness",
    True,
    "Every request succeeded. Some failed: a warning, as they are counted and left out; none succeeded: an error.",
)
LATENESS = AssetCheck(
    "lateness",
    False,
    "The driver sent requests on time (replay.lateness_limit_ns at P99). Lateness stays inside TTFT.",
)
ALL_TOKENS = AssetCheck("all_tokens", True, "The simulation gave every request every token it asked for.")
PARITY = AssetCheck("parity", False, "The simulation assumed the settings that the engine reported.")
FIDELITY_BAND = AssetCheck(
    "fidelity_band",
    False,
    "The headline variant's P50 and P90 errors are shown to be inside the scenario's bands. Outside them: an error;"
    " where it cannot be judged: a warning.",
)
NO_NIGHT_LOST = AssetCheck("no_night_lost", False, "Every comparison that was known before is still there.")
REGRESSION = AssetCheck(
    "regression", False, "No confirmed regression of the engine or of the simulation's fidelity in the last nights."
)
SELF_CHECK = AssetCheck("same_bytes", True, "Simulating the same inputs again gives the same bytes.")


def specs(asset: str, *checks: AssetCheck) -> list[dg.AssetCheckSpec]:
    """The specs of an asset's checks."""
    return [check_spec(check.name, asset, blocking=check.blocking, description=check.description) for check in checks]


def reports_contract(asset: str) -> Callable[[Callable[..., Any]], Callable[..., Iterator[Any]]]:
    """Decorate an asset's function so that a broken contract also fails its contract check, with the rows, before the
    op fails.

    Goes below `@dg.asset`. The tables were validated before they were committed, so nothing is on disk then.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(function)
        def reporting(*arguments: Any, **named: Any) -> Iterator[Any]:
            try:
                yield function(*arguments, **named)
            except ContractError as error:
                yield contract_failed(asset, error)
                raise

        return reporting

    return decorate


# --- real runs --------------------------------------------------------------------------------------------------------


def completeness_result(runs: Sequence[OwnRealRun]) -> dg.AssetCheckResult:
    """Failed requests of every repeat."""
    failed = _joined((run.meta.run_id, run.requests[run.requests["status"] != "ok"]) for run in runs)
    asked = sum(len(run.requests) for run in runs)
    why = f"{len(failed)} of {asked} requests failed"
    severity = dg.AssetCheckSeverity.ERROR if len(failed) == asked else dg.AssetCheckSeverity.WARN
    columns = ["run_id", "request_id", "num_decode_tokens_actual", "error_type", "error_msg"]
    return _result(COMPLETENESS, "real_request_metrics", failed, columns, why, severity)


def _late(run: OwnRealRun) -> str:
    """For runs of an earlier version, which did not record their reasons."""
    return f"late, P99 {milliseconds(run.meta.lateness_ns['p99'], '.1f')} ms"


def lateness_result(runs: Sequence[OwnRealRun]) -> dg.AssetCheckResult:
    """The repeats that are marked degraded, with the reasons and their latest requests."""
    late = []
    for run in runs:
        if run.meta.degraded and "send_time_ns" in run.requests:
            frame = run.requests.assign(lateness_ns=run.requests["send_time_ns"] - run.requests["arrival_time_ns"])
            late.append((run.meta.run_id, frame.nlargest(_ROWS, "lateness_ns")))
    degraded = [run for run in runs if run.meta.degraded]
    why = "; ".join(f"{run.meta.run_id}: {', '.join(run.meta.degraded_reasons or [_late(run)])}" for run in degraded)
    columns = ["run_id", "request_id", "arrival_time_ns", "send_time_ns", "lateness_ns"]
    failed = bool(degraded)
    return _result(
        LATENESS, "real_request_metrics", _joined(late), columns, f"degraded: {why}",
        dg.AssetCheckSeverity.WARN, passed=not failed,
    )  # fmt: skip


# --- simulations ------------------------------------------------------------------------------------------------------


def all_tokens_result(requests: Mapping[str, pd.DataFrame]) -> dg.AssetCheckResult:
    """Simulated requests with fewer tokens than they asked for, of the request tables by run id."""
    short = _joined(
        (run_id, table[table["num_decode_tokens_actual"] < table["num_decode_tokens"]])
        for run_id, table in requests.items()
    )
    columns = ["run_id", "request_id", "num_decode_tokens", "num_decode_tokens_actual", "status"]
    why = f"{len(short)} simulated requests lack tokens"
    return _result(ALL_TOKENS, "vidur_request_metrics", short, columns, why, dg.AssetCheckSeverity.ERROR)


def self_check_passed(runs: Mapping[Any, OwnSimulatedRun]) -> dg.AssetCheckResult:
    """Every variant came out the same."""
    return dg.AssetCheckResult(
        passed=True,
        check_name=SELF_CHECK.name,
        asset_key="simulation_self_check",
        metadata={"variants": ", ".join(runs)},
    )


def self_check_failed(run: OwnSimulatedRun, error: SimulationError) -> dg.AssetCheckResult:
    """A simulation that is no longer what it was; the op fails right after."""
    return dg.AssetCheckResult(
        passed=False,
        check_name=SELF_CHECK.name,
        asset_key="simulation_self_check",
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"run": run.meta.run_id, "why": dg.MetadataValue.text(str(error))},
    )


# --- comparison and regression ----------------------------------------------------------------------------------------


def parity_result(comparison: Comparison) -> dg.AssetCheckResult:
    """The headline variant's settings that differ, or that its simulation did not record. Those of the others are
    in the metadata."""
    parity = comparison.settings_parity
    unequal = parity[parity["parity"] != "equal"]
    mine = unequal[unequal["variant"] == comparison.headline]
    why = f"{len(mine)} settings of {comparison.headline} are not known to be equal"
    others = {
        f"differs in {variant}": ", ".join(rows["setting"])
        for variant, rows in unequal.groupby("variant")
        if variant != comparison.headline
    }
    return _result(
        PARITY, "comparison_report", mine, list(mine.columns), why, dg.AssetCheckSeverity.WARN, told=others
    )  # fmt: skip


def fidelity_result(comparison: Comparison, report: Path, link: dg.UrlMetadataValue) -> dg.AssetCheckResult:
    """The headline variant's deciding cells that are not a pass, the gravest first. Outside the band is an error; what
    cannot be judged is a warning, and this is stated."""
    from gst_assets.analysis.answer import JUDGEMENT_WORDS

    frame = comparison.latency_errors
    cells = frame[(frame["variant"] == comparison.headline) & frame["required"]]
    present = cells[cells["num_real_samples"] > 0]
    order = (*_GRAVITY, "insufficient")
    outside = present[present["verdict"].isin(order)]
    outside = outside.sort_values("relative_error", key=abs, ascending=False, na_position="first")
    outside = outside.sort_values("verdict", key=lambda verdicts: verdicts.map(order.index), kind="stable")
    judged = present[present["verdict"] != "insufficient"]
    unjudged = len(present) - len(judged)
    counts = ", ".join(f"{(outside['verdict'] == verdict).sum()} {verdict}" for verdict in _GRAVITY)
    why = (
        f"{int(outside['verdict'].isin(_GRAVITY).sum())} of {len(judged)} judged cells are not shown to be inside the"
        f" {comparison.bands.pass_band:.0%} band: {counts}"
    )
    if unjudged:
        why += (
            f"; {unjudged} cannot be judged:"
            f" {', '.join(sorted(set(present.loc[present['verdict'] == 'insufficient', 'reason'])))}"
        )
    if judged.empty:
        reasons = sorted(set(cells["reason"]) - {""})
        outside, why = cells, f"no cell has enough (independent) samples to be judged: {', '.join(reasons)}"
    verdict = comparison.answer.verdict
    severity = dg.AssetCheckSeverity.ERROR if verdict == "fail" else dg.AssetCheckSeverity.WARN
    columns = [
        "metric",
        "statistic",
        "real_ns",
        "sim_ns",
        "relative_error",
        "interval_low",
        "interval_high",
        "real_spread",
        "num_real_samples",
        "verdict",
        "reason",
    ]
    return _result(
        FIDELITY_BAND, "comparison_report", outside, columns, f"{JUDGEMENT_WORDS[verdict]}: {why}", severity,
        report=report, link=link, told={"judgement": JUDGEMENT_WORDS[verdict], "answer": comparison.answer.sentence},
    )  # fmt: skip


def no_night_lost_result(gone: Sequence[str]) -> dg.AssetCheckResult:
    """The comparisons that a history knew and that are no longer there."""
    import pandas as pd

    rows = pd.DataFrame({"comparison_id": list(gone)})
    why = (
        f"{len(gone)} comparisons that were there are no longer under comparisons/: {', '.join(gone)}. Restore them"
        " from a backup and materialize again; if they were removed on purpose, the next history no longer knows them"
    )
    return _result(
        NO_NIGHT_LOST, "comparison_history", rows, ["comparison_id"], why, dg.AssetCheckSeverity.WARN,
        told={"told_as": ", ".join(gone)},
    )  # fmt: skip


def regression_result(report: RegressionReport, summary: Path, link: dg.UrlMetadataValue) -> dg.AssetCheckResult:
    """The series with a confirmed regression. Suspicions and too little data pass, and the verdict says so."""
    from gst_assets.analysis.regression_report import verdict_line

    frame = report.verdicts
    worse = frame[frame["verdict"] == "regression"]
    columns = [
        "side",
        "metric",
        "statistic",
        "baseline",
        "current",
        "effect",
        "noise_floor",
        "pvalue",
        "changed_in",
        "nights_since",
    ]
    names = [one.name for one in report.series if one.verdict == "regression"]
    return _result(
        REGRESSION,
        "regression_report",
        worse,
        columns,
        verdict_line(report),
        dg.AssetCheckSeverity.WARN,
        report=summary,
        link=link,
        told={"verdict": report.verdict, "nights": len(report.nights), "told_as": ", ".join(sorted(names))},
    )


# --- shared -----------------------------------------------------------------------------------------------------------


def _result(
    check: AssetCheck,
    asset: str,
    rows: pd.DataFrame,
    columns: Sequence[str],
    why: str,
    severity: dg.AssetCheckSeverity,
    *,
    passed: bool | None = None,
    report: Path | None = None,
    link: dg.UrlMetadataValue | None = None,
    told: Mapping[str, Any] | None = None,
) -> dg.AssetCheckResult:
    """Passed without rows (or as given); else why, and the first rows."""
    good = rows.empty if passed is None else passed
    metadata: dict[str, Any] = dict(told or {})
    if not good:
        shown = rows[[name for name in columns if name in rows.columns]].head(_ROWS).map(_rounded)
        # On a check's page the UI shows text at once and folds Markdown away behind a click.
        metadata |= {"why": dg.MetadataValue.text(why.replace("**", "")), "num_rows": len(rows)}
        if len(shown):
            first = shown.iloc[0].dropna()
            metadata["first_row"] = ", ".join(f"{name} {value}" for name, value in first.items() if value != "")
            metadata["rows"] = frame_markdown(shown)
        if report is not None:
            metadata[REPORT] = dg.MetadataValue.path(str(report))
        if link is not None:
            metadata["open_report"] = link
    return dg.AssetCheckResult(
        passed=good, check_name=check.name, asset_key=asset, severity=severity, metadata=metadata
    )


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e6 else value


def _joined(parts: Any) -> pd.DataFrame:
    """Rows of several runs with their run_id in front."""
    import pandas as pd

    frames = [frame.assign(run_id=run_id) for run_id, frame in parts]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
