"""Simulations from input to tables: exact times, determinism, KV pressure, caches and bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError, SimulationError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario
from gst_assets.vidur_adapter import predictor
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.vidur_adapter import support

MS = 1_000_000
VARIANTS = ("kernels", "calibrated")
SCENARIO = support.scenario()
BUNDLE = support.bundle(SCENARIO)
MIX = [(0, 100, 20), (5 * MS, 300, 10), (2 * MS, 700, 5), (0, 1, 3), (60 * MS, 33, 30)]


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real forests of few trees."""
    monkeypatch.setitem(predictor.FOREST, "n_estimators", 5)


def run(
    rows: list[tuple[int, int, int]],
    *overrides: str,
    variant: str = "kernels",
    cache_dir: Path | None = None,
    made: Any = None,
    of: Scenario | None = None,
    **bundle: Any,
) -> SimulationResult:
    """Simulate requests given as (inter-arrival ns, prompt tokens, decode tokens) and check every invariant."""
    scenario = of or support.scenario(*overrides)
    lengths, intervals = support.workload(rows)
    result = simulate(
        scenario, lengths, intervals, made or support.bundle(scenario, **bundle), variant, cache_dir=cache_dir
    )
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


def test_the_request_limit_keeps_requests_waiting() -> None:
    result = run([(0, 10, 2)] * 5, "engine.max_num_seqs=2")
    assert result.iterations["num_running"].max() == 2
    assert list(result.iterations["num_waiting"]) == [3, 3, 1, 1, 0, 0]


def test_calibrated_adds_handover_step_overhead_and_delivery() -> None:
    rows = [
        support.step_row("mixed", 1, 100, 0, 0, 9 * MS),
        support.step_row("decode", 0, 0, 1, 100, 2 * MS),
        support.term_row("handover", 100, 0, 300_000),
        support.term_row("delivery", 0, 1, 50_000),
    ]
    result = run([(7 * MS, 100, 3)], variant="calibrated", flat=True, overheads=rows)
    first = 7 * MS + 300_000 + 9 * MS + 50_000
    assert token_times(result) == [first, first + 2 * MS, first + 4 * MS]
    assert result.requests["ttft_ns"].iloc[0] == first - 7 * MS
    assert result.requests["scheduled_time_ns"].iloc[0] == 7 * MS + 300_000
    assert result.settings["steps_outside_calibration"] == 0


def test_a_calibrated_composition_takes_its_measured_time() -> None:
    rows = support.default_overheads()
    rows += [
        support.step_row("mixed", 3, 60, 0, 0, 21_000_001),
        support.step_row("decode", 0, 0, 3, 60, 7_000_003),
        support.step_row("mixed", 1, 448, 3, 63, 33_000_005),
    ]
    # Three prompts of 20 tokens decode together; one of 448 joins them at their third step.
    result = run([(0, 20, 6)] * 3 + [(25 * MS, 448, 2)], variant="calibrated", overheads=rows)
    steps = result.iterations
    took = (steps["completion_time_ns"] - steps["scheduled_time_ns"]).tolist()
    composition = ["num_prefill_requests", "num_prefill_tokens", "num_decode_requests", "num_context_tokens"]
    assert steps[composition].iloc[:3].to_numpy().tolist() == [[3, 60, 0, 0], [0, 0, 3, 60], [1, 448, 3, 63]]
    assert took[:3] == [21_000_001, 7_000_003, 33_000_005]


def test_calibrated_operators_are_the_profilers_at_exact_tokens_and_contexts() -> None:
    scenario = support.scenario()
    model = support.operator_model(scenario, support.bundle(scenario))
    constant = 3 * MS
    calibration = [("decode", 0, 0, n, 100 * n) for n in (1, 8, 32)] + [("mixed", 1, p, 0, 0) for p in (1, 300, 512)]
    rows = [
        support.step_row(
            kind, prefills, tokens, decodes, context,
            round(model.step_ns(tokens + decodes, [(0, tokens)] * prefills, [context / decodes] * decodes if decodes else [])) + constant,
        )
        for kind, prefills, tokens, decodes, context in calibration
    ]  # fmt: skip
    rows += [support.term_row("handover", 1, 0, 1), support.term_row("delivery", 0, 1, 1)]
    result = run([(0, 77, 3), (0, 13, 2), (30 * MS, 1000, 3)], variant="calibrated", overheads=rows)
    expected = [
        (90, [(0, 77), (0, 13)], []),
        (2, [], [77, 13]),
        (1, [], [78]),
        (512, [(0, 512)], []),
        (488, [(512, 488)], []),
        (1, [], [1000]),
        (1, [], [1001]),
    ]
    took = (result.iterations["completion_time_ns"] - result.iterations["scheduled_time_ns"]).tolist()
    assert took == pytest.approx([model.step_ns(*step) + constant for step in expected], abs=1)


