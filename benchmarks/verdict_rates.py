"""How often the interval from repeats holds the true error, and how often a verdict by it is wrong: `python
benchmarks/verdict_rates.py`.

Each trial is one workload of dependent requests, played 2 to 8 times by a synthetic engine, and a simulation whose
error on this workload is planted. Intervals and verdicts come from `gst_assets.analysis`, by the functions that a
report calls, and from the interval of resampled requests, which was used before. Prints the tables of
docs/comparison.md. Seeded; about five minutes of one core.

With `--leave-one-out DIR` instead: each of the recorded real runs under DIR once taken as the simulation of the others,
as it is and with its times from arrival longer by `--factor`.

Engines (168 requests; latencies lognormal, sigma 0.5, autoregressive 0.8 in the order of arrival, the same in every
repeat; each request's own noise 10 %)
- `steady` repeats differ by 1 % (lognormal) in addition;
- `dependent requests` the noise of requests is 20 % and autoregressive 0.9: busy and quiet stretches of their own in
  every repeat;
- `warming` repeats get slower by 1 % each; the truth is the middle of those played;
- `wandering` the host's speed is autoregressive 0.5 from repeat to repeat, 2 %; the truth is its long run, which a
  handful of neighbours cannot show;
- `two speeds between` each repeat is at one of two speeds, 1.26 apart (measured: single-request steps of 1.55 or 1.95
  ms), as often this as that;
- `two speeds within` the host switches between them every 40 requests on average;
- `disturbed` one repeat in five is slower by 15 %.
The truth is the median of the statistic over 1,000 repeats of the same workload; for two speeds between, halfway.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from gst_assets.analysis.bootstrap import Blocks, Interval, block_length, dependence, intervals, replicate
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.measures import STATISTICS, Samples, statistics_ns
from gst_assets.analysis.repeats import RepeatInterval, repeat_interval
from gst_assets.analysis.run_reading import RealRun, Run, SimulatedRun, load_run
from gst_assets.analysis.verdict import Outcome, judge
from gst_assets.contracts.documents import VidurRunMeta
from gst_assets.engine.recorded import expand
from gst_assets.scenario import Bands

NUM_REQUESTS = 168
TRUTH_REPEATS = 1000
MOST_REPEATS = 8
SEEDS = 5
SEED_NOISE = 0.005
PLANTED = (0.0, 0.03, 0.051, 0.07, 0.099, 0.101, 0.15)
"""True errors: none, inside the pass band, just beyond it, between the bands, just inside and just beyond the warn
band, far beyond."""
TWO_SPEEDS = 0.5 * float(np.log(1.95 / 1.55))
PERCENTILES = ("p50", "p90")


# --- engines ----------------------------------------------------------------------------------------------------------


def _ar(rng: np.random.Generator, shape: tuple[int, int], coefficient: float, sigma: float) -> np.ndarray:
    """Stationary rows."""
    noise = rng.normal(0, sigma * np.sqrt(1 - coefficient**2), (shape[0], shape[1] + 100))
    return lfilter([1.0], [1.0, -coefficient], noise, axis=1)[:, 100:]


def _own(rng: np.random.Generator, repeats: int, sigma: float = 0.01) -> np.ndarray:
    return rng.normal(0, sigma, (repeats, 1))


def _noise(rng: np.random.Generator, repeats: int) -> np.ndarray:
    return rng.normal(0, 0.1, (repeats, NUM_REQUESTS))


def _two_within(rng: np.random.Generator, repeats: int) -> np.ndarray:
    switches = np.cumsum(rng.random((repeats, NUM_REQUESTS)) < 1 / 40, axis=1) + rng.integers(0, 2, (repeats, 1))
    return TWO_SPEEDS * (2 * (switches % 2) - 1)


ENGINES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "steady": lambda rng, n: _noise(rng, n) + _own(rng, n),
    "dependent requests": lambda rng, n: _ar(rng, (n, NUM_REQUESTS), 0.9, 0.2) + _own(rng, n),
    "warming": lambda rng, n: _noise(rng, n) + _own(rng, n, 0.005) + 0.01 * np.arange(n)[:, None],
    "wandering": lambda rng, n: _noise(rng, n) + _ar(rng, (1, n), 0.5, 0.02).T,
    "two speeds between": (
        lambda rng, n: _noise(rng, n) + _own(rng, n, 0.005) + TWO_SPEEDS * rng.choice([-1.0, 1.0], (n, 1))
    ),
    "two speeds within": lambda rng, n: _noise(rng, n) + _own(rng, n) + _two_within(rng, n),
    "disturbed": lambda rng, n: _noise(rng, n) + _own(rng, n) + 0.14 * (rng.random((n, 1)) < 0.2),
}
"""Log of the factors of each request of each repeat, [repeats, requests]."""


@dataclass(frozen=True)
class Trial:
    """One workload: `repeats` [repeats, requests] in ns, `truth` of P50 and P90 after each number of repeats, `sim`
    [requests] without error in shape, `seeds` factors of the simulation's seeds."""

    repeats: np.ndarray
    truth: dict[int, np.ndarray]
    sim: np.ndarray
    seeds: np.ndarray

    @cached_property
    def percentiles(self) -> np.ndarray:
        """P50 and P90 of each repeat, [repeats, 2]."""
        return _percentiles(self.repeats)


