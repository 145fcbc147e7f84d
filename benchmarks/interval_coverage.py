"""How often the report's 95 % intervals hold the truth, and how often its verdicts are wrong: `python
benchmarks/interval_coverage.py`.

Each trial is a pair of runs of a synthetic system whose true relative errors are known from one very long run of it.
Intervals, what they are worth and verdicts come from `gst_assets.analysis`, by the same functions that a report calls.
Prints the tables of docs/comparison.md. Seeded; about 25 minutes of one core (`--workers 2` halves the time on two).

Systems (latencies in ns; the simulation's are the real ones times a planted factor and noise of its own)
- `independent` lognormal latencies, no dependence;
- `ar` log latencies autoregressive of order 1 with coefficient 0.8;
- `engine` continuous batching: Poisson arrivals, at most 32 running and 4 prefills a step, 17 tokens a request, a step
  takes 5 ms + 0.3 ms a running request + 8 ms a prefill, with 5 % noise; about 70 % of capacity. The simulation's steps
  are off by the factor, so its errors grow with load;
- `sessions` the same batching of sessions of three turns, of which each arrives a think time (exponential, 300 ms on
  average) after the answer before it, on either side after its own; whole sessions are drawn;
- `queue` one server, arrivals in bursts (a two-state modulated Poisson process), latencies by Lindley's recursion at 60
  % load; the simulation serves the same arrivals with service times that are off by the factor;
- `busy queue` the same at 82 % load, where busy periods are long and few;
- `repeats` as `ar`, three repeats that each differ by a factor of their own (3 %, lognormal).
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import repeat

import numpy as np

from gst_assets.analysis.bootstrap import (
    NUM_REPLICATES,
    Blocks,
    Interval,
    block_length,
    dependence,
    intervals,
    replicate,
)
from gst_assets.analysis.measures import MIN_SAMPLES_BEYOND, STATISTICS, Samples, is_sufficient, statistics_ns
from gst_assets.analysis.verdict import OUTCOMES, judge
from gst_assets.scenario import Bands

TOKENS = 16
TURNS = 3
TRUTH_REQUESTS = 400_000
MEASURES = ("ttft", "itl")
COVERAGE_FACTOR = 1.04
PLANTED = {
    "independent": (1.0, 1.052, 1.103, 1.3),
    "ar": (1.0, 1.052, 1.103, 1.3),
    "engine": (1.0, 1.024, 1.045, 1.12),
    "queue": (1.0, 1.016, 1.03, 1.08),
}
"""Factors of the verdict study: no error, P50 of TTFT just beyond the pass band, just beyond the warn band, and far
beyond."""


@dataclass(frozen=True)
class Pair:
    """Real repeats and their simulation: samples of each request, [requests, samples a request]. `sessions`: which one
    each request is of, where they are drawn as a whole."""

    real: list[np.ndarray]
    sim: np.ndarray
    sessions: np.ndarray | None = None


@dataclass(frozen=True)
class Judged:
    """What a comparison finds of one measure, in the order of `STATISTICS`: relative errors, intervals, and whether
    they may be quoted."""

    errors: np.ndarray
    intervals: list[Interval]
    sufficient: np.ndarray
    independent: np.ndarray


# --- systems ----------------------------------------------------------------------------------------------------------


def _ar(rng: np.random.Generator, n: int, phi: float, sigma: float) -> np.ndarray:
    from scipy.signal import lfilter

    noise = rng.normal(0, sigma * np.sqrt(1 - phi**2), n + 200)
    return lfilter([1.0], [1.0, -phi], noise)[200:]


def _lognormal(
    rng: np.random.Generator, n: int, factor: float, measure: str, phi: float, repeats: int = 1, spread: float = 0.0
) -> Pair:
    base = 20e6 * np.exp(_ar(rng, n, phi, 0.5))
    real = [base * np.exp(rng.normal(0, 0.1, n) + rng.normal(0, spread)) for _ in range(repeats)]
    return _pair(rng, real, factor * base * np.exp(_ar(rng, n, phi, 0.1)), measure)


def _queue(rng: np.random.Generator, n: int, factor: float, measure: str, quiet_gap: float = 25.0) -> Pair:
    n += 500
    busy = np.cumsum(rng.random(n) < 1 / 25) % 2 == 1
    gaps = rng.exponential(np.where(busy, 9.0, quiet_gap))
    service = rng.lognormal(np.log(9.5), 0.4, n)
    real = _lindley(gaps, service * rng.lognormal(0, 0.05, n))[500:]
    return _pair(rng, [real], _lindley(gaps, service * factor)[500:], measure)


def _lindley(gaps: np.ndarray, service: np.ndarray) -> np.ndarray:
    """Time in system, in ns: waiting W[i] = max(0, W[i-1] + S[i-1] - A[i])."""
    steps = service[:-1] - gaps[1:]
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    waiting = walk - np.minimum.accumulate(walk)
    return (waiting + service) * 1e6


def _pair(rng: np.random.Generator, real: list[np.ndarray], sim: np.ndarray, measure: str) -> Pair:
    """One sample a request, or gaps that share the request's latency and have noise of their own."""
    if measure == "ttft":
        return Pair([one[:, None] for one in real], sim[:, None])
    *real, sim = (one[:, None] / 8 * rng.lognormal(0, 0.2, (len(one), TOKENS)) for one in (*real, sim))
    return Pair(real, sim)


