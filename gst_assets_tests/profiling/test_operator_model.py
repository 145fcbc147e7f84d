"""Interpolation is exact where it must be, and refuses what was not profiled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS, OperatorModel
from gst_assets.scenario import load_scenario
from gst_assets_tests.profiling import tables

SCENARIO = load_scenario("smoke")
PROFILE = SCENARIO.profile
LAYERS = SCENARIO.model.geometry.num_layers
MODEL = OperatorModel(tables.mlp_table(SCENARIO), tables.attention_table(SCENARIO), LAYERS)


@given(st.sampled_from(PER_TOKEN_OPERATORS), st.floats(PROFILE.num_tokens[0], PROFILE.num_tokens[-1]))
def test_a_linear_operator_is_reproduced_between_points(operator: str, num_tokens: float) -> None:
    assert MODEL.per_token_ms(operator, num_tokens) == pytest.approx(tables.per_token_ms(operator, num_tokens))


@given(
    st.floats(PROFILE.decode_batch_sizes[0], PROFILE.decode_batch_sizes[-1]),
    st.floats(PROFILE.decode_context_sizes[0], PROFILE.decode_context_sizes[-1]),
)
def test_bilinear_decode_is_reproduced_between_points(batch: float, context: float) -> None:
    assert MODEL.attn_decode_ms(batch, context) == pytest.approx(tables.attn_decode_ms(batch, context))


@given(
    st.floats(PROFILE.prefill_context_sizes[0], PROFILE.prefill_context_sizes[-1]),
    st.floats(PROFILE.prefill_chunk_sizes[0], PROFILE.prefill_chunk_sizes[-1]),
)
def test_bilinear_prefill_is_reproduced_between_points(context: float, chunk: float) -> None:
    assert MODEL.attn_prefill_ms(context, chunk) == pytest.approx(tables.attn_prefill_ms(context, chunk))


def test_arrays_are_read_elementwise_and_broadcast() -> None:
    batches, contexts = np.array([[1], [3], [8]]), np.array([1, 700])
    found = MODEL.attn_decode_ms(batches, contexts)
    assert found.shape == (3, 2)
    assert found[2, 1] == MODEL.attn_decode_ms(8, 700)
    assert MODEL.per_token_ms("mlp_act", [1, 2, 512]).shape == (3,)


def test_a_step_is_vidurs_sum_over_operators_and_layers() -> None:
    per_token = sum(tables.per_token_ms(name, 68) for name in PER_TOKEN_OPERATORS)
    attention = tables.attn_prefill_ms(128, 64) + tables.attn_decode_ms(4, 250)
    found = MODEL.step_ns(68, [(128, 64)], [100, 200, 300, 400])
    assert found == pytest.approx((per_token + attention) * LAYERS * 1e6)


def test_the_sum_is_the_one_vidur_computes() -> None:
    """The sum of Vidur's own entity, KV-cache write included as an argument."""
    from vidur._native.entities import ExecutionTime

    names = ("attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "input_layernorm", "post_attention_layernorm")
    rest = [float(MODEL.per_token_ms(name, 12)) for name in names]
    attention = [0.5, float(MODEL.attn_decode_ms(4, 250)), float(MODEL.attn_prefill_ms(16, 8))]
    vidur = ExecutionTime(
        LAYERS,
        float(MODEL.per_token_ms("attn_rope", 12)),
        *attention,
        float(MODEL.per_token_ms("attn_pre_proj", 12)),
        *rest,
        float(MODEL.per_token_ms("add", 12)),
        0.0,
        0.0,
    )
    assert MODEL.step_ns(12, [(16, 8)], [250] * 4) == pytest.approx(vidur.total_time * 1e9)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: MODEL.per_token_ms("mlp_act", 513), "mlp.csv: num_tokens 513 is outside the profiled range 1 to 512"),
        (lambda: MODEL.per_token_ms("mlp_act", [1, 0]), "num_tokens 0 is outside"),
        (lambda: MODEL.per_token_ms("mlp_act", float("nan")), "num_tokens nan is outside"),
        (
            lambda: MODEL.attn_decode_ms(33, 10),
            r"attention.csv \(decode\): batch_size 33 is outside the profiled range 1 to 32",
        ),
        (lambda: MODEL.attn_decode_ms(1, 2049), "kv_cache_size 2049 is outside"),
        (lambda: MODEL.attn_prefill_ms(1537, 1), r"attention.csv \(prefill\): kv_cache_size 1537 is outside"),
        (lambda: MODEL.attn_prefill_ms(0, 513), "prefill_chunk_size 513 is outside"),
        (lambda: MODEL.per_token_ms("attn", 1), "no operator 'attn'"),
    ],
)
def test_what_was_not_profiled_is_refused(call, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProfileError, match=named):
        call()


def test_a_hole_in_the_grid_is_named() -> None:
    attention = tables.attention_table(SCENARIO)
    hole = (attention["batch_size"] == 8) & (attention["kv_cache_size"] == 256)
    with pytest.raises(ProfileError, match="the decode grid has no value at batch_size 8, kv_cache_size 256"):
        OperatorModel(tables.mlp_table(SCENARIO), attention[~hole], LAYERS)


def test_a_table_of_one_point_serves_that_point_alone() -> None:
    scenario = load_scenario("smoke", ["profile.prefill_context_sizes=[0]"])
    model = OperatorModel(tables.mlp_table(scenario), tables.attention_table(scenario), LAYERS)
    assert model.attn_prefill_ms(0, 32) == pytest.approx(tables.attn_prefill_ms(0, 32))
    with pytest.raises(ProfileError, match="kv_cache_size 1 is outside the profiled range 0 to 0"):
        model.attn_prefill_ms(1, 32)
