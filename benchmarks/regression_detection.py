"""How well the nightly verdict detects a planted regression, and how often it errs: `python
benchmarks/regression_detection.py [HISTORIES [FIRST_SEED]]`.

Nights are resampled from the recorded H100 runs: for each repeat of a night one recorded repeat is drawn, and its
requests with all their tokens are drawn with replacement; a night's value is the median over its repeats. Plants: every
real latency 5, 10 or 20 % longer from one night on; the simulation on a profile whose every time is 10 % longer;
nothing. Every night after the plant is judged as the asset judges it, and the first `regression` counts. The simulated
side is `calibrated` on the profile that ships, every term of it scaled.

What this cannot show: the recorded repeats of a scenario come from one engine start within minutes, so drift between
days, restarts and machines is not in them; a slower engine is planted as a factor on latencies, without the longer
queues it would also have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from gst_assets.analysis.change_points import STATISTICS, TRACKED_MEASURES, judge_series, overall
from gst_assets.analysis.measures import is_sufficient
from gst_assets.analysis.run_reading import load_run
from gst_assets.engine import recorded
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Regression, load_scenario
from gst_assets.step_costs.bundle import find_bundle, load_bundle
from gst_assets.vidur_adapter.simulate import simulate

SCENARIOS = ("h100_8b_quarter", "h100_8b_half", "h100_8b_high")
REPEATS = (5, 1)
BASELINE_NIGHTS = 20
WATCHED_NIGHTS = 14
POOL = 300
PLANTS = {
    "noise only": (0.0, False),
    "engine 5 % slower": (0.05, False),
    "engine 10 % slower": (0.10, False),
    "engine 20 % slower": (0.20, False),
    "profile 10 % slower": (0.0, True),
}
Cell = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A scenario's nights to draw from (`nights[cell]` in nanoseconds) and its simulation on both profiles."""

    scenario: str
    repeats: int
    nights: dict[Cell, np.ndarray]
    sim: dict[Cell, float]
    slower_sim: dict[Cell, float]


def percentiles(ttft: np.ndarray, itl: np.ndarray, e2e: np.ndarray) -> dict[Cell, float]:
    """The judged cells of one repeat; those with too few samples are left out."""
    found = {}
    for metric, samples in zip(TRACKED_MEASURES, (ttft, itl, e2e), strict=True):
        for statistic in STATISTICS:
            percentile = int(statistic[1:])
            if is_sufficient(statistic, len(samples), len(ttft)):
                found[metric, statistic] = float(np.percentile(samples, percentile))
    return found


def samples_of(requests: pd.DataFrame, tokens: pd.DataFrame) -> list[tuple[int, np.ndarray, int]]:
    """(TTFT, gaps, end to end) in nanoseconds of each request."""
    gaps = tokens[tokens["token_index"] > 0].groupby("request_id")["token_latency_ns"]
    by_request = {name: values.to_numpy(dtype=float) for name, values in gaps}
    empty = np.array([])
    return [
        (int(row.ttft_ns), by_request.get(row.request_id, empty), int(row.completion_time_ns - row.arrival_time_ns))
        for row in requests.itertuples()
    ]


def simulated(scenario: str, scale: float) -> dict[Cell, float]:
    """The simulation's cells on the recorded workload, with every term of the profile multiplied by `scale`."""
    chosen = load_scenario(scenario)
    shipped = load_bundle(find_bundle(PROJECT_ROOT / "data" / "profiles", chosen))
    assert shipped.overheads is not None
    scaled = replace(shipped, overheads=shipped.overheads.assign(ns=shipped.overheads["ns"] * scale))
    run = recorded.list_recorded(PROJECT_ROOT / "data" / "recorded" / scenario)[0]
    with tempfile.TemporaryDirectory() as area:
        requests = load_run(recorded.expand(run.directory, Path(area)), "real").requests
    lengths = requests[["request_id", "prompt_id", "num_prefill_tokens", "num_decode_tokens"]]
    intervals = pd.DataFrame({"request_id": requests["request_id"], "arrival_time_ns": requests["arrival_time_ns"]})
    intervals["inter_arrival_ns"] = intervals["arrival_time_ns"].diff().fillna(intervals["arrival_time_ns"])
    result = simulate(chosen, lengths, intervals, scaled, "calibrated", cache_dir=None)
    return _joined(samples_of(result.requests, result.tokens))


