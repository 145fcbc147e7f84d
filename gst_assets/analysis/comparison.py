"""Comparing real repeats with simulated variants: gates, errors per statistic, and the verdict. Writes nothing, draws nothing.

Gates, by severity:
- refused (ComparisonError): different workloads, request sets, models or hardware; a run given twice; a workload on which the profile
  was calibrated.
- marked: engine settings that differ from what a simulation assumed or that it did not record; a degraded real run. A marked
  comparison is never a `pass`.
- noted: failed requests, early stops, bunched tokens, preemptions, one repeat only, calibration digests not at hand.

Verdict rule. Each cell (metric x percentile x variant) is `insufficient` with fewer than ten samples beyond the percentile in the
smallest repeat; else by |relative error|: at most `pass_band` -> pass, at most `warn_band` -> warn, beyond -> fail. The comparison's
outcome is the worst of the headline variant's sufficient P50 and P90 cells over TTFT, ITL and E2E; `insufficient` if there is none; and a
marked comparison is at best `warn`. P99 is shown and does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import AlignedPair, align, check_same_workload
from gst_assets.analysis.latencies import (
    METRIC_NAMES,
    METRICS,
    PERCENTILES,
    Metric,
    is_sufficient,
    percentile_ns,
    samples_ns,
    statistic_name,
)
from gst_assets.analysis.runs import RealRun, SimulatedRun
from gst_assets.contracts.tables import (
    AlignmentCounts,
    LatencyErrors,
    RepeatLatencies,
    RequestErrors,
    SettingsParity,
    Table,
    validate,
)
from gst_assets.errors import ComparisonError
from gst_assets.profiling.calibration import workload_digest
from gst_assets.scenario import Comparison as Bands

Outcome = Literal["pass", "warn", "fail", "insufficient"]

COMPARED_SETTINGS = (
    "max_num_seqs", "max_num_batched_tokens", "block_size", "num_kv_blocks", "enable_chunked_prefill",
    "enable_prefix_caching", "dtype", "async_scheduling", "enforce_eager", "scheduling_policy",
)  # fmt: skip
"""Keys of `engine_settings` that a simulation must assume alike, and record in `simulated_settings`."""

DECIDING_PERCENTILES = (50, 90)
"""Percentiles that enter the verdict."""


@dataclass(frozen=True)
class Cell:
    """One metric, percentile and variant: a row of `contracts.tables.LatencyErrors`, whose docstring defines the columns.

    Missing values are NaN.
    """

    metric: Metric
    statistic: str
    variant: str
    real_ns: float
    sim_ns: float
    error_ns: float
    relative_error: float
    real_spread: float
    num_real_samples: int
    num_sim_samples: int
    verdict: Outcome

    @property
    def name(self) -> str:
        """The cell in words, e.g. `TTFT P50`."""
        return f"{METRIC_NAMES[self.metric]} {self.statistic.upper()}"

    @property
    def error_size(self) -> float:
        """|relative_error|; an undefined one is larger than any other."""
        return math.inf if math.isnan(self.relative_error) else abs(self.relative_error)


@dataclass(frozen=True)
class Verdict:
    """The headline variant's outcome. `cells` decided it (worst first); `unjudged` had too few samples to."""

    outcome: Outcome
    cells: tuple[Cell, ...]
    unjudged: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything the report shows. Frames are those of the `contracts.tables` models of the same name.

    `cells` go by metric, percentile and variant; `pairs` maps (real run id, variant) to the aligned pair.
    """

    real_repeats: tuple[RealRun, ...]
    simulations: Mapping[str, SimulatedRun]
    headline: str
    bands: Bands
    verdict: Verdict
    marks: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]
    repeat_latencies: pd.DataFrame
    request_errors: pd.DataFrame
    alignment_counts: pd.DataFrame
    settings_parity: pd.DataFrame
    pairs: Mapping[tuple[str, str], AlignedPair]

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the simulated variants in the order of the scenario; the last is the headline."""
        return tuple(self.simulations)

    @property
    def latency_errors(self) -> pd.DataFrame:
        """`cells` as a `LatencyErrors` frame."""
        return _frame(LatencyErrors, [asdict(cell) for cell in self.cells])


