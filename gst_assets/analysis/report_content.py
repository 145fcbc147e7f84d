"""What the report says and in which order, as blocks that `report_formats` turns into Markdown or HTML.

First the answer: its sentence, the cells that decide, one figure of them. Then everything else, folded. Words only;
every number comes from `judged_errors`, whose answers are the first screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gst_assets.analysis.alignment import states_workload
from gst_assets.analysis.answer import Answer
from gst_assets.analysis.bootstrap import NUM_REPLICATES
from gst_assets.analysis.cached_tokens import NOT_KNOWN, cached_tokens_sentence, hit_rates
from gst_assets.analysis.capacity_errors import capacity_sentence
from gst_assets.analysis.figures import Figure
from gst_assets.analysis.gate import PREEMPTIONS, TTFT_TWICE, device_of
from gst_assets.analysis.judged_errors import NOT_AVAILABLE, Comparison
from gst_assets.analysis.measures import MEASURE_NAMES, MEASURES, MIN_REQUESTS
from gst_assets.analysis.report_blocks import (
    Beside,
    Block,
    Contents,
    Definitions,
    Facts,
    File,
    Files,
    Heading,
    Items,
    Picture,
    Pictures,
    Section,
    Text,
    VerdictBlock,
)
from gst_assets.analysis.report_tables import (
    alignment_grid,
    cached_tokens_grid,
    capacity_grid,
    carry_grid,
    causes_grid,
    checks_grid,
    deciding_grid,
    groups_grid,
    latency_grid,
    machine_grid,
    paired_grid,
    ranking_grid,
    rates_grid,
    repeats_grid,
    settings_grid,
    stages_blocks,
    step_costs_blocks,
    steps_blocks,
    totals_grid,
)
from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.contracts.documents import NOT_STATED, MachineRecord, ProfileMeta, RealRunFacts
from gst_assets.contracts.store import Kind
from gst_assets.contracts.tables import (
    AlignmentCounts,
    CachedTokens,
    CapacityErrors,
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
    StepCosts,
    StepErrors,
    Table,
)
from gst_assets.foreign_text import inert_line, label
from gst_assets.formats import milliseconds, unsigned_percent

REPORT = "report.html"
TABLES = "tables"
FIGURES = "figs"
_MEASURE_WORDS = {
    "ttft": "time to first token: first token - intended arrival, one sample per request",
    "itl": "inter-token latency: gap to the previous token, pooled over all tokens after the first",
    "tpot": (
        "time per output token: a request's mean gap, (last compared token - first) / (tokens - 1), one sample per"
        " request; long requests weigh less than in ITL, and tools that print one under the name of the other disagree"
    ),
    "e2e": "end-to-end latency: last compared token - intended arrival, one sample per request",
    "normalized": "end-to-end latency over compared tokens, one sample per request",
    "normalized_execution": (
        "(last compared token - first scheduled) over compared tokens, one sample per request; preemptions are in it."
        " With E2E per token the two latencies that Vidur's paper (MLSys 2024) reports"
    ),
}
_VARIANTS = (
    "A way to simulate. `published`: Vidur as it ships, on operators measured here. `kernels`: the same sums with this"
    " project's corrections. `calibrated`: a measured model of what a step costs."
)

_CACHE_SETTINGS = ("enable_prefix_caching", "num_kv_blocks", "block_size")
_NO_EXPERTS = "`published` is not modelled: the model is a mixture of experts, and Vidur 0.0.26 has no expert layer."


def content(comparison: Comparison, figures: Sequence[Figure], profile: ProfileMeta | None = None) -> list[Block]:
    """The report. `figures` are those of `figures.planned_figures`, the one of the deciding cells first, or none;
    `profile` is the document of the headline's profile (`run_reading.read_profile`), None where it is not known."""
    answer = comparison.answer
    return [
        Heading(_title(comparison), 1),
        _facts(comparison),
        VerdictBlock(answer.verdict, answer.headline, answer.sentence),
        Beside((deciding_grid(answer), *_beside_it(comparison)), tuple(map(Picture, figures[:1]))),
        Contents(),
        *_sections(comparison, figures[1:], profile),
    ]


def verdict_sentence(comparison: Comparison) -> str:
    """The headline's answer in Markdown, e.g. ``**PASS**: `calibrated` predicts ...``."""
    return told(comparison.answer)


