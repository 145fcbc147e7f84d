"""Simulating one workload under many settings, on several cores.

Which settings, what each simulation yields as a row of the sweep's table, and the processes it runs in. How the work is
cut between machines belongs to `sweep_parts`, which rows are Pareto-optimal and how they look to
`analysis.sweep_report`. Vidur is imported when a simulation begins.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import ValidationError

from gst_assets.errors import SimulationError
from gst_assets.scenario import EngineSection, Gamma, Poisson, Scenario, ServiceLevel, Sweep
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.workload.arrivals import NS_PER_S, build_trace_intervals
from gst_assets.workload.bisection import RateBisection

if TYPE_CHECKING:
    from gst_assets.step_costs.bundle import Bundle

_PERCENTILES = (50, 90, 99)
_LARGEST_CHUNK = 32
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """What is simulated of one combination of settings: the arguments of `simulate`."""

    scenario: Scenario
    lengths: pd.DataFrame
    intervals: pd.DataFrame
    bundle: Bundle
    variant: str
    cache_dir: Path | None

    def run(self) -> SimulationResult:
        """Simulate in this process."""
        return simulate(
            self.scenario, self.lengths, self.intervals, self.bundle, self.variant, cache_dir=self.cache_dir
        )

    def at_rate(self, rate_per_s: float) -> Job:
        """The same with arrivals of that rate: the seed's gaps, stretched."""
        workload = self.scenario.workload
        arrivals = workload.arrivals.model_copy(update={"rate_per_s": rate_per_s})
        scenario = self.scenario.model_copy(update={"workload": workload.model_copy(update={"arrivals": arrivals})})
        return replace(
            self,
            scenario=scenario,
            intervals=build_trace_intervals(arrivals, len(self.lengths), workload.seed),
        )


class KeptRows:
    """What was simulated of a part of a sweep, a line of JSON each in a file of this machine, so that a part that was
    stopped goes on where it was. The file is named by `key`, which stands for the part and for everything that decides
    its rows."""

    def __init__(self, directory: Path, key: str) -> None:
        """Reads what is there. A line that was cut off, and what follows it, count as not written."""
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"sweep_{key}.jsonl"
        self.rows: dict[int, Any] = {}
        """By the job's number."""
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = 0
        for line in data.splitlines(keepends=True):
            try:
                number, row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.rows[number] = row
            whole += len(line)
        if whole != len(data):
            os.truncate(self._path, whole)

    def add(self, number: int, row: Any) -> None:
        """Keep the row of a job; JSON gives it back to the bit."""
        self.rows[number] = row
        with self._path.open("ab") as file:
            file.write(json.dumps([number, row]).encode() + b"\n")

    def remove(self) -> None:
        """The part is complete."""
        self._path.unlink(missing_ok=True)

    @staticmethod
    def remove_all(directory: Path, key: str) -> None:
        """The sweep whose parts' keys begin with `key` is complete: what is left on this machine of parts that were cut
        otherwise."""
        for path in directory.glob(f"sweep_{key}_*.jsonl"):
            path.unlink(missing_ok=True)


