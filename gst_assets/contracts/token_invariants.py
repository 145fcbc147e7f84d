"""What holds between the rows of a token table, said once for those who write, check and read one.

Rows are ordered by request. Within a request `token_index` counts 0, 1, 2, ... without gaps, `token_time_ns` does not
decrease, and `token_latency_ns` is the time since the previous token, 0 at index 0. All arrays are one-dimensional
int64 (masks: bool) with a value for each row; every function is one pass over them. Needs numpy alone, so that a GPU
host and the simulation have it too.
"""

from __future__ import annotations

import numpy as np


def begins_request(request_ids: np.ndarray) -> np.ndarray:
    """Mask of the rows whose request is not that of the row before: the first token of each request."""
    begins = np.ones(len(request_ids), dtype=bool)
    np.not_equal(request_ids[1:], request_ids[:-1], out=begins[1:])
    return begins


def indexes(begins: np.ndarray) -> np.ndarray:
    """The `token_index` of rows of which `begins` (`begins_request`) are the first of a request."""
    starts = np.flatnonzero(begins)
    return np.arange(len(begins)) - np.repeat(starts, np.diff(starts, append=len(begins)))


def latencies_ns(begins: np.ndarray, times_ns: np.ndarray) -> np.ndarray:
    """The `token_latency_ns` of tokens at `times_ns`; negative where times decrease within a request."""
    latencies = np.zeros(len(times_ns), dtype=np.int64)
    np.subtract(times_ns[1:], times_ns[:-1], out=latencies[1:])
    latencies[begins] = 0
    return latencies


def are_ordered(request_ids: np.ndarray) -> np.ndarray:
    """Mask of the rows whose request is not below that of the row before."""
    ordered = np.ones(len(request_ids), dtype=bool)
    np.greater_equal(request_ids[1:], request_ids[:-1], out=ordered[1:])
    return ordered


def index_counts_on(begins: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mask of the rows whose `index` is 0 at the beginning of a request, and one more than in the row before
    elsewhere."""
    counts = index == 0
    np.equal(index[1:], index[:-1] + 1, out=counts[1:], where=~begins[1:])
    return counts


def all_hold(request_ids: np.ndarray, index: np.ndarray, latencies: np.ndarray, expected: np.ndarray) -> bool:
    """Whether every rule holds; `expected` are the `latencies_ns` of the rows' times."""
    begins = begins_request(request_ids)
    return bool(
        are_ordered(request_ids).all()
        and index_counts_on(begins, index).all()
        and (expected >= 0).all()
        and (latencies is expected or np.array_equal(latencies, expected))
    )
