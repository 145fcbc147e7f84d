"""The tables of the report's folded sections, as blocks. Every number comes from `judged_errors`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from gst_assets.analysis.answer import JUDGEMENT_WORDS, Answer, DecidingCell, judgement
from gst_assets.analysis.cached_tokens import NOT_KNOWN, counts, equal_of, hit_rates
from gst_assets.analysis.gate import COMPARED_SETTINGS, Check
from gst_assets.analysis.judged_errors import NOT_AVAILABLE, Comparison
from gst_assets.analysis.measures import MEASURE_NAMES, MEASURES, STATISTICS
from gst_assets.analysis.report_blocks import (
    Block,
    Grid,
    Heading,
    Text,
    median,
    term,
)
from gst_assets.contracts.documents import MachineRecord
from gst_assets.formats import (
    MISSING,
    error_percent,
    interval,
    milliseconds,
    number,
    rate,
    signed_milliseconds,
    signed_percent,
    unsigned_percent,
    value_range,
)

_SHOWN_PARITY = {"equal": "{}", "differs": "**{} (differs)**", "not_recorded": "**not recorded**"}
_OTHER_REPEATS = "the other real repeats"
_HIT_RATES = ("real_hit_rate", "other_hit_rate")
_SHOWN_FACTOR = {"num_prefill_tokens": "prompt length [tokens]", "num_in_system": "others in the system"}


def deciding_grid(answer: Answer) -> Grid:
    """The cells that decide one variant's verdict: the error first, so that a narrow screen shows it."""
    rows = [
        (
            _cell_name(cell),
            error_percent(cell.error),
            interval(cell.low, cell.high),
            JUDGEMENT_WORDS[cell.verdict],
            milliseconds(cell.real),
            milliseconds(cell.simulated),
            unsigned_percent(cell.spread),
        )
        for cell in answer.cells
    ]
    header = (
        "latency [ms]", term("error", "error"), term("95 % interval", "interval"), term("verdict", "verdict"), "real",
        "simulated", term("spread", "spread"),
    )  # fmt: skip
    return Grid(header, tuple(rows), 1, tuple(cell.verdict for cell in answer.cells))


def rates_grid(answer: Answer) -> Grid:
    """Throughput and goodput of one variant and of the engine, per second."""
    rows = [
        (
            cell.name,
            error_percent(cell.error),
            interval(cell.low, cell.high),
            JUDGEMENT_WORDS[cell.verdict],
            rate(cell.real),
            rate(cell.simulated),
            unsigned_percent(cell.spread),
        )
        for cell in answer.rates
    ]
    header = ("per second", "error", "95 % interval", "verdict", "real", "simulated", "spread")
    return Grid(header, tuple(rows), 1, tuple(cell.verdict for cell in answer.rates))


def capacity_grid(comparison: Comparison) -> Grid:
    """Capacity of each variant that was searched, and the engine's, in requests per second."""
    rows = [
        (
            one.variant,
            error_percent(one.relative_error),
            interval(one.interval_low, one.interval_high),
            JUDGEMENT_WORDS[judgement(one.verdict)],
            _between(one.real_low_per_s, one.real_high_per_s),
            _between(one.sim_low_per_s, one.sim_high_per_s),
            one.reason,
        )
        for one in comparison.capacities
    ]
    header = ("requests/s", "error", "between", "verdict", "real", "simulated", "not found because")
    return Grid(header, tuple(rows), 1, tuple(judgement(one.verdict) for one in comparison.capacities))


def _between(low: float, high: float) -> str:
    return f"{rate(low)} to {'open' if math.isinf(high) else rate(high)}"


def causes_grid(answers: Sequence[Answer]) -> Grid:
    """The named causes of variants' errors, with the share of the error that each explains."""
    rows = tuple(
        (one.cell, answer.variant, unsigned_percent(one.share), f"**{one.name}**", one.evidence)
        for answer in answers
        for one in answer.causes
    )
    return Grid(("error of", "variant", "explains", "cause", "evidence"), rows, 5)


