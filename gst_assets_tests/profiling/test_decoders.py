"""Every supported architecture, as a small config.json served by the real engine: what it runs, and whether the profiler
walks all of it. An architecture that is added to `model_config.SUPPORTED` is tested here without further ado."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gst_assets.engine.launch import run_module
from gst_assets.model_config import SUPPORTED
from gst_assets.profiling.worker_ops import MODEL_OPERATORS, layer_operators
from gst_assets.scenario import load_scenario

pytestmark = pytest.mark.engine

_SMALL = {
    "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 4096,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024,
    "rope_type": "llama3",
}  # fmt: skip
_PARTICULARS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_scaling": _LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "sliding_window": 64},
    "Qwen3ForCausalLM": {"head_dim": 32, "attention_bias": True},
    "MistralForCausalLM": {"head_dim": 32, "sliding_window": None},
    "Phi3ForCausalLM": {"pad_token_id": 0, "partial_rotary_factor": 0.75},
    "Ernie4_5ForCausalLM": {"head_dim": 32, "use_bias": False},
    "Qwen3MoeForCausalLM": {
        "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 96, "norm_topk_prob": False,
    },
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}  # fmt: skip
"""What an architecture may have that others have not."""


def config_of(architecture: str) -> dict[str, Any]:
    particulars = _PARTICULARS.get(architecture, {})
    return {
        "architectures": [architecture], "model_type": SUPPORTED[architecture].model_type, **_SMALL, **particulars,
    }  # fmt: skip


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the session says of each decoder that is tested (`-k` chooses)."""
    asked = [name for name in SUPPORTED if any(f"[{name}]" in item.name for item in request.session.items)]
    folder, resolved = tmp_path_factory.mktemp("decoders"), []
    for architecture in asked:
        (folder / "config.json").write_text(json.dumps(config_of(architecture)))
        scenario = load_scenario("smoke", ["model.name=small", "model.geometry=null", f"model.config={folder}"])
        resolved.append(folder / f"{architecture}.json")
        resolved[-1].write_text(scenario.model_dump_json())
    (folder / "config.json").unlink()  # a resolved scenario holds it
    lines = run_module("gst_assets_tests.profiling.decoder_session", [str(path) for path in resolved])
    found = [json.loads(line.removeprefix("facts ")) for line in lines if line.startswith("facts ")]
    return dict(zip(asked, found, strict=True))


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_engine_serves_the_config_and_the_profiler_walks_the_whole_model(
    architecture: str, told: dict[str, dict[str, Any]]
) -> None:
    config, found = config_of(architecture), told[architecture]
    assert found["reported"] == architecture and found["facts"]["architecture"] == architecture
    assert found["counts"] == [6, 3]
    assert found["facts"]["head_dim"] == config.get("head_dim", 64) and found["facts"]["num_layers"] == 2
    # Of the whole model: norms, biases and rotary embeddings that the walk left out would show in the logits, if only
    # in the 13th digit, since vLLM's random weights are small.
    assert found["facts"]["walk_difference"] == 0
    has_experts = SUPPORTED[architecture].experts is not None
    assert found["timed"] == sorted({*layer_operators(has_experts), *MODEL_OPERATORS})