def _engine(rng: np.random.Generator, n: int, factor: float, measure: str) -> Pair:
    n += 200
    arrivals = np.cumsum(rng.exponential(22.0, n))
    real, sim = (_batching(rng, arrivals, scale, measure)[200:] for scale in (1.0, factor))
    return Pair([real], sim)


def _batching(rng: np.random.Generator, arrivals: np.ndarray, scale: float, measure: str) -> np.ndarray:
    """TTFT [requests, 1] or gaps [requests, TOKENS] of continuous batching, in ns. Arrivals and step times in ms."""
    n, due = len(arrivals), arrivals.tolist()
    noise = rng.lognormal(0, 0.05, n * (TOKENS + 2)).tolist()
    # A request that joins in step s gets a token at the end of each of the steps s to s + TOKENS.
    ends: list[float] = []
    joined: list[int] = []
    joined_in = np.empty(n, dtype=np.int64)
    now, running, served = 0.0, 0, 0
    while True:
        step = len(ends)
        if step > TOKENS:
            running -= joined[step - TOKENS - 1]
        if not running:
            if served == n:
                break
            now = max(now, due[served])
        new = 0
        while served < n and due[served] <= now and new < 4 and running < 32:
            joined_in[served] = step
            served, new, running = served + 1, new + 1, running + 1
        joined.append(new)
        now += (5 + 0.3 * running + 8 * new) * scale * noise[step]
        ends.append(now)
    times = np.array(ends)[joined_in[:, None] + np.arange(TOKENS + 1)] * 1e6
    return times[:, :1] - arrivals[:, None] * 1e6 if measure == "ttft" else np.diff(times, axis=1)


