from __future__ import annotations

import csv
import hashlib
import json
import re
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
from gst_assets_tests.gst_command import run_gst


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Directories of five equal repeats and two variants; calibrated is 7 % off."""
    recipe = steady(100, 3)
    return [
        *(str(write_real(tmp_path / f"r{k}", recipe)) for k in range(5)),
        str(write_simulation(tmp_path / "k", recipe.scaled(0.5), "kernels")),
        str(write_simulation(tmp_path / "c", recipe.scaled(1.07))),
    ]


def _error(arguments: list[str]) -> str:
    """The one line on stderr of a failing command."""
    done = run_gst("compare", *arguments)
    assert done.exit_code == 1
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_the_command_writes_a_complete_directory_without_dagster(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "cmp"
    program = (
        "import atexit, sys; from gst_assets.cli import main; "
        "loaded = lambda: {'dagster', 'vidur', 'vllm', 'torch', 'matplotlib.pyplot'} & set(sys.modules); "
        "atexit.register(lambda: print(sorted(loaded()), file=sys.stderr)); "
        f"sys.argv = ['gst', 'compare', *{runs!r}, '--out', {str(out)!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith("**WARN**: `calibrated` is too slow in all six cells, by 7.0 %")
    open_directory(out, Kind.COMPARISON)
    meta = read_document(ComparisonMeta, out / "run_meta.json")
    assert (meta.run_id, meta.verdict) == ("cmp", "warn")
    assert [path.name for path in out.parent.iterdir()] == ["cmp"], "no staging directory is left"


def test_without_figures_everything_else_is_the_same_and_matplotlib_is_not_loaded(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, simulated = ([Path(one) for one in part] for part in (runs[:5], runs[5:]))
    command.compare_directories(real, simulated, tmp_path / "with")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = [sys.executable, "-m", "gst_assets.cli", "compare", *runs, "--out"]
    subprocess.run(
        [*words, str(tmp_path / "without"), "--no-figures"], cwd=PROJECT_ROOT, check=True, capture_output=True
    )
    done = subprocess.run([*words, str(tmp_path / "lacking")], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: this command needs the package matplotlib, which")
    assert not (tmp_path / "lacking").exists()
    names = [{path.name for path in (tmp_path / out).iterdir()} for out in ("with", "without")]
    assert names[0] - names[1] == {"figs"} and not names[1] - names[0]
    for table in (tmp_path / "with" / "tables").iterdir():
        assert (tmp_path / "without" / "tables" / table.name).read_bytes() == table.read_bytes()
    told, page = ((tmp_path / "without" / name).read_text() for name in ("summary.md", "report.html"))
    assert "figs/" not in told and "<img" not in page and "<figure" not in page
    assert told.splitlines()[0] == (tmp_path / "with" / "summary.md").read_text().splitlines()[0]


def test_bands_come_from_the_scenario_or_the_command(runs: list[str], tmp_path: Path) -> None:
    """Those of the scenario give `warn` (the test above)."""
    verdicts = {}
    for name, extra in (
        ("wide", ["--pass-band", "0.08"]),
        ("narrow", ["--pass-band", "0.01", "--warn-band", "0.02"]),
    ):
        assert run_gst("compare", *runs, "--out", str(tmp_path / name), *extra).exit_code == 0
        verdicts[name] = read_document(ComparisonMeta, tmp_path / name / "run_meta.json").verdict
    assert verdicts == {"wide": "pass", "narrow": "fail"}


def test_a_disk_that_is_full_or_cannot_be_written_is_one_error(runs: list[str], tmp_path: Path) -> None:
    """No file larger than a kilobyte can be written; then `--out` lies below a file."""
    (tmp_path / "file").touch()
    program = (
        "import resource, sys; from gst_assets.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)); "
        f"sys.argv = ['gst', 'compare', *{runs!r}, '--out', sys.argv[1]]; main()"
    )
    out, below = str(tmp_path / "cmp"), str(tmp_path / "file" / "cmp")
    full = subprocess.run(
        [sys.executable, "-c", program, out], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1, full
    assert (
        full.stderr.rstrip()
        == f"error: {out}: cannot be written (File too large). Name another --out, or check the folder and the free"
        " space."
    )
    assert _error([*runs, "--out", below]).startswith(f"error: {below}: cannot be written (")
    assert not list(tmp_path.glob(".cmp*")) and not (tmp_path / "cmp").exists()


def test_impossible_bands(runs: list[str], tmp_path: Path) -> None:
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--warn-band", "0.01"])
    assert "warn_band 0.01 is below pass_band 0.05" in message


def test_an_existing_directory_is_left_alone(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "cmp"
    out.mkdir()
    assert "cmp: already exists" in _error([*runs, "--out", str(out)])
    assert list(out.iterdir()) == []


def test_an_incomplete_run_is_one_error_and_leaves_nothing(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "r1" / "run_meta.json").unlink()
    before = sorted(tmp_path.iterdir())
    assert "run_meta.json missing" in _error([*runs, "--out", str(tmp_path / "cmp")])
    assert sorted(tmp_path.iterdir()) == before


def test_runs_of_different_workloads(runs: list[str], tmp_path: Path) -> None:
    other = write_real(tmp_path / "other", steady(100, 3).with_meta(workload_id="wl-other"))
    message = _error([*runs, str(other), "--out", str(tmp_path / "cmp")])
    assert "run r0 is of workload wl-0000000000000001, run other of workload wl-other" in message


def test_one_variant_twice(runs: list[str], tmp_path: Path) -> None:
    other = write_simulation(tmp_path / "c2", steady(100, 3))
    message = _error([*runs, str(other), "--out", str(tmp_path / "cmp")])
    assert "are both of variant 'calibrated'" in message


def test_a_failure_while_writing_leaves_nothing(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_document", full)
    before = sorted(tmp_path.iterdir())
    assert "cannot be written (No space left on device)" in _error([*runs, "--out", str(tmp_path / "cmp")])
    assert sorted(tmp_path.iterdir()) == before


# --- calibration digests ----------------------------------------------------------------------------------------------


def test_a_calibration_workload_is_refused(runs: list[str], tmp_path: Path) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": WORKLOAD_SHA256["trace_lengths.csv"]})
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--profile", str(profile)])
    assert "is one the profile was calibrated on" in message


def test_the_simulations_own_profile_is_read(tmp_path: Path) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": "wl-0000000000000001"})
    real = write_real(tmp_path / "r", steady(3, 3))
    sim = write_simulation(tmp_path / "s", steady(3, 3).with_meta(profiling_root=str(profile)))
    message = _error([str(real), str(sim), "--out", str(tmp_path / "cmp")])
    assert "is one the profile was calibrated on" in message


def test_a_profile_that_was_not_simulated_with(runs: list[str], tmp_path: Path) -> None:
    profile = write_profile_meta(tmp_path / "profile", {}, mlp_sha256="5" * 64)
    message = _error([*runs, "--out", str(tmp_path / "cmp"), "--profile", str(profile)])
    assert "mlp.csv is not the file that" in message


@pytest.mark.parametrize("mlp", ["4" * 64, "5" * 64], ids=["held out", "profile measured again since"])
def test_whether_the_check_was_possible_is_stated(tmp_path: Path, mlp: str) -> None:
    profile = write_profile_meta(tmp_path / "profile", {"decode": "8" * 64}, mlp_sha256=mlp)
    real = write_real(tmp_path / "r", steady(3, 3))
    sim = write_simulation(tmp_path / "s", steady(3, 3).with_meta(profiling_root=str(profile)))
    assert run_gst("compare", str(real), str(sim), "--out", str(tmp_path / "cmp")).exit_code == 0
    unchecked = "not checked that this workload is held out" in (tmp_path / "cmp" / "summary.md").read_text()
    assert unchecked == (mlp == "5" * 64)


# --- directories that another program wrote ---------------------------------------------------------------------------


def _foreign(
    directory: Path, document: dict[str, object], request_columns: list[str], token_columns: list[str]
) -> Path:
    """A run of 40 requests of 3 tokens by csv, json and hashlib alone: the contract's required keys and columns in the
    given order."""
    directory.mkdir()
    requests, tokens = [], []
    for i in range(40):
        arrival, first = i * 10_000_000, i * 10_000_000 + 20_000_000
        requests.append(
            {
                "request_id": i,
                "arrival_time_ns": arrival,
                "first_token_time_ns": first,
                "ttft_ns": first - arrival,
                "num_prefill_tokens": 8,
                "num_decode_tokens": 3,
                "num_decode_tokens_actual": 3,
                "status": "ok",
            }
        )
        tokens += [
            {
                "request_id": i,
                "token_index": k,
                "token_time_ns": first + k * 4_000_000,
                "token_latency_ns": 4_000_000 * (k > 0),
            }
            for k in range(3)
        ]
    digests = {}
    for name, columns, rows in (
        ("request_metrics.csv", request_columns, requests),
        ("token_metrics.csv", token_columns, tokens),
    ):
        with (directory / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        digests[name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    common = {
        "schema_version": "v1",
        "run_id": directory.name,
        "started_at": "2026-01-02T03:04:05Z",
        "ended_at": "2026-01-02T03:05:05Z",
        "git_commit": None,
        "git_dirty": None,
        "model": "m",
        "hardware": {"hardware_id": "h", "device_name": "d", "device_count": 1},
        "env": {},
        "params": {},
        "hydra": {"config_path": "-", "config_name": "own"},
        "workload_dir": "-",
        "workload_id": "wl-1",
        "workload_sha256": {},
        "sha256": digests,
    }
    (directory / "run_meta.json").write_text(json.dumps({**common, **document}))
    return directory


_SETTINGS = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "block_size": 16,
    "num_kv_blocks": 100,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "dtype": "float16",
    "async_scheduling": False,
    "enforce_eager": True,
    "scheduling_policy": "own",
}
_REAL = {
    "run_type": "real",
    "backend": "own",
    "group_id": "g",
    "repeat_index": 0,
    "num_repeats": 1,
    "warmup": {"num_requests": 8},
    "lateness_ns": {"p50": 0},
    "degraded": False,
    "num_bunched_messages": 0,
    "num_errors": 0,
    "engine_settings": {
        **_SETTINGS,
        "backend": "own",
        "engine_version": "1",
        "max_model_len": 64,
        "attention_backend": "own",
    },
}
_SIMULATED = {
    "run_type": "vidur",
    "profiling_root": "absent",
    "profile_sha256": {},
    "variant": "own",
    "predictor": "own",
    "simulated_settings": _SETTINGS,
    "num_preemptions": 0,
}
_REQUESTS = [
    "status",
    "num_decode_tokens_actual",
    "num_decode_tokens",
    "num_prefill_tokens",
    "ttft_ns",
    "first_token_time_ns",
    "arrival_time_ns",
    "request_id",
]


def test_directories_of_another_program(tmp_path: Path) -> None:
    """Columns back to front, no optional one, no token_latency_ns."""
    real = _foreign(tmp_path / "real", _REAL, _REQUESTS, ["token_time_ns", "token_index", "request_id"])
    sim = _foreign(
        tmp_path / "sim", _SIMULATED, _REQUESTS, ["token_index", "token_latency_ns", "request_id", "token_time_ns"]
    )
    done = run_gst("compare", str(real), str(sim), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0 and done.stdout.startswith(
        "**PASS AT TTFT P50, ITL P50 AND E2E P50, CANNOT JUDGE TTFT P90, ITL P90 AND E2E P90**: `own` is exact in all"
        " six cells. One real "
    )
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "run real: token_metrics.csv has no token_latency_ns; taken as the differences of token_time_ns" in text
    assert "run sim: token_metrics.csv has no" not in text
    assert re.search(
        r"^\| ITL P50 \| \+0\.0 % \| \+0\.0 to \+0\.0( ‡)? \| \*\*\w+\*\* \| 4\.00 \| – \| 4\.00 \| 80 \|$", text, re.M
    )


@pytest.mark.parametrize("column", ["request_id", "token_index", "token_time_ns"])
def test_what_another_program_left_out_is_named(tmp_path: Path, column: str) -> None:
    rest = [one for one in ("request_id", "token_index", "token_time_ns", "token_latency_ns") if one != column]
    real = _foreign(tmp_path / "real", _REAL, _REQUESTS, rest)
    sim = _foreign(tmp_path / "sim", _SIMULATED, _REQUESTS, ["request_id", "token_index", "token_time_ns"])
    message = _error([str(real), str(sim), "--out", str(tmp_path / "out")])
    assert f"token_metrics.csv: column {column} missing" in message
    assert not (tmp_path / "out").exists()


def test_further_simulations_of_a_variant_are_its_seeds(runs: list[str], tmp_path: Path) -> None:
    seeded = steady(100, 3).scaled(1.2).with_meta(params={"simulation": {"seed": 1}})
    other = write_simulation(tmp_path / "c2", seeded)
    assert run_gst("compare", *runs, str(other), "--out", str(tmp_path / "cmp")).exit_code == 0
    meta = read_document(ComparisonMeta, tmp_path / "cmp" / "run_meta.json")
    assert meta.seed_run_dirs == {"kernels": [], "calibrated": [str(other)]}
