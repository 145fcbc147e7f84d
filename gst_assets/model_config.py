"""A model as Hugging Face publishes it: which config.json is supported, and the decoder it describes.

Reading the file, refusing what is not modelled, and translating its keys to those of `scenario.Geometry` belong here;
what is done with a geometry does not. Knows no engine: that vLLM reads the same keys the same way is checked when an
engine has started. Standard library only.
"""

from __future__ import annotations

from typing import Any

from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_text
from gst_assets.locations import locate

SUPPORTED = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
}
"""Architectures that can be served, profiled and simulated, and the `model_type` of each: dense decoders of one kind of
layer."""

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_FILE = "config.json"
_REFUSED_BY_KEY = {
    "kv_lora_rank": "has multi-head latent attention",
    "num_local_experts": "is a mixture of experts",
    "num_experts": "is a mixture of experts",
    "n_routed_experts": "is a mixture of experts",
    "quantization_config": "is quantised (FP8 and other formats are not supported)",
    "compression_config": "is quantised",
    "auto_map": "needs program code of its own",
    "dual_chunk_attention_config": "has dual chunk attention",
    "qk_norm": "has q- and k-norm that its architecture has not",
    "llama_4_scaling": "scales its attention",
}
"""Keys that say of a supported architecture that it is another model all the same, where they hold more than null,
false or 0."""


def read_config(reference: str) -> dict[str, Any]:
    """The content of a config.json: `reference` is the file or its directory, as `locations.locate` understands it.

    Raises:
        ValueError: missing, unreadable, or no JSON object; names the file.
    """
    path = locate(reference)
    path = path / _FILE if path.is_dir() else path
    remedy = f"Name a {_FILE} as Hugging Face publishes it, or its directory"
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
    _refuse_other_models(config, source, architecture)
    hidden_size, num_q_heads = (_count(config, name, source) for name in ("hidden_size", "num_attention_heads"))
    # Where a configuration has no head_dim, Hugging Face defines it so; of Qwen3 it is independent, and has to be
    # there.
    head_dim = (
        _count(config, "head_dim", source)
        if config.get("head_dim") is not None or architecture == "Qwen3ForCausalLM"
        else hidden_size // num_q_heads
    )
    if architecture == "Qwen2ForCausalLM" and head_dim != hidden_size // num_q_heads:
        raise ValueError(
            f"{source}: head_dim is {head_dim}, but Qwen2 has hidden_size / num_attention_heads ="
            f" {hidden_size // num_q_heads}"
        )
    return {
        "architecture": architecture,
        "num_layers": _count(config, "num_hidden_layers", source),
        "hidden_size": hidden_size,
        "num_q_heads": num_q_heads,
        "num_kv_heads": _count(config, "num_key_value_heads", source),
        "head_dim": head_dim,
        "mlp_hidden_size": _count(config, "intermediate_size", source),
        "vocab_size": _count(config, "vocab_size", source),
        "max_position_embeddings": _count(config, "max_position_embeddings", source),
        "tie_word_embeddings": _flag(config, "tie_word_embeddings", source),
        "attention_bias": _bias(
            config, "attention_bias", source, architecture, ("Qwen3ForCausalLM", "LlamaForCausalLM")
        ),
        "mlp_bias": _bias(config, "mlp_bias", source, architecture, ("LlamaForCausalLM",)),
    }


def _architecture(config: dict[str, Any], source: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ValueError(f"{source}: architectures: expected a list of one name, found {names!r:.80}")
    name: str = names[0]
    supported = f"Supported are the dense decoders {', '.join(SUPPORTED)}"
    if name not in SUPPORTED:
        kind = next((f", which {what}" for key, what in _REFUSED_BY_KEY.items() if config.get(key)), "")
        kind = ", which is an encoder and a decoder" if config.get("is_encoder_decoder") else kind
        raise ValueError(f"{source}: architectures: {name}{kind}, is not supported. {supported}")
    if config.get("model_type") != SUPPORTED[name]:
        raise ValueError(
            f"{source}: model_type: expected {SUPPORTED[name]!r} with {name}, found {config.get('model_type')!r:.60}."
            f" {supported}"
        )
    return name


def _refuse_other_models(config: dict[str, Any], source: str, architecture: str) -> None:
    for key, what in _REFUSED_BY_KEY.items():
        if config.get(key):
            raise ValueError(f"{source}: {key}: this {architecture} {what}, which is not supported")
    if config.get("is_encoder_decoder") or config.get("is_causal") is False:
        raise ValueError(f"{source}: this {architecture} is an encoder, which is not supported")
    # Of Qwen2 and Qwen3 a window counts only where use_sliding_window says so; layer_types, where they are, decide.
    layers = config.get("layer_types")
    windowed = (
        any(kind != "full_attention" for kind in layers)
        if isinstance(layers, list)
        else config.get("sliding_window") is not None
        and config.get("use_sliding_window", not architecture.startswith("Qwen"))
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
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind not in _ROPE_TYPES:
        raise ValueError(
            f"{source}: rope_scaling: rotary embeddings of type {kind!r:.60} are not supported. Supported are"
            f" {', '.join(_ROPE_TYPES)}"
        )


def _count(config: dict[str, Any], name: str, source: str) -> int:
    value = _required(config, name, source)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{source}: {name}: expected an integer of at least 1, found {value!r:.60}")
    return value


def _positive(config: dict[str, Any], name: str, source: str) -> None:
    value = _required(config, name, source)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{source}: {name}: expected a number above 0, found {value!r:.60}")


def _flag(config: dict[str, Any], name: str, source: str) -> bool:
    value = _required(config, name, source)
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {name}: expected true or false, found {value!r:.60}")
    return value


def _bias(config: dict[str, Any], name: str, source: str, architecture: str, where: tuple[str, ...]) -> bool:
    """Whether there is a bias that Hugging Face's format has only for some architectures, and by default not."""
    if not config.get(name):
        return False
    if architecture not in where:
        raise ValueError(f"{source}: {name}: {architecture} has none, found {config[name]!r:.60}. Remove the key")
    return _flag(config, name, source)


def _required(config: dict[str, Any], name: str, source: str) -> Any:
    if config.get(name) is None:
        raise ValueError(
            f"{source}: {name}: the field is missing, and the model is not known without it. Add it to the file"
        )
    return config[name]