def _sessions(rng: np.random.Generator, n: int, factor: float, measure: str) -> Pair:
    # Without the beginning and the end, where fewer sessions are under way.
    number = -(-n // TURNS) + 140
    begins = np.cumsum(rng.exponential(22.0 * TURNS, number)).tolist()
    thinks = rng.exponential(300.0, (number, TURNS)).tolist()
    real, sim = (_closed_batching(rng, begins, thinks, scale, measure)[70:-70] for scale in (1.0, factor))
    sessions = np.repeat(np.arange(number - 140), TURNS)[:n]
    real, sim = (one.reshape(-1, one.shape[-1])[:n] for one in (real, sim))
    return Pair([real], sim, sessions)


def _closed_batching(
    rng: np.random.Generator, begins: list[float], thinks: list[list[float]], scale: float, measure: str
) -> np.ndarray:
    """As `_batching`, with turns that wait for answers: [sessions, TURNS, samples]."""
    due = [(at, session, 0) for session, at in enumerate(begins)]
    noise = rng.lognormal(0, 0.05, len(begins) * TURNS * (TOKENS + 2)).tolist()
    arrived, joined_in = (np.empty((len(begins), TURNS), dtype=kind) for kind in (np.float64, np.int64))
    ends: list[float] = []
    joined: list[list[tuple[int, int]]] = []
    now, running = 0.0, 0
    while due or running:
        if not running:
            now = max(now, due[0][0])
        new: list[tuple[int, int]] = []
        while due and due[0][0] <= now and len(new) < 4 and running < 32:
            at, session, turn = heapq.heappop(due)
            arrived[session, turn], joined_in[session, turn] = at, len(ends)
            new.append((session, turn))
            running += 1
        joined.append(new)
        now += (5 + 0.3 * running + 8 * len(new)) * scale * noise[len(ends)]
        ends.append(now)
        for session, turn in joined[-TOKENS - 1] if len(joined) > TOKENS else []:
            running -= 1
            if turn + 1 < TURNS:
                heapq.heappush(due, (now + thinks[session][turn], session, turn + 1))
    times = np.array(ends)[joined_in[..., None] + np.arange(TOKENS + 1)] * 1e6
    return times[..., :1] - arrived[..., None] * 1e6 if measure == "ttft" else np.diff(times, axis=-1)


SYSTEMS: dict[str, Callable[[np.random.Generator, int, float, str], Pair]] = {
    "independent": lambda rng, n, factor, measure: _lognormal(rng, n, factor, measure, 0.0),
    "ar": lambda rng, n, factor, measure: _lognormal(rng, n, factor, measure, 0.8),
    "engine": _engine,
    "sessions": _sessions,
    "queue": _queue,
    "busy queue": lambda rng, n, factor, measure: _queue(rng, n, factor, measure, 16.0),
    "repeats": lambda rng, n, factor, measure: _lognormal(rng, n, factor, measure, 0.8, repeats=3, spread=0.03),
}


# --- trials -----------------------------------------------------------------------------------------------------------


@cache
def truth(system: str, factor: float, measure: str) -> np.ndarray:
    """True relative errors of `STATISTICS`: those of one long run; repeats without their own factors."""
    rng = np.random.default_rng([7, len(system), int(factor * 1000)])
    pair = SYSTEMS["ar" if system == "repeats" else system](rng, TRUTH_REQUESTS, factor, measure)
    sim, real = (statistics_ns(np.sort(side.ravel())) for side in (pair.sim, pair.real[0]))
    return sim / real - 1


def trial(system: str, n: int, factor: float, measure: str, seed: int, replicates: int = NUM_REPLICATES) -> Judged:
    """One pair of runs of n requests, compared."""
    rng = np.random.default_rng([seed, n, len(system), int(factor * 1000), len(measure)])
    pair = SYSTEMS[system](rng, n, factor, measure)
    samples = [
        Samples(side.ravel().round().astype(np.int64), np.full(n, side.shape[1])) for side in (*pair.real, pair.sim)
    ]
    return judged(samples[:-1], samples[-1], replicates, pair.sessions)


def judged(
    real: Sequence[Samples],
    sim: Samples,
    num_replicates: int = NUM_REPLICATES,
    sessions: np.ndarray | None = None,
) -> Judged:
    """Relative errors, intervals and what they are worth, as a comparison forms them."""
    n = len(sim.counts)
    length = block_length([dependence(side, sim, np.arange(n), sessions) for side in real])
    blocks = (
        _blocks(n, length, num_replicates)
        if sessions is None
        else Blocks(np.arange(n), length, num_replicates, sessions=sessions)
    )
    replicates = [replicate(side, side.ordered(), blocks) for side in (*real, sim)]
    exact = [statistics_ns(side.ordered()) for side in (*real, sim)]
    real_ns, sim_ns = np.array(exact[:-1]), np.array([exact[-1]] * len(real))
    found = intervals(replicates[:-1], [replicates[-1]] * len(real), real_ns, sim_ns, blocks)
    worth = np.min([one.independent for one in replicates], axis=0)
    return Judged(
        np.median(sim_ns, axis=0) / np.median(real_ns, axis=0) - 1,
        found,
        np.array([is_sufficient(one, len(sim.values), n) for one in STATISTICS]),
        blocks.long_enough & (worth >= MIN_SAMPLES_BEYOND),
    )


@lru_cache(maxsize=64)
def _blocks(n: int, length: int, num_replicates: int) -> Blocks:
    """Kept, since the draws depend on nothing else."""
    return Blocks(np.arange(n), length, num_replicates)


@dataclass(frozen=True)
class Coverage:
    """Of one statistic: share of trials whose interval is quoted without a flag, coverage of those (NaN of none) and of
    all, and the median width of all."""

    quoted: float
    of_quoted: float
    of_all: float
    width: float


def coverage(system: str, n: int, measure: str, trials: int, replicates: int = NUM_REPLICATES) -> dict[str, Coverage]:
    """Coverage of each statistic that has enough samples."""
    true = truth(system, COVERAGE_FACTOR, measure)
    found = [trial(system, n, COVERAGE_FACTOR, measure, seed, replicates) for seed in range(trials)]
    shares = {}
    for column, statistic in enumerate(STATISTICS):
        if not found[0].sufficient[column]:
            continue
        ends = np.array([(one.intervals[column].low, one.intervals[column].high) for one in found])
        holds = (ends[:, 0] <= true[column]) & (true[column] <= ends[:, 1])
        quoted = np.array([one.independent[column] for one in found])
        of_quoted = float(holds[quoted].mean()) if quoted.any() else float("nan")
        width = float(np.median(ends[:, 1] - ends[:, 0]))
        shares[statistic] = Coverage(float(quoted.mean()), of_quoted, float(holds.mean()), width)
    return shares


def verdicts(
    system: str,
    n: int,
    factor: float,
    trials: int,
    replicates: int = NUM_REPLICATES,
    measure: str = "ttft",
    statistic: str = "p50",
) -> tuple[float, Counter[str]]:
    """True error with a planted factor, and how often each verdict of it is given."""
    column = STATISTICS.index(statistic)
    true = float(truth(system, factor, measure)[column])
    given: Counter[str] = Counter()
    for seed in range(trials):
        one = trial(system, n, factor, measure, seed, replicates)
        given[
            judge(
                float(one.errors[column]), one.intervals[column], Bands(),
                sufficient=bool(one.sufficient[column]), independent=bool(one.independent[column]),
            )
        ] += 1  # fmt: skip
    return true, given


def wrong_share(true: float, given: Counter[str]) -> float:
    """Share of verdicts that the true error contradicts: a pass beyond 5 %, a warn beyond 10 %, a fail within 10 %."""
    size, bands = abs(true), Bands()
    wrong = (given["pass"] if size > bands.pass_band else 0) + (given["warn"] if size > bands.warn_band else 0)
    return (wrong + (given["fail"] if size < bands.warn_band else 0)) / given.total()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--requests", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument(
        "--replicates", type=int, default=NUM_REPLICATES, help="fewer are quicker, and a little noisier"
    )
    parser.add_argument("--systems", choices=tuple(SYSTEMS), nargs="+", default=tuple(SYSTEMS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=("coverage", "verdicts"), nargs="+", default=("coverage", "verdicts"))
    options = parser.parse_args()
    # Several processes with a thread pool each only get into each other's way.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    started, cpu = time.monotonic(), os.times()
    with ProcessPoolExecutor(options.workers) as pool:
        if "coverage" in options.only:
            cases = [(s, n, m) for s in options.systems for m in MEASURES for n in options.requests]
            print(f"Coverage of the 95 % intervals, {options.trials} trials a row, {options.replicates:,} replicates\n")
            print("| system | samples | requests | " + " | ".join(STATISTICS) + " |")
            print("|---|---|" + "---:|" * (len(STATISTICS) + 1))
            results = pool.map(coverage, *zip(*cases, strict=True), repeat(options.trials), repeat(options.replicates))
            for (system, n, measure), shares in zip(cases, results, strict=True):
                cells = [_shown(shares[one]) if one in shares else "–" for one in STATISTICS]
                samples = "one a request" if measure == "ttft" else f"{TOKENS} gaps a request"
                print(f"| {system} | {samples} | {n} | {' | '.join(cells)} |", flush=True)
        if "verdicts" in options.only:
            planted = [
                (s, n, f)
                for s, factors in PLANTED.items()
                if s in options.systems
                for n in options.requests
                for f in factors
            ]
            print(
                f"\nVerdicts of P50 of TTFT with bands of 5 and 10 %, {options.trials} trials a row,"
                f" {options.replicates:,} replicates\n"
            )
            print(f"| system | requests | true error | {' | '.join(OUTCOMES)} | wrong |")
            print("|---|" + "---:|" * (len(OUTCOMES) + 3))
            results = pool.map(
                verdicts, *zip(*planted, strict=True), repeat(options.trials), repeat(options.replicates)
            )
            for (system, n, _), (true, given) in zip(planted, results, strict=True):
                cells = " | ".join(f"{given[one] / options.trials:.3f}" for one in OUTCOMES)
                print(
                    f"| {system} | {n} | {100 * true:+.1f} % | {cells} | {wrong_share(true, given):.3f} |", flush=True
                )
    used = os.times()
    cpu_s = sum(used[:4]) - sum(cpu[:4])
    print(f"\n{time.monotonic() - started:.0f} s, {cpu_s:.0f} s of CPU", file=sys.stderr)
    return 0


def _shown(one: Coverage) -> str:
    """Coverage where quoted (share quoted; coverage of all; width of all)."""
    quoted = f"{one.of_quoted:.2f}" if one.quoted else "–"
    return f"{quoted} ({100 * one.quoted:.0f} %; {one.of_all:.2f}; {100 * one.width:.0f} %)"


if __name__ == "__main__":
    sys.exit(main())
