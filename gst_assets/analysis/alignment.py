"""Bringing a real run and a simulation of it onto the same requests and the same tokens. Computes no statistic.

Rules: only requests that produced a token in the real run are compared, on both sides; the simulated series of each
request is cut to the real `num_decode_tokens_actual`. Nothing is rescaled, filled or interpolated: where a side knows
no token times there is no ITL, and a simulation that knows none must have produced as many tokens as the engine.

Requests are joined by `source_request_id` where both runs have it, else by `request_id`. Runs that state the same
workload have the same arrivals and lengths, to the nanosecond; others at least the same requests and prompt lengths
(`gate` says how far their arrivals are apart).

Where turns wait for the answers before them (a closed loop inside sessions) it is the workload's own times and the
turns' order that are the same. Arrivals of later turns are each side's own, and its latencies count from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.contracts.documents import RealRunFacts, SimulationFacts
from gst_assets.contracts.turns import PREVIOUS, WORKLOAD_ARRIVAL, turns_wait
from gst_assets.errors import ComparisonError

SCHEDULED = "scheduled_time_ns"
KEY = "source_request_id"
"""Column with the name of a request in the results it was imported from."""
_SHOWN = 10
"""At most so many of the requests that differ are named."""
R = TypeVar("R", RealRun, SimulatedRun)
_SAME_LENGTHS = ("num_prefill_tokens", "num_decode_tokens")


@dataclass(frozen=True)
class AlignedSide:
    """One side of an aligned pair, in plain int64 columns.

    `requests`: one row per compared request, ascending: request_id, arrival_time_ns, num_prefill_tokens, num_tokens
    (compared), ttft_ns, e2e_ns (last compared token - arrival), and scheduled_time_ns where both sides record it for
    every compared request. `tokens`: request_id, token_index, token_time_ns, token_latency_ns, in contract order;
    without a row where a side of the pair knows no token times.
    """

    requests: pd.DataFrame
    tokens: pd.DataFrame


@dataclass(frozen=True)
class AlignedPair:
    """A real run and a simulation on the same requests and tokens: row i of either side's tables is about the same
    thing."""

    real: AlignedSide
    sim: AlignedSide
    counts: Counts


@dataclass(frozen=True)
class Counts:
    """What alignment compared and left out; the columns of `contracts.tables.AlignmentCounts`. `num_early_stops` is
    None where the real run does not state what was asked for."""

    num_requests: int
    num_compared: int
    num_errors: int
    num_no_token: int
    num_early_stops: int | None
    num_tokens_compared: int
    num_tokens_cut: int


def align(real: RealRun, sim: SimulatedRun) -> AlignedPair:
    """Align a simulation to a real run of the same workload.

    Raises:
        ComparisonError: different workloads (names both); request sets, arrivals or lengths that differ, or a request
            with fewer simulated than real tokens (names the first); no request with a token in the real run.
    """
    check_same_workload([real.meta, sim.meta])
    requests = real.requests
    produced = requests["num_decode_tokens_actual"].to_numpy(dtype="int64")
    ok = (requests["status"] == "ok").to_numpy()
    compared = ok & (produced > 0)
    _check_same_requests(real, sim, compared)
    if not compared.any():
        raise ComparisonError(
            f"{real.directory}: none of the {len(requests)} requests can be compared: {int((~ok).sum())} failed and "
            f"{int((ok & (produced == 0)).sum())} gave no token. Repair the engine and measure again."
        )
    simulated = _simulated_counts(sim)
    _check_simulation_is_long_enough(real, sim, compared, produced, simulated)
    asked = requests["num_decode_tokens"].to_numpy(dtype="int64")
    counts = Counts(
        num_requests=len(requests),
        num_compared=int(compared.sum()),
        num_errors=int((~ok).sum()),
        num_no_token=int((ok & (produced == 0)).sum()),
        num_early_stops=int((compared & (produced < asked)).sum()) if tells_requested_lengths(real) else None,
        num_tokens_compared=int(produced[compared].sum()),
        num_tokens_cut=int((simulated - produced)[compared].sum()),
    )
    told = all(SCHEDULED in run.requests and run.requests.loc[compared, SCHEDULED].notna().all() for run in (real, sim))
    ours, theirs = (_side(run, compared, produced, told) for run in (real, sim))
    if not (real.has_tokens and sim.has_tokens):
        ours, theirs = (replace(side, tokens=side.tokens.iloc[:0]) for side in (ours, theirs))
    return AlignedPair(ours, theirs, counts)


def joined(first: RealRun | SimulatedRun, other: R) -> R:
    """`other` with its requests in the order of `first`, and numbered as there, where both name them
    (`source_request_id`).

    Raises:
        ComparisonError: the two are not of the same requests; names the first ten that only one has, and how many there
            are.
    """
    if not is_joined_by_name(first, other):
        return other
    names, theirs = (run.requests[KEY].tolist() for run in (first, other))
    if names == theirs:
        return other
    _check_same_set(first, other, names, theirs)
    place = {name: number for number, name in enumerate(names)}
    number = np.array([place[name] for name in theirs], dtype=np.int64)
    requests = other.requests.iloc[np.argsort(number)].reset_index(drop=True)
    requests["request_id"] = pd.array(np.arange(len(number)), dtype="Int64")
    if PREVIOUS in requests:
        # It names a request by the number that it had.
        waits = requests[PREVIOUS].notna()
        requests.loc[waits, PREVIOUS] = number[requests.loc[waits, PREVIOUS].to_numpy(dtype="int64")]
    tokens = other.tokens.assign(request_id=number[other.tokens["request_id"].to_numpy()])
    return replace(
        other, requests=requests, tokens=tokens.sort_values("request_id", kind="stable").reset_index(drop=True)
    )


def is_joined_by_name(one: RealRun | SimulatedRun, two: RealRun | SimulatedRun) -> bool:
    """Whether both runs name their requests as the results they came from did."""
    return KEY in one.requests and KEY in two.requests


def is_closed_loop(run: RealRun | SimulatedRun) -> bool:
    """Whether turns of its sessions wait for the answers before them."""
    return turns_wait(run.requests) and WORKLOAD_ARRIVAL in run.requests


def sessions_of(run: RealRun | SimulatedRun) -> np.ndarray | None:
    """Which session each request is of, int64 by request id, numbered by the places of their first turns; None where no
    turn waits for an answer. A turn may stand before the one that it waits for (`joined`)."""
    if not is_closed_loop(run):
        return None
    previous = run.requests[PREVIOUS].to_numpy(dtype="int64", na_value=-1)
    first = np.where(previous < 0, np.arange(len(previous)), previous)
    while (further := first[first]).tolist() != first.tolist():  # twice as many turns back each time
        first = further
    numbers: np.ndarray = np.unique(first, return_inverse=True)[1]
    return numbers


def same_turns_wait(one: RealRun | SimulatedRun, two: RealRun | SimulatedRun) -> bool:
    """Whether in both turns wait for answers, and the same ones for the same."""
    if not (is_closed_loop(one) and is_closed_loop(two)):
        return False
    ours, theirs = (run.requests[PREVIOUS].to_numpy(dtype="int64", na_value=-1) for run in (one, two))
    return np.array_equal(ours, theirs)


def states_workload(*runs: RealRun | SimulatedRun) -> bool:
    """Whether every one of the runs says which workload it is of, so that all of it can be held to be the same."""
    return all(run.meta.workload_id is not None for run in runs)


def _check_same_set(
    one: RealRun | SimulatedRun, two: RealRun | SimulatedRun, names: Sequence[str], theirs: Sequence[str]
) -> None:
    parts = []
    for run, mine, others in ((one, names, set(theirs)), (two, theirs, set(names))):
        only = [name for name in mine if name not in others]
        if only:
            more = ", ..." if len(only) > _SHOWN else ""
            parts.append(f"{len(only)} only in {run.directory} ({', '.join(only[:_SHOWN])}{more})")
    if parts:
        raise ComparisonError(
            f"{one.directory} has {len(names)} requests, {two.directory} has {len(theirs)}, not the same ones by {KEY}:"
            f" {'; '.join(parts)}. Compare runs of the same requests; import both sides with the same selection."
        )


def check_same_workload(metas: Sequence[RealRunFacts | SimulationFacts]) -> None:
    """All runs that state their workload played the same one, by id and by the digests of its files.

    Raises:
        ComparisonError: names the two runs and their workloads, or the file that differs.
    """
    stated = [meta for meta in metas if meta.workload_id is not None]
    for other in stated[1:]:
        first = stated[0]
        if other.workload_id != first.workload_id:
            raise ComparisonError(
                f"run {first.run_id} is of workload {first.workload_id}, run {other.run_id} of workload"
                f" {other.workload_id}. Compare runs of one workload."
            )
        names = sorted(first.workload_sha256.keys() | other.workload_sha256.keys())
        for name in names:
            one, two = first.workload_sha256.get(name), other.workload_sha256.get(name)
            if one != two:
                raise ComparisonError(
                    f"runs {first.run_id} and {other.run_id} both name workload {first.workload_id}, but {name} has"
                    f" sha256 {_short(one)} in the first and {_short(two)} in the second. Compare runs of one workload."
                )


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "(none recorded)"


def tells_requested_lengths(run: RealRun) -> bool:
    """Whether `num_decode_tokens` is what was asked for. An import of a client's results may have what was produced."""
    return run.meta.imported is None or bool(run.meta.imported.requested_lengths)


