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
from gst_assets.workload.spec import LoadedWorkload
from gst_assets.workload.tokenized import prompts_of
from gst_assets_tests.vidur_adapter.prefix_session import SHARED_BLOCKS

pytestmark = pytest.mark.engine

SESSIONS = (
    "{num_sessions: 20, session_rate_per_s: 1.5, min_turns: 1, max_turns: 4, least_turn_gap_s: 1.0, mean_turn_gap_s:"
    " 1.5, num_system_prompts: 3, system_tokens: {kind: uniform, min_tokens: 60, max_tokens: 200}, user_tokens: {kind:"
    " uniform, min_tokens: 5, max_tokens: 60}, decode_tokens: {kind: uniform, min_tokens: 1, max_tokens: 40}}"
)


# Tokens of the prompt and Mooncake's ids of its blocks of 512 tokens.
HASH_IDS = [
    (900, [7, 1]), (920, [7, 2]), (100, [9]), (860, [8, 3]), (840, [7, 4]), (100, [9]), (1000, [8, 3]), (1000, [8, 3]),
    (830, [8, 5]),
]  # fmt: skip


def hash_id_lines() -> str:
    return "".join(
        json.dumps({"timestamp": at, "input_length": tokens, "output_length": 4, "hash_ids": ids}) + "\n"
        for at, (tokens, ids) in enumerate(HASH_IDS)
    )


def talks() -> str:
    """Four of ShareGPT's conversations of three turns each."""
    spoken = [
        [
            part
            for turn in range(3)
            for part in (
                ("human", f"Question {talk}.{turn}: {'tell me more about it, ' * 20}"),
                ("gpt", "Of course, here it is. " * 4),
            )
        ]
        for talk in range(4)
    ]
    return json.dumps([{"conversations": [{"from": who, "value": text} for who, text in one]} for one in spoken])


def test_the_engine_takes_from_its_cache_what_the_simulation_says_request_by_request(tmp_path: Path) -> None:
    gaps = "{session_rate_per_s: 20.0, least_turn_gap_s: 0.2, mean_turn_gap_s: 0.4}"
    traces = {
        "hash_ids": (hash_id_lines(), "shared_prefixes: true"),
        "talks": (talks(), f"licence: own, sessions: {gaps}"),
    }
    sources = [f"workload.sessions={SESSIONS}"]
    for name, (content, settings) in traces.items():
        (tmp_path / f"{name}.trace").write_text(content)
        sources.append(f"workload.trace={{path: {tmp_path / name}.trace, {settings}}}")
    scenarios, workloads, arguments = [], [], []
    for place, source in enumerate(sources):
        overrides = [
            "workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null",
            "workload.arrivals={kind: trace}", source, "engine.enable_prefix_caching=true",
            "engine.num_kv_blocks=48", "model.max_model_len=1024",
        ]  # fmt: skip
        scenarios.append(load_scenario("smoke", overrides))
        resolved, directory = tmp_path / f"{place}.json", tmp_path / str(place)
        resolved.write_text(scenarios[-1].model_dump_json())
        directory.mkdir()
        workloads.append(build(scenarios[-1], directory))
        arguments += [str(resolved), str(directory)]
    lines = run_module("gst_assets_tests.vidur_adapter.prefix_session", arguments)
    together, *alone, shared_steps = [
        json.loads(line.removeprefix("facts ")) for line in lines if line.startswith("facts ")
    ]

    def simulated(of: Scenario, workload: LoadedWorkload, intervals: pd.DataFrame) -> list[int]:
        result = simulate(
            of, workload.lengths, intervals, support.bundle(of), "kernels",
            cache_dir=None, prompts=prompts_of(workload, of),
        )  # fmt: skip
        return [int(tokens) for tokens in result.requests["num_cached_tokens"]]

    everything = []
    for real, scenario, workload in zip(alone, scenarios, workloads, strict=True):
        spaced = workload.intervals.copy()
        spaced["inter_arrival_ns"] = pd.array([60_000_000_000] * len(spaced), dtype="Int64")
        spaced["arrival_time_ns"] = spaced["inter_arrival_ns"].cumsum()
        # One after another, so that nothing depends on times: in 47 blocks with room for some of the sessions, the same
        # ones are evicted.
        assert real == simulated(scenario, workload, spaced)
        assert 0 < sum(real) < 0.8 * workload.lengths["num_prefill_tokens"].sum()
        roomy = scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"num_kv_blocks": 1024})})
        everything.append(simulated(roomy, workload, spaced))
        assert everything[-1] != real  # so something was evicted
    # As they arrive: the last blocks of two requests that overlap may be given up in another order, and those are
    # evicted first. Whole blocks in any case, never more than there can be.
    expected = simulated(scenarios[0], workloads[0], workloads[0].intervals)
    assert sum(one == two for one, two in zip(together, expected, strict=True)) >= 0.95 * len(expected)
    block = scenarios[0].engine.block_size
    assert all(0 <= one <= most and one % block == 0 for one, most in zip(together, everything[0], strict=True))
    assert sum(together) > 0
    # Whole blocks that two prompts have in common, up to where their ids differ; of a prompt met before, all but the
    # last block.
    assert alone[1][:2] == [0, 512] and alone[1][7] == 992
    # Whoever decodes has the same two blocks first, and all but one of them read these again.
    size = SHARED_BLOCKS * scenarios[0].engine.block_size
    assert shared_steps and all(reread == max(decodes - 1, 0) * size for decodes, reread in shared_steps)
    assert max(decodes for decodes, _ in shared_steps) == 4