def told(answer: Answer) -> str:
    """An answer in Markdown: the verdict in a few words, and the sentence."""
    return f"**{answer.headline.upper()}**: {inert_line(answer.sentence)}"


# --- the first screen -------------------------------------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    meta = comparison.real_repeats[0].meta
    simulators = (
        "Vidur"
        if _all_own(comparison)
        else "simulations"
        if len(comparison.variants) > 1
        else f"simulation {comparison.headline}"
    )
    where = (
        f" on {meta.hardware.hardware_id or meta.hardware.device_name}"
        if meta.hardware and device_of(meta) != NOT_STATED
        else ""
    )
    return (
        f"{simulators[0].upper()}{simulators[1:]} against {meta.backend}: {meta.model}{where}, scenario"
        f" {_scenario_name(comparison)}"
    )


def _scenario_name(comparison: Comparison) -> str:
    """The one that was asked for: of the simulation, where that is this project's own. Recorded runs may have been
    measured under another name."""
    simulated = comparison.simulations[comparison.headline].meta
    return (simulated if simulated.imported is None else comparison.real_repeats[0].meta).hydra.config_name


def _scenario_fact(comparison: Comparison) -> str:
    asked, real = _scenario_name(comparison), comparison.real_repeats[0].meta
    if real.imported is not None or real.hydra.config_name == asked:
        return f"`{asked}`"
    return f"`{asked}`, measured as `{real.hydra.config_name}`"


def _all_own(comparison: Comparison) -> bool:
    """Whether every simulation is Vidur's: this project's own, or one that says whose profile it used."""
    return all(run.meta.imported is None for run in comparison.simulations.values())


def _facts(comparison: Comparison) -> Facts:
    meta = comparison.real_repeats[0].meta
    requests, repeats = int(comparison.alignment_counts["num_requests"].max()), len(comparison.real_repeats)
    seeds = 1 + len(comparison.further_seeds[comparison.headline])
    hardware, settings = meta.hardware, meta.engine_settings
    named = hardware is not None and hardware.device_count is not None and hardware.device_name is not None
    device = f"{hardware.device_count} x {hardware.device_name}" if hardware is not None and named else device_of(meta)
    version = settings.engine_version if settings else "version not stated"
    return Facts(
        (
            ("Scenario", _scenario_fact(comparison)),
            ("Model", meta.model),
            ("Hardware", device + (" (stated, not detected)" if hardware is not None and hardware.stated else "")),
            ("Engine", f"{settings.backend if settings else meta.backend} {version}"),
            ("Workload", f"{requests:,} requests{_loop_told(comparison.num_sessions)}"),
            ("Repeats", f"{repeats}, simulated with {seeds} {'seed' if seeds == 1 else 'seeds'}"),
            ("Measured", meta.started_at.strftime("%Y-%m-%d") if meta.started_at else NOT_STATED),
            ("Overrides", _overrides(comparison)),
        )
    )


def _overrides(comparison: Comparison) -> str:
    """What was overridden, of real runs and simulation apart where that differs, as it does with runs recorded
    before."""
    real, simulated = (
        ", ".join(f"`{text}`" for text in meta.hydra.overrides) or "none"
        for meta in (comparison.real_repeats[0].meta, comparison.simulations[comparison.headline].meta)
    )
    return real if real == simulated else f"real {real}; simulated {simulated}"


def _beside_it(comparison: Comparison) -> list[Block]:
    """What belongs to the answer: what caps it, what would settle it, and what the other variants come to."""
    answer = comparison.answer
    items = [f"Not a pass because: {text}." for text in answer.marks]
    unstated = [*comparison.real_repeats[0].unstated, *comparison.simulations[comparison.headline].unstated]
    if not all(run.has_tokens for run in (comparison.real_repeats[0], comparison.simulations[comparison.headline])):
        items.append(f"ITL: {NOT_AVAILABLE}.")
    twice = [one for one in comparison.checks if one.check == TTFT_TWICE and comparison.headline in one.variants]
    items += [f"{one.finding[0].upper()}{one.finding[1:]}." for one in twice]
    if unstated:
        items.append(f"Not stated by these runs, so not checked: {'; '.join(dict.fromkeys(unstated))}.")
    items += [f"To settle it: {text.rstrip('.')}." for text in answer.more]
    if comparison.capacities:
        items.append(capacity_sentence(comparison.capacities, comparison.capacity_criterion) + ".")
    items += [
        f"For comparison, **{other.headline}**: {other.sentence}"
        for name, other in comparison.answers.items()
        if name != comparison.headline
    ]
    if _has_experts(comparison):
        items.append(_NO_EXPERTS)
    return [Items(tuple(items))] if items else []


def _has_experts(comparison: Comparison) -> bool:
    """Whether the headline simulation says that its model is a mixture of experts."""
    return bool(_param(comparison.simulations[comparison.headline], "model", "geometry", "num_experts"))


def _param(run: RealRun | SimulatedRun, *keys: str) -> float | None:
    """A number of the scenario that the run states it was made with; None where it does not."""
    value: Any = run.meta.params
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, (int, float)) else None


# --- folded -----------------------------------------------------------------------------------------------------------


def _sections(comparison: Comparison, figures: Sequence[Figure], profile: ProfileMeta | None) -> list[Section]:
    answer = comparison.answer
    by_name = {figure.file_name: figure for figure in figures}

    def pictures(*names: str) -> list[Block]:
        drawn = tuple(by_name[name] for name in names if name in by_name)
        return [Pictures(drawn)] if drawn else []

    return [
        Section("Why the errors", tuple(_causes(comparison)), _causes_told(answer)),
        Section(
            "All latencies",
            (latency_grid(comparison), Text(_table_notes(comparison)), *pictures("errors.png")),
            "every statistic of every variant",
        ),
        Section(
            "Other workloads of the kind",
            (
                carry_grid(answer),
                Text(
                    "The verdict is about this workload. How far its errors carry to other requests of the same kind is"
                    " estimated apart, by resampling the requests in blocks; it decides nothing."
                ),
            ),
            "how far the errors carry",
        ),
        Section(
            "Throughput and queues",
            (
                *([rates_grid(answer)] if answer.rates else []),
                totals_grid(comparison),
                *pictures("timeline.png"),
            ),
            "requests and tokens per second, running and waiting",
        ),
        *_capacity(comparison),
        Section("Distributions", tuple(_distributions(comparison, pictures)), "TTFT and ITL as a whole"),
        Section(
            "Request by request",
            (
                paired_grid(comparison),
                Text(
                    "MAPE and median APE: mean and median of |relative error|; bias: mean of the signed one; rank"
                    " correlation: Spearman's. Wasserstein-1 and Kolmogorov-Smirnov D compare distributions; D is an"
                    " effect size, without a p-value, since requests share batches. Medians over repeats."
                ),
                *pictures("ttft_per_request.png", "worst_requests.png"),
            ),
            "each request's error",
        ),
        Section(
            "Where the errors are",
            (
                groups_grid(comparison),
                *pictures("error_drivers.png"),
                *stages_blocks(comparison),
                *steps_blocks(comparison),
                *step_costs_blocks(comparison),
            ),
            "by prompt length, load, stage and step",
        ),
        *_prefix_cache(comparison),
        *_side_by_side(comparison),
        _checks(comparison),
        _machine(comparison, (profile.machine if profile else None) or ()),
        Section("Settings", (settings_grid(comparison),), "what the engine reported, what each simulation assumed"),
        Section(
            "Repeats", (repeats_grid(comparison),), f"each statistic of the {len(comparison.real_repeats)} real runs"
        ),
        Section(
            "Alignment",
            (
                Text(_alignment_told(comparison)),
                alignment_grid(comparison),
            ),
            "what was compared, what was left out",
        ),
        Section("Runs and versions", (_runs(comparison, profile),), "where, when and with what it was measured"),
        Section("Definitions and method", tuple(_definitions(comparison)), "what the words and numbers mean"),
        Section("Files", (_files(comparison, figures),), "the numbers with every digit"),
    ]


def _side_by_side(comparison: Comparison) -> list[Section]:
    """Several simulations of the real run, best first."""
    if len(comparison.variants) < 2:
        return []
    text = Text(
        "Best first: by the mean size of the errors that decide, over the cells that every simulation has. Each column:"
        " error, its 95 % interval, verdict. A rank says nothing where intervals overlap."
    )
    return [Section("Simulations side by side", (ranking_grid(comparison), text), "a column each, ranked by error")]


def _loop_told(num_sessions: int | None) -> str:
    return "" if num_sessions is None else f" in {num_sessions:,} sessions whose turns wait for answers (closed loop)"


def _alignment_told(comparison: Comparison) -> str:
    runs: list[RealRun | SimulatedRun] = [*comparison.real_repeats, *comparison.simulations.values()]
    arrivals = (
        "intended arrivals"
        if comparison.num_sessions is None
        else "sessions and think times, a turn arriving on each side when its own answers had come"
    )
    same = (
        f"Both sides played the same workload: same requests, {arrivals}, prompt lengths and requested output lengths"
        " (checked). "
        if states_workload(*runs)
        else (
            "Not every run states its workload: requests are joined as Checks says, prompt lengths are the same"
            " (checked), arrivals and requested output lengths may differ. "
        )
    )
    return (
        f"{same}A request that failed or gave no token in the real run is left out on both sides. The simulated series"
        " of each request is cut to the number of tokens the engine really produced (`num_decode_tokens_actual`)."
    )


def _capacity(comparison: Comparison) -> list[Section]:
    if not comparison.capacities:
        return []
    text = Text(
        f"Searched for: {comparison.capacity_criterion}. A capacity lies between the highest rate that was kept and the"
        " lowest that was broken, its error between what these allow. Each probe is one run, so the verdict is warn at"
        " best; it decides nothing."
    )
    return [Section("Capacity", (capacity_grid(comparison), text), "the highest rate that is served in time")]


def _prefix_cache(comparison: Comparison) -> list[Section]:
    """Cached tokens, where a run has a prefix cache."""
    table = comparison.cached_tokens
    if table.empty:
        return []
    mine = table[table["compared_with"] == comparison.headline]
    text = (
        "Hit rate: tokens taken from the prefix cache over prompt tokens; of several repeats median and range. Cached"
        " tokens of a request count when it is first scheduled, so not again after a preemption. Differences are of"
        " the requests that are not equal."
    )
    bearing = [
        f"{row['setting']}: engine {row['real']}, {row['variant']} {row['simulated']}"
        for row in comparison.settings_parity.to_dict("records")
        if row["setting"] in _CACHE_SETTINGS and row["parity"] == "differs"
    ]
    preempted = [*comparison.run_totals["num_preemptions"].dropna()]
    preempted += [run.meta.num_preemptions or 0 for run in comparison.simulations.values()]
    if any(preempted):
        bearing += [one.finding for one in comparison.checks if one.check == PREEMPTIONS and one.finding]
    return [
        Section(
            "Prefix cache",
            (
                Text(cached_tokens_sentence(table, comparison.headline)),
                cached_tokens_grid(comparison),
                Text(text),
                *([Text(f"What else is known of the two caches: {'; '.join(bearing)}.")] if bearing else []),
            ),
            f"hit rate real {hit_rates(mine['real_hit_rate'])}, simulated {hit_rates(mine['other_hit_rate'])}",
        )
    ]


def _causes(comparison: Comparison) -> list[Block]:
    text = Text(
        "A cause is named with the share of the error that goes with it when it is removed, the largest first; what is"
        " left is unexplained. Shares are signed: a cause whose removal reverses the error's sign has more than 100 %."
        " Rules over measured evidence say what is likely; they prove nothing."
    )
    band, answer = f"{100 * comparison.bands.pass_band:g} %", comparison.answer
    mine: list[Block] = (
        [causes_grid([answer]), text]
        if answer.causes
        else [
            Text(
                f"No error of `{answer.variant}` {_beyond(answer, comparison.bands.pass_band)}{band}, so no cause was"
                " looked for."
            )
        ]
    )
    others = [one for name, one in comparison.answers.items() if name != comparison.headline and one.causes]
    if others:
        mine.append(Section("Causes of the other variants' errors", (causes_grid(others),), nested=True))
    return mine


def _beyond(answer: Answer, band: float) -> str:
    """An error without an interval may be beyond the band; no cause is looked for."""
    return "that has an interval is beyond " if any(abs(cell.error) > band for cell in answer.cells) else "is beyond "


def _causes_told(answer: Answer) -> str:
    if not answer.causes:
        return "nothing beyond the pass band"
    return ", ".join(dict.fromkeys(one.name for one in answer.causes))


