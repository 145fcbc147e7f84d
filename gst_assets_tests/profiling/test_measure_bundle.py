"""The profiler's command on a real engine, and the bundle it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.tables import read_table
from gst_assets.engine.launch import run_module
from gst_assets.engine.protocol import IterationField
from gst_assets.errors import ArtifactError, EngineError, ProfileError
from gst_assets.profiling import measure_bundle
from gst_assets.profiling.calibration import BURST, LADDER, ROUNDS, TRAFFIC, Driven, Round, ladder_sizes
from gst_assets.profiling.worker_steps import StepField
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import FORMAT_VERSION, Bundle, check_bundle, find_bundle, load_bundle, profile_key
from gst_assets.step_costs.shapes import StepShape
from gst_assets.vidur_adapter import self_fit as self_fit_module
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.profiling.checked_run import DIES
from gst_assets_tests.profiling.tables import write_bundle
from gst_assets_tests.step_costs.test_bundle import BUNDLE_FILES

OVERRIDES = [
    "model.max_model_len=512",
    "engine.max_num_seqs=4",
    "engine.max_num_batched_tokens=128",
    "profile.num_tokens=[1,32,128]",
    "profile.prefill_chunk_sizes=[1,128]",
    "profile.prefill_context_sizes=[0,384]",
    "profile.decode_batch_sizes=[1,4]",
    "profile.decode_context_sizes=[1,512]",
    "profile.operator_repeats=7",  # so that a median stands whatever interrupts three of them
    "profile.calibration_prefill_sizes=[16,96]",
    "profile.traffic_rates_per_s=[2,8]",
    "profile.traffic_segment_s=1.5",
    # Half of the vocabulary: unless the calibration switches early stops off, its batches crumble.
    "engine.sampling.stop_token_id_below=4096",
]
SCENARIO = load_scenario("smoke", OVERRIDES)


COMMAND = "gst_assets_tests.profiling.checked_run"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """A profile that was killed among its operators, and the same command given again: the bundle all tests here look
    at."""
    folder = tmp_path_factory.mktemp("profiling")
    scenario_file = folder / "scenario.json"
    scenario_file.write_text(SCENARIO.model_dump_json())
    out = folder / "root" / "cpu" / "qwen3-tiny"
    arguments = ["--scenario", str(scenario_file), "--out", str(out)]
    partial = out.parent / ".qwen3-tiny.partial"
    run_until_killed(arguments)
    assert not out.exists() and {path.name for path in partial.glob("round-*")} == {
        f"round-{k}.npz" for k in range(ROUNDS)
    }
    with pytest.raises(ProfileError, match="no complete profiling bundle"):
        find_bundle(folder / "root", SCENARIO)
    with pytest.raises(ArtifactError, match=r"run_meta\.json missing"):
        load_bundle(partial)
    other = folder / "other.json"
    other.write_text(load_scenario("smoke", [*OVERRIDES, "profile.traffic_segment_s=1.6"]).model_dump_json())
    with pytest.raises(
        EngineError,
        match=r"\.partial: a profile was begun here with profile_key \w+, and now has \w+\. .* remove the folder",
    ):
        run_module(COMMAND, ["--scenario", str(other), *arguments[2:4]])
    lines = run_module(COMMAND, [*arguments, "--stamps", str(folder / "stamps")])
    return load_bundle(out), lines


@pytest.fixture(scope="module")
def rounds(measured: tuple[Bundle, list[str]]) -> list[Round]:
    """The stamps that were kept of the calibration of `measured`."""
    stamps = measured[0].directory.parents[2] / "stamps"
    assert {path.name for path in stamps.iterdir()} == {f"round-{index}.npz" for index in range(ROUNDS)}
    found = []
    for index in range(ROUNDS):
        with np.load(stamps / f"round-{index}.npz", allow_pickle=False) as arrays:
            found.append(Round.of(str(arrays["played"]), arrays["steps"]))
    return found


def run_until_killed(arguments: list[str]) -> None:
    """Run the profiler, which is killed with all its processes when it has kept a block of operators."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", COMMAND, *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | {DIES: "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.wait(timeout=600) == -signal.SIGKILL


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
    assert meta.hydra.overrides == OVERRIDES
    assert meta.engine_settings.attention_backend == bundle.attention["attention_backend"].unique().tolist()[0]
    assert meta.format_version == FORMAT_VERSION
    assert set(meta.sha256) == BUNDLE_FILES
    assert [path.name for path in bundle.directory.parent.iterdir()] == ["qwen3-tiny"]
    assert any(line.startswith("operators: done in") for line in lines)


@pytest.mark.engine
def test_the_timed_walk_computes_what_the_model_computes(measured: tuple[Bundle, list[str]]) -> None:
    """Else the operators timed are not those of a real step."""
    worker = measured[0].meta.worker
    assert worker is not None
    assert worker["walk_difference"] == 0


@pytest.mark.engine
def test_operators_grow_with_their_work(measured: tuple[Bundle, list[str]]) -> None:
    bundle = measured[0]
    mlp = bundle.mlp.set_index("num_tokens")
    for name in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"):
        assert mlp.loc[128, f"time_stats.{name}.median"] > 2 * mlp.loc[1, f"time_stats.{name}.median"]
    times = bundle.operator_times()
    tokens_ns, long_ns = (times.ns(StepShape(0, 0, [(context, 128)])) for context in (0, 384))
    assert long_ns > tokens_ns > 0
    assert times.ns(StepShape(4, 4 * 512, ())) > times.ns(StepShape(4, 4, ()))


@pytest.mark.engine
def test_what_vidur_does_not_model_is_measured_too(measured: tuple[Bundle, list[str]]) -> None:
    frame = read_table(tables.UnmodelledOperators, measured[0].directory / "unmodelled.csv")
    assert frame["operator"].value_counts().to_dict() == {"embedding": 3, "final_norm": 3, "lm_head": 2, "sampling": 2}


@pytest.mark.engine
def test_every_term_of_a_cpu_engine_is_measured(measured: tuple[Bundle, list[str]]) -> None:
    bundle = measured[0]
    overheads = bundle.overheads
    assert overheads is not None
    base = overheads[overheads["feature"] == "base"].set_index(["term", "step_kind"])["ns"]
    for term in ("prepare", "device"):
        for kind in ("decode", "mixed"):
            assert (base[[(term, kind)]] > 0).all()
    for term in ("copy_out", "process", "handover", "delivery"):
        assert (base[[(term, "any")]] > 0).all()
    # It launches nothing: the host computes, and so there is nothing between launch and device either.
    for term in ("launch", "lead_in", "drain"):
        assert (overheads.loc[overheads["term"] == term, "ns"] == 0).all()
    costs = bundle.engine_costs(128, seed=0)
    long, short = (costs.step(StepShape(0, 0, [(0, tokens)])) for tokens in (120, 16))
    assert long.device > 1.2 * short.device
    assert costs.device_is_host


@pytest.mark.engine
def test_the_calibration_traffic_is_there_as_its_clients_saw_it(
    measured: tuple[Bundle, list[str]], rounds: list[Round]
) -> None:
    bundle = measured[0]
    traffic = bundle.traffic
    assert traffic is not None
    # 2 and 8 requests per second for 1.5 s, and a burst that fills the engine.
    counts = traffic.groupby("stretch", sort=False).size().to_dict()
    assert counts == {
        f"round {k} {sort}": n
        for k in range(ROUNDS)
        for sort, n in (("traffic 2/s", 3), ("traffic 8/s", 12), ("burst", 4))
    }
    seen = [
        request for done in rounds for one in done.stretches if one.kind in (TRAFFIC, BURST) for request in one.requests
    ]
    assert traffic["num_prefill_tokens"].tolist() == [request.num_prefill_tokens for request in seen]
    assert traffic["ttft_ns"].tolist() == [request.token_times_ns[0] - request.arrival_time_ns for request in seen]
    # Half of the vocabulary stops a request of this scenario: calibration must not let it.
    assert all(len(request.token_times_ns) == request.num_decode_tokens for request in seen)


@pytest.mark.engine
def test_the_bundle_is_held_against_its_own_calibration(measured: tuple[Bundle, list[str]]) -> None:
    bundle, lines = measured
    fit = bundle.self_fit
    assert fit is not None
    assert set(zip(fit["traffic"], fit["metric"], fit["statistic"], strict=True)) == {
        (sort, metric, statistic)
        for sort in ("traffic 2/s", "traffic 8/s", "burst")
        for metric in ("ttft", "itl", "e2e")
        for statistic in ("p50", "p90")
    }
    told = [line for line in lines if line.startswith("does not fit its own calibration: ")]
    assert told == [f"does not fit its own calibration: {words}" for words in self_fit_module.misfits(fit)]
    done = run_gst("self-fit", bundle.directory)
    assert done.exit_code == (1 if told else 0)
    printed = done.stdout
    assert ("everything fits" in printed) is not bool(told)
    coverage = read_table(tables.OperatorCoverage, bundle.directory / "operator_coverage.csv")
    assert {"decode", "mixed"} == set(coverage["step_kind"])
    # Operators and steps met this machine at different moments, so their ratio proves nothing here; `test_coverage`
    # does.
    ratio = coverage["operators_ns"].astype(float) / coverage["whole_step_ns"].astype(float)
    assert coverage["coverage"].to_numpy() == pytest.approx(ratio.to_numpy(), abs=1e-4)


@pytest.mark.engine
def test_the_worker_saw_each_recorded_step_once_and_its_moments_in_order(rounds: list[Round]) -> None:
    for done in rounds:
        assert [one.kind for one in done.stretches] == [LADDER, TRAFFIC, TRAFFIC, BURST]
        for one in done.stretches:
            steps, rows = one.steps, one.watched
            assert len(steps) == len(rows) > 0
            assert not rows[:, StepField.HEAD_START_NS].any()
            moments = np.column_stack(
                [
                    steps[:, IterationField.SCHEDULED_NS],
                    rows[:, StepField.BEGUN_NS],
                    rows[:, StepField.FORWARD_NS],
                    rows[:, StepField.LAUNCHED_NS],
                    steps[:, IterationField.OUTPUT_NS],
                    steps[:, IterationField.COMPLETION_NS],
                ]
            )
            assert (np.diff(moments, axis=1) >= 0).all()
            # One step at a time: each is formed after the one before it was processed.
            assert (moments[1:, 0] >= moments[:-1, -1]).all()
            assert (rows[:, StepField.DEVICE_BEGUN_NS] == rows[:, StepField.FORWARD_NS]).all()
            assert (rows[:, StepField.DEVICE_ENDED_NS] == rows[:, StepField.LAUNCHED_NS]).all()
            tokens = sum(request.num_decode_tokens for request in one.requests)
            prompts = sum(request.num_prefill_tokens for request in one.requests)
            assert steps[:, IterationField.PREFILL_TOKENS].sum() == prompts
            assert steps[:, IterationField.DECODE_REQUESTS].sum() == tokens - len(one.requests)


@pytest.mark.engine
def test_stamps_give_the_bundles_tables_again(measured: tuple[Bundle, list[str]], rounds: list[Round]) -> None:
    bundle = measured[0]
    driven = Driven([one for done in rounds for one in done.stretches], bundle.meta.engine_settings, is_gpu=False)
    again = driven.tables()
    assert bundle.overheads is not None and bundle.host_speed is not None
    pd.testing.assert_frame_equal(again["overheads.csv"], bundle.overheads)
    pd.testing.assert_frame_equal(again["host_speed.csv"], bundle.host_speed)
    assert driven.digests() == bundle.meta.calibration_sha256


@pytest.mark.engine
def test_every_calibration_workload_has_its_digest(measured: tuple[Bundle, list[str]], rounds: list[Round]) -> None:
    meta = measured[0].meta
    assert set(meta.calibration_sha256) == {one.name for done in rounds for one in done.stretches}
    assert sum(name.startswith("round 0 ") for name in meta.calibration_sha256) == 4
    ladder = [request.num_prefill_tokens for request in rounds[0].stretches[0].requests]
    assert ladder == ladder_sizes(SCENARIO, meta.engine_settings) == [16, 96, 128, 256]
    # Its lengths are the scenario's, its moments are not: rounds of traffic differ.
    flowing = [value for name, value in meta.calibration_sha256.items() if "traffic" in name]
    assert len(set(flowing)) == len(flowing) == 2 * ROUNDS


@pytest.mark.engine
def test_a_bundle_is_never_overwritten(measured: tuple[Bundle, list[str]]) -> None:
    before = measured[0].sha256
    directory = measured[0].directory
    with pytest.raises(EngineError, match="already exists"):
        run_module("gst_assets.profiling.measure_bundle", ["--scenario", "smoke", "--out", str(directory)])
    assert load_bundle(directory).sha256 == before


def test_a_profile_of_another_dtype_holds_its_folder_before_an_engine_is_started(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "cpu" / "qwen3-tiny", load_scenario("smoke"))
    said: list[str] = []
    message = re.escape(f"{folder}: holds a profile with model.dtype float32, but the scenario's is bfloat16.")
    with pytest.raises(EngineError, match=message):
        run_module(
            "gst_assets.profiling.measure_bundle",
            ["--scenario", "smoke", "--out", str(folder), "--override=model.dtype=bfloat16"],
            on_line=said.append,
        )
    assert not [line for line in said if "starting" in line] and list(folder.parent.iterdir()) == [folder]


def test_another_device_than_the_scenarios_is_refused(tmp_path: Path) -> None:
    """Without an engine: hardware is checked before one is started."""
    with pytest.raises(EngineError, match="a100"):
        run_module(
            "gst_assets.profiling.measure_bundle",
            ["--scenario", "smoke", "--out", str(tmp_path / "b")]
            + [f"--override={key}" for key in ("hardware.hardware_id=a100", "hardware.device_name=A100")],
        )
    assert not (tmp_path / "b").exists()


def test_overrides_hold_for_what_is_played_between_the_rounds_as_well() -> None:
    (play,) = measure_bundle._plays([("workload", "smoke")], ["replay.repeats=5"])
    assert play.scenario.replay.repeats == 5 and play.scenario.overrides == ("replay.repeats=5",)


def test_the_staged_folder_goes_when_writing_fails(tmp_path: Path) -> None:
    def fill_and_fail() -> None:
        with measure_bundle._staged(tmp_path / "b") as folder:
            (folder / "mlp.csv").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []
