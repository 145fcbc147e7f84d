"""Predicted service times of recorded steps: exact where the records follow the terms, and blind to what the host alone
decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gst_assets.engine.protocol import IterationField
from gst_assets.profiling.step_samples import WatchedSteps
from gst_assets.step_costs.engine_costs import EngineCosts
from gst_assets.step_costs.recorded_steps import NEEDED, service_times
from gst_assets_tests.profiling.forward_model import Made, play
from gst_assets_tests.profiling.test_step_samples import ENGINES, Engine, rows_of, sharing, traffic, watched

COLUMNS = {
    "scheduled_time_ns": IterationField.SCHEDULED_NS,
    "launched_time_ns": IterationField.LAUNCHED_NS,
    "output_time_ns": IterationField.OUTPUT_NS,
    "num_prefill_requests": IterationField.PREFILL_REQUESTS,
    "num_prefill_tokens": IterationField.PREFILL_TOKENS,
    "num_decode_requests": IterationField.DECODE_REQUESTS,
    "num_context_tokens": IterationField.CONTEXT_TOKENS,
    "num_prefill_context_tokens": IterationField.PREFILL_CONTEXT_TOKENS,
    "num_attention_pairs": IterationField.ATTENTION_PAIRS,
    "num_reread_context_tokens": IterationField.REREAD_CONTEXT_TOKENS,
}


def recorded(engine: Engine, made: list[Made], fitted_to: WatchedSteps) -> tuple[pd.DataFrame, EngineCosts]:
    """Steps as iterations.csv has them, and the terms fitted to others."""
    steps, _ = play(made, engine.costs, engine.graphs(), queue_size=engine.queue_size, is_gpu=engine.is_gpu)
    frame = pd.DataFrame({name: steps[:, field] for name, field in COLUMNS.items()})
    rows = pd.DataFrame(rows_of(fitted_to))
    kinds = tuple(dict.fromkeys(fitted_to.kinds.tolist()))
    ways = pd.DataFrame(
        [
            {**rows.iloc[0], "term": term, "step_kind": "any", "feature": "base", "position": 0.0, "ns": 0.0}
            for term in ("handover", "delivery")
        ]
    )
    overheads = pd.concat([rows, ways], ignore_index=True)
    return frame, EngineCosts(overheads, engine.graphs(), kinds, "overheads.csv", device_is_host=not engine.is_gpu)


def plain() -> list[Made]:
    return traffic(np.random.default_rng(1), 1500, slow=False)


@pytest.mark.parametrize("name", ["device_bound", "mixed"])
def test_steps_that_follow_the_terms_are_predicted(name: str) -> None:
    engine = ENGINES[name]
    frame, costs = recorded(engine, plain(), watched(engine))
    assert set(NEEDED) <= set(frame.columns)
    found = service_times(frame, costs, engine.graphs(), engine.queue_size)
    errors = np.array([one.predicted / one.real - 1 for one in found])
    assert len(found) > 0.3 * len(frame)
    assert abs(np.median(errors)) < 0.01


def test_context_that_is_read_again_is_predicted_where_the_run_recorded_it() -> None:
    engine = ENGINES["device_bound"]
    records = play(sharing(4000), engine.costs, engine.graphs(), queue_size=engine.queue_size, is_gpu=True)
    fitted_to = WatchedSteps(*records, engine.graphs(), is_gpu=True)
    frame, costs = recorded(engine, sharing(1500, slow=False), fitted_to)

    def error_of_the_longest(steps: pd.DataFrame) -> float:
        """Of decode steps, of which a third has little context or little that is shared."""
        found = service_times(steps, costs, engine.graphs(), engine.queue_size)
        return float(np.percentile([one.predicted / one.real - 1 for one in found if one.kind == "decode"], 90))

    assert abs(error_of_the_longest(frame)) < 0.02
    # As if each read its own:
    assert error_of_the_longest(frame.drop(columns="num_reread_context_tokens")) > 0.05


def test_a_device_ten_per_cent_slower_is_seen_as_such() -> None:
    engine = ENGINES["device_bound"]
    frame, costs = recorded(engine, plain(), watched(engine))
    slower = frame.copy()
    # Every step takes a tenth longer from the first on: all moments lie further apart.
    for column in ("scheduled_time_ns", "launched_time_ns", "output_time_ns"):
        slower[column] = (
            frame["scheduled_time_ns"].iloc[0] + (frame[column] - frame["scheduled_time_ns"].iloc[0]) * 11 // 10
        )
    found = [one for one in service_times(slower, costs, engine.graphs(), engine.queue_size) if one.kind == "decode"]
    assert np.median([one.predicted / one.real - 1 for one in found]) == pytest.approx(1 / 1.1 - 1, abs=0.01)