def _distributions(comparison: Comparison, pictures: Callable[..., list[Block]]) -> list[Block]:
    empty = dict.fromkeys(cell.metric for cell in comparison.cells if not cell.num_real_samples)
    missing: list[Block] = [
        Text(f"{MEASURE_NAMES[metric]} has no samples, so it has no figure.")
        for metric in empty
        if metric == "itl" and not any(name == metric for name, _ in comparison.curves)
    ]
    return [*pictures("ttft_cdf.png", "itl_cdf.png", "qq.png"), *missing]


def _checks(comparison: Comparison) -> Section:
    passed = [one for one in comparison.checks if one.severity == "ok"]
    rest = [one for one in comparison.checks if one.severity != "ok"]
    blocks: list[Block] = [checks_grid(rest)] if rest else [Text("Everything that was looked at is in order.")]
    if passed:
        title = f"{len(passed)} checks in order"
        blocks.append(Section(title, (checks_grid(passed),), nested=True))
    marks = sum(one.severity == "mark" for one in rest)
    return Section("Checks", tuple(blocks), f"{marks} marked, {len(rest) - marks} noted, {len(passed)} in order")


def _machine(comparison: Comparison, calibration: Sequence[MachineRecord | None]) -> Section:
    records = {f"repeat {place + 1}": run.meta.machine for place, run in enumerate(comparison.real_repeats)}
    records |= {f"calibration round {place + 1}": record for place, record in enumerate(calibration)}
    if not any(records.values()):
        text = "Not recorded: these runs were made by a version, or by another program, that does not record it."
        return Section("Machine", (Text(text),), "not recorded")
    seen = [record for record in records.values() if record is not None]
    worst = max((record.cpu_others for record in seen if record.cpu_others is not None), default=None)
    text = (
        "Shares of the time of all cores while it was measured: busy with anything, busy with programs other than"
        " driver and engine, taken by the hypervisor. Worst window: the stretch (about a second) in which others took"
        " most. A value that the machine does not report is a dash, never a guess. One sample took at most"
        f" {milliseconds(max(record.sampling_ns_max for record in seen), '.2f')} ms."
    )
    line = "not reported" if worst is None else f"other programs took up to {unsigned_percent(worst, 0)} of the cores"
    return Section("Machine", (machine_grid(records), Text(text)), line)


def _table_notes(comparison: Comparison) -> str:
    lines = [
        "error = (simulated - real) / real: negative where the simulation is too fast; its 95 % interval in per cent."
        " Bold verdicts decide."
    ]
    if len(comparison.real_repeats) > 1:
        lines.append(
            "Spread: (max - min) / median of the real repeats; an error no larger than it is within run-to-run noise"
            " (error / spread at most 1)."
        )
    if any(cell.sign == "†" for cell in comparison.cells):
        lines.append(f"† Fewer than {MIN_REQUESTS} requests or ten samples beyond the percentile: shown, not judged.")
    if any(cell.sign == "‡" for cell in comparison.cells if cell.variant == comparison.headline):
        lines.append(
            "‡ The interval rests on fewer than five repeats (with one repeat: on too few independent requests), and"
            " may cover less than it claims."
        )
    return " ".join(lines)


