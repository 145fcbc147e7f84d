"""The measuring command, as far as it goes without an engine: bad input."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gst_assets.engine import run
from gst_assets_tests.engine.small_workload import SCENARIO, edit, read
from gst_assets_tests.engine.workloads import reseal


@pytest.fixture(autouse=True)
def _process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets environment variables and a signal handler for the rest of its process; here that is the
    tests'."""
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