def trial(engine: str, seed: int) -> Trial:
    """One workload, eight repeats of it and its truth."""
    rng = np.random.default_rng([seed, sorted(ENGINES).index(engine)])
    base = 20e6 * np.exp(_ar(rng, (1, NUM_REQUESTS), 0.8, 0.5)[0])
    repeats = base * np.exp(ENGINES[engine](rng, MOST_REPEATS))
    sim = base * np.exp(_ar(rng, (1, NUM_REQUESTS), 0.8, 0.1)[0])
    truth = {}
    if engine == "warming":
        still = np.median(_percentiles(base * np.exp(ENGINES["steady"](rng, TRUTH_REPEATS))), axis=0)
        truth = {n: still * np.exp(0.01 * (n - 1) / 2) for n in range(2, MOST_REPEATS + 1)}
    else:
        many = _percentiles(base * np.exp(_independent(engine, rng)))
        middle = np.exp(np.log(many).mean(axis=0)) if engine == "two speeds between" else np.median(many, axis=0)
        truth = dict.fromkeys(range(2, MOST_REPEATS + 1), middle)
    return Trial(repeats, truth, sim, np.exp(rng.normal(0, SEED_NOISE, SEEDS)))


def _independent(engine: str, rng: np.random.Generator) -> np.ndarray:
    """Repeats that do not depend on each other, so that their median is that of the long run."""
    if engine == "wandering":
        return _noise(rng, TRUTH_REPEATS) + _own(rng, TRUTH_REPEATS, 0.02)
    return ENGINES[engine](rng, TRUTH_REPEATS)


def _percentiles(latencies: np.ndarray) -> np.ndarray:
    """P50 and P90 of each row, [rows, 2]."""
    return np.percentile(latencies, [50, 90], axis=1).T


# --- intervals --------------------------------------------------------------------------------------------------------


def by_repeats(one: Trial, num_repeats: int, error: float, column: int) -> RepeatInterval:
    """The interval of a simulation with this true error at P50 (column 0) or P90."""
    real = one.percentiles[:num_repeats, column]
    sim = np.tile(one.truth[num_repeats][column] * (1 + error) * one.seeds, (num_repeats, 1))
    found = repeat_interval(real, sim)
    assert found is not None
    return found


def by_requests(one: Trial, num_repeats: int, column: int) -> Interval:
    """The interval of resampled requests, of a simulation without error at this percentile."""
    percentile = _percentiles(one.sim[None])[0, column]
    arrays = [*one.repeats[:num_repeats], one.sim * one.truth[num_repeats][column] / percentile]
    samples = [Samples(np.round(values).astype(np.int64), np.ones(NUM_REQUESTS, dtype=np.int64)) for values in arrays]
    order = np.arange(NUM_REQUESTS)
    blocks = Blocks(order, block_length([dependence(side, samples[-1], order) for side in samples[:-1]]))
    drawn = [replicate(side, side.ordered(), blocks) for side in samples]
    exact = np.array([statistics_ns(side.ordered()) for side in samples])
    found = intervals(drawn[:-1], [drawn[-1]] * num_repeats, exact[:-1], np.tile(exact[-1], (num_repeats, 1)), blocks)
    return found[STATISTICS.index(PERCENTILES[column])]