def _joined(requests: Sequence[tuple[int, np.ndarray, int]]) -> dict[Cell, float]:
    ttft, gaps, e2e = zip(*requests, strict=True)
    return percentiles(np.array(ttft, float), np.concatenate(gaps), np.array(e2e, float))


def case(scenario: str, repeats: int) -> Case:
    """Draw a pool of nights from the recorded runs, seeded by scenario and repeats."""
    random = np.random.default_rng([SCENARIOS.index(scenario), repeats])
    runs = []
    with tempfile.TemporaryDirectory() as area:
        for kept in recorded.list_recorded(PROJECT_ROOT / "data" / "recorded" / scenario):
            run = load_run(recorded.expand(kept.directory, Path(area)), "real")
            runs.append(samples_of(run.requests, run.tokens))
    pool: dict[Cell, list[float]] = {}
    for _ in range(POOL):
        drawn = []
        for chosen in random.integers(len(runs), size=repeats):
            requests = runs[chosen]
            drawn.append(_joined([requests[i] for i in random.integers(len(requests), size=len(requests))]))
        for cell in drawn[0]:
            pool.setdefault(cell, []).append(float(np.median([one[cell] for one in drawn])))
    nights = {cell: np.array(values) for cell, values in pool.items()}
    return Case(scenario, repeats, nights, simulated(scenario, 1.0), simulated(scenario, 1.1))


def nights_until(case: Case, plant: str, seed: int, rule: Regression) -> int | None:
    """Nights from the plant to the first verdict `regression`, that night included; None if there was none in the
    watched nights."""
    slower, slower_profile = PLANTS[plant]
    random = np.random.default_rng([seed, list(PLANTS).index(plant), case.repeats])
    total = BASELINE_NIGHTS + WATCHED_NIGHTS
    order = random.integers(POOL, size=total)
    planted = np.arange(total) >= BASELINE_NIGHTS
    lines = {}
    for cell, values in case.nights.items():
        real = values[order] * np.where(planted, 1 + slower, 1.0)
        sim = np.where(planted & slower_profile, case.slower_sim[cell], case.sim[cell])
        lines["engine", cell], lines["fidelity", cell] = real, sim / real
    for count in range(BASELINE_NIGHTS + 1, total + 1):
        series = [
            judge_series(side, *cell, line[:count], rule)  # type: ignore[arg-type]
            for (side, cell), line in lines.items()
        ]
        if overall(series) == "regression":
            return count - BASELINE_NIGHTS
    return None


def outcomes(task: tuple[str, int, range]) -> list[tuple[str, int, str, int | None]]:
    """Every plant on every seeded history of one scenario and number of repeats."""
    scenario, repeats, seeds = task
    made, rule = case(scenario, repeats), Regression()
    return [(scenario, repeats, plant, nights_until(made, plant, seed, rule)) for plant in PLANTS for seed in seeds]


def main(histories: int = 201, first_seed: int = 0) -> None:
    """Print the table; `histories` in all for each plant and number of repeats, a third of them from each scenario.

    Settings of the verdict are to be chosen on other seeds than those whose rates are reported.
    """
    each = -(-histories // len(SCENARIOS))
    seeds = range(first_seed, first_seed + each)
    tasks = [(scenario, repeats, seeds) for repeats in REPEATS for scenario in SCENARIOS]
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = pd.DataFrame(
            [row for rows in pool.map(outcomes, tasks) for row in rows],
            columns=["scenario", "repeats", "plant", "nights"],
        )
    print(
        "| repeats a night | planted | histories | reported as regression | 95 % interval | nights until reported,"
        " median | 90 % |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (repeats, plant), rows in found.groupby(["repeats", "plant"], sort=False):
        told = rows["nights"].dropna()
        shown = [f"{np.percentile(told, p):.0f}" if len(told) else "–" for p in (50, 90)]
        share = f"{len(told)} ({100 * len(told) / len(rows):.1f} %)"
        low, high = binomtest(len(told), len(rows)).proportion_ci(method="wilson")
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        print(f"| {repeats} | {plant} | {len(rows)} | {share} | {interval} | {' | '.join(shown)} |")
    print("\nreported as regression, by scenario:")
    print(
        found.assign(told=found["nights"].notna())
        .pivot_table(index=["repeats", "plant"], columns="scenario", values="told", sort=False)
        .to_string()
    )


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
