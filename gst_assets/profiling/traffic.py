"""Open-loop calibration traffic: what an engine is given so that its steps cost what they cost while serving.

Random prompts at several rates and bursts, played by the same replay as a workload; nothing of a comparison's workload
is in it. What it shows is read off by `calibration` and `step_samples`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gst_assets.engine.protocol import Engine, EngineRequest
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.errors import ProfileError
from gst_assets.scenario import Scenario
from gst_assets.scenario.profile_section import SHARED_TRAFFIC

_SHORTEST, _LONGEST_OUTPUT = 16, 300
_LONGEST_SHORT = 512
"""Tokens of a short prompt, at most: what is left of a prompt whose beginning is cached."""
_PREFIX_PARTS = (8, 4, 2)
"""Of the longest prompt a shared prefix takes one of these parts: an eighth, a quarter, a half."""


@dataclass(frozen=True)
class Segment:
    """Requests with exponential gaps at `rate_per_s`; None: all together. `has_short_prompts`: 512 tokens at most,
    after the beginning that `has_shared_prefixes` gives each."""

    name: str
    rate_per_s: float | None
    num_requests: int
    has_short_prompts: bool = False
    has_shared_prefixes: bool = False


def segments(scenario: Scenario, round_index: int) -> list[Segment]:
    """One segment for each of the profile's traffic rates, short and shared ones included, `traffic_segment_s` long,
    then a burst that fills the engine."""
    found = [
        _segment(f"round {round_index} traffic {rate:g}/s", rate, scenario)
        for rate in scenario.profile.traffic_rates_per_s
    ]
    found += [
        replace(_segment(f"round {round_index} short traffic {rate:g}/s", rate, scenario), has_short_prompts=True)
        for rate in scenario.profile.short_traffic_rates_per_s
    ]
    found += [
        replace(
            _segment(f"round {round_index} {SHARED_TRAFFIC} {rate:g}/s", rate, scenario),
            has_short_prompts=True,
            has_shared_prefixes=True,
        )
        for rate in scenario.profile.shared_traffic_rates_per_s
    ]
    return [*found, Segment(f"round {round_index} burst", None, scenario.engine.max_num_seqs)]


def middle_segment(scenario: Scenario, round_index: int) -> Segment:
    """Traffic at the middle one of the rates, under a name of its own, so of other prompts."""
    rates = scenario.profile.traffic_rates_per_s
    return _segment(f"round {round_index} head start", rates[len(rates) // 2], scenario)


def warm_up_segments(scenario: Scenario) -> list[Segment]:
    """Traffic whose measurements are not used: the highest rate and a burst, so that every kernel has run and the
    process is as a serving one is."""
    rates = scenario.profile.traffic_rates_per_s
    return [_segment("warm-up", rates[-1], scenario), Segment("warm-up burst", None, scenario.engine.max_num_seqs)]


def _segment(name: str, rate_per_s: float, scenario: Scenario) -> Segment:
    return Segment(name, rate_per_s, max(2, round(rate_per_s * scenario.profile.traffic_segment_s)))


def requests(segment: Segment, scenario: Scenario, round_index: int) -> list[PlannedRequest]:
    """The segment's requests: prompts log-uniform from 16 tokens to two whole steps (as far as the model takes them;
    short ones to 512), outputs log-uniform from 16 to 300. A shared prefix comes before that."""
    profile, model = scenario.profile, scenario.model
    rng = np.random.Generator(np.random.PCG64([profile.seed, round_index, *segment.name.encode()]))
    number = segment.num_requests
    longest = min(2 * scenario.engine.max_num_batched_tokens, model.max_model_len - _LONGEST_OUTPUT)
    prefix_sizes = [longest // part for part in _PREFIX_PARTS] if segment.has_shared_prefixes else []
    longest -= max(prefix_sizes, default=0)
    if segment.has_short_prompts:
        longest = min(longest, _LONGEST_SHORT)
    prompts = _log_uniform(rng, _SHORTEST, max(longest, _SHORTEST), number)
    outputs = _log_uniform(rng, _SHORTEST, _LONGEST_OUTPUT, number)
    gaps = rng.exponential(1e9 / segment.rate_per_s, number) if segment.rate_per_s else np.zeros(number)
    arrivals = np.cumsum(np.rint(gaps).astype(np.int64)).tolist()
    prompt_tokens = [rng.integers(0, model.geometry.vocab_size, prompt).tolist() for prompt in prompts]
    prefixes = [rng.integers(0, model.geometry.vocab_size, size).tolist() for size in prefix_sizes]
    if prefixes:
        prompt_tokens = [
            [*prefixes[place], *tokens]
            for place, tokens in zip(rng.integers(0, len(prefixes), number).tolist(), prompt_tokens, strict=True)
        ]
    return [
        PlannedRequest(
            EngineRequest(
                f"{segment.name.replace(' ', '-')}-{index}",
                prompt,
                min(output, model.max_model_len - len(prompt)),
                index,
            ),
            arrival,
            "",
        )
        for index, (prompt, output, arrival) in enumerate(zip(prompt_tokens, outputs, arrivals, strict=True))
    ]


def _log_uniform(rng: np.random.Generator, low: int, high: int, number: int) -> list[int]:
    drawn: list[int] = np.exp(rng.uniform(np.log(low), np.log(high + 1), number)).astype(int).tolist()
    return drawn


async def play(engine: Engine, scenario: Scenario, segment: Segment, round_index: int) -> ReplayResult:
    """Play one segment.

    Raises:
        ProfileError: a request failed.
    """
    played = await replay(
        engine,
        requests(segment, scenario, round_index),
        request_timeout_s=scenario.replay.request_timeout_s,
        may_stop_early=False,
        realtime=scenario.replay.realtime_priority,
    )
    failed = next((result for result in played.results if result.error_type), None)
    if failed is not None:
        raise ProfileError(
            f"calibration {segment.name}: a request failed ({failed.error_type}: {failed.error_msg}). Check the"
            " engine's log and profile again."
        )
    return played
