"""Bringing a real run and a simulation of it onto the same requests and the same tokens. Computes no statistic.

Rules: only requests that produced a token in the real run are compared, on both sides; the simulated series of each request is cut to
the real `num_decode_tokens_actual`. Nothing is rescaled, filled or interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.contracts.documents import RealRunMeta, VidurRunMeta
from gst_assets.errors import ComparisonError

SCHEDULED = "scheduled_time_ns"
_SAME_ON_BOTH_SIDES = ("arrival_time_ns", "num_prefill_tokens", "num_decode_tokens")


@dataclass(frozen=True)
class AlignedSide:
    """One side of an aligned pair, in plain int64 columns.

    `requests`: one row per compared request, ascending: request_id, arrival_time_ns, num_prefill_tokens, num_tokens (compared),
    ttft_ns, e2e_ns (last compared token - arrival), and scheduled_time_ns where both sides tell it of every compared request. `tokens`: request_id, token_index, token_time_ns, token_latency_ns, in contract order.
    """

    requests: pd.DataFrame
    tokens: pd.DataFrame


@dataclass(frozen=True)
class AlignedPair:
    """A real run and a simulation on the same requests and tokens: row i of either side's tables is about the same thing."""

    real: AlignedSide
    sim: AlignedSide
    counts: Counts


@dataclass(frozen=True)
class Counts:
    """What alignment kept and left out; the columns of `contracts.tables.AlignmentCounts`."""

    num_requests: int
    num_compared: int
    num_errors: int
    num_no_token: int
    num_early_stops: int
    num_tokens_compared: int
    num_tokens_cut: int


def align(real: RealRun, sim: SimulatedRun) -> AlignedPair:
    """Align a simulation to a real run of the same workload.

    Raises:
        ComparisonError: different workloads (names both); request sets, arrivals or lengths that differ, or a request with fewer
            simulated than real tokens (names the first); no request with a token in the real run.
    """
    check_same_workload([real.meta, sim.meta])
    _check_same_requests(real, sim)
    requests = real.requests
    produced = requests["num_decode_tokens_actual"].to_numpy(dtype="int64")
    ok = (requests["status"] == "ok").to_numpy()
    compared = ok & (produced > 0)
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
        num_early_stops=int((compared & (produced < asked)).sum()),
        num_tokens_compared=int(produced[compared].sum()),
        num_tokens_cut=int((simulated - produced)[compared].sum()),
    )
    told = all(SCHEDULED in run.requests and run.requests.loc[compared, SCHEDULED].notna().all() for run in (real, sim))
    return AlignedPair(_side(real, compared, produced, told), _side(sim, compared, produced, told), counts)


def check_same_workload(metas: Sequence[RealRunMeta | VidurRunMeta]) -> None:
    """All runs played the same workload, by id and by the digests of its files.

    Raises:
        ComparisonError: names the two runs and their workloads, or the file that differs.
    """
    first = metas[0]
    for other in metas[1:]:
        if other.workload_id != first.workload_id:
            raise ComparisonError(
                f"run {first.run_id} is of workload {first.workload_id}, run {other.run_id} of workload {other.workload_id}. "
                "Compare runs of one workload."
            )
        names = sorted(first.workload_sha256.keys() | other.workload_sha256.keys())
        for name in names:
            one, two = first.workload_sha256.get(name), other.workload_sha256.get(name)
            if one != two:
                raise ComparisonError(
                    f"runs {first.run_id} and {other.run_id} both name workload {first.workload_id}, but {name} has sha256 "
                    f"{_short(one)} in the first and {_short(two)} in the second. Compare runs of one workload."
                )


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "(none recorded)"


def _check_same_requests(real: RealRun, sim: SimulatedRun) -> None:
    one, two = len(real.requests), len(sim.requests)
    if one != two:
        raise ComparisonError(
            f"{real.directory} has {one} requests, {sim.directory} has {two}: request {min(one, two)} is only in the "
            f"{'first' if one > two else 'second'}. Simulate the workload that was measured."
        )
    for name in _SAME_ON_BOTH_SIDES:
        differs = (real.requests[name] != sim.requests[name]).to_numpy(dtype=bool)
        if differs.any():
            row = int(differs.argmax())
            raise ComparisonError(
                f"request {real.requests['request_id'].iloc[row]}: {name} is {real.requests[name].iloc[row]} in {real.directory} but "
                f"{sim.requests[name].iloc[row]} in {sim.directory}. Simulate the workload that was measured."
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
            f"request {real.requests['request_id'].iloc[row]}: {sim.directory} has {simulated[row]} usable tokens (status "
            f"{sim.requests['status'].iloc[row]}), {real.directory} has {produced[row]}. A simulation must produce every token that was "
            "measured; simulate again."
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
    # Tokens are ordered by request and index, so the running count of tokens ends each request's series.
    last = np.cumsum(produced[compared]) - 1
    requests["e2e_ns"] = tokens["token_time_ns"].to_numpy()[last] - requests["arrival_time_ns"].to_numpy()
    if scheduling_told:
        requests[SCHEDULED] = chosen[SCHEDULED].to_numpy(dtype="int64")
    return AlignedSide(requests, tokens)