def _check_same_requests(real: RealRun, sim: SimulatedRun, compared: np.ndarray) -> None:
    """The same requests, with the same arrivals and lengths where both state their workload; else with the same prompt
    lengths, of those that are compared: a client need not know that of a failed one."""
    one, two = len(real.requests), len(sim.requests)
    if one != two:
        low, high = min(one, two), max(one, two)
        listed = ", ".join(map(str, range(low, min(high, low + _SHOWN)))) + (", ..." if high - low > _SHOWN else "")
        raise ComparisonError(
            f"{real.directory} has {one} requests, {sim.directory} has {two}: {high - low}"
            f" {'is' if high - low == 1 else 'are'} only in the {'first' if one > two else 'second'} (request"
            f" {listed}). Simulate the workload that was measured."
        )
    stated = states_workload(real, sim)
    if stated and is_closed_loop(real) != is_closed_loop(sim):
        waits, free = (real, sim) if is_closed_loop(real) else (sim, real)
        raise ComparisonError(
            f"in {waits.directory} turns wait for the answers before them ({PREVIOUS}), in {free.directory} they do"
            " not. Measure and simulate with the same closed_loop."
        )
    arrivals = (WORKLOAD_ARRIVAL, PREVIOUS) if is_closed_loop(real) else ("arrival_time_ns",)
    for name in (*arrivals, *_SAME_LENGTHS) if stated else ("num_prefill_tokens",):
        ours, theirs = (run.requests[name].to_numpy(dtype="int64", na_value=-1) for run in (real, sim))
        differs = (ours != theirs) & (compared | stated)
        if differs.any():
            rows = np.flatnonzero(differs)
            shown = ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
            every = f" ({len(rows)} requests differ: {shown})" if len(rows) > 1 else ""
            raise ComparisonError(
                f"request {real.requests['request_id'].iloc[rows[0]]}: {name} is {real.requests[name].iloc[rows[0]]} in"
                f" {real.directory} but {sim.requests[name].iloc[rows[0]]} in {sim.directory}{every}. Simulate the"
                " workload that was measured."
            )


