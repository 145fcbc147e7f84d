"""A repeat, and what its run directory holds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.documents import RealRunMeta, WorkloadMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine.hardware import check_hardware
from gst_assets.engine.measuring import play_repeat
from gst_assets.engine.plays import planned_requests
from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.replay import WarmUp, replay
from gst_assets.engine.run_directory import Measurement, write_run
from gst_assets.errors import EngineError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets_tests.engine.memory_engine import SETTINGS, MemoryEngine
from gst_assets_tests.engine.small_workload import SCENARIO, read


def _common(workload: Path, scenario: Scenario = SCENARIO) -> Measurement:
    meta = read_document(WorkloadMeta, workload / "workload_meta.json")
    hardware = check_hardware(scenario.hardware)
    return Measurement(scenario, workload, meta, hardware, SETTINGS, WarmUp(1, 2, 3, 0.5), 1.5, "g")


def _repeat(engine: MemoryEngine, workload: Path, out: Path) -> tuple[Path, str | None]:
    return asyncio.run(play_repeat(engine, _common(workload), read(workload), 0, out))


def test_a_repeat_becomes_a_complete_run_directory(workload: Path, tmp_path: Path) -> None:
    engine = MemoryEngine(bunch={"r0-1"}, fail={"r0-2"})
    directory, died = _repeat(engine, workload, tmp_path / "out")
    assert died is None and directory == tmp_path / "out" / "g-r0"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["g-r0"]
    open_directory(directory, Kind.REAL_RUN)
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    tokens = tables.read_table(tables.TokenMetrics, directory / "token_metrics.csv")
    tables.check_run_tables(requests, tokens, directory)
    assert requests["status"].tolist() == ["ok", "ok", "error", "ok", "ok", "ok"]
    assert requests["error_type"][2] == "EngineError"
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert set(meta.sha256) == {"request_metrics.csv", "token_metrics.csv", "iterations.csv", "summary.md"}
    assert meta.workload_sha256 == json.loads((workload / "workload_meta.json").read_text())["sha256"]
    assert (meta.run_id, meta.group_id, meta.repeat_index, meta.num_repeats) == (
        "g-r0",
        "g",
        0,
        load_scenario("smoke").replay.repeats,
    )
    assert (meta.num_errors, meta.num_bunched_messages, meta.hydra.overrides) == (1, 1, list(SCENARIO.overrides))
    assert SCENARIO.overrides
    assert meta.warmup == {"num_requests": 1, "num_prefill_tokens": 2, "num_decode_tokens": 3, "seconds": 0.5}
    assert Scenario.model_validate(meta.params) == SCENARIO
    # This engine recorded no step, so its tokens are unaccounted for.
    assert meta.degraded and meta.model_extra and meta.model_extra["iterations_missing"]
    assert "| TTFT |" in (directory / "summary.md").read_text()
    assert ("forget", "") in engine.log


def test_the_summary_says_how_many_devices_share_each_layer(workload: Path, tmp_path: Path) -> None:
    played = asyncio.run(
        replay(
            MemoryEngine(), planned_requests(read(workload), SCENARIO, 0), request_timeout_s=30, may_stop_early=False
        )
    )
    for degree, told in ((2, True), (1, False), (None, False)):
        settings = SETTINGS.model_copy(update={"tensor_parallel_size": degree})
        common = replace(_common(workload), settings=settings)
        now = datetime.now(timezone.utc)
        directory = write_run(common, played, None, 0, now, "memory", tmp_path / str(degree))
        assert ("tensor parallel degree 2." in (directory / "summary.md").read_text()) is told


def test_an_engine_that_dies_leaves_a_complete_run_of_error_rows(workload: Path, tmp_path: Path) -> None:
    directory, died = _repeat(MemoryEngine(die_at_token=1), workload, tmp_path / "out")
    assert died == "the engine was killed"
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    assert set(requests["error_type"]) == {"EngineDied"}
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert (meta.num_errors, meta.degraded) == (6, True)
    assert meta.degraded_reasons is not None and "the engine died: the engine was killed" in meta.degraded_reasons


def test_a_run_is_never_overwritten_and_a_failed_write_leaves_nothing(workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, _ = _repeat(MemoryEngine(), workload, out)
    before = (first / "run_meta.json").read_bytes()
    with pytest.raises(EngineError, match="g-r0: cannot be created"):
        _repeat(MemoryEngine(), workload, out)
    assert (first / "run_meta.json").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["g-r0"]


def test_a_late_driver_makes_a_run_degraded(workload: Path, tmp_path: Path) -> None:
    impossible = SCENARIO.model_copy(
        update={"replay": SCENARIO.replay.model_copy(update={"lateness_limit_ns": 1, "record_iterations": False})}
    )
    requests, engine = read(workload), MemoryEngine()
    played = asyncio.run(
        replay(engine, planned_requests(requests, impossible, 0), request_timeout_s=30, may_stop_early=False)
    )
    now = datetime.now(timezone.utc)
    late = write_run(_common(workload, impossible), played, None, 0, now, "memory", tmp_path / "late")
    fine = write_run(_common(workload), played, None, 0, now, "memory", tmp_path / "fine")
    assert read_document(RealRunMeta, late / "run_meta.json").degraded
    assert not (late / "iterations.csv").exists()
    slow = read_document(RealRunMeta, fine / "run_meta.json").lateness_ns["p99"] > SCENARIO.replay.lateness_limit_ns
    assert read_document(RealRunMeta, fine / "run_meta.json").degraded == slow


@pytest.mark.parametrize(("bunched", "is_degraded"), [({"r0-1"}, True), (set(), False)])
def test_tokens_that_come_together_make_a_run_degraded(
    bunched: set[str], is_degraded: bool, workload: Path, tmp_path: Path
) -> None:
    """Of six requests with three tokens each one sends two together: one gap of twelve."""
    directory, _ = _repeat(MemoryEngine(bunch=bunched), workload, tmp_path / "out")
    reasons = read_document(RealRunMeta, directory / "run_meta.json").degraded_reasons
    assert reasons is not None
    told = "8 % of the tokens after the first came together with the one before: engine, server or proxy hold"
    assert any(reason.startswith(told) for reason in reasons) == is_degraded


class StallingEngine(MemoryEngine):
    """Holds up the event loop when it takes a request, as a client does that computes."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        time.sleep(0.02)
        async for message in super().generate(request):
            yield message


