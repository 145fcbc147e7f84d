"""The demo as `make demo` calls it, on a recorded scenario: what a new user sees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.provenance import PROJECT_ROOT


def demo(folder: Path, *scenarios: str) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    environment = {**os.environ, "DAGSTER_HOME": str(home), "GST_ARTIFACT_ROOT": str(folder / "artifacts")}
    return subprocess.run(
        [sys.executable, "-m", "gst_assets.demo", *scenarios],
        cwd=PROJECT_ROOT, env=environment | {"GST_UI_URL": "http://127.0.0.1:3456"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_one_line_a_step_with_its_seconds_then_the_answer(tmp_path: Path) -> None:
    """Nothing that Dagster, the engine or a library says about itself, no path that is not there at the end."""
    done = demo(tmp_path, "h100_8b_single")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("h100_8b_single: ")
    steps = [re.fullmatch(r"  (\w+) +\d+\.\d s", line) for line in lines[1:7]]
    assert [step and step[1] for step in steps][-5:] != [None] * 5 and all(steps), lines
    names = {step[1] for step in steps if step}
    assert {"measurements", "vidur_metrics", "comparison_report"} <= names and not {"capacity", "sweep"} & names
    assert re.fullmatch(r"  done after \d+ s", lines[7])
    (directory,) = (tmp_path / "artifacts" / "comparisons").iterdir()
    assert lines[9] == "Vidur against vllm: qwen3-8b on h100, scenario h100_8b_single"
    assert sum(bool(re.match(r"(TTFT|ITL|E2E) P(50|90) ", line)) for line in lines) == 6
    assert lines[-3:] == [
        f"report: {directory / 'report.html'}",
        f"as text: {directory / 'summary.md'}",
        "in the UI (make ui): http://127.0.0.1:3456/assets/comparison_report?view=partitions&partition=h100_8b_single",
    ]
    assert not re.search(r"DEBUG|INFO|did not yield|Warning|\.staging", done.stdout)
    for path in re.findall(r"/\S+", done.stdout.replace("http://", "")):
        assert Path(path).exists() or path.startswith("/assets/") or "/" not in path[1:], path


def test_a_step_that_fails_is_named_with_its_error_and_the_next_scenario_still_runs(tmp_path: Path) -> None:
    """There is no A100 here."""
    done = demo(tmp_path, "a100_light", "h100_8b_single")
    assert done.returncode == 1 and done.stderr == ""
    assert re.search(r"^  measurements +failed\n    .*a100", done.stdout, re.M), done.stdout
    assert "  failed after " in done.stdout and "  done after " in done.stdout and done.stdout.count("report: ") == 1
    (comparison,) = ArtifactStore(tmp_path / "artifacts").list(Kind.COMPARISON)
    assert comparison.startswith("h100_8b_single-")


@pytest.mark.parametrize(("arguments", "told"), [((), "usage: "), (("nosuch",), "error: unknown scenario 'nosuch'")])
def test_what_cannot_be_shown_is_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = demo(tmp_path, *arguments)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith(told)
    assert len(done.stderr.strip().splitlines()) == 1
