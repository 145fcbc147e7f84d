"""Writing a comparison directory: summary.md, tables/*.csv, figs/*.png, and building its metadata document.

Words and layout only; every number comes from `comparison`. The same comparison gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from gst_assets.analysis.comparison import COMPARED_SETTINGS, DECIDING_PERCENTILES, Comparison
from gst_assets.analysis.figures import Figure, write_figures
from gst_assets.analysis.latencies import METRIC_NAMES, METRICS
from gst_assets.analysis.runs import RealRun, SimulatedRun
from gst_assets.contracts.documents import ComparisonMeta
from gst_assets.contracts.store import Kind
from gst_assets.contracts.tables import (
    AlignmentCounts,
    LatencyErrors,
    RepeatLatencies,
    RequestErrors,
    SettingsParity,
    write_table,
)
from gst_assets.provenance import environment, git_state, sha256_file, utc_now

SUMMARY = "summary.md"
TABLES = "tables"
FIGURES = "figs"
_METRIC_WORDS = {
    "ttft": "time to first token: first token - intended arrival, one sample a request",
    "itl": "inter-token latency: gap to the previous token, pooled over all tokens after the first",
    "e2e": "end-to-end latency: last compared token - intended arrival, one sample a request",
}
_SHOWN_PARITY = {"equal": "{}", "differs": "**{} (differs)**", "not_recorded": "**not recorded**"}


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write everything but the metadata document into `directory`, which exists and is empty.

    The caller writes `comparison_meta(...)` last, so that an interrupted directory is never taken for a comparison.
    """
    tables, figures = directory / TABLES, directory / FIGURES
    tables.mkdir()
    figures.mkdir()
    for model, frame in (
        (LatencyErrors, comparison.latency_errors),
        (RepeatLatencies, comparison.repeat_latencies),
        (RequestErrors, comparison.request_errors),
        (AlignmentCounts, comparison.alignment_counts),
        (SettingsParity, comparison.settings_parity),
    ):
        write_table(model, frame, tables)
    drawn = write_figures(comparison, figures)
    (directory / SUMMARY).write_text(summary(comparison, drawn), encoding="utf-8")


def comparison_meta(
    comparison: Comparison, *, run_id: str, started_at: datetime, sha256: Mapping[str, str]
) -> ComparisonMeta:
    """The comparison's run_meta.json. `sha256` digests the files written so far; scenario, model and hardware are the first repeat's."""
    commit, dirty = git_state()
    first = comparison.real_repeats[0]
    runs: list[RealRun | SimulatedRun] = [*comparison.real_repeats, *comparison.simulations.values()]
    return ComparisonMeta.model_validate(
        {
            "run_id": run_id,
            "started_at": started_at,
            "ended_at": utc_now(),
            "git_commit": commit,
            "git_dirty": dirty,
            "model": first.meta.model,
            "hardware": first.meta.hardware.model_dump(),
            "env": environment(),
            "params": first.meta.params,
            "hydra": first.meta.hydra.model_dump(),
            "inputs_sha256": {
                f"{run.meta.run_id}/{file}": digest for run in runs for file, digest in _run_digests(run).items()
            },
            "sha256": dict(sha256),
            "real_run_dir": str(first.directory),
            "sim_run_dir": str(comparison.simulations[comparison.headline].directory),
            "real_run_dirs": [str(run.directory) for run in comparison.real_repeats],
            "sim_run_dirs": {name: str(run.directory) for name, run in comparison.simulations.items()},
            "workload_id": first.meta.workload_id,
            "headline_variant": comparison.headline,
            "verdict": comparison.verdict.outcome,
            "marks": list(comparison.marks),
            "measured": {
                "group_id": first.meta.group_id,
                "measured_at": first.meta.started_at,
                "engine_settings": first.meta.engine_settings.model_dump(),
                "env": first.meta.env,
                "sim_env": comparison.simulations[comparison.headline].meta.env,
                "profile_sha256": comparison.simulations[comparison.headline].meta.profile_sha256,
            },
        }
    )


