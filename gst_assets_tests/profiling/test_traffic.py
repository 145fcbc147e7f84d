"""Calibration traffic: seeded, different in every round, within what engine and model take, and of no use once a
request failed."""

from __future__ import annotations

import asyncio

import pytest

from gst_assets.errors import ProfileError
from gst_assets.profiling import traffic
from gst_assets.profiling.calibration import ROUNDS
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets_tests.engine.memory_engine import MemoryEngine

SCENARIO = load_scenario("smoke", ["profile.traffic_rates_per_s=[20,80]", "profile.traffic_segment_s=0.1"])


def test_a_round_has_a_segment_for_each_rate_and_a_burst_that_fills_the_engine() -> None:
    scenario = load_scenario("h100_8b_half")
    first, again, other = (traffic.segments(scenario, number) for number in (0, 0, 1))
    assert first == again and {one.name for one in first}.isdisjoint(one.name for one in other)
    profile = scenario.profile
    assert [one.rate_per_s for one in first] == [*profile.traffic_rates_per_s, None]
    expected = [max(2, round(rate * profile.traffic_segment_s)) for rate in profile.traffic_rates_per_s]
    assert [one.num_requests for one in first] == [*expected, scenario.engine.max_num_seqs]


def test_short_traffic_is_played_where_the_scenario_asks_for_it() -> None:
    scenario = load_scenario("h100_8b_prefix")
    rates = scenario.profile.short_traffic_rates_per_s
    *flowing, burst = traffic.segments(scenario, 0)
    short = [one for one in flowing if one.has_short_prompts and not one.has_shared_prefixes]
    assert rates and tuple(one.rate_per_s for one in short) == rates and not burst.has_short_prompts
    lengths = [len(one.request.prompt_token_ids) for each in short for one in traffic.requests(each, scenario, 0)]
    assert max(lengths) <= 512 and max(lengths) > 300
    (other, *_) = (one for one in reversed(flowing) if not one.has_short_prompts)
    assert max(len(one.request.prompt_token_ids) for one in traffic.requests(other, scenario, 0)) > 512


def test_prompts_of_shared_traffic_begin_alike() -> None:
    """An eighth, a quarter or a half of the longest prompt, and then up to 512 tokens that nobody else has."""
    scenario = load_scenario("h100_8b_prefix")
    shared = [one for one in traffic.segments(scenario, 0) if one.has_shared_prefixes]
    assert tuple(one.rate_per_s for one in shared) == scenario.profile.shared_traffic_rates_per_s != ()
    longest = min(2 * scenario.engine.max_num_batched_tokens, scenario.model.max_model_len - 300)
    prompts = [tuple(one.request.prompt_token_ids) for one in traffic.requests(shared[-1], scenario, 0)]
    for size in (longest // 8, longest // 4, longest // 2):
        alike = [prompt for prompt in prompts if sum(prompt[:size] == other[:size] for other in prompts) > 1]
        assert len(alike) > len(prompts) / 5
    assert len(set(prompts)) == len(prompts)
    assert max(map(len, prompts)) <= longest // 2 + 512 and min(map(len, prompts)) >= longest // 8 + 16
    again = traffic.requests(traffic.segments(scenario, 1)[-2], scenario, 1)  # the burst is the last one
    assert {prompt[:100] for prompt in prompts}.isdisjoint(
        tuple(one.request.prompt_token_ids[:100]) for one in again
    )  # another round's prefixes are others


@pytest.mark.parametrize("name", scenario_names())
def test_requests_are_seeded_and_fit_engine_and_model(name: str) -> None:
    scenario = load_scenario(name)
    model, engine = scenario.model, scenario.engine
    for segment in traffic.segments(scenario, 0)[::2]:
        planned = traffic.requests(segment, scenario, 0)
        assert planned == traffic.requests(segment, scenario, 0)
        assert len(planned) == segment.num_requests
        arrivals = [item.arrival_time_ns for item in planned]
        assert arrivals == sorted(arrivals) and bool(segment.rate_per_s) == any(arrivals)
        for item in planned:
            prompt = item.request.prompt_token_ids
            assert 16 <= len(prompt) <= 2 * engine.max_num_batched_tokens
            assert 1 <= item.request.num_decode_tokens <= 300
            assert len(prompt) + item.request.num_decode_tokens <= model.max_model_len
            assert min(prompt) >= 0 and max(prompt) < model.geometry.vocab_size


def test_rounds_head_starts_and_warm_ups_share_no_prompt_and_no_name() -> None:
    """A prefix cache must not know a prompt that a later round plays, and an engine refuses an id twice."""
    asked = [(segment, number) for number in range(ROUNDS) for segment in traffic.segments(SCENARIO, number)]
    asked += [(traffic.middle_segment(SCENARIO, number), number) for number in range(ROUNDS)]
    asked += [(segment, 0) for segment in traffic.warm_up_segments(SCENARIO)]
    planned = [item.request for segment, number in asked for item in traffic.requests(segment, SCENARIO, number)]
    assert len({request.request_id for request in planned}) == len(planned)
    assert len({tuple(request.prompt_token_ids) for request in planned}) == len(planned)


def test_another_seed_is_other_traffic() -> None:
    segment, *_ = traffic.segments(SCENARIO, 0)
    other = SCENARIO.model_copy(update={"profile": SCENARIO.profile.model_copy(update={"seed": 1})})
    assert traffic.requests(segment, SCENARIO, 0) != traffic.requests(segment, other, 0)


def test_a_segment_is_played_to_its_last_token_and_a_failed_request_is_an_error() -> None:
    segment, *_ = traffic.segments(SCENARIO, 0)
    planned = traffic.requests(segment, SCENARIO, 0)
    played = asyncio.run(traffic.play(MemoryEngine(step_s=0.0), SCENARIO, segment, 0))
    assert [len(result.token_ids) for result in played.results] == [item.request.num_decode_tokens for item in planned]
    with pytest.raises(
        ProfileError,
        match=r"calibration round 0 traffic 20/s: a request failed \(EngineError: out of luck .*\)\. Check",
    ):
        asyncio.run(traffic.play(MemoryEngine(fail={planned[1].request.request_id}), SCENARIO, segment, 0))
