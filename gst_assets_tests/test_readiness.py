"""What `gst show` says of a scenario's tokenizer; the rest of it is tested through the command (`test_cli`)."""

from __future__ import annotations

import pytest

from gst_assets.locations import locate
from gst_assets.readiness import Need, needs
from gst_assets.scenario import load_scenario


def tokenizer_of(*overrides: str) -> Need:
    asked = needs(load_scenario("smoke", list(overrides)), with_engine=False)
    (found,) = [need for need in asked if need.what == "a tokenizer"]
    return found


def test_a_tokenizer_within_the_vocabulary_is_there() -> None:
    folded = tokenizer_of()
    assert folded == Need("a tokenizer", True, str(locate("data/tokenizer/qwen3")))
    assert tokenizer_of("model.fold_token_ids=false", "model.geometry.vocab_size=151669") == folded


@pytest.mark.parametrize("size", [8192, 151_668])
def test_a_tokenizer_beyond_the_vocabulary_is_named_before_a_gpu_host_finds_out(size: int) -> None:
    need = tokenizer_of("model.fold_token_ids=false", f"model.geometry.vocab_size={size}")
    assert need.met is None
    assert f"its ids end at 151,668, the model's vocabulary at {size - 1:,}" in need.found
    assert "Set model.fold_token_ids=true" in need.found
