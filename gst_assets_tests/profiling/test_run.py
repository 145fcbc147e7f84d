"""The profiler's command on a real engine, and the bundle it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.contracts.csv_files import read_csv
from gst_assets.engine.launch import run_module
from gst_assets.errors import ArtifactError, EngineError, ProfileError
from gst_assets.profiling import run
from gst_assets.profiling.bundle import Bundle, check_bundle, find_bundle, load_bundle, profile_key
from gst_assets.profiling.calibration import ROUNDS, plan
from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario

OVERRIDES = [
    "model.max_model_len=512",
    "engine.max_num_seqs=4",
    "engine.max_num_batched_tokens=128",
    "profile.num_tokens=[1,32,128]",
    "profile.prefill_chunk_sizes=[1,128]",
    "profile.prefill_context_sizes=[0,384]",
    "profile.decode_batch_sizes=[1,4]",
    "profile.decode_context_sizes=[1,512]",
    "profile.operator_repeats=3",
    "profile.calibration_decode_batch_sizes=[1,4]",
    "profile.calibration_prefill_sizes=[16,96]",
    "profile.calibration_steps=16",
    # Half of the vocabulary: unless the calibration switches early stops off, its batches crumble.
    "engine.sampling.stop_token_id_below=4096",
]
SCENARIO = load_scenario("smoke", OVERRIDES)


COMMAND = "gst_assets_tests.profiling.checked_run"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """A profile that was killed among its operators, and the same command given again: the bundle all tests here look at."""
    folder = tmp_path_factory.mktemp("profiling")
    scenario_file = folder / "scenario.json"
    scenario_file.write_text(SCENARIO.model_dump_json())
    out = folder / "root" / "cpu" / "qwen3-tiny"
    arguments = ["--scenario", str(scenario_file), "--out", str(out), "--override", OVERRIDES[0]]
    partial = out.parent / ".qwen3-tiny.partial"
    kill_when(arguments, lambda: (partial / "operators.jsonl").exists())
    assert not out.exists() and {path.name for path in partial.glob("round-*")} == {
        f"round-{k}.npz" for k in range(ROUNDS)
    }
    with pytest.raises(ProfileError, match="no complete profiling bundle"):
        find_bundle(folder / "root", SCENARIO)
    with pytest.raises(ArtifactError, match=r"run_meta\.json missing"):
        load_bundle(partial)
    other = folder / "other.json"
    other.write_text(load_scenario("smoke", [*OVERRIDES, "profile.calibration_steps=17"]).model_dump_json())
    with pytest.raises(
        EngineError,
        match=r"\.partial: a profile was begun here with profile_key \w+, and now has \w+\. .* remove the folder",
    ):
        run_module(COMMAND, ["--scenario", str(other), *arguments[2:4]])
    lines = run_module(COMMAND, arguments)
    return load_bundle(out), lines


def kill_when(arguments: list[str], condition: Callable[[], bool]) -> None:
    """Run the profiler until `condition`, then `kill -9` it and all its processes."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", COMMAND, *arguments], cwd=PROJECT_ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, (
            "the profile ended or hung before it could be killed"
        )
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.engine
def test_a_killed_profile_goes_on_where_it_was(measured: tuple[Bundle, list[str]]) -> None:
    bundle, lines = measured
    assert any(
        re.search(rf"continuing .*: {ROUNDS} calibration rounds and [1-9]\d* blocks of operators measured", line)
        for line in lines
    )
    assert sum("was measured before" in line for line in lines) == ROUNDS
    assert bundle.meta.calibration_rounds_taken_over == ROUNDS


@pytest.mark.engine
def test_the_bundle_is_complete_and_serves_its_scenario(measured: tuple[Bundle, list[str]]) -> None:
    bundle, lines = measured
    check_bundle(bundle, SCENARIO, pd.DataFrame({"num_prefill_tokens": [380], "num_decode_tokens": [100]}))
    meta = bundle.meta
    assert meta.profile_key == profile_key(SCENARIO)
    assert meta.profiling_root == str(bundle.directory.parent.parent)
    assert meta.hydra.overrides == OVERRIDES[:1]
    assert meta.engine_settings.attention_backend == bundle.attention["attention_backend"].unique().tolist()[0]
    assert set(meta.sha256) == {"mlp.csv", "attention.csv", "overheads.csv", "unmodelled.csv"}
    assert [path.name for path in bundle.directory.parent.iterdir()] == ["qwen3-tiny"]
    assert any(line.startswith("operators: done in") for line in lines)


