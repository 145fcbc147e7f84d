"""Latency samples of an aligned side, and their percentiles. What a latency is, is defined here and nowhere else.

- `ttft` time to first token: `first_token_time_ns - arrival_time_ns`, one sample a request. Arrival is the intended one.
- `itl` inter-token latency: the gap to the previous token, pooled over all tokens with `token_index` > 0. (TPOT, a request's mean
  gap, is another measure.)
- `e2e` end-to-end latency: time of the last compared token - arrival, one sample a request.

Percentiles interpolate linearly between order statistics (numpy's `linear`, type 7 of Hyndman and Fan 1996, "Sample Quantiles in
Statistical Packages").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gst_assets.analysis.alignment import AlignedSide

Metric = Literal["ttft", "itl", "e2e"]
METRICS: tuple[Metric, ...] = get_args(Metric)
METRIC_NAMES: dict[Metric, str] = {"ttft": "TTFT", "itl": "ITL", "e2e": "E2E"}

PERCENTILES = (50, 90, 99)
MIN_SAMPLES_BEYOND = 10
"""A percentile with fewer samples beyond it rests on a handful of events; it is shown, and not judged."""


@dataclass(frozen=True)
class Percentile:
    """A percentile in nanoseconds of `num_samples` samples; NaN without samples."""

    value_ns: float
    num_samples: int


def statistic_name(percentile: int) -> str:
    """Name of a percentile in the report tables, e.g. `p99`."""
    return f"p{percentile}"


def samples_ns(side: AlignedSide, metric: Metric) -> np.ndarray:
    """Latency samples of one side, int64 nanoseconds, in request (and token) order."""
    if metric == "itl":
        return side.tokens.loc[side.tokens["token_index"] > 0, "token_latency_ns"].to_numpy()
    return side.requests[f"{metric}_ns"].to_numpy()


def percentile_ns(samples: np.ndarray, percentile: int) -> Percentile:
    """Percentile of latency samples in nanoseconds (linear interpolation)."""
    if not len(samples):
        return Percentile(math.nan, 0)
    return Percentile(float(np.percentile(samples, percentile, method="linear")), len(samples))


def is_sufficient(num_samples: int, percentile: int) -> bool:
    """Whether at least ten samples lie beyond the percentile: 20 samples for P50, 100 for P90, 1,000 for P99."""
    return num_samples * (100 - percentile) >= MIN_SAMPLES_BEYOND * 100
