"""What an error beyond the pass band is due to: each cause with the share of the error that goes when it is removed. No
rule guesses: each names its evidence and what of the error it explains, largest first; the rest is stated as
`unexplained`.

A cause is removed from what was measured, and the error computed again: request by request from the stages (waiting,
prefill, gaps between tokens), or gap by gap from the steps. Shares are of the cell's own statistic, not of a mean. One
cause after another is removed, those that are surely their own share first, and each is reported with its part of the
error that the former left: the shares and the unexplained rest add up to the whole. A cause that takes less than a
tenth of the error with it is not named.

Rules, and what is removed:
- `noise`: the error is within what the real repeats differ by. Then only what made them differ is looked for.
- `step time, decode` and `step time, mixed`: simulated gaps that end in steps of this kind, and for mixed ones the time
  from scheduling to the first token, are scaled by how much longer the real steps of the kind take. `no step overheads`
  instead, for both kinds, where the variant simulates operators only (Vidur as published).
  Steps at compositions that the profile was not calibrated at are reported with them.
- `chunk size`, `scheduling`, `prefix cache`: the simulated times to the first token become the real ones; `sequence
  limit`, `KV blocks`, `preemptions`: the waiting becomes the real one. For a setting that differs and was reached (a
  step, or the KV cache, came as far as the smaller limit of either side). At most: it is not known that the setting
  caused all of what it acts on.
- `driver busy`: the driver's lateness, which only the real side has, is added to the simulation.
- `other programs`: while they took a quarter of the cores or more (the machine's record, in windows of a second, longer
  ones in runs of more than a minute), every request in flight waited for them: those requests are left out on both
  sides, where at least 20 are left.
- `host speed, within repeats`: windows of one second whose steps took longer or shorter than those of equal composition
  elsewhere (median, beyond 15 %): the real times in them are scaled back.
- `host speed, between repeats`: steps of equal composition take longer in some repeats, beyond the pass band: the real
  times of every repeat are scaled to the repeat that the simulation is nearest to.
- `delivery`: tokens reached the client several at a time: requests that were delivered so are left out on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import SCHEDULED, AlignedPair, AlignedSide
from gst_assets.analysis.cells import Cell
from gst_assets.analysis.gate import MANY, delivery_of
from gst_assets.analysis.measures import MAIN_MEASURES, MIN_REQUESTS, percentile_ns
from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.analysis.stages import COMPOSITION, durations_ns, of_kind
from gst_assets.contracts.documents import MachineWindow
from gst_assets.formats import brief_milliseconds, unsigned_percent

STATISTICS = ("p50", "p90", "p99")
NOISE, UNEXPLAINED = "noise", "unexplained"
LEAST_SHARE = 0.1
"""Of an error; a cause that explains less is not named, and an unexplained rest below it is not reported."""
_LEAST_OUTSIDE = 0.01
"""Share of the simulated steps outside calibration from which on the evidence of step times mentions them."""
_NEARLY_FULL = 0.9
"""Share of the KV blocks from which on their number counts as reached: requests hold blocks that are partly empty."""
_ROUNDING = 1e-9
_WINDOW_NS = 1_000_000_000
_DISTURBED = 0.15
"""Steps of a window take so much longer or shorter than those of equal composition, from which on its host counts as
disturbed."""
_OTHERS = 0.25
"""Share of all cores that other programs take in a window, from which on the requests in flight count as disturbed."""
_LEAST_STEPS = 3
"""Steps that a composition, or a window, needs for a median."""
_LIMITS = {"max_num_batched_tokens": "chunk size", "max_num_seqs": "sequence limit"}
_BLOCKS = ("num_kv_blocks", "block_size")
_POLICIES = ("scheduling_policy", "enable_chunked_prefill", "enable_prefix_caching", "async_scheduling")


@dataclass(frozen=True)
class Measured:
    """What the rules look at. Frames are those of `contracts.tables` of the same names; `pairs` maps (real run id,
    variant) to the aligned pair."""

    real_repeats: Sequence[RealRun]
    simulations: Mapping[str, SimulatedRun]
    settings_parity: pd.DataFrame
    stage_errors: pd.DataFrame
    cached_tokens: pd.DataFrame
    pass_band: float
    pairs: Mapping[tuple[str, str], AlignedPair]

    @cached_property
    def host(self) -> _Host | None:
        """The host's speed by window and repeat; None where a repeat recorded no steps."""
        return _host(self.real_repeats)


