"""How often the report's 95 % intervals hold the truth, and how often its verdicts are wrong: `python benchmarks/interval_coverage.py`.

Each trial is a pair of runs of a synthetic system whose true relative errors are known from one very long run of it. Intervals and verdicts come
from `gst_assets.analysis`, by the same functions that a report calls. Prints the tables of docs/comparison.md. Seeded; about half an hour on one core.

Systems (latencies in ns; the simulation's are the real ones times a planted factor and noise of its own)
- `independent` lognormal latencies, no dependence;
- `ar` log latencies autoregressive of order 1 with coefficient 0.8;
- `queue` one server, arrivals in bursts (a two-state modulated Poisson process), latencies by Lindley's recursion at 60 % load; the simulation
  serves the same arrivals with service times that are off by the factor, so its error grows with the queue;
- `busy queue` the same at 82 % load, where busy periods are long and few;
- `repeats` as `ar`, three repeats that each differ by a factor of their own (3 %, lognormal).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from gst_assets.analysis.bootstrap import Blocks, Interval, block_length, dependence, intervals, replicate
from gst_assets.analysis.measures import STATISTICS, Samples, is_sufficient, statistics_ns
from gst_assets.analysis.verdict import judge
from gst_assets.scenario import Comparison as Bands

TOKENS = 16
TRUTH_REQUESTS = 400_000


@dataclass(frozen=True)
class Pair:
    """Real repeats and their simulation; latencies [requests] or gaps [requests, tokens]."""

    real: list[np.ndarray]
    sim: np.ndarray


def _ar(rng: np.random.Generator, n: int, phi: float, sigma: float) -> np.ndarray:
    from scipy.signal import lfilter

    noise = rng.normal(0, sigma * np.sqrt(1 - phi**2), n + 200)
    return lfilter([1.0], [1.0, -phi], noise)[200:]


def _lognormal(rng: np.random.Generator, n: int, factor: float, phi: float, repeats: int = 1, spread: float = 0.0) -> Pair:  # fmt: skip
    base = 20e6 * np.exp(_ar(rng, n, phi, 0.5))
    real = [base * np.exp(rng.normal(0, 0.1, n) + rng.normal(0, spread)) for _ in range(repeats)]
    return Pair(real, factor * base * np.exp(_ar(rng, n, phi, 0.1)))


def _queue(rng: np.random.Generator, n: int, factor: float, quiet_gap: float = 25.0) -> Pair:
    n += 500
    busy = np.cumsum(rng.random(n) < 1 / 25) % 2 == 1
    gaps = rng.exponential(np.where(busy, 9.0, quiet_gap))
    service = rng.lognormal(np.log(9.5), 0.4, n)
    return Pair([_lindley(gaps, service * rng.lognormal(0, 0.05, n))[500:]], _lindley(gaps, service * factor)[500:])


def _lindley(gaps: np.ndarray, service: np.ndarray) -> np.ndarray:
    """Time in system, in ns: waiting W[i] = max(0, W[i-1] + S[i-1] - A[i])."""
    steps = service[:-1] - gaps[1:]
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    waiting = walk - np.minimum.accumulate(walk)
    return (waiting + service) * 1e6


SYSTEMS: dict[str, Callable[[np.random.Generator, int, float], Pair]] = {
    "independent": lambda rng, n, factor: _lognormal(rng, n, factor, 0.0),
    "ar": lambda rng, n, factor: _lognormal(rng, n, factor, 0.8),
    "queue": _queue,
    "busy queue": lambda rng, n, factor: _queue(rng, n, factor, 16.0),
    "repeats": lambda rng, n, factor: _lognormal(rng, n, factor, 0.8, repeats=3, spread=0.03),
}


def tokens(rng: np.random.Generator, latency: np.ndarray) -> np.ndarray:
    """Gaps of each request, [requests, TOKENS]: its latency's share, with noise of their own."""
    return latency[:, None] / 8 * rng.lognormal(0, 0.2, (len(latency), TOKENS))


def truth(system: str, factor: float, measure: str) -> np.ndarray:
    """True relative errors of `STATISTICS`: those of one long run; repeats without their own factors."""
    rng = np.random.default_rng([7, len(system), int(factor * 1000)])
    if system == "repeats":
        pair = _lognormal(rng, TRUTH_REQUESTS, factor, 0.8)
    else:
        pair = SYSTEMS[system](rng, TRUTH_REQUESTS, factor)
    sides = [pair.sim, pair.real[0]]
    if measure == "itl":
        sides = [tokens(rng, side).ravel() for side in sides]
    sim, real = (statistics_ns(np.sort(side)) for side in sides)
    return sim / real - 1


