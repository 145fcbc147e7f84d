"""Operators compared with the whole steps they are part of, for steps whose device time is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gst_assets.contracts import tables as contract
from gst_assets.profiling.coverage import operator_coverage
from gst_assets.profiling.step_samples import WatchedSteps
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.operators import OperatorTimes, WholeStepOperators
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.step_costs.terms import Features
from gst_assets_tests.profiling import tables
from gst_assets_tests.profiling.forward_model import Made, play

SCENARIO = load_scenario("smoke")
LAYERS = SCENARIO.model.geometry.num_layers
GRAPHS = CapturedGraphs([1, 2, 4, 8, 16, 256])
SHARE = 0.96
"""Of a step's time on the device that the operators make."""


def operators(graphs: CapturedGraphs) -> WholeStepOperators:
    attention = tables.attention_table(SCENARIO)
    times = OperatorTimes(tables.mlp_table(SCENARIO), attention, LAYERS, graphs)
    return WholeStepOperators(times, attention, tables.unmodelled_table(), LAYERS, graphs)


def whole_ns(decodes: int, context: int, chunks: Sequence[tuple[int, int]], graphs: CapturedGraphs) -> float:
    """What all operators of a step take by the formulas of `tables`, worked out again."""
    tokens = graphs.padded(decodes + sum(new for _, new in chunks))
    layer_ms = sum(tables.per_token_ms(name, tokens) for name in tables.PER_TOKEN_OPERATORS) + 0.005
    layer_ms += tables.attn_decode_ms(decodes, context / decodes) if decodes else 0.0
    layer_ms += sum(tables.attn_prefill_ms(before, new) for before, new in chunks)
    once_ms = 2 * (0.01 + 0.001 * tokens) + 2 * (0.01 + 0.001 * (decodes + len(chunks)))
    return (LAYERS * layer_ms + once_ms) * 1e6


def covered(shapes: Sequence[StepShape], graphs: CapturedGraphs = GRAPHS, times: int = 6) -> WatchedSteps:
    """Each shape `times` times on a device that is always behind its host, and takes 1 / SHARE of the operators."""
    made = [Made(shape) for shape in shapes for _ in range(times)]
    left = iter(made)

    def costs(term: str, kind: str, held: Features) -> float:  # noqa: ARG001 - of the forward model
        if term != "device":
            return {"prepare": 1e5, "launch": 1e5}.get(term, 1e4)
        shape = next(left).shape
        return whole_ns(shape.num_decodes, shape.decode_context_tokens, shape.chunks, graphs) / SHARE

    return WatchedSteps(*play(made, costs, graphs, queue_size=2, is_gpu=True), graphs, is_gpu=True)


@pytest.mark.parametrize("graphs", [GRAPHS, CapturedGraphs(())], ids=["captured", "eager"])
def test_the_coverage_is_operators_over_the_whole_step(graphs: CapturedGraphs) -> None:
    shapes = [StepShape(1, 30, ()), StepShape(6, 600, ()), StepShape(0, 0, [(0, 100)]), StepShape(4, 400, [(0, 380)])]
    steps = covered(shapes, graphs)
    frame = contract.validate(contract.OperatorCoverage, operator_coverage(steps, operators(graphs)), "coverage")
    kinds = [graphs.kind(shape.num_prefill_tokens, shape.num_decodes) for shape in shapes]
    expected = {(kind, graphs.padded(shape.num_tokens)) for kind, shape in zip(kinds, shapes, strict=True)}
    assert set(zip(frame["step_kind"], frame["num_tokens"], strict=True)) == expected
    assert frame["coverage"].tolist() == pytest.approx([SHARE] * 4, abs=1e-3)
    six = frame[(frame["step_kind"] == "decode") & (frame["num_decode_requests"] == 6)].iloc[0]
    assert (six["num_context_tokens"], six["num_samples"]) == (600, 6)
    assert six["operators_ns"] == pytest.approx(whole_ns(6, 600, (), graphs), rel=1e-3)


def test_what_cannot_be_read_off_the_profile_is_left_out() -> None:
    """Two prompts, a prompt that was cut, and contexts beyond the grid."""
    largest = SCENARIO.profile.decode_context_sizes[-1]
    kept = StepShape(3, 300, ())
    shapes = [
        kept,
        StepShape(0, 0, [(0, 50), (0, 60)]),
        StepShape(0, 0, [(0, 1), (1, 1)]),  # with as many pairs as one prompt of two tokens
        StepShape(1, 40, [(64, 90)]),
        StepShape(2, 2 * largest + 2, ()),
    ]
    frame = operator_coverage(covered(shapes), operators(GRAPHS))
    assert frame[["step_kind", "num_tokens", "num_samples"]].to_numpy().tolist() == [["decode", 4, 6]]


def test_what_was_hardly_seen_has_no_row() -> None:
    frame = operator_coverage(covered([StepShape(1, 30, ())], times=6), operators(GRAPHS))
    assert len(frame) == 1
    rare = operator_coverage(covered([StepShape(1, 30, ()), *[StepShape(9, 90, ())] * 3], times=1), operators(GRAPHS))
    assert contract.validate(contract.OperatorCoverage, rare, "operator_coverage.csv").empty
