"""config.json files: the shipped ones give the published shapes, and what is not modelled is refused by file and
field."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gst_assets.engine.served_model import config_of_geometry
from gst_assets.errors import ScenarioError
from gst_assets.locations import locate, work_root
from gst_assets.model_config import SUPPORTED, geometry_of, read_config
from gst_assets.scenario import Geometry, Scenario, load_scenario, read_resolved
from gst_assets.step_costs.bundle import profile_key

LLAMA: dict[str, Any] = json.loads((locate("data/models/Llama-3.1-8B") / "config.json").read_text(encoding="utf-8"))


def llama(directory: Path, **changes: Any) -> list[str]:
    """Overrides of a scenario whose model is Llama-3.1-8B with some fields changed, or left out where None is given."""
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None or key not in changes}
    (directory / "config.json").write_text(json.dumps(config))
    return ["model.geometry=null", f"model.config={directory}"]


# --- the shipped files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("Qwen3-0.6B", ("Qwen3ForCausalLM", 28, 1024, 16, 8, 128, 3072, 151_936, 40_960, True)),
        ("Qwen3-8B", ("Qwen3ForCausalLM", 36, 4096, 32, 8, 128, 12_288, 151_936, 40_960, False)),
        ("Qwen3-14B", ("Qwen3ForCausalLM", 40, 5120, 40, 8, 128, 17_408, 151_936, 40_960, False)),
        ("Qwen3-32B", ("Qwen3ForCausalLM", 64, 5120, 64, 8, 128, 25_600, 151_936, 40_960, False)),
        ("Llama-3.1-8B", ("LlamaForCausalLM", 32, 4096, 32, 8, 128, 14_336, 128_256, 131_072, False)),
        ("Mistral-7B-v0.3", ("MistralForCausalLM", 32, 4096, 32, 8, 128, 14_336, 32_768, 32_768, False)),
        ("Qwen3-30B-A3B", ("Qwen3MoeForCausalLM", 48, 2048, 32, 4, 128, 768, 151_936, 40_960, False)),
        ("Mixtral-8x7B-v0.1", ("MixtralForCausalLM", 32, 4096, 32, 8, 128, 14_336, 32_000, 32_768, False)),
        ("Phi-4", ("Phi3ForCausalLM", 40, 5120, 40, 10, 128, 17_920, 100_352, 16_384, False)),
    ],
)
def test_shipped_configs_have_the_published_shapes(name: str, shapes: tuple[Any, ...]) -> None:
    geometry = Geometry(**geometry_of(read_config(f"data/models/{name}"), name))
    assert (
        geometry.architecture, geometry.num_layers, geometry.hidden_size, geometry.num_q_heads, geometry.num_kv_heads,
        geometry.head_dim, geometry.mlp_hidden_size, geometry.vocab_size, geometry.max_position_embeddings,
        geometry.tie_word_embeddings,
    ) == shapes  # fmt: skip
    assert not geometry.qkv_bias and not geometry.mlp_bias


@pytest.mark.parametrize(
    ("name", "experts", "billions"),
    [("Qwen3-30B-A3B", (128, 8, True), 30.5), ("Mixtral-8x7B-v0.1", (8, 2, True), 46.7)],
)
def test_shipped_mixtures_have_the_published_number_of_parameters(
    name: str, experts: tuple[int, int, bool], billions: float
) -> None:
    shapes = Geometry(**geometry_of(read_config(f"data/models/{name}"), name))
    assert (shapes.num_experts, shapes.num_experts_per_token, shapes.norm_topk_prob) == experts
    hidden, number = shapes.hidden_size, experts[0]
    attention = 2 * (shapes.num_q_heads + shapes.num_kv_heads) * shapes.head_dim * hidden
    norms = 2 * hidden + (2 * shapes.head_dim if name.startswith("Qwen3") else 0)
    layer = attention + norms + hidden * number + 3 * number * hidden * shapes.mlp_hidden_size
    assert round((layer * shapes.num_layers + (2 * shapes.vocab_size + 1) * hidden) / 1e9, 1) == billions


def test_the_8b_config_is_the_geometry_of_the_8b_scenarios() -> None:
    by_geometry = load_scenario("h100_8b_half")
    by_config = load_scenario("h100_8b_half", ["model.config=data/models/Qwen3-8B"])
    assert by_config.model.geometry == by_geometry.model.geometry
    assert profile_key(by_config) == profile_key(by_geometry)  # one bundle serves both


def test_a_resolved_scenario_needs_no_file(tmp_path: Path) -> None:
    scenario = load_scenario("smoke", [*llama(tmp_path), "model.fold_token_ids=true"])
    (tmp_path / "config.json").unlink()
    resolved = tmp_path / "resolved.json"
    resolved.write_text(scenario.model_dump_json())
    again = read_resolved(resolved)
    assert again == scenario and again.model.config == LLAMA
    assert isinstance(again, Scenario) and again.model.geometry.architecture == "LlamaForCausalLM"


def test_models_by_geometry_are_written_as_before() -> None:
    written = load_scenario("smoke").model.model_dump(mode="json")
    assert "config" not in written and "tensor_parallel_size" not in load_scenario("smoke").engine.model_dump()
    assert list(written["geometry"]) == [
        "num_layers", "hidden_size", "num_q_heads", "num_kv_heads", "head_dim", "mlp_hidden_size", "vocab_size",
        "max_position_embeddings", "tie_word_embeddings",
    ]  # fmt: skip


# --- what a file says -------------------------------------------------------------------------------------------------


def test_qwen2_has_biases_of_its_own_and_no_head_dim_of_its_own() -> None:
    config = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 131072}
    geometry = Geometry(**geometry_of(config, "here"))  # the window is switched off, as published
    assert geometry.qkv_bias and not geometry.attention_bias and geometry.head_dim == 128
    with pytest.raises(ValueError, match=r"here: head_dim is 64, but Qwen2ForCausalLM has .* = 128"):
        geometry_of({**config, "head_dim": 64}, "here")


def test_ernie_states_its_head_dim_and_has_no_biases() -> None:
    config = {**LLAMA, "architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": False}
    assert Geometry(**geometry_of({**config, "head_dim": 64}, "here")).head_dim == 64
    without = {key: value for key, value in config.items() if key != "head_dim"}
    with pytest.raises(ValueError, match="here: head_dim: the field is missing"):
        geometry_of(without, "here")


def test_biases_are_read_where_the_architecture_has_the_choice() -> None:
    assert Geometry(**geometry_of({**LLAMA, "attention_bias": True, "mlp_bias": True}, "here")).mlp_bias
    mistral = read_config("data/models/Mistral-7B-v0.3") | {"attention_bias": True}
    with pytest.raises(ValueError, match="here: attention_bias: MistralForCausalLM has none, found True"):
        geometry_of(mistral, "here")


@pytest.mark.parametrize("switch", [{}, {"use_sliding_window": None}, {"use_sliding_window": False}])
def test_a_window_needs_its_switch_only_where_the_architecture_has_one(switch: dict[str, Any]) -> None:
    """Mistral has a window wherever one is stated, whatever else its file says, and where none is."""
    mistral = read_config("data/models/Mistral-7B-v0.3") | switch
    assert geometry_of(mistral, "here")["architecture"] == "MistralForCausalLM"
    with pytest.raises(ValueError, match="here: sliding_window: attention over a window of 4096 tokens"):
        geometry_of({**mistral, "sliding_window": 4096}, "here")
    without = {key: value for key, value in mistral.items() if key != "sliding_window"}
    with pytest.raises(ValueError, match="here: sliding_window: the field is missing, and transformers then takes"):
        geometry_of(without, "here")
    qwen = read_config("data/models/Qwen3-8B") | {"sliding_window": 4096} | switch
    assert geometry_of(qwen, "here")["architecture"] == "Qwen3ForCausalLM"


_QWEN3_MOE = read_config("data/models/Qwen3-30B-A3B")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_expert_intermediate_size": 768},
         "shared_expert_intermediate_size: this Qwen3MoeForCausalLM has shared experts in addition to those that a router"),
        ({"num_shared_experts": 1}, "num_shared_experts: this Qwen3MoeForCausalLM has shared experts in addition to"),
        ({"n_shared_experts": 2}, "n_shared_experts: this Qwen3MoeForCausalLM has shared experts in addition to"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: expected an integer of at least 1, found 0"),
        ({"decoder_sparse_step": True}, "decoder_sparse_step: expected an integer of at least 1, found True"),
        ({"decoder_sparse_step": 1.0}, "decoder_sparse_step: expected an integer of at least 1, found 1.0"),
        ({"mlp_only_layers": 0}, "mlp_only_layers: expected a list of numbers of layers, found 0"),
        ({"mlp_only_layers": ["3"]}, r"mlp_only_layers: expected a list of numbers of layers, found \['3'\]"),
        ({"num_experts": "8"}, "num_experts: expected an integer of at least 1, found '8'"),
        ({"num_experts": 8.0}, "num_experts: expected an integer of at least 1, found 8.0"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: expected an integer of at least 1, found 0"),
        ({"num_experts_per_tok": -2}, "num_experts_per_tok: expected an integer of at least 1, found -2"),
        ({"num_experts_per_tok": True}, "num_experts_per_tok: expected an integer of at least 1, found True"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step: found 2, so some layers have one MLP and others experts"),
        ({"mlp_only_layers": [0, 3]}, r"mlp_only_layers: found \[0, 3\], so some layers have .*\. Name a model whose layers all have experts"),
        ({"num_experts": None}, "num_experts: the field is missing"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok: the field is missing"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok: expected at most num_experts 128, found 129. Set it to 128 or less"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size: expected an integer of at least 1, found 0"),
        ({"norm_topk_prob": None}, "norm_topk_prob: the field is missing"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: expected true or false, found 1"),
    ],
)  # fmt: skip
def test_a_mixture_that_is_not_modelled_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"here: {message}"):
        geometry_of({**_QWEN3_MOE, **changes}, "here")


@pytest.mark.parametrize(
    "name", ["num_shared_experts", "n_shared_experts", "shared_expert_intermediate_size", "n_routed_experts"]
)
@pytest.mark.parametrize("model", ["Qwen3-30B-A3B", "Mixtral-8x7B-v0.1"])
def test_a_mixture_that_says_it_has_no_shared_experts_is_read(name: str, model: str) -> None:
    published = read_config(f"data/models/{model}")
    for none in (0, None):
        assert geometry_of({**published, name: none}, "here") == geometry_of(published, "here")
    with pytest.raises(ValueError, match=f"here: {name}: this "):
        geometry_of({**published, name: 1}, "here")


_NOT_READ = {
    "attention_dropout": "of training",
    "bos_token_id": "prompts are sent as they were tokenized",
    "initializer_range": "of training",
    "max_window_layers": "of attention over a window, which is refused",
    "output_router_logits": "of training",
    "router_aux_loss_coef": "of training",
    "torch_dtype": "model.dtype says it to the engine",
    "use_cache": "the engine always has one",
}
"""Fields of a published file from which neither a shape nor a time follows."""
_KINDS: dict[str, tuple[type, ...]] = {"rope_scaling": (dict,), "sliding_window": (int,), "eos_token_id": (int, list)}
"""Of the fields whose kind the published value does not show. A number may be written without a fraction."""
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def _is_of_kind(value: object, published: object, field: str) -> bool:
    kinds = _KINDS.get(field, (int, float) if isinstance(published, float) else (type(published),))
    return type(value) in kinds


@settings(deadline=None, max_examples=400)
@given(field=st.sampled_from(sorted(_QWEN3_MOE)), value=_VALUES)
def test_a_field_of_another_kind_is_refused_by_name_or_is_none_that_is_read(field: str, value: Any) -> None:
    """Never a traceback, never another model than the file's."""
    assume(not _is_of_kind(value, _QWEN3_MOE[field], field))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**_QWEN3_MOE, field: value}), encoding="utf-8")
        overrides = ["model.geometry=null", f"model.config={folder}", "simulation.variants=[kernels]"]
        try:
            found = load_scenario("smoke", overrides).model.geometry
        except ScenarioError as error:
            assert f"config {folder}: {field}: " in str(error) and field not in _NOT_READ
            return
    assert field in _NOT_READ or value is None, "null is as if it were left out"
    assert found == Geometry(**geometry_of(_QWEN3_MOE, "here"))