def _runs(comparison: Comparison, profile: ProfileMeta | None) -> Items:
    meta = comparison.real_repeats[0].meta
    settings = meta.engine_settings
    hardware = meta.hardware
    driver = f", driver {hardware.driver}" if hardware and hardware.driver else ""
    overrides = (
        f" with overrides {', '.join(f'`{text}`' for text in meta.hydra.overrides)}" if meta.hydra.overrides else ""
    )
    quantised = f", weights {settings.quantization}" if settings and settings.quantization else ""
    dtype = f" ({settings.dtype}{quantised})" if settings else ""
    workload = f"Workload `{meta.workload_id}`" if meta.workload_id else "Workload not identified"
    if hardware and hardware.device_name and hardware.device_count and hardware.hardware_id:
        device = f"{hardware.device_count} x {hardware.device_name} (`{hardware.hardware_id}`){driver}"
    else:
        device = device_of(meta)
    lines = [
        f"{workload}, model {meta.model}{dtype}, scenario `{meta.hydra.config_name}`{overrides}",
        (
            f"Device: {device}; {meta.env.get('platform', 'platform not recorded')}, Python"
            f" {meta.env.get('python', 'not recorded')}"
        ),
        _engine(meta),
        *_experts(comparison, profile),
    ]
    for run in comparison.real_repeats:
        lateness = ", ".join(f"{name} {milliseconds(value, '.2f')}" for name, value in run.meta.lateness_ns.items())
        number = (
            f"repeat {run.meta.repeat_index + 1} of {run.meta.num_repeats}, "
            if run.meta.repeat_index is not None and run.meta.num_repeats is not None
            else ""
        )
        lines.append(
            f"Real run `{run.meta.run_id}`: {_started(run)}, {number}"
            f"{_revision(run)}; send lateness [ms] {lateness or 'not recorded'}{_imported(run)}"
        )
    for name, sim in comparison.simulations.items():
        vidur = sim.meta.env.get("packages", {}).get("vidur", "version not recorded")
        what = f"Vidur {vidur}, " if sim.meta.imported is None else ""
        predictor = f"predictor {sim.meta.predictor}, " if sim.meta.predictor else ""
        lines.append(
            f"Simulation `{sim.meta.run_id}` ({name}): {_started(sim)},"
            f" {what}{predictor}{_revision(sim)}{_imported(sim)}"
        )
    return Items(tuple(lines))


def _engine(meta: RealRunFacts) -> str:
    settings = meta.engine_settings
    if settings is None:
        return f"Engine: {meta.backend}, settings not stated"
    graphs = settings.cudagraph_capture_sizes
    captured = (
        f"CUDA graphs captured for {len(graphs)} sizes up to {max(graphs)} tokens"
        if graphs
        else "no CUDA graphs captured"
    )
    shared = (
        f", tensor parallel degree {settings.tensor_parallel_size} (all-reduce {settings.all_reduce or 'not reported'})"
        if settings.tensor_parallel_size and settings.tensor_parallel_size > 1
        else ""
    )
    experts = f", experts by {settings.expert_kernel}" if settings.expert_kernel else ""
    return (
        f"Engine: {settings.backend} {settings.engine_version}, attention {settings.attention_backend},"
        f" {captured}{shared}{experts}"
    )


def _experts(comparison: Comparison, profile: ProfileMeta | None) -> list[str]:
    """Of a mixture of experts: what decides which experts a step reads, and the kernel that was profiled. One line, or
    none."""
    real, simulation = comparison.real_repeats[0], comparison.simulations[comparison.headline]
    stated: RealRun | SimulatedRun = simulation if _has_experts(comparison) else real
    number, chosen = (_param(stated, "model", "geometry", key) for key in ("num_experts", "num_experts_per_token"))
    if not number:
        return []
    temperature = _param(real, "engine", "sampling", "temperature")
    kernel = ((profile.worker if profile else None) or {}).get("expert_kernel")
    shown = [NOT_KNOWN if value is None else f"{value:g}" for value in (number, chosen, temperature)]
    return [
        f"Mixture of experts: {shown[0]} in each layer, for each token {shown[1]}; sampling temperature {shown[2]};"
        f" expert kernel in the profile {label(kernel) if isinstance(kernel, str) else NOT_KNOWN}"
    ]


def _imported(run: RealRun | SimulatedRun) -> str:
    """How an imported run was read, and what was left out."""
    origin = run.meta.imported
    if origin is None:
        return ""
    dropped = "; ".join(f"{name}: {why}" for name, why in origin.dropped.items())
    told = "".join(f"; {name}: {text}" for name, text in origin.definitions.items())
    return (
        f". Imported from {origin.format}, written by {origin.written_by}; clock: {origin.clock}; arrival:"
        f" {origin.arrivals}; joined by {origin.joined_by}{told}" + (f"; left out: {dropped}" if dropped else "")
    )


def _started(run: RealRun | SimulatedRun) -> str:
    return run.meta.started_at.strftime("%Y-%m-%d %H:%M:%S %Z") if run.meta.started_at else "start not stated"


def _revision(run: RealRun | SimulatedRun) -> str:
    meta = run.meta
    if meta.git_commit is None:
        return "code revision unknown"
    return f"commit {meta.git_commit[:12]}" + (" with local changes" if meta.git_dirty else "")


