"""Recorded runs: packing, expanding, and every way in which one may not fit. The runs are the ones the repository
keeps."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts import packed_files
from gst_assets.contracts.documents import Hydra, WorkloadMeta
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine import recorded
from gst_assets.engine.recorded import RecordedRun, chosen_runs, expand, list_recorded, pack
from gst_assets.errors import ArtifactError, ContractError, EngineError, GstError, ScenarioError, WorkloadError
from gst_assets.provenance import PROJECT_ROOT, sha256_bytes
from gst_assets.scenario import load_scenario, resolve_path

KEPT = PROJECT_ROOT / "data" / "recorded"
SINGLE = KEPT / "h100_8b_single"
RECORDED = (
    *(f"h100_8b_{load}" for load in ("single", "quarter", "half", "high", "document", "prefix")),
    *(f"h200x2_32b_{load}" for load in ("quarter", "half", "high")),
    "h200_30b_a3b_quarter",
    "h100_llama_8b_quarter",
)
LIMIT_BYTES = 5 * 2**18
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
            assert all(sha256_bytes(contents(directory)[name]) == run.meta.sha256[name] for name in run.meta.sha256)
            assert contents(pack(directory, tmp_path / "packed")) == contents(run.directory)
            assert not Path(run.meta.workload_dir).is_absolute()
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < LIMIT_BYTES


def test_a_round_trip_keeps_every_byte_and_packing_again_gives_the_same_bytes(kept: Path, tmp_path: Path) -> None:
    run = expand(kept, tmp_path / "runs")
    packed = pack(run, tmp_path / "packed")
    assert packed == tmp_path / "packed" / run.name
    assert contents(expand(packed, tmp_path / "again")) == contents(run)
    assert contents(pack(run, tmp_path / "twice")) == contents(packed)
    assert {name for name in contents(packed) if name.endswith(".csv")} == set()


HEADER = b"request_id,token_index,token_time_ns,token_latency_ns"
TIMES = st.lists(st.lists(st.integers(0, 10**15), max_size=6), max_size=5)


@given(TIMES, st.booleans(), st.booleans())
@settings(max_examples=200)
def test_a_token_table_comes_back_as_it_was(requests: list[list[int]], has_ids: bool, has_line_end: bool) -> None:
    """Times in no order too: what the contract says of them is not for packing to judge."""
    lines = [HEADER + b",token_id" * has_ids]
    for number, times in enumerate(requests):
        gaps = [0, *(time - before for before, time in pairwise(times))]
        for index, (time, gap) in enumerate(zip(times, gaps, strict=False)):
            lines.append(b"%d,%d,%d,%d" % (number, index, time, gap) + b",%d" % (index * 7) * has_ids)
    table = b"\n".join(lines) + b"\n" * has_line_end
    short = recorded._without_latencies(table, Path("t.csv"))
    assert b"token_latency_ns" not in short
    assert short.count(b",") == table.count(b",") - len(lines)
    assert recorded._with_latencies(short, Path("t.csv"), "") == table


@given(TIMES.filter(any), st.data())
@settings(max_examples=200)
def test_a_token_table_with_one_other_latency_is_refused(requests: list[list[int]], data: st.DataObject) -> None:
    rows = [[number, index, time, 0] for number, times in enumerate(requests) for index, time in enumerate(times)]
    for before, row in pairwise(rows):
        row[3] = row[2] - before[2] if row[1] else 0
    wrong = data.draw(st.integers(0, len(rows) - 1))
    rows[wrong][3] += data.draw(st.integers(-3, 3).filter(bool))
    table = b"\n".join([HEADER, *(b"%d,%d,%d,%d" % tuple(row) for row in rows), b""])
    with pytest.raises(ArtifactError, match=rf"t\.csv: cannot be packed: line {wrong + 2} is "):
        recorded._without_latencies(table, Path("t.csv"))


def put_tokens(run: Path, table: bytes) -> None:
    """Another table of tokens, with its digest, as a program that writes such a run would have it."""
    (run / "token_metrics.csv").write_bytes(table)
    change_meta(run, lambda values: values["sha256"].update({"token_metrics.csv": sha256_bytes(table)}))


REFUSED = {
    "a latency that does not follow": (
        HEADER + b"\n0,0,50,0\n0,1,90,41\n",
        "line 3 is 0,1,90,41, expected 0,1,90,40: a latency is 0 at token_index 0, else the time since the token of the"
        " line before. Correct the table",
    ),
    "a first latency": (HEADER + b"\n0,0,50,50\n", "line 2 is 0,0,50,50, expected 0,0,50,0: "),
    "other digits": (HEADER + b"\n0,0,50,0\n0,1,90,040\n", "line 3 is 0,1,90,040, expected 0,1,90,40: "),
    "requests in turns": (
        HEADER + b"\n0,0,50,0\n1,0,60,0\n0,1,90,40\n",
        "line 4 is 0,1,90,40, expected 0,1,90,30: ",
    ),
    "carriage returns": (HEADER + b"\r\n0,0,50,0\r\n", "its columns are request_id,token_index,token_time_ns,"),
    "an empty line": (HEADER + b"\n\n0,0,50,0\n", "line 2 is , expected a request, an index and a time in ns. Correct"),
    "columns in another order": (
        b"token_index,request_id,token_time_ns,token_latency_ns\n0,0,50,0\n",
        "its columns are token_index,request_id,token_time_ns,token_latency_ns, expected those of the contract",
    ),
    "no latencies": (b"request_id,token_index,token_time_ns\n0,0,50\n", "its columns are "),
    "nothing": (b"", "its columns are "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_table_that_would_not_come_back_is_not_packed(kept: Path, tmp_path: Path, name: str) -> None:
    table, says = REFUSED[name]
    run = expand(kept, tmp_path / "runs")
    put_tokens(run, table)
    with pytest.raises(ArtifactError) as raised:
        pack(run, tmp_path / "packed")
    print(raised.value)
    assert f"{run / 'token_metrics.csv'}: " in str(raised.value) and says in str(raised.value)
    assert list((tmp_path / "packed").iterdir()) == []


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
    table = directory / "token_metrics.csv.xz"
    table.write_bytes(lzma.compress(lzma.decompress(table.read_bytes()).replace(b"7", b"8", 1)))


def as_packed_before(directory: Path) -> Path:
    """The recorded run as earlier versions stored it: whole tables as gzip files."""
    run = expand(directory, directory.parent.parent / "before")
    for name in [name for name in contents(run) if name.endswith(".csv")]:
        (directory / f"{name}.xz").unlink()
        (directory / f"{name}.gz").write_bytes(gzip.compress((run / name).read_bytes()))
    return run


def test_runs_that_earlier_versions_packed_are_read(kept: Path, tmp_path: Path) -> None:
    run = as_packed_before(kept)
    assert {name for name in contents(kept) if name.endswith(".xz")} == set()
    assert contents(expand(kept, tmp_path / "runs")) == contents(run)
    (kept / "token_metrics.csv.gz").write_bytes((kept / "token_metrics.csv.gz").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"token_metrics\.csv\.gz: not a whole gzip file \(cut off\)"):
        expand(kept, tmp_path / "cut")


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_what_a_packed_file_hides_is_not_unpacked_beyond_a_bound(
    suffix: str, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB of zeros in 64 KiB or less, with a bound of 1 MiB in place of the true one."""
    if suffix == "gz":
        as_packed_before(kept)
    monkeypatch.setattr(packed_files, "MOST_BYTES", 1 << 20)
    zeros = gzip.compress(bytes(64 << 20)) if suffix == "gz" else lzma.compress(bytes(64 << 20), preset=0)
    first = next(name for name in list_recorded(kept.parent)[0].meta.sha256 if name.endswith(".csv"))
    (kept / f"{first}.{suffix}").write_bytes(zeros)
    tracemalloc.start()  # after the zeros are gone
    try:
        with pytest.raises(ArtifactError, match=rf"{first}\.{suffix}: more than 1048576 bytes when unpacked"):
            expand(kept, tmp_path / "runs")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def cut(directory: Path) -> None:
    table = directory / "token_metrics.csv.xz"
    table.write_bytes(table.read_bytes()[:-500])


