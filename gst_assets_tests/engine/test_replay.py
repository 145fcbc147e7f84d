"""The replay against an engine whose behaviour the test arranges. Orders and identities are asserted, never absolute
times."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gst_assets.contracts.tables import RequestMetrics, TokenMetrics, validate
from gst_assets.engine import metric_rows
from gst_assets.engine import replay as replay_module
from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.replay import PlannedRequest, ReplayResult, quiet_interpreter, replay, schedule_s, warm_up
from gst_assets.errors import ContractError, EngineError
from gst_assets.progress import Progress
from gst_assets_tests.engine.memory_engine import MemoryEngine

MS = 1_000_000


def plan(arrivals_ms: Sequence[float], num_decode_tokens: int = 4) -> list[PlannedRequest]:
    return [
        PlannedRequest(EngineRequest(f"q{index}", [1, 2, 3], num_decode_tokens, index), int(at * MS), f"p{index}")
        for index, at in enumerate(arrivals_ms)
    ]


def play(
    engine: MemoryEngine, planned: list[PlannedRequest], timeout_s: float = 30, *, may_stop_early: bool = False
) -> ReplayResult:
    return asyncio.run(replay(engine, planned, request_timeout_s=timeout_s, may_stop_early=may_stop_early))


def test_later_requests_do_not_wait_for_earlier_ones() -> None:
    engine = MemoryEngine()
    engine.holds["q0"] = lambda: ("begin", "q3") in engine.log
    played = play(engine, plan([0, 10, 20, 30], num_decode_tokens=2))
    begun = [name for what, name in engine.log if what == "begin"]
    assert begun == ["q0", "q1", "q2", "q3"]
    assert engine.log.index(("end", "q0")) > engine.log.index(("begin", "q3"))
    assert all(len(result.token_times_ns) == 2 and not result.error_type for result in played.results)


def test_nothing_is_sent_before_its_time_and_stamps_are_in_order() -> None:
    played = play(MemoryEngine(), plan([0, 3, 3.1, 7, 20]))
    for item, result in zip(played.planned, played.results, strict=True):
        assert result.send_ns is not None
        assert result.send_ns >= played.start_ns + item.arrival_time_ns
        assert result.token_times_ns == sorted(result.token_times_ns)
        assert result.token_times_ns[0] >= result.send_ns
        assert result.token_ids == [0, 1, 2, 3]
        assert result.times is not None and result.times.scheduled_ns is not None
    assert played.death is None


def test_progress_is_told_the_seconds_of_the_schedule() -> None:
    told: list[tuple[float, int]] = []

    class Kept(Progress):
        every_s = 0.005  # type: ignore[assignment]

        def at(self, done: float = 0) -> None:
            told.append((done, time.monotonic_ns()))

    planned = plan([0, 50, 100], num_decode_tokens=2)
    assert schedule_s(planned) == 0.1 and schedule_s([]) == 0
    engine = MemoryEngine(holds={"q2": lambda: [done for done, _ in told].count(0.1) >= 2})
    played = asyncio.run(replay(engine, planned, request_timeout_s=30, may_stop_early=False, progress=Kept("", 0.1)))
    assert [result.error_type for result in played.results] == [""] * 3
    seconds = [done for done, _ in told]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] == 0.1
    # Those since the first arrival, which is some time after the call; never more than have passed.
    assert all(done <= max(0, now_ns - played.start_ns) / 1e9 for done, now_ns in told)


def test_requests_due_together_are_released_together() -> None:
    released: list[tuple[int, int]] = []

    async def pace() -> None:
        done = asyncio.Event()

        def release(due_ns: int, place: int) -> None:
            released.append((due_ns - due[0][0], place))
            if not place:  # the loop's next turn, before which all of that window are released
                asyncio.get_running_loop().call_soon(done.set)

        now = time.monotonic_ns()
        due = [(now + 5 * MS, at) for at in range(50)] + [(now + 3_600_000 * MS, at) for at in range(50, 60)]
        pacer = replay_module._Pacer(asyncio.get_running_loop(), due, release, early_ns=0)
        pacer.start()
        await done.wait()
        pacer.stop()

    asyncio.run(pace())
    assert released == [(0, at) for at in range(50)]


def turns(
    chains: Sequence[Sequence[float]], begins_ms: Sequence[float], num_decode_tokens: int = 3
) -> list[PlannedRequest]:
    """Sessions that begin at these times, of first turns and of later ones with these think times in ms; in order of
    arrival if every answer took no time. Request `s<i>t<k>` is turn k of session i."""
    rows = []
    for session, (begin, thinks) in enumerate(zip(begins_ms, chains, strict=True)):
        at = begin
        for turn, think in enumerate([0.0, *thinks]):
            at += think
            rows.append((at, session, turn, think))
    rows.sort()
    place = {(session, turn): at for at, (_, session, turn, _) in enumerate(rows)}
    return [
        PlannedRequest(
            EngineRequest(f"s{session}t{turn}", [1, 2, 3], num_decode_tokens, 0),
            int(at * MS),
            "p",
            place[session, turn - 1] if turn else None,
            int(think * MS),
        )
        for at, session, turn, think in rows
    ]


CHAINS, BEGINS = ([[5, 0, 20], [], [1, 1]], [0, 4, 6])


@pytest.mark.parametrize("kernel_timer", [True, False])
def test_a_turn_is_due_a_think_time_after_the_answer_before_it(
    kernel_timer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_timer:
        monkeypatch.setattr(replay_module, "_HAS_TIMERFD", False)
    planned = turns(CHAINS, BEGINS)
    played = play(MemoryEngine(step_s=0.005), planned)  # an answer takes longer than most of the think times
    waited = 0
    for index, (item, result) in enumerate(zip(planned, played.results, strict=True)):
        assert not result.error_type and result.send_ns is not None and result.due_ns is not None
        due_ns = played.start_ns + item.arrival_time_ns
        if item.previous is not None:
            due_ns = played.results[item.previous].token_times_ns[-1] + item.think_time_ns
            waited += 1
        assert result.due_ns == due_ns and result.send_ns >= due_ns
        assert played.arrival_time_ns(index) == due_ns - played.start_ns
    assert waited == 5


def test_a_slow_answer_holds_up_its_own_session_alone() -> None:
    engine = MemoryEngine()
    engine.holds["s0t0"] = lambda: ("end", "s2t2") in engine.log
    planned = turns(CHAINS, BEGINS)
    played = play(engine, planned)
    begun = [name for what, name in engine.log if what == "begin"]
    assert begun == ["s0t0", "s1t0", "s2t0", "s2t1", "s2t2", "s0t1", "s0t2", "s0t3"]
    assert engine.log.index(("end", "s0t0")) < engine.log.index(("begin", "s0t1"))
    assert not any(result.error_type for result in played.results)


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_turns_behind_a_failed_one_are_not_sent_and_are_errors(how: str) -> None:
    engine = MemoryEngine(**{how: {"s0t1"}})
    planned = turns(CHAINS, BEGINS)
    played = play(engine, planned, timeout_s=0.5)
    found = {item.request.request_id: one for item, one in zip(planned, played.results, strict=True)}
    failed = "EngineError" if how == "fail" else "RequestTimeout"
    assert {name: one.error_type for name, one in found.items() if one.error_type} == {
        "s0t1": failed, "s0t2": "PreviousTurnFailed", "s0t3": "PreviousTurnFailed",
    }  # fmt: skip
    never = found["s0t3"]
    assert never.send_ns is None and never.due_ns is None and failed in never.error_msg
    assert not {"s0t2", "s0t3"} & {name for _, name in engine.log}
    assert played.arrival_time_ns(planned.index(planned[-1])) == planned[-1].arrival_time_ns
    assert played.death is None


def test_an_early_stop_is_an_answer_too() -> None:
    planned = turns([[2]], [0])
    played = play(MemoryEngine(stop_after={"s0t0": 1}), planned, may_stop_early=True)
    first, second = played.results
    assert [len(one.token_times_ns) for one in played.results] == [1, 3]
    assert second.due_ns == first.token_times_ns[0] + 2 * MS


def test_turns_that_a_dead_engine_never_answered_died_with_it() -> None:
    planned = turns(CHAINS, BEGINS)
    played = play(MemoryEngine(die_at_token=4), planned)
    assert played.death is not None
    assert {one.error_type for one in played.results if one.error_type} == {"EngineDied"}


@pytest.mark.parametrize(
    "engine", [{}, {"fail": {"s0t1"}}, {"die_at_token": 4}, {"die_at_token": 7}, {"hang": {"s2t0"}}], ids=str
)
def test_whatever_becomes_of_turns_the_tables_hold_to_the_contract(engine: dict[str, Any]) -> None:
    planned = turns(CHAINS, BEGINS)
    played = play(MemoryEngine(**engine), planned, timeout_s=0.5)
    requests = validate(RequestMetrics, metric_rows.request_metrics(played, "memory"), "here")
    assert requests["previous_request_id"].tolist() == [
        pd.NA if one.previous is None else one.previous for one in planned
    ]
    assert requests["workload_arrival_time_ns"].tolist() == [one.arrival_time_ns for one in planned]
    validate(TokenMetrics, metric_rows.token_metrics(played), "here")
    for name in ("arrival_time_ns", "workload_arrival_time_ns"):
        broken = requests.copy()
        broken[name] += [0] * (len(broken) - 1) + [1]
        broken["ttft_ns"] = broken["first_token_time_ns"] - broken["arrival_time_ns"]
        with pytest.raises(ContractError, match="of a turn with previous_request_id must be"):
            validate(RequestMetrics, broken, "here")


def test_a_request_waits_for_one_earlier_request_of_its_own() -> None:
    later, shared = turns([[1]], [0]), turns([[1, 1]], [0])
    later[0] = replace(later[0], previous=1)
    shared[2] = replace(shared[2], previous=0)
    for planned in (later, shared):
        with pytest.raises(ValueError, match="expected an earlier one of its own"):
            play(MemoryEngine(), planned)


def test_without_a_kernel_timer_the_loops_own_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_HAS_TIMERFD", False)
    played = play(MemoryEngine(), plan([0, 3, 3.1, 7]))
    assert [result.error_type for result in played.results] == [""] * 4
    for item, result in zip(played.planned, played.results, strict=True):
        assert result.send_ns is not None and result.send_ns >= played.start_ns + item.arrival_time_ns
    assert played.pacing is not None and played.pacing.timer == "event_loop"


def test_the_threads_priority_is_said_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with quiet_interpreter() as priority:
        inside = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        assert (inside == os.SCHED_FIFO) == (priority.name == "realtime")
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True
        )
        assert int(child.stdout) == os.SCHED_OTHER  # what it starts does not inherit it
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
    with quiet_interpreter(realtime=False) as priority:
        assert os.sched_getscheduler(0) == before[0]
        assert (priority.name, priority.reason) == ("normal", "not asked for")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with quiet_interpreter() as priority:
        assert (priority.name, priority.reason) == ("normal", "realtime refused: Operation not permitted")


def test_bunched_messages_are_counted_and_their_tokens_share_a_stamp() -> None:
    played = play(MemoryEngine(bunch={"q1"}), plan([0, 1]))
    alone, bunched = played.results
    assert (alone.num_bunched_messages, bunched.num_bunched_messages) == (0, 2)
    assert len(set(alone.token_times_ns)) == 4
    assert len(bunched.token_times_ns) == 4 and len(set(bunched.token_times_ns)) == 2


def test_a_timed_out_request_is_an_error_and_leaves_the_others_alone() -> None:
    """It was due long ago, so that it has a fraction of a second left and the others have half a minute."""
    engine = MemoryEngine(hang={"q0"})
    played = play(engine, plan([-29_800, 0, 1]), timeout_s=30)
    assert [result.error_type for result in played.results] == ["RequestTimeout", "", ""]
    assert "not finished 30 s after its intended arrival" in played.results[0].error_msg
    assert played.results[0].token_times_ns == []
    assert engine.aborted == ["q0"]


def test_a_failing_request_is_an_error_and_leaves_the_others_alone() -> None:
    played = play(MemoryEngine(fail={"q0"}), plan([0, 1]))
    assert [result.error_type for result in played.results] == ["EngineError", ""]
    assert played.results[0].error_msg == "out of luck (1 tokens had arrived)"
    assert (played.results[0].token_ids, played.results[0].token_times_ns) == ([], [])


def test_when_the_engine_dies_every_unfinished_request_says_so_and_the_replay_ends() -> None:
    engine = MemoryEngine(step_s=0.005, die_at_token=9, stop_after={"q0": 1})
    # q0 is long over by then, q1 and q2 are in flight, q3 would come an hour later.
    played = play(engine, plan([0, 500, 500, 3_600_000], num_decode_tokens=6), may_stop_early=True)
    assert [result.error_type for result in played.results] == ["", "EngineDied", "EngineDied", "EngineDied"]
    assert played.death == "the engine was killed"
    assert played.results[3].send_ns is None
    assert all("the engine was killed" in result.error_msg for result in played.results[1:])


def test_a_request_deaf_to_cancellation_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_CANCEL_WAIT_S", 0.05)

    async def run() -> ReplayResult:
        engine = MemoryEngine(deaf={"q0"}, die_at_token=1)
        played = await replay(engine, plan([0, 10]), request_timeout_s=3600, may_stop_early=False)
        engine.deaf.clear()  # so that the loop of the test can close
        return played

    played = asyncio.run(run())
    assert [result.error_type for result in played.results] == ["EngineDied", "EngineDied"]
    assert played.results[0].send_ns is not None


def test_early_stops_need_a_scenario_that_allows_them() -> None:
    played = play(MemoryEngine(stop_after={"q0": 2}), plan([0]))
    assert played.results[0].error_type == "EngineError"
    assert "with 2 tokens, expected 4" in played.results[0].error_msg
    allowed = play(MemoryEngine(stop_after={"q0": 2}), plan([0]), may_stop_early=True)
    assert allowed.results[0].error_type == "" and len(allowed.results[0].token_ids) == 2


@pytest.mark.parametrize("produced", [0, 9])
def test_no_token_and_too_many_tokens_are_errors(produced: int) -> None:
    played = play(MemoryEngine(stop_after={"q0": produced}), plan([0]), may_stop_early=True)
    assert f"with {produced} tokens, expected 4" in played.results[0].error_msg


def test_arrivals_must_ascend() -> None:
    with pytest.raises(ValueError, match="order of arrival"):
        play(MemoryEngine(), plan([1, 0]))


def test_an_empty_plan_ends_at_once() -> None:
    assert play(MemoryEngine(), []).results == []


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_cancelled_replay_leaves_no_timer_and_no_setting_behind() -> None:
    interval, scheduler, descriptors = sys.getswitchinterval(), os.sched_getscheduler(0), open_descriptors()

    async def cancel() -> None:
        task = asyncio.create_task(
            replay(MemoryEngine(), plan([0, 3_600_000]), request_timeout_s=30, may_stop_early=False)
        )
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert os.sched_getscheduler(0) == scheduler and open_descriptors() == descriptors
    assert gc.isenabled() and sys.getswitchinterval() == interval and gc.get_freeze_count() == 0


def test_the_collector_is_off_in_a_replay_and_restored_as_it_was() -> None:
    with quiet_interpreter():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
    assert gc.isenabled() and gc.get_freeze_count() == 0
    gc.disable()
    try:
        with quiet_interpreter():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_warm_up_reports_what_it_played_and_refuses_a_failing_engine() -> None:
    requests = [item.request for item in plan([0, 0])]
    report = asyncio.run(warm_up(MemoryEngine(), requests, request_timeout_s=30))
    assert (report.num_requests, report.num_prefill_tokens, report.num_decode_tokens) == (2, 6, 8)
    for asked in ((requests,), ([], requests)):
        with pytest.raises(EngineError, match="warm-up request q1: EngineError: out of luck"):
            asyncio.run(warm_up(MemoryEngine(fail={"q1"}), *asked, request_timeout_s=30))


def test_what_is_warmed_up_alone_is_sent_when_all_before_it_has_ended() -> None:
    together, alone = [item.request for item in plan([0, 0])], [item.request for item in plan([0, 0])]
    alone = [replace(one, request_id=f"alone-{one.request_id}") for one in alone]
    at_once: list[int] = []

    class Watched(MemoryEngine):
        open_now = 0

        async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
            self.open_now += 1
            at_once.append(self.open_now)
            async for message in super().generate(request):
                yield message
            self.open_now -= 1

    report = asyncio.run(warm_up(Watched(), together, alone, request_timeout_s=30))
    assert at_once == [1, 2, 1, 1]
    assert (report.num_requests, report.num_prefill_tokens, report.num_decode_tokens) == (4, 12, 16)
