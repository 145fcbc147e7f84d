"""`gst run` as `make demo` calls it, on a recorded scenario: what a new user sees."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import EnvironmentVariableError
from gst_assets.materialize import materialize
from gst_assets.progress import ERASE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.step_lines import LOGGER, step_lines


def run(folder: Path, *scenarios: str) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    environment = {**os.environ, "DAGSTER_HOME": str(home), "GST_ARTIFACT_ROOT": str(folder / "artifacts")}
    return subprocess.run(
        [sys.executable, "-m", "gst_assets.cli", "run", *scenarios],
        cwd=PROJECT_ROOT,
        env=environment | {"GST_UI_URL": "http://127.0.0.1:3456"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder, and what was printed when two scenarios were run there; of the first there is no GPU here."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder, "a100_light", "h100_8b_single")


def test_a_step_that_fails_is_named_with_its_error_and_the_next_scenario_still_runs(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = demo
    assert done.returncode == 1 and done.stderr == ""
    assert re.search(r"^  measurements +failed\n    .*a100", done.stdout, re.M), done.stdout
    assert "  failed after " in done.stdout and "  done after " in done.stdout and done.stdout.count("report: ") == 1
    (comparison,) = ArtifactStore(folder / "artifacts").list(Kind.COMPARISON)
    assert comparison.startswith("h100_8b_single-")


def test_one_line_a_step_with_its_seconds_then_the_answer(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Nothing that Dagster, the engine or a library says about itself, no path that is not there at the end."""
    folder, done = demo
    all_lines = done.stdout.strip().splitlines()
    lines = all_lines[next(place for place, line in enumerate(all_lines) if line.startswith("h100_8b_single: ")) :]
    # On a busy machine a step says something after ten seconds, and its name comes again with its seconds.
    end = next(place for place, line in enumerate(lines) if line.startswith("  done"))
    lines[1:end] = [line for line in lines[1:end] if not re.fullmatch(r"  \w+ +|    \S.*", line)]
    steps = [re.fullmatch(r"  (\w+) +\d+\.\d s", line) for line in lines[1:7]]
    assert [step and step[1] for step in steps][-5:] != [None] * 5 and all(steps), lines
    names = {step[1] for step in steps if step}
    assert {"measurements", "vidur_metrics", "comparison_report"} <= names and not {"capacity", "sweep"} & names
    assert re.fullmatch(r"  done after \d+ s", lines[7])
    (directory,) = (folder / "artifacts" / "comparisons").iterdir()
    assert lines[9] == "Vidur against vllm: qwen3-8b on h100, scenario h100_8b_single"
    assert sum(bool(re.match(r"(TTFT|ITL|E2E) P(50|90) ", line)) for line in lines) == 6
    assert lines[-3:] == [
        f"report: {directory / 'report.html'}",
        f"as text: {directory / 'summary.md'}",
        "in the UI (make ui): http://127.0.0.1:3456/assets/comparison_report?view=partitions&partition=h100_8b_single",
    ]
    assert not re.search(r"DEBUG|INFO|did not yield|Warning|\.staging", done.stdout)
    for path in re.findall(r"/\S+", "\n".join(lines).replace("http://", "")):
        assert Path(path).exists() or path.startswith("/assets/") or "/" not in path[1:], path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_cancelled_ends_says_so_and_is_the_last(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "home").mkdir()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "gst_assets.cli", "run", "h100_8b_single", "h100_8b_quarter"],
        cwd=PROJECT_ROOT,
        env={
            **os.environ,
            "GST_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
            "DAGSTER_HOME": str(tmp_path / "home"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            assert process.stdout is not None
            told = b""
            while b"vidur_metrics" not in told:
                read = os.read(process.stdout.fileno(), 4096)
                assert read, told.decode()  # it ended before
                told += read
            process.send_signal(number)
            told += process.communicate(timeout=600)[0]
        finally:
            process.kill()
    assert process.returncode == 1
    # On a busy machine a later step may have begun, or none be under way.
    assert re.search(rb"\n  \w+ +(cancelled|left out)\n(  \w+ +left out\n)*  cancelled after \d+ s\n$", told), told
    assert b"h100_8b_quarter" not in told and b"Interrupted" not in told


# --- what a step says while it works ----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _step_lines(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, seconds_apart: float) -> str:
    """What stands on `stream` after one step that said four things, the last as a warning, `seconds_apart` from each
    other."""
    now = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now) * seconds_apart)
    monkeypatch.setattr(sys, "stdout", stream)

    @dg.op
    def measure(context):  # type: ignore[no-untyped-def]  # Dagster takes no annotation that is text
        for said in ("starting", "40 of 136", "100 of 136"):
            context.log.info(said)
        context.log.debug("unseen")
        context.log.warning("late")
        context.log.info("136 of 136")

    @dg.job(logger_defs={LOGGER: step_lines})
    def job() -> None:
        measure()

    assert job.execute_in_process(run_config={"loggers": {LOGGER: {}}}).success
    return stream.getvalue()


def test_in_a_terminal_what_a_step_says_is_behind_its_name_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = _step_lines(Terminal(), monkeypatch, seconds_apart=0)
    name = f"  {'measure':<28}"
    assert written.startswith(
        f"{name}{ERASE}{name}starting{ERASE}{name}40 of 136{ERASE}{name}100 of 136{ERASE}{name}\n    late\n{ERASE}   "
        f" 136 of 136{ERASE}{name}"
    )
    assert re.search(r" +\d+\.\d s\n$", written) and "unseen" not in written


def test_elsewhere_it_is_a_line_after_ten_seconds_of_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(
        r"  measure {21}\n    late\n  measure {21} +\d+\.\d s\n",
        _step_lines(io.StringIO(), monkeypatch, seconds_apart=0),
    )
    spaced = _step_lines(io.StringIO(), monkeypatch, seconds_apart=11)
    assert re.fullmatch(
        r"  measure {21}\n    starting\n    40 of 136\n    100 of 136\n    late\n    136 of 136\n  measure {21}"
        r" +\d+\.\d s\n",
        spaced,
    )


def test_what_comes_after_a_failed_step_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)

    @dg.op
    def measure() -> int:
        raise ValueError("no engine here")

    @dg.op
    def simulate(measured) -> int:  # type: ignore[no-untyped-def]  # Dagster takes no annotation that is text
        return int(measured)

    @dg.op
    def compare(simulated) -> None: ...  # type: ignore[no-untyped-def]

    @dg.job(logger_defs={LOGGER: step_lines})
    def job() -> None:
        compare(simulate(measure()))

    assert not job.execute_in_process(run_config={"loggers": {LOGGER: {}}}, raise_on_error=False).success
    assert stream.getvalue() == (
        f"  {'measure':<28}failed\n    ValueError: no engine here\n  {'simulate':<28}not begun\n  {'compare':<28}not begun\n"
    )


def test_a_home_that_is_not_there_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "none"))
    with pytest.raises(EnvironmentVariableError, match=r"DAGSTER_HOME=.*none: no such directory\. Make it, or unset"):
        materialize(["h100_8b_single"])