def compare(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    *,
    bands: Bands,
    calibration_sha256: Collection[str] | None = None,
) -> Comparison:
    """Compare repeats of one real run with simulations of the same workload, by variant name.

    The headline variant is the last of the scenario's `simulation.variants` that was given, or the last given. `calibration_sha256`
    holds the profile's calibration digests (`runs.read_calibration_sha256`); None where the profile is not at hand, which is noted.

    Raises:
        ComparisonError: a refused gate (see the module), or no run on one of the sides.
    """
    _check_runs(real_repeats, simulations)
    _check_not_calibrated_on(real_repeats[0], calibration_sha256)
    simulations = _in_scenario_order(simulations)
    pairs = {
        (real.meta.run_id, variant): align(real, sim) for real in real_repeats for variant, sim in simulations.items()
    }
    cells = _cells(real_repeats, simulations, pairs, bands)
    counts = _frame(
        AlignmentCounts,
        [{"run_id": run, "variant": variant, **asdict(pair.counts)} for (run, variant), pair in pairs.items()],
    )
    parity = _settings_parity(real_repeats, simulations)
    marks = _marks(real_repeats, parity)
    headline = list(simulations)[-1]
    return Comparison(
        real_repeats=tuple(real_repeats),
        simulations=simulations,
        headline=headline,
        bands=bands,
        verdict=_verdict(cells, headline, marked=bool(marks)),
        marks=marks,
        notes=_notes(real_repeats, simulations, counts, calibration_sha256),
        cells=cells,
        repeat_latencies=_repeat_latencies(real_repeats, simulations, pairs),
        request_errors=_request_errors(pairs),
        alignment_counts=counts,
        settings_parity=parity,
        pairs=pairs,
    )


def _in_scenario_order(simulations: Mapping[str, SimulatedRun]) -> dict[str, SimulatedRun]:
    """The scenario's `simulation.variants` in its order, after any that it does not name; the last one is the headline."""
    last_given = list(simulations.values())[-1]
    asked = last_given.meta.params.get("simulation", {}).get("variants", [])
    return dict(sorted(simulations.items(), key=lambda item: asked.index(item[0]) if item[0] in asked else -1))


def judge(relative_error: float, num_samples: int, percentile: int, bands: Bands) -> Outcome:
    """Outcome of one cell. An undefined relative error (real 0, simulated not) is a fail: it is outside every band."""
    if not is_sufficient(num_samples, percentile):
        return "insufficient"
    size = abs(relative_error)
    if size <= bands.pass_band:
        return "pass"
    return "warn" if size <= bands.warn_band else "fail"


# --- gates ------------------------------------------------------------------------------------------------------------


