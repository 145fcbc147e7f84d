"""Token lengths through the shipped Qwen3 tokenizer, and the tokenizer's own errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.contracts.tables import TraceLengths, validate
from gst_assets.errors import WorkloadError
from gst_assets.provenance import sha256_file
from gst_assets.scenario import Scenario, load_scenario, resolve_path
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import Prompt, read_prompts
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer

REFERENCE = "data/tokenizer/qwen3"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(REFERENCE)


def lengths_of(scenario: Scenario, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> pd.DataFrame:
    counts = tokenizer.count([prompt.text for prompt in prompts])
    return build_trace_lengths(scenario, prompts, counts, tokenizer.reference)


def test_published_prompts_count_as_published(tokenizer: Tokenizer) -> None:
    scenario = load_scenario("published_qwen3_prompts")
    frame = lengths_of(scenario, read_prompts(resolve_path(scenario.workload.prompts)), tokenizer)
    validate(TraceLengths, frame, "trace_lengths.csv")
    assert frame["num_prefill_tokens"].tolist() == [9, 9, 14, 13, 13, 11, 7, 10]
    assert frame["num_decode_tokens"].tolist() == [64] * 8


def test_ids_and_digest_are_those_of_the_directory(tokenizer: Tokenizer) -> None:
    # Ids of this text under Qwen's published BPE ranks.
    assert tokenizer.encode(["Hello world"]) == [[9707, 1879]]
    assert tokenizer.sha256 == sha256_file(resolve_path(REFERENCE) / "tokenizer.json")
    assert tokenizer.encode([]) == []


def test_requests_cycle_through_prompts(tokenizer: Tokenizer) -> None:
    scenario = load_scenario("smoke", ["workload.num_requests=5"])
    frame = lengths_of(scenario, [Prompt("a", "one"), Prompt("b", "one two three")], tokenizer)
    assert frame["prompt_id"].tolist() == ["a", "b", "a", "b", "a"]
    assert frame["num_prefill_tokens"].tolist() == [1, 3, 1, 3, 1]


def test_prompt_and_output_beyond_the_model_is_refused(tokenizer: Tokenizer) -> None:
    scenario = load_scenario("smoke", ["workload.num_decode_tokens=2040"])
    with pytest.raises(
        WorkloadError,
        match=(
            r"prompt 'long' has 20 tokens; with 2040 tokens asked of it that is 2060, beyond model.max_model_len 2048"
        ),
    ):
        lengths_of(scenario, [Prompt("long", "word " * 19 + "x")], tokenizer)


def test_prompts_may_say_themselves_how_much_to_ask(tokenizer: Tokenizer) -> None:
    scenario = load_scenario("smoke", ["workload.num_decode_tokens=null", "workload.num_requests=3"])
    prompts = [Prompt("a", "one", {"num_decode_tokens": 5}), Prompt("b", "two", {"num_decode_tokens": 9})]
    assert lengths_of(scenario, prompts, tokenizer)["num_decode_tokens"].tolist() == [5, 9, 5]
    for wrong in ({}, {"num_decode_tokens": 0}, {"num_decode_tokens": "7"}, {"num_decode_tokens": True}):
        with pytest.raises(
            WorkloadError, match=r"prompt 'c' has num_decode_tokens .*, expected an integer of at least 1"
        ):
            lengths_of(scenario, [*prompts, Prompt("c", "three", wrong)], tokenizer)


def test_missing_or_incomplete_tokenizer_directory(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="tokenizer directory missing"):
        load_tokenizer("data/tokenizer/none")
    with pytest.raises(WorkloadError, match=r"no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