def trial(system: str, n: int, factor: float, measure: str, seed: int) -> tuple[np.ndarray, list[Interval]]:
    """Relative errors of one pair of runs of n requests, and their intervals."""
    rng = np.random.default_rng([seed, n, len(system), int(factor * 1000), len(measure)])
    pair = SYSTEMS[system](rng, n, factor)
    sides = [*pair.real, pair.sim]
    count = 1
    if measure == "itl":
        sides, count = [tokens(rng, side).ravel() for side in sides], TOKENS
    samples = [Samples(side.round().astype(np.int64), np.full(n, count)) for side in sides]
    return errors_of(samples[:-1], samples[-1])


def errors_of(real: list[Samples], sim: Samples) -> tuple[np.ndarray, list[Interval]]:
    """Relative errors of `STATISTICS` and their intervals, as a comparison forms them."""
    n = len(sim.counts)
    order = np.arange(n)
    blocks = Blocks(order, block_length([one for side in real for one in dependence(side, sim, order)]))
    exact = [(replicate(side, side.ordered(), blocks), statistics_ns(side.ordered())) for side in [*real, sim]]
    real_ns = np.array([values for _, values in exact[:-1]])
    sim_ns = np.array([exact[-1][1]] * len(real))
    found = intervals([one for one, _ in exact[:-1]], [exact[-1][0]] * len(real), real_ns, sim_ns, blocks)
    return np.median(sim_ns, axis=0) / np.median(real_ns, axis=0) - 1, found


def coverage(system: str, n: int, measure: str, trials: int, factor: float = 1.04) -> dict[str, float]:
    """Share of trials whose interval holds the true error, and the mean width, for each statistic that can be judged."""
    true = truth(system, factor, measure)
    found = [trial(system, n, factor, measure, seed)[1] for seed in range(trials)]
    shares = {}
    for column, statistic in enumerate(STATISTICS):
        if is_sufficient(statistic, n * (TOKENS if measure == "itl" else 1), n):
            shares[statistic] = float(np.mean([one[column].low <= true[column] <= one[column].high for one in found]))
            shares[f"{statistic} width"] = float(np.mean([one[column].high - one[column].low for one in found]))
    return shares


def verdicts(system: str, n: int, factor: float, trials: int) -> tuple[float, Counter[str]]:
    """True error of P50 of the gaps with a planted factor, and how often each verdict is given."""
    true = truth(system, factor, "itl")[STATISTICS.index("p50")]
    given: Counter[str] = Counter()
    for seed in range(trials):
        errors, found = trial(system, n, factor, "itl", seed)
        column = STATISTICS.index("p50")
        given[judge(float(errors[column]), found[column], Bands(), sufficient=is_sufficient("p50", n * TOKENS, n))] += 1
    return float(true), given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--requests", type=int, nargs="+", default=[300])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(options.workers) as pool:
        cases = [(s, n, m) for s in SYSTEMS for m in ("ttft", "itl") for n in options.requests]
        print(
            f"Coverage of the 95 % intervals, {options.trials} trials a row (mean width of the interval in brackets)\n"
        )
        print("| system | samples | requests | " + " | ".join(STATISTICS) + " |")
        print("|---|---|" + "---:|" * (len(STATISTICS) + 1))
        results = pool.map(coverage, *zip(*cases, strict=True), [options.trials] * len(cases))
        for (system, n, measure), shares in zip(cases, results, strict=True):
            cells = [
                f"{shares[s]:.3f} ({100 * shares[f'{s} width']:.1f} %)" if s in shares else "–" for s in STATISTICS
            ]
            samples = "one a request" if measure == "ttft" else f"{TOKENS} gaps a request"
            print(f"| {system} | {samples} | {n} | {' | '.join(cells)} |", flush=True)
        planted = [
            (s, max(options.requests), f) for s in ("independent", "ar") for f in (1.0, 1.03, 1.05, 1.06, 1.1, 1.12)
        ]
        print(f"\nVerdicts of P50 of the gaps with bands of 5 and 10 %, {options.trials} trials a row\n")
        print("| system | requests | true error | pass | warn | inconclusive | fail | wrong |")
        print("|---|" + "---:|" * 7)
        results = pool.map(verdicts, *zip(*planted, strict=True), [options.trials] * len(planted))
        for (system, n, _), (true, given) in zip(planted, results, strict=True):
            shares = {name: given[name] / options.trials for name in ("pass", "warn", "inconclusive", "fail")}
            size = abs(true)
            wrong = (shares["pass"] if size > 0.05 else 0) + (shares["warn"] if size > 0.10 else 0) + (shares["fail"] if size < 0.10 else 0)  # fmt: skip
            cells = " | ".join(f"{share:.3f}" for share in shares.values())
            print(f"| {system} | {n} | {100 * true:+.1f} % | {cells} | {wrong:.3f} |", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