def _run_digests(run: RealRun | SimulatedRun) -> dict[str, str]:
    """Digests of a run's files, its own metadata document included."""
    name = Kind.REAL_RUN.meta_name
    return {**run.meta.sha256, name: sha256_file(run.directory / name)}


# --- summary.md -------------------------------------------------------------------------------------------------------


def summary(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """The report in Markdown: verdict, table, figures, then how it was made."""
    sections = [
        f"# {_title(comparison)}",
        verdict_sentence(comparison),
        *_caveats(comparison),
        latency_table(comparison),
        _table_notes(comparison),
        *[f"![{figure.title}]({FIGURES}/{figure.file_name})\n\n*{figure.caption}*" for figure in figures],
        *_without_figure(comparison),
        "## Alignment",
        _alignment(comparison),
        "## Settings",
        _settings(comparison),
        "## Runs, machine and versions",
        _runs(comparison),
        "## Method and limitations",
        _method(comparison),
        "## Files",
        _files(figures),
    ]
    return "\n\n".join(sections) + "\n"


def _title(comparison: Comparison) -> str:
    meta = comparison.real_repeats[0].meta
    return (
        f"Vidur against {meta.backend}: {meta.model} on {meta.hardware.hardware_id}, scenario {meta.hydra.config_name}"
    )


def verdict_sentence(comparison: Comparison) -> str:
    """The result in one or two sentences of Markdown, e.g. `**FAIL**: Vidur calibrated is +18 % off at TTFT P50 ...`."""
    verdict, headline, bands = comparison.verdict, comparison.headline, comparison.bands
    deciding = " or ".join(f"P{percentile}" for percentile in DECIDING_PERCENTILES)
    if not verdict.cells:
        requests = comparison.alignment_counts["num_compared"].min()
        return (
            f"**INSUFFICIENT**: too few compared requests ({requests}) for a verdict; no {deciding} of TTFT, ITL or E2E has ten samples "
            "beyond it."
        )
    worst = verdict.cells[0]
    cell = f"{_percent(worst.relative_error)} at {worst.name}"
    noise = ""
    if worst.error_size <= worst.real_spread:
        noise = f" (no more than the real repeats differ there: {_spread(worst.real_spread)})"
    elif not math.isnan(worst.real_spread):
        noise = f" (real repeats differ by {_spread(worst.real_spread)} there)"
    count = "the one cell" if len(verdict.cells) == 1 else f"all {len(verdict.cells)} cells"
    if worst.verdict == "fail":
        text = f"Vidur `{headline}` is off by {cell}{noise}, beyond the {100 * bands.warn_band:g} % band"
    else:
        band = bands.pass_band if worst.verdict == "pass" else bands.warn_band
        text = f"Vidur `{headline}` is within {100 * band:g} % in {count} judged; largest error {cell}{noise}"
    if comparison.marks and worst.verdict == "pass":
        text += ". Not a pass, because the comparison is marked (below)"
    others = [_largest_of(comparison, name) for name in comparison.variants if name != headline]
    return " ".join([f"**{verdict.outcome.upper()}**: {text}.", *others])


def _largest_of(comparison: Comparison, variant: str) -> str:
    """The largest error of another variant over the cells that decided."""
    deciding = {(cell.metric, cell.statistic) for cell in comparison.verdict.cells}
    worst = max(
        (cell for cell in comparison.cells if cell.variant == variant and (cell.metric, cell.statistic) in deciding),
        key=lambda cell: cell.error_size,
    )
    return f"For comparison, `{variant}`: largest error {_percent(worst.relative_error)} at {worst.name}."


def _caveats(comparison: Comparison) -> list[str]:
    lines = [f"- **Marked**: {text}." for text in comparison.marks]
    if comparison.verdict.unjudged and comparison.verdict.cells:
        cells = ", ".join(cell.name for cell in comparison.verdict.unjudged)
        lines.append(f"- Too few samples to judge: {cells}.")
    lines += [f"- Note: {text}." for text in comparison.notes]
    return ["\n".join(lines)] if lines else []


def latency_table(comparison: Comparison) -> str:
    """The Markdown table of real and simulated latencies in milliseconds, one row per metric and percentile."""
    variants = comparison.variants
    repeats = len(comparison.real_repeats)
    real = "real" if repeats == 1 else f"real (median of {repeats})"
    header = ["latency [ms]", real, "real spread", *[text for name in variants for text in (name, "error")], "samples"]
    rows = []
    # Cells go by metric, percentile and variant, so each run of len(variants) cells is a row.
    for start in range(0, len(comparison.cells), len(variants)):
        cells = comparison.cells[start : start + len(variants)]
        first = cells[0]
        row = [
            first.name + (" †" if first.verdict == "insufficient" else ""),
            _ms(first.real_ns),
            _spread(first.real_spread),
        ]
        for cell in cells:
            error = _percent(cell.relative_error) if cell.num_real_samples else "–"
            row += [_ms(cell.sim_ns), f"**{error}**" if cell.variant == comparison.headline else error]
        rows.append([*row, f"{first.num_real_samples:,}"])
    return _markdown(header, rows, numeric_from=1)


def _table_notes(comparison: Comparison) -> str:
    lines = ["error = (simulated - real) / real: negative where the simulation is too fast."]
    if len(comparison.real_repeats) > 1:
        lines.append(
            "Real spread = (max - min) / median over the real repeats: an error no larger than it is within run-to-run noise."
        )
    if any(cell.verdict == "insufficient" for cell in comparison.cells):
        lines.append("† Fewer than ten samples beyond the percentile: shown, not judged.")
    return " ".join(lines)


def _without_figure(comparison: Comparison) -> list[str]:
    empty = dict.fromkeys(cell.metric for cell in comparison.cells if not cell.num_real_samples)
    return [f"{METRIC_NAMES[metric]} has no samples, so it has no figure." for metric in empty]


def _alignment(comparison: Comparison) -> str:
    counts = comparison.alignment_counts
    header = [
        "real run",
        "variant",
        "requests",
        "compared",
        "failed",
        "no token",
        "early stops",
        "tokens compared",
        "simulated tokens cut",
    ]
    rows = [
        [str(value) if isinstance(value, str) else f"{value:,}" for value in row]
        for row in counts.itertuples(index=False)
    ]
    text = (
        "Both sides played the same workload: same requests, intended arrivals, prompt lengths and requested output lengths (checked). A "
        "request that failed or gave no token in the real run is left out on both sides. The simulated series of each request is cut to the "
        "number of tokens the engine really produced (`num_decode_tokens_actual`)."
    )
    return f"{text}\n\n{_markdown(header, rows, numeric_from=2)}"


def _settings(comparison: Comparison) -> str:
    parity = comparison.settings_parity
    rows = []
    for setting in COMPARED_SETTINGS:
        found = parity.loc[parity["setting"] == setting].to_dict("records")
        shown = {row["variant"]: _SHOWN_PARITY[row["parity"]].format(row["simulated"]) for row in found}
        rows.append([f"`{setting}`", found[0]["real"], *[shown[name] for name in comparison.variants]])
    header = ["setting", "engine reported", *[f"{name} assumed" for name in comparison.variants]]
    return _markdown(header, rows, numeric_from=len(header))


def _runs(comparison: Comparison) -> str:
    meta = comparison.real_repeats[0].meta
    settings = meta.engine_settings
    hardware = meta.hardware
    driver = f", driver {hardware.driver}" if hardware.driver else ""
    lines = [
        f"- Workload `{meta.workload_id}`, model {meta.model} ({settings.dtype}), scenario `{meta.hydra.config_name}`"
        + (
            f" with overrides {', '.join(f'`{text}`' for text in meta.hydra.overrides)}" if meta.hydra.overrides else ""
        ),
        f"- Device: {hardware.device_count} x {hardware.device_name} (`{hardware.hardware_id}`){driver}; {meta.env.get('platform', 'platform not recorded')}, "
        f"Python {meta.env.get('python', 'not recorded')}",
        f"- Engine: {settings.backend} {settings.engine_version}, attention {settings.attention_backend}",
    ]
    for run in comparison.real_repeats:
        lateness = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in run.meta.lateness_ns.items())
        lines.append(
            f"- Real run `{run.meta.run_id}`: {_started(run)}, repeat {run.meta.repeat_index + 1} of {run.meta.num_repeats}, "
            f"{_revision(run)}; send lateness [ms] {lateness or 'not recorded'}"
        )
    for name, sim in comparison.simulations.items():
        vidur = sim.meta.env.get("packages", {}).get("vidur", "version not recorded")
        lines.append(
            f"- Simulation `{sim.meta.run_id}` ({name}): {_started(sim)}, Vidur {vidur}, predictor {sim.meta.predictor}, {_revision(sim)}"
        )
    return "\n".join(lines)


