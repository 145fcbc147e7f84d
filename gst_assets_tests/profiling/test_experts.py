"""A mixture of experts on the real engine: served, profiled by how its tokens are spread, and simulated."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.tables import read_table
from gst_assets.engine.launch import run_module
from gst_assets.errors import ProfileError
from gst_assets.profiling import operator_tables
from gst_assets.profiling.partial import PartialProfile
from gst_assets.profiling.served_experts import even_distinct_experts, served_experts
from gst_assets.profiling.worker_experts import expert_blocks
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import Bundle, check_bundle, load_bundle
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets_tests.engine.memory_engine import MemoryEngine
from gst_assets_tests.profiling.test_partial import begun_with
from gst_assets_tests.step_costs.test_bundle import BUNDLE_FILES

EXPERTS, CHOSEN = 8, 2
SCENARIO = load_scenario(
    "smoke",
    [
        "model.name=mixture-tiny",
        "model.geometry.architecture=Qwen3MoeForCausalLM",
        f"model.geometry.num_experts={EXPERTS}",
        f"model.geometry.num_experts_per_token={CHOSEN}",
        "model.geometry.mlp_hidden_size=128",
        "model.max_model_len=512",
        "engine.max_num_seqs=8",
        "engine.max_num_batched_tokens=128",
        "profile.num_tokens=[1,8,32,128]",
        "profile.prefill_chunk_sizes=[1,128]",
        "profile.prefill_context_sizes=[0,384]",
        "profile.decode_batch_sizes=[1,8]",
        "profile.decode_context_sizes=[1,512]",
        "profile.operator_repeats=5",
        "profile.calibration_prefill_sizes=[16,96]",
        "profile.traffic_rates_per_s=[2,8]",
        "profile.traffic_segment_s=1.5",
    ],
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("experts")
    (folder / "scenario.json").write_text(SCENARIO.model_dump_json())
    out = folder / "root" / "cpu" / "mixture-tiny"
    run_module("gst_assets.profiling.measure_bundle", ["--scenario", str(folder / "scenario.json"), "--out", str(out)])
    return load_bundle(out)


@pytest.mark.engine
def test_the_bundle_says_what_the_engine_ran_and_has_no_mlp(bundle: Bundle) -> None:
    assert set(bundle.sha256) == {*BUNDLE_FILES, "experts.csv", "served_experts.csv"}
    worker = bundle.meta.model_dump()["worker"]
    assert (worker["architecture"], worker["mlp_hidden_size"]) == ("Qwen3MoeForCausalLM", 128)
    assert (worker["num_experts"], worker["num_experts_per_token"], worker["norm_topk_prob"]) == (8, 2, True)
    assert worker["expert_kernel"] == bundle.meta.engine_settings.expert_kernel == bundle.kernels["expert_kernel"]
    assert "expert" in worker["expert_kernel"].lower() and set(bundle.kernels) == {"attention_backend", "expert_kernel"}
    assert bundle.mlp[[f"time_stats.mlp_{name}.median" for name in ("up_proj", "act", "down_proj")]].isna().all(None)
    check_bundle(bundle, SCENARIO)
    other = SCENARIO.model.geometry.model_copy(update={"num_experts_per_token": 3})
    with pytest.raises(ProfileError, match="num_experts_per_token is 2, but the scenario expects 3"):
        model = SCENARIO.model.model_copy(update={"geometry": other})
        check_bundle(bundle, SCENARIO.model_copy(update={"model": model}))


@pytest.mark.engine
def test_experts_are_timed_under_the_routers_choice_and_under_both_extremes(bundle: Bundle) -> None:
    assert bundle.experts is not None
    counts = bundle.experts.pivot(index="num_tokens", columns="routing", values="distinct_experts")
    tokens = counts.index.to_numpy(dtype="int64")
    assert tokens.tolist() == [1, 8, 32, 128]
    # The engine's own router was watched while the choice was set.
    assert counts["even"].tolist() == np.minimum(EXPERTS, CHOSEN * tokens).tolist()
    assert counts["same"].tolist() == [CHOSEN] * 4
    assert counts["router"].iloc[0] == CHOSEN and counts["router"].iloc[-1] == EXPERTS
    assert counts["router"].between(counts["same"], counts["even"]).all()
    times = bundle.experts.pivot(index="num_tokens", columns="routing", values="time_stats.moe_experts.median")
    assert (times.loc[128] > times.loc[1]).all()


@pytest.mark.engine
def test_served_steps_say_how_many_experts_they_read(bundle: Bundle) -> None:
    served = read_table(tables.ServedExperts, bundle.directory / "served_experts.csv")
    decode = served[served["step_kind"] == "decode"].set_index("num_tokens")
    assert {1, 8} <= set(decode.index) and decode.loc[1, "distinct_experts"] == CHOSEN
    assert decode.loc[1, "even_distinct_experts"] == CHOSEN
    sizes = served["num_tokens"].to_numpy(dtype="int64")
    assert (served["distinct_experts"] <= np.minimum(EXPERTS, CHOSEN * sizes)).all()
    assert (served["distinct_experts"] >= CHOSEN).all()
    assert set(served["step_kind"]) == {"decode", "mixed"}
    assert int(served["num_steps"].sum()) > 100


def test_steps_that_were_watched_before_are_not_played_again(tmp_path: Path) -> None:
    """What failed after it, as a table that could not be made, did not lose it."""
    played: list[str] = []

    class Engine(MemoryEngine):
        async def collective_rpc(self, method: str, *_: Any) -> list[Any]:
            played.append(method)
            return [[[1, 1, 8, 4], [1, 1, 8, 4], [20, 2, 28, 4], [5, 5, 9, 0]]]

    found = []
    for _ in range(2):
        with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
            found.append(asyncio.run(served_experts(Engine(), SCENARIO, partial)))
    assert played == ["gst_watch_experts", "gst_take_experts"] * 2
    other = SCENARIO.model_copy(update={"profile": SCENARIO.profile.model_copy(update={"seed": 7})})
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        asyncio.run(served_experts(Engine(), other, partial))  # as another version of the program may play
    assert len(played) == 8
    assert found[0] is not None
    pd.testing.assert_frame_equal(*found)
    assert found[0][["step_kind", "num_tokens", "num_steps", "distinct_experts"]].to_numpy().tolist() == [
        ["decode", 1, 4, 2.0],
        ["mixed", 20, 2, 7.0],
    ]


@pytest.mark.engine
def test_the_block_is_part_of_the_operators_sum(bundle: Bundle) -> None:
    coverage = read_table(tables.OperatorCoverage, bundle.directory / "operator_coverage.csv")
    assert bundle.experts is not None
    lone = coverage[(coverage["step_kind"] == "decode") & (coverage["num_tokens"] == 1)].iloc[0]
    first = bundle.experts[(bundle.experts["num_tokens"] == 1) & (bundle.experts["routing"] == "router")].iloc[0]
    block_ms = first["time_stats.moe_router.median"] + first["time_stats.moe_experts.median"]
    layers = SCENARIO.model.geometry.num_layers
    assert lone["operators_ns"] > block_ms * layers * 1e6
    assert 0.4 < lone["coverage"] < 1.5  # on a CPU whole steps hold the host's work


@pytest.mark.engine
@pytest.mark.parametrize("variant", ["kernels", "calibrated"])
def test_it_is_simulated(variant: str, bundle: Bundle) -> None:
    number = 12
    lengths = pd.DataFrame(
        {"request_id": range(number), "num_prefill_tokens": [20 + 9 * n for n in range(number)], "num_decode_tokens": 8}
    ).astype("Int64")
    lengths.insert(1, "prompt_id", "p")
    intervals = pd.DataFrame({"request_id": range(number), "inter_arrival_ns": 10**8}).astype("Int64")
    intervals["arrival_time_ns"] = intervals["inter_arrival_ns"].cumsum().copy()
    result = simulate(SCENARIO, lengths, intervals, bundle, variant, cache_dir=None)
    assert result.num_tokens == 8 * number and (result.requests["ttft_ns"] > 0).all()


def test_an_even_router_reaches_what_the_formula_says() -> None:
    geometry, rng = SCENARIO.model.geometry, np.random.default_rng(5)
    for tokens in (1, 3, 9):
        drawn = [
            len({expert for _ in range(tokens) for expert in rng.choice(EXPERTS, CHOSEN, replace=False).tolist()})
            for _ in range(4000)
        ]
        assert even_distinct_experts(geometry, tokens) == pytest.approx(float(np.mean(drawn)), abs=0.1)


class Reporting:
    """A worker that says of its model what it was made with."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        assert method == "gst_operator_facts" and not arguments
        return [self.facts]


