"""Formulas for many steps against one step at a time: equal to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.profiling.bundle import load_bundle
from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS, OperatorModel
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.vidur_adapter.operator_times import (
    ExactOperators,
    OperatorTimes,
    StepShape,
    VidurOperators,
    decode_run_ns,
    shape_of,
)
from gst_assets.vidur_adapter.overheads import Composition, Knots, Piece
from gst_assets.vidur_adapter.steps import CapturedGraphs
from gst_assets.vidur_adapter.tables import decode_surface, interpolated_tables, prefill_surface

_BUNDLE = load_bundle(PROJECT_ROOT / "data" / "profiles" / "h100" / "qwen3-0.6b")
MODEL = OperatorModel(_BUNDLE.mlp, _BUNDLE.attention, 28)
TABLES = interpolated_tables(MODEL)
PADDED = CapturedGraphs(_BUNDLE.meta.engine_settings.cudagraph_capture_sizes).padded
EXACT = ExactOperators(TABLES, 28, PADDED, decode_surface(MODEL), prefill_surface(MODEL))
VIDUR = VidurOperators(TABLES, 28, lambda tokens: -(-tokens // 8) * 8, 16)

batches, contexts = st.integers(1, 256), st.integers(1, 4000)


@given(st.integers(1, 2048), batches, st.floats(1, 4000), st.integers(0, 4000), st.integers(1, 2048))
def test_tables_are_the_profilers_interpolation(
    tokens: int, batch: int, context: float, present: int, chunk: int
) -> None:
    for name in PER_TOKEN_OPERATORS:
        assert TABLES[name][tokens,] == MODEL.per_token_ms(name, tokens)
    decode, prefill = decode_surface(MODEL), prefill_surface(MODEL)
    assert decode.at(batch, context) == MODEL.attn_decode_ms(batch, context)
    assert prefill.at(present, chunk) == MODEL.attn_prefill_ms(present, chunk)


def test_outside_the_profiled_range_is_refused() -> None:
    for ask in (
        lambda: TABLES["add"][10**6,],
        lambda: EXACT.decode_piece(10**6, 10),
        lambda: TABLES["attn_decode"][1, 1e9],
    ):
        with pytest.raises(ProfileError, match="outside the profiled range"):
            ask()


@given(
    st.dictionaries(st.tuples(st.integers(1, 6), st.integers(0, 40)), st.floats(-1e6, 1e6), min_size=1, max_size=12),
    st.floats(0, 8),
    st.integers(0, 50),
)
def test_a_piece_of_knots_is_the_function_until_it_ends(
    measured: dict[tuple[int, int], float], first: float, start: int
) -> None:
    knots = Knots.through([((float(a), float(b)), value, 1) for (a, b), value in measured.items()])
    piece = knots.piece(first, float(start))
    inside = np.array([x for x in start + np.arange(0, 60) / 4 if x == start or x < piece.until])
    one_by_one = [knots.at(first, float(x)) for x in inside]
    assert [piece.at(float(x)) for x in inside] == one_by_one
    assert piece.at(inside).tolist() == one_by_one


@settings(deadline=None)
@given(st.sampled_from([EXACT, VIDUR]), batches, contexts, st.integers(0, 255), st.integers(1, 300))
def test_a_run_is_its_steps(operators: OperatorTimes, batch: int, context: int, more: int, num_steps: int) -> None:
    context_tokens = batch * context + more % batch
    run = decode_run_ns(lambda mean: operators.decode_piece(batch, mean), batch, context_tokens, num_steps)
    shapes = [StepShape(batch, context_tokens + step * batch, ()) for step in range(num_steps)]
    assert run == [round(operators.ns(shape)) for shape in shapes]


def test_a_run_ends_before_a_step_that_takes_no_time_or_leaves_the_profiled_range() -> None:
    def falling(context: float) -> Piece:
        if context > 90:
            raise ProfileError("outside")
        return Piece(lambda at: 20.0 - at, 30.0) if context < 30 else Piece(lambda at: at, 91.0)

    assert decode_run_ns(falling, 2, 34, 100) == [3, 2, 1]
    assert decode_run_ns(falling, 2, 40, 100) == []
    assert decode_run_ns(falling, 1, 88, 100) == [88, 89, 90]
    with pytest.raises(ProfileError):
        decode_run_ns(falling, 1, 91, 100)


@given(st.integers(0, 9), st.integers(0, 500), st.integers(0, 9), st.integers(0, 5000))
def test_the_shape_of_a_composition_has_it(prefills: int, tokens: int, decodes: int, context: int) -> None:
    if prefills + decodes == 0:
        return
    step = Composition(prefills, tokens if prefills else 0, decodes, context)
    assert shape_of(step).composition == step
