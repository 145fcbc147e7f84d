"""What a step holds, its kind, and padding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.step_costs.shapes import CapturedGraphs, Composition, StepShape, attention_pairs


@pytest.mark.parametrize(
    ("prefill_tokens", "decodes", "kind"),
    [(0, 4, "decode"), (1, 0, "mixed"), (12, 4, "mixed"), (13, 4, "mixed_eager"), (0, 17, "decode")],
)
def test_kind_depends_on_the_largest_captured_size(prefill_tokens: int, decodes: int, kind: str) -> None:
    assert CapturedGraphs([16, 1, 8]).kind(prefill_tokens, decodes) == kind


def test_an_eager_engine_has_no_mixed_eager_steps_and_pads_nothing() -> None:
    graphs = CapturedGraphs([])
    assert graphs.kind(100_000, 4) == "mixed"
    assert graphs.padded(3) == 3
    assert graphs.reachable_kinds(100_000) == ("decode", "mixed")


def test_tokens_are_padded_to_the_next_captured_size() -> None:
    graphs = CapturedGraphs([16, 1, 8])
    assert graphs.sizes == (1, 8, 16)
    assert [graphs.padded(n) for n in (1, 2, 8, 9, 16, 17)] == [1, 8, 8, 16, 16, 17]


def test_mixed_eager_is_reachable_only_beyond_the_captured_sizes() -> None:
    graphs = CapturedGraphs([1, 8, 16])
    assert graphs.reachable_kinds(16) == ("decode", "mixed")
    assert graphs.reachable_kinds(17) == ("decode", "mixed", "mixed_eager")


@given(st.integers(0, 300), st.integers(1, 60))
def test_attention_pairs_are_what_each_token_sees(context: int, new: int) -> None:
    assert attention_pairs(context, new) == sum(context + place for place in range(1, new + 1))


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 60))
def test_a_prompt_cut_in_two_has_the_pairs_of_the_whole(context: int, first: int, second: int) -> None:
    cut = attention_pairs(context, first) + attention_pairs(context + first, second)
    assert cut == attention_pairs(context, first + second)


def test_the_sums_of_a_shape() -> None:
    shape = StepShape(3, 700, [(100, 20), (0, 5)])
    assert (shape.num_prefill_tokens, shape.num_tokens) == (25, 28)
    assert shape.num_attention_pairs == 100 * 20 + 210 + 15
    assert shape.composition == Composition(2, 25, 3, 800)
    assert StepShape(2, 9, ()).composition == Composition(0, 0, 2, 9)