@dataclass(frozen=True)
class _Side:
    """One side of a pair in float64 nanoseconds. By request: `waited` (until scheduled; 0 where that is not recorded),
    `first` (from there to the first token), `first_at` its time, `num_gaps`. By gap between tokens, in order: `gaps`,
    and `at`, the time of its end. `kept`: requests that count."""

    waited: np.ndarray
    first: np.ndarray
    first_at: np.ndarray
    num_gaps: np.ndarray
    gaps: np.ndarray
    at: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, side: AlignedSide, *, told: bool) -> _Side:
        requests, tokens = side.requests, side.tokens
        arrival, ttft = (requests[name].to_numpy(dtype="float64") for name in ("arrival_time_ns", "ttft_ns"))
        waited = requests[SCHEDULED].to_numpy(dtype="float64") - arrival if told else np.zeros(len(requests))
        if tokens.empty:
            # Without token times the whole decode is one gap, so that E2E is the sum of its parts; ITL has no cell to
            # explain.
            decode = requests["e2e_ns"].to_numpy(dtype="float64") - ttft
            ones = np.ones(len(requests), dtype=np.int64)
            ends = arrival + ttft + decode
            return cls(waited, ttft - waited, arrival + ttft, ones, decode, ends, ones.astype(bool))
        later = tokens["token_index"].to_numpy() > 0
        return cls(
            waited,
            ttft - waited,
            arrival + ttft,
            requests["num_tokens"].to_numpy() - 1,
            tokens["token_latency_ns"].to_numpy()[later].astype(np.float64),
            tokens["token_time_ns"].to_numpy()[later].astype(np.float64),
            np.ones(len(requests), dtype=bool),
        )

    def values(self, metric: str) -> np.ndarray:
        """Samples of a main measure, in ascending order."""
        if metric == "itl":
            return self._itl
        return self._ttft if metric == "ttft" else self._e2e

    # Cached, since most removals change one side only.
    @cached_property
    def _itl(self) -> np.ndarray:
        return np.sort(self.gaps if self.kept.all() else self.gaps[np.repeat(self.kept, self.num_gaps)])

    @cached_property
    def _ttft(self) -> np.ndarray:
        return np.sort((self.waited + self.first)[self.kept])

    @cached_property
    def _e2e(self) -> np.ndarray:
        return np.sort(self.e2e[self.kept])

    @cached_property
    def e2e(self) -> np.ndarray:
        """From arrival to the last token, by request."""
        ends = np.cumsum(self.num_gaps)
        total = np.concatenate([[0.0], np.cumsum(self.gaps)])
        return self.waited + self.first + total[ends] - total[ends - self.num_gaps]

    def only(self, kept: np.ndarray) -> _Side:
        """Without the requests that do not count in `kept` either."""
        return replace(self, kept=self.kept & kept)


@dataclass(frozen=True)
class _Pair:
    """A real repeat and a variant."""

    run: RealRun
    real: _Side
    sim: _Side


Removal = Callable[[_Pair], _Pair]


@dataclass(frozen=True)
class Cause:
    """A cause, the evidence for it in words, and how it is removed. `at_most`: what goes with it need not all be its
    own. `is_recorded`: it was seen by itself, not inferred from latencies or steps, which it changed as well."""

    name: str
    evidence: str
    remove: Removal
    at_most: bool = False
    is_recorded: bool = False