@dataclass
class Rates:
    """Of one engine and number of repeats, over trials, P50 and P90: whether the interval held the truth, was flagged,
    its half width; verdicts by true error."""

    held: list[bool]
    flagged: list[bool]
    widths: list[float]
    given: dict[float, Counter[Outcome]]

    @property
    def coverage(self) -> float:
        """Of all."""
        return float(np.mean(self.held))

    @property
    def unflagged(self) -> float:
        """Coverage of those quoted without a flag, NaN of none."""
        held = [one for one, flagged in zip(self.held, self.flagged, strict=True) if not flagged]
        return float(np.mean(held)) if held else float("nan")

    def share(self, outcome: Outcome, error: float) -> float:
        """How often a true error was given this outcome."""
        return self.given[error][outcome] / self.given[error].total()

    @property
    def false_pass(self) -> float:
        """At the worst of the true errors beyond the pass band."""
        return max(self.share("pass", error) for error in PLANTED if error > Bands().pass_band)

    @property
    def false_fail(self) -> float:
        """At the worst of the true errors within the warn band."""
        return max(self.share("fail", error) for error in PLANTED if error < Bands().warn_band)


def measured(num_repeats: int, trials: Sequence[Trial]) -> Rates:
    """The new interval and its verdicts."""
    rates, bands = Rates([], [], [], {error: Counter() for error in PLANTED}), Bands()
    for one in trials:
        for column in range(len(PERCENTILES)):
            for error in PLANTED:
                found = by_repeats(one, num_repeats, error, column)
                outcome = judge(error, Interval(found.low, found.high), bands, sufficient=True, few_repeats=found.few)
                rates.given[error][outcome] += 1
                if error == 0:
                    rates.held.append(found.low <= 0 <= found.high)
                    rates.flagged.append(found.few or found.drifts)
                    rates.widths.append((found.high - found.low) / 2)
    return rates


def measured_by_requests(num_repeats: int, trials: Sequence[Trial]) -> Rates:
    """The former interval and its verdicts, as if its samples were always worth enough. A factor on the simulation
    moves its ends by that factor."""
    rates, bands = Rates([], [], [], {error: Counter() for error in PLANTED}), Bands()
    for one in trials:
        for column in range(len(PERCENTILES)):
            found = by_requests(one, num_repeats, column)
            rates.held.append(found.low <= 0 <= found.high)
            rates.flagged.append(False)
            rates.widths.append((found.high - found.low) / 2)
            for error in PLANTED:
                moved = Interval((1 + found.low) * (1 + error) - 1, (1 + found.high) * (1 + error) - 1)
                rates.given[error][judge(error, moved, bands, sufficient=True)] += 1
    return rates


# --- leave one out ----------------------------------------------------------------------------------------------------


def as_simulation(run: RealRun, factor: float = 1.0) -> SimulatedRun:
    """A real run in the place of a simulation, with the engine's own settings as those simulated and every time from
    arrival times `factor`."""
    facts = run.meta.model_dump(mode="json") | {
        "run_type": "vidur",
        "profiling_root": "absent",
        "profile_sha256": {},
        "variant": "calibrated",
        "predictor": "interpolation",
        "simulated_settings": run.meta.engine_settings.model_dump(mode="json"),
        "num_preemptions": 0,
    }
    requests, tokens = scaled(run.requests, run.tokens, factor)
    return Run(run.directory, VidurRunMeta.model_validate(facts), requests, tokens, run.iterations)


