"""Step kinds and padding."""

from __future__ import annotations

import pytest

from gst_assets.vidur_adapter.steps import CapturedGraphs


@pytest.mark.parametrize(
    ("prefill_tokens", "decodes", "kind"),
    [(0, 4, "decode"), (1, 0, "mixed"), (12, 4, "mixed"), (13, 4, "mixed_eager")],
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
    assert [graphs.padded(n) for n in (1, 2, 8, 9, 16, 17)] == [1, 8, 8, 16, 16, 17]


def test_mixed_eager_is_reachable_only_beyond_the_captured_sizes() -> None:
    graphs = CapturedGraphs([1, 8, 16])
    assert "mixed_eager" not in graphs.reachable_kinds(16)
    assert "mixed_eager" in graphs.reachable_kinds(17)