def flip(directory: Path) -> None:
    table = directory / "token_metrics.csv.xz"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 0xFF
    table.write_bytes(data)


def listed_as(name: str) -> Callable[[Path], object]:
    return lambda directory: change_meta(directory, lambda values: values["sha256"].update({name: "0" * 64}))


def stored_tokens(table: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / "token_metrics.csv.xz").write_bytes(lzma.compress(table))


def asks_for_memory() -> bytes:
    """An xz file of one byte, whose decoder would need 3 GiB: the size of its dictionary in the block's header, and
    that header's checksum, are changed."""
    data = bytearray(lzma.compress(b"a", preset=0))
    size = (data[12] + 1) * 4
    header = data[12 : 12 + size]
    header[header.index(b"\x21\x01") + 2] = 39  # of 40: 3 GiB
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    data[12 : 12 + size] = header
    return bytes(data)


SPOILED: dict[str, tuple[Callable[[Path], object], type[GstError], str]] = {
    "altered": (
        other_content,
        ArtifactError,
        "token_metrics.csv.xz: its content differs from the digest of token_metrics.csv",
    ),
    "altered text": (lambda d: (d / "summary.md").write_text("x"), ArtifactError, "summary.md: its content differs"),
    "missing": (
        lambda d: (d / "iterations.csv.xz").unlink(),
        ArtifactError,
        "iterations.csv.xz: missing, but run_meta.json lists iterations.csv",
    ),
    "not xz": (
        lambda d: (d / "request_metrics.csv.xz").write_text("request_id\n"),
        ArtifactError,
        "request_metrics.csv.xz: not a whole xz file (",
    ),
    "empty": (lambda d: (d / "request_metrics.csv.xz").write_bytes(b""), ArtifactError, "request_metrics.csv.xz: "),
    "two streams": (
        lambda d: (d / "request_metrics.csv.xz").write_bytes((d / "request_metrics.csv.xz").read_bytes() * 2),
        ArtifactError,
        "request_metrics.csv.xz: not a whole xz file (bytes behind its end)",
    ),
    "another format of lzma": (
        lambda d: (d / "request_metrics.csv.xz").write_bytes(lzma.compress(b"a", lzma.FORMAT_ALONE)),
        ArtifactError,
        "request_metrics.csv.xz: not a whole xz file (",
    ),
    "3 GiB of memory": (
        lambda d: (d / "request_metrics.csv.xz").write_bytes(asks_for_memory()),
        ArtifactError,
        "request_metrics.csv.xz: not a whole xz file (Memory usage limit exceeded",
    ),
    "with latencies": (
        stored_tokens(b"request_id,token_index,token_time_ns,token_latency_ns\n0,0,5,0\n"),
        ArtifactError,
        "token_metrics.csv.xz: its content differs from the digest of token_metrics.csv",
    ),
    "no numbers": (
        stored_tokens(b"request_id,token_index,token_time_ns\n0,0,5\n0,x,\x1b[31m\n"),
        ArtifactError,
        "token_metrics.csv.xz: line 3 is 0,x,\ufffd[31m, expected a request, an index and a time in ns. Restore it",
    ),
    "too few fields": (
        stored_tokens(b"request_id,token_index,token_time_ns\n0,0\n"),
        ArtifactError,
        "token_metrics.csv.xz: line 2 is 0,0, expected a request, an index and a time in ns. Restore it",
    ),
    "numbers too long to tell apart": (
        stored_tokens(b"request_id,token_index,token_time_ns\n0,0,-%s\n0,1,%s\n" % (b"9" * 4300, b"9" * 4300)),
        ArtifactError,
        "token_metrics.csv.xz: line 3 is 0,1,999",
    ),
    "cut off": (cut, ArtifactError, "token_metrics.csv.xz: not a whole xz file ("),
    "flipped bits": (flip, ArtifactError, "token_metrics.csv.xz: not a whole xz file ("),
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


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_a_packed_run_is_not_packed_again(suffix: str, kept: Path, tmp_path: Path) -> None:
    if suffix == "gz":
        as_packed_before(kept)
    with pytest.raises(ArtifactError) as raised:
        pack(kept, tmp_path / "packed")
    says = str(raised.value)
    assert re.match(
        rf"{kept}: already packed: it has \w+\.csv\.{suffix}\. `gst recorded expand {kept} --out DIR`", says
    )
    assert "emove" not in says


def test_a_plain_run_is_not_unpacked(kept: Path, tmp_path: Path) -> None:
    run = expand(kept, tmp_path / "runs")
    with pytest.raises(ArtifactError) as raised:
        expand(run, tmp_path / "again")
    assert str(raised.value).startswith(f"{run}: this run is plain already: ") and "Restore" not in str(raised.value)
    assert f"Use it as it is, or pack it with `gst recorded pack {run} --out DIR`" in str(raised.value)


@pytest.mark.parametrize("act", [pack, expand])
def test_of_a_folder_of_runs_the_runs_are_to_be_named(act: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    for folder, names in ((SINGLE, "/*/"), (KEPT, "/*/*/")):
        with pytest.raises(ArtifactError) as raised:
            act(folder, tmp_path / "out")
        assert f"Name the runs in it, e.g. {folder}{names}." in str(raised.value)
        assert str(raised.value).startswith(f"{folder}: has no run_meta.json, but ")


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
    assert "(trace_intervals.csv differ). None of its settings does, so a file that it is made from has" in str(error)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["workload.seed=7"], "Undo workload.seed=7 (recorded with 2601), or record this workload."),
        (["model.fold_token_ids=true"], "Undo model.fold_token_ids=true (recorded with false), or record"),
        (["workload.arrivals={kind: poisson, rate_per_s: 3}", "workload.seed=7"], "workload.arrivals.kind=poisson"),
    ],
)
def test_another_workload_names_the_settings_it_follows_from(overrides: list[str], says: str) -> None:
    assert says in str(refusal(list_recorded(SINGLE), overrides, **{"trace_intervals.csv": "9" * 64}))


