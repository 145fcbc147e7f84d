"""What the report says: its words, tables and their order, as blocks that `report_formats` turns into Markdown or HTML.

Words only; every number comes from `comparison`. Text in blocks may use `**bold**`, `*italic*`, `` `code` `` and `[text](target)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gst_assets.analysis.bootstrap import MIN_STRETCHES, NUM_REPLICATES
from gst_assets.analysis.comparison import Cell, Comparison
from gst_assets.analysis.figures import Figure
from gst_assets.analysis.gate import COMPARED_SETTINGS
from gst_assets.analysis.measures import MEASURE_NAMES, MEASURES, MIN_REQUESTS
from gst_assets.analysis.runs import RealRun, SimulatedRun
from gst_assets.contracts.store import Kind
from gst_assets.contracts.tables import (
    AlignmentCounts,
    ErrorCauses,
    ErrorGroups,
    GateChecks,
    LatencyErrors,
    PairedErrors,
    RateErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    StageErrors,
    StepErrors,
    Table,
)

REPORT = "report.html"
TABLES = "tables"
FIGURES = "figs"
_MEASURE_WORDS = {
    "ttft": "time to first token: first token - intended arrival, one sample a request",
    "itl": "inter-token latency: gap to the previous token, pooled over all tokens after the first",
    "tpot": "time per output token: a request's mean gap, (last compared token - first) / (tokens - 1), one sample a request; long requests weigh less "
    "than in ITL, and tools that print one under the name of the other disagree",
    "e2e": "end-to-end latency: last compared token - intended arrival, one sample a request",
    "normalized": "end-to-end latency over compared tokens, one sample a request",
    "normalized_execution": "(last compared token - first scheduled) over compared tokens, one sample a request; preemptions are in it. With E2E per token the two "
    "latencies that Vidur's paper (MLSys 2024) reports",
}
_SHOWN_PARITY = {"equal": "{}", "differs": "**{} (differs)**", "not_recorded": "**not recorded**"}
_SHOWN_FACTOR = {"num_prefill_tokens": "prompt length [tokens]", "num_in_system": "others in the system"}


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; columns from `numeric_from` on are right-aligned."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    figure: Figure


Block = Heading | Text | Items | Grid | Picture


def content(comparison: Comparison, figures: Sequence[Figure]) -> list[Block]:
    """The report: verdict, the figure that shows it, tables, further figures, then how it was made."""
    first, *others = figures
    return [
        Heading(_title(comparison), 1),
        Text(verdict_sentence(comparison)),
        *_caveats(comparison),
        Picture(first),
        Heading("Latencies"),
        latency_grid(comparison),
        Text(_table_notes(comparison)),
        *(Picture(figure) for figure in others[:2]),
        *_without_figure(comparison),
        Heading("Request by request"),
        _paired(comparison),
        Text(
            "MAPE and median APE: mean and median of |relative error|; bias: mean of the signed one; rank correlation: Spearman's. Wasserstein-1 and "
            "Kolmogorov-Smirnov D compare distributions; D is an effect size, without a p-value, since requests share batches. Medians over repeats."
        ),
        *(Picture(figure) for figure in others[2:]),
        Heading("Where the errors are"),
        _groups(comparison),
        *_stages(comparison),
        *_steps(comparison),
        *_causes(comparison),
        Heading("Throughput and queues"),
        _totals(comparison),
        Heading("Gate"),
        _gate(comparison),
        Heading("Settings"),
        _settings(comparison),
        Heading("Alignment"),
        Text(
            "Both sides played the same workload: same requests, intended arrivals, prompt lengths and requested output lengths (checked). A "
            "request that failed or gave no token in the real run is left out on both sides. The simulated series of each request is cut to the "
            "number of tokens the engine really produced (`num_decode_tokens_actual`)."
        ),
        _alignment(comparison),
        Heading("Runs, machine and versions"),
        _runs(comparison),
        Heading("Method and limitations"),
        _method(comparison),
        Heading("Files"),
        _files(figures),
    ]


def _title(comparison: Comparison) -> str:
    meta = comparison.real_repeats[0].meta
    return (
        f"Vidur against {meta.backend}: {meta.model} on {meta.hardware.hardware_id}, scenario {meta.hydra.config_name}"
    )


# --- verdict ----------------------------------------------------------------------------------------------------------


def verdict_sentence(comparison: Comparison) -> str:
    """The result in one or two sentences, e.g. ``**FAIL**: Vidur `calibrated` is off by +18.0 % [+15.1, +21.0] at TTFT P50 ...``."""
    verdict = comparison.verdict
    others = [_largest_of(comparison, name) for name in comparison.variants if name != comparison.headline]
    return " ".join([f"**{verdict.outcome.upper()}**: {_finding(comparison)}.", *(text for text in others if text)])


def _finding(comparison: Comparison) -> str:
    verdict, bands = comparison.verdict, comparison.bands
    vidur = f"Vidur `{comparison.headline}`"
    flagged = [one for one in verdict.unjudged if one.interval_flagged]
    if not verdict.cells and flagged:
        largest = max(flagged, key=lambda one: one.error_size)
        return (
            f"{comparison.alignment_counts['num_compared'].min()} requests, which depend on each other, hold too few independent samples for a "
            f"verdict; {vidur} is off by {percent(largest.relative_error)}{_interval(largest)} at {largest.name}"
            f"{_noise(largest)}, the largest error, as an indication. A longer run would tell"
        )
    if not verdict.cells:
        requests = comparison.alignment_counts["num_compared"].min()
        return (
            f"too few compared requests ({requests}) for a verdict; no required cell has {MIN_REQUESTS} requests and ten samples beyond its "
            "percentile"
        )
    worst = verdict.cells[0]
    cell = f"{percent(worst.relative_error)}{_interval(worst)} at {worst.name}{_noise(worst)}"
    if worst.verdict == "fail" and math.isnan(worst.relative_error):
        return f"the real {worst.name} is 0 and that of {vidur} is {milliseconds(worst.sim_ns)} ms, so the error has no bound"
    if worst.verdict == "fail":
        return f"{vidur} is off by {cell}, beyond the {100 * bands.warn_band:g} % band"
    unjudged = [one.name for one in verdict.unjudged if one.num_real_samples]
    if verdict.outcome == "insufficient":
        count = (
            "the one other required cell is"
            if len(verdict.cells) == 1
            else f"the worst of the other {len(verdict.cells)} required cells is"
        )
        few = "too few independent samples" if len(flagged) == len(unjudged) else "too few samples"
        return f"{few} for a verdict on {', '.join(unjudged)}; {count} {worst.name}: {worst.verdict}, {percent(worst.relative_error)}{_interval(worst)}"
    if worst.verdict == "inconclusive":
        return (
            f"the data do not say whether {vidur} keeps the {100 * bands.warn_band:g} % band: {cell}, whose interval straddles its edge. More "
            "requests or repeats would narrow it"
        )
    band = bands.pass_band if worst.verdict == "pass" else bands.warn_band
    count = "the one required cell" if len(verdict.cells) == 1 else f"all {len(verdict.cells)} required cells"
    largest = max(verdict.cells, key=lambda one: one.error_size)
    text = (
        f"{vidur} is within {100 * band:g} % in {count}, by 95 % intervals; largest error {percent(largest.relative_error)}{_interval(largest)} at "
        f"{largest.name}{_noise(largest)}"
    )
    if comparison.marks and worst.verdict == "pass":
        text += ". Not a pass, because the comparison is marked (below)"
    return text


def _noise(cell: Cell) -> str:
    if math.isnan(cell.real_spread):
        return ""
    if cell.error_size <= cell.real_spread:
        return f" (no more than the real repeats differ there: {spread(cell.real_spread)})"
    return f" (real repeats differ by {spread(cell.real_spread)} there)"


def _largest_of(comparison: Comparison, variant: str) -> str:
    """The largest error of another variant over the cells that decided, or without any over those with an interval."""
    verdict = comparison.verdict
    deciding = {
        (cell.metric, cell.statistic)
        for cell in verdict.cells or [one for one in verdict.unjudged if one.interval_flagged]
    }
    worst = max(
        (cell for cell in comparison.cells if cell.variant == variant and (cell.metric, cell.statistic) in deciding),
        key=lambda cell: cell.error_size,
        default=None,
    )
    return (
        f"For comparison, `{variant}`: largest error {percent(worst.relative_error)} at {worst.name}." if worst else ""
    )


def _caveats(comparison: Comparison) -> list[Block]:
    items = [f"**Marked**: {text}." for text in comparison.marks]
    empty = list(
        dict.fromkeys(MEASURE_NAMES[one.metric] for one in comparison.verdict.unjudged if not one.num_real_samples)
    )
    unjudged = [one for one in comparison.verdict.unjudged if one.num_real_samples]
    for few, what in ((False, "samples"), (True, "independent samples")):
        names = [one.name for one in unjudged if one.interval_flagged is few]
        if names and (few or comparison.verdict.cells):
            items.append(f"Too few {what} to judge: {', '.join(names)}.")
    if empty:
        items.append(
            f"{', '.join(empty)} has no samples (requests of one token have no gap) and does not enter the verdict."
        )
    items += [f"Note: {text}." for text in comparison.notes]
    return [Items(tuple(items))] if items else []


# --- tables -----------------------------------------------------------------------------------------------------------


def latency_grid(comparison: Comparison) -> Grid:
    """Real and simulated latencies in milliseconds, one row per metric and statistic; errors with their intervals."""
    variants, repeats = comparison.variants, len(comparison.real_repeats)
    real = "real" if repeats == 1 else f"real (median of {repeats})"
    columns = [
        text
        for name in variants
        for text in (name, "error", *(("95 % interval", "verdict") if name == comparison.headline else ()))
    ]
    rows = []
    # Cells go by metric, statistic and variant, so each run of len(variants) cells is a row.
    for start in range(0, len(comparison.cells), len(variants)):
        cells = comparison.cells[start : start + len(variants)]
        first = cells[0]
        row = [
            first.name + (" †" if first.sign == "†" else ""),
            milliseconds(first.real_ns),
            spread(first.real_spread),
        ]
        for cell in cells:
            error = percent(cell.relative_error) if cell.num_real_samples else "–"
            row += [milliseconds(cell.sim_ns), error]
            if cell.variant == comparison.headline:
                verdict = f"**{cell.verdict}**" if cell.required else cell.verdict
                row += [
                    f"{_interval(cell).strip()} {cell.sign}".strip(" †") or "–",
                    verdict if cell.num_real_samples else "–",
                ]
        if len(comparison.real_repeats) > 1:
            noise = next(cell.error_to_noise for cell in cells if cell.variant == comparison.headline)
            row.append("–" if math.isnan(noise) else f"{noise:.1f}")
        rows.append((*row, f"{first.num_real_samples:,}"))
    over = ("error / spread",) if len(comparison.real_repeats) > 1 else ()
    return Grid(("latency [ms]", real, "real spread", *columns, *over, "samples"), tuple(rows), 1)


def headline_grid(comparison: Comparison) -> Grid:
    """The cells that decide the verdict, of the headline variant, in milliseconds: real, simulated, error, verdict."""
    rows = [
        (cell.name, milliseconds(cell.real_ns), milliseconds(cell.sim_ns), percent(cell.relative_error), cell.verdict)
        for cell in comparison.cells
        if cell.required and cell.variant == comparison.headline and cell.num_real_samples
    ]
    return Grid(("latency [ms]", "real", comparison.headline, "error", "verdict"), tuple(rows), 1)


def _table_notes(comparison: Comparison) -> str:
    lines = [
        "error = (simulated - real) / real: negative where the simulation is too fast; its 95 % interval in per cent. Bold verdicts are of required cells and "
        "decide."
    ]
    if len(comparison.real_repeats) > 1:
        lines.append(
            "Real spread = (max - min) / median over the real repeats: an error no larger than it is within run-to-run noise (error / spread at most 1)."
        )
    if any(cell.sign == "†" for cell in comparison.cells):
        lines.append(f"† Fewer than {MIN_REQUESTS} requests or ten samples beyond the percentile: shown, not judged.")
    if any(cell.sign == "‡" for cell in comparison.cells if cell.variant == comparison.headline):
        lines.append(
            "‡ Worth fewer than ten independent samples beyond the percentile (mean: half of those beyond P95), or a run that is short against the time over which "
            "requests depend on each other: the interval covers less than it claims, and nothing but a fail is concluded from it."
        )
    return " ".join(lines)


def _without_figure(comparison: Comparison) -> list[Block]:
    empty = dict.fromkeys(cell.metric for cell in comparison.cells if not cell.num_real_samples)
    return [
        Text(f"{MEASURE_NAMES[metric]} has no samples, so it has no figure.") for metric in empty if metric == "itl"
    ]


def _paired(comparison: Comparison) -> Grid:
    table = comparison.paired_errors
    rows = []
    for measure in MEASURES:
        for variant in comparison.variants:
            mine = table[(table["metric"] == measure) & (table["variant"] == variant)]
            middle = {name: _median(mine[name]) for name in mine.columns if mine[name].dtype == "float64"}
            shares = [_share(middle[name]) for name in ("mape", "median_ape")]
            rows.append(
                (
                    MEASURE_NAMES[measure],
                    variant,
                    *shares,
                    _signed_share(middle["bias"]),
                    _number(middle["rank_correlation"], 3),
                    milliseconds(middle["wasserstein_ns"]),
                    _number(middle["ks_distance"], 3),
                )
            )
    header = ("latency", "variant", "MAPE", "median APE", "bias", "rank correlation", "Wasserstein-1 [ms]", "KS D")
    return Grid(header, tuple(rows), 2)


def _groups(comparison: Comparison) -> Grid:
    table = comparison.error_groups
    rows = [
        (
            MEASURE_NAMES[row["metric"]],
            _SHOWN_FACTOR[row["factor"]],
            f"{row['low']:,} to {row['high']:,}" if row["low"] < row["high"] else f"{row['low']:,}",
            _signed_share(row["median"]),
            f"{_signed_share(row['p10'])} to {_signed_share(row['p90'])}",
            f"{row['num_requests']:,}",
        )
        for row in table[table["variant"] == comparison.headline].to_dict("records")
    ]
    header = ("error of", "by", "from", "median error", "10 to 90 % of requests", "requests x repeats")
    return Grid(header, tuple(rows), 2)


def _stages(comparison: Comparison) -> list[Block]:
    rows = [
        (
            row["stage"],
            row["variant"],
            milliseconds(row["real_mean_ns"]),
            milliseconds(row["sim_mean_ns"]),
            signed_milliseconds(row["error_ns"]),
            _signed_share(row["relative_error"]),
            _signed_share(row["share_of_e2e_error"]),
            milliseconds(row["real_lateness_ns"]),
        )
        for row in comparison.stage_errors.to_dict("records")
    ]
    header = ("stage", "variant", "real, mean [ms]", "simulated", "error [ms]", "error", "share of the E2E error", "lateness in it [ms]")  # fmt: skip
    text = (
        "Stages of a request: queueing from intended arrival to first scheduling, prefill from there to the first token, decode from there to the last; "
        "their mean errors add up to that of E2E. Shares are signed: stages that err to opposite sides have shares beyond 100 %."
    )
    return [Heading("Stages", 3), Grid(header, tuple(rows), 2), Text(text)]


def _steps(comparison: Comparison) -> list[Block]:
    table = comparison.step_errors
    if table.empty:
        return [Heading("Steps", 3), Text("No real run recorded its steps (iterations.csv), so none are compared.")]
    rows = []
    for name in comparison.variants:
        rows += [_step_row(table[table["beside"] == name], name, kind) for kind in table["step_kind"].unique()]
    between = table[~table["beside"].isin(comparison.variants)]
    rows += [_step_row(between, "the other real repeats", kind) for kind in between["step_kind"].unique()]
    header = ("steps", "beside the real ones", "real steps", "others", "real, mean [ms]", "other, mean [ms]", "difference", "same composition, in order")  # fmt: skip
    text = (
        "Medians over the real repeats. Same composition: share of the real steps that the other run has too, with as many prompts, prompt tokens and decodes, in "
        "the same order (longest common subsequence). A step's time begins where the step before has ended."
    )
    return [Heading("Steps", 3), Grid(header, tuple(row for row in rows if row), 2), Text(text)]


def _step_row(rows: pd.DataFrame, name: str, kind: str) -> tuple[str, ...]:
    mine = rows[rows["step_kind"] == kind]
    if mine.empty:
        return ()
    return (
        kind,
        name,
        f"{mine['num_real_steps'].median():,.0f}",
        f"{mine['num_other_steps'].median():,.0f}",
        milliseconds(mine["real_mean_ns"].median()),
        milliseconds(mine["other_mean_ns"].median()),
        _signed_share(mine["relative_difference"].median()),
        _share(mine["same_composition"].median()),
    )


def _causes(comparison: Comparison) -> list[Block]:
    table = comparison.error_causes
    band = f"{100 * comparison.bands.pass_band:g} %"
    if table.empty:
        return [
            Heading("Likely causes", 3),
            Text(
                f"No error of TTFT, ITL or E2E at P50, P90 or P99 with samples enough for an interval is beyond {band}."
            ),
        ]
    rows = [
        (
            f"{MEASURE_NAMES[row['metric']]} {row['statistic'].upper()}",
            row["variant"],
            percent(row["relative_error"]),
            f"**{row['cause']}**" if row["rank"] == 1 else row["cause"],
            row["evidence"],
        )
        for row in table.to_dict("records")
    ]
    text = f"Every error beyond {band} with samples enough for an interval. Rules over measured evidence name what is likely; they prove nothing (docs/comparison.md)."
    return [
        Heading("Likely causes", 3),
        Grid(("error of", "variant", "error", "likely cause", "evidence"), tuple(rows), 5),
        Text(text),
    ]


def _totals(comparison: Comparison) -> Grid:
    rows = [
        (
            ("real " if row["side"] == "real" else "Vidur ") + f"`{row['run']}`",
            f"{row['duration_ns'] / 1e9:,.2f}",
            _number(row["requests_per_s"], 2),
            _number(row["tokens_per_s"], 1),
            f"{_number(row['mean_running'], 1)} / {row['max_running']:.0f}",
            f"{_number(row['mean_waiting'], 1)} / {row['max_waiting']:.0f}",
            milliseconds(row["scheduling_delay_ns"]),
            "–" if pd.isna(row["num_preemptions"]) else f"{row['num_preemptions']:.0f}",
            row["queue_source"],
        )
        for row in comparison.run_totals.to_dict("records")
    ]
    header = (
        "run", "duration [s]", "requests/s", "tokens/s", "running, mean / max", "waiting, mean / max", "mean scheduling delay [ms]", "preemptions", "queues from",
    )  # fmt: skip
    return Grid(header, tuple(rows), 1)


def _gate(comparison: Comparison) -> Grid:
    shown = {"ok": "ok", "note": "note", "mark": "**mark**"}
    rows = []
    for one in comparison.checks:
        rows.append((one.check, one.run, shown[one.severity], one.real or "–", one.simulated or "–", one.finding))
    return Grid(("check", "run", "result", "real", "simulated", "finding"), tuple(rows), 6)


def _alignment(comparison: Comparison) -> Grid:
    header = (
        "real run", "variant", "requests", "compared", "failed", "no token", "early stops", "tokens compared", "simulated tokens cut",
    )  # fmt: skip
    rows = tuple(
        tuple(str(value) if isinstance(value, str) else f"{value:,}" for value in row)
        for row in comparison.alignment_counts.itertuples(index=False)
    )
    return Grid(header, rows, 2)


def _settings(comparison: Comparison) -> Grid:
    parity = comparison.settings_parity
    rows = []
    for setting in COMPARED_SETTINGS:
        found = parity.loc[parity["setting"] == setting].to_dict("records")
        shown = {row["variant"]: _SHOWN_PARITY[row["parity"]].format(row["simulated"]) for row in found}
        rows.append((f"`{setting}`", found[0]["real"], *[shown[name] for name in comparison.variants]))
    header = ("setting", "engine reported", *[f"{name} assumed" for name in comparison.variants])
    return Grid(header, tuple(rows), len(header))


# --- how it was made --------------------------------------------------------------------------------------------------


def _runs(comparison: Comparison) -> Items:
    meta = comparison.real_repeats[0].meta
    settings = meta.engine_settings
    hardware = meta.hardware
    driver = f", driver {hardware.driver}" if hardware.driver else ""
    graphs = settings.cudagraph_capture_sizes
    captured = (
        f"CUDA graphs captured for {len(graphs)} sizes up to {max(graphs)} tokens"
        if graphs
        else "no CUDA graphs captured"
    )
    overrides = (
        f" with overrides {', '.join(f'`{text}`' for text in meta.hydra.overrides)}" if meta.hydra.overrides else ""
    )
    lines = [
        f"Workload `{meta.workload_id}`, model {meta.model} ({settings.dtype}), scenario `{meta.hydra.config_name}`{overrides}",
        f"Device: {hardware.device_count} x {hardware.device_name} (`{hardware.hardware_id}`){driver}; {meta.env.get('platform', 'platform not recorded')}, "
        f"Python {meta.env.get('python', 'not recorded')}",
        f"Engine: {settings.backend} {settings.engine_version}, attention {settings.attention_backend}, {captured}",
    ]
    for run in comparison.real_repeats:
        lateness = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in run.meta.lateness_ns.items())
        lines.append(
            f"Real run `{run.meta.run_id}`: {_started(run)}, repeat {run.meta.repeat_index + 1} of {run.meta.num_repeats}, "
            f"{_revision(run)}; send lateness [ms] {lateness or 'not recorded'}"
        )
    for name, sim in comparison.simulations.items():
        vidur = sim.meta.env.get("packages", {}).get("vidur", "version not recorded")
        lines.append(
            f"Simulation `{sim.meta.run_id}` ({name}): {_started(sim)}, Vidur {vidur}, predictor {sim.meta.predictor}, {_revision(sim)}"
        )
    return Items(tuple(lines))


def _started(run: RealRun | SimulatedRun) -> str:
    return run.meta.started_at.strftime("%Y-%m-%d %H:%M:%S %Z")


def _revision(run: RealRun | SimulatedRun) -> str:
    meta = run.meta
    if meta.git_commit is None:
        return "code revision unknown"
    return f"commit {meta.git_commit[:12]}" + (" with local changes" if meta.git_dirty else "")


def _method(comparison: Comparison) -> Items:
    bands = comparison.bands
    required = ", ".join(MEASURE_NAMES[one] for one in bands.required_metrics)
    at = ", ".join("mean" if one == "mean" else one.upper() for one in bands.required_statistics)
    length = comparison.block_length
    blocks = (
        f"blocks of {length} requests, {NUM_REPLICATES:,} replicates" if length else "not formed here: too few requests"
    )
    return Items(
        (
            *(f"{MEASURE_NAMES[measure]}: {_MEASURE_WORDS[measure]}." for measure in MEASURES),
            "Percentiles interpolate linearly between order statistics (numpy `linear`). With several repeats, each side's value is the median "
            "over repeats of the statistic in each repeat; the simulation is aligned to each repeat.",
            f"Intervals: circular block bootstrap over requests in order of arrival, tokens with their request, the same blocks on both sides ({blocks}), "
            "seeded; accelerated by the skewness of the replicates (Efron 1987), widened for long blocks (fixed-b) and, with repeats, by the t interval of "
            "what repeats differ by.",
            f"Verdict of a cell: its interval inside {100 * bands.pass_band:g} % pass, inside {100 * bands.warn_band:g} % warn, outside {100 * bands.warn_band:g} % fail, "
            f"straddling that edge inconclusive; insufficient with fewer than {MIN_REQUESTS} requests or ten samples beyond the percentile (100 for P90, 200 for P95, "
            "1,000 for P99). Also insufficient, unless it is a fail, where the samples are worth fewer than ten independent ones (from the variance of the share "
            f"beyond the percentile under resampling), or fewer than {MIN_STRETCHES} blocks are as long as the dependence asks for.",
            f"Overall: the worst required cell of `{comparison.headline}` ({required} at {at}) in the order pass, warn, inconclusive, insufficient, fail; a marked "
            "comparison is at best warn.",
            "Lateness of the driver stays inside the real TTFT (no coordinated omission); the simulation knows none.",
            "The intervals are about workloads like this one (other stretches of the same arrivals and lengths), given that the run is long against the "
            "time over which requests depend on each other; where it is seen not to be, they are flagged (‡). Busy periods that were not seen cannot be known "
            "(coverage measured in docs/comparison.md). No correction is made for judging several cells at once.",
        )
    )


def _files(figures: Sequence[Figure]) -> Items:
    described: dict[type[Table], str] = {
        LatencyErrors: "the table of latencies with every digit",
        RepeatLatencies: "each statistic of each real repeat",
        RateErrors: "throughput and goodput, simulated beside real",
        RequestErrors: "every compared request, simulated beside real",
        PairedErrors: "errors request by request and distances of the distributions",
        ErrorGroups: "errors by prompt length and by load",
        RunTotals: "throughput and queues of each run",
        GateChecks: "what was checked beforehand",
        AlignmentCounts: "what alignment kept and left out",
        SettingsParity: "engine settings beside what each simulation assumed",
        StageErrors: "the mean error by stage of a request",
        StepErrors: "steps beside those of each real repeat",
        ErrorCauses: "likely causes of errors beyond the pass band, with their evidence",
    }
    return Items(
        (
            f"[{REPORT}]({REPORT}): this report as one page with its figures inside",
            *(f"[{TABLES}/{one.file_name()}]({TABLES}/{one.file_name()}): {what}" for one, what in described.items()),
            *(f"[{FIGURES}/{figure.file_name}]({FIGURES}/{figure.file_name})" for figure in figures),
            f"{Kind.COMPARISON.meta_name}: run directories, digests, scenario, versions",
        )
    )


# --- formatting -------------------------------------------------------------------------------------------------------


def milliseconds(value_ns: float) -> str:
    """Milliseconds with three significant digits, or all before the point."""
    if pd.isna(value_ns):
        return "–"
    value = value_ns / 1e6
    decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def signed_milliseconds(value_ns: float) -> str:
    """As `milliseconds`, with a sign."""
    return ("-" if value_ns < 0 else "+") + milliseconds(abs(value_ns)) if not pd.isna(value_ns) else "–"


def percent(relative: float) -> str:
    """A signed relative error in per cent; `undefined` where it is missing."""
    return "undefined" if pd.isna(relative) else f"{100 * relative:+.1f} %"


def spread(relative: float) -> str:
    """An unsigned share in per cent; a dash where it is missing."""
    return "–" if pd.isna(relative) else f"{100 * relative:.1f} %"


def _interval(cell: Cell) -> str:
    """` [low, high]` in per cent, or nothing where it is not known."""
    if math.isnan(cell.interval_low):
        return ""
    high = "open" if math.isinf(cell.interval_high) else f"{100 * cell.interval_high:+.1f}"
    return f" [{100 * cell.interval_low:+.1f}, {high}]"


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f} %"


def _signed_share(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:+.1f} %"


def _number(value: float, digits: int) -> str:
    return "–" if pd.isna(value) else f"{value:,.{digits}f}"


def _median(values: pd.Series) -> float:
    return float(np.median(values)) if values.notna().all() else math.nan