def carry_grid(answer: Answer) -> Grid:
    """How far each deciding error carries to other workloads of the kind, and its interval on this one."""
    rows = tuple(
        (cell.name, error_percent(cell.error), interval(cell.low, cell.high), interval(cell.carry_low, cell.carry_high))
        for cell in answer.cells
    )
    return Grid(("latency", "error", "on this workload", "on others of the kind"), rows, 1)


def _cell_name(cell: DecidingCell) -> str:
    """The cell's name, its measure linked to what it means."""
    first, _, rest = cell.name.partition(" ")
    return f"{term(first, cell.metric)} {rest}".rstrip()


def latency_grid(comparison: Comparison) -> Grid:
    """Real and simulated latencies in milliseconds, one row per metric and statistic; the headline's error and interval
    first."""
    variants, repeats = comparison.variants, len(comparison.real_repeats)
    others = [name for name in variants if name != comparison.headline]
    rows = []
    # Cells go by metric, statistic and variant, so each run of len(variants) cells is a row.
    for start in range(0, len(comparison.cells), len(variants)):
        cells = {cell.variant: cell for cell in comparison.cells[start : start + len(variants)]}
        cell, present = cells[comparison.headline], cells[comparison.headline].num_real_samples > 0
        missing = "not available" if cell.reason == NOT_AVAILABLE else "–"
        row = [
            cell.name + (" †" if cell.sign == "†" else ""),
            error_percent(cell.relative_error) if present else missing,
            f"{interval(cell.interval_low, cell.interval_high)} {cell.sign}".strip(" †") or "–",
            (f"**{cell.verdict}**" if cell.required else cell.verdict) if present else "–",
            # The same in every variant, except in one that has no samples to compare with.
            milliseconds(next((one.real_ns for one in cells.values() if one.num_real_samples), math.nan)),
            unsigned_percent(cell.real_spread),
            milliseconds(cell.sim_ns),
        ]
        for name in others:
            shown = cells[name].num_real_samples > 0
            row += [milliseconds(cells[name].sim_ns), error_percent(cells[name].relative_error) if shown else "–"]
        if repeats > 1:
            row.append("–" if math.isnan(cell.error_to_noise) else f"{cell.error_to_noise:.1f}")
        rows.append((*row, f"{cell.num_real_samples:,}"))
    real = "real" if repeats == 1 else f"real (median of {repeats})"
    header = ["latency [ms]", "error", "95 % interval", "verdict", real, "spread", comparison.headline]
    header += [text for name in others for text in (name, "error")]
    header += ["error / spread"] if repeats > 1 else []
    return Grid((*header, "samples"), tuple(rows), 1)


def ranking_grid(comparison: Comparison, *, is_brief: bool = False) -> Grid:
    """The deciding statistics of every simulation side by side, the one with the smallest mean error first. Brief, as a
    terminal has room for: one verdict a simulation instead of one a statistic."""
    bands = comparison.bands
    required = [(metric, statistic) for metric in bands.required_metrics for statistic in bands.required_statistics]
    cells = {(cell.variant, cell.metric, cell.statistic): cell for cell in comparison.cells}
    shared = [
        key for key in required if all(math.isfinite(cells[name, *key].relative_error) for name in comparison.variants)
    ]
    mean = {
        name: sum(abs(cells[name, *key].relative_error) for key in shared) / len(shared) if shared else math.nan
        for name in comparison.variants
    }
    ranked = sorted(comparison.variants, key=lambda name: mean[name])
    rows = [("verdict", *(JUDGEMENT_WORDS[comparison.answers[name].verdict] for name in ranked))] if is_brief else []
    for metric, statistic in required:
        row = [cells[ranked[0], metric, statistic].name]
        for name in ranked:
            cell = cells[name, metric, statistic]
            if not cell.num_real_samples:
                row.append("not available" if cell.reason.startswith("not available") else "–")
                continue
            known = interval(cell.interval_low, cell.interval_high)
            verdict = "" if is_brief else f", {JUDGEMENT_WORDS[judgement(cell.verdict)]}"
            row.append(f"{error_percent(cell.relative_error)} ({known}){verdict}")
        rows.append(tuple(row))
    size = "mean size" if is_brief else "**mean size**"
    rows.append((size, *(unsigned_percent(mean[name]) for name in ranked)))
    header = ("latency", *(f"{place}. {name}" for place, name in enumerate(ranked, 1)))
    return Grid(header, tuple(rows), len(header))