@given(
    layers=st.integers(1, 200), experts=st.integers(1, 512), size=st.integers(1, 1 << 16), heads=st.integers(1, 64),
    normed=st.booleans(), data=st.data(),
)  # fmt: skip
def test_a_mixture_is_read_back_from_what_is_served_of_it(
    layers: int, experts: int, size: int, heads: int, normed: bool, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, experts))
    described = _QWEN3_MOE | {
        "num_hidden_layers": layers, "num_experts": experts, "num_experts_per_tok": chosen, "norm_topk_prob": normed,
        "moe_intermediate_size": size, "num_attention_heads": 2 * heads, "num_key_value_heads": heads,
    }  # fmt: skip
    shapes = Geometry(**geometry_of(described, "here"))
    assert (shapes.num_layers, shapes.num_experts, shapes.num_experts_per_token) == (layers, experts, chosen)
    assert (shapes.mlp_hidden_size, shapes.norm_topk_prob) == (size, normed)
    assert Geometry(**geometry_of(config_of_geometry(shapes, "bfloat16"), "here")) == shapes
    assert Geometry(**shapes.model_dump()) == shapes


def test_experts_belong_to_the_architectures_that_have_them() -> None:
    shapes = load_scenario("smoke").model.geometry.model_dump()
    for changes, message in (
        ({"num_experts": 8}, "num_experts is 8, but Qwen3ForCausalLM needs none. Set num_experts to null, or architecture to one of Qwen3Moe"),
        ({"architecture": "MixtralForCausalLM", "num_experts": 8},
         "num_experts_per_token is None, but MixtralForCausalLM needs a number. Set num_experts_per_token to one, or "),
        ({"architecture": "MixtralForCausalLM", "num_experts": 2, "num_experts_per_token": 3},
         "num_experts_per_token 3 exceeds num_experts 2. Set num_experts_per_token to 2 or less"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Geometry(**{**shapes, **changes})


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("simulation.variants=[published,kernels]", "simulation.variants has published"),
        ("sweep={rates_per_s: [1.0], variant: published}", "sweep.variant has published"),
    ],
)
def test_published_is_not_asked_for_of_a_mixture_of_experts(override: str, named: str) -> None:
    load_scenario("h200_30b_a3b_half", ["simulation.variants=[kernels,calibrated]"])
    with pytest.raises(ScenarioError, match=rf"{named}, but model qwen3-30b-a3b is a mixture .* no expert layer"):
        load_scenario("h200_30b_a3b_half", [override])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GptOssForCausalLM"], "num_local_experts": 32},
         "architectures: GptOssForCausalLM is a mixture of experts of another kind, which is not supported. Supported are the dense decoders Qwen3ForCausalLM"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "num_experts": 60, "shared_expert_intermediate_size": 5632},
         "architectures: Qwen2MoeForCausalLM has shared experts in addition to those that a router chooses, which is not supported."),
        ({"num_experts": 8}, "num_experts: this LlamaForCausalLM is a mixture of experts of another kind"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512},
         "architectures: DeepseekV3ForCausalLM has multi-head latent attention, which is not supported"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
         "architectures: T5ForConditionalGeneration is an encoder and a decoder, which is not supported"),
        ({"architectures": ["BertModel"]},
         "architectures: BertModel is not supported. Supported are the dense decoders Qwen3ForCausalLM"),
        ({"architectures": ["GemmaForCausalLM"]}, "architectures: GemmaForCausalLM is not supported"),
        ({"architectures": None}, "architectures: the field is missing"),
        ({"architectures": ["LlamaForCausalLM", "B"]}, "architectures: expected a list of one name, found ['LlamaForCausalLM', 'B']"),
        ({"model_type": "qwen2"}, "model_type: expected 'llama' with LlamaForCausalLM, found 'qwen2'"),
        ({"quantization_config": {"quant_method": "fp8"}},
         "quantization_config: this LlamaForCausalLM is published with quantised weights, which is not supported. Name the config.json of the same model in bfloat16 or float16. With it, model.quantization=fp8 serves weights that vLLM quantises"),
        ({"use_bias": True}, "use_bias: this LlamaForCausalLM has biases by a key that vLLM does not read"),
        ({"qkv_bias": True}, "qkv_bias: this LlamaForCausalLM has biases by a key that is not read here"),
        ({"quantization_config": {"quant_method": "awq"}},
         "quantization_config: this LlamaForCausalLM is published with quantised weights, which is not supported. Name the config.json of the same model in bfloat16 or float16."),
        ({"auto_map": {"AutoConfig": "own.Config"}},
         "auto_map: this LlamaForCausalLM names program code of its own, which is not supported. If that code computes"),
        ({"num_attention_heads": 30}, "num_attention_heads: expected a multiple of num_key_value_heads 8, found 30"),
        ({"sliding_window": 4096}, "sliding_window: attention over a window of 4096 tokens is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window: attention over a window"),
        ({"is_causal": False}, "this LlamaForCausalLM is an encoder"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object of settings or null, found 'yarn'"),
        ({"rope_scaling": 0}, "rope_scaling: expected an object of settings or null, found 0"),
        ({"rope_parameters": []}, "rope_parameters: expected an object of settings or null, found []"),
        ({"rope_theta": "1e6"}, "rope_theta: expected a number above 0, found '1e6'"),
        ({"use_sliding_window": 0}, "use_sliding_window: expected true or false, found 0"),
        ({"sliding_window": "4096"}, "sliding_window: expected an integer of at least 0, found '4096'"),
        ({"layer_types": "full_attention"}, "layer_types: expected a list of names, found 'full_attention'"),
        ({"eos_token_id": "2"}, "eos_token_id: expected the id of a token or a list of such, found '2'"),
        ({"eos_token_id": [2, True]}, "eos_token_id: expected the id of a token or a list of such, found [2, True]"),
        ({"attention_bias": 0}, "attention_bias: expected true or false, found 0"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling: rotary embeddings of type 'longrope' are not supported"),
        ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 4.0}},
         "rope_scaling: rotary embeddings of type 'yarn' are not supported. Supported with Phi3ForCausalLM: default"),
        ({"num_key_value_heads": None}, "num_key_value_heads: the field is missing"),
        ({"rms_norm_eps": None}, "rms_norm_eps: the field is missing"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings: the field is missing"),
        ({"hidden_size": "4096"}, "hidden_size: expected an integer of at least 1, found '4096'"),
        ({"vocab_size": True}, "vocab_size: expected an integer of at least 1, found True"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings: expected true or false, found 0"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_refused_by_file_and_field(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("smoke", llama(tmp_path, **changes))
    assert f"config {tmp_path}: {message}" in str(raised.value)
    assert str(raised.value).count("\n") == 0


def test_only_a_file_with_fp8_weights_leads_to_the_setting_for_them(tmp_path: Path) -> None:
    for method, leads in (("fp8", True), ("awq", False), (None, False)):
        with pytest.raises(ScenarioError) as raised:
            load_scenario("smoke", llama(tmp_path, quantization_config={"quant_method": method}))
        assert ("model.quantization=fp8" in str(raised.value)) is leads


def test_qwen3_has_its_own_head_dim() -> None:
    config = read_config("data/models/Qwen3-8B")
    del config["head_dim"]
    with pytest.raises(ValueError, match="here: head_dim: the field is missing"):
        geometry_of(config, "here")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", "expected an object of settings, found []"),
        ('{"a": 1, "a": 2}', "the key 'a' is written twice"),
    ],
)
def test_files_that_are_no_config_are_named(text: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ScenarioError) as raised:
        load_scenario("smoke", ["model.geometry=null", f"model.config={path}"])
    assert f"config {path}: " in str(raised.value) and problem in str(raised.value)


def test_a_relative_path_that_is_not_there_says_where_it_starts() -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("smoke", ["model.geometry=null", "model.config=my-model"])
    assert f"config {work_root() / 'my-model'}: no such file. " in str(raised.value)
    assert f"; my-model is a relative path, which starts at {work_root()}" in str(raised.value)


def test_a_geometry_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"geometry.num_layers is set, and differs from what config .* says"):
        load_scenario("smoke", llama(tmp_path)[1:])


def test_architectures_are_those_of_the_geometry() -> None:
    with pytest.raises(ScenarioError, match=r"model\.geometry\.architecture: expected one of Qwen3For.* 'GemmaFor"):
        load_scenario("smoke", ["model.geometry.architecture=GemmaForCausalLM"])
    for name, kind in SUPPORTED.items():
        experts = ["model.geometry.num_experts=4", "model.geometry.num_experts_per_token=2"] if kind.experts else []
        loaded = load_scenario("smoke", [f"model.geometry.architecture={name}", *experts])
        assert loaded.model.geometry.architecture == name
