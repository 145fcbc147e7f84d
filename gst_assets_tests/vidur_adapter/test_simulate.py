"""Simulations from input to tables: exact times, determinism, KV pressure and bad input."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError, SimulationError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario
from gst_assets.step_costs.bundle import Bundle
from gst_assets.step_costs.shapes import StepShape
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter import simulation_loop
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate

MS = 1_000_000
VARIANTS = ("kernels", "calibrated")
SCENARIO = support.scenario()
BUNDLE = support.bundle(SCENARIO)
MIX = [(0, 100, 20), (5 * MS, 300, 10), (2 * MS, 700, 5), (0, 1, 3), (60 * MS, 33, 30)]


def run(
    rows: list[tuple[int, int, int]],
    *overrides: str,
    variant: str = "kernels",
    made: Bundle | None = None,
    of: Scenario | None = None,
    **bundle: Any,
) -> SimulationResult:
    """Simulate requests given as (inter-arrival ns, prompt tokens, decode tokens) and check every invariant."""
    scenario = of or support.scenario(*overrides)
    lengths, intervals = support.workload(rows)
    result = simulate(scenario, lengths, intervals, made or support.bundle(scenario, **bundle), variant, cache_dir=None)
    support.check(result, lengths, intervals)
    return result


def token_times(result: SimulationResult, request: int = 0) -> list[int]:
    tokens = result.tokens
    return [int(t) for t in tokens.loc[tokens["request_id"] == request, "token_time_ns"]]


# --- exact times ------------------------------------------------------------------------------------------------------


def test_one_request_with_equal_steps_has_exact_times() -> None:
    step = support.flat_step_ns(support.scenario())
    result = run([(7 * MS, 100, 4)], flat=True)
    assert token_times(result) == [7 * MS + n * step for n in (1, 2, 3, 4)]
    request = result.requests.iloc[0]
    assert (request["ttft_ns"], request["scheduled_time_ns"], request["completion_time_ns"]) == (
        step,
        7 * MS,
        7 * MS + 4 * step,
    )


def test_a_prompt_beyond_the_budget_takes_as_many_steps_as_chunks() -> None:
    step = support.flat_step_ns(support.scenario())
    result = run([(0, 1300, 2)], flat=True)  # chunks of 512, 512, 276
    assert token_times(result) == [3 * step, 4 * step]
    assert list(result.iterations["num_prefill_tokens"]) == [512, 512, 276, 0]
    assert list(result.iterations["num_context_tokens"]) == [0, 512, 1024, 1300]


def test_a_request_that_arrives_during_a_step_waits_for_its_end() -> None:
    step = support.flat_step_ns(support.scenario())
    result = run([(0, 100, 3), (step // 2, 100, 1)], flat=True)
    second = result.requests.iloc[1]
    assert second["scheduled_time_ns"] == step
    # Its step also holds a decode, whose attention is a lookup of its own.
    assert second["ttft_ns"] > 3 * step // 2


def test_requests_that_arrive_together_share_the_first_step() -> None:
    result = run([(0, 10, 2)] * 5)
    assert list(result.iterations["num_prefill_requests"]) == [5, 0]
    assert list(result.iterations["num_running"]) == [5, 5]


def test_the_share_simulated_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_loop, "_BUFFER_STEPS", 64)
    lengths, intervals = support.workload([(5 * MS, 100 + k, 20) for k in range(40)])
    told: list[float] = []
    seen = simulate(SCENARIO, lengths, intervals, BUNDLE, "kernels", cache_dir=None, on_share=told.append)
    unseen = simulate(SCENARIO, lengths, intervals, BUNDLE, "kernels", cache_dir=None)
    assert told == sorted(told) and told[-1] == 1 and 0 < told[0] < 1
    assert support.csv_bytes(seen) == support.csv_bytes(unseen)


def test_the_request_limit_keeps_requests_waiting() -> None:
    result = run([(0, 10, 2)] * 5, "engine.max_num_seqs=2")
    assert result.iterations["num_running"].max() == 2
    assert list(result.iterations["num_waiting"]) == [3, 3, 1, 1, 0, 0]


def test_calibrated_adds_handover_the_parts_of_steps_and_delivery() -> None:
    # Forming to tokens: 2 + 5 and a ms of copying; half a ms to process them.
    rows = support.constant_overheads(
        prepare=2 * MS, device=5 * MS, device_mixed=6 * MS, copy_out=1 * MS, process=MS // 2,
        prepare_after_idle=100_000, handover=300_000, delivery=50_000,
    )  # fmt: skip
    result = run([(7 * MS, 100, 3)], variant="calibrated", overheads=rows)
    step_ends = [7 * MS + 300_000 + 9 * MS + 100_000 + n * (8 * MS + MS // 2) for n in range(3)]
    assert result.iterations["completion_time_ns"].tolist() == step_ends
    assert token_times(result) == [end + 50_000 for end in step_ends]
    assert result.requests["ttft_ns"].iloc[0] == 300_000 + 9 * MS + 100_000 + 50_000
    assert result.requests["scheduled_time_ns"].iloc[0] == 7 * MS + 300_000


def test_a_calibrated_step_costs_what_it_holds() -> None:
    scenario = support.scenario()
    made = support.bundle(scenario)
    costs = made.engine_costs(512, seed=None)
    # Three prompts of 20 tokens decode together; one of 448 joins them.
    result = run([(0, 20, 6)] * 3 + [(9 * MS, 448, 2)], variant="calibrated", of=scenario, made=made)
    steps = result.iterations
    shapes = [
        StepShape(0, 0, [(0, 20)] * 3), StepShape(3, 60, ()), StepShape(3, 63, ()), StepShape(3, 66, [(0, 448)]),
        StepShape(4, 517, ()),
    ]  # fmt: skip
    composition = ["num_prefill_requests", "num_prefill_tokens", "num_decode_requests", "num_context_tokens"]
    assert steps[composition].iloc[:5].to_numpy().tolist() == [list(shape.composition) for shape in shapes]
    took = (steps["completion_time_ns"] - steps["scheduled_time_ns"]).tolist()
    gap = (steps["scheduled_time_ns"].to_numpy()[1:] - steps["completion_time_ns"].to_numpy()[:-1]).tolist()
    for shape, ns in zip(shapes, took, strict=False):
        cost = costs.step(shape)
        if not shape.num_decodes:
            cost = costs.after_idle(cost, costs.kind(shape))
        assert ns == pytest.approx(cost.prepare + cost.lead_in + cost.device + cost.copy_out, abs=2)
    for shape, ns in zip(shapes, gap, strict=False):
        assert ns == pytest.approx(costs.step(shape).process, abs=1)


def test_kernels_operators_are_the_bundles_at_exact_tokens_and_contexts() -> None:
    scenario = support.scenario()
    times = support.bundle(scenario).operator_times()
    result = run([(0, 77, 3), (0, 13, 2), (30 * MS, 1000, 3)])
    expected = [
        StepShape(0, 0, [(0, 77), (0, 13)]), StepShape(2, 90, ()), StepShape(1, 78, ()),
        StepShape(0, 0, [(0, 512)]), StepShape(0, 0, [(512, 488)]), StepShape(1, 1000, ()), StepShape(1, 1001, ()),
    ]  # fmt: skip
    took = (result.iterations["completion_time_ns"] - result.iterations["scheduled_time_ns"]).tolist()
    assert took == [times.step_ns(shape) for shape in expected]


def test_no_token_overtakes_an_earlier_one_on_its_way_to_the_client() -> None:
    rows = [
        *(row for row in support.default_overheads() if row["term"] != "delivery"),
        support.cost_row("delivery", 1, position=1),
        support.cost_row("delivery", 500 * MS, position=8),
    ]
    result = run([(0, 10, 2)] * 7 + [(0, 10, 9)], variant="calibrated", overheads=rows)
    assert (result.tokens["token_latency_ns"] >= 0).all()


# --- variants and settings --------------------------------------------------------------------------------------------


def test_twice_slower_operators_double_the_time_per_token() -> None:
    once, twice = (run(MIX[:1], scale=scale) for scale in (1.0, 2.0))
    ratio = twice.tokens["token_latency_ns"].sum() / once.tokens["token_latency_ns"].sum()
    assert ratio == pytest.approx(2, rel=1e-6)


def test_operators_do_not_enter_calibrated() -> None:
    once, twice = (run(MIX, variant="calibrated", scale=scale) for scale in (1.0, 2.0))
    assert support.csv_bytes(once) == support.csv_bytes(twice)


def test_settings_say_what_was_simulated() -> None:
    scenario = support.scenario("engine.num_kv_blocks=null")
    made = support.bundle(scenario, num_kv_blocks=777)
    result = run(MIX, "engine.num_kv_blocks=null", made=made)
    wanted = {
        "max_num_seqs": 32, "max_num_batched_tokens": 512, "block_size": 32, "num_kv_blocks": 777, "head_dim": 64,
        "kv_bytes_per_token": 4096, "enable_prefix_caching": False, "async_scheduling": False, "dtype": "float32",
        "scheduler": "sarathi", "predictor": "interpolation", "step_overheads": False, "self_fit_misfits": [],
        "rounding_tokens": {"step_tokens": "captured graph size, else exact", "prefill_chunk": 1, "context": 1},
        "attention_backend": "CPU_ATTN",
    }  # fmt: skip
    assert {name: result.settings[name] for name in wanted} == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp8_weights_are_in_the_tables_and_leave_the_kv_cache_as_it_is(variant: str) -> None:
    """What they change of the times stands in the bundle's tables, and of the memory in the engine's KV blocks."""
    gpu = ["hardware.hardware_id=h100", "hardware.device_name=H100", "model.dtype=bfloat16"]
    plain, fp8 = (run(MIX, *gpu, f"model.quantization={of}", variant=variant) for of in ("null", "fp8"))
    assert fp8.settings == plain.settings | {"quantization": "fp8"} and "quantization" not in plain.settings
    assert fp8.settings["kv_bytes_per_token"] == 2 * 4 * 2 * 64 * 2
    assert fp8.tokens.equals(plain.tokens)


def test_qwen3_0_6b_has_114688_kv_bytes_per_token() -> None:
    geometry = [
        f"model.geometry.{name}={value}"
        for name, value in support.QWEN3_0_6B.model_dump().items()
        if name != "tie_word_embeddings"
    ]
    result = run([(0, 50, 3)], "model.dtype=bfloat16", *geometry)
    assert (result.settings["head_dim"], result.settings["kv_bytes_per_token"]) == (128, 114_688)


def test_steps_outside_the_calibration_are_counted() -> None:
    rows = [row for row in support.default_overheads() if row["term"] != "device" or row["position"] <= 2]
    assert run([(0, 100, 5)] * 2, variant="calibrated", overheads=rows).settings["steps_outside_calibration"] == 0
    assert run([(0, 100, 5)] * 4, variant="calibrated", overheads=rows).settings["steps_outside_calibration"] == 4


def test_what_does_not_fit_its_own_calibration_is_told_with_calibrated_alone() -> None:
    fit = pd.DataFrame(
        [
            ("traffic 8/s", "ttft", "p50", 0.01, True),
            ("traffic 8/s", "itl", "p90", -0.072, False),
            ("burst", "e2e", "p50", 0.31, False),
        ],
        columns=["traffic", "metric", "statistic", "relative_error", "fits"],
    )
    made = dataclasses.replace(BUNDLE, self_fit=fit)
    assert run(MIX, variant="calibrated", made=made).settings["self_fit_misfits"] == [
        "E2E P50 of calibration's burst: simulated +31.0%",
        "ITL P90 of calibration's traffic 8/s: simulated -7.2%",
    ]
    assert run(MIX, made=made).settings["self_fit_misfits"] == []


def test_graphs_pad_steps_to_captured_sizes() -> None:
    rows = [row for row in support.constant_overheads() if row["term"] != "device"]
    for kind, ns in (("decode", {1: 11 * MS, 8: 18 * MS}), ("mixed", {16: 30 * MS}), ("mixed_eager", {17: 90 * MS})):
        rows += [support.cost_row("device", value, kind, position=at) for at, value in ns.items()]
    result = run(
        [(0, 4, 2)] * 4 + [(0, 84, 2)] + [(200 * MS, 9, 2)],
        variant="calibrated", overheads=rows, enforce_eager=False, cudagraph_capture_sizes=[1, 8, 16],
    )  # fmt: skip
    took = (result.iterations["completion_time_ns"] - result.iterations["scheduled_time_ns"]).tolist()
    # 100 prompt tokens run eagerly; five decodes as eight; 9 prompt tokens as 16; one decode as one.
    assert took == [90 * MS, 18 * MS, 30 * MS, 11 * MS]


# --- the host's speed -------------------------------------------------------------------------------------------------


def test_the_seed_orders_the_hosts_moments_and_medians_know_none() -> None:
    slow = [(at * MS, part, 1.0 + (at // 250) % 7) for at in range(0, 8000, 25) for part in support.SPEED_PARTS]
    rows = [(60 * MS, 50 + 90 * (i % 5), 5 + i % 9) for i in range(30)]

    def digest(*overrides: str, **bundle: Any) -> bytes:
        return support.csv_bytes(run(rows, *overrides, variant="calibrated", **bundle))

    speed = {"host_speed": support.speed_table(slow)}
    assert digest(**speed) == digest(**speed)
    assert digest("simulation.seed=1", **speed) != digest(**speed)
    still = "simulation.host_variability=false"
    assert digest(still, **speed) == digest(still, "simulation.seed=1", **speed) == digest()
    with pytest.raises(ProfileError, match=r"bundle: no host_speed\.csv, which variant calibrated needs"):
        run(rows, variant="calibrated", made=dataclasses.replace(BUNDLE, host_speed=None))
    run(rows, still, variant="calibrated", made=dataclasses.replace(BUNDLE, host_speed=None))


def test_slow_moments_lengthen_the_device_where_it_is_the_host() -> None:
    twice = support.speed_table([(0, part, 2.0) for part in support.SPEED_PARTS])
    rows = support.constant_overheads(device=10 * MS)

    def token_gap(hardware_id: str) -> int:
        result = run([(0, 10, 2)], variant="calibrated", overheads=rows, host_speed=twice, hardware_id=hardware_id)
        return int(result.tokens["token_latency_ns"].max())

    assert (token_gap("cpu"), token_gap("h200")) == (20 * MS, 10 * MS)


# --- KV pressure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_preempted_requests_complete_and_are_counted(variant: str) -> None:
    # 9 blocks of 32 to give: two prompts of 100 tokens take 8; beyond 128 tokens each needs a fifth.
    result = run([(0, 100, 50), (1 * MS, 100, 50)], "engine.num_kv_blocks=10", variant=variant)
    assert result.requests["num_preemptions"].tolist() == [0, 1]
    assert result.num_preemptions == 1
    # The preempted request computes its prompt and the tokens it had handed out again.
    assert result.iterations["num_prefill_tokens"].sum() > 200


@pytest.mark.parametrize(("variant", "loop"), [("kernels", "event"), ("kernels", "direct"), ("calibrated", "direct")])
def test_gaps_and_parts_are_those_of_the_token_table(variant: str, loop: str) -> None:
    """Of requests that are preempted, wait, and give a token alone."""
    rows = [(1 * MS, 1 + 37 * i % 150, 1 + 53 * i % 90) for i in range(30)]
    result = run(rows, "engine.num_kv_blocks=12", f"simulation.loop={loop}", variant=variant)
    assert result.num_preemptions > 3
    tokens = result.tokens
    gaps = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"].to_numpy(dtype="int64")
    assert sorted(np.repeat(*result.token_gaps_ns())) == sorted(gaps)
    for most_rows in (1, 7, 100, len(tokens) - 1, len(tokens)):
        parts = list(result.token_parts(most_rows))
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), tokens)
        owners = [set(part["request_id"]) for part in parts]
        assert sum(map(len, owners)) == len(rows)  # no request is cut
        assert all(len(part) <= most_rows or len(of) == 1 for part, of in zip(parts, owners, strict=True))
        assert all(len(one) + len(next_one) > most_rows for one, next_one in pairwise(parts))


def test_results_have_the_same_times_or_not() -> None:
    first, again, later = (run(MIX), run(MIX), run([(1, *MIX[0][1:]), *MIX[1:]]))
    assert first.has_times_of(again) and not first.has_times_of(later)


def test_a_request_that_fills_the_cache_is_not_preempted() -> None:
    result = run([(0, 250, 39)], "engine.num_kv_blocks=10")  # 288 tokens with keys and values: 9 blocks
    assert result.num_preemptions == 0


def test_a_step_that_preempts_admits_nobody() -> None:
    rows = [(0, 100, 80), (1 * MS, 100, 80), (1 * MS, 100, 5), (0, 10, 5)]
    steps = run(rows, "engine.num_kv_blocks=10").iterations
    running, waiting = steps["num_running"].to_numpy(), steps["num_waiting"].to_numpy()
    preempting = steps[1:][(running[1:] < running[:-1]) & (waiting[1:] > waiting[:-1])]
    assert len(preempting)
    assert (preempting["num_prefill_requests"] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30 * MS), st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=20),
    blocks=st.integers(10, 30),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
)
def test_any_workload_keeps_the_contract(
    variant: str, rows: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int
) -> None:
    limits = {"num_kv_blocks": blocks, "max_num_seqs": seqs, "max_num_batched_tokens": budget}
    scenario = SCENARIO.model_copy(update={"engine": SCENARIO.engine.model_copy(update=limits)})
    result = run(rows, variant=variant, of=scenario, made=BUNDLE)
    steps = result.iterations
    assert (steps["num_prefill_tokens"] + steps["num_decode_requests"]).max() <= budget
    assert steps["num_running"].max() <= seqs


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_simulations_in_one_process_are_equal_to_the_byte(variant: str) -> None:
    first = support.csv_bytes(run(MIX, variant=variant))
    run([(0, 50, 3)], "model.geometry.num_layers=2", "engine.max_num_seqs=8")  # another model in between
    assert support.csv_bytes(run(MIX, variant=variant)) == first


_DIGEST_PROGRAM = """
import hashlib
from gst_assets.testing import simulation_inputs as support
from gst_assets_tests.vidur_adapter import test_simulate
for variant in test_simulate.VARIANTS:
    result = test_simulate.run(test_simulate.MIX, variant=variant)
    print(hashlib.sha256(support.csv_bytes(result)).hexdigest(), sorted(result.settings.items()))