def _definitions(comparison: Comparison) -> list[Block]:
    bands = comparison.bands
    passed, warned = f"{100 * bands.pass_band:g} %", f"{100 * bands.warn_band:g} %"
    required = ", ".join(MEASURE_NAMES[one] for one in bands.required_metrics)
    at = ", ".join("mean" if one == "mean" else one.upper() for one in bands.required_statistics)
    terms: list[tuple[str, str, str]] = [
        (measure, MEASURE_NAMES[measure], _MEASURE_WORDS[measure] + ".") for measure in MEASURES
    ]
    terms += [
        ("error", "Error", "(simulated - real) / real. Negative: the simulation is too fast."),
        (
            "interval",
            "95 % interval",
            (
                "Where the error on this workload lies, given what repeats of the engine and seeds of the simulation"
                " differ by. With one repeat it is estimated from the requests instead, resampled in blocks."
            ),
        ),
        (
            "verdict",
            "Verdict",
            (
                f"pass: the whole interval within {passed}; warn: within {warned}; outside the band: the whole interval"
                f" beyond {warned}; cannot judge: the data do not say, which is no failure of the simulation."
            ),
        ),
        (
            "spread",
            "Spread",
            "(max - min) / median over the real repeats: the same workload on the same engine.",
        ),
        ("variant", "Variant", _VARIANTS),
    ]
    length, in_sessions = comparison.block_length, comparison.num_sessions is not None
    items, by = ("sessions", "whole sessions in order of their beginning") if in_sessions else ("requests", "")
    blocks = (
        f"blocks of {length} {items}, {NUM_REPLICATES:,} replicates" if length else f"not formed here: too few {items}"
    )
    loop = (
        (
            f"Closed loop inside {comparison.num_sessions} sessions, open loop between them: a turn arrives a think"
            " time after the last token of the answer before it, on each side by its own answers. TTFT and E2E count"
            " from that arrival. What two sides of different speed make of one workload differs in throughput too."
            " Intervals from resampled sessions decide nothing: they cover less than they claim (docs/comparison.md).",
        )
        if in_sessions
        else ()
    )
    method = (
        (
            f"Decides: {required} at {at} of `{comparison.headline}`, the worst of them; a marked comparison is at best"
            " warn."
        ),
        (
            "Percentiles interpolate linearly between order statistics (numpy `linear`). With several repeats, each"
            " side's value is the median over repeats of the statistic in each repeat; the simulation is aligned to"
            " each repeat."
        ),
        (
            f"Other workloads of the kind: circular block bootstrap over {by or 'requests in order of arrival'}, tokens"
            f" with their request, the same blocks on both sides ({blocks}), seeded."
        ),
        *loop,
        "Lateness of the driver stays inside the real TTFT (no coordinated omission); the simulation knows none.",
        (
            "No correction is made for judging several cells at once. Coverage of the intervals is measured in"
            " docs/comparison.md."
        ),
    )
    return [Definitions(tuple(terms)), Heading("Method"), Items(method)]


def _files(comparison: Comparison, figures: Sequence[Figure]) -> Files:
    described: dict[type[Table], str] = {
        LatencyErrors: "the table of latencies with every digit",
        RepeatLatencies: "each statistic of each real repeat",
        RateErrors: "throughput and goodput, simulated and real",
        RequestErrors: "every compared request, simulated and real",
        PairedErrors: "errors request by request and distances of the distributions",
        ErrorGroups: "errors by prompt length and by load",
        RunTotals: "throughput and queues of each run",
        GateChecks: "what was checked beforehand",
        AlignmentCounts: "what alignment compared and left out",
        SettingsParity: "engine settings and what each simulation assumed",
        StageErrors: "the mean error by stage of a request",
        StepErrors: "steps compared with those of each real repeat",
        StepCosts: "what the profile's terms predict for the steps that really ran",
        ErrorCauses: "likely causes of errors beyond the pass band, with their evidence",
    }
    if not comparison.cached_tokens.empty:
        described[CachedTokens] = "tokens from the prefix cache, request by request"
    if comparison.capacities:
        described[CapacityErrors] = "capacity, simulated and real"
    return Files(
        (
            *(File(f"{TABLES}/{one.file_name()}", what) for one, what in described.items()),
            *(File(f"{FIGURES}/{figure.file_name}", figure.title) for figure in figures),
            File(Kind.COMPARISON.meta_name, "run directories, digests, scenario, versions"),
        )
    )
