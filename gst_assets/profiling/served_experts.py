"""Which experts a mixture of experts reads while it serves: the table `contracts.tables.ServedExperts`.

Calibration traffic of a round of its own, the highest rate and the burst, is played once more, watched in the worker
(`worker_experts.RoutingWatch`). Nothing is timed here, since watching takes time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from gst_assets.profiling import traffic
from gst_assets.profiling.calibration import ROUNDS, WatchedEngine
from gst_assets.profiling.partial import PartialProfile
from gst_assets.provenance import sha256_bytes
from gst_assets.scenario import Geometry, Scenario


async def served_experts(
    engine: WatchedEngine, scenario: Scenario, partial: PartialProfile | None = None
) -> pd.DataFrame | None:
    """Play the traffic on an idle engine and count; None where its steps run where they cannot be watched (compiled
    whole, as vLLM's CPU build does with `engine.enforce_eager: false`). What `partial` has is not played again, and
    what is played is stored there."""
    segments = traffic.segments(scenario, ROUNDS)[-2:]
    # With what is played, so that what another version of this program watched is not taken over.
    planned = [repr(traffic.requests(segment, scenario, ROUNDS)) for segment in segments]
    block = f"served experts {sha256_bytes(json.dumps(planned).encode())[:16]}"
    rows = None if partial is None else partial.operator_blocks().get(block)
    if rows is None:
        rows = await _watched(engine, scenario, segments)
        if partial is not None:
            partial.keep_operator_block(block, rows)
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    for num_tokens, num_requests, distinct, num_layers in rows:
        if num_layers:
            kind = "decode" if num_tokens == num_requests else "mixed"
            seen[kind, num_tokens].append(distinct / num_layers)
    if not seen:
        return None
    table = pd.DataFrame(
        [
            {
                "step_kind": kind,
                "num_tokens": num_tokens,
                "num_steps": len(counts),
                "distinct_experts": round(sum(counts) / len(counts), 3),
                "even_distinct_experts": round(even_distinct_experts(scenario.model.geometry, num_tokens), 3),
            }
            for (kind, num_tokens), counts in sorted(seen.items())
        ]
    )
    return table.astype({"num_tokens": "Int64", "num_steps": "Int64"})


async def _watched(engine: WatchedEngine, scenario: Scenario, segments: Sequence[traffic.Segment]) -> list[list[int]]:
    """A row for each step (see `gst_take_experts`)."""
    rows: list[list[int]] = []
    for segment in segments:
        await engine.collective_rpc("gst_watch_experts")
        try:
            await traffic.play(engine, scenario, segment, ROUNDS)
        finally:
            rows += (await engine.collective_rpc("gst_take_experts"))[0]
    return rows


def even_distinct_experts(geometry: Geometry, num_tokens: int) -> float:
    """Experts of a layer that so many tokens reach on average, if the router takes any of them alike for each token by
    itself: E * (1 - (1 - k / E) ** n)."""
    assert geometry.num_experts and geometry.num_experts_per_token
    share = geometry.num_experts_per_token / geometry.num_experts
    return geometry.num_experts * (1.0 - (1.0 - share) ** num_tokens)