def repeats_grid(comparison: Comparison) -> Grid:
    """Each statistic of each real repeat, in milliseconds."""
    table = comparison.repeat_latencies
    ids = [run.meta.run_id for run in comparison.real_repeats]
    values = {(row["metric"], row["statistic"], row["run_id"]): row["value_ns"] for row in table.to_dict("records")}
    rows = [
        (f"{MEASURE_NAMES[measure]} {statistic if statistic == 'mean' else statistic.upper()}",
         *(milliseconds(values[measure, statistic, run_id]) for run_id in ids))
        for measure in MEASURES
        for statistic in STATISTICS
    ]  # fmt: skip
    return Grid(("latency [ms]", *(f"repeat {place + 1}" for place in range(len(ids)))), tuple(rows), 1)


def checks_grid(checks: Sequence[Check]) -> Grid:
    """What was looked at, in order."""
    shown = {"ok": "in order", "note": "note", "mark": "**mark**"}
    rows = tuple(
        (one.check, one.run, shown[one.severity], one.real or "–", one.simulated or "–", one.finding) for one in checks
    )
    return Grid(("check", "run", "result", "real", "simulated", "finding"), rows, 6)


def machine_grid(records: Mapping[str, MachineRecord | None]) -> Grid:
    """The machine during each measurement, by its name; a dash where it does not report a value."""
    rows = []
    for name, record in records.items():
        if record is None:
            rows.append((name, *("–" for _ in range(9))))
            continue
        states = [record.before, *record.windows]
        gpus = [state.gpu for state in states if state.gpu is not None]
        rows.append(
            (
                name,
                f"{record.num_cores}",
                unsigned_percent(_known(record.cpu_busy)),
                unsigned_percent(_known(record.cpu_others)),
                unsigned_percent(max((_known(one.cpu_others) for one in record.windows), default=math.nan)),
                unsigned_percent(_known(record.cpu_steal)),
                value_range([one.load_1m for one in states], 2),
                value_range([one.cpu_mhz for one in states], 0),
                value_range([one.temperature_c for one in gpus], 0),
                value_range([one.sm_clock_mhz for one in gpus], 0)
                + "".join(f", {name}" for name in sorted({name for one in gpus for name in one.slowed_by or ()})),
            )
        )
    header = (
        "measured",
        "cores",
        "busy",
        "busy with others",
        "worst window of others",
        "stolen",
        "load (1 min)",
        "cores [MHz]",
        "GPU [°C]",
        "GPU clock [MHz]",
    )
    return Grid(header, tuple(rows), 1)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def paired_grid(comparison: Comparison) -> Grid:
    """Errors request by request and distances of the distributions, medians over repeats."""
    table = comparison.paired_errors
    rows = []
    for measure in MEASURES:
        for variant in comparison.variants:
            mine = table[(table["metric"] == measure) & (table["variant"] == variant)]
            middle = {name: median(mine[name]) for name in mine.columns if mine[name].dtype == "float64"}
            shares = [unsigned_percent(middle[name]) for name in ("mape", "median_ape")]
            rows.append(
                (
                    MEASURE_NAMES[measure],
                    variant,
                    *shares,
                    signed_percent(middle["bias"]),
                    number(middle["rank_correlation"], 3),
                    milliseconds(middle["wasserstein_ns"]),
                    number(middle["ks_distance"], 3),
                )
            )
    header = ("latency", "variant", "MAPE", "median APE", "bias", "rank correlation", "Wasserstein-1 [ms]", "KS D")
    return Grid(header, tuple(rows), 2)