def test_kernels_prefill_is_looked_up_at_tokens_before_the_chunk() -> None:
    scenario = support.scenario()
    model = support.operator_model(scenario, support.bundle(scenario))
    result = run([(0, 1024, 1)])
    took = (result.iterations["completion_time_ns"] - result.iterations["scheduled_time_ns"]).tolist()
    assert took == pytest.approx([model.step_ns(512, [(context, 512)], []) for context in (0, 512)], abs=1)


def test_no_token_overtakes_an_earlier_one_on_its_way_to_the_client() -> None:
    rows = [
        *(row for row in support.default_overheads() if row["term"] != "delivery"),
        support.term_row("delivery", 0, 1, 1),
        support.term_row("delivery", 0, 8, 500 * MS),
    ]
    result = run([(0, 10, 2)] * 7 + [(0, 10, 9)], variant="calibrated", overheads=rows)
    assert (result.tokens["token_latency_ns"] >= 0).all()


# --- variants and settings --------------------------------------------------------------------------------------------


def test_twice_slower_operators_double_the_time_per_token(tmp_path: Path) -> None:
    for kind in ("interpolation", "forest"):
        override = f"simulation.predictor={kind}"
        once, twice = (run(MIX[:1], override, scale=scale, cache_dir=tmp_path) for scale in (1.0, 2.0))
        ratio = twice.tokens["token_latency_ns"].sum() / once.tokens["token_latency_ns"].sum()
        assert ratio == pytest.approx(2, rel=0.02), kind


def test_settings_say_what_was_simulated() -> None:
    scenario = support.scenario("engine.num_kv_blocks=null")
    made = support.bundle(scenario, num_kv_blocks=777)
    result = run(MIX, "engine.num_kv_blocks=null", made=made)
    wanted = {
        "max_num_seqs": 32, "max_num_batched_tokens": 512, "block_size": 32, "num_kv_blocks": 777, "head_dim": 64,
        "kv_bytes_per_token": 4096, "enable_prefix_caching": False, "async_scheduling": False, "dtype": "float32",
        "scheduler": "sarathi", "rounding_tokens": {"step_tokens": 8, "prefill_chunk": 32, "context": 16},
    }  # fmt: skip
    assert {name: result.settings[name] for name in wanted} == wanted


def test_qwen3_0_6b_has_114688_kv_bytes_per_token() -> None:
    geometry = [f"model.geometry.{name}={value}" for name, value in support.QWEN3_0_6B if name != "tie_word_embeddings"]
    result = run([(0, 50, 3)], "model.dtype=bfloat16", *geometry)
    assert (result.settings["head_dim"], result.settings["kv_bytes_per_token"]) == (128, 114_688)


def test_steps_outside_the_calibration_are_counted() -> None:
    rows = [row for row in support.default_overheads() if row["num_prefill_tokens"] <= 64]
    result = run([(0, 100, 5)], variant="calibrated", overheads=rows)
    assert result.settings["steps_outside_calibration"] == 1


def test_graphs_pad_steps_to_captured_sizes() -> None:
    rows = [
        *(support.step_row("decode", 0, 0, n, 64 * n, (10 + n) * MS) for n in (1, 8)),
        support.step_row("mixed", 1, 16, 0, 0, 30 * MS),
        support.step_row("mixed_eager", 1, 100, 0, 0, 90 * MS),
        support.term_row("handover", 64, 0, 1),
        support.term_row("delivery", 0, 1, 1),
    ]
    result = run(
        [(0, 4, 2)] * 4 + [(0, 84, 2)],
        variant="calibrated", flat=True, overheads=rows, enforce_eager=False, cudagraph_capture_sizes=[1, 8, 16],
    )  # fmt: skip
    took = (result.iterations["completion_time_ns"] - result.iterations["scheduled_time_ns"]).tolist()
    # 100 prompt tokens run eagerly; five decodes as eight. Five prompts take four more attention lookups than the calibrated one.
    attention_ns = round(0.02 * 4 * MS)
    assert took == [90 * MS + 4 * attention_ns, 18 * MS]


