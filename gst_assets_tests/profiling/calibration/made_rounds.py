"""Calibration made up of known costs, so that what is fitted to it is known. No test stands here."""

from __future__ import annotations

import numpy as np

from gst_assets.profiling.calibration import (
    LADDER,
    TRAFFIC,
    Round,
    Stretch,
)
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.step_costs.terms import Features
from gst_assets_tests.engine.memory_engine import SETTINGS
from gst_assets_tests.profiling.forward_model import Asked, stretch

SCENARIO = load_scenario("smoke")
CAPTURED = SETTINGS.model_copy(update={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]})
GRAPHS = CapturedGraphs(CAPTURED.cudagraph_capture_sizes)


def costs(term: str, kind: str, held: Features) -> float:
    """A device that decides how long steps take, but for the prompts of a ladder."""
    if term == "device":
        tokens = GRAPHS.padded(held.prefill_token + held.decode_request)
        return 4e6 + 1e4 * tokens + 10.0 * held.decode_context_token + 2.0 * held.attention_pair
    flat = {
        "prepare": 4e5,
        "launch": 6e5,
        "lead_in": 2e4,
        "drain": 3e4,
        "copy_out": 1e5,
        "process": 2e5,
        "prepare_after_idle": 1e5,
    }
    return flat[term] * (1.5 if kind != "decode" and term in ("prepare", "launch") else 1.0)


def handover_ns(num_prefill_tokens: int) -> int:
    return 500_000 + 1_000 * num_prefill_tokens


def delivery_ns(num_decode_requests: int) -> int:
    return 400_000 + 10_000 * num_decode_requests


def made_stretch(name: str, kind: str, asked: list[Asked], begin_ns: int) -> Stretch:
    return stretch(
        name, kind, asked, costs, GRAPHS, queue_size=2, is_gpu=True, handover_ns=handover_ns, delivery_ns=delivery_ns,
        begin_ns=begin_ns,
    )  # fmt: skip


def made_round(index: int) -> Round:
    """A ladder of lone prompts, and traffic whose busy times begin with one request and go on with more."""
    rng = np.random.default_rng(index)
    begin_ns = 10**9 + index * 10**11
    ladder = [Asked(step, size, 1) for step, size in enumerate((8, 16, 64, 100, 200))]
    flowing, step = [], 0
    for _ in range(12):
        length = int(rng.integers(20, 60))
        flowing.append(Asked(step, int(rng.choice([20, 50, 100])), length))
        flowing += [
            Asked(step + int(later), int(rng.choice([20, 50, 100])), int(rng.integers(2, length - later)))
            for later in sorted(rng.choice(np.arange(3, length - 3), 4, replace=False))
        ]
        step += length
    return Round(
        [
            made_stretch(f"round {index} ladder", LADDER, ladder, begin_ns),
            made_stretch(f"round {index} traffic 5/s", TRAFFIC, flowing, begin_ns + 10**10),
        ]
    )