def groups_grid(comparison: Comparison) -> Grid:
    """The headline's errors by prompt length and by load."""
    table = comparison.error_groups
    rows = [
        (
            MEASURE_NAMES[row["metric"]],
            _SHOWN_FACTOR[row["factor"]],
            f"{row['low']:,} to {row['high']:,}" if row["low"] < row["high"] else f"{row['low']:,}",
            signed_percent(row["median"]),
            f"{signed_percent(row['p10'])} to {signed_percent(row['p90'])}",
            f"{row['num_requests']:,}",
        )
        for row in table[table["variant"] == comparison.headline].to_dict("records")
    ]
    header = ("error of", "by", "from", "median error", "10 to 90 % of requests", "requests x repeats")
    return Grid(header, tuple(rows), 2)


def stages_blocks(comparison: Comparison) -> list[Block]:
    """Mean errors by stage of a request."""
    rows = [
        (
            row["stage"],
            row["variant"],
            milliseconds(row["real_mean_ns"]),
            milliseconds(row["sim_mean_ns"]),
            signed_milliseconds(row["error_ns"]),
            signed_percent(row["relative_error"]),
            signed_percent(row["share_of_e2e_error"]),
            milliseconds(row["real_lateness_ns"]),
        )
        for row in comparison.stage_errors.to_dict("records")
    ]
    header = (
        "stage",
        "variant",
        "real, mean [ms]",
        "simulated",
        "error [ms]",
        "error",
        "share of the E2E error",
        "lateness in it [ms]",
    )
    text = (
        "Stages of a request: queueing from intended arrival to first scheduling, prefill from there to the first"
        " token, decode from there to the last; their mean errors add up to that of E2E. Shares are signed: where"
        " stages have errors of opposite sign, shares exceed 100 %."
    )
    return [Heading("Stages", 3), Grid(header, tuple(rows), 2), Text(text)]


def step_costs_blocks(comparison: Comparison) -> list[Block]:
    """The cost model apart from scheduling."""
    table = comparison.step_costs
    if table.empty:
        return []
    rows = [
        (
            row["step_kind"],
            f"{row['num_steps']:,}",
            milliseconds(row["real_median_ns"]),
            milliseconds(row["predicted_median_ns"]),
            signed_percent(row["median_error"]),
            unsigned_percent(row["p90_absolute_error"]),
            signed_percent(row["total_error"]),
        )
        for row in table.to_dict("records")
    ]
    header = (
        "steps",
        "real ones",
        "real, median [ms]",
        "predicted",
        "median error",
        "P90 of its size",
        "error of the sum",
    )
    text = (
        "What the profile's terms say of the very steps that ran, from when the device could begin a step until its"
        " tokens were at the host. What is wrong here is the cost model's; what else is wrong with a latency is the"
        " scheduler's or the queue's."
    )
    return [Heading("Step costs", 3), Grid(header, tuple(rows), 1), Text(text)]


def cached_tokens_grid(comparison: Comparison) -> Grid:
    """Hit rates of the prefix cache and cached tokens request by request: each variant, and the repeats among each
    other."""
    table = comparison.cached_tokens
    between = table[~table["compared_with"].isin(comparison.variants)]
    groups = {name: table[table["compared_with"] == name] for name in comparison.variants}
    groups |= {_OTHER_REPEATS: between} if len(between) else {}
    rows = []
    for name, mine in groups.items():
        differing = mine["num_requests"] - mine["num_equal"]
        middle, largest = mine["median_difference_tokens"].median(), mine["max_difference_tokens"].max()
        is_known = bool(mine["num_equal"].notna().all())
        rows.append(
            (
                name,
                # Of repeats among each other these are the same rates as above, on either side.
                *(MISSING if name == _OTHER_REPEATS else hit_rates(mine[side]) for side in _HIT_RATES),
                equal_of(mine),
                counts(differing),
                (f"{middle:,g}" if largest else MISSING) if is_known else NOT_KNOWN,
                (f"{largest:,}" if largest else MISSING) if is_known else NOT_KNOWN,
            )
        )
    header = (
        "compared with the real ones",
        "hit rate, real",
        "hit rate, simulated",
        "requests equal",
        "not equal",
        "median difference [tokens]",
        "largest",
    )
    return Grid(header, tuple(rows), 1)


