"""Measuring a workload directory, up to and after the engine: bad input, and what a run directory holds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.documents import RealRunMeta, WorkloadMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine import run
from gst_assets.engine.hardware import check_hardware
from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.replay import WarmUp
from gst_assets.errors import ContractError, EngineError, WorkloadError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload import load
from gst_assets.workload.tokenized import WorkloadRequest, requests_of
from gst_assets_tests.engine.memory_engine import SETTINGS, MemoryEngine
from gst_assets_tests.engine.workloads import build_workload, reseal

SCENARIO = load_scenario(
    "smoke",
    [
        "workload.num_requests=6",
        "workload.num_decode_tokens=3",
        "workload.arrivals={kind: fixed_interval, interval_ns: 2000000}",
    ],
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_workload(tmp_path_factory.mktemp("workload") / "wl", SCENARIO)


@pytest.fixture
def workload(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "wl"))


def read(directory: Path, scenario: Scenario = SCENARIO) -> list[WorkloadRequest]:
    reseal(directory)
    return requests_of(load(directory, contract=False), scenario)


def edit(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    changed = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed)


# --- reading ----------------------------------------------------------------------------------------------------------


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


# --- the command line, as far as it goes without an engine ------------------------------------------------------------


@pytest.fixture(autouse=True)
def _process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets environment variables and a signal handler for the rest of its process; here that is the tests'."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield
    signal.signal(signal.SIGTERM, handler)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command, expecting an error; returns its one line."""
    assert run.main(arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def resolved(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.json"
    path.write_text(SCENARIO.model_dump_json())
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--group-id", "../x"], "--group-id '../x': expected a plain name"),
        (["--out", "/proc/none/out"], "--out /proc/none/out: no directory can be created there"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_engine_starts(
    changes: list[str], message: str, workload: Path, resolved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--workload", str(workload), "--scenario", str(resolved), "--out", str(tmp_path / "out")]
    assert message in command(capsys, *arguments, *changes)


def test_a_workload_of_another_scenario_is_refused(
    workload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.json"
    settings = SCENARIO.workload.model_copy(update={"num_decode_tokens": 999})
    path.write_text(SCENARIO.model_copy(update={"workload": settings}).model_dump_json())
    line = command(capsys, "--workload", str(workload), "--scenario", str(path), "--out", str(tmp_path / "out"))
    assert "asks for 999. Pair each --workload with its own --scenario" in line


def test_an_altered_workload_is_refused(
    workload: Path, resolved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(workload / "trace_intervals.csv", r"^1,", "01,")
    line = command(capsys, "--workload", str(workload), "--scenario", str(resolved), "--out", str(tmp_path / "out"))
    assert "trace_intervals.csv: content differs from the digest" in line
    assert not (tmp_path / "out").exists()
    reseal(workload)
    assert len(read(workload)) == 6


def test_an_incomplete_workload_an_unknown_scenario_and_a_missing_gpu_are_refused(
    workload: Path, resolved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", str(tmp_path / "out"))
    assert "unknown scenario 'nosuch'" in command(capsys, "--workload", str(workload), "--scenario", "nosuch", *out)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu = ("--override", "hardware.hardware_id=a100", "--override", "hardware.device_name=A100")
    line = command(capsys, "--workload", str(workload), "--scenario", "smoke", *gpu, *out)
    assert "hardware_id a100: expected a GPU named like 'A100'" in line
    (workload / "workload_meta.json").unlink()
    line = command(capsys, "--workload", str(workload), "--scenario", str(resolved), *out)
    assert "workload_meta.json missing, so this is not a complete artifact" in line


def test_a_taken_group_id_is_refused_before_anything_starts(
    workload: Path, resolved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "g-r1").mkdir(parents=True)
    line = command(
        capsys,
        "--workload",
        str(workload),
        "--scenario",
        str(resolved),
        "--out",
        str(tmp_path / "out"),
        "--group-id",
        "g",
    )
    assert "g-r1: already exists" in line


# --- a repeat ---------------------------------------------------------------------------------------------------------


def _common(workload: Path, scenario: Scenario = SCENARIO) -> run.Measurement:
    meta = read_document(WorkloadMeta, workload / "workload_meta.json")
    hardware = check_hardware(scenario.hardware)
    return run.Measurement(scenario, workload, meta, hardware, SETTINGS, WarmUp(1, 2, 3, 0.5), 1.5, "g")


def _repeat(engine: MemoryEngine, workload: Path, out: Path) -> tuple[Path, str | None]:
    return asyncio.run(run.play_repeat(engine, _common(workload), read(workload), 0, out))


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
        run.replay(engine, run._plan(requests, impossible, 0), request_timeout_s=30, may_stop_early=False)
    )
    now = datetime.now(timezone.utc)
    late = run.write_run(_common(workload, impossible), played, None, 0, now, "memory", tmp_path / "late")
    fine = run.write_run(_common(workload), played, None, 0, now, "memory", tmp_path / "fine")
    assert read_document(RealRunMeta, late / "run_meta.json").degraded
    assert not (late / "iterations.csv").exists()
    slow = read_document(RealRunMeta, fine / "run_meta.json").lateness_ns["p99"] > SCENARIO.replay.lateness_limit_ns
    assert read_document(RealRunMeta, fine / "run_meta.json").degraded == slow


class StallingEngine(MemoryEngine):
    """Holds up the event loop when it takes a request, as a client does that computes."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        time.sleep(0.02)
        async for message in super().generate(request):
            yield message


def test_a_driver_that_is_held_up_makes_the_run_degraded_and_says_why(workload: Path, tmp_path: Path) -> None:
    """Six requests 2 ms apart, each holding up the next by 20 ms: the last is late by far more than the limit of 5 ms."""
    directory, died = _repeat(StallingEngine(), workload, tmp_path / "out")
    assert died is None
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.degraded and meta.lateness_ns["p99"] > SCENARIO.replay.lateness_limit_ns
    assert meta.degraded_reasons is not None and meta.degraded_reasons[0].startswith("lateness p99 ")
    assert "exceeds replay.lateness_limit_ns, 5.000 ms" in meta.degraded_reasons[0]
    assert f"Degraded: yes: {meta.degraded_reasons[0]}" in (directory / "summary.md").read_text()
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    # The lateness stays inside TTFT, and is told for each request.
    late_ns = requests["send_time_ns"] - requests["arrival_time_ns"]
    assert late_ns.max() == meta.lateness_ns["max"] and (requests["ttft_ns"] >= late_ns).all()


def test_how_the_driver_was_paced_is_recorded(workload: Path, tmp_path: Path) -> None:
    directory, _ = _repeat(MemoryEngine(), workload, tmp_path / "out")
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.pacing is not None and meta.pacing.timer in ("timerfd", "event_loop")
    assert (meta.pacing.priority == "realtime") == (meta.pacing.priority_reason == "")
    assert f"its thread at {meta.pacing.priority} priority" in (directory / "summary.md").read_text()


def test_warm_up_prompts_are_as_long_as_the_workloads_but_not_the_same(workload: Path) -> None:
    requests = read(workload)
    warm = run.warm_up_requests(SCENARIO, requests)
    assert len(warm) == SCENARIO.replay.warmup_requests
    assert [len(item.prompt_token_ids) for item in warm[:6]] == [len(item.prompt_token_ids) for item in requests]
    assert all(item.prompt_token_ids != request.prompt_token_ids for item, request in zip(warm, requests, strict=False))
    assert [list(item.prompt_token_ids) for item in run.warm_up_requests(SCENARIO, requests)] == [
        list(item.prompt_token_ids) for item in warm
    ]
