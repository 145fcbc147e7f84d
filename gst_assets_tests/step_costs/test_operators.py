"""The sum of operators: Vidur's own, over any grid; many steps at once equal to one at a time, to the last bit."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.step_costs.bundle import load_bundle
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS, OperatorTimes, WholeStepOperators
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape

LAYERS = 4
EAGER = CapturedGraphs(())
TOKENS, BATCHES, CONTEXTS = (1, 16, 128, 512), (1, 8, 32), (0, 256, 2048)
PRESENT, CHUNKS = (0, 512, 1536), (1, 64, 512)


def per_token_ms(operator: str, num_tokens: float) -> float:
    """Linear, another slope for each operator; `add` is fused away."""
    return 0.0 if operator == "add" else 0.01 + 0.001 * (1 + PER_TOKEN_OPERATORS.index(operator)) * num_tokens


def attn_prefill_ms(present: float, chunk: float) -> float:
    """Bilinear, so that interpolation is exact."""
    return 0.02 + 1e-4 * chunk + 1e-6 * chunk * present


def attn_decode_ms(batch: float, context: float) -> float:
    """Bilinear, so that interpolation is exact."""
    return 0.03 + 1e-3 * batch + 2e-6 * batch * context


def mlp_table() -> pd.DataFrame:
    columns = {f"time_stats.{name}.median": [per_token_ms(name, n) for n in TOKENS] for name in PER_TOKEN_OPERATORS}
    return pd.DataFrame({"num_tokens": TOKENS, **columns})


def attention_table() -> pd.DataFrame:
    nan = float("nan")
    rows = [(True, 1, q, kv, attn_prefill_ms(kv, q), nan, 0.001 + 1e-5 * q) for kv in PRESENT for q in CHUNKS]
    rows += [(False, n, 0, kv, nan, attn_decode_ms(n, kv), 0.001) for n in BATCHES for kv in CONTEXTS]
    columns = ["is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size"]
    columns += [f"time_stats.attn_{name}.median" for name in ("prefill", "decode", "kv_cache_save")]
    return pd.DataFrame(rows, columns=columns)


MADE = OperatorTimes(mlp_table(), attention_table(), LAYERS, EAGER)


def chunks_sum_ms(shape: StepShape, tokens: int) -> float:
    """The formulas' step, per layer."""
    total = sum(per_token_ms(name, tokens) for name in PER_TOKEN_OPERATORS)
    total += sum(attn_prefill_ms(present, new) for present, new in shape.chunks)
    if shape.num_decodes:
        total += attn_decode_ms(shape.num_decodes, shape.decode_context_tokens / shape.num_decodes)
    return total


shapes = st.builds(
    lambda decodes, mean, chunks: StepShape(decodes, decodes * mean, chunks),
    st.integers(0, 32), st.integers(1, 2000),
    st.lists(st.tuples(st.integers(0, 1536), st.integers(1, 120)), max_size=4),
).filter(lambda shape: shape.num_tokens > 0)  # fmt: skip


@given(shapes)
def test_a_step_is_the_formulas_sum_over_operators_and_layers(shape: StepShape) -> None:
    assert MADE.ns(shape) == pytest.approx(chunks_sum_ms(shape, shape.num_tokens) * LAYERS * 1e6)
    assert MADE.step_ns(shape) == round(MADE.ns(shape))


@given(shapes)
def test_captured_graphs_pad_tokens_and_nothing_else(shape: StepShape) -> None:
    graphs = CapturedGraphs((8, 64, 200))
    padded = OperatorTimes(mlp_table(), attention_table(), LAYERS, graphs)
    assert padded.ns(shape) == pytest.approx(chunks_sum_ms(shape, graphs.padded(shape.num_tokens)) * LAYERS * 1e6)


@given(shapes)
def test_the_sum_is_the_one_vidur_computes(shape: StepShape) -> None:
    """Of Vidur's own entity for the same times of operators; the KV-cache write, which it is given too, it leaves
    out."""
    from vidur.entities import ExecutionTime

    tokens, decodes = shape.num_tokens, shape.num_decodes
    after = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act")
    norms = ("input_layernorm", "post_attention_layernorm", "add")
    vidur = ExecutionTime(
        LAYERS,
        per_token_ms("attn_rope", tokens),
        0.5,
        attn_decode_ms(decodes, shape.decode_context_tokens / decodes) if decodes else 0.0,
        sum(attn_prefill_ms(present, new) for present, new in shape.chunks),
        *(per_token_ms(name, tokens) for name in (*after, *norms)),
        0.0,
        0.0,
    )
    assert MADE.ns(shape) == pytest.approx(vidur.total_time * 1e9, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (StepShape(0, 0, [(0, 513)]), r"mlp\.csv: num_tokens 513 is outside the profiled range 1 to 512"),
        (StepShape(33, 330, ()), r"attention\.csv \(decode\): batch_size 33 is outside the profiled range 1 to 32"),
        (StepShape(1, 2049, ()), "kv_cache_size 2049 is outside"),
        (StepShape(0, 0, [(1537, 1)]), r"attention\.csv \(prefill\): kv_cache_size 1537 is outside"),
        (StepShape(0, 0, [(0, 0), (0, 1)]), "prefill_chunk_size 0 is outside"),
    ],
)
def test_what_was_not_profiled_is_refused(shape: StepShape, named: str) -> None:
    with pytest.raises(ProfileError, match=named):
        MADE.step_ns(shape)


