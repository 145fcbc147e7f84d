"""A model as Hugging Face publishes it: which config.json is supported, and the decoder it describes.

Reading the file, refusing what is not modelled, and translating its keys to those of `scenario.Geometry` belong here;
what is done with a geometry does not. Knows no engine: that vLLM reads the same keys the same way is checked when an
engine has started. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_text
from gst_assets.locations import locate, work_root

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class Experts:
    """Keys of config.json that describe a mixture of experts."""

    count: str
    """How many experts a layer has."""
    size: str
    """Hidden size of one expert."""
    renormalised: str | None = None
    """Whether the weights of a token's experts are scaled to add up to 1; None: they always are."""


@dataclass(frozen=True)
class DecoderKind:
    """What is particular to one architecture whose layer vLLM computes in the order of its Llama: RMS norm with the
    residual added, one projection to queries, keys and values, rotary embedding, attention, its projection, norm, and a
    gated MLP or a mixture of such (`profiling.worker_ops` walks it so). The defaults are Llama's layer without biases.
    """

    model_type: str
    """`model_type` of its config.json."""
    head_dim: Literal["stated or derived", "stated", "derived"] = "stated or derived"
    """Whether head_dim has to be in the file, or can only be hidden_size / num_attention_heads."""
    has_qkv_bias: bool = False
    """The projection to queries, keys and values has biases, without a key that says so."""
    bias_keys: tuple[str, ...] = ()
    """Those of `attention_bias` and `mlp_bias` that the architecture knows."""
    window_needs_switch: bool = False
    """`sliding_window` counts only where `use_sliding_window` is true."""
    has_window_unless_stated: bool = False
    """transformers takes a window of its own where `sliding_window` is left out."""
    rope_types: tuple[str, ...] = _ROPE_TYPES
    """Types of rotary embedding that are computed as they are named."""
    experts: Experts | None = None
    """Every layer has so many MLPs, of which a router chooses some for each token; None: it has one."""


SUPPORTED = {
    "Qwen3ForCausalLM": DecoderKind(
        "qwen3", head_dim="stated", bias_keys=("attention_bias",), window_needs_switch=True
    ),
    "Qwen2ForCausalLM": DecoderKind("qwen2", head_dim="derived", has_qkv_bias=True, window_needs_switch=True),
    "LlamaForCausalLM": DecoderKind("llama", bias_keys=("attention_bias", "mlp_bias")),
    "MistralForCausalLM": DecoderKind("mistral", has_window_unless_stated=True),
    # transformers' Phi3Config reads yarn as longrope, and knows no other type but default.
    "Phi3ForCausalLM": DecoderKind("phi3", rope_types=("default",)),
    "Ernie4_5ForCausalLM": DecoderKind("ernie4_5", head_dim="stated"),
    "Qwen3MoeForCausalLM": DecoderKind(
        "qwen3_moe", head_dim="stated", bias_keys=("attention_bias",), window_needs_switch=True,
        experts=Experts("num_experts", "moe_intermediate_size", "norm_topk_prob"),
    ),
    "MixtralForCausalLM": DecoderKind("mixtral", experts=Experts("num_local_experts", "intermediate_size")),
}  # fmt: skip
"""Architectures that can be served, profiled and simulated: the only place that lists them. docs/engines.md says how
one is added."""

_FILE = "config.json"
_REFUSED_BY_KEY = {
    "kv_lora_rank": "has multi-head latent attention",
    "shared_expert_intermediate_size": "has shared experts in addition to those that a router chooses",
    "num_shared_experts": "has shared experts in addition to those that a router chooses",
    "n_shared_experts": "has shared experts in addition to those that a router chooses",
    "num_local_experts": "is a mixture of experts of another kind",
    "num_experts": "is a mixture of experts of another kind",
    "n_routed_experts": "is a mixture of experts of another kind",
    "quantization_config": "is published with quantised weights",
    "compression_config": "is published with quantised weights",
    "auto_map": "names program code of its own",
    "dual_chunk_attention_config": "has dual chunk attention",
    "qk_norm": "has q- and k-norm that its architecture has not",
    "use_bias": "has biases by a key that vLLM does not read",
    "bias": "has biases by a key that is not read here",
    "qkv_bias": "has biases by a key that is not read here",
    "llama_4_scaling": "scales its attention",
}
"""Keys that say of a supported architecture that it is another model all the same, where they hold more than null,
false or 0."""
_REMEDIES = {
    "quantization_config": "Name the config.json of the same model in bfloat16 or float16",
    "compression_config": "Name the config.json of the same model in bfloat16 or float16",
    "auto_map": "If that code computes what transformers' own class of this name does, use a copy of the file without"
    " auto_map",
}
_FP8_INSTEAD = (
    ". With it, model.quantization=fp8 serves weights that vLLM quantises to FP8 as it starts, with one scale for each"
    " projection"
)
_ADDING = "docs/engines.md#add-an-architecture says what another one takes"