def _started(run: RealRun | SimulatedRun) -> str:
    return run.meta.started_at.strftime("%Y-%m-%d %H:%M:%S %Z")


def _revision(run: RealRun | SimulatedRun) -> str:
    meta = run.meta
    if meta.git_commit is None:
        return "code revision unknown"
    return f"commit {meta.git_commit[:12]}" + (" with local changes" if meta.git_dirty else "")


def _method(comparison: Comparison) -> str:
    bands = comparison.bands
    lines = [
        *[f"- {METRIC_NAMES[metric]}: {_METRIC_WORDS[metric]}." for metric in METRICS],
        "- Percentiles interpolate linearly between order statistics (numpy `linear`). With several repeats, each side's value is the median "
        "over repeats of the percentile in each repeat; the simulation is aligned to each repeat.",
        f"- Verdict of a cell: |error| at most {100 * bands.pass_band:g} % pass, at most {100 * bands.warn_band:g} % warn, beyond fail; "
        "insufficient with fewer than ten samples beyond the percentile (20 samples for P50, 100 for P90, 1,000 for P99). Overall: the worst "
        f"sufficient cell of `{comparison.headline}` among {' and '.join(f'P{p}' for p in DECIDING_PERCENTILES)} of TTFT, ITL and E2E; a marked "
        "comparison is at best warn. P99 is shown and does not decide.",
        "- Lateness of the driver stays inside the real TTFT (no coordinated omission); the simulation knows none.",
        "- The bands judge point estimates. Requests share batches, so samples depend on each other, and no confidence interval is given.",
    ]
    return "\n".join(lines)