"""


def test_two_processes_agree_to_the_byte_and_print_nothing_else() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DIGEST_PROGRAM],
            stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 2


def test_nothing_is_written_printed_or_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a simulation must not open a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    run(MIX, "simulation.loop=event")
    run(MIX, variant="calibrated")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def loaded_after(program: str, *names: str) -> list[str]:
    """Which of the modules a fresh process has loaded when it has run `program`."""
    ending = f"\nimport sys; print(*({{*{names!r}}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program + ending], check=True, capture_output=True, text=True, cwd=PROJECT_ROOT
    )
    return done.stdout.split()


def test_importing_the_adapter_imports_neither_vidur_nor_sklearn() -> None:
    program = "import gst_assets.vidur_adapter, gst_assets.vidur_adapter.simulate"
    assert not loaded_after(program, "vidur", "sklearn", "scipy", "wandb", "torch", "dagster", "pandera")


@pytest.mark.parametrize(
    ("most_plain_steps", "told_of_scipy"),
    [
        (10**9, ["scipy"]),
        # numba itself loads scipy, for its version, and scipy.linalg, for the addresses of its functions.
        (0, [f"scipy.{name}" for name in ("special", "sparse", "stats", "optimize", "interpolate")]),
    ],
)
def test_a_simulation_from_a_bundle_imports_neither_vidur_nor_sklearn_nor_scipy(
    most_plain_steps: int, told_of_scipy: list[str]
) -> None:
    """From the files of the bundle to those of the run, in plain Python and compiled."""
    program = f"""