def test_a_hole_in_the_grid_is_named() -> None:
    attention = attention_table()
    hole = (attention["batch_size"] == 8) & (attention["kv_cache_size"] == 256)
    with pytest.raises(ProfileError, match="the decode grid has no value at batch_size 8, kv_cache_size 256"):
        OperatorTimes(mlp_table(), attention[~hole], LAYERS, EAGER)


# --- many steps -------------------------------------------------------------------------------------------------------


@cache
def shipped() -> OperatorTimes:
    return load_bundle(PROJECT_ROOT / "data" / "profiles" / "h100" / "qwen3-8b").operator_times()


@settings(deadline=None)
@given(st.booleans(), st.integers(1, 32), st.integers(1, 1900), st.integers(0, 31), st.integers(1, 300))
def test_a_run_is_its_steps(is_shipped: bool, batch: int, context: int, more: int, num_steps: int) -> None:
    operators = shipped() if is_shipped else MADE
    context_tokens = batch * context + more % batch
    run = operators.decode_run_ns(batch, context_tokens, num_steps)
    steps = [StepShape(batch, context_tokens + step * batch, ()) for step in range(len(run))]
    assert run == [operators.step_ns(shape) for shape in steps]
    # It is shorter only where the next step leaves the profiled range.
    if len(run) < num_steps:
        with pytest.raises(ProfileError, match="outside the profiled range"):
            operators.step_ns(StepShape(batch, context_tokens + len(run) * batch, ()))


def test_a_run_ends_where_the_profiled_range_does() -> None:
    assert len(MADE.decode_run_ns(2, 2 * 2040, 100)) == 9  # contexts 2040 to 2048
    with pytest.raises(ProfileError, match="kv_cache_size 2049 is outside"):
        MADE.decode_run_ns(1, 2049, 5)


@given(st.integers(1, 32), st.floats(0, 2048))
def test_a_decode_piece_is_the_step(batch: int, context: float) -> None:
    piece = MADE.decode_piece(batch, context)
    attention_ms = attn_decode_ms(batch, context)
    expected_ms = sum(per_token_ms(name, batch) for name in PER_TOKEN_OPERATORS) + attention_ms
    assert piece.at(context) == pytest.approx(expected_ms * LAYERS * 1e6)


# --- whole steps ------------------------------------------------------------------------------------------------------


def test_a_whole_step_adds_what_vidur_leaves_out() -> None:
    graphs = CapturedGraphs((1, 8, 64))
    once = {"embedding": 0.1, "final_norm": 0.01, "lm_head": 1.0, "sampling": 10.0}
    unmodelled = pd.DataFrame(
        [(name, rows, ms * rows) for name, ms in once.items() for rows in (1, 512)],
        columns=["operator", "num_rows", "median_ms"],
    )
    operators = OperatorTimes(mlp_table(), attention_table(), LAYERS, graphs)
    whole = WholeStepOperators(operators, attention_table(), unmodelled, LAYERS, graphs)
    shape = StepShape(3, 300, [(0, 20)])  # 23 tokens run as 64, of four sequences
    once_ms = (0.1 + 0.01) * 64 + (1.0 + 10.0) * 4
    kv_write_ms = LAYERS * (0.001 + 1e-5 * 64)
    assert whole.ns(shape) == pytest.approx(operators.ns(shape) + (once_ms + kv_write_ms) * 1e6)


# --- several devices --------------------------------------------------------------------------------------------------


@given(shapes)
def test_devices_that_share_each_layer_sum_twice_a_layer_at_the_padded_tokens(shape: StepShape) -> None:
    graphs = CapturedGraphs((8, 64, 200))
    all_reduce = pd.DataFrame({"num_tokens": [1, 512], "time_stats.all_reduce.median": [0.1, 0.1 + 511 * 1e-3]})
    alone = OperatorTimes(mlp_table(), attention_table(), LAYERS, graphs)
    shared = OperatorTimes(mlp_table(), attention_table(), LAYERS, graphs, all_reduce=all_reduce)
    sums_ms = 2 * LAYERS * (0.1 + (graphs.padded(shape.num_tokens) - 1) * 1e-3)
    assert shared.ns(shape) == pytest.approx(alone.ns(shape) + sums_ms * 1e6)