def _simulated_counts(sim: SimulatedRun) -> np.ndarray:
    """Tokens of each simulated request that may be compared; a failed one has none."""
    counts = sim.requests["num_decode_tokens_actual"].to_numpy(dtype="int64")
    return np.where((sim.requests["status"] == "ok").to_numpy(), counts, 0)


def _check_simulation_is_long_enough(
    real: RealRun, sim: SimulatedRun, compared: np.ndarray, produced: np.ndarray, simulated: np.ndarray
) -> None:
    short = compared & (simulated < produced)
    if short.any():
        row = int(short.argmax())
        raise ComparisonError(
            f"request {real.requests['request_id'].iloc[row]}: {sim.directory} has {simulated[row]} usable tokens"
            f" (status {sim.requests['status'].iloc[row]}), {real.directory} has {produced[row]}. A simulation must"
            " produce every token that was measured; simulate again."
        )
    longer = compared & (simulated > produced)
    if not sim.has_tokens and longer.any():
        rows = np.flatnonzero(longer)
        shown = ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
        raise ComparisonError(
            f"{sim.directory} knows no token times, so it cannot be cut to the tokens that were measured, and"
            f" {len(rows)} of its requests have more of them (request {shown}). Simulate the lengths that were"
            " produced, or give a simulation with token times."
        )


def _side(
    run: RealRun | SimulatedRun, compared: np.ndarray, produced: np.ndarray, scheduling_told: bool
) -> AlignedSide:
    """Cut a run to the compared requests (mask over request ids) and to `produced[request_id]` tokens each."""
    # The contract makes request ids 0..N-1, so an id is also a row of the request table.
    ids, index = run.tokens["request_id"].to_numpy(), run.tokens["token_index"].to_numpy()
    kept = compared[ids]
    kept &= index < produced[ids]
    # Usually nothing is cut, and then a large table is not copied either.
    tokens = run.tokens if kept.all() else run.tokens.loc[kept].reset_index(drop=True)
    chosen = run.requests.loc[compared]
    requests = pd.DataFrame(
        {
            name: chosen[name].to_numpy(dtype="int64")
            for name in ("request_id", "arrival_time_ns", "num_prefill_tokens", "ttft_ns")
        }
    )
    requests["num_tokens"] = produced[compared]
    if run.has_tokens:
        # Tokens are ordered by request and index, so the running count of tokens ends each request's series.
        ends = tokens["token_time_ns"].to_numpy()[np.cumsum(produced[compared]) - 1]
    else:
        ends = chosen["completion_time_ns"].to_numpy(dtype="int64")
    requests["e2e_ns"] = ends - requests["arrival_time_ns"].to_numpy()
    if scheduling_told:
        requests[SCHEDULED] = chosen[SCHEDULED].to_numpy(dtype="int64")
    return AlignedSide(requests, tokens)