def test_a_driver_that_is_held_up_makes_the_run_degraded_and_says_why(workload: Path, tmp_path: Path) -> None:
    """Six requests 2 ms apart, each holding up the next by 20 ms: the last is late by far more than the limit of 5
    ms."""
    directory, died = _repeat(StallingEngine(), workload, tmp_path / "out")
    assert died is None
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.degraded and meta.lateness_ns["p99"] > SCENARIO.replay.lateness_limit_ns
    assert meta.degraded_reasons is not None and meta.degraded_reasons[0].startswith("lateness p99 ")
    assert "exceeds replay.lateness_limit_ns, 5.000 ms" in meta.degraded_reasons[0]
    assert f"Degraded: yes: {meta.degraded_reasons[0]}" in (directory / "summary.md").read_text()
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    # The lateness stays inside TTFT, and is recorded for each request.
    late_ns = requests["send_time_ns"] - requests["arrival_time_ns"]
    assert late_ns.max() == meta.lateness_ns["max"] and (requests["ttft_ns"] >= late_ns).all()


def test_how_the_driver_was_paced_is_recorded(workload: Path, tmp_path: Path) -> None:
    directory, _ = _repeat(MemoryEngine(), workload, tmp_path / "out")
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.pacing is not None and meta.pacing.timer in ("timerfd", "event_loop")
    assert (meta.pacing.priority == "realtime") == (meta.pacing.priority_reason == "")
    assert f"its thread at {meta.pacing.priority} priority" in (directory / "summary.md").read_text()


def test_the_summary_says_how_weights_are_quantised_and_what_computes_experts(workload: Path, tmp_path: Path) -> None:
    told = SETTINGS.model_copy(
        update={"quantization": "fp8", "quantized_kernels": "Cutlass", "expert_kernel": "TritonExperts"}
    )
    for number, settings, words in (
        (0, SETTINGS, "float32, attention NONE: "),
        (1, told, "float32, weights fp8 (Cutlass), attention NONE, experts by TritonExperts: "),
    ):
        common = replace(_common(workload), settings=settings)
        played = play_repeat(MemoryEngine(), common, read(workload), number, tmp_path / "out")
        directory, _ = asyncio.run(played)
        assert words in (directory / "summary.md").read_text()
