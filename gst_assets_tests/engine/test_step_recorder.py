"""Step records: composition, matching with two steps under way, and the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gst_assets.engine.protocol import IterationField as F
from gst_assets.engine.step_recorder import StepRecorder, read_steps
from gst_assets.environment import STEPS_VARIABLE
from gst_assets.errors import EngineError


@dataclass
class Request:
    num_prompt_tokens: int
    num_computed_tokens: int


@dataclass
class Output:
    num_scheduled_tokens: dict[str, int]


@dataclass
class Cache:
    enable_prefix_caching: bool = False
    block_size: int = 4


@dataclass
class Blocks:
    of: dict[str, list[int]]

    def get_block_ids(self, request_id: str) -> tuple[list[int], ...]:
        return (self.of[request_id],)


@dataclass
class Scheduler:
    requests: dict[str, Request]
    running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    cache_config: Cache = field(default_factory=Cache)
    kv_cache_manager: Blocks = field(default_factory=lambda: Blocks({}))


def test_composition_of_a_mixed_step(tmp_path: Path) -> None:
    # Counts after scheduling: `new` is in its first chunk, `next` in its second, `old` decodes, `again` is computed
    # again after preemption.
    scheduler = Scheduler(
        {"new": Request(100, 64), "next": Request(100, 100), "old": Request(10, 31), "again": Request(10, 25)},
        running=["new", "next", "old", "again"],
        waiting=["one"],
    )
    recorder = StepRecorder(tmp_path / "steps")
    output = Output({"new": 64, "next": 36, "old": 1, "again": 12})
    recorder.scheduled(scheduler, output, 1000, 1100)
    recorder.launched(output, 1300)
    recorder.completed(output, 1900, 2000)
    recorder.flush()
    row = read_steps(tmp_path / "steps")[0]
    assert (row[F.SCHEDULED_NS], row[F.COMPLETION_NS]) == (1000, 2000)
    assert (row[F.LAUNCHED_NS], row[F.OUTPUT_NS]) == (1300, 1900)
    assert (row[F.PREFILL_REQUESTS], row[F.PREFILL_TOKENS], row[F.DECODE_REQUESTS]) == (3, 64 + 36 + 12, 1)
    assert row[F.CONTEXT_TOKENS] == 0 + 64 + 30 + 13
    assert row[F.PREFILL_CONTEXT_TOKENS] == 0 + 64 + 13
    # Each new token sees the context, the new ones before it and itself.
    seen = [(0, 64), (64, 36), (13, 12)]
    assert row[F.ATTENTION_PAIRS] == sum(context + place + 1 for context, new in seen for place in range(new))
    assert (row[F.RUNNING], row[F.WAITING]) == (4, 1)
    assert row[F.TRACING_NS] > 0


def test_blocks_that_decodes_share_count_for_all_of_them_but_one(tmp_path: Path) -> None:
    """Full blocks of prompts only, whoever comes, goes, pauses or comes back with other blocks."""
    requests = {"a": Request(11, 12), "b": Request(12, 13), "c": Request(9, 10), "p": Request(40, 8)}
    blocks = Blocks({"a": [1, 2, 3], "b": [1, 2, 4, 5], "c": [1, 6, 3], "p": [1, 2]})
    scheduler = Scheduler(requests, cache_config=Cache(enable_prefix_caching=True), kv_cache_manager=blocks)
    recorder, found = StepRecorder(tmp_path / "steps"), []
    asked = [{"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1, "p": 8}, {"b": 1, "c": 1}, {"b": 1}, {"c": 1, "b": 1}]
    for number, held in enumerate(asked):
        if number == 4:
            blocks.of["c"] = [7, 8, 9]  # preempted, and computed again elsewhere
        output = Output(held)
        recorder.scheduled(scheduler, output, number, number)
        recorder.completed(output, number, number)
    recorder.flush()
    found = read_steps(tmp_path / "steps")[:, F.REREAD_CONTEXT_TOKENS].tolist()
    # a and b share blocks 1 and 2; c shares 1 with both; p is in prefill; block 3 is full in neither a nor c.
    assert found == [0, 8, 12, 4, 0, 0]
    scheduler.cache_config.enable_prefix_caching = False
    without, output = StepRecorder(tmp_path / "without"), Output({"a": 1, "b": 1})
    without.scheduled(scheduler, output, 0, 0)
    without.completed(output, 0, 0)
    without.flush()
    assert read_steps(tmp_path / "without")[0, F.REREAD_CONTEXT_TOKENS] == 0


def test_a_step_of_decodes_has_no_prompt_to_count(tmp_path: Path) -> None:
    scheduler = Scheduler({"a": Request(10, 31), "b": Request(4, 5)})
    recorder, output = StepRecorder(tmp_path / "steps"), Output({"a": 1, "b": 1})
    recorder.scheduled(scheduler, output, 10, 11)
    recorder.completed(output, 24, 25)
    recorder.flush()
    row = read_steps(tmp_path / "steps")[0]
    assert (row[F.DECODE_REQUESTS], row[F.CONTEXT_TOKENS]) == (2, 30 + 4)
    assert (row[F.PREFILL_REQUESTS], row[F.PREFILL_CONTEXT_TOKENS], row[F.ATTENTION_PAIRS]) == (0, 0, 0)


def test_two_steps_under_way_are_matched_by_their_output(tmp_path: Path) -> None:
    """Asynchronous scheduling: step n+1 is scheduled before step n completes, and equal outputs are not the same
    output."""
    scheduler = Scheduler({"a": Request(1, 5)})
    recorder = StepRecorder(tmp_path / "steps")
    first, second, third = Output({"a": 1}), Output({"a": 1}), Output({"a": 1})
    recorder.scheduled(scheduler, first, 10, 11)
    recorder.scheduled(scheduler, second, 20, 21)
    recorder.completed(first, 24, 25)
    recorder.scheduled(scheduler, third, 30, 31)
    recorder.completed(second, 34, 35)
    recorder.completed(third, 44, 45)
    recorder.flush()
    steps = read_steps(tmp_path / "steps")
    assert steps[:, [F.SCHEDULED_NS, F.COMPLETION_NS]].tolist() == [[10, 25], [20, 35], [30, 45]]


def test_flushes_append_and_an_empty_one_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEPS_VARIABLE, str(tmp_path / "steps"))
    recorder, scheduler = StepRecorder.from_environment(), Scheduler({"a": Request(1, 5)})
    for began in (10, 20):
        output = Output({"a": 1})
        recorder.scheduled(scheduler, output, began, began + 1)
        recorder.completed(output, began + 4, began + 5)
        recorder.flush()
        recorder.flush()
    assert read_steps(tmp_path / "steps")[:, F.SCHEDULED_NS].tolist() == [10, 20]


def test_no_file_has_no_steps_and_half_a_record_is_an_error(tmp_path: Path) -> None:
    assert read_steps(tmp_path / "none").shape == (0, len(F))
    (tmp_path / "cut").write_bytes(bytes(8 * (len(F) + 1)))
    with pytest.raises(EngineError, match="no whole number of step records"):
        read_steps(tmp_path / "cut")