def cause_rows(cells: Sequence[Cell], measured: Measured) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.ErrorCauses`: of every cell of TTFT, ITL and E2E at P50, P90 and P99 beyond the pass
    band, in each variant, but for those without an interval."""
    rows: list[dict[str, Any]] = []
    for variant, sim in measured.simulations.items():
        explained = [one for one in cells if one.variant == variant and _is_explained(one, measured)]
        states = _states(variant, measured) if explained else []
        # The median of single gaps follows what steps typically take; sums and tails also what the slow ones do.
        for typical in (False, True):
            mine = [one for one in explained if (one.metric == "itl" and one.statistic == "p50") is typical]
            rows += (
                _rows(mine, states, list(_causes(variant, sim, measured, typical=typical)), measured) if mine else []
            )
    order = {(one.metric, one.statistic, one.variant): place for place, one in enumerate(cells)}
    return sorted(rows, key=lambda row: (order[row["metric"], row["statistic"], row["variant"]], row["rank"]))


def _rows(
    cells: Sequence[Cell], states: Sequence[_Pair], causes: Sequence[Cause], measured: Measured
) -> list[dict[str, Any]]:
    """The rows of cells of one variant."""
    before = _errors(cells, states)
    left = [_errors(cells, [cause.remove(one) for one in states]) for cause in causes]
    rows = []
    for number, cell in enumerate(cells):
        shares = [_share(before[number], one[number]) for one in left]
        named = _named(cell, causes, shares, states, before[number], measured)
        for rank, (name, evidence, share) in enumerate(named, 1):
            rows.append(
                {
                    "variant": cell.variant,
                    "metric": cell.metric,
                    "statistic": cell.statistic,
                    "relative_error": cell.relative_error,
                    "rank": rank,
                    "cause": name,
                    "evidence": evidence,
                    "share": share,
                }
            )
    return rows


def _is_explained(cell: Cell, measured: Measured) -> bool:
    known = cell.num_real_samples and not (cell.verdict == "insufficient" and math.isnan(cell.interval_low))
    return bool(
        known
        and cell.metric in MAIN_MEASURES
        and cell.statistic in STATISTICS
        and measured.pass_band < cell.error_size < math.inf
    )


def _named(
    cell: Cell,
    causes: Sequence[Cause],
    shares: Sequence[float],
    states: Sequence[_Pair],
    before: float,
    measured: Measured,
) -> list[tuple[str, str, float]]:
    """Name, evidence and share of every cause of one cell, largest first, and the rest."""
    noisy = cell.error_size <= cell.real_spread
    likely = [
        (cause, share)
        for cause, share in zip(causes, shares, strict=True)
        if share >= LEAST_SHARE and (not noisy or cause.is_recorded or cause.name.startswith("host speed"))
    ]
    # What was seen by itself goes first, then what is known to be a cause's own, then what leaves the least.
    likely.sort(key=lambda one: (not one[0].is_recorded, one[0].at_most, abs(1 - one[1])))
    named, left = [], 1.0
    for cause, _ in likely:
        cleared = [cause.remove(one) for one in states]
        after = 1 - _share(before, _errors([cell], cleared)[0])
        if abs(left) - abs(after) >= LEAST_SHARE:
            share = left - after
            named.append((cause.name, cause.evidence + _told(share, after, at_most=cause.at_most), share))
            states, left = cleared, after
    named.sort(key=lambda one: -abs(one[2]))
    if noisy:
        text = (
            f"the error is no larger than what {len(measured.real_repeats)} real repeats differ by,"
            f" {unsigned_percent(cell.real_spread)}"
        )
        return [(NOISE, text, math.nan), *named]
    if abs(left) >= LEAST_SHARE or not named:
        where = _whereabouts(cell, measured) if not named else "what is left without the causes above"
        named.append((UNEXPLAINED, f"{where} ({unsigned_percent(left, 0)} of the error)", left))
    return named


def _told(gone: float, after: float, *, at_most: bool) -> str:
    over = ", which then has the other sign" if after < -LEAST_SHARE else ""
    return f"; {'at most ' if at_most else ''}{unsigned_percent(gone, 0)} of the error goes with it{over}"


def _share(before: float, after: float) -> float:
    """How much of an error is gone; 0 where it was none."""
    return 1 - after / before if before and math.isfinite(after) else 0.0


def _errors(cells: Sequence[Cell], states: Sequence[_Pair]) -> list[float]:
    """Simulated minus real in ns, medians over repeats as in the report. Nothing left to compare is no error."""
    found, known = [], {}
    for cell in cells:
        if cell.metric not in known:
            known[cell.metric] = [(one.real.values(cell.metric), one.sim.values(cell.metric)) for one in states]
        percentile = int(cell.statistic[1:])
        sides = [(percentile_ns(real, percentile), percentile_ns(sim, percentile)) for real, sim in known[cell.metric]]
        some = np.array([one for one in sides if not math.isnan(one[0])])
        found.append(float(np.median(some[:, 1]) - np.median(some[:, 0])) if len(some) else 0.0)
    return found


def _states(variant: str, measured: Measured) -> list[_Pair]:
    pairs = [measured.pairs[run.meta.run_id, variant] for run in measured.real_repeats]
    told = all(SCHEDULED in pair.real.requests for pair in pairs)
    return [
        _Pair(run, _Side.of(pair.real, told=told), _Side.of(pair.sim, told=told))
        for run, pair in zip(measured.real_repeats, pairs, strict=True)
    ]


def _causes(variant: str, sim: SimulatedRun, measured: Measured, *, typical: bool) -> Iterator[Cause]:
    """Everything that the evidence allows, whatever it explains."""
    yield from _limits(variant, sim, measured)
    yield from _scheduling(variant, measured)
    yield from _step_times(sim, measured, typical=typical)
    yield from _preemptions(sim, measured)
    yield from _prefix_cache(variant, measured)
    yield from _driver(measured)
    yield from _other_programs(measured)
    yield from _host_within(measured)
    yield from _host_between(measured)
    yield from _delivery(measured)


# --- what is removed --------------------------------------------------------------------------------------------------


def _with_real_waiting(pair: _Pair) -> _Pair:
    return replace(pair, sim=replace(pair.sim, waited=pair.real.waited))


def _with_real_first_token(pair: _Pair) -> _Pair:
    return replace(pair, sim=replace(pair.sim, waited=pair.real.waited, first=pair.real.first))


# --- settings ---------------------------------------------------------------------------------------------------------


def _limits(variant: str, sim: SimulatedRun, measured: Measured) -> Iterator[Cause]:
    differing = _differing(variant, measured)
    runs: list[RealRun | SimulatedRun] = [*measured.real_repeats, sim]
    for name, cause in _LIMITS.items():
        if name not in differing:
            continue
        peak = _peak(runs, _step_tokens if name == "max_num_batched_tokens" else _step_requests)
        reached = _reached(peak, _least(name, sim, measured))
        unit = "tokens" if name == "max_num_batched_tokens" else "requests"
        if reached is not False:
            told = (
                "no run recorded its steps, so whether it was reached is not known"
                if reached is None
                else f"a step had {peak:.0f} {unit}"
            )
            remove = _with_real_first_token if cause == "chunk size" else _with_real_waiting
            yield Cause(cause, f"{name}: {differing[name]}; {told}", remove, at_most=True)
    blocks = [name for name in _BLOCKS if name in differing]
    if blocks:
        capacity = _kv_capacity(sim, measured)
        peak = _peak(runs, _kv_tokens)
        reached = _reached(peak, capacity * _NEARLY_FULL)
        number = max(
            [
                sim.meta.num_preemptions or 0,
                *(count for run in measured.real_repeats if (count := _preempted(run)) is not None),
            ]
        )
        if reached is not False or number:
            told = (
                f"{number} preemptions"
                if number
                else "no run recorded its steps, so whether they were filled is not known"
            )
            if reached:
                told = f"up to {peak:.0f} of {capacity:.0f} tokens held" + (f", {number} preemptions" if number else "")
            text = f"{'; '.join(f'{name}: {differing[name]}' for name in blocks)}; {told}"
            yield Cause("KV blocks", text, _with_real_waiting, at_most=True)


def _scheduling(variant: str, measured: Measured) -> Iterator[Cause]:
    differing = _differing(variant, measured)
    told = [f"{name}: {differing[name]}" for name in _POLICIES if name in differing]
    if told:
        yield Cause("scheduling", "; ".join(told), _with_real_first_token, at_most=True)


def _differing(variant: str, measured: Measured) -> dict[str, str]:
    """By setting that differs: the engine's value and the simulation's, in words."""
    parity = measured.settings_parity
    rows = parity[(parity["variant"] == variant) & (parity["parity"] == "differs")]
    return {
        str(setting): f"engine {real}, simulated {simulated}"
        for setting, real, simulated in zip(rows["setting"], rows["real"], rows["simulated"], strict=True)
    }


def _least(name: str, sim: SimulatedRun, measured: Measured) -> float:
    """The smallest value of a limit on either side."""
    values = [
        float(getattr(run.meta.engine_settings, name)) for run in measured.real_repeats if run.meta.engine_settings
    ]
    return min([*values, float(sim.meta.simulated_settings[name])])


def _kv_capacity(sim: SimulatedRun, measured: Measured) -> float:
    """Tokens that the smallest cache of either side holds. A side that does not report number and size of its blocks is
    left out."""
    caches: list[tuple[int | None, int | None]] = [
        (run.meta.engine_settings.num_kv_blocks, run.meta.engine_settings.block_size)
        for run in measured.real_repeats
        if run.meta.engine_settings
    ]
    assumed = sim.meta.simulated_settings
    caches.append((assumed.get("num_kv_blocks"), assumed.get("block_size")))
    return min(float(blocks * size) for blocks, size in caches if blocks and size)


def _peak(runs: Sequence[RealRun | SimulatedRun], of: Any) -> float | None:
    """The largest value over all recorded steps; None where no run recorded any."""
    tables = [run.iterations for run in runs if run.iterations is not None and len(run.iterations)]
    return max((float(of(table).max()) for table in tables), default=None)


def _reached(peak: float | None, limit: float) -> bool | None:
    return None if peak is None else peak >= limit


def _step_tokens(table: pd.DataFrame) -> pd.Series:
    return table["num_prefill_tokens"] + table["num_decode_requests"]


def _step_requests(table: pd.DataFrame) -> pd.Series:
    return table["num_prefill_requests"] + table["num_decode_requests"]


def _kv_tokens(table: pd.DataFrame) -> pd.Series:
    return table["num_context_tokens"] + _step_tokens(table)


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """How the time of a kind of step differs, in the middle of the real repeats; `factor` makes simulated times the
    real ones."""

    factor: float
    text: str


def _step(sim: SimulatedRun, kind: str, measured: Measured, *, typical: bool) -> _Step | None:
    """By medians where `typical`, else by means; None where a side recorded no steps of the kind."""
    middle = np.median if typical else np.mean
    runs = [run.iterations for run in measured.real_repeats if run.iterations is not None]
    found = [float(middle(some)) for table in runs if len(some := durations_ns(table)[of_kind(table, kind)])]
    if sim.iterations is None or not found:
        return None
    simulated = durations_ns(sim.iterations)[of_kind(sim.iterations, kind)]
    real, other = float(np.median(found)), float(middle(simulated)) if len(simulated) else 0.0
    if not real or not other:
        return None
    what = "steps" if kind == "all" else f"{kind} steps"
    text = (
        f"{what} take {brief_milliseconds(other)} ms simulated, {brief_milliseconds(real)} ms real"
        f" ({100 * (other / real - 1):+.1f} %, {'medians' if typical else 'means'})"
    )
    return _Step(real / other, text)


def _step_times(sim: SimulatedRun, measured: Measured, *, typical: bool) -> Iterator[Cause]:
    if sim.iterations is None or not len(sim.iterations):
        return
    steps = {kind: step for kind in ("decode", "mixed") if (step := _step(sim, kind, measured, typical=typical))}
    if not steps:
        return
    ends = sim.iterations["completion_time_ns"].to_numpy(dtype="int64")
    order = np.argsort(ends, kind="stable")
    mixed = (sim.iterations["num_prefill_tokens"].to_numpy(dtype="int64") > 0)[order]
    ends = ends[order]

    def scaled(factors: Mapping[str, float]) -> Removal:
        def remove(pair: _Pair) -> _Pair:
            # A token is seen after the end of its step and before that of the next.
            step = np.clip(np.searchsorted(ends, pair.sim.at, side="right") - 1, 0, len(ends) - 1)
            by_gap = np.where(mixed[step], factors.get("mixed", 1.0), factors.get("decode", 1.0))
            first = pair.sim.first * factors.get("mixed", 1.0)
            return replace(pair, sim=replace(pair.sim, gaps=pair.sim.gaps * by_gap, first=first))

        return remove

    every = "; ".join(step.text for step in steps.values())
    if sim.meta.simulated_settings.get("step_overheads") is False:
        both = scaled({kind: step.factor for kind, step in steps.items()})
        yield Cause("no step overheads", f"the variant simulates operators only; {every}", both)
        return
    outside = sim.meta.simulated_settings.get("steps_outside_calibration") or 0
    beyond = ""
    if outside / len(sim.iterations) >= _LEAST_OUTSIDE:
        beyond = (
            f"; {outside} of {len(sim.iterations)} simulated steps ({unsigned_percent(outside / len(sim.iterations))})"
            " lie outside what was calibrated, where the nearest value was held"
        )
    for kind, step in steps.items():
        if abs(1 - step.factor) > _ROUNDING:
            yield Cause(f"step time, {kind}", step.text + beyond, scaled({kind: step.factor}))


# --- what happened ----------------------------------------------------------------------------------------------------


def _preempted(run: RealRun) -> int | None:
    if "num_preemptions" not in run.requests or run.requests["num_preemptions"].isna().any():
        return None
    return int(run.requests["num_preemptions"].sum())


def _preemptions(sim: SimulatedRun, measured: Measured) -> Iterator[Cause]:
    real = [_preempted(run) for run in measured.real_repeats]
    known, simulated = [count for count in real if count is not None], sim.meta.num_preemptions
    if simulated is None or len(known) < len(real) or min(known) <= simulated <= max(known):
        return
    text = f"{' / '.join(map(str, known))} in the real repeats, {simulated} simulated"
    yield Cause("preemptions", text, _with_real_waiting, at_most=True)


def _prefix_cache(variant: str, measured: Measured) -> Iterator[Cause]:
    """Where every repeat took other prompt tokens from the cache than the simulation, request by request."""
    table = measured.cached_tokens
    rows = table[table["compared_with"] == variant]
    if rows.empty or rows["num_equal"].isna().any():
        return
    differing = rows["num_requests"] - rows["num_equal"]
    if not differing.min():
        return

    def told(values: pd.Series) -> str:
        return " / ".join(map(str, values))

    text = (
        f"tokens from the cache differ in {told(differing)} of {told(rows['num_requests'].drop_duplicates())} requests:"
        f" {told(rows['num_real_cached_tokens'])} in the real repeats,"
        f" {told(rows['num_other_cached_tokens'].drop_duplicates())} simulated"
    )
    yield Cause("prefix cache", text, _with_real_first_token, at_most=True)


def _driver(measured: Measured) -> Iterator[Cause]:
    late: dict[str, np.ndarray] = {}
    for run in measured.real_repeats:
        if "send_time_ns" not in run.requests or run.requests["send_time_ns"].isna().all():
            return
        lateness = (run.requests["send_time_ns"] - run.requests["arrival_time_ns"]).astype("Float64")
        late[run.meta.run_id] = lateness.fillna(0).to_numpy(dtype="float64")
    pairs = measured.pairs
    variant = next(iter(measured.simulations))

    def remove(pair: _Pair) -> _Pair:
        ids = pairs[pair.run.meta.run_id, variant].real.requests["request_id"].to_numpy()
        return replace(pair, sim=replace(pair.sim, waited=pair.sim.waited + late[pair.run.meta.run_id][ids]))

    middle, tail = (float(np.median([np.percentile(one, at) for one in late.values()])) for at in (50, 90))
    yield Cause(
        "driver busy",
        f"the driver sent requests {brief_milliseconds(middle)} ms late at P50, {brief_milliseconds(tail)} ms at P90",
        remove,
    )


def _other_programs(measured: Measured) -> Iterator[Cause]:
    disturbed: dict[str, list[MachineWindow]] = {}
    for run in measured.real_repeats:
        windows = run.meta.machine.windows if run.meta.machine else []
        disturbed[run.meta.run_id] = [one for one in windows if (one.cpu_others or 0.0) >= _OTHERS]
    if not any(disturbed.values()):
        return

    def remove(pair: _Pair) -> _Pair:
        begin = pair.real.first_at - pair.real.first - pair.real.waited
        end = begin + pair.real.e2e
        kept = np.ones(len(begin), dtype=bool)
        for one in disturbed[pair.run.meta.run_id]:
            kept &= (end <= one.start_ns) | (begin >= one.end_ns)
        # Of a repeat that was disturbed nearly throughout too little is left to be compared with.
        has_gaps = pair.real.num_gaps[kept].any() or not pair.real.num_gaps.any()
        if int((kept & pair.real.kept).sum()) < MIN_REQUESTS or not has_gaps:
            return pair
        return replace(pair, real=pair.real.only(kept), sim=pair.sim.only(kept))

    found = [
        f"{unsigned_percent(max(one.cpu_others or 0.0 for one in windows), 0)} of the cores in"
        f" {sum(one.end_ns - one.start_ns for one in windows) / 1e9:.0f} s of {run_id} (from"
        f" {windows[0].start_ns / 1e9:.0f} s to {windows[-1].end_ns / 1e9:.0f} s)"
        for run_id, windows in disturbed.items()
        if windows
    ]
    yield Cause("other programs", f"other programs took up to {'; '.join(found)}", remove, is_recorded=True)


@dataclass(frozen=True)
class _Host:
    """The host's speed, as log of the time of steps over that of equal ones. `repeats`: the median of each; `windows`:
    by run id, that of each window of a second over the repeat's own (NaN: too few steps), from the time `begin`."""

    repeats: dict[str, float]
    windows: dict[str, np.ndarray]
    begin: dict[str, int]


def _host(real_repeats: Sequence[RealRun]) -> _Host | None:
    """None where a repeat recorded no steps, or the repeats share no composition often enough."""
    tables = []
    for run in real_repeats:
        if run.iterations is None or not len(run.iterations):
            return None
        table = run.iterations[list(COMPOSITION)].astype("int64")
        # Prompts that come in one step differ in size, contexts hardly from one step to the next: their sizes by powers
        # of two.
        table["num_prefill_tokens"] = np.ceil(np.log2(table["num_prefill_tokens"] + 1)).astype("int64")
        context = run.iterations["num_context_tokens"].to_numpy(dtype="int64")
        table["context"] = np.ceil(np.log2(context + 1)).astype("int64")
        table["log"] = np.log(np.maximum(durations_ns(run.iterations), 1))
        table["at"] = run.iterations["completion_time_ns"].to_numpy(dtype="int64")
        table["run"] = run.meta.run_id
        tables.append(table)
    steps = pd.concat(tables, ignore_index=True)
    alike = steps.groupby([*COMPOSITION, "context"])["log"]
    steps["log"] -= alike.transform("median")
    steps = steps[alike.transform("size") >= _LEAST_STEPS]
    if set(steps["run"]) != {run.meta.run_id for run in real_repeats}:
        return None
    repeats, windows, begin = {}, {}, {}
    for name, mine in steps.groupby("run", sort=False):
        run_id = str(name)
        repeats[run_id] = float(mine["log"].median())
        begin[run_id] = int(mine["at"].min())
        number = (mine["at"] - begin[run_id]) // _WINDOW_NS
        by_window = mine["log"].groupby(number)
        middle = by_window.median().where(by_window.size() >= _LEAST_STEPS)
        # What is usual in this repeat is the median over its windows: a slow one has fewer steps, and counts as much.
        windows[run_id] = (middle - middle.median()).reindex(range(int(number.max()) + 1)).to_numpy(dtype="float64")
    return _Host(repeats, windows, begin)


def _host_within(measured: Measured) -> Iterator[Cause]:
    host = measured.host
    if host is None:
        return
    disturbed = {
        run_id: np.where(np.abs(np.nan_to_num(found)) > math.log1p(_DISTURBED), np.nan_to_num(found), 0.0)
        for run_id, found in host.windows.items()
    }
    if not any(one.any() for one in disturbed.values()):
        return

    def remove(pair: _Pair) -> _Pair:
        run_id = pair.run.meta.run_id

        def factor(at: np.ndarray) -> np.ndarray:
            window = ((at - host.begin[run_id]) // _WINDOW_NS).astype(np.int64)
            inside = (window >= 0) & (window < len(disturbed[run_id]))
            return np.where(inside, np.exp(-disturbed[run_id][np.where(inside, window, 0)]), 1.0)

        real = pair.real
        first = factor(real.first_at)
        scaled = replace(real, waited=real.waited * first, first=real.first * first, gaps=real.gaps * factor(real.at))
        return replace(pair, real=scaled)

    told = []
    for run_id, found in disturbed.items():
        if found.any():
            where = np.flatnonzero(found)
            ratio = math.exp(float(np.median(found[where])))
            told.append(
                f"{run_id}: {ratio:.2f} times as long in {len(where)} of {len(found)} s ({where[0]} s to"
                f" {where[-1] + 1} s after its first step)"
            )
    yield Cause("host speed, within repeats", f"steps of equal composition took, in {'; in '.join(told)}", remove)


def _host_between(measured: Measured) -> Iterator[Cause]:
    host = measured.host
    if host is None or len(host.repeats) < 2:
        return
    lowest, highest = min(host.repeats.values()), max(host.repeats.values())
    if math.expm1(highest - lowest) <= measured.pass_band:
        return

    def remove(pair: _Pair) -> _Pair:
        # The side the simulation lies on, by this repeat's own pair: the fastest repeat where it is too fast.
        fast = pair.sim.values("e2e").sum() < pair.real.values("e2e").sum()
        factor = math.exp((lowest if fast else highest) - host.repeats[pair.run.meta.run_id])
        real = pair.real
        return replace(pair, real=replace(real, first=real.first * factor, gaps=real.gaps * factor))

    told = " / ".join(f"{math.exp(one - lowest):.2f}" for one in host.repeats.values())
    text = (
        f"steps of equal composition took {told} times as long in the repeats, over the fastest; share if all ran as"
        " the one nearest to the simulation"
    )
    yield Cause("host speed, between repeats", text, remove)


def _delivery(measured: Measured) -> Iterator[Cause]:
    found = {run.meta.run_id: delivery_of(run) for run in measured.real_repeats}
    worst = max(one.tokens for one in found.values())
    if worst <= MANY:
        return

    def remove(pair: _Pair) -> _Pair:
        real = pair.real
        together = np.bincount(
            np.repeat(np.arange(len(real.num_gaps)), real.num_gaps), real.gaps == 0, len(real.num_gaps)
        )
        kept = together <= MANY * real.num_gaps
        return replace(pair, real=real.only(kept), sim=pair.sim.only(kept))

    yield Cause(
        "delivery",
        f"up to {unsigned_percent(worst, 0)} of the tokens reached the client together with the one before",
        remove,
    )


def _whereabouts(cell: Cell, measured: Measured) -> str:
    """For an error without a cause: what is known of its place."""
    table = measured.stage_errors
    stages = table[(table["variant"] == cell.variant) & (table["stage"] != "e2e")]
    largest = stages.iloc[int(stages["error_ns"].abs().to_numpy().argmax())]
    known = (
        f"no rule fits; the largest part of the mean error is in {largest['stage']},"
        f" {brief_milliseconds(largest['error_ns'])} ms a request"
    )
    step = _step(measured.simulations[cell.variant], "all", measured, typical=False)
    return f"{known}; {step.text}" if step else f"{known}; steps were not recorded on both sides"
