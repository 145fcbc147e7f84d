from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.analysis import compare as command
from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.analysis.run_directories import (
    WORKLOAD_SHA256,
    steady,
    write_profile_meta,
    write_real,
    write_simulation,
)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Arguments for two equal repeats and two variants; calibrated is 7 % off."""
    recipe = steady(100, 3)
    return [
        "--real", str(write_real(tmp_path / "r0", recipe)),
        "--real", str(write_real(tmp_path / "r1", recipe)),
        "--sim", str(write_simulation(tmp_path / "k", recipe.scaled(0.5), "kernels")),
        "--sim", str(write_simulation(tmp_path / "c", recipe.scaled(1.07))),
    ]  # fmt: skip


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a failing command."""
    assert command.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_command_writes_a_complete_directory(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "cmp"
    done = subprocess.run(
        [sys.executable, "-m", "gst_assets.analysis.compare", *runs, "--out", str(out)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("**WARN**: Vidur `calibrated` is within 10 %")
    open_directory(out, Kind.COMPARISON)
    assert read_document(ComparisonMeta, out / "run_meta.json").run_id == "cmp"
    assert [path.name for path in out.parent.iterdir()] == ["cmp"], "no staging directory is left"


def test_no_dagster_is_needed(runs: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from gst_assets.analysis.compare import main; "
        f"assert main({[*runs, '--out', str(tmp_path / 'cmp')]!r}) == 0; "
        "assert not {'dagster', 'vidur', 'vllm', 'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, check=True, capture_output=True)


def test_bands_come_from_the_scenario_or_the_command(runs: list[str], tmp_path: Path) -> None:
    verdicts = {}
    for name, extra in (
        ("plain", []),
        ("wide", ["--pass-band", "0.08"]),
        ("narrow", ["--pass-band", "0.01", "--warn-band", "0.02"]),
    ):
        assert command.main([*runs, "--out", str(tmp_path / name), *extra]) == 0
        verdicts[name] = read_document(ComparisonMeta, tmp_path / name / "run_meta.json").verdict
    assert verdicts == {"plain": "warn", "wide": "pass", "narrow": "fail"}


def test_impossible_bands(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--warn-band", "0.01"], capsys)
    assert "warn_band 0.01 is below pass_band 0.05" in message


def test_an_existing_directory_is_left_alone(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cmp"
    out.mkdir()
    assert "cmp: already exists" in _error([*runs, "--out", str(out)], capsys)
    assert list(out.iterdir()) == []


def test_an_incomplete_run_is_one_error_and_leaves_nothing(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r1" / "run_meta.json").unlink()
    before = sorted(tmp_path.iterdir())
    assert "run_meta.json missing" in _error([*runs, "--out", str(tmp_path / "cmp")], capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_runs_of_different_workloads(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_real(tmp_path / "other", steady(100, 3).with_meta(workload_id="wl-other"))
    message = _error([*runs, "--real", str(other), "--out", str(tmp_path / "cmp")], capsys)
    assert "run r0 is of workload wl-0000000000000001, run other of workload wl-other" in message


def test_one_variant_twice(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_simulation(tmp_path / "c2", steady(100, 3))
    message = _error([*runs, "--sim", str(other), "--out", str(tmp_path / "cmp")], capsys)
    assert "are both of variant 'calibrated'" in message


def test_a_failure_while_writing_leaves_nothing(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_document", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        command.main([*runs, "--out", str(tmp_path / "cmp")])
    assert sorted(tmp_path.iterdir()) == before


# --- calibration digests ----------------------------------------------------------------------------------------------


def test_a_calibration_workload_is_refused(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": WORKLOAD_SHA256["trace_lengths.csv"]})
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--profile", str(profile)], capsys)
    assert "is one the profile was calibrated on" in message


def test_the_simulations_own_profile_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": "wl-0000000000000001"})
    real = write_real(tmp_path / "r", steady(3, 3))
    sim = write_simulation(tmp_path / "s", steady(3, 3).with_meta(profiling_root=str(profile)))
    message = _error(["--real", str(real), "--sim", str(sim), "--out", str(tmp_path / "cmp")], capsys)
    assert "is one the profile was calibrated on" in message


def test_a_profile_that_was_not_simulated_with(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = write_profile_meta(tmp_path / "profile", {}, mlp_sha256="5" * 64)
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--profile", str(profile)], capsys)
    assert "mlp.csv is not the file that" in message


@pytest.mark.parametrize("mlp", ["4" * 64, "5" * 64], ids=["held out", "profile measured again since"])
def test_whether_the_check_was_possible_is_stated(tmp_path: Path, mlp: str) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": "8" * 64}, mlp_sha256=mlp)
    real = write_real(tmp_path / "r", steady(3, 3))
    sim = write_simulation(tmp_path / "s", steady(3, 3).with_meta(profiling_root=str(profile)))
    assert command.main(["--real", str(real), "--sim", str(sim), "--out", str(tmp_path / "cmp")]) == 0
    unchecked = "not checked that this workload is held out" in (tmp_path / "cmp" / "summary.md").read_text()
    assert unchecked == (mlp == "5" * 64)
