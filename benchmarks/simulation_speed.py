"""Seconds to simulate one synthetic trace with Vidur's event loop and with the direct loop, in one process, and whether results are equal.

`python benchmarks/simulation_speed.py [REQUESTS ...]` from the repository's root. About 500 + 128 tokens a request at 20 requests/s (seeded),
on made-up operator tables: the loops are compared, not the times they predict. Vidur's stock command is not measured here.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.vidur_adapter import support

EVENT_LOOP_LIMIT = 10_000
"""Beyond this many requests only the direct loop runs."""


def main() -> None:
    """Print one line per trace size and variant."""
    for num_requests in [int(argument) for argument in sys.argv[1:]] or [1_000, 10_000]:
        random = np.random.default_rng(0)
        gaps = random.exponential(1e9 / 20, num_requests).astype(int)
        prompts, decodes = random.integers(400, 601, num_requests), random.integers(100, 157, num_requests)
        lengths, intervals = support.workload(list(zip(gaps.tolist(), prompts.tolist(), decodes.tolist(), strict=True)))
        for variant in ("kernels", "calibrated"):
            results: dict[str, SimulationResult] = {}
            for loop in ("direct", "event") if num_requests <= EVENT_LOOP_LIMIT else ("direct",):
                scenario = support.scenario(f"simulation.loop={loop}", "engine.max_num_seqs=128")
                bundle = support.bundle(scenario, scale=0.1)
                started = time.perf_counter()
                results[loop] = simulate(scenario, lengths, intervals, bundle, variant, cache_dir=None)
                total = time.perf_counter() - started
                print(
                    f"{num_requests} requests, {variant}, {loop}: loop {results[loop].stats['loop_s']:.2f} s, in all {total:.2f} s",
                    flush=True,
                )
            if len(results) == 2:
                equal = support.csv_bytes(results["direct"]) == support.csv_bytes(results["event"])
                ratio = results["event"].stats["loop_s"] / results["direct"].stats["loop_s"]
                print(f"  loop {ratio:.1f} times faster; tables equal to the byte: {equal}", flush=True)


if __name__ == "__main__":
    main()
