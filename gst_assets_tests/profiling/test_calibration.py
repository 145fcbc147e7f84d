"""The calibration plan fits the engine, and what was seen is booked where it belongs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.contracts import tables as contract
from gst_assets.engine.protocol import EngineRequest, IterationField, RequestTimes, TokenMessage
from gst_assets.errors import ProfileError
from gst_assets.profiling import calibration
from gst_assets.profiling.async_steps import step_kind
from gst_assets.profiling.calibration import (
    ROUNDS,
    CalibrationBatch,
    Injection,
    overheads_table,
    plan,
    workload_digest,
)
from gst_assets.profiling.operator_model import OperatorModel
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets_tests.profiling import tables

SCENARIO = load_scenario("smoke")
OPERATORS = OperatorModel(tables.mlp_table(SCENARIO), tables.attention_table(SCENARIO), 4)


# --- plan -------------------------------------------------------------------------------------------------------------


def test_the_plan_is_the_same_every_time_and_follows_the_seed() -> None:
    assert plan(SCENARIO, 1024) == plan(SCENARIO, 1024)
    assert plan(SCENARIO, 1024) != plan(load_scenario("smoke", ["profile.seed=1"]), 1024)


@pytest.mark.parametrize("name", scenario_names())
def test_every_batch_fits_the_engine_and_the_operator_grid(name: str) -> None:
    scenario = load_scenario(name)
    engine, profile = scenario.engine, scenario.profile
    num_kv_blocks = engine.num_kv_blocks or 40_000  # null: what the engine finds room for, known once it runs
    batches = plan(scenario, num_kv_blocks)
    injected = [batch for batch in batches if batch.injections]
    assert {len(batch.lengths) for batch in batches if not batch.is_lone_prompt} == set(
        profile.calibration_decode_batch_sizes
    )
    assert {item.num_prefill_tokens for batch in injected for item in batch.injections} == set(
        profile.calibration_prefill_sizes
    )
    for batch in batches:
        longest = [prompt + output for prompt, output in batch.lengths]
        blocks = sum(-(-tokens // engine.block_size) for tokens in longest)
        assert blocks <= num_kv_blocks - 1
        assert max(longest) <= min(scenario.model.max_model_len, profile.decode_context_sizes[-1])
        running = max(batch.designed_decodes - {engine.max_num_seqs}, default=0)
        for injection in batch.injections:
            assert running + 1 <= engine.max_num_seqs
            assert injection.num_prefill_tokens + running <= engine.max_num_batched_tokens
            assert 2 <= injection.after_tokens < batch.lengths[-1][1]


def test_contexts_vary_within_and_between_rounds() -> None:
    prompts = [{prompt for prompt, _ in batch.lengths} for batch in plan(SCENARIO, 1024) if len(batch.lengths) == 32]
    assert len(prompts) == ROUNDS
    assert all(max(found) > 8 * min(found) for found in prompts)
    assert len(set(map(frozenset, prompts))) == ROUNDS


def test_a_full_batch_makes_room_for_the_injected_prompt() -> None:
    full = next(batch for batch in plan(SCENARIO, 1024) if len(batch.lengths) == SCENARIO.engine.max_num_seqs)
    assert full.designed_decodes == {32, 31}
    leaver = min(full.lengths, key=lambda pair: pair[1])
    assert leaver[1] < full.injections[0].after_tokens
    two = load_scenario("smoke", ["engine.max_num_seqs=2", "profile.calibration_decode_batch_sizes=[1,2]"])
    assert {frozenset(batch.designed_decodes) for batch in plan(two, 1024)} == {
        frozenset(d) for d in ({0}, {1}, {1, 2})
    }


def test_an_engine_of_one_sequence_is_planned_without_injections() -> None:
    scenario = load_scenario("smoke", ["engine.max_num_seqs=1", "profile.calibration_decode_batch_sizes=[1]"])
    assert not any(batch.injections for batch in plan(scenario, 1024))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "profile.calibration_decode_batch_sizes=[1,64]",
            "calibration_decode_batch_sizes has 64, but engine.max_num_seqs is 32",
        ),
        (
            "profile.calibration_prefill_sizes=[8,500]",
            "calibration_prefill_sizes has 500: with 31 decodes that is more than",
        ),
        ("profile.decode_context_sizes=[1,64]", "the largest of profile.decode_context_sizes 64"),
        ("profile.calibration_steps=12000", "model.max_model_len 2048"),
    ],
)
def test_an_impossible_plan_names_the_setting(override: str, named: str) -> None:
    with pytest.raises(ProfileError, match=named):
        plan(load_scenario("smoke", [override]), 1024)


def test_too_few_kv_blocks_are_named() -> None:
    with pytest.raises(ProfileError, match=r"engine\.num_kv_blocks is 64"):
        plan(SCENARIO, 64)


# --- digest and kind --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.data())
def test_the_digest_depends_on_every_length_and_arrival(lengths: list[tuple[int, int]], data: st.DataObject) -> None:
    arrivals = data.draw(st.lists(st.integers(0, 10**12), min_size=len(lengths), max_size=len(lengths)))
    place = data.draw(st.integers(0, len(lengths) - 1))
    same = workload_digest(np.array(lengths), np.array(arrivals))
    assert same == workload_digest(lengths, arrivals)
    longer = [*lengths[:place], (lengths[place][0], lengths[place][1] + 1), *lengths[place + 1 :]]
    later = [*arrivals[:place], arrivals[place] + 1, *arrivals[place + 1 :]]
    assert len({same, workload_digest(longer, arrivals), workload_digest(lengths, later)}) == 3


@pytest.mark.parametrize(
    ("tokens", "decodes", "captured", "kind"),
    [
        (0, 400, [1, 256], "decode"),
        (8, 0, [], "mixed"),
        (2048, 8, [], "mixed"),
        (248, 8, [1, 256], "mixed"),
        (249, 8, [1, 256], "mixed_eager"),
    ],
)
def test_step_kind(tokens: int, decodes: int, captured: list[int], kind: str) -> None:
    assert step_kind(tokens, decodes, captured) == kind


# --- what was seen ----------------------------------------------------------------------------------------------------


def _steps(rows: list[tuple[int, ...]]) -> np.ndarray:
    """Rows of (scheduled, completion, prefill requests, prefill tokens, decode requests, context tokens)."""
    steps = np.zeros((len(rows), len(IterationField)), dtype=np.int64)
    steps[:, :6] = rows
    return steps


def _request(prompt: int, seen: list[int], send: int, first: int, last: int) -> calibration._Request:
    return calibration._Request(prompt, len(seen), send, seen, first, last)


def _collect(played: list[calibration._Played], steps: np.ndarray) -> calibration.Samples:
    return calibration._collect(played, steps, tables.engine_settings(SCENARIO), OPERATORS)


def test_an_idle_step_begins_when_scheduled_and_a_busy_one_when_the_step_before_ends() -> None:
    ms = 1_000_000
    steps = _steps(
        [
            (100 * ms, 109 * ms, 1, 64, 0, 0),  # a lone prompt
            (200 * ms, 204 * ms, 1, 30, 0, 0),  # the batch's own prompt: not designed
            (205 * ms, 210 * ms, 0, 0, 1, 30),
            (211 * ms, 225 * ms, 1, 128, 1, 31),  # injected
            (226 * ms, 230 * ms, 0, 0, 1, 32),
        ]
    )
    lone = _request(64, [110 * ms], 99 * ms, 109 * ms - 500, 109 * ms - 500)
    batch = _request(30, [205 * ms, 211 * ms, 227 * ms, 232 * ms], 199 * ms, 204 * ms, 230 * ms)
    injected = _request(128, [228 * ms], 209 * ms, 225 * ms, 225 * ms)
    samples = _collect(
        [
            calibration._Played(CalibrationBatch("lone", ((64, 1),)), [lone], []),
            calibration._Played(CalibrationBatch("batch", ((30, 4),), (Injection(128, 2),)), [batch], [injected]),
        ],
        steps,
    )
    durations = {key: [sample[0] / ms for sample in found] for key, found in samples.steps.items()}
    assert durations == {("mixed", 1, 64, 0): [9], ("decode", 0, 0, 1): [6, 5], ("mixed", 1, 128, 1): [15]}
    assert samples.handover == {64: [1 * ms]}
    assert samples.delivery == {0: [1 * ms], 1: [1 * ms, 2 * ms]}
    ((_, context, operators),) = samples.steps["mixed", 1, 128, 1]
    assert context == 31
    assert operators == pytest.approx(OPERATORS.step_ns(129, [(0, 128)], [31]))


def test_a_prompt_that_met_another_or_was_cut_is_left_out() -> None:
    steps = _steps([(0, 4, 1, 30, 0, 0), (5, 9, 2, 200, 1, 30), (10, 14, 1, 28, 1, 131), (15, 19, 0, 0, 1, 32)])
    steps[:, :2] *= 1_000_000
    batch = _request(30, [5, 10, 15, 20], 0, 4_000_000, 19_000_000)
    together, cut = (_request(100, [99], 0, at, at) for at in (9_000_000, 14_000_000))
    played = calibration._Played(CalibrationBatch("batch", ((30, 4),), (Injection(100, 2),)), [batch], [together, cut])
    assert set(_collect([played], steps).steps) == {("decode", 0, 0, 1)}


def test_a_request_that_missed_a_step_is_an_error() -> None:
    steps = _steps([(0, 4, 1, 30, 0, 0), (5, 9, 0, 0, 1, 30), (10, 14, 0, 0, 1, 31)])
    steps[:, :2] *= 1_000_000
    request = _request(30, [5, 15], 0, 4_000_000, 14_000_000)
    played = calibration._Played(CalibrationBatch("round 0 batch 1", ((30, 2),)), [request], [])
    with pytest.raises(ProfileError, match="round 0 batch 1: a request with 2 tokens took 3 recorded engine steps"):
        _collect([played], steps)


def test_the_overheads_table_keeps_the_contract() -> None:
    table = contract.validate(contract.Overheads, overheads_table(tables.samples()), "overheads.csv")
    decode = table[(table["term"] == "step") & (table["num_decode_requests"] == 8)].iloc[0]
    assert (decode["median_ns"], decode["operators_ns"], decode["overhead_ns"]) == (5_000_002, 2_000_000, 3_000_002)
    assert (decode["num_context_tokens"], decode["num_samples"]) == (802, 5)
    handover = table[table["term"] == "handover"].iloc[0]
    assert (handover["num_prefill_tokens"], handover["overhead_ns"]) == (64, handover["median_ns"])


def test_rare_compositions_are_left_out() -> None:
    samples = tables.samples()
    samples.steps["decode", 0, 0, 3] = samples.steps["decode", 0, 0, 1][: calibration.MIN_SAMPLES - 1]
    table = overheads_table(samples)
    assert 3 not in set(table["num_decode_requests"])


@pytest.mark.parametrize("missing", ["decode", "mixed", "handover", "delivery"])
def test_a_term_that_was_hardly_seen_is_an_error(missing: str) -> None:
    samples = tables.samples()
    if missing in ("handover", "delivery"):
        getattr(samples, missing).clear()
    else:
        for key in [key for key in samples.steps if key[0] == missing]:
            del samples.steps[key]
    with pytest.raises(ProfileError, match=f"overheads.csv: {missing} seen fewer than 4 times"):
        overheads_table(samples)


# --- driving ----------------------------------------------------------------------------------------------------------


class _BunchingEngine:
    """Hands tokens out three at a time, as a client sees them that was held up. Real engines cannot be made to."""

    def __init__(self, stall: bool = False) -> None:
        self._stall = stall

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        left = request.num_decode_tokens
        while left:
            await asyncio.sleep(3600 if self._stall else 0.001)
            count, now = min(3, left), time.monotonic_ns()
            left -= count
            yield TokenMessage([7] * count, now, None if left else RequestTimes(first_token_ns=now, last_token_ns=now))


def test_injections_are_sent_although_token_counts_are_skipped() -> None:
    batch = CalibrationBatch("batch", ((5, 20),), tuple(Injection(8, after) for after in (4, 7, 8, 10)))
    driver = calibration._Driver(_BunchingEngine(), SCENARIO, 0)  # type: ignore[arg-type]
    played = asyncio.run(asyncio.wait_for(driver.play(batch), 20))
    assert [len(request.token_times_ns) for request in played.injected] == [1, 1, 1, 1]


def test_an_engine_that_stalls_ends_the_calibration() -> None:
    impatient = load_scenario("smoke", ["replay.request_timeout_s=0.05"])
    driver = calibration._Driver(_BunchingEngine(stall=True), impatient, 0)  # type: ignore[arg-type]
    with pytest.raises(
        ProfileError, match=r"calibration batch: a request of 20 tokens had 0 after replay\.request_timeout_s 0\.05 s"
    ):
        asyncio.run(asyncio.wait_for(driver.play(CalibrationBatch("batch", ((5, 20),), (Injection(8, 4),))), 20))
