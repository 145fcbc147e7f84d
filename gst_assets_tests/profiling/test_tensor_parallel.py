"""The real engine on two processes that share each layer: served, measured and profiled on one start, and simulated
with what was measured."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gst_assets.contracts.documents import RealRunMeta, read_document
from gst_assets.contracts.tables import OperatorCoverage, RequestMetrics, UnmodelledOperators, read_table
from gst_assets.engine.launch import run_module
from gst_assets.errors import EngineError, ProfileError
from gst_assets.profiling.calibration import ROUNDS
from gst_assets.profiling.operator_tables import measure_operators, over_ranks
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import Bundle, check_bundle, load_bundle
from gst_assets.step_costs.operators import WholeStepOperators
from gst_assets.step_costs.shapes import StepShape
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.workload import load
from gst_assets_tests.engine.workloads import build_workload
from gst_assets_tests.profiling.test_measure_bundle import COMMAND, OVERRIDES
from gst_assets_tests.step_costs.test_bundle import BUNDLE_FILES

NUM_REQUESTS = 12
SMALL = [name for name in OVERRIDES if "stop_token" not in name]
SCENARIO = load_scenario(
    "smoke",
    [
        *SMALL,
        "engine.tensor_parallel_size=2",
        f"workload.num_requests={NUM_REQUESTS}",
        "workload.num_decode_tokens=8",
        "replay.repeats=1",
        "replay.warmup_requests=4",
        "simulation.variants=[kernels,calibrated]",
    ],
)
needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="an engine of two processes needs 2 CPUs")


class Measured(NamedTuple):
    bundle: Bundle
    run: Path
    workload: Path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("two_ranks")
    scenario_file = folder / "two.json"
    scenario_file.write_text(SCENARIO.model_dump_json())
    workload = build_workload(folder / "workload", SCENARIO)
    out = folder / "root" / "cpu" / "qwen3-tiny"
    options = ["--between", str(workload), str(scenario_file), "--runs", str(folder / "runs")]
    run_module(COMMAND, ["--scenario", str(scenario_file), "--out", str(out), *options])
    (run,) = (folder / "runs").iterdir()
    return Measured(load_bundle(out), run, workload)


@pytest.mark.engine
@needs_two_cpus
def test_two_ranks_serve_a_workload_and_the_run_says_so(measured: Measured) -> None:
    meta = read_document(RealRunMeta, measured.run / "run_meta.json")
    assert (meta.engine_settings.tensor_parallel_size, meta.engine_settings.all_reduce) == (2, "shared_memory")
    assert meta.hardware.device_count == 1  # one processor, whatever the number of processes on it
    requests = read_table(RequestMetrics, measured.run / "request_metrics.csv")
    assert (requests["status"] == "ok").all() and (requests["num_decode_tokens_actual"] == 8).all()
    assert meta.iterations_missing is False and meta.num_bunched_messages == 0


@pytest.mark.engine
@needs_two_cpus
def test_the_bundle_of_two_ranks_says_its_degree_and_has_the_sum_apart(measured: Measured) -> None:
    bundle = measured.bundle
    check_bundle(bundle, SCENARIO, load(measured.workload).lengths)
    assert set(bundle.sha256) == {*BUNDLE_FILES, "all_reduce.csv"}
    assert bundle.meta.engine_settings.tensor_parallel_size == bundle.tensor_parallel_size == 2
    worker = bundle.meta.worker
    assert worker is not None
    assert bundle.kernels == {"attention_backend": "CPU_ATTN", "all_reduce": "shared_memory"}
    # Shapes are the model's, whatever share of it a rank has.
    assert (worker["tensor_parallel_size"], worker["num_q_heads"], worker["num_kv_heads"]) == (2, 4, 2)
    assert (worker["mlp_hidden_size"], worker["vocab_size"]) == (768, 8192)
    # With the sums taken out of the projections and put back as operators of their own, the walk is the model.
    assert worker["walk_difference"] == 0
    sums = bundle.all_reduce
    assert sums is not None
    assert sums["num_tokens"].tolist() == [1, 32, 128]
    assert sums["message_bytes"].tolist() == [4 * 256 * tokens for tokens in (1, 32, 128)]
    assert sums["size"].tolist() == [2 * 256 * tokens for tokens in (1, 32, 128)]
    assert sums["num_workers"].unique().tolist() == sums["devices_per_node"].unique().tolist() == [2]
    assert bundle.meta.calibration_rounds_taken_over == 0 and len(bundle.meta.machine) == ROUNDS


@pytest.mark.engine
@needs_two_cpus
def test_two_ranks_are_simulated_with_what_was_measured(measured: Measured) -> None:
    workload = load(measured.workload)

    def simulated(bundle: Bundle, variant: str) -> SimulationResult:
        result = simulate(SCENARIO, workload.lengths, workload.intervals, bundle, variant, cache_dir=None)
        assert result.settings["tensor_parallel_size"] == 2
        assert result.settings["kv_bytes_per_token"] == 2 * 4 * 1 * 64 * 4  # of one of the two ranks
        assert (result.requests["status"] == "ok").all() and result.num_tokens == 8 * NUM_REQUESTS
        return result

    calibrated, kernels = simulated(measured.bundle, "calibrated"), simulated(measured.bundle, "kernels")
    without = simulated(replace(measured.bundle, all_reduce=None), "kernels")
    sums = measured.bundle.all_reduce
    assert sums is not None
    # Alone, the first request takes the sums of its prompt's step and of a step of one token for each that follows.
    tokens, prompt = sums["num_tokens"], workload.lengths["num_prefill_tokens"].iloc[0]
    times = np.interp([prompt, *[1] * 7], tokens.astype(float), sums["time_stats.all_reduce.median"])
    steps_ms = [float(one.requests["ttft_ns"].iloc[0]) / 1e6 for one in (kernels, without)]
    assert steps_ms[0] - steps_ms[1] == pytest.approx(2 * 4 * times[0], rel=1e-3)
    # Not how near, which depends on what else this machine does, but nothing like an order of magnitude.
    real = read_table(RequestMetrics, measured.run / "request_metrics.csv")
    ended = [
        float((one["completion_time_ns"] - one["arrival_time_ns"]).median()) for one in (calibrated.requests, real)
    ]
    assert 0.1 < ended[0] / ended[1] < 10


@pytest.mark.engine
@needs_two_cpus
def test_the_coverage_of_steps_counts_the_sum_over_the_ranks(measured: Measured) -> None:
    bundle, folder = measured.bundle, measured.bundle.directory
    coverage = read_table(OperatorCoverage, folder / "operator_coverage.csv")
    assert set(coverage["step_kind"]) == {"decode", "mixed"}
    unmodelled = read_table(UnmodelledOperators, folder / "unmodelled.csv")
    alone = replace(bundle, all_reduce=None)
    for row in coverage[coverage["step_kind"] == "decode"].itertuples():
        shape = StepShape(row.num_decode_requests, row.num_context_tokens, ())
        whole, without = (
            WholeStepOperators(one.operator_times(), bundle.attention, unmodelled, 4, bundle.graphs).ns(shape)
            for one in (bundle, alone)
        )
        assert abs(row.operators_ns - whole) < abs(row.operators_ns - without)


# --- without an engine ------------------------------------------------------------------------------------------------


def test_too_few_cpus_for_the_ranks_are_one_error_before_an_engine_starts(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    many = load_scenario("smoke", [*SMALL, "engine.tensor_parallel_size=4", "engine.cpu_threads=1000"])
    file.write_text(many.model_dump_json())
    with pytest.raises(EngineError, match=r"tensor_parallel_size 4 with engine\.cpu_threads 1000: needs 4000 CPUs"):
        run_module("gst_assets.profiling.measure_bundle", ["--scenario", str(file), "--out", str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()


def test_an_operator_takes_what_the_slowest_rank_takes_and_the_sum_what_the_last_to_come_takes() -> None:
    first = [[{"attn": 5, "all_reduce": 9}, {"attn": 7, "all_reduce": 2}], [{"attn": 1, "all_reduce": 1}]]
    second = [[{"attn": 6, "all_reduce": 3}, {"attn": 2, "all_reduce": 8}], [{"attn": 1, "all_reduce": 1}]]
    assert over_ranks([first, second]) == [
        [{"attn": 6, "all_reduce": 3}, {"attn": 7, "all_reduce": 2}], [{"attn": 1, "all_reduce": 1}],
    ]  # fmt: skip
    assert over_ranks([first]) == first


class Facts:
    """An engine whose workers say what they are told to."""

    def __init__(self, *workers: dict[str, Any]) -> None:
        self.workers = list(workers)

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        assert (method, arguments) == ("gst_operator_facts", ())
        return self.workers


FACTS = {**json.loads(SCENARIO.model.geometry.model_dump_json()), "tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ([FACTS], r"tensor_parallel_size is 2 in scenario smoke, but the engine runs 1 workers at degree 2"),
        ([FACTS | {"tensor_parallel_size": 1}] * 2, "the engine runs 2 workers at degree 1"),
        ([FACTS, FACTS | {"num_q_heads": 2}], "workers differ in num_q_heads"),
    ],
)
def test_an_engine_of_another_degree_is_not_profiled(workers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        asyncio.run(measure_operators(Facts(*workers), SCENARIO, lambda *_: None))