def _check_runs(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> None:
    if not real_repeats:
        raise ComparisonError("no real run given, expected at least one directory under real_runs/.")
    if not simulations:
        raise ComparisonError("no simulation given, expected at least one directory under vidur_runs/.")
    ids = [run.meta.run_id for run in real_repeats]
    twice = [run_id for run_id in ids if ids.count(run_id) > 1]
    if twice:
        raise ComparisonError(
            f"real run {twice[0]} is given more than once, which would hide the spread between repeats. Name it once."
        )
    for variant, sim in simulations.items():
        if sim.meta.variant != variant:
            raise ComparisonError(f"{sim.directory} is of variant {sim.meta.variant!r}, but was given as {variant!r}.")
    runs: list[RealRun | SimulatedRun] = [*real_repeats, *simulations.values()]
    check_same_workload([run.meta for run in runs])
    for other in runs[1:]:
        _check_same_subject(real_repeats[0], other)


def _check_same_subject(first: RealRun, other: RealRun | SimulatedRun) -> None:
    """Same model and same device."""
    one, two = first.meta, other.meta
    if one.model != two.model:
        raise ComparisonError(
            f"run {one.run_id} is of model {one.model}, run {two.run_id} of model {two.model}. Compare runs of one model."
        )
    for key in ("geometry", "dtype"):
        shapes = [meta.params.get("model", {}).get(key) for meta in (one, two)]
        # Runs written by other programs may not record it; then only the name can be compared.
        if None not in shapes and shapes[0] != shapes[1]:
            raise ComparisonError(
                f"run {one.run_id} is of model.{key} {shapes[0]}, run {two.run_id} of {shapes[1]}. Compare runs of one model."
            )
    ours = (one.hardware.hardware_id, one.hardware.device_name, one.hardware.device_count)
    theirs = (two.hardware.hardware_id, two.hardware.device_name, two.hardware.device_count)
    if ours != theirs:
        verb, remedy = (
            ("was simulated for", "Simulate with a profile made on the hardware of the real run.")
            if two.run_type == "vidur"
            else ("was measured on", "Repeats must come from one machine.")
        )
        raise ComparisonError(
            f"run {one.run_id} was measured on {_device(ours)}, run {two.run_id} {verb} {_device(theirs)}. {remedy}"
        )


def _device(hardware: tuple[str, str, int]) -> str:
    hardware_id, name, count = hardware
    return f"{count} x {name} ({hardware_id})"


def _check_not_calibrated_on(real: RealRun, calibration_sha256: Collection[str] | None) -> None:
    requests = real.requests
    arrivals = requests["arrival_time_ns"] - requests["arrival_time_ns"].min()
    lengths = zip(requests["num_prefill_tokens"], requests["num_decode_tokens"], strict=True)
    digests = {
        "workload_id": real.meta.workload_id,
        "lengths and arrivals": workload_digest(lengths, arrivals),
        **real.meta.workload_sha256,
    }
    for name, digest in digests.items():
        if digest in (calibration_sha256 or ()):
            raise ComparisonError(
                f"workload {real.meta.workload_id} ({name} {digest[:24]}) is one the profile was calibrated on, so the comparison would only "
                "show the fit. Compare on a workload that the calibration never saw."
            )


def _settings_parity(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> pd.DataFrame:
    rows = []
    for variant, sim in simulations.items():
        assumed = sim.meta.simulated_settings
        for name in COMPARED_SETTINGS:
            reported = list(dict.fromkeys(getattr(run.meta.engine_settings, name) for run in real_repeats))
            if assumed.get(name) is None:
                parity = "not_recorded"
            else:
                parity = "equal" if reported == [assumed[name]] else "differs"
            rows.append(
                {
                    "variant": variant,
                    "setting": name,
                    "real": " / ".join(str(value) for value in reported),
                    "simulated": "" if parity == "not_recorded" else str(assumed[name]),
                    "parity": parity,
                }
            )
    return _frame(SettingsParity, rows)


def _marks(real_repeats: Sequence[RealRun], parity: pd.DataFrame) -> tuple[str, ...]:
    marks = []
    unequal = parity.loc[parity["parity"] != "equal"]
    for (setting, real, simulated, kind), rows in unequal.groupby(
        ["setting", "real", "simulated", "parity"], sort=False
    ):
        variants = ", ".join(rows["variant"])
        found = (
            f"simulated with {simulated}"
            if kind == "differs"
            else "not recorded by the simulation, so parity is unknown"
        )
        marks.append(f"setting {setting}: engine {real}, {found} ({variants})")
    for run in real_repeats:
        if run.meta.degraded:
            lateness = run.meta.lateness_ns
            worst = f", send lateness P99 {lateness['p99'] / 1e6:.1f} ms" if "p99" in lateness else ""
            marks.append(f"real run {run.meta.run_id} is degraded{worst}")
    return tuple(marks)


def _notes(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    counts: pd.DataFrame,
    calibration_sha256: Collection[str] | None,
) -> tuple[str, ...]:
    notes = []
    per_repeat = counts.drop_duplicates("run_id").set_index("run_id")
    for run in real_repeats:
        row = per_repeat.loc[run.meta.run_id]
        if row["num_errors"] or row["num_no_token"]:
            notes.append(
                f"real run {run.meta.run_id}: {row['num_errors']} failed and {row['num_no_token']} gave no token, of {row['num_requests']} "
                "requests; left out on both sides"
            )
        if run.meta.num_bunched_messages:
            notes.append(
                f"real run {run.meta.run_id}: {run.meta.num_bunched_messages} messages carried more than one token, whose gaps read as 0"
            )
    if per_repeat["num_early_stops"].any():
        notes.append(
            "requests stopped early in the real run, while the simulation ran each to its requested length: after the first early stop "
            "it carries more load than the engine did"
        )
    for variant, sim in simulations.items():
        if sim.meta.num_preemptions:
            notes.append(f"simulation {variant}: {sim.meta.num_preemptions} preemptions")
    if len(real_repeats) == 1:
        notes.append("one real repeat only: no real-against-real spread to read the errors against")
    if calibration_sha256 is None:
        notes.append("the profile's calibration digests were not at hand: not checked that this workload is held out")
    return tuple(notes)


# --- statistics -------------------------------------------------------------------------------------------------------


def _cells(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    pairs: Mapping[tuple[str, str], AlignedPair],
    bands: Bands,
) -> tuple[Cell, ...]:
    cells = []
    for metric in METRICS:
        real_samples: dict[str, list[np.ndarray]] = {}
        sim_samples: dict[str, list[np.ndarray]] = {}
        for variant in simulations:
            aligned = [pairs[run.meta.run_id, variant] for run in real_repeats]
            real_samples[variant] = [samples_ns(pair.real, metric) for pair in aligned]
            sim_samples[variant] = [samples_ns(pair.sim, metric) for pair in aligned]
        for percentile in PERCENTILES:
            for variant in simulations:
                real = [percentile_ns(samples, percentile).value_ns for samples in real_samples[variant]]
                sim = [percentile_ns(samples, percentile).value_ns for samples in sim_samples[variant]]
                real_ns, sim_ns = float(np.median(real)), float(np.median(sim))
                error = relative_error(sim_ns, real_ns)
                smallest = min(len(samples) for samples in real_samples[variant])
                cells.append(
                    Cell(
                        metric=metric,
                        statistic=statistic_name(percentile),
                        variant=variant,
                        real_ns=real_ns,
                        sim_ns=sim_ns,
                        error_ns=sim_ns - real_ns,
                        relative_error=error,
                        real_spread=_spread(real, real_ns),
                        num_real_samples=smallest,
                        num_sim_samples=min(len(samples) for samples in sim_samples[variant]),
                        verdict=judge(error, smallest, percentile, bands),
                    )
                )
    return tuple(cells)


def relative_error(sim: float, real: float) -> float:
    """(sim - real) / real; 0 where both are 0, NaN where only the real value is 0 or either is missing."""
    if real == 0:
        return 0.0 if sim == 0 else math.nan
    return (sim - real) / real


def _spread(values: list[float], median: float) -> float:
    if len(values) < 2 or not median > 0:
        return math.nan
    return (max(values) - min(values)) / median


def _repeat_latencies(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    pairs: Mapping[tuple[str, str], AlignedPair],
) -> pd.DataFrame:
    # Alignment keeps the same real requests and tokens whatever the variant, so any pair serves.
    variant = next(iter(simulations))
    rows = []
    for run in real_repeats:
        side = pairs[run.meta.run_id, variant].real
        for metric in METRICS:
            samples = samples_ns(side, metric)
            for percentile in PERCENTILES:
                found = percentile_ns(samples, percentile)
                rows.append(
                    {
                        "run_id": run.meta.run_id,
                        "metric": metric,
                        "statistic": statistic_name(percentile),
                        "value_ns": found.value_ns,
                        "num_samples": found.num_samples,
                    }
                )
    return _frame(RepeatLatencies, rows)


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
        parts.append(part)
    return _typed(RequestErrors, pd.concat(parts, ignore_index=True))


def _verdict(cells: Sequence[Cell], headline: str, *, marked: bool) -> Verdict:
    names = [statistic_name(percentile) for percentile in DECIDING_PERCENTILES]
    deciding = [cell for cell in cells if cell.variant == headline and cell.statistic in names]
    unjudged = [cell for cell in deciding if cell.verdict == "insufficient"]
    # All cells share the bands, so the largest error is also the worst verdict.
    judged = sorted((cell for cell in deciding if cell not in unjudged), key=lambda cell: cell.error_size, reverse=True)
    outcome: Outcome = judged[0].verdict if judged else "insufficient"
    if marked and outcome == "pass":
        outcome = "warn"
    return Verdict(outcome, tuple(judged), tuple(unjudged))


# --- frames -----------------------------------------------------------------------------------------------------------


def _frame(model: type[Table], rows: list[dict[str, Any]]) -> pd.DataFrame:
    return _typed(model, pd.DataFrame(rows, columns=list(model.to_schema().columns)))


def _typed(model: type[Table], frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` in the contract's column types, validated."""
    required, _ = model.column_types()
    return validate(model, frame.astype(required)[list(required)], model.file_name())
