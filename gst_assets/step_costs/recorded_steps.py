"""What steps that really ran should have taken by a profile's terms: the cost model apart from scheduling and queueing.

Every step is given when it was really formed and what the device was really doing before it, so that an error stays
with its own step. How a simulation puts steps together is `vidur_adapter.core`; measuring belongs to `profiling`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.step_costs.engine_costs import EngineCosts
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.step_costs.terms import Features
from gst_assets.step_costs.warmth import Warmth


class ServiceTime(NamedTuple):
    """Of one step, in ns, from when the device could have begun it until it was done."""

    kind: str
    real: float
    predicted: float


_LATE = 2.0
NEEDED = ("launched_time_ns", "output_time_ns", "num_prefill_context_tokens", "num_attention_pairs")
"""Optional columns of `contracts.tables.Iterations` without which nothing can be predicted."""
REREAD_TOKENS = "num_reread_context_tokens"
"""Where the engine has a prefix cache, one more."""


def service_times(
    iterations: pd.DataFrame, costs: EngineCosts, graphs: CapturedGraphs, queue_size: int
) -> list[ServiceTime]:
    """For each step of a real run (`contracts.tables.Iterations` with the columns `NEEDED`) whose tokens the host
    waited for: of others it is not seen when the device was done. Without the column `REREAD_TOKENS` decodes shared
    nothing. The host is at its median speed. `queue_size` is 2
    for an engine with asynchronous scheduling, else 1.
    """
    formed = iterations["scheduled_time_ns"].tolist()
    output = iterations["output_time_ns"].tolist()
    prompts = iterations["num_prefill_context_tokens"]
    reread = iterations[REREAD_TOKENS] if REREAD_TOKENS in iterations else 0 * prompts
    held_columns = (
        iterations["num_prefill_requests"], iterations["num_prefill_tokens"], iterations["num_decode_requests"],
        iterations["num_context_tokens"] - prompts - reread, iterations["num_attention_pairs"],
    )  # fmt: skip
    rows = zip(*(column.tolist() for column in held_columns), strict=True)
    held = [
        Features(*row)._replace(reread_context_token=shared) for row, shared in zip(rows, reread.tolist(), strict=True)
    ]
    kinds = [graphs.kind(step.prefill_token, step.decode_request) for step in held]
    warmth, done_before, launched_before = Warmth(), float(formed[0]), 0.0
    is_late = _taken_late(iterations, held, costs, queue_size)
    found: list[ServiceTime] = []
    for n, (step, kind) in enumerate(zip(held, kinds, strict=True)):
        cost = costs.of(step)
        is_idle = n == 0 or output[n - 1] < formed[n]
        host = costs.after_idle(cost, kind) if is_idle and step.decode_request == 0 else cost
        begun = max(formed[n], launched_before) if costs.has_own_workers else formed[n]
        forward = begun + host.prepare
        launched_before = forward + host.launch
        start = max(forward, done_before)
        cost = costs.of(step.at_warmth(warmth.at(start)))
        done = max(start + cost.lead_in + cost.device, launched_before + cost.drain)
        if costs.device_is_host:  # its workers compute the step
            launched_before = done
        real_done = output[n] - cost.copy_out
        if not is_late[n] and real_done > start:
            found.append(ServiceTime(kind, real_done - start, done - start))
        # Tokens that the host waited for say when the device was done; others only that it was done by then.
        done_before = min(done, real_done) if is_late[n] else real_done
        warmth.ran(min(start, done_before), done_before, step.prefill_token + step.decode_request)
    return found


def _taken_late(
    iterations: pd.DataFrame, held: list[Features], costs: EngineCosts, queue_size: int
) -> NDArray[np.bool_]:
    """Whether the tokens of each step were taken as soon as the next step was launched, so that they may have been
    there before.

    From a launched forward pass to taking tokens that are there the host samples, which takes it no longer than
    launching a decode step of as many requests, sampling included; twice that is allowed, and as much more as
    its launch shows the host to be slow. With workers that are processes of their own the host has less to do: it forms
    the step.
    """
    late = np.zeros(len(iterations), dtype=bool)
    if queue_size == 1 or len(iterations) < 2:
        return late
    formed, launched, output = (
        iterations[name].to_numpy(dtype=float, na_value=np.nan)
        for name in ("scheduled_time_ns", "launched_time_ns", "output_time_ns")
    )
    if costs.has_own_workers:
        sampling = expected = [cost.form for cost in map(costs.of, held)]
    else:
        sampling = [costs.of(Features(0, 0, step.prefill_request + step.decode_request, 0, 0)).launch for step in held]
        expected = [cost.prepare + cost.launch for cost in map(costs.of, held)]
    slowness = np.maximum((launched - formed) / np.array(expected), 1.0)
    limits = _LATE * np.array(sampling) * slowness
    late[:-1] = (formed[1:] < output[:-1]) & ~(output[:-1] - launched[1:] > limits[1:])
    return late
