"""Conversations: shared beginnings are shared tokens, turns are in order, and everything follows from the seed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts.tables import TraceIntervals, validate
from gst_assets.errors import ContractError, ScenarioError, WorkloadError
from gst_assets.scenario import Scenario, SessionSource, load_scenario
from gst_assets.workload import load
from gst_assets.workload.building import build
from gst_assets.workload.sessions import draw_turns
from gst_assets.workload.tokenized import requests_of
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer

SESSIONS = (
    "{num_sessions: 12, session_rate_per_s: 3.0, min_turns: 1, max_turns: 4, least_turn_gap_s: 0.5, mean_turn_gap_s:"
    " 0.8, num_system_prompts: 3, system_tokens: {kind: uniform, min_tokens: 20, max_tokens: 60}, user_tokens: {kind:"
    " uniform, min_tokens: 3, max_tokens: 40}, decode_tokens: {kind: uniform, min_tokens: 2, max_tokens: 9}}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("data/tokenizer/qwen3")


def conversations(*overrides: str) -> Scenario:
    return load_scenario(
        "smoke",
        [
            "workload.prompts=null",
            "workload.num_requests=null",
            "workload.num_decode_tokens=null",
            "workload.arrivals={kind: trace}",
            f"workload.sessions={SESSIONS}",
            *overrides,
        ],
    )


def settings(scenario: Scenario) -> SessionSource:
    assert scenario.workload.sessions is not None
    return scenario.workload.sessions


def test_a_turn_begins_with_its_sessions_earlier_prompts_and_system_prompts_are_shared(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    scenario = conversations()
    built = build(scenario, tmp_path, tokenizer=tokenizer)
    requests = requests_of(built, scenario, tokenizer=tokenizer)
    by_id = {request.prompt_id: request for request in requests}
    answers, later = [], 0
    for prompt_id, request in by_id.items():
        session, turn = prompt_id[1:].split("t")
        if int(turn) == 0:
            continue
        later += 1
        before = by_id[f"s{session}t{int(turn) - 1}"]
        shared = before.prompt_token_ids
        assert request.prompt_token_ids[: len(shared)] == shared
        answers.append(len(request.prompt_token_ids) - len(shared) - before.num_decode_tokens)
        assert request.arrival_time_ns - before.arrival_time_ns >= 500_000_000
    assert later > 8 and min(answers) >= 3 and max(answers) <= 40  # what is left is what the user said
    # Of 12 sessions and 3 system prompts some share one: twenty tokens at least, and no conversation beyond it.
    openings = [tuple(by_id[f"s{session}t0"].prompt_token_ids[:20]) for session in range(12)]
    assert len(set(openings)) == 3
    tails = [tuple(by_id[f"s{session}t0"].prompt_token_ids[-3:]) for session in range(12)]
    assert len(set(tails)) == 12
    assert all(one.arrival_time_ns <= two.arrival_time_ns for one, two in pairwise(requests))
    assert built.meta.source is not None and built.meta.source.kind == "sessions"
    assert (built.meta.source.num_sessions, built.meta.source.num_selected) == (12, len(requests))
    assert built.meta.workload_id == "wl-856b025f4b5914e9"  # the bytes that earlier versions gave


def test_turns_follow_from_the_seed_and_more_sessions_leave_the_others_as_they_are() -> None:
    few, again = (draw_turns(settings(conversations()), 7) for _ in range(2))
    more = draw_turns(settings(conversations("workload.sessions.num_sessions=30")), 7)
    other = draw_turns(settings(conversations()), 8)
    assert np.array_equal(few.time_ns, again.time_ns) and few.prompts.prompt_ids == again.prompts.prompt_ids
    assert not np.array_equal(few.prefill[:5], other.prefill[:5])
    where = {name: at for at, name in enumerate(more.prompts.prompt_ids)}
    for at, name in enumerate(few.prompts.prompt_ids):
        assert few.prefill[at] == more.prefill[where[name]] and few.decode[at] == more.decode[where[name]]
        assert few.time_ns[at] == more.time_ns[where[name]]
        place = where[name]
        assert few.prompts.places(at, at + 1).tolist() == more.prompts.places(place, place + 1).tolist()


def test_rates_and_gaps_are_those_asked_for() -> None:
    many = settings(conversations("workload.sessions.num_sessions=4000"))
    turns = draw_turns(many, 3)
    begins = [time for name, time in zip(turns.prompts.prompt_ids, turns.time_ns, strict=True) if name.endswith("t0")]
    assert 4000 / (max(begins) / 1e9) == pytest.approx(3.0, rel=0.05)
    times: dict[str, list[int]] = {}
    for name, time in zip(turns.prompts.prompt_ids, turns.time_ns, strict=True):
        times.setdefault(name.split("t")[0], []).append(time)
    gaps = np.concatenate([np.diff(one) for one in times.values()]) / 1e9
    assert gaps.min() >= 0.5 and gaps.mean() == pytest.approx(0.8, rel=0.03)
    assert np.mean([len(one) for one in times.values()]) == pytest.approx(2.5, rel=0.03)


def test_the_load_is_scaled_by_the_arrivals(tmp_path: Path, tokenizer: Tokenizer) -> None:
    scenario = conversations("workload.arrivals.rate_per_s=20.0", "workload.num_requests=10")
    built = build(scenario, tmp_path, tokenizer=tokenizer)
    assert len(built.lengths) == 10
    assert built.meta.schedule is not None and built.meta.schedule.asked_rate_per_s == 20.0


def test_what_cannot_be_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for override, message in (
        ("workload.sessions.max_turns=0", "Input should be greater than 0"),
        ("workload.sessions.min_turns=9", "max_turns 4 is below min_turns 9"),
        ("workload.sessions.mean_turn_gap_s=0.1", "mean_turn_gap_s 0.1 is below least_turn_gap_s 0.5"),
        ("workload.arrivals={kind: static}", "sessions have times of their own, but arrivals are of kind static"),
        ("workload.num_decode_tokens=4", "sessions.decode_tokens and num_decode_tokens contradict"),
        ("workload.prompts=data/prompts/chat_lengths.jsonl", "found prompts and sessions"),
    ):
        with pytest.raises(ScenarioError) as raised:
            conversations(override)
        assert message in str(raised.value)
    with pytest.raises(WorkloadError, match=r"12 sessions have .* turns, but workload\.num_requests asks for 999"):
        build(conversations("workload.num_requests=999"), tmp_path, tokenizer=tokenizer)
    with pytest.raises(
        WorkloadError, match=r"prompt 's\d+t\d' and its answer have \d+ tokens, beyond model\.max_model_len 100"
    ):
        build(conversations("model.max_model_len=100"), tmp_path, tokenizer=tokenizer)


CLOSED = "workload.sessions.closed_loop=true"


def test_with_a_closed_loop_each_turn_names_the_one_before_it_and_its_think_time(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    free = build(conversations(), tmp_path / "open", tokenizer=tokenizer)
    built = build(conversations(CLOSED), tmp_path / "closed", tokenizer=tokenizer)
    pd.testing.assert_frame_equal(built.lengths, free.lengths)
    pd.testing.assert_frame_equal(built.intervals[free.intervals.columns], free.intervals)
    assert built.meta.workload_id != free.meta.workload_id
    assert not free.is_closed_loop and built.is_closed_loop

    requests = requests_of(load(built.directory, contract=False), conversations(CLOSED), tokenizer=tokenizer)
    before = {request.prompt_id: request for request in requests}
    later = 0
    for request in requests:
        session, turn = request.prompt_id[1:].split("t")
        if turn == "0":
            assert (request.previous, request.think_time_ns) == (None, 0)
            continue
        later += 1
        assert request.previous is not None
        previous = requests[request.previous]
        assert previous is before[f"s{session}t{int(turn) - 1}"]
        assert request.think_time_ns == request.arrival_time_ns - previous.arrival_time_ns >= 500_000_000
    assert later > 5


def test_a_scenario_without_a_closed_loop_is_stored_as_before() -> None:
    stored = conversations("workload.sessions.closed_loop=false").model_dump(mode="json")["workload"]
    assert "closed_loop" not in stored["sessions"]
    assert conversations(CLOSED).workload.closed_loop_setting == CLOSED.partition("=")[0]
    assert conversations().workload.closed_loop_setting is None


def test_fewer_requests_leave_out_the_last_turns(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "all").mkdir()
    every = build(conversations(CLOSED), tmp_path / "all", tokenizer=tokenizer).intervals
    some = build(conversations(CLOSED, "workload.num_requests=15"), tmp_path / "some", tokenizer=tokenizer).intervals
    pd.testing.assert_frame_equal(some, every.head(15))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"previous_request_id": [None, 1, 0]}, "previous_request_id must be an earlier request"),
        ({"previous_request_id": [None, 0, 0], "think_time_ns": [None, 5, 12]}, "no other request's previous one"),
        ({"think_time_ns": [None, 4, 7]}, "think_time_ns must be the time since previous_request_id arrived"),
        ({"think_time_ns": [3, 5, 7]}, "and empty without one"),
        ({"think_time_ns": None}, "neither of the two columns stands alone"),
    ],
)
def test_turns_that_wait_for_another_request_break_the_contract(
    changes: dict[str, list[int | None]], message: str
) -> None:
    columns = {
        "request_id": [0, 1, 2], "inter_arrival_ns": [0, 5, 7], "arrival_time_ns": [0, 5, 12],
        "previous_request_id": [None, 0, 1], "think_time_ns": [None, 5, 7],
    }  # fmt: skip
    table = pd.DataFrame(columns).astype("Int64")
    validate(TraceIntervals, table, "here")
    broken = {name: values for name, values in (columns | changes).items() if values is not None}
    with pytest.raises(ContractError, match=message):
        validate(TraceIntervals, pd.DataFrame(broken).astype("Int64"), "here")


CAPACITY = "{max_p99_delay_ms: 5, low_rate_per_s: 1, high_rate_per_s: 9, seed: 1}"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("simulation.variants=[published, calibrated]", "simulation.variants with published"),
        ("simulation.loop=event", "simulation.loop event"),
        (f"capacity={CAPACITY}", "capacity"),
        ("sweep={max_num_seqs: [4, 8]}", "sweep"),
    ],
)
def test_what_needs_arrivals_known_beforehand_is_refused(override: str, named: str) -> None:
    conversations(override)
    with pytest.raises(ScenarioError, match=rf"{named} and workload\.sessions\.closed_loop: "):
        conversations(CLOSED, override)