def read_config(reference: str) -> dict[str, Any]:
    """The content of a config.json: `reference` is the file or its directory, as `locations.locate` understands it.

    Raises:
        ValueError: missing, unreadable, or no JSON object; names the file.
    """
    path = locate(reference)
    path = path / _FILE if path.is_dir() else path
    remedy = f"Name a {_FILE} as Hugging Face publishes it, or its directory"
    if not Path(reference).expanduser().is_absolute():
        remedy += f"; {reference} is a relative path, which starts at {work_root()}"
    kind = InputKind(ValueError, f"no such file. {remedy}", f"a {_FILE}", remedy, most_bytes=16 << 20)
    try:
        content = parse_json(read_text(path, kind), keys_once=True)
    except JsonProblem as problem:
        raise ValueError(f"config {path}: not valid JSON ({problem.reason})") from None
    except ValueError as error:
        raise ValueError(f"config {str(error).rstrip('.')}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config {path}: expected an object of settings, found {content!r:.60}")
    return content


def geometry_of(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of `scenario.Geometry` that `config` describes. `source` names it in messages.

    Raises:
        ValueError: an architecture or a property that is not supported, or a field that is missing or of another kind;
            names `source`, the field, and what was expected.
    """
    architecture = _architecture(config, source)
    kind = SUPPORTED[architecture]
    _check_kinds(config, source)
    _refuse_other_models(config, source, architecture)
    hidden_size, num_q_heads, num_kv_heads = (
        _count(config, name, source) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if num_q_heads % num_kv_heads:
        raise ValueError(
            f"{source}: num_attention_heads: expected a multiple of num_key_value_heads {num_kv_heads}, found"
            f" {num_q_heads}"
        )
    experts = _experts(config, source, kind.experts) if kind.experts else {}
    # Where a configuration has no head_dim, Hugging Face defines it so.
    stated = config.get("head_dim") is not None or kind.head_dim == "stated"
    head_dim = _count(config, "head_dim", source) if stated else hidden_size // num_q_heads
    if kind.head_dim == "derived" and head_dim != hidden_size // num_q_heads:
        raise ValueError(
            f"{source}: head_dim is {head_dim}, but {architecture} has hidden_size / num_attention_heads ="
            f" {hidden_size // num_q_heads}"
        )
    return {
        "architecture": architecture,
        "num_layers": _count(config, "num_hidden_layers", source),
        "hidden_size": hidden_size,
        "num_q_heads": num_q_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "mlp_hidden_size": _count(config, kind.experts.size if kind.experts else "intermediate_size", source),
        "vocab_size": _count(config, "vocab_size", source),
        "max_position_embeddings": _count(config, "max_position_embeddings", source),
        "tie_word_embeddings": _flag(config, "tie_word_embeddings", source),
        "attention_bias": _bias(config, "attention_bias", source, architecture),
        "mlp_bias": _bias(config, "mlp_bias", source, architecture),
        **experts,
    }


def _experts(config: dict[str, Any], source: str, keys: Experts) -> dict[str, Any]:
    number, chosen = _count(config, keys.count, source), _count(config, "num_experts_per_tok", source)
    if chosen > number:
        raise ValueError(
            f"{source}: num_experts_per_tok: expected at most {keys.count} {number}, found {chosen}. Set it to"
            f" {number} or less, as in the file that was published"
        )
    step = _count(config, "decoder_sparse_step", source) if "decoder_sparse_step" in config else 1
    dense = config.get("mlp_only_layers")
    if dense is not None and (not isinstance(dense, list) or not all(_is_integer(layer, 0) for layer in dense)):
        raise ValueError(f"{source}: mlp_only_layers: expected a list of numbers of layers, found {dense!r:.60}")
    if step != 1 or dense:
        key, found = ("mlp_only_layers", dense) if dense else ("decoder_sparse_step", step)
        raise ValueError(
            f"{source}: {key}: found {found!r:.60}, so some layers have one MLP and others experts, which is not"
            " supported: every layer has to be of the same kind. Name a model whose layers all have experts, or"
            " one that has none"
        )
    return {
        "num_experts": number,
        "num_experts_per_token": chosen,
        "norm_topk_prob": _flag(config, keys.renormalised, source) if keys.renormalised else True,
    }


def _architecture(config: dict[str, Any], source: str) -> str:
    names = _required(config, "architectures", source)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ValueError(f"{source}: architectures: expected a list of one name, found {names!r:.80}")
    name: str = names[0]
    dense, sparse = ([one for one, kind in SUPPORTED.items() if bool(kind.experts) is has] for has in (False, True))
    supported = f"Supported are the dense decoders {', '.join(dense)} and the mixtures of experts {', '.join(sparse)}"
    if name not in SUPPORTED:
        what = next((what for key, what in _REFUSED_BY_KEY.items() if config.get(key)), None)
        what = "is an encoder and a decoder" if config.get("is_encoder_decoder") else what
        refusal = f"{name} {what}, which is not supported" if what else f"{name} is not supported"
        raise ValueError(f"{source}: architectures: {refusal}. {supported}. {_ADDING}")
    expected, found = SUPPORTED[name].model_type, config.get("model_type")
    if found != expected:
        raise ValueError(f"{source}: model_type: expected {expected!r} with {name}, found {found!r:.60}. {supported}")
    return name


def _check_kinds(config: dict[str, Any], source: str) -> None:
    """Fields that are read in some cases only, or by the engine alone, are of their kind wherever they are stated; null
    is as if they were left out."""
    checks: dict[str, Callable[[dict[str, Any], str, str], object]] = {
        "intermediate_size": _count,
        "rope_theta": _positive,
        "use_sliding_window": _flag,
        "sliding_window": partial(_count, least=0),
        "layer_types": _names,
        "eos_token_id": _token_ids,
        "rope_scaling": _object,
        "rope_parameters": _object,
    }
    for name, check in checks.items():
        if config.get(name) is not None:
            check(config, name, source)


def _refuse_other_models(config: dict[str, Any], source: str, architecture: str) -> None:
    experts = SUPPORTED[architecture].experts
    for key, what in _REFUSED_BY_KEY.items():
        if config.get(key) and not (experts and key == experts.count):
            remedy = f". {_REMEDIES[key]}" if key in _REMEDIES else ""
            if isinstance(config[key], dict) and config[key].get("quant_method") == "fp8":
                remedy += _FP8_INSTEAD
            raise ValueError(f"{source}: {key}: this {architecture} {what}, which is not supported{remedy}")
    if config.get("is_encoder_decoder") or config.get("is_causal") is False:
        raise ValueError(f"{source}: this {architecture} is an encoder, which is not supported")
    # layer_types, where they are, decide.
    layers = config.get("layer_types")
    windowed = (
        any(kind != "full_attention" for kind in layers)
        if isinstance(layers, list)
        else config.get("sliding_window") is not None
        and (config.get("use_sliding_window") is True or not SUPPORTED[architecture].window_needs_switch)
    )
    if SUPPORTED[architecture].has_window_unless_stated and "sliding_window" not in config and layers is None:
        raise ValueError(
            f"{source}: sliding_window: the field is missing, and transformers then takes a window of 4,096 tokens,"
            " which is not supported. Write sliding_window null where the model has none"
        )
    if windowed:
        raise ValueError(
            f"{source}: sliding_window: attention over a window of {config.get('sliding_window')} tokens is not"
            " supported. If no request is longer than that, use a copy of the file with sliding_window null"
        )
    if config.get("hidden_act") != "silu":
        raise ValueError(f"{source}: hidden_act: expected 'silu', found {config.get('hidden_act')!r:.60}")
    _positive(config, "rms_norm_eps", source)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    supported = SUPPORTED[architecture].rope_types
    if kind not in supported:
        raise ValueError(
            f"{source}: rope_scaling: rotary embeddings of type {kind!r:.60} are not supported. Supported with"
            f" {architecture}: {', '.join(supported)}"
        )


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _count(config: dict[str, Any], name: str, source: str, least: int = 1) -> int:
    value = _required(config, name, source)
    if not _is_integer(value, least):
        raise ValueError(f"{source}: {name}: expected an integer of at least {least}, found {value!r:.60}")
    return int(value)


def _names(config: dict[str, Any], name: str, source: str) -> None:
    value = config[name]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{source}: {name}: expected a list of names, found {value!r:.60}")


def _token_ids(config: dict[str, Any], name: str, source: str) -> None:
    value = config[name]
    ids = value if isinstance(value, list) and value else [value]
    if not all(_is_integer(one, 0) for one in ids):
        raise ValueError(f"{source}: {name}: expected the id of a token or a list of such, found {value!r:.60}")


def _object(config: dict[str, Any], name: str, source: str) -> None:
    if not isinstance(config[name], dict):
        raise ValueError(f"{source}: {name}: expected an object of settings or null, found {config[name]!r:.60}")


def _positive(config: dict[str, Any], name: str, source: str) -> None:
    value = _required(config, name, source)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{source}: {name}: expected a number above 0, found {value!r:.60}")


def _flag(config: dict[str, Any], name: str, source: str) -> bool:
    value = _required(config, name, source)
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {name}: expected true or false, found {value!r:.60}")
    return value


def _bias(config: dict[str, Any], name: str, source: str, architecture: str) -> bool:
    """Whether there is a bias that Hugging Face's format has only for some architectures, and by default not."""
    if config.get(name) is None or not _flag(config, name, source):
        return False
    if name not in SUPPORTED[architecture].bias_keys:
        raise ValueError(f"{source}: {name}: {architecture} has none, found {config[name]!r:.60}. Remove the key")
    return True


def _required(config: dict[str, Any], name: str, source: str) -> Any:
    if config.get(name) is None:
        raise ValueError(
            f"{source}: {name}: the field is missing, and the model is not known without it. Add it to the file; a"
            " published file leaves out what is the default of its architecture's configuration class in transformers"
        )
    return config[name]
