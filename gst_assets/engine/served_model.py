"""The config.json that engines of this machine are given: the scenario's own, or one written from its geometry.

What of a config.json is supported, and the geometry it describes, belongs to `model_config`.
"""

from __future__ import annotations

from typing import Any

from gst_assets.model_config import SUPPORTED
from gst_assets.scenario import Geometry, Model

_QWEN3_EOS = 151_645


def served_config(model: Model) -> dict[str, Any]:
    """What to serve: the content of `model.config`, unchanged, or where there is none that of `config_of_geometry`."""
    return dict(model.config) if model.config is not None else config_of_geometry(model.geometry, model.dtype)


def config_of_geometry(geometry: Geometry, dtype: str) -> dict[str, Any]:
    """A Hugging Face config.json of a decoder with this geometry; constants as in Qwen/Qwen3-0.6B's config.json.

    They decide no shape and no time. The end-of-sequence id is left out where the vocabulary is too small to hold
    Qwen3's.
    """
    config = {
        "architectures": [geometry.architecture],
        "model_type": SUPPORTED[geometry.architecture].model_type,
        "attention_bias": geometry.attention_bias,
        "attention_dropout": 0.0,
        "head_dim": geometry.head_dim,
        "hidden_act": "silu",
        "hidden_size": geometry.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": geometry.mlp_hidden_size,
        "max_position_embeddings": geometry.max_position_embeddings,
        "max_window_layers": geometry.num_layers,
        "num_attention_heads": geometry.num_q_heads,
        "num_hidden_layers": geometry.num_layers,
        "num_key_value_heads": geometry.num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "sliding_window": None,
        "tie_word_embeddings": geometry.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": geometry.vocab_size,
    }
    config |= {"mlp_bias": True} if geometry.mlp_bias else {}
    if (keys := SUPPORTED[geometry.architecture].experts) is not None:
        config |= {
            keys.count: geometry.num_experts,
            keys.size: geometry.mlp_hidden_size,
            "num_experts_per_tok": geometry.num_experts_per_token,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        config |= {keys.renormalised: geometry.norm_topk_prob} if keys.renormalised else {}
    return config | ({"eos_token_id": _QWEN3_EOS} if geometry.vocab_size > _QWEN3_EOS else {})