def test_another_workload_of_a_scenario_of_settings_that_are_gone_names_none() -> None:
    runs = list_recorded(SINGLE)
    params = runs[0].meta.params | {"workload": runs[0].meta.params["workload"] | {"gone": 1}}
    old = [replace(run, meta=run.meta.model_copy(update={"params": params})) for run in runs]
    error = refusal(old, ["workload.seed=7"], **{"trace_intervals.csv": "9" * 64})
    assert "differ). Undo the workload settings that differ from the recorded run's, or record" in str(error)


def test_a_workload_that_is_not_made_yet_is_not_compared() -> None:
    runs = list_recorded(SINGLE)
    assert chosen_runs(runs, load_scenario("h100_8b_single", ["workload.seed=7"]), None) == runs
    with pytest.raises(EngineError, match=r"engine\.num_kv_blocks: the scenario asks for 5, but"):
        chosen_runs(runs, load_scenario("h100_8b_single", ["engine.num_kv_blocks=5"]), None)


def test_one_run_of_another_workload_among_the_repeats() -> None:
    runs = [*list_recorded(SINGLE)[:4], list_recorded(KEPT / "h100_8b_quarter")[0]]
    assert f"{runs[4].directory}: recorded with workload {runs[4].meta.workload_id}" in str(refusal(runs))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (["hardware.hardware_id=a100", "hardware.device_name=A100"], "measured on 'NVIDIA H100 80GB HBM3' (hardware_id h100), but the scenario asks for hardware_id a100 named like 'A100'"),
        (["hardware.device_name=H100 NVL"], "measured on 'NVIDIA H100 80GB HBM3' (hardware_id h100), but the scenario asks for hardware_id h100 named like 'H100 NVL'"),
        (["hardware.hardware_id=cpu"], "asks for hardware_id cpu"),
        (["model.geometry.num_layers=24"], "run_meta.json: params.model.geometry.num_layers is 36, but the scenario asks for 24. Correct"),
        (["model.geometry.num_layers=24", "model.geometry.tie_word_embeddings=true"], "num_layers is 36, but the scenario asks for 24; params.model.geometry.tie_word_embeddings is false, but the scenario asks for true. Correct"),
        (["model.checkpoint=Qwen/Qwen3-8B"], "params.model.checkpoint is null, but the scenario asks for Qwen/Qwen3-8B"),
        (["model.dtype=float16"], "params.model.dtype is bfloat16, but the scenario asks for float16"),
        (["engine.sampling.temperature=1.0"], "params.engine.sampling.temperature is 0.0, but the scenario asks for 1.0"),
        (["engine.max_num_seqs=128"], "engine.max_num_seqs: the scenario asks for 128, but vllm 0.22.1"),
        (["engine.num_kv_blocks=1000"], "in the scenario, or point engine.recorded to runs of its own."),
        (["engine.async_scheduling=false"], "engine.async_scheduling: the scenario asks for false, but vllm 0.22.1 runs with true"),
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
