"""The workload directory as a whole: identity from content, equal bytes from separate processes, refusal of altered or foreign ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import TraceIntervals, TraceLengths, write_table
from gst_assets.errors import ArtifactError, ContractError, WorkloadError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario, resolve_path
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import read_prompts, write_prompts
from gst_assets.workload.spec import check_made_for, check_same_request, load_workload, workload_id, workload_meta
from gst_assets.workload.tokenizer import load_tokenizer

NAMES = ("prompts.jsonl", "trace_lengths.csv", "trace_intervals.csv")


def build(scenario: Scenario, root: Path) -> Path:
    """A committed workload directory, built with the domain functions alone."""
    tokenizer = load_tokenizer(scenario.model.tokenizer)
    prompts = read_prompts(resolve_path(scenario.workload.prompts))
    lengths = build_trace_lengths(scenario, prompts, tokenizer)
    store = ArtifactStore(root)
    with store.stage(Kind.WORKLOAD, "unnamed") as staging:
        write_prompts(prompts, staging.path / "prompts.jsonl")
        write_table(TraceLengths, lengths, staging.path)
        intervals = build_trace_intervals(scenario.workload.arrivals, len(lengths), scenario.workload.seed)
        write_table(TraceIntervals, intervals, staging.path)
        meta = workload_meta(scenario, tokenizer.sha256, staging.digests(), len(lengths))
        staging.artifact_id = meta.workload_id
        write_document(meta, staging.path / "workload_meta.json")
        return staging.commit(share=True)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(load_scenario("published_qwen3_prompts"), tmp_path_factory.mktemp("store"))


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gst_assets.scenario import load_scenario; "
        "from gst_assets_tests.workload.test_spec import build; print(build(load_scenario('smoke'), Path(sys.argv[1])))"
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
    loaded = load_workload(workload)
    assert loaded.meta.workload_id == workload.name == workload_id(loaded.meta.sha256)
    assert loaded.lengths["num_prefill_tokens"].tolist() == [9, 9, 14, 13, 13, 11, 7, 10]
    assert loaded.meta.hydra.config_name == "published_qwen3_prompts"
    assert loaded.meta.params["workload"]["num_decode_tokens"] == 64


def test_identity_changes_with_content_and_not_with_the_scenario_name(workload: Path, tmp_path: Path) -> None:
    same = build(load_scenario("published_qwen3_prompts", ["replay.repeats=2", "engine.max_num_seqs=4"]), tmp_path)
    other = build(load_scenario("published_qwen3_prompts", ["workload.num_decode_tokens=65"]), tmp_path)
    assert same.name == workload.name != other.name


def test_altered_incomplete_and_missing_directories_are_refused(tmp_path: Path) -> None:
    directory = build(load_scenario("published_qwen3_prompts"), tmp_path)
    with pytest.raises(ArtifactError, match="no such directory"):
        load_workload(tmp_path / "none")
    lengths = directory / "trace_lengths.csv"
    original = lengths.read_bytes()
    lengths.write_bytes(original.replace(b",64", b",65", 1))
    with pytest.raises(ArtifactError, match=r"trace_lengths.csv: content differs from the digest"):
        load_workload(directory)
    lengths.write_bytes(original)
    (directory / "workload_meta.json").rename(directory / "elsewhere.json")
    with pytest.raises(ArtifactError, match=r"workload_meta\.json missing"):
        load_workload(directory)


def test_tables_that_disagree_are_refused(tmp_path: Path) -> None:
    directory = build(load_scenario("published_qwen3_prompts"), tmp_path)
    prompts = read_prompts(directory / "prompts.jsonl")
    write_prompts(prompts[:-1], directory / "prompts.jsonl")
    meta_path = directory / "workload_meta.json"
    meta = json.loads(meta_path.read_text())
    from gst_assets.provenance import sha256_file

    meta["sha256"]["prompts.jsonl"] = sha256_file(directory / "prompts.jsonl")
    meta_path.write_text(json.dumps(meta))
    with pytest.raises(ContractError, match=r"names prompt_id 'p7', which prompts\.jsonl does not have"):
        load_workload(directory)


def test_a_workload_of_other_settings_is_not_reused(workload: Path) -> None:
    built_for = load_workload(workload).meta.params
    check_same_request(built_for, load_scenario("published_qwen3_prompts", ["replay.repeats=1"]), workload)
    with pytest.raises(
        WorkloadError, match=r"workload.num_decode_tokens = 64, but scenario published_qwen3_prompts now asks for 32"
    ):
        check_same_request(
            built_for, load_scenario("published_qwen3_prompts", ["workload.num_decode_tokens=32"]), workload
        )


def test_what_was_made_with_other_settings_is_named(workload: Path) -> None:
    made = load_scenario("smoke").model_dump(mode="json")
    check_made_for(
        made, load_scenario("smoke", ["comparison.pass_band=0.01"]), workload, ("workload", "model", "engine"), "x"
    )
    with pytest.raises(
        WorkloadError,
        match=r"built with engine\.max_num_seqs = 32, but scenario smoke now asks for 8\. Materialize real_request_metrics again",
    ):
        other = load_scenario("smoke", ["engine.max_num_seqs=8"])
        check_made_for(made, other, workload, ("workload", "model", "engine"), "real_request_metrics")
