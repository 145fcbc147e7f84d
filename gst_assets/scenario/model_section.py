"""`model` and `hardware` of a scenario: what is served, and on what."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gst_assets.model_config import SUPPORTED, geometry_of, read_config
from gst_assets.scenario.settings import Settings

_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this (`vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE`)."""


class Geometry(Settings):
    """Shapes of a decoder. `head_dim` is independent of `hidden_size / num_q_heads`.

    Settings that are excluded where they hold their default were added later: what was written about earlier models,
    and the digests over it, stay the same.
    """

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_q_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    mlp_hidden_size: int = Field(gt=0, description="of a layer's MLP, or of one of its experts")
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    tie_word_embeddings: bool = True
    architecture: str = Field(
        "Qwen3ForCausalLM",
        exclude_if=lambda value: value == "Qwen3ForCausalLM",
        description="of what layers it consists, by Hugging Face's name",
    )
    attention_bias: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description=(
            "biases of the attention's projections where the architecture leaves the choice (Qwen3, Llama); Qwen2"
            " always has those of q, k and v"
        ),
    )
    mlp_bias: bool = Field(False, exclude_if=lambda value: not value, description="biases of the MLP (Llama)")
    num_experts: int | None = Field(
        None, gt=0, exclude_if=lambda value: value is None, description="MLPs of each layer of a mixture of experts"
    )
    num_experts_per_token: int | None = Field(
        None, gt=0, exclude_if=lambda value: value is None, description="experts that the router chooses for a token"
    )
    norm_topk_prob: bool = Field(
        True,
        exclude_if=lambda value: bool(value),
        description="scale the weights of a token's experts so that they add up to 1 (Qwen3-MoE leaves the choice)",
    )

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.attention_bias or SUPPORTED[self.architecture].has_qkv_bias

    def unshareable(self, num_devices: int) -> str | None:
        """Why a layer cannot be spread over so many devices by vLLM's rules (0.22 and 0.32), in words; None: it can.

        Query heads, the MLP and the vocabulary, padded to a multiple of 64, are cut into equal parts; key and value
        heads too, unless there are fewer of them than devices: then each is on several devices alike.
        """
        if self.num_q_heads % num_devices:
            return f"{num_devices} devices cannot share num_q_heads {self.num_q_heads} evenly"
        if max(self.num_kv_heads, num_devices) % min(self.num_kv_heads, num_devices):
            return f"{num_devices} devices can neither share num_kv_heads {self.num_kv_heads} evenly nor repeat them"
        if self.mlp_hidden_size % num_devices:
            return f"{num_devices} devices cannot share mlp_hidden_size {self.mlp_hidden_size} evenly"
        padded = -(-self.vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        if padded % num_devices:
            return f"{num_devices} devices cannot share vocab_size {self.vocab_size}, padded to {padded}, evenly"
        return None

    def shareable_among(self) -> list[int]:
        """All numbers of devices over which a layer can be spread, ascending; 1 is one of them."""
        return [number for number in range(1, self.num_q_heads + 1) if self.unshareable(number) is None]

    @field_validator("architecture")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value not in SUPPORTED:
            raise ValueError(f"expected one of {', '.join(SUPPORTED)}, found {value!r:.60}")
        return value

    @model_validator(mode="after")
    def _heads_divide(self) -> Geometry:
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(f"num_q_heads {self.num_q_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        return self

    @model_validator(mode="after")
    def _experts_belong_to_the_architecture(self) -> Geometry:
        has = SUPPORTED[self.architecture].experts is not None
        for name in ("num_experts", "num_experts_per_token"):
            if (getattr(self, name) is not None) != has:
                found, wanted, value = getattr(self, name), *(("a number", "one") if has else ("none", "null"))
                others = [one for one, kind in SUPPORTED.items() if (kind.experts is None) == has]
                raise ValueError(
                    f"{name} is {found}, but {self.architecture} needs {wanted}. Set {name} to {value}, or architecture"
                    f" to one of {', '.join(others)}"
                )
        if self.num_experts and self.num_experts_per_token and self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token {self.num_experts_per_token} exceeds num_experts {self.num_experts}. Set"
                f" num_experts_per_token to {self.num_experts} or less"
            )
        return self


class Model(Settings):
    """The model served and the tokenizer that counts its prompts. `geometry` says its shapes, or `config`, from which
    they follow."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the profiling bundle's directory")
    geometry: Geometry
    config: dict[str, Any] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description=(
            "in a scenario's file: a config.json as Hugging Face publishes it, or its directory (relative to the"
            " project root); once resolved: its content, which is what the engine serves; null: geometry says what"
        ),
    )
    checkpoint: str | None = Field(
        None, description="Hugging Face directory or hub id; null: random weights of this geometry"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantization: Literal["fp8"] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description=(
            "fp8: the engine quantises the projections' weights to e4m3 as it starts, one scale each, and their inputs"
            " at every step; all else, the KV cache included, stays of dtype. For a GPU of compute capability 8.9 or"
            " higher. null: nothing is quantised"
        ),
    )
    max_model_len: int = Field(gt=0, description="longest prompt plus output the engine accepts, in tokens")
    tokenizer: str = Field(description="Hugging Face tokenizer directory (relative to the project root) or hub id")
    fold_token_ids: bool = Field(
        False,
        description=(
            "take prompt token ids modulo vocab_size, for a geometry with a smaller vocabulary than its tokenizer;"
            " lengths are unchanged"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _geometry_follows_from_config(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("config") is None:
            return values
        config, given = values["config"], values.get("geometry")
        source = f"config {config}" if isinstance(config, str) else "config"
        config = read_config(config) if isinstance(config, str) else config
        if not isinstance(config, dict):
            raise ValueError(f"config: expected the path of a config.json or of its directory, found {config!r:.80}")
        derived = geometry_of(config, source)
        differing = (
            [name for name, value in given.items() if derived.get(name) != value] if isinstance(given, dict) else []
        )
        if differing:
            raise ValueError(
                f"geometry.{differing[0]} is set, and differs from what {source} says. Set geometry to null, or config"
            )
        return {**values, "config": config, "geometry": derived}

    @property
    def bytes_per_value(self) -> int:
        """Of an activation, and of a value in the KV cache."""
        return {"bfloat16": 2, "float16": 2, "float32": 4}[self.dtype]

    @field_validator("dtype", mode="before")
    @classmethod
    def _fp8_is_no_dtype(cls, value: Any) -> Any:
        if isinstance(value, str) and re.search("fp8|float8", value):
            raise ValueError(
                f"{value} is none of activations. For FP8 weights set model.quantization=fp8, with model.dtype bfloat16"
                " or float16"
            )
        return value

    @model_validator(mode="after")
    def _positions_suffice(self) -> Model:
        if self.max_model_len > self.geometry.max_position_embeddings:
            raise ValueError(
                f"max_model_len {self.max_model_len} exceeds geometry.max_position_embeddings"
                f" {self.geometry.max_position_embeddings}. Set model.max_model_len to"
                f" {self.geometry.max_position_embeddings} or less"
            )
        return self


CPU = "cpu"
"""The hardware_id of a machine whose engine computes on its processor."""


class HardwareSection(Settings):
    """What the real run must find and the profile must have been made on."""

    hardware_id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="names the profiling bundle's directory; `cpu` or a GPU such as `a100`",
    )
    device_name: str | None = Field(
        None, description="text the device's reported name must contain, e.g. A100; null: any (cpu only)"
    )

    @model_validator(mode="after")
    def _gpu_is_named(self) -> HardwareSection:
        if self.hardware_id != CPU and not self.device_name:
            raise ValueError("device_name is required for an accelerator, e.g. device_name: A100")
        return self
