"""Terms of overheads.csv: a curve and slopes, at, between and beyond their points; what is missing is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.step_costs.terms import Features, Terms, features, position_of, slopes_of
from gst_assets.testing.simulation_inputs import cost_row, overheads_table

EAGER = CapturedGraphs(())


def terms(rows: list[dict[str, object]], graphs: CapturedGraphs = EAGER) -> Terms:
    return Terms(overheads_table(rows), graphs, "b/overheads.csv")


def test_the_features_of_a_step() -> None:
    held = features(StepShape(3, 700, [(100, 20), (0, 5)]))
    assert held == Features(
        prefill_request=2, prefill_token=25, decode_request=3, decode_context_token=700, attention_pair=2225
    )
    warm = features(StepShape(3, 700, [(100, 20), (0, 5)]), 0.25)
    assert warm == held._replace(warm_token=(25 + 3) * 0.25, warmth=0.25)


@given(st.floats(0, 600), st.integers(0, 9), st.integers(0, 500), st.integers(0, 40), st.integers(0, 9000))
def test_a_term_is_its_curve_and_slopes(
    position: float, prefills: int, tokens: int, decodes: int, context: int
) -> None:
    rows = [cost_row("device", ns, "mixed", position=at) for at, ns in ((8, 1000), (64, 5000), (512, 9000))]
    rows += [
        cost_row("device", ns, "mixed", feature) for feature, ns in (("prefill_request", 70), ("attention_pair", 0.5))
    ]
    found = terms(rows).of("device", "mixed").ns(position, Features(prefills, tokens, decodes, context, 10 * tokens))
    low, high = max(position - 8, 0), min(position, 512) - 64
    base = 1000 + 4000 * low / 56 if position <= 64 else 5000 + 4000 * high / 448
    assert found == pytest.approx(base + 70 * prefills + 0.5 * 10 * tokens)


def test_a_slope_may_be_a_curve_over_the_position_too() -> None:
    rows = [cost_row("device", 1000, "decode", position=n) for n in (1, 64)]
    rows += [cost_row("device", ns, "decode", "decode_context_token", at) for at, ns in ((1, 2), (4, 8), (8, 0))]
    device = terms(rows).of("device", "decode")
    assert [device.slope("decode_context_token", at) for at in (0, 1, 2, 4, 6, 8, 64)] == [2, 2, 4, 8, 4, 0, 0]
    assert device.ns(2, Features(0, 0, 2, 100, 0)) == 1000 + 4 * 100
    assert device.slope("attention_pair", 2) == 0  # it has none


def test_the_ends_of_a_curve_are_held_and_the_last_point_is_told() -> None:
    found = terms([cost_row("delivery", ns, position=at) for at, ns in ((4, 10), (16, 70))]).of("delivery")
    assert [found.base.at(n) for n in (0, 4, 10, 16, 1000)] == [10, 10, 40, 70, 70]
    assert found.largest_position == 16


@pytest.mark.parametrize(
    ("term", "kind", "position"),
    [
        ("device", "mixed", 64.0),  # 25 prompt tokens and three decodes, padded to the next captured size
        ("device", "mixed_eager", 64.0),
        ("prepare", "decode", 3.0),
        ("launch", "decode", 3.0),
        ("prepare", "mixed", 0.0),
        ("launch", "mixed", 0.0),
        ("process", "any", 5.0),
        ("copy_out", "any", 5.0),
        ("lead_in", "decode", 0.0),
        ("drain", "mixed", 0.0),
        ("prepare_after_idle", "any", 0.0),
    ],
)
def test_where_on_its_curve_a_step_lies(term: str, kind: str, position: float) -> None:
    held = features(StepShape(3, 700, [(100, 20), (0, 5)]))
    assert position_of(term, kind, held, CapturedGraphs((8, 64))) == position


def test_which_slopes_are_fitted() -> None:
    assert slopes_of("device", "decode") == ("decode_context_token", "reread_context_token", "warmth")
    assert "attention_pair" in slopes_of("device", "mixed")
    assert slopes_of("launch", "decode") == slopes_of("process", "any") == slopes_of("drain", "mixed") == ()
    assert slopes_of("prepare", "mixed") == ("prefill_request", "prefill_token", "decode_request")


def test_a_term_without_rows_of_a_kind_has_those_of_any() -> None:
    found = terms([cost_row("prepare_after_idle", 5), cost_row("prepare_after_idle", 9, "mixed")])
    nothing = Features(0, 0, 0, 0, 0)
    assert [found.step_ns("prepare_after_idle", kind, nothing) for kind in ("decode", "mixed", "mixed_eager")] == [
        5,
        9,
        5,
    ]


def test_missing_terms_are_named_with_their_kinds() -> None:
    made = terms([cost_row("prepare", 5, "decode"), cost_row("process", 1)])
    made.require([("prepare", "decode"), ("process", "any")])
    with pytest.raises(
        ProfileError,
        match=(
            r"b/overheads\.csv: no prepare rows of step_kind mixed, no copy_out rows of step_kind any, which variant"
            r" calibrated needs\. Profile again"
        ),
    ):
        made.require([("prepare", "decode"), ("prepare", "mixed"), ("copy_out", "any")])


def test_slopes_without_a_curve_are_refused() -> None:
    with pytest.raises(
        ProfileError, match=r"b/overheads\.csv: term device of step_kind mixed has no row with feature base\. Profile"
    ):
        terms([cost_row("device", 5, "mixed", "prefill_request")])
