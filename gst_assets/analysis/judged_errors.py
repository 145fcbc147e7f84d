"""Comparing real repeats with simulated variants: errors per statistic with their intervals, paired errors, and the
verdicts. Writes nothing, draws nothing.

What must hold beforehand is in `gate`, what is measured in `measures` and `rates`, how sure an error on this workload
is in `repeats`, how far it carries to other workloads in `bootstrap`, when it is close enough in `verdict`, what a
reader sees first in `answer`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.analysis import bootstrap, gate
from gst_assets.analysis.alignment import SCHEDULED, AlignedPair, AlignedSide, align, joined, sessions_of
from gst_assets.analysis.answer import Answer, NamedCause, Situation, build_answer
from gst_assets.analysis.bootstrap import Blocks, Interval, Replicates
from gst_assets.analysis.cached_tokens import cached_token_rows
from gst_assets.analysis.capacity_errors import CapacityError, capacity_errors
from gst_assets.analysis.causes import Measured, cause_rows
from gst_assets.analysis.cells import Basis, Cell, Rate, cell_name
from gst_assets.analysis.measures import (
    MAIN_MEASURES,
    MEASURES,
    MIN_REQUESTS,
    MIN_SAMPLES_BEYOND,
    MIN_SAMPLES_BEYOND_IN_REPEATS,
    PER_REQUEST,
    STATISTICS,
    Measure,
    Samples,
    Timeline,
    clustered,
    group_edges,
    is_sufficient,
    kolmogorov_smirnov,
    paired,
    percentile_ns,
    relative_error,
    requests_in_system,
    samples_needed,
    statistics_ns,
    timeline,
    wasserstein_ns,
    whole,
)
from gst_assets.analysis.rates import rates_per_s
from gst_assets.analysis.repeats import RepeatInterval, repeat_interval
from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.analysis.stages import stage_rows, step_rows
from gst_assets.analysis.step_cost_rows import step_cost_rows
from gst_assets.analysis.verdict import OUTCOMES, Outcome, judge, worst
from gst_assets.contracts.documents import CapacityMeta
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
    validate,
)
from gst_assets.scenario import Bands

CURVE_LEVELS = np.concatenate([np.linspace(0, 0.9, 271), np.linspace(0.9, 1, 131)[1:]])
"""Shares at which distributions are stored for figures, so that no figure touches the samples."""
NOT_AVAILABLE = "not available: token times are not known on both sides"
"""Why a cell of ITL has no samples where a side knows no token times."""
_BAND_LEVELS = np.linspace(0, 1, 121)
_FACTORS = ("num_prefill_tokens", "num_in_system")


@dataclass(frozen=True)
class Verdict:
    """A variant's outcome. `cells` are the required ones that were judged, worst verdict and then largest error first;
    `unjudged` those with too few samples, or too few independent ones, to be judged."""

    outcome: Outcome
    cells: tuple[Cell, ...]
    unjudged: tuple[Cell, ...]


@dataclass(frozen=True)
class Band:
    """95 % band of the real distribution, pointwise: between `low` and `high` of the samples are at most
    `values_ns`."""

    values_ns: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Everything the report shows. Frames are those of the `contracts.tables` models of the same name.

    `cells` go by metric, statistic and variant; `pairs` maps (real run id, variant) to the aligned pair. `curves` maps
    (metric, real run id or variant) to the values in nanoseconds at `CURVE_LEVELS`, a variant aligned to the first
    repeat; a metric without samples has none. `cached_tokens` is empty where no run has a prefix cache. `block_length`
    is None where too few requests were compared to resample them; where turns wait for answers it counts sessions, of
    which there are `num_sessions` (None elsewhere).
    `further_seeds` are the runs of each variant under other seeds than that of `simulations`. `checks` are as the
    headline's reader takes them. `capacities` are empty where the engine's capacity was not searched;
    `capacity_criterion` says in words what was searched for.
    """

    real_repeats: tuple[RealRun, ...]
    simulations: Mapping[str, SimulatedRun]
    headline: str
    bands: Bands
    verdict: Verdict
    checks: tuple[gate.Check, ...]
    cells: tuple[Cell, ...]
    repeat_latencies: pd.DataFrame
    request_errors: pd.DataFrame
    paired_errors: pd.DataFrame
    error_groups: pd.DataFrame
    run_totals: pd.DataFrame
    alignment_counts: pd.DataFrame
    settings_parity: pd.DataFrame
    stage_errors: pd.DataFrame
    step_errors: pd.DataFrame
    step_costs: pd.DataFrame
    cached_tokens: pd.DataFrame
    error_causes: pd.DataFrame
    pairs: Mapping[tuple[str, str], AlignedPair]
    curves: Mapping[tuple[Measure, str], np.ndarray]
    real_bands: Mapping[Measure, Band]
    timelines: Mapping[str, Timeline]
    block_length: int | None
    num_sessions: int | None
    rates: tuple[Rate, ...]
    answers: Mapping[str, Answer]
    further_seeds: Mapping[str, tuple[SimulatedRun, ...]]
    capacities: tuple[CapacityError, ...] = ()
    capacity_criterion: str = ""

    @property
    def answer(self) -> Answer:
        """The headline's."""
        return self.answers[self.headline]

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the simulated variants in the order of the scenario; the last is the headline."""
        return tuple(self.simulations)

    def label(self, variant: str) -> str:
        """A variant as figures and tables name it: another simulator's by its name alone."""
        return f"Vidur {variant}" if self.simulations[variant].meta.imported is None else variant

    @property
    def marks(self) -> tuple[str, ...]:
        """Why the headline cannot be a pass, in words."""
        return tuple(one.finding for one in self.checks if one.severity == "mark")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should also know, in words."""
        return tuple(one.finding for one in self.checks if one.severity == "note")

    @property
    def latency_errors(self) -> pd.DataFrame:
        """`cells` as a `LatencyErrors` frame."""
        rows = [asdict(cell) for cell in self.cells]
        for row in rows:
            # A CSV of the contract holds no infinity: it is left empty.
            for name in ("interval_high", "carry_high", "num_independent"):
                if math.isinf(row[name]):
                    row[name] = math.nan
        return _frame(LatencyErrors, rows)

    @property
    def rate_errors(self) -> pd.DataFrame:
        """`rates` as a `RateErrors` frame."""
        rows = [asdict(one) for one in self.rates]
        for row in rows:
            if math.isinf(row["interval_high"]):
                row["interval_high"] = math.nan
        return _frame(RateErrors, rows)

    @property
    def capacity_errors(self) -> pd.DataFrame:
        """`capacities` as a `CapacityErrors` frame."""
        rows = [asdict(one) for one in self.capacities]
        for row in rows:
            for name in ("real_high_per_s", "sim_high_per_s", "interval_high"):
                if math.isinf(row[name]):
                    row[name] = math.nan
        return _frame(CapacityErrors, rows)

    @property
    def gate_checks(self) -> pd.DataFrame:
        """`checks` as a `GateChecks` frame."""
        return _frame(GateChecks, [asdict(one) for one in self.checks])


def compare(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    *,
    bands: Bands,
    calibration_sha256: Collection[str] | None = None,
    further_seeds: Mapping[str, Sequence[SimulatedRun]] | None = None,
    repeatable: bool = False,
    capacity: CapacityMeta | None = None,
) -> Comparison:
    """Compare repeats of one real run with simulations of the same workload, by variant name.

    The headline variant is the last of the scenario's `simulation.variants` that was given, or the last given.
    `calibration_sha256` holds the profile's calibration digests (`run_reading.read_calibration_sha256`); None where the
    profile is not available, which is noted. `further_seeds` are runs of a variant under other seeds than that of
    `simulations`; a variant without is taken as exact. `repeatable`: the engine could be run again, so the answer says
    how many repeats would do. `capacity`: a search for capacity with the same settings. Runs that name their requests
    (`source_request_id`) are put in the order of the first real run.

    Raises:
        ComparisonError: a failed gate of severity stop (see `gate`), or no run on one of the sides.
    """
    gate.check_comparable(real_repeats, simulations, calibration_sha256)
    first = real_repeats[0]
    real_repeats = [first, *(joined(first, run) for run in real_repeats[1:])]
    simulations = {variant: joined(first, sim) for variant, sim in _in_scenario_order(simulations).items()}
    further = {
        variant: tuple(joined(first, run) for run in (further_seeds or {}).get(variant, ())) for variant in simulations
    }
    for variant, runs in further.items():
        gate.check_same_simulation(simulations[variant], runs)
    headline = list(simulations)[-1]
    pairs = {
        (real.meta.run_id, variant): align(real, sim) for real in real_repeats for variant, sim in simulations.items()
    }
    counts = _frame(
        AlignmentCounts,
        [{"run_id": run, "variant": variant, **asdict(pair.counts)} for (run, variant), pair in pairs.items()],
    )
    parity = _frame(SettingsParity, gate.settings_parity(real_repeats, simulations))
    per_run = {run.meta.run_id: pairs[run.meta.run_id, headline].counts for run in real_repeats}
    checks = gate.checks(real_repeats, simulations, per_run, parity, bands, calibration_sha256)
    sides = _Sides.of(real_repeats, simulations, pairs)
    sessions = sessions_of(real_repeats[0])
    num_sessions = None if sessions is None else int(sessions.max()) + 1
    blocks = _blocks(real_repeats[0], sides, headline, sessions)
    if blocks:
        checks.append(gate.few_stretches(blocks))
    by_seed = _by_seed(real_repeats, further, pairs, bands, told=sides.told)
    unjudged = {measure for run in real_repeats for measure in gate.delivery_of(run).unjudged}
    tokens_told = {
        name: sim.has_tokens and all(run.has_tokens for run in real_repeats) for name, sim in simulations.items()
    }
    order = _by_time(real_repeats)
    judging = _Judging(blocks, bands, headline, order, by_seed, frozenset(unjudged), tokens_told, num_sessions)
    found = _statistics(sides, judging)
    rates = _rates(real_repeats, pairs, list(simulations), judging)
    request_errors = _request_errors(pairs)
    timelines, totals = _totals(real_repeats, simulations, pairs)
    stages = _frame(StageErrors, stage_rows(real_repeats, simulations, pairs))
    steps = _frame(StepErrors, step_rows(real_repeats, simulations))
    cached = _frame(CachedTokens, cached_token_rows(real_repeats, simulations))
    measured = Measured(real_repeats, simulations, parity, stages, cached, bands.pass_band, pairs)
    causes = _frame(ErrorCauses, cause_rows(found.cells, measured))
    verdicts = {
        variant: _verdict(
            [cell for cell in found.cells if cell.variant == variant],
            bands,
            marked=any(one.marks(variant) for one in checks),
        )
        for variant in simulations
    }
    answers = {
        variant: build_answer(
            variant,
            verdicts[variant].outcome,
            [one for one in found.cells if one.variant == variant and _asked(one, bands)],
            [one for one in rates if one.variant == variant],
            _named_causes(causes, variant),
            Situation(
                num_repeats=len(real_repeats),
                num_seeds=1 + len(further[variant]),
                num_requests=int(counts["num_compared"].min()),
                repeatable=repeatable,
                marks=tuple(one.finding for one in checks if one.marks(variant)),
                advised=found.advised.get(variant, {}),
                pass_band=bands.pass_band,
                warn_band=bands.warn_band,
            ),
        )
        for variant in simulations
    }
    return Comparison(
        real_repeats=tuple(real_repeats),
        simulations=simulations,
        headline=headline,
        bands=bands,
        verdict=verdicts[headline],
        checks=tuple(one.seen_from(headline) for one in checks),
        cells=tuple(found.cells),
        repeat_latencies=_frame(RepeatLatencies, found.repeat_rows),
        request_errors=request_errors,
        paired_errors=_frame(PairedErrors, found.paired_rows),
        error_groups=_error_groups(request_errors),
        run_totals=totals,
        alignment_counts=counts,
        settings_parity=parity,
        stage_errors=stages,
        step_errors=steps,
        step_costs=_frame(StepCosts, step_cost_rows(real_repeats, simulations[headline])),
        cached_tokens=cached,
        error_causes=causes,
        pairs=pairs,
        curves=found.curves,
        real_bands=found.bands,
        timelines=timelines,
        block_length=blocks.length if blocks else None,
        num_sessions=num_sessions,
        rates=tuple(rates),
        answers=answers,
        further_seeds=further,
        capacities=capacity_errors(capacity.found, list(simulations), bands) if capacity else (),
        capacity_criterion=capacity.criterion if capacity else "",
    )


def _by_time(runs: Sequence[RealRun]) -> np.ndarray:
    """Positions of the repeats in order of their start; as they were given where one does not state it."""
    starts = [run.meta.started_at.timestamp() for run in runs if run.meta.started_at is not None]
    return np.argsort(np.array(starts), kind="stable") if len(starts) == len(runs) else np.arange(len(runs))


def _asked(cell: Cell, bands: Bands) -> bool:
    return cell.metric in bands.required_metrics and cell.statistic in bands.required_statistics


def _named_causes(causes: pd.DataFrame, variant: str) -> list[NamedCause]:
    return [
        NamedCause(cell_name(row["metric"], row["statistic"]), row["cause"], row["share"], row["evidence"])
        for row in causes[causes["variant"] == variant].to_dict("records")
    ]


def _in_scenario_order(simulations: Mapping[str, SimulatedRun]) -> dict[str, SimulatedRun]:
    """The scenario's `simulation.variants` in its order, after any that it does not name; the last one is the
    headline."""
    last_given = list(simulations.values())[-1]
    asked = last_given.meta.params.get("simulation", {}).get("variants", [])
    return dict(sorted(simulations.items(), key=lambda item: asked.index(item[0]) if item[0] in asked else -1))


# --- statistics -------------------------------------------------------------------------------------------------------

_SideSamples = Mapping[Measure, Samples]


@dataclass(frozen=True)
class _Sides:
    """Samples by real run id, and by real run id and variant. Simulations cut to the same counts share one object."""

    real: dict[str, _SideSamples]
    sim: dict[tuple[str, str], _SideSamples]
    told: bool

    @classmethod
    def of(
        cls,
        real_repeats: Sequence[RealRun],
        simulations: Mapping[str, SimulatedRun],
        pairs: Mapping[tuple[str, str], AlignedPair],
    ) -> _Sides:
        real: dict[str, _SideSamples] = {}
        sim: dict[tuple[str, str], _SideSamples] = {}
        cuts: dict[tuple[str, bytes], _SideSamples] = {}
        # Execution latency is there for all runs or for none, so that every variant is compared with the same real
        # samples.
        told = all(SCHEDULED in pair.real.requests for pair in pairs.values())
        for run in real_repeats:
            run_id = run.meta.run_id
            for variant in simulations:
                pair = pairs[run_id, variant]
                requests = pair.sim.requests
                cut = (variant, _cut_of(requests))
                if cut not in cuts:
                    cuts[cut] = _samples(pair.sim, pair.counts.num_requests, told)
                sim[run_id, variant] = cuts[cut]
            # Alignment keeps the same real requests and tokens whatever the variant, so any pair serves; one with token
            # times where there is one.
            mine = [pairs[run_id, variant] for variant in simulations]
            pair = next((one for one in mine if not one.real.tokens.empty), mine[0])
            real[run_id] = _samples(pair.real, pair.counts.num_requests, told)
        return cls(real, sim, told)


def _cut_of(requests: pd.DataFrame) -> bytes:
    """Which requests are compared, and to how many tokens: what the simulated side of a pair depends on."""
    return requests["request_id"].to_numpy().tobytes() + requests["num_tokens"].to_numpy().tobytes()


def _samples(side: AlignedSide, num_requests: int, is_scheduling_told: bool) -> _SideSamples:
    if not is_scheduling_told:
        side = replace(side, requests=side.requests.drop(columns=SCHEDULED, errors="ignore"))
    return {measure: clustered(side, measure, num_requests) for measure in MEASURES}


def _blocks(run: RealRun, sides: _Sides, headline: str, sessions: np.ndarray | None) -> Blocks | None:
    """How requests, or whole `sessions` of them, are resampled, from the headline's errors; None where too few were
    compared."""
    if min(one["ttft"].num_requests for one in sides.real.values()) < MIN_REQUESTS:
        return None
    if sessions is not None and sessions.max() + 1 < MIN_REQUESTS:
        return None
    order = np.argsort(run.requests["arrival_time_ns"].to_numpy(dtype="int64"), kind="stable")
    measured: list[Measure] = [
        one
        for one in MAIN_MEASURES
        if all(len(real[one].values) and len(sides.sim[run, headline][one].values) for run, real in sides.real.items())
    ]
    repeats = [
        [
            one
            for measure in measured
            for one in bootstrap.dependence(real[measure], sides.sim[run_id, headline][measure], order, sessions)
        ]
        for run_id, real in sides.real.items()
    ]
    return Blocks(order, bootstrap.block_length(repeats), sessions=sessions)


@dataclass(frozen=True)
class _SeedValues:
    """What one further seed gives aligned to one repeat: `statistics_ns` of each measure and `rates_per_s`."""

    statistics: Mapping[Measure, np.ndarray]
    rates: Mapping[str, float]


def _by_seed(
    real_repeats: Sequence[RealRun],
    further: Mapping[str, Sequence[SimulatedRun]],
    pairs: Mapping[tuple[str, str], AlignedPair],
    bands: Bands,
    *,
    told: bool,
) -> dict[str, list[list[_SeedValues]]]:
    """By variant: [repeats][further seeds]. One run after another, so that the samples of one only are held."""
    found: dict[str, list[list[_SeedValues]]] = {}
    for variant, runs in further.items():
        columns: list[list[_SeedValues]] = []
        for run in runs:
            known: dict[bytes, _SeedValues] = {}
            column = []
            for real in real_repeats:
                # The cut is the real run's, whatever the seed.
                cut = _cut_of(pairs[real.meta.run_id, variant].sim.requests)
                if cut not in known:
                    pair = align(real, run)
                    samples = _samples(pair.sim, pair.counts.num_requests, told)
                    statistics = {measure: statistics_ns(one.ordered()) for measure, one in samples.items()}
                    known[cut] = _SeedValues(statistics, rates_per_s(pair.sim, bands.service_level))
                column.append(known[cut])
            columns.append(column)
        found[variant] = [list(row) for row in zip(*columns, strict=True)] or [[] for _ in real_repeats]
    return found


@dataclass(frozen=True)
class _Judging:
    """What judging a cell needs in addition to its values: `order` are the repeats by time, `unjudged` the measures
    that say more about the delivery, `tokens_told` by variant whether both sides know their token times,
    `num_sessions` those whose turns wait for answers, None where none do."""

    blocks: Blocks | None
    bands: Bands
    headline: str
    order: np.ndarray
    by_seed: Mapping[str, list[list[_SeedValues]]]
    unjudged: frozenset[str]
    tokens_told: Mapping[str, bool]
    num_sessions: int | None


@dataclass(frozen=True)
class _Found:
    """`advised`: by variant and cell name, what its interval from repeats is."""

    cells: list[Cell]
    repeat_rows: list[dict[str, Any]]
    paired_rows: list[dict[str, Any]]
    curves: dict[tuple[Measure, str], np.ndarray]
    bands: dict[Measure, Band]
    advised: dict[str, dict[str, RepeatInterval]]


@dataclass(frozen=True)
class _Summed:
    """One side's samples of one measure, in ascending order, and what was computed from them."""

    samples: Samples
    ordered: np.ndarray
    exact_ns: np.ndarray
    replicates: Replicates | None


