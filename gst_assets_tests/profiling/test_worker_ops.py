"""What the profiler's worker does around the operators that it times on a GPU. That it measures them is tested on a GPU;
here its parts of vLLM's model are stand-ins, as no engine without a GPU has quantised weights or captures graphs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gst_assets.errors import ProfileError
from gst_assets.profiling import worker_ops
from gst_assets.profiling.worker_ops import OperatorTimer


class Quantiser:
    """As vLLM's `QuantFP8`, a method of which is the one that runs."""

    def __init__(self) -> None:
        self._forward_method = self.forward_native

    def forward_native(self) -> str:
        return "compiled"

    def forward_cuda(self) -> str:
        return "kernel"


class KvWriter:
    def do_kv_cache_update(self) -> None:
        pass


class Clock:
    """Runs what it is to time, once."""

    def nanoseconds(self, _: str, run: Callable[[], object], __: int, repeats: int) -> list[int]:
        run()
        return [1] * repeats


class Worker(OperatorTimer):
    """Of layers whose operators say how their input was quantised."""

    def __init__(self, num_ranks: int = 1) -> None:
        self.num_ranks = num_ranks
        self.quantised_by: list[str] = []
        self.layers = [self.layer(index) for index in range(2)]

    def layer(self, index: int) -> Any:
        def projection(name: str) -> Any:
            method = SimpleNamespace(fp8_linear=SimpleNamespace(quant_fp8=Quantiser()))
            return SimpleNamespace(quant_method=method, reduce_results=True, prefix=f"model.layers.{index}.{name}")

        attention = {name: projection(f"self_attn.{name}") for name in ("qkv_proj", "o_proj")}
        mlp = {name: projection(f"mlp.{name}") for name in ("gate_up_proj", "down_proj")}
        inner = SimpleNamespace(impl=KvWriter())
        return SimpleNamespace(self_attn=SimpleNamespace(attn=inner, **attention), mlp=SimpleNamespace(**mlp))

    def _gst_layers(self) -> list[Any]:
        return self.layers

    def _gst_num_ranks(self) -> int:
        return self.num_ranks

    def _gst_ranks(self) -> Any:
        return None if self.num_ranks == 1 else "group"

    def _quantization(self) -> dict[str, str | None]:
        return {"quantization": "fp8"}

    def quantise(self, layer: Any) -> None:
        self.quantised_by.append(layer.self_attn.qkv_proj.quant_method.fp8_linear.quant_fp8._forward_method())

    def _gst_operators(self, *_: Any) -> Any:
        self.quantise(self.layers[0])  # it runs the projections to get the shapes of what follows them
        return {"attn": lambda _: None, "attn_pre_proj": self.quantise}, {}


def test_no_projection_with_fp8_weights_compiles_its_quantising() -> None:
    worker = Worker()
    times = worker._gst_replay({}, Clock(), 2, ["attn_pre_proj"])  # type: ignore[arg-type]
    assert times == [{"attn_pre_proj": 1}] * 2
    assert worker.quantised_by == ["kernel"] * 3
    worker.quantise(worker.layers[0])
    assert worker.quantised_by[-1] == "compiled"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_graphs_outlive_a_call_only_where_other_ranks_know_them(
    num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_ops, "GraphClock", lambda ranks=None: SimpleNamespace(ranks=ranks))
    worker = Worker(num_ranks)
    first, second = worker._gst_graph_clock(), worker._gst_graph_clock()
    assert (first is second) == (num_ranks > 1)
    assert [one.ranks for one in (first, second)] == [worker._gst_ranks()] * 2  # type: ignore[attr-defined]
    kept = [value for value in vars(worker).values() if value in (first, second)]
    assert kept == ([first] if num_ranks > 1 else [])


def test_a_projection_that_leaves_its_sum_to_others_is_named_and_nothing_is_changed() -> None:
    worker = Worker(num_ranks=2)
    summing = [one for layer in worker.layers for one in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    with worker._gst_without_sums():
        assert not any(one.reduce_results for one in summing)
    assert all(one.reduce_results for one in summing)
    worker.layers[1].mlp.down_proj.reduce_results = False
    with (
        pytest.raises(ProfileError, match=r"model\.layers\.1\.mlp\.down_proj leaves .* Set engine\.tensor_parallel_s"),
        worker._gst_without_sums(),
    ):
        pass
    assert [one.reduce_results for one in summing] == [True, True, True, False]
