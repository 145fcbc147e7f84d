"""The identity of a workload's shape, whatever its prompts say: lengths and arrival times. Numpy-free, so that a GPU
host can use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def workload_digest(lengths: Iterable[tuple[int, int]], arrivals_ns: Iterable[int]) -> str:
    """sha256 of a workload's (prompt, output) lengths and arrival times in nanoseconds since its first request, in
    order of request."""
    content = [[list(map(int, pair)) for pair in lengths], [int(arrival) for arrival in arrivals_ns]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