def _statistics(sides: _Sides, judging: _Judging) -> _Found:
    """Every statistic, one measure after another, so that the ordered samples of one only are held."""
    found, blocks = _Found([], [], [], {}, {}, {}), judging.blocks
    variants = list(dict.fromkeys(variant for _, variant in sides.sim))
    for measure in MEASURES:
        known: dict[int, _Summed] = {}

        def summed(samples: Samples, known: dict[int, _Summed] = known) -> _Summed:
            if id(samples) not in known:
                ordered = samples.ordered()
                drawn = bootstrap.replicate(samples, ordered, blocks) if blocks and len(ordered) else None
                known[id(samples)] = _Summed(samples, ordered, statistics_ns(ordered), drawn)
            return known[id(samples)]

        real = {run_id: summed(side[measure]) for run_id, side in sides.real.items()}
        sim = {key: summed(side[measure]) for key, side in sides.sim.items()}
        by_variant = {}
        for variant in variants:
            ours = [sim[run_id, variant] for run_id in real]
            by_variant[variant] = _cells_of(measure, variant, list(real.values()), ours, judging, found.advised)
            found.paired_rows.extend(
                _paired_row(run_id, variant, measure, real[run_id], sim[run_id, variant]) for run_id in real
            )
        for column in range(len(STATISTICS)):
            found.cells.extend(by_variant[variant][column] for variant in variants)
        for run_id, side in real.items():
            for statistic, value in zip(STATISTICS, side.exact_ns, strict=True):
                found.repeat_rows.append(
                    {
                        "run_id": run_id,
                        "metric": measure,
                        "statistic": statistic,
                        "value_ns": value,
                        "num_samples": len(side.ordered),
                    }
                )
        first = next(iter(real))
        shown = [*real.items(), *((variant, sim[first, variant]) for variant in variants)]
        for key, side in shown:
            if len(side.ordered):
                found.curves[measure, key] = np.array([percentile_ns(side.ordered, 100 * one) for one in CURVE_LEVELS])
        if blocks and measure in MAIN_MEASURES and all(len(side.ordered) for side in real.values()):
            pooled = _pooled([side.samples for side in real.values()])
            # Not sorted twice where the only repeat is all of them.
            ordered = next(iter(real.values())).ordered if len(real) == 1 else pooled.ordered()
            found.bands[measure] = Band(*bootstrap.band(pooled, ordered, _BAND_LEVELS, blocks))
    return found


