"""The limit of open files: raised where it can be, named before anything is measured where it cannot."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.contracts import tables
from gst_assets.engine.measuring import session_spans_ns
from gst_assets.engine.open_files import most_at_once
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload.tokenized import WorkloadRequest
from gst_assets_tests.engine.peer_process import peer_process
from gst_assets_tests.engine.workloads import build_workload

NUM_STREAMS = 500


def scenario_of(base_url: str) -> Scenario:
    overrides = [
        "engine.backend=openai",
        f"engine.server.base_url='{base_url}'",
        "replay.repeats=1",
        "replay.warmup_requests=0",
        f"workload.num_requests={NUM_STREAMS}",
        "workload.num_decode_tokens=3",
        "workload.arrivals={kind: fixed_interval, interval_ns: 1000}",
    ]
    return load_scenario("smoke", overrides)


@pytest.mark.parametrize("which", ["soft", "hard"])
def test_five_hundred_streams_with_a_limit_of_three_hundred_files(which: str, tmp_path: Path) -> None:
    def limit() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard if which == "soft" else 300))

    with peer_process(together=NUM_STREAMS) as base_url:
        scenario = scenario_of(base_url)
        workload = build_workload(tmp_path / "workload", scenario)
        (tmp_path / "scenario.json").write_text(scenario.model_dump_json())
        names = [
            "--workload",
            str(workload),
            "--scenario",
            str(tmp_path / "scenario.json"),
            "--out",
            str(tmp_path / "out"),
        ]
        ended = subprocess.run(
            [sys.executable, "-m", "gst_assets.engine.run", *names, "--group-id", "g"],
            cwd=PROJECT_ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    if which == "hard":
        assert ended.returncode == 1
        assert "this process may have 300 files open, at most 300; smoke (requests of 120 s at most" in ended.stderr
        assert "needs up to 500 connections at once" in ended.stderr and "(`ulimit -n 5" in ended.stderr
        assert "Nothing was measured" in ended.stderr and not (tmp_path / "out" / "g-r0").exists()
    else:
        assert ended.returncode == 0, ended.stderr
        requests = tables.read_table(tables.RequestMetrics, tmp_path / "out" / "g-r0" / "request_metrics.csv")
        assert requests["status"].tolist() == ["ok"] * NUM_STREAMS
        # They were open together: the last had begun before the first had ended.
        assert requests["send_time_ns"].max() < requests["completion_time_ns"].min()


def test_the_most_requests_under_way_are_counted_in_a_window() -> None:
    def of(arrivals: list[int], longest: int) -> int:
        return most_at_once((arrival, arrival + longest) for arrival in arrivals)

    assert of([], 5) == 0
    assert of([0, 1, 2, 10, 11], 5) == 3
    assert of([0, 5, 10], 5) == 2
    assert of([7] * 9, 1) == 9
    assert most_at_once([(0, 100), (1, 2), (3, 4), (50, 60)]) == 2


def test_a_session_is_one_connection_from_its_beginning_until_all_its_turns_may_have_ended() -> None:
    """Sessions of three turns and of one, interleaved, and one that begins after the first can have ended."""

    def asked(arrival: int, previous: int | None = None, think: int = 0) -> WorkloadRequest:
        return WorkloadRequest("p", [1], 1, arrival, previous, think)

    requests = [asked(0), asked(3), asked(7, 0, 7), asked(12, 2, 5), asked(43), asked(1000)]
    spans = session_spans_ns(requests, 10)
    assert sorted(spans) == [(0, 10 + 7 + 10 + 5 + 10), (3, 13), (43, 53), (1000, 1010)]
    assert most_at_once(spans) == 2


def _limited_to(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def test_a_limit_that_is_met_all_the_same_is_not_the_servers_death() -> None:
    """As when other parts of the process open files while it measures: the plan was found to fit."""
    code = """
import asyncio, collections, sys
from gst_assets.engine.backends import open_engine
from gst_assets.engine.protocol import EngineRequest
from gst_assets.engine.replay import PlannedRequest, replay
from gst_assets_tests.engine.test_open_files import scenario_of
async def play():
    async with open_engine(scenario_of(sys.argv[1])) as engine:
        planned = [PlannedRequest(EngineRequest(str(index), [1, 2], 3, 0), 0, "p") for index in range(100)]
        return await replay(engine, planned, request_timeout_s=60, may_stop_early=False)
played = asyncio.run(play())
print(played.death, dict(collections.Counter(result.error_type for result in played.results)))
print({result.error_msg for result in played.results})
"""
    with peer_process(together=20) as base_url:  # which all have tried to open a file by then
        ended = subprocess.run(
            [sys.executable, "-c", code, base_url],
            cwd=PROJECT_ROOT,
            preexec_fn=lambda: _limited_to(60),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert "None {" in ended.stdout and "'OutOfFiles': " in ended.stdout and "'': " in ended.stdout, (
        ended.stdout + ended.stderr
    )
    assert "Too many open files in this process. Raise the limit (`ulimit -n`)" in ended.stdout
    assert "EngineDied" not in ended.stdout