import tempfile
from pathlib import Path
from gst_assets.contracts.tables import RequestMetrics, TokenMetrics, write_table, write_table_parts
from gst_assets.scenario import load_scenario, resolve_path
from gst_assets.step_costs.bundle import check_bundle, find_bundle, load_bundle
from gst_assets.vidur_adapter import simulation_loop
from gst_assets.vidur_adapter.sweep import Job, point
from gst_assets.testing.simulation_inputs import workload

scenario = load_scenario("h100_8b_half")
bundle = load_bundle(find_bundle(resolve_path(scenario.profile.root), scenario))
lengths, intervals = workload([(10**8, 300, 40)] * 20)
check_bundle(bundle, scenario, lengths)
simulation_loop._MOST_PLAIN_STEPS = {most_plain_steps}
for variant in ("kernels", "calibrated"):
    job = Job(scenario, lengths, intervals, bundle, variant, None)
    result = job.run()
    point(job, result)
    with tempfile.TemporaryDirectory() as area:
        write_table(RequestMetrics, result.requests, Path(area))
        write_table_parts(TokenMetrics, result.token_parts(), Path(area))
"""
    loaded = loaded_after(program, "vidur", "sklearn", *told_of_scipy, "numba", "pandera")
    assert set(loaded) == {"pandera", *(["numba"] if not most_plain_steps else [])}


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 5, 5), (0, 0, 5)], "request 1 has num_prefill_tokens 0; Vidur needs at least 1"),
        ([(0, 5, 5), (0, 5, 0), (0, 5, 0)], r"request 1 has num_decode_tokens 0; .* \(2 such requests in all\)"),
        ([(0, 2000, 49)], "request 0 needs 2049 tokens .*, more than model.max_model_len 2048"),
        (
            [(0, 250, 40)],
            "request 0 needs 10 KV blocks of 32 tokens, but the engine has 9 to give. .* raise engine.num_kv_blocks",
        ),
    ],
)
def test_a_request_that_cannot_complete_is_refused(rows: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        run(rows, "engine.num_kv_blocks=10")


@pytest.mark.parametrize(
    ("overrides", "engine", "message"),
    [
        (
            ["engine.enable_prefix_caching=true"],
            {},
            "depends on the prompts' tokens, which a search for capacity and a sweep do not have",
        ),
        (
            ["engine.enable_prefix_caching=true", "simulation.loop=event"],
            {},
            "Vidur 0.0.26, which variant kernels runs here, has no prefix cache",
        ),
        (
            [],
            {"enable_prefix_caching": True},
            "profiled with prefix caching, .* but engine.enable_prefix_caching is false",
        ),
        ([], {"enable_chunked_prefill": False}, "enable_chunked_prefill is off in the profiled engine"),
        ([], {"block_size": 16}, "engine.block_size is 32, but bundle was profiled with blocks of 16 tokens"),
        (["model.geometry.num_q_heads=6"], {}, "hidden_size to be a multiple of num_q_heads, found 256 and 6"),
    ],
)
def test_settings_vidur_cannot_simulate_are_refused(overrides: list[str], engine: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        run(MIX, *overrides, **engine)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.tensor_parallel_size=2"], "bundle: measured at tensor parallel degree 1"),
        (
            ["hardware.hardware_id=h100", "hardware.device_name=H100", "model.dtype=bfloat16", "model.quantization=fp8"],
            r"engine_settings\.quantization is none, but the scenario expects fp8",
        ),
        (
            [
                "model.geometry.architecture=MixtralForCausalLM", "model.geometry.num_experts=8",
                "model.geometry.num_experts_per_token=2",
            ],
            r"bundle: has no experts\.csv, but the scenario's model has experts",
        ),
    ],
)  # fmt: skip
def test_a_bundle_of_other_devices_weights_or_layers_is_refused_unchecked(overrides: list[str], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        run(MIX, *overrides, made=BUNDLE)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(SimulationError, match=r"unknown variant 'fast'; .* published, kernels, calibrated"):
        run(MIX, variant="fast")


def test_vidur_as_it_ships_has_no_experts() -> None:
    mixture = support.scenario(
        "model.geometry.architecture=MixtralForCausalLM", "model.geometry.num_experts=8",
        "model.geometry.num_experts_per_token=2",
    )  # fmt: skip
    lengths, intervals = support.workload(MIX)
    message = "published: qwen3-tiny is a mixture of experts, which is not modelled: Vidur 0.0.26 has no expert layer"
    with pytest.raises(SimulationError, match=message):
        simulate(mixture, lengths, intervals, support.bundle(mixture), "published", cache_dir=None)


def test_traces_of_different_requests_are_refused() -> None:
    scenario = support.scenario()
    lengths, _ = support.workload(MIX)
    _, intervals = support.workload(MIX[:2])
    with pytest.raises(SimulationError, match="trace_lengths has 5 requests and trace_intervals 2"):
        simulate(scenario, lengths, intervals, support.bundle(scenario), "kernels", cache_dir=None)


def test_calibrated_needs_overheads_and_kernels_does_not() -> None:
    made = dataclasses.replace(support.bundle(support.scenario()), overheads=None)
    run(MIX, made=made)
    with pytest.raises(ProfileError, match=r"bundle: no overheads.csv, .* simulation.variants=\[kernels\]"):
        run(MIX, made=made, variant="calibrated")


def test_a_workload_outside_the_profiled_range_is_refused() -> None:
    made = support.bundle(support.scenario())
    attention = made.attention
    short = dataclasses.replace(made, attention=attention[attention["kv_cache_size"] <= 256].reset_index(drop=True))
    with pytest.raises(ProfileError, match=r"attention.csv .*kv_cache_size .* outside the profiled range"):
        run([(0, 250, 40)], made=short)
