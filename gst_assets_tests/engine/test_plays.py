"""What is asked of the engine is read from a workload directory; one that does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.contracts import tables
from gst_assets.engine.plays import Play, lone_warm_up_requests, planned_requests, read_play, warm_up_requests
from gst_assets.errors import ContractError, WorkloadError
from gst_assets.scenario import load_scenario
from gst_assets.workload.building import build
from gst_assets_tests.engine.small_workload import SCENARIO, edit, read


def test_requests_are_tokenized_folded_and_timed(workload: Path) -> None:
    requests = read(workload)
    lengths = tables.read_table(tables.TraceLengths, workload / "trace_lengths.csv")
    assert [len(request.prompt_token_ids) for request in requests] == lengths["num_prefill_tokens"].tolist()
    assert max(max(request.prompt_token_ids) for request in requests) < SCENARIO.model.geometry.vocab_size
    assert [request.arrival_time_ns for request in requests] == [index * 2_000_000 for index in range(6)]
    assert {request.num_decode_tokens for request in requests} == {3}


def test_an_id_outside_the_vocabulary_needs_folding(workload: Path) -> None:
    unfolded = load_scenario("smoke", ["model.fold_token_ids=false"])
    with pytest.raises(
        WorkloadError, match=r"request \d+ \(prompt '.*'\): token id \d+ is outside the model's vocabulary of 8192"
    ):
        read(workload, unfolded)


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "message"),
    [
        ("trace_lengths.csv", r"^0,([^,]*),\d+,", r"0,\1,1,", r"request 0 .* tokens under .* trace_lengths says 1"),
        ("trace_lengths.csv", r"^(2,.*),3$", r"\1,0", r"request 2 .* asks for 0; an engine needs at least 1"),
        ("trace_lengths.csv", r"^(1,.*),3$", r"\1,2048", r"request 1 .*2048 output tokens exceed model.max_model_len"),
        (
            "trace_lengths.csv",
            r"^0,[^,]*,",
            "0,nobody,",
            r"row 0 names prompt_id 'nobody', which prompts.jsonl does not have",
        ),
        ("trace_intervals.csv", r"^5,.*\n", "", r"trace_lengths has 6 requests, trace_intervals 5; expected the same"),
    ],
)
def test_a_workload_that_does_not_fit_is_refused(
    workload: Path, file: str, pattern: str, replacement: str, message: str
) -> None:
    edit(workload / file, pattern, replacement)
    with pytest.raises((WorkloadError, ContractError), match=message):
        read(workload)


def test_a_workload_counted_with_another_tokenizer_is_refused(workload: Path) -> None:
    edit(workload / "workload_meta.json", r'"tokenizer_sha256": "\w+"', '"tokenizer_sha256": "ffff"')
    with pytest.raises(WorkloadError, match=r"counted with tokenizer .* \(sha256 ffff\)"):
        read(workload)


def test_warm_up_prompts_are_as_long_as_the_workloads_but_not_the_same(workload: Path) -> None:
    requests = read(workload)
    warm = warm_up_requests(SCENARIO, requests)
    assert len(warm) == SCENARIO.replay.warmup_requests
    assert [len(item.prompt_token_ids) for item in warm[:6]] == [len(item.prompt_token_ids) for item in requests]
    assert all(item.prompt_token_ids != request.prompt_token_ids for item, request in zip(warm, requests, strict=False))
    assert [list(item.prompt_token_ids) for item in warm_up_requests(SCENARIO, requests)] == [
        list(item.prompt_token_ids) for item in warm
    ]


def test_only_a_mixture_on_a_gpu_is_warmed_by_prompts_that_are_steps_of_their_own() -> None:
    def sizes(*overrides: str, name: str = "h200_30b_a3b_half") -> list[int]:
        return [len(item.prompt_token_ids) for item in lone_warm_up_requests(load_scenario(name, overrides))]

    found = sizes()
    # An odd and an even one at each entry of the kernel's table that a step without a captured graph can meet.
    assert {257, 258, 513, 514, 1025, 1026, 1537, 1538, 2047, 2048} <= set(found)
    assert found == sorted(set(found)) and found[0] > 256 and found[-1] == 2048
    assert sizes("model.max_model_len=601", "workload.num_requests=1") == [257, 258, 513, 514, 599, 600]
    assert sizes("engine.max_num_batched_tokens=200") == []
    assert sizes("replay.warmup_requests=0") == []
    assert sizes(name="h100_8b_half") == []
    assert sizes("hardware.hardware_id=cpu", "hardware.device_name=null", "profile.root=null") == []


def test_turns_that_wait_are_planned_so_and_only_for_a_scenario_that_asks_for_them(tmp_path: Path) -> None:
    closed = load_scenario("cpu_sessions_closed", ["workload.sessions.num_sessions=4"])
    free = load_scenario("cpu_sessions_closed", ["workload.sessions.closed_loop=false"])
    build(closed, tmp_path)
    _, requests = read_play(Play(closed, tmp_path, "g"))
    planned = planned_requests(requests, closed, 0)
    waits = [item for item in planned if item.previous is not None]
    assert len(planned) - len(waits) == 4
    for item in waits:
        assert item.previous is not None and item.think_time_ns >= 500_000_000
        assert item.think_time_ns == item.arrival_time_ns - planned[item.previous].arrival_time_ns
    with pytest.raises(
        WorkloadError, match=r"its turns wait for the answers before them, but scenario .* has closed_loop=false"
    ):
        read_play(Play(free, tmp_path, "g"))
