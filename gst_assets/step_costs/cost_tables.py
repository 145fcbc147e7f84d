"""What steps cost, as tables over whole numbers of tokens and requests: all that a simulation reads while it runs.

Made once from a bundle's `operators.OperatorTimes` or `engine_costs.EngineCosts`, which say what a step costs; here
only how that is laid out, as arrays that compiled code can take.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gst_assets.step_costs.shapes import DECODE, MIXED, MIXED_EAGER, CapturedGraphs

KINDS = (DECODE, MIXED, MIXED_EAGER)
HOST_SLOPES = ("decode_request", "prefill_request", "prefill_token")
DEVICE_SLOPES = (
    "attention_pair", "decode_context_token", "decode_request", "prefill_request", "reread_context_token", "warm_token",
    "warmth",
)  # fmt: skip
"""In the order in which `terms.Term.ns` adds them up."""

Floats = NDArray[np.float64]


class CostTables(NamedTuple):
    """In ns: operator sums, or the parts of `engine_costs.StepCost`. Tables over tokens or requests hold their last
    value beyond their end; what the one kind of cost does not need is empty."""

    is_operator_sum: bool
    queue_size: int
    """Steps formed and not handed out from which on the host waits for the oldest one."""
    padded_tokens: Any
    """(tokens + 1,): what kernels really process."""
    largest_graph: int
    """Tokens; 0 without captured graphs."""
    # Operator sums.
    tokens_ms: Any
    """(tokens + 1,): all per-token operators of a layer; NaN outside the profile."""
    scale: float
    """From ms of a layer to ns of all."""
    decode_batches: Any
    decode_contexts: Any
    decode_ms: Any
    """(batches, contexts)"""
    prefill_contexts: Any
    prefill_chunks: Any
    prefill_ms: Any
    """(contexts, chunks)"""
    # Parts, each first by kind of step.
    prepare_ns: Any
    """(kinds, decodes + 1)"""
    prepare_slopes_ns: Any
    """(kinds, 3): of `HOST_SLOPES`."""
    launch_ns: Any
    launch_slopes_ns: Any
    lead_in_ns: Any
    """(kinds,)"""
    device_ns: Any
    """(kinds, padded tokens + 1)"""
    device_slopes_ns: Any
    """(kinds, 7, padded tokens + 1): of `DEVICE_SLOPES`."""
    drain_ns: Any
    """(kinds,)"""
    copy_out_ns: Any
    """(kinds, requests + 1)"""
    process_ns: Any
    after_idle_ns: Any
    """(kinds, 2): of prepare and launch."""
    largest_batch: float
    """Decodes beyond which a step counts as outside what was calibrated."""
    device_is_host: bool
    # The host's speed; empty where it is always at its median.
    speed_order: Any
    decode_when_ns: Any
    decode_ratio: Any
    prefill_when_ns: Any
    prefill_ratio: Any


class DeliveryTables(NamedTuple):
    """What the way from the engine's host to the client costs, as `engine_costs.RequestWays` says."""

    medians_ns: Any
    """(decodes + 1,): of the tokens of a step with so many decodes, at the host's median speed."""
    speed_order: Any
    """As `CostTables.speed_order`."""
    when_ns: Any
    ratios: Any


def padded_tokens(graphs: CapturedGraphs, most: int) -> NDArray[np.int64]:
    """What kernels process of 0, 1, ... `most` tokens, shape (most + 1,)."""
    return np.array([graphs.padded(tokens) for tokens in range(most + 1)], dtype=np.int64)


def without_parts(**known: Any) -> CostTables:
    """Tables of operator sums: `known` fields, and none of the parts."""
    none, kinds = np.zeros(0), len(KINDS)
    parts: dict[str, Any] = {
        name: np.zeros((kinds, 1)) for name in ("prepare_ns", "launch_ns", "device_ns", "copy_out_ns", "process_ns")
    }
    parts |= {name: np.zeros((kinds, len(HOST_SLOPES))) for name in ("prepare_slopes_ns", "launch_slopes_ns")}
    parts |= {"device_slopes_ns": np.zeros((kinds, len(DEVICE_SLOPES), 1)), "after_idle_ns": np.zeros((kinds, 2))}
    parts |= {name: np.zeros(kinds) for name in ("lead_in_ns", "drain_ns")}
    parts |= {"largest_batch": np.inf, "device_is_host": False, "speed_order": np.zeros(0, dtype=np.int64)}
    parts |= {name: np.zeros(0, dtype=np.int64) for name in ("decode_when_ns", "prefill_when_ns")}
    parts |= dict.fromkeys(("decode_ratio", "prefill_ratio"), none)
    return CostTables(**(parts | known))


def without_sums(**known: Any) -> CostTables:
    """Tables of parts: `known` fields, and no operator sums."""
    none, grid = np.zeros(0), np.zeros((0, 0))
    sums: dict[str, Any] = {"is_operator_sum": False, "tokens_ms": none, "scale": 0.0}
    sums |= dict.fromkeys(("decode_batches", "decode_contexts", "prefill_contexts", "prefill_chunks"), none)
    sums |= {"decode_ms": grid, "prefill_ms": grid}
    return CostTables(**(sums | known))


def as_lists(tables: CostTables) -> CostTables:
    """The same in lists, which plain Python reads faster than arrays."""
    lists: dict[str, Any] = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in tables._asdict().items()
    }
    return CostTables(**lists)
