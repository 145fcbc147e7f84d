"""Prompts are played one by one, and an engine that fails ends the calibration."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gst_assets.errors import EngineError, ProfileError
from gst_assets.profiling.calibration import (
    Calibrator,
    ladder_sizes,
)
from gst_assets.scenario import load_scenario
from gst_assets_tests.engine.memory_engine import SETTINGS, MemoryEngine
from gst_assets_tests.profiling.calibration.made_rounds import (
    SCENARIO,
)


def test_a_lone_prompt_is_sent_when_the_one_before_is_done() -> None:
    engine = MemoryEngine()
    seen = asyncio.run(Calibrator(engine, SCENARIO, is_gpu=False)._play_ladder(2))  # type: ignore[arg-type]
    assert [request.num_prefill_tokens for request in seen] == ladder_sizes(SCENARIO, SETTINGS)
    assert [name for what, name in engine.log if what == "begin"] == [f"ladder-2-{n}" for n in range(len(seen))]
    assert [what for what, _ in engine.log] == ["begin", "end"] * len(seen)
    for one, following in itertools.pairwise(seen):
        assert one.send_ns < one.token_times_ns[0] == one.first_token_ns <= following.send_ns


def test_an_engine_that_stalls_or_fails_ends_the_calibration() -> None:
    impatient = load_scenario("smoke", ["replay.request_timeout_s=0.05"])

    def play(engine: MemoryEngine) -> None:
        calibrator = Calibrator(engine, impatient, is_gpu=False)  # type: ignore[arg-type]
        asyncio.run(asyncio.wait_for(calibrator._play_ladder(0), 300))

    # The first hangs: another would have to have its tokens in that time before it.
    first = ladder_sizes(impatient, SETTINGS)[0]
    told = rf"calibration ladder: a prompt of {first} tokens had no token after replay\.request_timeout_s 0\.05 s"
    with pytest.raises(ProfileError, match=told):
        play(MemoryEngine(hang={"ladder-0-0"}))
    engine = MemoryEngine()
    engine.died.set()
    with pytest.raises(EngineError, match="dead already"):
        play(engine)
