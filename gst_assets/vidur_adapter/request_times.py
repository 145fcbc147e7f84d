"""Between client and scheduler: when a request can be seen, and when its tokens reach the client."""

from __future__ import annotations

import numpy as np

from gst_assets.step_costs.engine_costs import RequestWays
from gst_assets.vidur_adapter.step_log import Integers, LoggedSteps, Spans, gives_tokens


def seen_ns(arrivals_ns: Integers, num_prefill_tokens: Integers, ways: RequestWays) -> Integers:
    """When the scheduler can see each request. The driver sends requests in order, so none is seen before one that
    arrived earlier."""
    return np.maximum.accumulate(arrivals_ns + handovers_ns(num_prefill_tokens, ways))


def handovers_ns(num_prefill_tokens: Integers, ways: RequestWays) -> Integers:
    """From each request's arrival to the earliest moment the scheduler can see it."""
    prompts, places = np.unique(num_prefill_tokens, return_inverse=True)
    found: Integers = np.array([ways.handover_ns(n) for n in prompts.tolist()], dtype="int64")[places]
    return found


def delivered_ns(spans: Spans, steps: LoggedSteps, ways: RequestWays | None) -> Integers:
    """When the client sees the tokens of each step. Outputs are delivered in order, so none overtakes those of an
    earlier step."""
    ends = steps.handed_out_ns
    if ways is None:
        return ends
    delays = ways.deliveries_ns(steps.num_decode_requests, ends)
    return np.maximum.accumulate(ends + np.where(gives_tokens(spans, len(ends)), delays, 0))
