"""Every turn of ShareGPT's conversations as a request: what its prompt holds, when it arrives, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gst_assets.errors import ScenarioError, WorkloadError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload.building import build
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.requests import RequestPlan, plan_requests
from gst_assets.workload.tokenized import requests_of
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer
from gst_assets_tests.workload.published import PUBLISHED

TALKS = [
    [("human", "Hi there"), ("gpt", "Hello."), ("human", "What now?"), ("gpt", "Now we talk."), ("human", "Fine"), ("gpt", "Good, then.")],
    [("system", "Be brief."), ("user", "Name a tree"), ("chatgpt", "Oak")],
    [("gpt", "The end of an earlier part."), ("human", "Go on"), ("gpt", "It goes on.")],
    [("human", "One"), ("human", "Two"), ("gpt", "Both"), ("human", "Unanswered")],
    [],
    [("gpt", "Nobody asked")],
    [("human", "Where to"), ("system", "Answer in French."), ("gpt", "A Paris")],
]  # fmt: skip
EXPECTED = {
    "s0t0": ("Hi there", "Hello."),
    "s0t1": ("Hi there\n\nHello.\n\nWhat now?", "Now we talk."),
    "s0t2": ("Hi there\n\nHello.\n\nWhat now?\n\nNow we talk.\n\nFine", "Good, then."),
    "s1t0": ("Be brief.\n\nName a tree", "Oak"),
    "s2t0": ("The end of an earlier part.\n\nGo on", "It goes on."),
    "s3t1": ("One\n\nTwo", "Both"),
    "s6t0": ("Where to", "A Paris"),
}
UNUSABLE = 4  # One, Unanswered, the empty talk, the one without a user
TIMES = "workload.trace.sessions={session_rate_per_s: 2.0, least_turn_gap_s: 0.5, mean_turn_gap_s: 0.9}"
DROP = "workload.trace.unusable=drop"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("data/tokenizer/qwen3")


def talks_json(talks: list[list[tuple[Any, Any]]]) -> str:
    return json.dumps(
        [{"id": str(at), "conversations": [{"from": who, "value": text} for who, text in talk]} for at, talk in enumerate(talks)]
    )  # fmt: skip


def scenario(path: Path, content: str, *overrides: str) -> Scenario:
    path.write_text(content)
    common = ["workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null"]
    return load_scenario(
        "smoke",
        [
            *common,
            f"workload.trace.path={path}",
            "workload.trace.licence=own",
            "workload.arrivals={kind: trace}",
            TIMES,
            *overrides,
        ],
    )


def by_id(plan: RequestPlan) -> dict[str, tuple[str, int, int, int]]:
    """Text, prompt tokens, output tokens and time of each request."""
    assert plan.prompt_ids is not None and plan.texts is not None and plan.time_ns is not None
    columns = (plan.texts, plan.prefill.tolist(), plan.decode.tolist(), plan.time_ns.tolist())
    return dict(zip(plan.prompt_ids, zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_turn_is_all_that_was_said_before_it_and_its_answer_is_what_is_asked(
    block: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for content in (talks_json(TALKS), "".join(json.dumps(one) + "\n" for one in json.loads(talks_json(TALKS)))):
        plan = plan_requests(scenario(tmp_path / "t", content, DROP), tokenizer, block_bytes=block)
        found = by_id(plan)
        assert {name: one[0] for name, one in found.items()} == {name: text for name, (text, _) in EXPECTED.items()}
        for name, (text, answer) in EXPECTED.items():
            assert list(found[name][1:3]) == tokenizer.count([text, answer])
        assert (plan.source.rows, plan.source.unusable_dropped, plan.source.num_selected) == (7, UNUSABLE, 7)
        assert plan.source.num_sessions == 5
    with pytest.raises(WorkloadError, match=r"line 4, turn 0: 1 prompt and 0 output tokens, expected at least 1"):
        plan_requests(scenario(tmp_path / "t", content), tokenizer, block_bytes=block)


def test_turns_keep_their_order_and_gaps_and_sessions_their_rate(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = talks_json([[("human", f"Question {at}"), ("gpt", "Answer")] * 3 for at in range(600)])
    plan = plan_requests(scenario(tmp_path / "t", content), tokenizer)
    times = {name: one[3] for name, one in by_id(plan).items()}
    assert (np.diff(list(times.values())) >= 0).all() and min(times.values()) == 0
    gaps = (
        np.array([[times[f"s{at}t{turn + 1}"] - times[f"s{at}t{turn}"] for turn in (0, 1)] for at in range(600)]) / 1e9
    )
    assert gaps.min() >= 0.5 and gaps.mean() == pytest.approx(0.9, rel=0.05)
    begins = [times[f"s{at}t0"] for at in range(600)]
    assert begins == sorted(begins) and 600 / (begins[-1] / 1e9) == pytest.approx(2.0, rel=0.1)
    assert plan.source.span_ns == max(times.values())
    again = by_id(plan_requests(scenario(tmp_path / "t", content), tokenizer))
    assert {name: one[3] for name, one in again.items()} == times
    fewer = by_id(plan_requests(scenario(tmp_path / "t", content, "workload.trace.num_rows=50"), tokenizer))
    assert len(fewer) == 150 and all(times[name] == one[3] for name, one in fewer.items())
    first = plan_requests(scenario(tmp_path / "t", content, "workload.num_requests=40"), tokenizer)
    assert first.prompt_ids == list(times)[:40] and len(first.prefill) == 40 == len(first.texts or [])
    other = by_id(plan_requests(scenario(tmp_path / "t", content, "workload.seed=99"), tokenizer))
    assert other["s7t1"][3] != times["s7t1"]


def test_rows_are_conversations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    window = ["workload.trace.start_row=1", "workload.trace.num_rows=2"]
    plan = plan_requests(scenario(tmp_path / "t", talks_json(TALKS), *window), tokenizer)
    assert sorted(plan.prompt_ids or []) == ["s1t0", "s2t0"] and plan.source.rows == 2
    many = talks_json([TALKS[0]] * 60)
    sampled = plan_requests(scenario(tmp_path / "t", many, "workload.trace.sample_fraction=0.5"), tokenizer)
    assert sampled.source.num_sessions == 60 - (sampled.source.sampled_out or 0) < 45
    assert len(sampled.prefill) == 3 * sampled.source.num_sessions


def test_a_turn_that_is_too_long_is_left_out_with_those_after_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prompt, answer = (tokenizer.count([text])[0] for text in EXPECTED["s0t1"])
    limit = f"workload.trace.max_total_tokens={prompt + answer}"
    content = talks_json(TALKS[:1])
    with pytest.raises(
        WorkloadError, match=r"line 1, item 1, turn 2: \d+ prompt and \d+ output tokens, beyond the limit"
    ):
        plan_requests(scenario(tmp_path / "t", content, limit), tokenizer)
    plan = plan_requests(scenario(tmp_path / "t", content, limit, "workload.trace.over_length=drop"), tokenizer)
    assert plan.prompt_ids == ["s0t0", "s0t1"] and plan.source.over_length_dropped == 1


def test_the_workload_is_written_under_its_own_names_and_shares_its_tokens(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    of = scenario(tmp_path / "t", PUBLISHED["sharegpt"][1].decode(), DROP, "workload.arrivals.rate_per_s=9.0")
    (tmp_path / "built").mkdir()
    built = build(of, tmp_path / "built", tokenizer=tokenizer)
    assert [one.prompt_id for one in read_prompts(tmp_path / "built" / "prompts.jsonl")] == built.prompt_ids
    assert set(built.prompt_ids) == {f"s{at}t0" for at in range(13) if at != 6}  # one is empty
    assert built.meta.schedule is not None and built.meta.schedule.offered_rate_per_s == pytest.approx(9.0)
    of = scenario(tmp_path / "t", talks_json(TALKS), DROP)
    (tmp_path / "talks").mkdir()
    built = build(of, tmp_path / "talks", tokenizer=tokenizer)
    tokens = {one.prompt_id: one.prompt_token_ids for one in requests_of(built, of, tokenizer=tokenizer)}
    for earlier, later in (("s0t0", "s0t1"), ("s0t1", "s0t2")):
        assert (
            tokens[later][: len(tokens[earlier]) - 1] == tokens[earlier][:-1]
        )  # the last one may merge with what follows


def test_what_cannot_be_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = talks_json(TALKS[:3])
    for override, message in (
        ("workload.arrivals={kind: poisson, rate_per_s: 1.0}", "sessions have times of their own, but arrivals are of kind poisson"),
        ("workload.trace.sessions.mean_turn_gap_s=0.1", "mean_turn_gap_s 0.1 is below least_turn_gap_s 0.5"),
    ):  # fmt: skip
        with pytest.raises(ScenarioError) as raised:
            scenario(tmp_path / "t", content, override)
        assert message in str(raised.value)
    with pytest.raises(
        WorkloadError, match=r"asks for every turn of conversations, but this file is of the format vidur"
    ):
        plan_requests(scenario(tmp_path / "t", PUBLISHED["vidur"][1].decode()), tokenizer)
    nobody = talks_json([*TALKS[:2], [(None, "Hi"), ("gpt", "Hello")]])
    with pytest.raises(WorkloadError, match=r"line 1, item 3: expected turns with a speaker under from, found None"):
        plan_requests(scenario(tmp_path / "t", nobody), tokenizer)
    no_text = talks_json([[("human", "Hi"), ("gpt", "Hello"), ("human", 7)]])
    with pytest.raises(WorkloadError, match=r"line 1, item 1: expected turns with a text under value, found 7"):
        plan_requests(scenario(tmp_path / "t", no_text), tokenizer)
    untimed = scenario(tmp_path / "t", content, "workload.trace.sessions=null")
    with pytest.raises(
        WorkloadError, match=r"has no times. Choose arrivals .* poisson, or set workload.trace.sessions"
    ):
        plan_requests(untimed, tokenizer)
    assert "sessions" not in untimed.workload.trace.model_dump_json()  # type: ignore[union-attr]


def test_with_a_closed_loop_turns_wait_for_those_that_are_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    closed = "workload.trace.sessions.closed_loop=true"
    of = scenario(tmp_path / "t", talks_json(TALKS), DROP, closed)
    (tmp_path / "out").mkdir()
    built = build(of, tmp_path / "out", tokenizer=tokenizer)
    requests = requests_of(built, of, tokenizer=tokenizer)
    waits = {one.prompt_id: one.previous for one in requests}
    names = {one.prompt_id: at for at, one in enumerate(requests)}
    assert waits == dict.fromkeys(EXPECTED) | {"s0t1": names["s0t0"], "s0t2": names["s0t1"]}
    assert of.workload.closed_loop_setting == closed.partition("=")[0]