# --- KV pressure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_preempted_requests_complete_and_are_counted(variant: str) -> None:
    # 9 blocks of 32 to give: two prompts of 100 tokens take 8; beyond 128 tokens each needs a fifth.
    result = run([(0, 100, 50), (1 * MS, 100, 50)], "engine.num_kv_blocks=10", variant=variant)
    assert result.requests["num_preemptions"].tolist() == [0, 1]
    assert result.num_preemptions == 1
    # The preempted request computes its prompt and the tokens it had handed out again.
    assert result.iterations["num_prefill_tokens"].sum() > 200


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
from gst_assets.vidur_adapter import predictor
from gst_assets_tests.vidur_adapter import support, test_simulate
predictor.FOREST["n_estimators"] = 5
for variant, kind in (("kernels", "forest"), ("kernels", "interpolation"), ("calibrated", "interpolation")):
    result = test_simulate.run(test_simulate.MIX, f"simulation.predictor={kind}", variant=variant)
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
    assert len(outputs[0].splitlines()) == 3


def test_forests_are_seeded_and_their_cache_changes_nothing(tmp_path: Path) -> None:
    def digest(*overrides: str, cache_dir: Path | None) -> str:
        result = run(MIX, "simulation.predictor=forest", *overrides, cache_dir=cache_dir)
        return hashlib.sha256(support.csv_bytes(result)).hexdigest()

    uncached = digest(cache_dir=None)
    assert digest(cache_dir=tmp_path) == uncached
    (stored,) = tmp_path.iterdir()
    assert digest(cache_dir=tmp_path) == uncached
    stored.write_bytes(stored.read_bytes()[:1000])
    assert digest(cache_dir=tmp_path) == uncached
    assert digest("simulation.seed=1", cache_dir=tmp_path) != uncached
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_written_printed_or_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a simulation must not open a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    run(MIX, "simulation.predictor=forest", variant="kernels")
    run(MIX, variant="calibrated")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_importing_the_adapter_imports_neither_vidur_nor_sklearn() -> None:
    program = (
        "import sys, gst_assets.vidur_adapter, gst_assets.vidur_adapter.simulate\n"
        "print([n for n in ('vidur', 'sklearn', 'scipy', 'wandb', 'torch', 'dagster', 'pandera') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert done.stdout.strip() == "[]"


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
        (["engine.enable_prefix_caching=true"], {}, "engine.enable_prefix_caching: Vidur 0.0.26 has no prefix cache"),
        ([], {"enable_chunked_prefill": False}, "enable_chunked_prefill is off in the profiled engine"),
        ([], {"block_size": 16}, "engine.block_size is 32, but bundle was profiled with blocks of 16 tokens"),
        (["model.geometry.num_q_heads=6"], {}, "hidden_size to be a multiple of num_q_heads, found 256 and 6"),
    ],
)
def test_settings_vidur_cannot_simulate_are_refused(overrides: list[str], engine: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        run(MIX, *overrides, **engine)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(SimulationError, match=r"unknown variant 'fast'; .* published, kernels, calibrated"):
        run(MIX, variant="fast")


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


def test_overheads_that_outweigh_a_step_are_refused() -> None:
    rows = [
        support.step_row("mixed", 1, 500, 0, 0, 1),
        support.step_row("decode", 0, 0, 1, 64, 1 * MS),
        support.term_row("handover", 64, 0, 1),
        support.term_row("delivery", 0, 1, 1),
    ]
    with pytest.raises(SimulationError, match=r"would take -\d+ ns: .* Calibrate at compositions closer"):
        run([(0, 8, 2)], variant="calibrated", overheads=rows)


def test_a_calibrated_forest_takes_its_measured_time_too(tmp_path: Path) -> None:
    rows = [*support.default_overheads(), support.step_row("mixed", 1, 100, 0, 0, 17_000_001)]
    result = run([(0, 100, 2)], "simulation.predictor=forest", variant="calibrated", overheads=rows, cache_dir=tmp_path)
    first = result.iterations.iloc[0]
    assert first["completion_time_ns"] - first["scheduled_time_ns"] == 17_000_001
