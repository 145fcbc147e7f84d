"""How warm a device is: hand-worked, and bounded whatever it ran."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.step_costs.warmth import Warmth

MS = 1e6


def test_a_long_prompt_warms_decodes_and_rest_cool() -> None:
    warmth = Warmth()
    assert warmth.at(0.0) == 0.0
    warmth.ran(0.0, 30 * MS, 2048)
    assert warmth.at(30 * MS) == pytest.approx(1 - exp(-1))
    assert warmth.at(60 * MS) == pytest.approx((1 - exp(-1)) * exp(-1))
    warmth.ran(60 * MS, 90 * MS, 8)
    assert warmth.at(90 * MS) == pytest.approx((1 - exp(-1)) * exp(-2))


def test_a_step_of_few_tokens_does_not_warm() -> None:
    warmth = Warmth()
    warmth.ran(0.0, 100 * MS, 256)
    assert warmth.at(100 * MS) == 0.0
    warmth.ran(100 * MS, 1000 * MS, 257)
    assert warmth.at(1000 * MS) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.001, 200), st.integers(1, 4096)), max_size=20))
def test_it_is_a_share(steps: list[tuple[float, float, int]]) -> None:
    warmth, now = Warmth(), 0.0
    for pause_ms, length_ms, tokens in steps:
        begun = now + pause_ms * MS
        now = begun + length_ms * MS
        warmth.ran(begun, now, tokens)
        assert 0.0 <= warmth.at(now) <= 1.0