def simulate_all(
    jobs: Mapping[int, Job],
    work: Callable[[Job], _T],
    *,
    workers: int,
    on_done: Callable[[int], None] | None = None,
    kept: KeptRows | None = None,
) -> dict[int, _T]:
    """`work(job)` of each job by its number, in the order of `jobs`, with up to `workers` processes. What comes out
    does not depend on `workers`.

    `work` simulates the job and returns what is to be known of it; a function of a module. `on_done` is called with
    the number of jobs done so far. `kept`: jobs that are in there are not simulated again, and what the others give,
    which JSON must be able to hold, is added.

    Raises:
        SimulationError, ProfileError: of the first job that has one.
    """
    found: dict[int, _T] = {number: row for number, row in kept.rows.items() if number in jobs} if kept else {}
    left = [number for number in jobs if number not in found]

    def collect(numbers: Iterable[int], results: Iterable[_T]) -> None:
        for number, result in zip(numbers, results, strict=True):
            found[number] = result
            if kept is not None:
                kept.add(number, result)
            if on_done is not None:
                on_done(len(found))

    # With several processes too the first is simulated here, so that what is made once on a machine, the compiled core
    # and the forests' tables, is not made by each of them.
    here, elsewhere = (left, []) if workers <= 1 else (left[:1], left[1:])
    collect(here, (work(jobs[number]) for number in here))
    if elsewhere:
        # Started afresh: Vidur and the libraries below it keep threads and state that a forked process would share.
        context = multiprocessing.get_context("spawn")
        workers = min(workers, len(elsewhere))
        # What the jobs of a chunk share, the bundle above all, crosses once, and so do the tables that are made of it.
        size = max(1, min(_LARGEST_CHUNK, len(elsewhere) // (4 * workers)))
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            collect(elsewhere, pool.map(work, (jobs[number] for number in elsewhere), chunksize=size))
    return {number: found[number] for number in jobs}


def simulations_each(scenario: Scenario) -> int:
    """How many simulations a combination takes, at most.

    Raises:
        SimulationError: the scenario has no sweep.
    """
    asked = _sweep_of(scenario).highest_rate
    if asked is None:
        return 1
    return RateBisection.most_rates(asked.low_rate_per_s, asked.high_rate_per_s, asked.relative_tolerance)


def configurations(scenario: Scenario) -> list[Scenario]:
    """The scenario under each combination of its sweep's values, rates slowest. Each simulates the sweep's variant
    alone.

    Raises:
        SimulationError: the scenario has no sweep, or a combination is impossible (names it).
    """
    sweep = _sweep_of(scenario)
    engine = scenario.engine
    found = []
    for rate, seqs, tokens, blocks in itertools.product(
        sweep.rates_per_s or (None,),
        sweep.max_num_seqs or (engine.max_num_seqs,),
        sweep.max_num_batched_tokens or (engine.max_num_batched_tokens,),
        sweep.num_kv_blocks or (engine.num_kv_blocks,),
    ):
        changed = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "num_kv_blocks": blocks}
        try:
            settings = EngineSection.model_validate(engine.model_dump() | changed)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SimulationError(
                f"scenario {scenario.name}: sweep combines"
                f" {', '.join(f'{name} {value}' for name, value in changed.items())}: {reason}. Remove one of the"
                " values from the sweep."
            ) from None
        arrivals = scenario.workload.arrivals
        if rate is not None:
            arrivals = arrivals.model_copy(update={"rate_per_s": rate})
        workload = scenario.workload.model_copy(update={"arrivals": arrivals})
        simulation = scenario.simulation.model_copy(update={"variants": (sweep.variant,)})
        found.append(scenario.model_copy(update={"engine": settings, "workload": workload, "simulation": simulation}))
    return found


def sweep_jobs(
    scenario: Scenario,
    lengths: pd.DataFrame,
    intervals: pd.DataFrame,
    bundle: Bundle,
    cache_dir: Path | None,
    numbers: Iterable[int] | None = None,
) -> dict[int, Job]:
    """A job for each configuration by its number, from 0; `numbers`: for these only. `lengths` and `intervals` are the
    workload's; arrivals of another rate are drawn as the workload's were.

    Raises:
        SimulationError: as `configurations`.
    """
    sweep, chosen = _sweep_of(scenario), configurations(scenario)
    made: dict[Any, pd.DataFrame] = {None: intervals}
    jobs = {}
    for number in range(len(chosen)) if numbers is None else numbers:
        workload = chosen[number].workload
        rate = _rate(chosen[number]) if sweep.rates_per_s else None
        if rate not in made:
            made[rate] = build_trace_intervals(workload.arrivals, len(lengths), workload.seed)
        jobs[number] = Job(chosen[number], lengths, made[rate], bundle, sweep.variant, cache_dir)
    return jobs


def points(job: Job) -> list[dict[str, Any]]:
    """The rows of `contracts.tables.SweepPoints` of a job, without their place among the others: one, or one for each
    rate that a search for the highest tried, ascending.

    Raises:
        SimulationError, ProfileError: as `simulate`.
    """
    search = _sweep_of(job.scenario).highest_rate
    if search is None:
        return [point(job, job.run())]
    rates = RateBisection(search.low_rate_per_s, search.high_rate_per_s, search.relative_tolerance)
    found = []
    while (rate := rates.next_rate_per_s()) is not None:
        tried = job.at_rate(rate)
        row = point(tried, tried.run())
        rates.record(rate, is_met=row["level_share"] >= search.least_share)
        found.append(row)
    return sorted(found, key=lambda row: row["rate_per_s"])


def point(job: Job, result: SimulationResult) -> dict[str, Any]:
    """The row of `contracts.tables.SweepPoints` of a simulation, without its place among the others (`pareto_*`).

    Throughput is what was produced from the first arrival to the last token: near the offered rate while the engine
    keeps up, its capacity beyond. Goodput counts the requests that meet every bound given, as vLLM's serving benchmark
    does (`vllm bench serve --goodput`).
    """
    from gst_assets.analysis.measures import is_sufficient, percentile_ns, percentiles_of_counts_ns

    requests = result.requests
    arrival, first, last = (
        requests[name].to_numpy(dtype="int64")
        for name in ("arrival_time_ns", "first_token_time_ns", "completion_time_ns")
    )
    produced = requests["num_decode_tokens_actual"].to_numpy(dtype="int64")
    ttft, e2e = first - arrival, last - arrival
    tpot = (last - first) / np.maximum(produced - 1, 1)
    makespan_ns = int(last.max() - arrival.min())
    per_s = NS_PER_S / makespan_ns
    level = job.scenario.sweep.service_level if job.scenario.sweep else None
    num_kept = None if level is None else int(_kept(level, ttft, tpot, e2e).sum())
    row: dict[str, Any] = {
        "rate_per_s": _rate(job.scenario),
        "max_num_seqs": job.scenario.engine.max_num_seqs,
        "max_num_batched_tokens": job.scenario.engine.max_num_batched_tokens,
        "num_kv_blocks": result.settings["num_kv_blocks"],
        "variant": job.variant,
        "num_requests": len(requests),
        "makespan_ns": makespan_ns,
        "requests_per_s": len(requests) * per_s,
        "output_tokens_per_s": int(produced.sum()) * per_s,
        "goodput_per_s": None if num_kept is None else num_kept * per_s,
    }
    each = np.ones(len(requests), dtype=np.int64)
    # Gaps are counted by step, so that no token table is made.
    samples = {"ttft": (ttft, each), "itl": result.token_gaps_ns(), "e2e": (e2e, each)}
    for name, (values, counts) in samples.items():
        found = percentiles_of_counts_ns(values, counts, _PERCENTILES)
        row |= {f"{name}_p{percentile}_ns": value for percentile, value in zip(_PERCENTILES, found, strict=True)}
    delay = np.sort(requests["scheduled_time_ns"].to_numpy(dtype="int64") - arrival)
    return row | {
        "scheduling_delay_p99_ns": percentile_ns(delay, 99),
        "num_preemptions": result.num_preemptions,
        "steps_outside_calibration": result.settings.get("steps_outside_calibration"),
        "p99_sufficient": is_sufficient("p99", len(requests), len(requests)),
        "level_share": None if num_kept is None else num_kept / len(requests),
    }


def _kept(level: ServiceLevel, ttft: np.ndarray, tpot: np.ndarray, e2e: np.ndarray) -> np.ndarray:
    """Which requests meet the service level: bool of shape (num_requests,)."""
    kept = np.ones(len(ttft), dtype=bool)
    for bound, found in ((level.ttft_ns, ttft), (level.tpot_ns, tpot), (level.e2e_ns, e2e)):
        if bound is not None:
            kept &= found <= bound
    return kept


def _rate(scenario: Scenario) -> float | None:
    arrivals = scenario.workload.arrivals
    return arrivals.rate_per_s if isinstance(arrivals, Poisson | Gamma) else None


def _sweep_of(scenario: Scenario) -> Sweep:
    if scenario.sweep is None:
        raise SimulationError(f"scenario {scenario.name} has no section sweep. Add one that lists what to vary.")
    return scenario.sweep
