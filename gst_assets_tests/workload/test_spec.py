"""The workload directory as a whole: identity from content, equal bytes from separate processes, refusal of altered or
foreign ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import TraceIntervals, TraceLengths
from gst_assets.errors import ArtifactError, ContractError, WorkloadError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload import build, load
from gst_assets.workload.prompts import read_prompts, write_prompts
from gst_assets.workload.spec import (
    INTERVALS_TYPES,
    LENGTHS_TYPES,
    check_joined,
    check_made_for,
    workload_id,
)
from gst_assets_tests.contracts.frames import sample_frame

NAMES = ("prompts.jsonl", "trace_lengths.csv", "trace_intervals.csv")


def committed(scenario: Scenario, root: Path) -> Path:
    """The scenario's workload directory, built and committed without Dagster."""
    with ArtifactStore(root).stage(Kind.WORKLOAD, "unnamed") as staging:
        staging.artifact_id = build(scenario, staging.path).meta.workload_id
        return staging.commit(share=True)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return committed(load_scenario("published_qwen3_prompts"), tmp_path_factory.mktemp("store"))


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gst_assets.scenario import load_scenario; from"
        " gst_assets_tests.workload.test_spec import committed; print(committed(load_scenario('smoke'),"
        " Path(sys.argv[1])))"
    )
    directories = []
    for number in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": number}
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / number)],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        directories.append(Path(run.stdout.strip().splitlines()[-1]))
    assert directories[0].name == directories[1].name
    for name in NAMES:
        assert (directories[0] / name).read_bytes() == (directories[1] / name).read_bytes()


def test_loaded_workload_is_what_was_built(workload: Path) -> None:
    loaded = load(workload)
    assert loaded.meta.workload_id == workload.name == workload_id(loaded.meta.sha256)
    assert loaded.lengths["num_prefill_tokens"].tolist() == [9, 9, 14, 13, 13, 11, 7, 10]
    assert loaded.meta.hydra.config_name == "published_qwen3_prompts"
    assert loaded.meta.params["workload"]["num_decode_tokens"] == 64


def test_identity_changes_with_content_and_not_with_the_scenario_name(workload: Path, tmp_path: Path) -> None:
    same = committed(load_scenario("published_qwen3_prompts", ["replay.repeats=2", "engine.max_num_seqs=4"]), tmp_path)
    other = committed(load_scenario("published_qwen3_prompts", ["workload.num_decode_tokens=65"]), tmp_path)
    assert same.name == workload.name != other.name


def test_altered_incomplete_and_missing_directories_are_refused(tmp_path: Path) -> None:
    directory = committed(load_scenario("published_qwen3_prompts"), tmp_path)
    with pytest.raises(ArtifactError, match="no such directory"):
        load(tmp_path / "none")
    lengths = directory / "trace_lengths.csv"
    original = lengths.read_bytes()
    lengths.write_bytes(original.replace(b",64", b",65", 1))
    with pytest.raises(ArtifactError, match=r"trace_lengths.csv: content differs from the digest"):
        load(directory)
    lengths.write_bytes(original)
    (directory / "workload_meta.json").rename(directory / "elsewhere.json")
    with pytest.raises(ArtifactError, match=r"workload_meta\.json missing"):
        load(directory)


def test_tables_that_disagree_are_refused(tmp_path: Path) -> None:
    directory = committed(load_scenario("published_qwen3_prompts"), tmp_path)
    prompts = read_prompts(directory / "prompts.jsonl")
    write_prompts(prompts[:-1], directory / "prompts.jsonl")
    meta_path = directory / "workload_meta.json"
    meta = json.loads(meta_path.read_text())
    from gst_assets.provenance import sha256_file

    meta["sha256"]["prompts.jsonl"] = sha256_file(directory / "prompts.jsonl")
    meta_path.write_text(json.dumps(meta))
    with pytest.raises(ContractError, match=r"names prompt_id 'p7', which prompts\.jsonl does not have"):
        load(directory)
    del meta["sha256"]["prompts.jsonl"]
    meta_path.write_text(json.dumps(meta))
    with pytest.raises(ArtifactError, match=r"workload_meta\.json: key sha256 does not list prompts\.jsonl"):
        load(directory)


def test_what_was_made_with_other_settings_is_named(workload: Path) -> None:
    made = load_scenario("smoke").model_dump(mode="json")
    check_made_for(
        made, load_scenario("smoke", ["comparison.pass_band=0.01"]), workload, ("workload", "model", "engine"), "x"
    )
    with pytest.raises(
        WorkloadError,
        match=(
            r"built with engine\.max_num_seqs = 32, but scenario smoke now asks for 8\. Materialize"
            r" real_request_metrics again"
        ),
    ):
        other = load_scenario("smoke", ["engine.max_num_seqs=8"])
        check_made_for(made, other, workload, ("workload", "model", "engine"), "real_request_metrics")


def test_traces_of_one_workload_agree() -> None:
    lengths, intervals = sample_frame(TraceLengths), sample_frame(TraceIntervals)
    prompts = lengths["prompt_id"].tolist()
    check_joined(lengths, intervals, prompts, "here")
    with pytest.raises(ContractError, match="here: trace_lengths has 6 requests, trace_intervals 5"):
        check_joined(lengths, intervals[:5], prompts, "here")
    with pytest.raises(ContractError, match=r"row 2 names prompt_id 'prompt_id-2', which prompts.jsonl does not have"):
        check_joined(lengths, intervals, [*prompts[:2], *prompts[3:]], "here")
    others = intervals.assign(request_id=intervals["request_id"] + 1)
    with pytest.raises(ContractError, match="expected the same ones in the same order"):
        check_joined(lengths, others, prompts, "here")


def test_columns_without_pandera_are_those_of_the_contract() -> None:
    assert TraceLengths.column_types()[0] == LENGTHS_TYPES
    assert TraceIntervals.column_types()[0] == INTERVALS_TYPES


def test_a_host_without_pandera_builds_and_loads_the_same_workload(workload: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['pandera'] = None\nfrom pathlib import Path; from gst_assets.scenario import"
        " load_scenario; from gst_assets.workload import build, load\nmade = Path(sys.argv[1]);"
        " build(load_scenario('published_qwen3_prompts'), made, contract=False)\nprint(load(made,"
        " contract=False).meta.workload_id)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == workload.name
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (workload / name).read_bytes()