@pytest.mark.parametrize(
    ("name", "other"),
    [("num_experts", 16), ("num_experts", None), ("num_experts_per_token", 1), ("norm_topk_prob", False),
     ("mlp_hidden_size", 768)],
)  # fmt: skip
def test_experts_that_the_engine_runs_otherwise_are_refused(name: str, other: Any) -> None:
    served = {**dict(SCENARIO.model.geometry), "tensor_parallel_size": 1, "quantization": None}
    assert asyncio.run(operator_tables._facts(Reporting(served), SCENARIO)) == served
    found = {**served, name: other} if other is not None else {key: served[key] for key in served if key != name}
    with pytest.raises(ProfileError, match=rf"model\.geometry\.{name} is .* smoke, but the engine runs {other}\."):
        asyncio.run(operator_tables._facts(Reporting(found), SCENARIO))


def test_layers_of_two_kinds_are_refused() -> None:
    class Part:
        def __init__(self, **parts: object) -> None:
            self.__dict__.update(parts)

    sparse = Part(mlp=Part(experts=Part(router=None), gate=None))
    assert expert_blocks([Part(mlp=Part())]) == [] and len(expert_blocks([sparse])) == 1
    with pytest.raises(ProfileError, match="1 of 2 layers have experts"):
        expert_blocks([sparse, Part(mlp=Part())])
