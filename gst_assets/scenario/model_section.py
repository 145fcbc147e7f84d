"""`model` and `hardware` of a scenario: what is served, and on what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gst_assets.scenario.settings import Settings


class Geometry(Settings):
    """Shapes of a Qwen3 decoder. `head_dim` is independent of `hidden_size / num_q_heads`."""

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_q_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    mlp_hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> Geometry:
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(f"num_q_heads {self.num_q_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        return self


class Model(Settings):
    """The model served and the tokenizer that counts its prompts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the profiling bundle's directory")
    geometry: Geometry
    checkpoint: str | None = Field(
        None, description="Hugging Face directory or hub id; null: random weights of this geometry"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int = Field(gt=0, description="longest prompt plus output the engine accepts, in tokens")
    tokenizer: str = Field(description="Hugging Face tokenizer directory (relative to the project root) or hub id")
    fold_token_ids: bool = Field(
        False,
        description="take prompt token ids modulo vocab_size, for a geometry with a smaller vocabulary than its tokenizer; lengths are unchanged",
    )

    @model_validator(mode="after")
    def _positions_suffice(self) -> Model:
        if self.max_model_len > self.geometry.max_position_embeddings:
            raise ValueError(
                f"max_model_len {self.max_model_len} exceeds geometry.max_position_embeddings {self.geometry.max_position_embeddings}"
            )
        return self


CPU = "cpu"
"""The hardware_id of a machine whose engine computes on its processor."""


class Hardware(Settings):
    """What the real run must find and the profile must have been made on."""

    hardware_id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$",
        description="names the profiling bundle's directory; `cpu` or a GPU such as `a100`",
    )
    device_name: str | None = Field(
        None, description="text the device's reported name must contain, e.g. A100; null: any (cpu only)"
    )

    @model_validator(mode="after")
    def _gpu_is_named(self) -> Hardware:
        if self.hardware_id != CPU and not self.device_name:
            raise ValueError("device_name is required for an accelerator, e.g. device_name: A100")
        return self
