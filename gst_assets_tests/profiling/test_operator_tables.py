"""What becomes of the times of batches in the operator tables, at times that are known beforehand. That a real worker
measures them is tested in `test_measure_bundle`, `test_tensor_parallel` and `test_experts`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from gst_assets.profiling.operator_tables import measure_operators
from gst_assets.profiling.worker_ops import ALL_REDUCE, MODEL_OPERATORS, layer_operators
from gst_assets.scenario import Scenario, load_scenario

LAYERS_NS, ONCE_NS, SUM_NS = 8_000, 3_000, 5_000
"""Of an operator over all layers, of one that runs once a step, and of one sum over the devices."""


class KnownTimes:
    """A worker whose operators take those times, on each of the scenario's ranks."""

    def __init__(self, scenario: Scenario) -> None:
        self.ranks = scenario.engine.tensor_parallel_size
        self.facts = scenario.model.geometry.model_dump() | {
            "device_type": "cpu",
            "attention_backend": "CPU_ATTN",
            "architecture": "Qwen3ForCausalLM",
            "tensor_parallel_size": self.ranks,
            "bytes_per_value": 2,
            "block_size": scenario.engine.block_size,
            "num_kv_blocks": 100,
            "max_model_len": scenario.model.max_model_len,
        }

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        """As `VllmEngine.collective_rpc`."""
        if method == "gst_operator_facts":
            return [self.facts] * self.ranks
        batches, _, repeats, wanted = arguments
        times = dict.fromkeys(layer_operators(has_experts=False), LAYERS_NS) | dict.fromkeys(MODEL_OPERATORS, ONCE_NS)
        times |= {ALL_REDUCE: SUM_NS} if self.ranks > 1 else {}
        return [[[{name: times[name] for name in wanted}] * repeats for _ in batches]] * self.ranks


def measured(overrides: Sequence[str]) -> dict[str, Any]:
    scenario = load_scenario("smoke", overrides)
    tables, _ = asyncio.run(measure_operators(KnownTimes(scenario), scenario, lambda *_: None))
    return tables


def values(frame: pd.DataFrame, *columns: str) -> set[float]:
    """Those that the columns hold, to the femtosecond."""
    return {round(value, 12) for name in columns for value in frame[name]}


@pytest.mark.parametrize("ranks", [1, 2])
def test_times_are_per_layer_of_what_every_layer_has_and_whole_of_everything_else(ranks: int) -> None:
    tables = measured([f"engine.tensor_parallel_size={ranks}"])
    per_layer_ms = LAYERS_NS / load_scenario("smoke").model.geometry.num_layers / 1e6
    mlp = tables["mlp.csv"]
    columns = [name for name in mlp if name.startswith("time_stats.") and name != "time_stats.add.median"]
    assert len(columns) == 8 and values(mlp, *columns) == {per_layer_ms}
    assert values(tables["attention.csv"], "time_stats.attn_kv_cache_save.median") == {per_layer_ms}
    assert values(tables["unmodelled.csv"], "median_ms") == {ONCE_NS / 1e6}
    assert ("all_reduce.csv" in tables) == (ranks > 1)
    if ranks > 1:
        assert values(tables["all_reduce.csv"], "time_stats.all_reduce.median") == {SUM_NS / 1e6}