def _files(figures: Sequence[Figure]) -> str:
    described = {
        LatencyErrors: "the table above with every digit",
        RepeatLatencies: "each percentile of each real repeat",
        RequestErrors: "every compared request, simulated beside real",
        AlignmentCounts: "what alignment kept and left out",
        SettingsParity: "engine settings beside what each simulation assumed",
    }
    lines = [
        f"- [{TABLES}/{model.file_name()}]({TABLES}/{model.file_name()}): {what}" for model, what in described.items()
    ]
    lines += [f"- [{FIGURES}/{figure.file_name}]({FIGURES}/{figure.file_name})" for figure in figures]
    return "\n".join([*lines, f"- {Kind.COMPARISON.meta_name}: run directories, digests, scenario, versions"])


# --- formatting -------------------------------------------------------------------------------------------------------


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int) -> str:
    """A Markdown table; columns from `numeric_from` on are right-aligned."""
    rule = ["---:" if number >= numeric_from else "---" for number in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _ms(value_ns: float) -> str:
    """Milliseconds with three significant digits, or all before the point."""
    if pd.isna(value_ns):
        return "–"
    value = value_ns / 1e6
    decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def _percent(relative: float) -> str:
    if pd.isna(relative):
        return "undefined"
    return f"{100 * relative:+.1f} %"


def _spread(relative: float) -> str:
    return "–" if pd.isna(relative) else f"{100 * relative:.1f} %"