def steps_blocks(comparison: Comparison) -> list[Block]:
    """Steps compared with those of the real runs."""
    table = comparison.step_errors
    if table.empty:
        return [Heading("Steps", 3), Text("No real run recorded its steps (iterations.csv), so none are compared.")]
    rows = []
    for name in comparison.variants:
        rows += [_step_row(table[table["compared_with"] == name], name, kind) for kind in table["step_kind"].unique()]
    between = table[~table["compared_with"].isin(comparison.variants)]
    rows += [_step_row(between, _OTHER_REPEATS, kind) for kind in between["step_kind"].unique()]
    header = (
        "steps",
        "compared with the real ones",
        "real steps",
        "others",
        "real, mean [ms]",
        "other, mean [ms]",
        "difference",
        "same composition, in order",
    )
    text = (
        "Medians over the real repeats. Same composition: share of the real steps that the other run has too, with as"
        " many prompts, prompt tokens and decodes, in the same order (longest common subsequence). A step's time begins"
        " where the step before has ended."
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
        signed_percent(mine["relative_difference"].median()),
        unsigned_percent(mine["same_composition"].median()),
    )


def _simulation(comparison: Comparison, variant: str) -> str:
    return comparison.label(variant).replace(variant, f"`{variant}`")


def totals_grid(comparison: Comparison) -> Grid:
    """Each run as a whole."""
    rows = [
        (
            f"real `{row['run']}`" if row["side"] == "real" else _simulation(comparison, row["run"]),
            f"{row['duration_ns'] / 1e9:,.2f}",
            number(row["requests_per_s"], 2),
            number(row["tokens_per_s"], 1),
            f"{number(row['mean_running'], 1)} / {row['max_running']:.0f}",
            f"{number(row['mean_waiting'], 1)} / {row['max_waiting']:.0f}",
            milliseconds(row["scheduling_delay_ns"]),
            "–" if pd.isna(row["num_preemptions"]) else f"{row['num_preemptions']:.0f}",
            row["queue_source"],
        )
        for row in comparison.run_totals.to_dict("records")
    ]
    header = (
        "run",
        "duration [s]",
        "requests/s",
        "tokens/s",
        "running, mean / max",
        "waiting, mean / max",
        "mean scheduling delay [ms]",
        "preemptions",
        "queues from",
    )
    return Grid(header, tuple(rows), 1)


def alignment_grid(comparison: Comparison) -> Grid:
    """What alignment compared and left out."""
    header = (
        "real run",
        "variant",
        "requests",
        "compared",
        "failed",
        "no token",
        "early stops",
        "tokens compared",
        "simulated tokens cut",
    )
    rows = tuple(
        tuple("not known" if pd.isna(value) else value if isinstance(value, str) else f"{value:,}" for value in row)
        for row in comparison.alignment_counts.itertuples(index=False)
    )
    return Grid(header, rows, 2)


def settings_grid(comparison: Comparison) -> Grid:
    """Engine settings and what each simulation assumed."""
    parity = comparison.settings_parity
    rows = []
    for setting in COMPARED_SETTINGS:
        found = parity.loc[parity["setting"] == setting].to_dict("records")
        shown = {row["variant"]: _SHOWN_PARITY[row["parity"]].format(row["simulated"]) for row in found}
        rows.append((f"`{setting}`", found[0]["real"], *[shown[name] for name in comparison.variants]))
    header = ("setting", "engine reported", *[f"{name} assumed" for name in comparison.variants])
    return Grid(header, tuple(rows), len(header))
