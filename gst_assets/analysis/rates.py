"""Throughput and goodput of one aligned side: what a run as a whole achieved per second.

All over the same time, from the first arrival to the last compared token. Goodput counts the requests that meet every
bound of the service level that is given, as vLLM's serving benchmark does (`vllm bench serve --goodput`); a request of
one token has no gap and meets any bound of TPOT.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import AlignedSide
from gst_assets.scenario import ServiceLevel

RATE_NAMES = {
    "requests_per_s": "requests/s",
    "input_tokens_per_s": "input tokens/s",
    "output_tokens_per_s": "output tokens/s",
    "goodput_per_s": "goodput, requests/s",
}


def rates_per_s(side: AlignedSide, level: ServiceLevel | None) -> dict[str, float]:
    """Values by the names of `RATE_NAMES`; no goodput without a service level; NaN where the run took no time."""
    requests = side.requests
    arrival = requests["arrival_time_ns"].to_numpy()
    duration_ns = int((arrival + requests["e2e_ns"].to_numpy()).max() - arrival.min())
    per_s = 1e9 / duration_ns if duration_ns else math.nan
    found = {
        "requests_per_s": len(requests) * per_s,
        "input_tokens_per_s": float(requests["num_prefill_tokens"].sum()) * per_s,
        "output_tokens_per_s": float(requests["num_tokens"].sum()) * per_s,
    }
    if level is not None:
        found["goodput_per_s"] = int(keeps(requests, level).sum()) * per_s
    return found


def keeps(requests: pd.DataFrame, level: ServiceLevel) -> np.ndarray:
    """Which of the aligned requests meet the service level, bool [requests]."""
    ttft, e2e, tokens = (requests[name].to_numpy(dtype="float64") for name in ("ttft_ns", "e2e_ns", "num_tokens"))
    tpot = (e2e - ttft) / np.maximum(tokens - 1, 1)
    kept = np.ones(len(requests), dtype=bool)
    for bound, values in ((level.ttft_ns, ttft), (level.tpot_ns, tpot), (level.e2e_ns, e2e)):
        if bound is not None:
            kept &= values <= bound
    return kept
