"""Cached tokens of every request: the real engine's compared with those of the simulation, with a cache that is too
small for all."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.engine.launch import run_module
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets.workload.building import build
from gst_assets.workload.tokenized import prompts_of

pytestmark = pytest.mark.engine

SESSIONS = (
    "{num_sessions: 20, session_rate_per_s: 5, min_turns: 1, max_turns: 4, least_turn_gap_s: 0.2, mean_turn_gap_s:"
    " 0.4, num_system_prompts: 3, system_tokens: {kind: uniform, min_tokens: 60, max_tokens: 200}, user_tokens: {kind:"
    " uniform, min_tokens: 5, max_tokens: 60}, decode_tokens: {kind: uniform, min_tokens: 1, max_tokens: 40}}"
)


def test_the_engine_takes_from_its_cache_what_the_simulation_says_request_by_request(tmp_path: Path) -> None:
    overrides = [
        "workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null",
        "workload.arrivals={kind: trace}", f"workload.sessions={SESSIONS}",
        "engine.enable_prefix_caching=true",
    ]  # fmt: skip
    scenario = load_scenario("smoke", [*overrides, "engine.num_kv_blocks=48", "model.max_model_len=1024"])
    resolved = tmp_path / "scenario.json"
    resolved.write_text(scenario.model_dump_json())
    (tmp_path / "workload").mkdir()
    workload = build(scenario, tmp_path / "workload")
    lines = run_module("gst_assets_tests.vidur_adapter.prefix_session", [str(resolved), str(tmp_path / "workload")])
    (real,) = [json.loads(line.removeprefix("facts ")) for line in lines if line.startswith("facts ")]

    def simulated(of: Scenario, intervals: pd.DataFrame) -> list[int]:
        result = simulate(
            of, workload.lengths, intervals, support.bundle(of), "kernels",
            cache_dir=None, prompts=prompts_of(workload, of),
        )  # fmt: skip
        return [int(tokens) for tokens in result.requests["num_cached_tokens"]]

    spaced = workload.intervals.copy()
    spaced["inter_arrival_ns"] = pd.array([60_000_000_000] * len(spaced), dtype="Int64")
    spaced["arrival_time_ns"] = spaced["inter_arrival_ns"].cumsum()
    # One after another, so that nothing depends on times: in 47 blocks with room for some of the sessions, the same
    # ones are evicted.
    assert real["alone"] == simulated(scenario, spaced)
    roomy = scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"num_kv_blocks": 1024})})
    everything = simulated(roomy, spaced)
    # As they arrive, the speed of the engine decides which requests overlap, and so what is evicted and what is not
    # there yet: whole blocks, never more than there can be.
    block = scenario.engine.block_size
    assert all(0 <= one <= most and one % block == 0 for one, most in zip(real["together"], everything, strict=True))
    assert sum(real["together"]) > 0
    assert 0 < sum(real["alone"]) < 0.8 * workload.lengths["num_prefill_tokens"].sum()
    assert everything != real["alone"]  # so something was evicted