def _cells_of(
    measure: Measure,
    variant: str,
    real: list[_Summed],
    sim: list[_Summed],
    judging: _Judging,
    advised: dict[str, dict[str, RepeatInterval]],
) -> list[Cell]:
    """A cell for each of `STATISTICS`. Their intervals from repeats are added to `advised`."""
    blocks, bands = judging.blocks, judging.bands
    if not all(len(one.ordered) for one in sim):
        # Real samples without simulated ones cannot be compared: the simulation knows no token times.
        real = [_Summed(one.samples, one.ordered[:0], statistics_ns(one.ordered[:0]), None) for one in real]
    real_ns = np.array([one.exact_ns for one in real])
    # [repeats, seeds, STATISTICS]: the first seed is the one whose samples are loaded.
    seeds_ns = np.array(
        [
            [one.exact_ns, *(seed.statistics[measure] for seed in seeds)]
            for one, seeds in zip(sim, judging.by_seed[variant], strict=True)
        ]
    )
    sim_ns = np.median(seeds_ns, axis=1)
    carried = [bootstrap.UNKNOWN] * len(STATISTICS)
    drawn = [[one.replicates for one in side if one.replicates] for side in (real, sim)]
    if blocks and len(drawn[0]) == len(real) and len(drawn[1]) == len(sim):
        carried = bootstrap.intervals(drawn[0], drawn[1], real_ns, sim_ns, blocks)
    samples = min(len(one.ordered) for one in real)
    requests = min(one.samples.num_requests for one in real)
    unknown = np.full(len(STATISTICS), math.nan)
    worth = np.min([one.independent for side in drawn for one in side] or [unknown], axis=0)
    repeated = len(real) > 1
    beyond = MIN_SAMPLES_BEYOND_IN_REPEATS if repeated else MIN_SAMPLES_BEYOND
    cells = []
    for column, statistic in enumerate(STATISTICS):
        value, simulated = float(np.median(real_ns[:, column])), float(np.median(sim_ns[:, column]))
        error, spread = relative_error(simulated, value), _spread(real_ns[:, column], value)
        sufficient = is_sufficient(statistic, samples, requests, beyond)
        of_repeats = repeat_interval(real_ns[judging.order, column], seeds_ns[judging.order, :, column])
        carry = carried[column] if is_sufficient(statistic, samples, requests) else bootstrap.UNKNOWN
        independent = blocks is not None and blocks.long_enough and bool(worth[column] >= MIN_SAMPLES_BEYOND)
        # Intervals from resampled sessions cover too little to decide (docs/comparison.md, `sessions`).
        repeats_decide = repeated or judging.num_sessions is not None
        interval, basis = _interval_of(of_repeats, carry, sufficient=sufficient, repeated=repeats_decide)
        outcome = judge(
            error,
            interval,
            bands,
            sufficient=sufficient and measure not in judging.unjudged,
            independent=independent or repeated,
            few_repeats=of_repeats is not None and of_repeats.few,
        )
        cell = Cell(
            metric=measure,
            statistic=statistic,
            variant=variant,
            real_ns=value,
            sim_ns=simulated,
            error_ns=simulated - value,
            relative_error=error,
            real_spread=spread,
            num_real_samples=samples,
            num_sim_samples=min(len(one.ordered) for one in sim),
            verdict=outcome,
            interval_low=interval.low,
            interval_high=interval.high,
            error_to_noise=abs(error) / spread if spread > 0 else math.nan,
            required=variant == judging.headline
            and measure in bands.required_metrics
            and statistic in bands.required_statistics,
            num_independent=float(worth[column]),
            interval_flagged=(basis == "requests" and not independent)
            or (basis == "repeats" and of_repeats is not None and of_repeats.few),
            interval_basis=basis,
            carry_low=carry.low,
            carry_high=carry.high,
            drifts=basis == "repeats" and of_repeats is not None and of_repeats.drifts,
            reason="",
        )
        needed = max(MIN_REQUESTS, -(-requests * samples_needed(statistic, beyond) // max(samples, 1)))
        cell = replace(cell, reason=_reason(cell, judging, requests, None if sufficient else needed))
        if basis == "repeats" and of_repeats is not None:
            advised.setdefault(variant, {})[cell.name] = of_repeats
        cells.append(cell)
    return cells


def _interval_of(
    of_repeats: RepeatInterval | None, carry: Interval, *, sufficient: bool, repeated: bool
) -> tuple[Interval, Basis]:
    """The interval a cell is judged by: from repeats; with one repeat that of resampled requests stands in."""
    if not sufficient:
        return bootstrap.UNKNOWN, "none"
    if of_repeats is not None:
        return Interval(of_repeats.low, of_repeats.high), "repeats"
    return (bootstrap.UNKNOWN, "none") if repeated or math.isnan(carry.low) else (carry, "requests")


def _reason(cell: Cell, judging: _Judging, requests: int, needed: int | None) -> str:
    """Why a cell cannot be judged, or what holds a pass back, in words."""
    if not cell.num_real_samples:
        return "no samples" if judging.tokens_told[cell.variant] or cell.metric != "itl" else NOT_AVAILABLE
    if cell.metric in judging.unjudged:
        return "tokens were delivered several at a time: the delivery's latency, not the engine's"
    if needed is not None:
        return f"{requests} request{'' if requests == 1 else 's'}; {needed} would do"
    if cell.verdict == "insufficient":
        if cell.interval_basis == "none":
            in_sessions = judging.num_sessions is not None and len(judging.order) == 1
            return (
                "one repeat; where turns wait for answers only repeats decide"
                if in_sessions
                else "a repeat has no positive value"
            )
        return (
            f"one repeat, whose requests depend on each other and are worth {cell.num_independent:.0f} independent"
            " samples beyond it"
        )
    drift = "; the repeats drift" if cell.drifts else ""
    if cell.verdict == "inconclusive":
        return f"the interval crosses the edge of the {100 * judging.bands.warn_band:g} % band{drift}"
    inside = max(abs(cell.interval_low), abs(cell.interval_high)) <= judging.bands.pass_band
    if cell.verdict == "warn" and inside:
        return "fewer than five repeats cannot show that the engine has one speed"
    return drift.removeprefix("; ")


def _rates(
    real_repeats: Sequence[RealRun],
    pairs: Mapping[tuple[str, str], AlignedPair],
    variants: Sequence[str],
    judging: _Judging,
) -> list[Rate]:
    """Throughput and goodput of every variant and of the real repeats."""
    bands, found = judging.bands, []
    for variant in variants:
        sides = [pairs[run.meta.run_id, variant] for run in real_repeats]
        real = [rates_per_s(pair.real, bands.service_level) for pair in sides]
        first = [rates_per_s(pair.sim, bands.service_level) for pair in sides]
        for name in real[0]:
            real_values = np.array([one[name] for one in real])
            sim_values = np.array(
                [
                    [one[name], *(seed.rates[name] for seed in seeds)]
                    for one, seeds in zip(first, judging.by_seed[variant], strict=True)
                ]
            )
            value, simulated = float(np.median(real_values)), float(np.median(sim_values))
            error = relative_error(simulated, value)
            of_repeats = repeat_interval(real_values[judging.order], sim_values[judging.order])
            sufficient = min(len(pair.real.requests) for pair in sides) >= MIN_REQUESTS
            interval, basis = _interval_of(of_repeats, bootstrap.UNKNOWN, sufficient=sufficient, repeated=len(real) > 1)
            outcome = judge(
                error,
                interval,
                bands,
                sufficient=sufficient and len(real) > 1,
                few_repeats=of_repeats is not None and of_repeats.few,
            )
            reason = (
                ""
                if outcome != "insufficient"
                else "one repeat"
                if len(real) == 1
                else f"fewer than {MIN_REQUESTS} requests, or a repeat without any"
            )
            found.append(
                Rate(
                    metric=name,
                    variant=variant,
                    real_per_s=value,
                    sim_per_s=simulated,
                    relative_error=error,
                    real_spread=_spread(real_values, value),
                    verdict=outcome,
                    interval_low=interval.low,
                    interval_high=interval.high,
                    interval_basis=basis,
                    reason=reason,
                )
            )
    return found


def _spread(values: np.ndarray, median: float) -> float:
    if len(values) < 2 or not median > 0:
        return math.nan
    return float(np.ptp(values)) / median


def _paired_row(run_id: str, variant: str, measure: Measure, real: _Summed, sim: _Summed) -> dict[str, Any]:
    row = {
        "run_id": run_id,
        "variant": variant,
        "metric": measure,
        "wasserstein_ns": wasserstein_ns(real.ordered, sim.ordered),
        "ks_distance": kolmogorov_smirnov(real.ordered, sim.ordered),
    }
    if measure in PER_REQUEST:
        return {**row, **asdict(paired(real.samples.values, sim.samples.values))}
    return {**row, "num_requests": real.samples.num_requests}


def _pooled(sides: list[Samples]) -> Samples:
    """Samples of all repeats together, each request with those of every repeat."""
    if len(sides) == 1:
        return sides[0]
    owners = np.concatenate([np.repeat(np.arange(len(side.counts)), side.counts) for side in sides])
    values = np.concatenate([side.values for side in sides])
    return Samples(values[np.argsort(owners, kind="stable")], np.sum([side.counts for side in sides], axis=0))


def _totals(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    pairs: Mapping[tuple[str, str], AlignedPair],
) -> tuple[dict[str, Timeline], pd.DataFrame]:
    """Timelines and `RunTotals` by real run id and variant, a variant aligned to the first repeat."""
    first, some = real_repeats[0].meta.run_id, next(iter(simulations))
    chosen: list[tuple[str, str, RealRun | SimulatedRun, AlignedSide]] = [
        *(("real", run.meta.run_id, run, pairs[run.meta.run_id, some].real) for run in real_repeats),
        *(("sim", variant, sim, pairs[first, variant].sim) for variant, sim in simulations.items()),
    ]
    lines, rows = {}, []
    for side, name, run, aligned in chosen:
        line = timeline(run, aligned)
        lines[name] = line
        rows.append({"side": side, "run": name, **asdict(whole(run, aligned, line)), "queue_source": line.source})
    return lines, _frame(RunTotals, rows)


def _request_errors(pairs: Mapping[tuple[str, str], AlignedPair]) -> pd.DataFrame:
    parts = []
    for (run_id, variant), pair in pairs.items():
        real, sim = pair.real.requests, pair.sim.requests
        part = pd.DataFrame({"run_id": run_id, "variant": variant, "request_id": real["request_id"]})
        part["num_prefill_tokens"] = real["num_prefill_tokens"]
        part["num_tokens"] = real["num_tokens"]
        for metric in ("ttft", "e2e"):
            part[f"real_{metric}_ns"] = real[f"{metric}_ns"]
            part[f"sim_{metric}_ns"] = sim[f"{metric}_ns"]
            part[f"{metric}_error_ns"] = sim[f"{metric}_ns"] - real[f"{metric}_ns"]
        part["num_in_system"] = requests_in_system(pair.real)
        parts.append(part)
    return _typed(RequestErrors, pd.concat(parts, ignore_index=True))


def _error_groups(errors: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for variant, part in errors.groupby("variant", sort=False):
        for metric in ("ttft", "e2e"):
            real = part[f"real_{metric}_ns"].to_numpy(dtype="float64")
            wrong = part[f"{metric}_error_ns"].to_numpy(dtype="float64")
            relative = np.divide(wrong, real, out=np.full(len(real), math.nan), where=real > 0)
            relative[(real == 0) & (wrong == 0)] = 0.0
            for factor in _FACTORS:
                values = part[factor].to_numpy(dtype="int64")
                group = np.searchsorted(group_edges(values), values, side="left")
                for number in np.unique(group):
                    inside = group == number
                    defined = np.sort(relative[inside & ~np.isnan(relative)])
                    rows.append(
                        {
                            "variant": variant,
                            "metric": metric,
                            "factor": factor,
                            "low": values[inside].min(),
                            "high": values[inside].max(),
                            "num_requests": int(inside.sum()),
                            "p10": percentile_ns(defined, 10),
                            "median": percentile_ns(defined, 50),
                            "p90": percentile_ns(defined, 90),
                        }
                    )
    return _frame(ErrorGroups, rows)


def _verdict(cells: Sequence[Cell], bands: Bands, *, marked: bool) -> Verdict:
    """The verdict of one variant, from its cells."""
    required = [cell for cell in cells if _asked(cell, bands)]
    # A cell without any sample (one token a request has no gap) has nothing to judge, which is not the same as a
    # missing judgement.
    present = [cell for cell in required if cell.num_real_samples]
    unjudged = [cell for cell in required if cell.verdict == "insufficient"]
    judged = sorted(
        (cell for cell in present if cell.verdict != "insufficient"),
        key=lambda cell: (OUTCOMES.index(cell.verdict), cell.error_size),
        reverse=True,
    )
    return Verdict(worst((cell.verdict for cell in present), marked=marked), tuple(judged), tuple(unjudged))


# --- frames -----------------------------------------------------------------------------------------------------------


def _frame(model: type[Table], rows: list[dict[str, Any]]) -> pd.DataFrame:
    return _typed(model, pd.DataFrame(rows, columns=list(model.to_schema().columns)))


def _typed(model: type[Table], frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` in the contract's column types, validated."""
    required, optional = model.column_types()
    types = required | optional
    return validate(model, frame.astype(types)[list(types)], model.file_name())