def scaled(requests: pd.DataFrame, tokens: pd.DataFrame, factor: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Request and token tables with every latency from arrival times `factor`; scheduling stays where it was."""
    if factor == 1.0:
        return requests, tokens
    requests, tokens = requests.copy(), tokens.copy()
    arrival = requests["arrival_time_ns"].to_numpy(dtype="int64")
    at = arrival[tokens["request_id"].to_numpy(dtype="int64")]
    times = at + np.round((tokens["token_time_ns"].to_numpy(dtype="int64") - at) * factor).astype(np.int64)
    tokens["token_time_ns"] = times
    gaps = np.diff(times, prepend=0)
    gaps[tokens["token_index"].to_numpy() == 0] = 0
    tokens["token_latency_ns"] = gaps
    for name in ("first_token_time_ns", "completion_time_ns"):
        if name in requests:
            late = (requests[name] - requests["arrival_time_ns"]).astype("Float64") * factor
            requests[name] = (requests["arrival_time_ns"] + late.round().astype("Int64")).astype("Int64")
    requests["ttft_ns"] = requests["first_token_time_ns"] - requests["arrival_time_ns"]
    return requests, tokens


def recorded_runs(directory: Path) -> list[RealRun]:
    """The runs under a directory, recorded ones or run directories."""
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted(one for one in directory.iterdir() if (one / "run_meta.json").is_file()):
            is_packed = not (folder / "token_metrics.csv").is_file()
            runs.append(load_run(expand(folder, Path(scratch)) if is_packed else folder, "real"))
    if len(runs) < 3:
        sys.exit(f"error: {directory}: {len(runs)} runs, expected at least three. Name the directory that holds them.")
    return runs


def left_out(runs: Sequence[RealRun], place: int, factor: float = 1.0, bands: Bands | None = None) -> Comparison:
    """One of the runs, times `factor`, as the simulation of the others."""
    others = [run for number, run in enumerate(runs) if number != place]
    return compare(others, {"calibrated": as_simulation(runs[place], factor)}, bands=bands or Bands())


def _leave_one_out(directory: Path, factor: float) -> None:
    runs = recorded_runs(directory)
    print(f"Each of {len(runs)} runs as the simulation of the others: {directory.parent.name}\n")
    print("| left out | times | verdict | sentence |\n|---|---:|---|---|")
    for scale in (1.0, factor):
        for place, run in enumerate(runs):
            found = left_out(runs, place, scale)
            print(
                f"| {run.meta.run_id[-2:]} | {scale:g} | {found.verdict.outcome} | {found.answer.sentence} |",
                flush=True,
            )


# --- program ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--repeats", type=int, nargs="+", default=list(range(2, MOST_REPEATS + 1)))
    parser.add_argument("--engines", choices=tuple(ENGINES), nargs="+", default=tuple(ENGINES))
    parser.add_argument(
        "--former-at", type=int, nargs="*", default=[4], help="repeats at which the former interval is formed too"
    )
    parser.add_argument("--leave-one-out", type=Path, metavar="DIR")
    parser.add_argument("--factor", type=float, default=1.15)
    options = parser.parse_args()
    if options.leave_one_out:
        _leave_one_out(options.leave_one_out, options.factor)
        return 0
    started = time.monotonic()
    print(
        f"P50 and P90 of {NUM_REQUESTS} requests, {options.trials} trials a row; ‡ fewer than five repeats: always"
        " flagged, never a pass\n"
    )
    print(
        "| engine | repeats | interval | coverage unflagged | of all | half width | pass at 0 % | fail at 15 % | false"
        " pass | false fail |"
    )
    print("|---|---:|---|" + "---:|" * 7)
    for engine in options.engines:
        trials = [trial(engine, seed) for seed in range(options.trials)]
        for number in options.repeats:
            _print(engine, f"{number}{' ‡' if number < 5 else ''}", "repeats", measured(number, trials))
            if number in options.former_at:
                _print(engine, str(number), "resampled", measured_by_requests(number, trials))
    print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


def _print(engine: str, number: str, kind: str, rates: Rates) -> None:
    quoted = "–" if np.isnan(rates.unflagged) else f"{rates.unflagged:.3f}"
    width = f"{100 * float(np.median(rates.widths)):.1f} %"
    shares = [rates.share("pass", 0.0), rates.share("fail", 0.15), rates.false_pass, rates.false_fail]
    cells = " | ".join(f"{one:.3f}" for one in shares)
    print(f"| {engine} | {number} | {kind} | {quoted} | {rates.coverage:.3f} | {width} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