@pytest.mark.engine
def test_the_timed_walk_computes_what_the_model_computes(measured: tuple[Bundle, list[str]]) -> None:
    """Else the operators timed are not those of a real step."""
    worker = measured[0].meta.model_extra["worker"]  # type: ignore[index]
    assert worker["walk_difference"] == 0


@pytest.mark.engine
def test_operators_grow_with_their_work(measured: tuple[Bundle, list[str]]) -> None:
    model = measured[0].operator_model()
    for name in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"):
        one, many = model.per_token_ms(name, [1, 128])
        assert many > 2 * one
    assert model.attn_prefill_ms(384, 128) > model.attn_prefill_ms(0, 128) > 0
    assert model.attn_decode_ms(4, 512) > model.attn_decode_ms(4, 1)
    assert all(model.per_token_ms(name, 1) > 0 for name in PER_TOKEN_OPERATORS if name != "add")


@pytest.mark.engine
def test_what_vidur_does_not_model_is_measured_too(measured: tuple[Bundle, list[str]]) -> None:
    columns = {"operator": "str", "num_rows": "Int64", "median_ms": "float64"}
    frame = read_csv(measured[0].directory / "unmodelled.csv", columns)
    assert frame["operator"].value_counts().to_dict() == {"embedding": 3, "final_norm": 3, "lm_head": 2, "sampling": 2}
    assert (frame["median_ms"] > 0).all()


@pytest.mark.engine
def test_every_designed_composition_was_seen(measured: tuple[Bundle, list[str]]) -> None:
    overheads = measured[0].overheads
    assert overheads is not None
    steps = overheads[overheads["term"] == "step"]
    seen = set(zip(steps["num_prefill_tokens"], steps["num_decode_requests"], strict=True))
    # Batches of 1 and 4 in an engine of 4 sequences: one of four leaves before prompts are injected.
    assert seen == {(0, 1), (0, 4), (0, 3), *((size, d) for size in (16, 96) for d in (0, 1, 3))}
    decode = steps[steps["num_prefill_tokens"] == 0]
    assert (decode["num_samples"] >= SCENARIO.profile.calibration_steps).all()
    # A step holds the operators and more. Over many compositions; a single one may meet a slow moment of the machine.
    assert (steps["overhead_ns"] > 0).mean() > 0.5
    lone = steps[steps["num_decode_requests"] == 0].set_index("num_prefill_tokens")
    assert (lone["num_context_tokens"] == 0).all()
    assert set(overheads.loc[overheads["term"] == "handover", "num_prefill_tokens"]) == {16, 96}
    assert {0, 1, 3, 4} == set(overheads.loc[overheads["term"] == "delivery", "num_decode_requests"])


@pytest.mark.engine
def test_every_calibration_workload_has_its_digest(measured: tuple[Bundle, list[str]]) -> None:
    bundle = measured[0]
    planned = plan(SCENARIO, bundle.meta.engine_settings.num_kv_blocks)
    assert len(bundle.meta.calibration_sha256) == len(planned)
    assert len(set(bundle.meta.calibration_sha256.values())) == len({batch.lengths for batch in planned})
    assert sum(name.startswith("round 0 ") for name in bundle.meta.calibration_sha256) == len(planned) // ROUNDS


@pytest.mark.engine
def test_a_bundle_is_never_overwritten(measured: tuple[Bundle, list[str]]) -> None:
    before = measured[0].sha256
    directory = measured[0].directory
    with pytest.raises(EngineError, match="already exists"):
        run_module("gst_assets.profiling.run", ["--scenario", "smoke", "--out", str(directory)])
    assert load_bundle(directory).sha256 == before


def test_another_device_than_the_scenarios_is_refused(tmp_path: Path) -> None:
    """Without an engine: hardware is checked before one is started."""
    with pytest.raises(EngineError, match="a100"):
        run_module(
            "gst_assets.profiling.run",
            ["--scenario", "smoke", "--out", str(tmp_path / "b")]
            + [f"--override={key}" for key in ("hardware.hardware_id=a100", "hardware.device_name=A100")],
        )
    assert not (tmp_path / "b").exists()


def test_the_staged_folder_goes_when_writing_fails(tmp_path: Path) -> None:
    def fill_and_fail() -> None:
        with run._staged(tmp_path / "b") as folder:
            (folder / "mlp.csv").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []
