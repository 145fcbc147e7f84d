"""Costs of a step by its shape, the host's speed over time, and a request's ways there and back."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import ProfileError
from gst_assets.step_costs.engine_costs import EngineCosts, HostSpeedTrace, RequestWays, StepCost
from gst_assets.step_costs.shapes import DECODE, MIXED, MIXED_EAGER, CapturedGraphs, StepShape
from gst_assets.testing.simulation_inputs import (
    constant_overheads,
    cost_row,
    default_overheads,
    overheads_table,
    speed_table,
)

BLOCK_NS, STRATA = 250_000_000, 16
GRAPHS = CapturedGraphs((1, 2, 4, 8, 64))


def costs(rows: list[dict[str, object]], *kinds: str, graphs: CapturedGraphs = GRAPHS, **more: object) -> EngineCosts:
    return EngineCosts(overheads_table(rows), graphs, kinds or (DECODE, MIXED), "b/overheads.csv", **more)  # type: ignore[arg-type]


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_decode_steps_parts() -> None:
    # Five decodes run as eight; they are five requests to prepare, to copy and to process.
    found = costs(default_overheads()).step(StepShape(5, 1000, ()))
    share = 4 / 31  # of the way from 1 to 32 requests
    assert found == pytest.approx(
        StepCost(
            form=0,
            prepare=310_000,
            launch=405_000,
            lead_in=20_000,
            device=2_000_000 + 50_000 * 8 + (16 + 8) * 1000,
            drain=15_000,
            copy_out=30_500 + share * 15_500,
            process=52_000 + share * 62_000,
        )
    )


def test_a_mixed_steps_parts() -> None:
    # 3 decodes and prompts of 20 (after 100) and 5 tokens: 28 tokens run as 64.
    found = costs(default_overheads()).step(StepShape(3, 700, [(100, 20), (0, 5)]))
    assert found.prepare == 500_000 + 9_000 * 2 + 300 * 25 + 2_000 * 3
    assert found.launch == 1_200_000 + 9_000 * 2 + 300 * 25 + 2_000 * 3
    pairs = 20 * 100 + 210 + 15
    assert found.device == 2_500_000 + 20_000 * 64 + 80_000 * 2 + 7_000 * 3 + 20 * 700 + 3 * pairs


def test_a_step_beyond_the_captured_graphs_has_terms_of_its_own() -> None:
    rows = constant_overheads(prepare=1, device_mixed=5, device_mixed_eager=9)
    made = costs(rows, DECODE, MIXED, MIXED_EAGER)
    assert [made.step(StepShape(0, 0, [(0, n)])).device for n in (1, 64, 65)] == [5, 5, 9]


@given(st.integers(1, 40), st.integers(0, 4000), st.integers(0, 500))
def test_a_decode_step_grows_by_its_rise_with_context(decodes: int, context: int, more: int) -> None:
    made = costs(default_overheads())
    before, after = (made.step(StepShape(decodes, tokens, ())) for tokens in (context, context + more))
    assert after.device - before.device == pytest.approx(made.decode_rise_ns(decodes) * more, abs=1e-6)
    assert after._replace(device=0) == before._replace(device=0)


def test_a_bundle_without_a_slope_over_context_has_none() -> None:
    rows = [row for row in constant_overheads(device=5) if row["feature"] == "base"]
    assert costs(rows).decode_rise_ns(3) == 0


def test_after_an_idle_time_a_kind_takes_its_own_or_what_any_takes() -> None:
    made = costs(default_overheads(), DECODE, MIXED, MIXED_EAGER)
    shapes = (StepShape(2, 9, ()), StepShape(0, 0, [(0, 9)]), StepShape(0, 0, [(0, 900)]))
    idle = [(made.step(shape), made.after_idle(made.step(shape), made.kind(shape))) for shape in shapes]
    assert [after.prepare - cost.prepare for cost, after in idle] == pytest.approx([100_000, 700_000, 100_000])
    assert all(after.launch == cost.launch for cost, after in idle)


def test_more_decodes_than_were_calibrated_are_outside() -> None:
    # The largest calibrated batch is 32: 15 % more are still taken as calibrated.
    made = costs(default_overheads())
    assert [made.is_outside(StepShape(n, 9 * n, ())) for n in (1, 32, 36, 37)] == [False, False, False, True]
    assert made.is_outside(StepShape(37, 333, [(0, 5)]))


@pytest.mark.parametrize("term", ["prepare", "launch", "lead_in", "device", "drain"])
@pytest.mark.parametrize("kind", [DECODE, MIXED, MIXED_EAGER])
def test_every_part_of_every_kind_that_may_be_met_is_needed(term: str, kind: str) -> None:
    rows = [row for row in default_overheads() if (row["term"], row["step_kind"]) != (term, kind)]
    with pytest.raises(ProfileError, match=rf"b/overheads\.csv: no {term} rows of step_kind {kind}, which"):
        costs(rows, DECODE, MIXED, MIXED_EAGER)
    if kind == MIXED_EAGER:
        costs(rows, DECODE, MIXED)


@pytest.mark.parametrize("term", ["copy_out", "process", "handover", "delivery"])
def test_every_part_that_has_no_kind_is_needed(term: str) -> None:
    rows = [row for row in default_overheads() if row["term"] != term]
    with pytest.raises(ProfileError, match=rf"no {term} rows of step_kind any"):
        costs(rows)


# --- the host's speed -------------------------------------------------------------------------------------------------


@cache
def trace_table(num_blocks: int) -> pd.DataFrame:
    """Twenty rows of each part a block; the blocks' speeds differ, and are no sequence."""
    rng = np.random.default_rng(0)
    rows = []
    for block in range(num_blocks):
        speed = float(rng.uniform(0.8, 3.0))
        for place in range(20):
            at = block * BLOCK_NS + place * BLOCK_NS // 20
            rows += [(at, part, speed + 1e-3 * place) for part in ("decode", "prefill")]
            rows += [(at, "delivery", 100.0 / speed)]
    return speed_table(rows)


def ratios_of(trace: HostSpeedTrace, part: str, num_blocks: int) -> np.ndarray:
    """The ratio in the middle of each of so many blocks of simulated time."""
    return trace.ratios(part, np.arange(num_blocks) * BLOCK_NS + BLOCK_NS // 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(0, 5), st.lists(st.integers(0, 10**11), min_size=1, max_size=30))
def test_many_ratios_are_ratios_one_by_one(num_blocks: int, seed: int, times: list[int]) -> None:
    trace = HostSpeedTrace(trace_table(num_blocks), seed)
    for part in ("decode", "prefill", "delivery"):
        assert trace.ratios(part, np.array(times)).tolist() == [trace.ratio(part, at) for at in times]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 50))
def test_every_round_of_blocks_meets_every_speed(rounds: int, seed: int) -> None:
    num_blocks = rounds * STRATA
    trace = HostSpeedTrace(trace_table(num_blocks), seed)
    met = ratios_of(trace, "decode", num_blocks)
    assert sorted(met) == sorted(set(met))  # every block once
    strata = np.argsort(np.argsort(met)) // rounds
    for begin in range(0, num_blocks, STRATA):
        assert sorted(strata[begin : begin + STRATA]) == list(range(STRATA))
    # ... and over again.
    assert ratios_of(trace, "decode", 2 * num_blocks)[num_blocks:].tolist() == met.tolist()


def test_the_mean_over_some_seconds_hardly_depends_on_the_seed() -> None:
    table = trace_table(10 * STRATA)
    means = [ratios_of(HostSpeedTrace(table, seed), "decode", STRATA).mean() for seed in range(20)]
    rng = np.random.default_rng(0)
    everything = ratios_of(HostSpeedTrace(table, 0), "decode", 10 * STRATA)
    drawn = [rng.choice(everything, STRATA, replace=False).mean() for _ in range(20)]
    assert np.std(means) < 0.2 * np.std(drawn)


def test_the_seed_orders_the_blocks_and_nothing_else() -> None:
    table = trace_table(3 * STRATA)
    one, same, other = (ratios_of(HostSpeedTrace(table, seed), "prefill", 3 * STRATA) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes()
    assert one.tolist() != other.tolist()
    assert sorted(one) == sorted(other)


def test_a_block_is_kept_in_its_sequence() -> None:
    trace = HostSpeedTrace(trace_table(STRATA), 3)
    for block in range(STRATA):
        at = block * BLOCK_NS + np.arange(20) * (BLOCK_NS // 20)
        assert np.diff(trace.ratios("decode", at)) == pytest.approx(1e-3)
        # Its deliveries are those of the same moments.
        assert trace.ratios("delivery", at) == pytest.approx([100 / trace.ratio("decode", int(at[0]))] * 20)


def test_how_slow_a_block_is_does_not_depend_on_its_deliveries() -> None:
    table = trace_table(3 * STRATA)
    changed = table.assign(ratio=table["ratio"].where(table["part"] != "delivery", 7.0))
    one, other = (ratios_of(HostSpeedTrace(each, 1), "decode", 3 * STRATA) for each in (table, changed))
    assert one.tolist() == other.tolist()


def test_without_a_trace_the_host_takes_its_median() -> None:
    still, moved = (costs(default_overheads(), speed=speed) for speed in (None, HostSpeedTrace(trace_table(4), 0)))
    assert still.ratio(has_prefill=True, at_ns=5) == 1.0
    rows = [(0, "decode", 2.0), (0, "prefill", 3.0), (0, "delivery", 4.0)]
    trace = HostSpeedTrace(speed_table(rows), 0)
    moved = costs(default_overheads(), speed=trace)
    assert (moved.ratio(has_prefill=False, at_ns=5), moved.ratio(has_prefill=True, at_ns=5)) == (2.0, 3.0)


# --- a request's ways -------------------------------------------------------------------------------------------------


def test_hand_over_goes_by_prompt_and_delivery_by_the_decodes_of_the_step() -> None:
    rows = [cost_row("handover", ns, position=n) for n, ns in ((100, 200), (300, 400.6))]
    rows += [cost_row("delivery", ns, position=n) for n, ns in ((1, 50), (11, 150))]
    ways = RequestWays(overheads_table(rows), "b/overheads.csv")
    assert [ways.handover_ns(n) for n in (1, 100, 200, 999)] == [200, 200, 300, 401]
    decodes, at = np.array([0, 1, 6, 11, 500, 6]), np.zeros(6, dtype=np.int64)
    assert ways.deliveries_ns(decodes, at).tolist() == [50, 50, 100, 150, 150, 100]
    slow = RequestWays(
        overheads_table(rows), "b", HostSpeedTrace(speed_table([(0, "delivery", 2.0), (0, "decode", 5.0)]), 0)
    )
    assert slow.deliveries_ns(decodes, at).tolist() == [100, 100, 200, 300, 300, 200]
    assert slow.handover_ns(100) == 200
    for term in ("handover", "delivery"):
        with pytest.raises(ProfileError, match=f"b/overheads.csv: no {term} rows"):
            RequestWays(overheads_table([row for row in rows if row["term"] != term]), "b/overheads.csv")
