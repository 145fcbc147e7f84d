"""Requests planned from traces and distributions: what is kept, what is counted, exact prompts, and independence of
blocks and workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts.tables import TraceLengths, validate
from gst_assets.errors import WorkloadError
from gst_assets.scenario import (
    EmpiricalLength,
    Lengths,
    LognormalLength,
    Scenario,
    UniformLength,
    ZipfLength,
    load_scenario,
)
from gst_assets.workload.building import build
from gst_assets.workload.generated_prompts import prompt_of_each, prompt_of_each_length, write_generated_prompts
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.requests import plan_requests
from gst_assets.workload.synthetic import draw_lengths
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer
from gst_assets_tests.workload.published import PUBLISHED

ROWS = [(0.0, 10, 4), (1.0, 0, 4), (2.0, 300, 10), (3.0, 20, 5), (4.0, 7, 0), (5.0, 30, 6), (6.0, 40, 7)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("data/tokenizer/qwen3")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{a},{p},{d}\n" for a, p, d in ROWS))
    return path


def scenario(trace: Path, *overrides: str) -> Scenario:
    common = ["workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null"]
    return load_scenario(
        "smoke",
        [
            *common,
            f"workload.trace.path={trace}",
            "workload.trace.licence=own",
            "workload.arrivals={kind: trace}",
            *overrides,
        ],
    )


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_only_what_the_scenario_says_is_left_out_and_all_of_it_is_counted(
    trace: Path, tokenizer: Tokenizer, block: int
) -> None:
    def plan(*overrides: str):
        return plan_requests(scenario(trace, *overrides), tokenizer, block_bytes=block)

    with pytest.raises(WorkloadError, match=r"line 3: 0 prompt and 4 output tokens, expected at least 1 of each"):
        plan()
    drop = "workload.trace.unusable=drop"
    kept = plan(drop)
    assert kept.prefill.tolist() == [10, 300, 20, 30, 40] and kept.time_ns.tolist() == [0, 2e9, 3e9, 5e9, 6e9]
    assert (kept.source.rows, kept.source.unusable_dropped, kept.source.licence) == (7, 2, "own")
    limit = "workload.trace.max_total_tokens=100"
    with pytest.raises(WorkloadError, match=r"line 4: 300 prompt and 10 output tokens, beyond the limit of 100"):
        plan(drop, limit)
    cut = plan(drop, limit, "workload.trace.over_length=truncate")
    assert cut.prefill.tolist() == [10, 90, 20, 30, 40] and cut.decode.tolist() == [4, 10, 5, 6, 7]
    assert (cut.source.prompts_truncated, cut.source.tokens_truncated) == (1, 210)
    without = plan(drop, limit, "workload.trace.over_length=drop", "workload.num_requests=2")
    assert without.prefill.tolist() == [10, 20] and without.source.over_length_dropped == 1
    assert (without.source.num_selected, without.source.span_ns) == (4, 6_000_000_000)
    window = plan(drop, "workload.trace.start_row=2", "workload.trace.num_rows=2")
    assert window.prefill.tolist() == [300, 20] and window.time_ns.tolist() == [0, 1_000_000_000]
    with pytest.raises(WorkloadError, match="selects 5 requests, but 6 are asked for"):
        plan(drop, "workload.num_requests=6")
    with pytest.raises(WorkloadError, match="asks for 9 from row 2"):
        plan(drop, "workload.trace.start_row=2", "workload.trace.num_rows=9")
    sampled = plan(drop, "workload.trace.sample_fraction=0.5")
    assert sampled.source.sampled_out == 7 - len(sampled.prefill) - sampled.source.unusable_dropped


def test_a_format_that_does_not_tell_whose_data_it_holds_needs_a_licence(
    trace: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    talk = tmp_path / "talk.json"
    talk.write_text('[{"conversations": [{"value": "Hello world"}, {"value": "Yes"}]}]')
    for path in (trace, talk):
        with pytest.raises(WorkloadError, match="no licence is known"):
            plan_requests(scenario(path, "workload.trace.licence=null"), tokenizer)
    azure = tmp_path / "azure.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    assert plan_requests(scenario(azure, "workload.trace.licence=null"), tokenizer).source.licence == "CC-BY-4.0"


def test_conversations_have_texts_and_no_times(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "talk.json"
    path.write_text('[{"conversations": [{"value": "Hello world"}, {"value": "Yes"}]}]')
    with pytest.raises(WorkloadError, match="has no times"):
        plan_requests(scenario(path), tokenizer)
    plan = plan_requests(scenario(path, "workload.arrivals={kind: static}"), tokenizer)
    assert (plan.prefill.tolist(), plan.decode.tolist(), plan.texts) == ([2], [1], ["Hello world"])


PINNED = {
    "sharegpt": ("workload.arrivals={kind: static}", "wl-480064995e23d4ab"),
    "mooncake": ("workload.trace.share_prompts=false", "wl-33772f3b7687e8e2"),
    "mooncake with shared prompts": ("workload.trace.share_prompts=true", "wl-4b4456b42e35a34b"),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_workload_has_the_bytes_that_earlier_versions_gave(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    override, expected = PINNED[name]
    path = tmp_path / "trace"
    path.write_bytes(PUBLISHED[name.split()[0]][1])
    times = "workload.arrivals={kind: trace, repeated: keep}"
    asked = scenario(path, "workload.trace.unusable=drop", times, override)
    (tmp_path / "built").mkdir()
    assert build(asked, tmp_path / "built", tokenizer=tokenizer).meta.workload_id == expected


@settings(deadline=None, max_examples=8)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    seed=st.integers(0, 2**63 - 1),
    chunk=st.integers(1, 2000),
    shared=st.booleans(),
)
def test_generated_prompts_are_exact_and_do_not_depend_on_chunks_or_workers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, lengths: list, seed: int, chunk: int, shared: bool
) -> None:
    folder = tmp_path_factory.mktemp("generated")
    asked, index = (prompt_of_each_length if shared else prompt_of_each)(np.array(lengths))
    write_generated_prompts(asked, folder / "one", tokenizer, seed)
    write_generated_prompts(asked, folder / "two", tokenizer, seed, workers=2, chunk_tokens=chunk)
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    texts = [prompt.text for prompt in read_prompts(folder / "one")]
    # Counted anew, by the ids and not by the counter that the writer used.
    assert [len(tokenizer.encode([texts[at]])[0]) for at in index] == lengths
    longer, _ = (prompt_of_each_length if shared else prompt_of_each)(np.array([*lengths, 401]))
    write_generated_prompts(longer, folder / "longer", tokenizer, seed)
    assert (folder / "longer").read_bytes().startswith((folder / "one").read_bytes())


LENGTHS: list[Lengths] = [
    UniformLength(kind="uniform", min_tokens=3, max_tokens=9),
    LognormalLength(kind="lognormal", median=100, sigma=1, min_tokens=50, max_tokens=150),
    ZipfLength(kind="zipf", exponent=1.2, min_tokens=2, max_tokens=40),
    EmpiricalLength(kind="empirical", tokens=(2, 5, 9), weights=(1, 0, 3)),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda one: one.kind)
@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_more_lengths_start_with_the_fewer_and_keep_their_bounds(lengths: Lengths, count: int, seed: int) -> None:
    few, _ = draw_lengths(lengths, count, seed, 1, "x")
    many, _ = draw_lengths(lengths, count + 700, seed, 1, "x")
    assert np.array_equal(many[:count], few)
    low, high = (2, 9) if isinstance(lengths, EmpiricalLength) else (lengths.min_tokens, lengths.max_tokens)
    assert low <= few.min() and few.max() <= high and 5 not in (few if low == 2 and high == 9 else [])


def test_synthetic_requests_are_written_as_a_valid_plan(tmp_path: Path, tokenizer: Tokenizer) -> None:
    synthetic = (
        "workload.synthetic={prefill_tokens: {kind: uniform, min_tokens: 1, max_tokens: 50}, decode_tokens: {kind:"
        " fixed, tokens: 4}}"
    )
    chosen = load_scenario("smoke", ["workload.prompts=null", "workload.num_decode_tokens=null", synthetic])
    frame = plan_requests(chosen, tokenizer).write_prompts(tmp_path / "prompts.jsonl", tokenizer, 1)
    validate(TraceLengths, frame, "trace_lengths.csv")
    assert len(frame) == load_scenario("smoke").workload.num_requests and set(frame["num_decode_tokens"]) == {4}
