"""What engines of this machine are given to serve."""

from __future__ import annotations

import json

from gst_assets.engine.served_model import config_of_geometry, served_config
from gst_assets.locations import locate
from gst_assets.model_config import geometry_of
from gst_assets.scenario import Geometry, load_scenario


def test_config_of_the_true_qwen3_geometry() -> None:
    model = load_scenario("cpu_qwen3_0_6b").model
    config = served_config(model)
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["hidden_size"], config["head_dim"], config["num_attention_heads"]) == (1024, 128, 16)
    assert (config["num_key_value_heads"], config["intermediate_size"], config["num_hidden_layers"]) == (8, 3072, 28)
    assert (config["vocab_size"], config["eos_token_id"]) == (151_936, 151_645)
    assert "eos_token_id" not in served_config(load_scenario("smoke").model)


def test_a_config_is_served_as_it_is() -> None:
    published = json.loads((locate("data/models/Llama-3.1-8B") / "config.json").read_text(encoding="utf-8"))
    assert served_config(load_scenario("h100_llama_8b_single").model) == published


def test_a_geometry_of_another_architecture_is_served_as_that() -> None:
    shapes = load_scenario("smoke").model.geometry.model_dump()
    for architecture, model_type in (("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2")):
        geometry = Geometry(**{**shapes, "architecture": architecture})
        config = config_of_geometry(geometry, "float16")
        assert config["model_type"] == model_type
        assert Geometry(**geometry_of(config, "here")) == geometry
