"""Recorded runs: packing, expanding, and every way in which one may not fit. The runs are the ones the repository
keeps."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from gst_assets.contracts.documents import Hydra, WorkloadMeta
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine import recorded
from gst_assets.engine.recorded import RecordedRun, chosen_runs, expand, list_recorded, pack
from gst_assets.errors import ArtifactError, ContractError, EngineError, GstError, ScenarioError, WorkloadError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario, resolve_path

KEPT = PROJECT_ROOT / "data" / "recorded"
SINGLE = KEPT / "h100_8b_single"
RECORDED = tuple(f"h100_8b_{load}" for load in ("single", "quarter", "half", "high", "document"))
LIMIT_BYTES = 3 * 2**20
"""Of one scenario's recorded runs: the repository travels whole to GPU hosts."""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of one recorded run, to be spoiled."""
    source = list_recorded(SINGLE)[0].directory
    return Path(shutil.copytree(source, tmp_path / "kept" / source.name))


def change_meta(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "run_meta.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2) + "\n")


def test_edited_metadata_of_a_listed_run_is_refused_and_a_run_that_vanished_is_told(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SINGLE, tmp_path / "kept"))
    first, second, *_ = (run.directory for run in list_recorded(copy))
    change_meta(second, lambda values: values.update(degraded=True))
    for read in (lambda: list_recorded(copy), lambda: expand(second, tmp_path / "runs")):
        with pytest.raises(
            ArtifactError, match=rf"{second}/run_meta\.json: changed after it was written: .*Restore it"
        ):
            read()
    shutil.rmtree(second)
    with pytest.raises(ArtifactError, match=rf"{second}: listed in {copy}/sha256sums\.txt, but not there\. Restore"):
        list_recorded(copy)
    shutil.copytree(first, copy / "h100_8b_single-slipped-in-r9")
    with pytest.raises(ArtifactError, match=r"slipped-in-r9/run_meta\.json: not listed in .*, so it is not read"):
        list_recorded(copy)
    # Recorded before there were listings: as good as it was.
    shutil.rmtree(copy / "h100_8b_single-slipped-in-r9")
    (copy / "sha256sums.txt").unlink()
    assert len(list_recorded(copy)) == 4


# --- pack and expand --------------------------------------------------------------------------------------------------


def test_every_kept_run_expands_to_a_complete_run_directory(tmp_path: Path) -> None:
    folders = sorted(path for path in KEPT.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == sorted(RECORDED)
    for folder in folders:
        runs = list_recorded(folder)
        assert len(runs) >= 3
        assert len({run.meta.workload_id for run in runs}) == 1
        for run in runs:
            directory = expand(run.directory, tmp_path)
            assert directory == tmp_path / run.meta.run_id
            open_directory(directory, Kind.REAL_RUN)
            assert set(contents(directory)) == {*run.meta.sha256, "run_meta.json"}
            assert not Path(run.meta.workload_dir).is_absolute()
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < LIMIT_BYTES


def test_a_round_trip_keeps_every_byte_and_packing_again_gives_the_same_bytes(kept: Path, tmp_path: Path) -> None:
    run = expand(kept, tmp_path / "runs")
    packed = pack(run, tmp_path / "packed")
    assert packed == tmp_path / "packed" / run.name
    assert contents(expand(packed, tmp_path / "again")) == contents(run)
    assert contents(pack(run, tmp_path / "twice")) == contents(packed)
    assert {name for name in contents(packed) if name.endswith(".csv")} == set()
    for name, data in contents(packed).items():
        if name.endswith(".gz"):
            # RFC 1952: no flags (so no file name), and a time of 0, "no time stamp".
            assert data[3] == 0 and data[4:8] == bytes(4)


def test_an_absolute_workload_dir_becomes_the_contracts_place_and_nothing_else_changes(
    kept: Path, tmp_path: Path
) -> None:
    run = expand(kept, tmp_path / "runs")
    change_meta(run, lambda values: values.update(workload_dir="/somewhere/else"))
    before, after = (run / "run_meta.json").read_text(), (pack(run, tmp_path / "packed") / "run_meta.json").read_text()
    workload_id = json.loads(before)["workload_id"]
    assert after == before.replace('"/somewhere/else"', f'"workloads/{workload_id}"')
    assert contents(expand(tmp_path / "packed" / run.name, tmp_path / "again"))["run_meta.json"] == after.encode()


def other_content(directory: Path) -> None:
    table = directory / "token_metrics.csv.gz"
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()).replace(b"7", b"8", 1)))


