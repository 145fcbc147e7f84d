"""`engine` and `replay` of a scenario: how the real engine is set, and how the workload is played against it."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gst_assets.scenario.settings import Settings


class Sampling(Settings):
    """How the engine ends a request. With `ignore_eos` every request yields exactly num_decode_tokens."""

    temperature: float = Field(0.0, ge=0)
    ignore_eos: bool = True
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="token ids that end a request early"
    )
    stop_token_id_below: int = Field(
        0, ge=0, description="additionally, every token id below this ends a request early"
    )
    seed: int = Field(0, ge=0, description="request i samples with seed + i")

    @property
    def may_stop_early(self) -> bool:
        """Whether a request can yield fewer tokens than asked."""
        return not self.ignore_eos or bool(self.stop_token_ids) or self.stop_token_id_below > 0


class Server(Settings):
    """A running OpenAI-compatible server, for `backend: openai`."""

    base_url: str = Field(
        pattern=r"^https?://[^/\s?#]+(/[^\s?#]*)?$",
        description=(
            "where the API's /v1 is, e.g. http://gpu-host:8000; a trailing /v1 may be given; without user and password"
        ),
    )
    served_model: str | None = Field(
        None, description="name the server knows the model by; null: the only one it lists"
    )
    api_key_variable: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the API key; null: none is sent"
    )
    connect_timeout_s: float = Field(5, gt=0)
    read_timeout_s: float = Field(
        60, gt=0, description="longest silence of the server, queueing before the first token included"
    )

    @field_validator("base_url")
    @classmethod
    def _without_password(cls, value: str) -> str:
        if "@" in value:
            raise ValueError(
                "holds a user or password, which would be written into the metadata of every run. Leave it out; put"
                " what the server wants into an environment variable (an API key, or a whole value such as `Basic"
                " dXNlcjpwYXNz`) and name it in api_key_variable"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _with_a_possible_port(cls, value: str) -> str:
        try:
            address = urlsplit(value)
            is_possible = bool(address.hostname) and address.port != 0
        except ValueError:
            is_possible = False
        if not is_possible:
            raise ValueError(
                f"{value!r:.120} has an impossible host or port. Expected http://HOST:PORT with a port from 1 to 65535"
            )
        return value


class EngineSection(Settings):
    """Settings of the real engine; the simulation assumes the same, and both sides record what the engine reported."""

    backend: Literal["vllm", "transformers", "openai", "recorded"] = Field(
        "vllm",
        description=(
            "vllm: started and measured in-process; transformers: that library's own continuous batching, another"
            " scheduler; openai: a running server, over HTTP; recorded: earlier runs, played back"
        ),
    )
    server: Server | None = Field(None, description="required by backend openai, meaningless with another")
    recorded: str | None = Field(
        None,
        description=(
            "folder of recorded runs, relative to the project root; required by backend recorded, meaningless with"
            " another"
        ),
    )
    max_num_seqs: int = Field(gt=0, description="most requests in one step")
    max_num_batched_tokens: int = Field(gt=0, description="most tokens in one step: the prefill chunk budget")
    block_size: int = Field(gt=0, description="tokens per KV block")
    num_kv_blocks: int | None = Field(
        None, gt=0, description="KV blocks to allocate; null: what the engine finds room for"
    )
    gpu_memory_utilization: float = Field(0.6, gt=0, le=1)
    cpu_kv_cache_gib: int = Field(1, gt=0, description="memory vLLM's CPU build reserves for KV blocks")
    cpu_threads: int = Field(1, gt=0, description="OpenMP threads of vLLM's CPU build")
    enable_prefix_caching: bool = False
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        exclude_if=lambda value: value == 1,
        description=(
            "devices of this machine that share each layer; on vLLM's CPU build so many processes, of cpu_threads each"
        ),
    )
    async_scheduling: bool = False
    enforce_eager: bool = True
    cudagraph_max_capture_size: int | None = Field(None, gt=0)
    sampling: Sampling = Sampling()
    start_timeout_s: float = Field(600, gt=0)

    @model_validator(mode="after")
    def _server_is_for_openai(self) -> EngineSection:
        if self.backend == "openai" and self.server is None:
            raise ValueError("backend openai requires server, e.g. server: {base_url: http://gpu-host:8000}")
        if self.backend != "openai" and self.server is not None:
            raise ValueError(
                f"server belongs to backend openai, but backend is {self.backend}. Remove server or choose openai"
            )
        return self

    @model_validator(mode="after")
    def _recorded_runs_are_for_recorded(self) -> EngineSection:
        if self.backend == "recorded" and not self.recorded:
            raise ValueError("backend recorded requires recorded, e.g. recorded: data/recorded/h100_8b_half")
        if self.backend != "recorded" and self.recorded is not None:
            raise ValueError(
                f"recorded belongs to backend recorded, but backend is {self.backend}. Remove recorded or choose"
                " backend recorded"
            )
        return self

    @model_validator(mode="after")
    def _transformers_use_one_device(self) -> EngineSection:
        if self.backend == "transformers" and self.tensor_parallel_size > 1:
            raise ValueError(
                f"tensor_parallel_size {self.tensor_parallel_size}: backend transformers runs on one device here. Set"
                " tensor_parallel_size to 1, or choose backend vllm"
            )
        return self

    @model_validator(mode="after")
    def _budget_covers_batch(self) -> EngineSection:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: a"
                " full decode batch would not fit a step"
            )
        return self


class Replay(Settings):
    """How the workload is played against the engine."""

    repeats: int = Field(1, gt=0, description="times the workload is played on one engine start, each its own run")
    between_calibration: bool = Field(
        False,
        description=(
            "measure the profile anew with the runs, repeats between its calibration rounds on one engine start; only"
            " for vLLM on this machine and requests that run to their end, else the two are measured apart"
        ),
    )
    warmup_requests: int = Field(16, ge=0, description="requests before the first repeat; never measured")
    warmup_decode_tokens: int = Field(32, gt=0)
    request_timeout_s: float = Field(120, gt=0, description="a request without its last token by then is an error")
    record_iterations: bool = True
    realtime_priority: bool = Field(
        True, description="run the driver's thread before ordinary programs where the machine permits it"
    )
    lateness_limit_ns: int = Field(
        5_000_000, gt=0, description="p99 of send - intended arrival above which a run is marked degraded"
    )
