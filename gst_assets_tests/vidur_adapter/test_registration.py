"""What Vidur is told: true shapes, the engine's KV blocks, requests that survive preemption."""

from __future__ import annotations

from gst_assets.scenario import load_scenario
from gst_assets.testing.simulation_inputs import QWEN3_0_6B, scenario
from gst_assets.vidur_adapter import registration


def _replica(num_kv_tokens: int = 0) -> registration.EngineReplica:
    return registration.EngineReplica(
        model_name=registration.model_name(QWEN3_0_6B, 2048), head_dim=QWEN3_0_6B.head_dim, num_kv_tokens=num_kv_tokens
    )


def test_qwen3_0_6b_has_its_true_head_dim_and_kv_size() -> None:
    replica = _replica()
    assert replica.attention_head_dim == 128
    assert registration.kv_bytes_per_token(replica) == 114_688


def test_a_mixture_of_experts_has_the_kv_size_of_its_attention() -> None:
    model = load_scenario("h200_30b_a3b_half").model
    replica = registration.EngineReplica(
        model_name=registration.model_name(model.geometry, 2048), head_dim=model.geometry.head_dim
    )
    # 48 layers, keys and values of 4 heads of 128 in two bytes; hidden_size / num_q_heads would be 64.
    assert registration.kv_bytes_per_token(replica) == 48 * 2 * 4 * 128 * 2


def test_the_device_holds_the_kv_blocks_of_the_engine() -> None:
    from vidur.config import CacheConfig
    from vidur.utils.memory_planner import MemoryPlanner

    tokens = 48_120 * 16
    planner = MemoryPlanner(_replica(tokens), CacheConfig(memory_margin_fraction=0.0))
    assert planner.get_max_kv_cache_size_in_tokens() >= tokens


def test_two_geometries_are_two_models() -> None:
    tiny = scenario().model
    first, second = registration.model_name(QWEN3_0_6B, 2048), registration.model_name(tiny.geometry, 2048)
    assert first != second
    assert registration.model_name(QWEN3_0_6B, 2048) == first
    replica = registration.EngineReplica(model_name=second, head_dim=tiny.geometry.head_dim)
    assert (replica.model_config.num_layers, replica.attention_head_dim) == (4, 64)


def test_a_preempted_request_computes_its_prompt_and_tokens_again() -> None:
    request = registration.SimulatedRequest(0, 0, 10, 5)
    request._is_prefill_complete = request._is_prefill_stage_complete = True
    request._num_processed_tokens = request._num_stage_processed_tokens = 12  # two tokens handed out
    request.restart()
    assert request.size == (12, 3)
    assert request._num_stage_processed_tokens == 0
    assert not request.is_prefill_stage_complete


def test_a_half_prefilled_request_keeps_its_lengths_when_preempted() -> None:
    request = registration.SimulatedRequest(0, 0, 10, 5)
    request._num_processed_tokens = request._num_stage_processed_tokens = 6
    request.restart()
    assert request.size == (10, 5)