def test_what_a_gzip_hides_is_not_unpacked_beyond_a_bound(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB of zeros in 64 KiB, with a bound of 1 MiB in place of the true one."""
    monkeypatch.setattr(recorded, "_MOST_BYTES", 1 << 20)
    (kept / "token_metrics.csv.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    tracemalloc.start()  # after the zeros are gone
    try:
        with pytest.raises(ArtifactError, match=r"token_metrics\.csv\.gz: more than 1048576 bytes when unpacked"):
            expand(kept, tmp_path / "runs")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def cut(directory: Path) -> None:
    table = directory / "token_metrics.csv.gz"
    table.write_bytes(table.read_bytes()[:-500])


def flip(directory: Path) -> None:
    table = directory / "token_metrics.csv.gz"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 0xFF
    table.write_bytes(data)


def listed_as(name: str) -> Callable[[Path], object]:
    return lambda directory: change_meta(directory, lambda values: values["sha256"].update({name: "0" * 64}))


SPOILED: dict[str, tuple[Callable[[Path], object], type[GstError], str]] = {
    "altered": (
        other_content,
        ArtifactError,
        "token_metrics.csv.gz: its content differs from the digest of token_metrics.csv",
    ),
    "altered text": (lambda d: (d / "summary.md").write_text("x"), ArtifactError, "summary.md: its content differs"),
    "missing": (
        lambda d: (d / "iterations.csv.gz").unlink(),
        ArtifactError,
        "iterations.csv.gz: missing, but run_meta.json lists iterations.csv",
    ),
    "not gzip": (
        lambda d: (d / "request_metrics.csv.gz").write_text("request_id\n"),
        ArtifactError,
        "request_metrics.csv.gz: not a whole gzip file (",
    ),
    "empty": (lambda d: (d / "request_metrics.csv.gz").write_bytes(b""), ArtifactError, "request_metrics.csv.gz: "),
    "cut off": (cut, ArtifactError, "token_metrics.csv.gz: not a whole gzip file ("),
    "flipped bits": (flip, ArtifactError, "token_metrics.csv.gz: not a whole gzip file ("),
    "no metadata": (lambda d: (d / "run_meta.json").unlink(), ArtifactError, "run_meta.json missing"),
    "metadata cut off": (
        lambda d: (d / "run_meta.json").write_text("{"),
        ContractError,
        "run_meta.json: line 1: not valid JSON",
    ),
    "a simulation": (
        lambda d: change_meta(d, lambda values: values.update(run_type="vidur")),
        ArtifactError,
        "run_type is 'vidur', expected 'real'",
    ),
    "other run id": (
        lambda d: change_meta(d, lambda values: values.update(run_id="../../x")),
        ArtifactError,
        "run_id is '../../x', expected the directory's name",
    ),
    "file outside": (listed_as("../x.csv"), ArtifactError, "key sha256: '../x.csv' is not a file of a run directory"),
    "metadata without a key": (
        lambda d: change_meta(d, lambda values: values.pop("backend")),
        ContractError,
        "key backend missing",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_recorded_run_is_refused_and_nothing_is_left(kept: Path, tmp_path: Path, name: str) -> None:
    spoil, error, says = SPOILED[name]
    spoil(kept)
    with pytest.raises(error) as raised:
        expand(kept, tmp_path / "runs")
    print(raised.value)
    assert says in str(raised.value) and str(kept) in str(raised.value)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_an_incomplete_or_altered_run_directory_is_not_packed(kept: Path, tmp_path: Path) -> None:
    run = expand(kept, tmp_path / "runs")
    (run / "token_metrics.csv").write_text("request_id\n")
    with pytest.raises(ArtifactError, match=r"token_metrics\.csv: content differs"):
        pack(run, tmp_path / "packed")
    (run / "run_meta.json").unlink()
    with pytest.raises(ArtifactError, match=r"run_meta\.json missing"):
        pack(run, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_nothing_is_overwritten(kept: Path, tmp_path: Path) -> None:
    run = expand(kept, tmp_path / "runs")
    before = contents(run)
    with pytest.raises(ArtifactError, match=r"already exists\. Recorded runs are never overwritten"):
        expand(kept, tmp_path / "runs")
    assert contents(run) == before and [path.name for path in run.parent.iterdir()] == [run.name]
    with pytest.raises(ArtifactError, match="cannot be written"):
        expand(kept, run / "summary.md")


# --- listing and choosing ---------------------------------------------------------------------------------------------


def test_runs_are_listed_in_the_order_of_measuring() -> None:
    runs = list_recorded(SINGLE)
    assert [run.meta.repeat_index for run in runs] == list(range(len(runs)))
    assert [run.meta.started_at for run in runs] == sorted(run.meta.started_at for run in runs)


def test_a_folder_without_runs_or_with_half_a_run(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(ArtifactError, match=rf"{name}: no recorded runs there.* or record with `gst recorded pack"):
            list_recorded(tmp_path / name)
    (kept.parent / "README.md").write_text("notes are no run")
    assert len(list_recorded(kept.parent)) == 1
    (kept.parent / "half").mkdir()
    with pytest.raises(ArtifactError, match=r"half: run_meta\.json missing"):
        list_recorded(kept.parent)


def workload_of(run: RecordedRun, **sha256: str) -> WorkloadMeta:
    """The metadata of the workload that a run was recorded with, some digests replaced."""
    return WorkloadMeta(
        workload_id="wl-of-the-scenario",
        created_at=datetime.now(timezone.utc),
        model="qwen3-8b",
        seed=0,
        tokenizer_ref="data/tokenizer/qwen3",
        tokenizer_sha256="0" * 64,
        git_commit=None,
        git_dirty=None,
        sha256=run.meta.workload_sha256 | sha256,
        num_requests=8,
        params={},
        hydra=Hydra(config_path="", config_name=""),
    )


def refusal(runs: Sequence[RecordedRun], overrides: Sequence[str] = (), **sha256: str) -> GstError:
    with pytest.raises(GstError) as raised:
        chosen_runs(runs, load_scenario("h100_8b_single", overrides), workload_of(runs[0], **sha256))
    print(raised.value)
    return raised.value


def test_the_first_repeats_are_chosen() -> None:
    runs = list_recorded(SINGLE)
    assert chosen_runs(runs, load_scenario("h100_8b_single"), workload_of(runs[0])) == runs
    few = load_scenario("h100_8b_single", ["replay.repeats=2"])
    assert chosen_runs(runs, few, workload_of(runs[0])) == runs[:2]


def test_fewer_runs_than_repeats() -> None:
    error = refusal(list_recorded(SINGLE), ["replay.repeats=9"])
    assert isinstance(error, EngineError)
    assert f"{SINGLE}: 5 runs are recorded, but replay.repeats asks for 9. Set replay.repeats=5" in str(error)


def test_another_workload_names_both_and_the_files() -> None:
    runs = list_recorded(SINGLE)
    error = refusal(runs, **{"trace_intervals.csv": "9" * 64})
    assert isinstance(error, WorkloadError)
    recorded_id = runs[0].meta.workload_id
    assert f"recorded with workload {recorded_id}, but the scenario's workload is wl-of-the-scenario" in str(error)
    assert "(trace_intervals.csv differ)" in str(error)


def test_one_run_of_another_workload_among_the_repeats() -> None:
    runs = [*list_recorded(SINGLE)[:4], list_recorded(KEPT / "h100_8b_quarter")[0]]
    assert f"{runs[4].directory}: recorded with workload {runs[4].meta.workload_id}" in str(refusal(runs))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (["hardware.hardware_id=a100", "hardware.device_name=A100"], "measured on 'NVIDIA H100 80GB HBM3' (hardware_id h100), but the scenario asks for hardware_id a100 named like 'A100'"),
        (["hardware.device_name=H100 NVL"], "measured on 'NVIDIA H100 80GB HBM3' (hardware_id h100), but the scenario asks for hardware_id h100 named like 'H100 NVL'"),
        (["hardware.hardware_id=cpu"], "asks for hardware_id cpu"),
        (["model.geometry.num_layers=24"], "params.model.geometry is num_layers=36"),
        (["model.checkpoint=Qwen/Qwen3-8B"], "params.model.checkpoint is None, but the scenario asks for Qwen/Qwen3-8B"),
        (["model.dtype=float16"], "params.model.dtype is bfloat16, but the scenario asks for float16"),
        (["engine.sampling.temperature=1.0"], "params.engine.sampling.temperature is 0.0, but the scenario asks for 1.0"),
        (["engine.max_num_seqs=128"], "engine.max_num_seqs: the scenario asks for 128, but vllm 0.22.1"),
        (["engine.num_kv_blocks=1000"], "engine.num_kv_blocks: the scenario asks for 1000"),
        (["engine.async_scheduling=false"], "engine.async_scheduling: the scenario asks for False"),
    ],
)  # fmt: skip
def test_other_hardware_model_or_settings(override: list[str], says: str) -> None:
    error = refusal(list_recorded(SINGLE), override)
    assert isinstance(error, EngineError)
    assert says in str(error) and str(SINGLE) in str(error)


def test_metadata_without_the_scenario_it_was_measured_with() -> None:
    run = list_recorded(SINGLE)[0]
    bare = replace(run, meta=run.meta.model_copy(update={"params": {}}))
    with pytest.raises(ContractError, match=r"run_meta\.json: key params\.model: "):
        chosen_runs([bare] * 5, load_scenario("h100_8b_single"), workload_of(run))


# --- scenarios and command line ---------------------------------------------------------------------------------------


def test_the_scenario_names_recorded_runs_if_and_only_if_it_plays_them_back() -> None:
    with pytest.raises(ScenarioError, match="engine: backend recorded requires recorded"):
        load_scenario("smoke", ["engine.backend=recorded"])
    with pytest.raises(ScenarioError, match="engine: recorded belongs to backend recorded, but backend is vllm"):
        load_scenario("smoke", ["engine.recorded=data/recorded/h100_8b_half"])


@pytest.mark.parametrize("name", RECORDED)
def test_the_scenario_says_what_was_measured_and_two_overrides_measure_it_again(name: str) -> None:
    kept, live = load_scenario(name), load_scenario(name, ["engine.backend=vllm", "engine.recorded=null"])
    assert kept.engine.backend == recorded.BACKEND and live.engine.backend == "vllm"
    assert resolve_path(kept.engine.recorded or "") == KEPT / name
    same = ("model", "hardware", "workload", "replay")
    for run in list_recorded(KEPT / name):
        assert {key: run.meta.params[key] for key in same} == {key: live.model_dump(mode="json")[key] for key in same}
        # The simulation must assume what the recorded engine had.
        assert kept.engine.num_kv_blocks == run.meta.engine_settings.num_kv_blocks


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    # None in sys.modules: what a GPU host need not have cannot be imported.
    script = (
        "import sys\n"
        "for name in ('dagster', 'pandera', 'vidur', 'omegaconf', 'vllm', 'torch'): sys.modules[name] = None\n"
        "from gst_assets.cli import main\n"
        "main()"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600
    )


def test_the_command_packs_on_a_bare_host_and_says_what_is_wrong(kept: Path, tmp_path: Path) -> None:
    done = command("recorded", "expand", str(kept), "--out", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip())
    done = command("recorded", "pack", str(run), "--out", str(tmp_path / "packed"))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "packed" / run.name).keys() == contents(kept).keys()
    wrong = command("recorded", "pack", str(run), "--out", str(tmp_path / "packed"))
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and "already exists" in wrong.stderr
