"""What a run is: the typed, frozen `Scenario`, and the loader that composes it from YAML files and overrides.

One file per scenario in `gst_assets/scenarios/`; its name is the Dagster partition. A file may name parents under `extends`; later
ones win, then the file itself, then overrides. What the settings do belongs to the packages that read them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gst_assets.environment import OwnScenarios, read
from gst_assets.errors import ScenarioError
from gst_assets.foreign_text import without_secrets
from gst_assets.locations import locate

SCENARIO_DIR = Path(__file__).resolve().parent / "scenarios"
_EXTENDS = "extends"
_NO_SETTINGS = {"name", "overrides"}
"""Fields of a scenario that say where it comes from; no file and no override may set them."""
_ENVIRONMENT = "oc.env"  # OmegaConf's only way to the environment
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Settings(BaseModel):
    """Base of all scenario sections: frozen; an unknown key and a number that is not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _not_vanishing(rate_per_s: float) -> float:
    if rate_per_s < _LOWEST_RATE:
        raise ValueError(f"expected at least {_LOWEST_RATE:g} a second, found {rate_per_s:g}")
    return rate_per_s


# What follows from numbers within these bounds neither overflows nor vanishes, in 64-bit integers and floats; all are far beyond any use.
_MOST_REQUESTS = 10**7
_LOWEST_RATE = 1e-15
_MOST_TOKENS = 2**31 - 1
_MOST_ZIPF_LENGTHS = 2**24
_Rate = Annotated[float, Field(gt=0, le=1e9), AfterValidator(_not_vanishing)]
_RateOrZero = Annotated[float, Field(ge=0, le=1e9)]
_Duration = Annotated[float, Field(ge=1e-9, le=1e12)]
_Tokens = Annotated[int, Field(gt=0, le=_MOST_TOKENS)]

# --- workload ---------------------------------------------------------------------------------------------------------


class FixedInterval(Settings):
    """Requests `interval_ns` apart; the first arrives at 0."""

    kind: Literal["fixed_interval"]
    interval_ns: int = Field(gt=0, lt=2**63, description="nanoseconds between arrivals")


class Poisson(Settings):
    """Exponentially distributed gaps at a mean rate; the first request arrives after the first gap."""

    kind: Literal["poisson"]
    rate_per_s: _Rate = Field(description="mean arrivals per second")


class Static(Settings):
    """Every request arrives at 0."""

    kind: Literal["static"]


class Gamma(Settings):
    """Gamma-distributed gaps at a mean rate, their coefficient of variation 1/sqrt(burstiness); the first request arrives after the first gap."""

    kind: Literal["gamma"]
    rate_per_s: _Rate = Field(description="mean arrivals per second")
    burstiness: float = Field(
        ge=1e-6, le=1e6, description="shape of the distribution: 1 is Poisson, below 1 burstier, above 1 more even"
    )


class Ramp(Settings):
    """Poisson arrivals at a rate that changes linearly for `duration_s` and then stays."""

    kind: Literal["ramp"]
    start_rate_per_s: _RateOrZero
    end_rate_per_s: _Rate
    duration_s: _Duration


class Piece(Settings):
    """A stretch of time at one rate."""

    duration_s: _Duration
    rate_per_s: _RateOrZero


class Piecewise(Settings):
    """Poisson arrivals at one rate after another; the last one goes on for as long as there are requests."""

    kind: Literal["piecewise"]
    pieces: tuple[Piece, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _last_rate_serves_the_rest(self) -> Piecewise:
        if self.pieces[-1].rate_per_s == 0:
            raise ValueError("the last piece must have a rate_per_s above 0, or the requests after it never arrive")
        return self


class TraceArrivals(Settings):
    """The trace's own times. At most one of `time_scale` and `rate_per_s`; neither: to the nanosecond as recorded."""

    kind: Literal["trace"]
    time_scale: float | None = Field(None, gt=0, description="gaps are multiplied by this; below 1 is faster")
    rate_per_s: float | None = Field(
        None,
        gt=0,
        description="gaps are multiplied by the one number that gives all requests selected from the trace this mean rate, whatever num_requests is",
    )
    first_at_ns: int = Field(0, ge=0, description="when the first request arrives")
    repeated: Literal["error", "keep"] = Field("error", description="what to do with two requests of the same time")

    @model_validator(mode="after")
    def _one_scale(self) -> TraceArrivals:
        if self.time_scale is not None and self.rate_per_s is not None:
            raise ValueError("time_scale and rate_per_s both scale the times. Set one of them to null")
        return self


Arrivals = Annotated[
    FixedInterval | Poisson | Gamma | Static | Ramp | Piecewise | TraceArrivals, Field(discriminator="kind")
]


class FixedLength(Settings):
    """The same length for every request."""

    kind: Literal["fixed"]
    tokens: _Tokens


class _BoundedLength(Settings):
    min_tokens: int = Field(gt=0, description="shortest length, included")
    max_tokens: int = Field(gt=0, lt=2**31, description="longest length, included")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> _BoundedLength:
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}")
        return self


class UniformLength(_BoundedLength):
    """Every length between the bounds equally often."""

    kind: Literal["uniform"]


class LognormalLength(_BoundedLength):
    """exp(Normal(ln median, sigma)) rounded to the nearest integer; lengths outside the bounds are drawn anew, and how many is recorded."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0, description="of the distribution before it is bounded, in tokens")
    sigma: float = Field(gt=0, description="standard deviation of the logarithm")


class ZipfLength(_BoundedLength):
    """Length n with a probability proportional to n**-exponent between the bounds."""

    kind: Literal["zipf"]
    exponent: float = Field(ge=0)

    @model_validator(mode="after")
    def _weights_fit_into_memory(self) -> ZipfLength:
        if self.max_tokens - self.min_tokens >= _MOST_ZIPF_LENGTHS:
            raise ValueError(
                f"min_tokens {self.min_tokens} to max_tokens {self.max_tokens} are too many lengths, each of which has its probability. Bring them "
                f"within {_MOST_ZIPF_LENGTHS} of each other"
            )
        return self


class EmpiricalLength(Settings):
    """The given lengths, each as often as its weight says."""

    kind: Literal["empirical"]
    tokens: tuple[_Tokens, ...] = Field(min_length=1)
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(None, description="null: all equally often")

    @model_validator(mode="after")
    def _weights_fit(self) -> EmpiricalLength:
        if self.weights is not None and (len(self.weights) != len(self.tokens) or sum(self.weights) == 0):
            raise ValueError(
                f"weights must hold one number for each of the {len(self.tokens)} tokens, not all 0, found {list(self.weights)}"
            )
        return self


Lengths = Annotated[
    FixedLength | UniformLength | LognormalLength | ZipfLength | EmpiricalLength, Field(discriminator="kind")
]


class TraceSource(Settings):
    """Requests of a published trace. Nothing of it is left out or shortened but what these settings ask for, in the order given here."""

    path: str = Field(description="the trace, relative to the project root")
    format: Literal["azure_2023", "azure_2024", "burstgpt", "mooncake", "sharegpt", "vidur"] | None = Field(
        None, description="null: told from the file's beginning"
    )
    licence: str | None = Field(
        None, description="under which terms the file may be used; null: those its publisher states for the format"
    )
    start_row: int = Field(0, ge=0, description="rows (conversations) to leave out at the beginning")
    num_rows: int | None = Field(None, gt=0, description="rows to read from there; null: all")
    sample_fraction: float | None = Field(
        None, gt=0, lt=1, description="keep each row with this probability (seeded); null: keep all"
    )
    unusable: Literal["error", "drop"] = Field(
        "error", description="what to do with a row without prompt or output tokens, e.g. of a request that failed"
    )
    max_total_tokens: int | None = Field(
        None, gt=1, description="longest prompt plus output to keep; null: model.max_model_len"
    )
    over_length: Literal["error", "drop", "truncate"] = Field(
        "error", description="what to do with longer ones; truncate shortens the prompt, never the output"
    )
    share_prompts: bool = Field(
        False, description="one generated prompt for all requests of its length, instead of one each"
    )


class SyntheticSource(Settings):
    """Requests of seeded lengths. Prompts and outputs are drawn from streams of their own."""

    prefill_tokens: Lengths
    decode_tokens: Lengths
    share_prompts: bool = Field(
        False, description="one generated prompt for all requests of its length, instead of one each"
    )


class Workload(Settings):
    """What is asked of the engine and when. Exactly one of `prompts`, `trace` and `synthetic` says what; set those of a parent to null."""

    prompts: str | None = Field(None, description="a prompts.jsonl, relative to the project root")
    trace: TraceSource | None = None
    synthetic: SyntheticSource | None = None
    num_requests: int | None = Field(
        None,
        gt=0,
        le=_MOST_REQUESTS,
        description="requests to send. prompts: in order, starting over at the end; null: one per prompt. trace: the first of those selected; null: all",
    )
    num_decode_tokens: int | None = Field(
        None,
        gt=0,
        le=_MOST_TOKENS,
        description="tokens requested of each request; null: what the prompt's own num_decode_tokens key or the trace says",
    )
    arrivals: Arrivals
    seed: int = Field(ge=0, lt=2**63)

    @model_validator(mode="after")
    def _sources_fit(self) -> Workload:
        named = [name for name in ("prompts", "trace", "synthetic") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"expected exactly one of prompts, trace and synthetic, found {' and '.join(named) or 'none'}"
                + (". Set the others to null" if named else "")
            )
        if isinstance(self.arrivals, TraceArrivals) and self.trace is None:
            raise ValueError(f"arrivals of kind trace need workload.trace, but the requests come from {named[0]}")
        if self.synthetic is not None and self.num_requests is None:
            raise ValueError("synthetic needs num_requests")
        if self.synthetic is not None and self.num_decode_tokens is not None:
            raise ValueError("synthetic.decode_tokens and num_decode_tokens contradict. Set num_decode_tokens to null")
        return self


# --- model and hardware -----------------------------------------------------------------------------------------------


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


# --- engine and replay ------------------------------------------------------------------------------------------------


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
        description="where the API's /v1 is, e.g. http://gpu-host:8000; a trailing /v1 may be given; without user and password",
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
                "holds a user or password, which would be written into the metadata of every run. Leave it out; put what the server wants into an "
                "environment variable (an API key, or a whole value such as `Basic dXNlcjpwYXNz`) and name it in api_key_variable"
            )
        return value


class Engine(Settings):
    """Settings of the real engine; the simulation assumes the same, and both sides record what the engine reported."""

    backend: Literal["vllm", "transformers", "openai", "recorded"] = Field(
        "vllm",
        description="vllm: started and measured in-process; transformers: that library's own continuous batching, another scheduler; "
        "openai: a running server, over HTTP; recorded: earlier runs, played back",
    )
    server: Server | None = Field(None, description="required by backend openai, meaningless with another")
    recorded: str | None = Field(
        None,
        description="folder of recorded runs, relative to the project root; required by backend recorded, meaningless with another",
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
    async_scheduling: bool = False
    enforce_eager: bool = True
    cudagraph_max_capture_size: int | None = Field(None, gt=0)
    sampling: Sampling = Sampling()
    start_timeout_s: float = Field(600, gt=0)

    @model_validator(mode="after")
    def _server_is_for_openai(self) -> Engine:
        if self.backend == "openai" and self.server is None:
            raise ValueError("backend openai requires server, e.g. server: {base_url: http://gpu-host:8000}")
        if self.backend != "openai" and self.server is not None:
            raise ValueError(
                f"server belongs to backend openai, but backend is {self.backend}. Remove server or choose openai"
            )
        return self

    @model_validator(mode="after")
    def _recorded_runs_are_for_recorded(self) -> Engine:
        if self.backend == "recorded" and not self.recorded:
            raise ValueError("backend recorded requires recorded, e.g. recorded: data/recorded/h100_8b_half")
        if self.backend != "recorded" and self.recorded is not None:
            raise ValueError(
                f"recorded belongs to backend recorded, but backend is {self.backend}. Remove recorded or choose backend recorded"
            )
        return self

    @model_validator(mode="after")
    def _budget_covers_batch(self) -> Engine:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: a full decode batch would not fit a step"
            )
        return self


class Replay(Settings):
    """How the workload is played against the engine."""

    repeats: int = Field(1, gt=0, description="times the workload is played on one engine start, each its own run")
    between_calibration: bool = Field(
        False,
        description="measure the profile anew with the runs, repeats between its calibration rounds on one engine start; only for vLLM on this machine and "
        "requests that run to their end, else the two are measured apart",
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


# --- profile, simulation, comparison ----------------------------------------------------------------------------------


_STARTS_AT_LOWEST = ("num_tokens", "prefill_chunk_sizes", "prefill_context_sizes", "decode_batch_sizes")


class Profile(Settings):
    """What the profiler measures. Grids in tokens; every scenario it serves must stay inside them."""

    root: str | None = Field(
        None,
        description="profiling root to use as it is (relative to the project root); null: measure on this machine into the artifact root",
    )
    num_tokens: tuple[int, ...] = Field(description="token counts for per-token operators, ascending")
    prefill_chunk_sizes: tuple[int, ...] = Field(description="new tokens of a prefill step, ascending")
    prefill_context_sizes: tuple[int, ...] = Field(description="tokens cached before a prefill chunk, ascending from 0")
    decode_batch_sizes: tuple[int, ...] = Field(description="sequences of a decode step, ascending from 1")
    decode_context_sizes: tuple[int, ...] = Field(description="tokens cached per sequence in a decode step, ascending")
    operator_repeats: int = Field(20, gt=2, description="timings per operator and point; the median is kept")
    calibration_prefill_sizes: tuple[int, ...] = Field(
        description="lengths of lone calibration prompts beside the captured graph sizes, ascending"
    )
    traffic_rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="rates of open-loop calibration traffic, ascending; a burst that fills the engine follows them",
    )
    traffic_segment_s: float = Field(3.0, gt=0, description="how long each rate is played in each round")
    seed: int = Field(1_000_003, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> Profile:
        for name, value in self:
            if not isinstance(value, tuple):
                continue
            if list(value) != sorted(set(value)):
                raise ValueError(f"{name} must be ascending without repeats, found {list(value)}")
            if not value:
                raise ValueError(f"{name} must not be empty")
            if name == "traffic_rates_per_s":
                continue
            lowest = 0 if name == "prefill_context_sizes" else 1
            if value[0] < lowest:
                raise ValueError(f"{name} must hold values of at least {lowest}, found {value[0]}")
            # A prompt may be cut so that one token is left, and a lone request decodes alone: without that corner no simulation could begin.
            if name in _STARTS_AT_LOWEST and value[0] != lowest:
                raise ValueError(
                    f"{name} must begin with {lowest}, the smallest step a scheduler can form, found {value[0]}"
                )
        return self


Variant = Literal["published", "kernels", "calibrated"]
"""What is simulated: see `Simulation.variants`."""


class Simulation(Settings):
    """How Vidur is run."""

    variants: tuple[Variant, ...] = Field(
        ("kernels", "calibrated"),
        min_length=1,
        description=(
            "published: Vidur as it ships; kernels: the same operator sums with the adapter's corrections; calibrated: with measured overheads. "
            "The last one is the report's headline"
        ),
    )
    loop: Literal["direct", "event"] = Field(
        "direct",
        description="of kernels. direct: our own loop; event: Vidur's own, the slow reference. published always has Vidur's, calibrated ours",
    )
    host_variability: bool = Field(
        True,
        description="of calibrated: replay the measured sequence of the host's speed; false: its median throughout",
    )
    seed: int = Field(0, ge=0)
    seeds: int = Field(
        5,
        ge=1,
        description="runs of a variant that depends on its seed, at seed, seed + 1, ...; an exact one is run once",
    )

    @model_validator(mode="after")
    def _variants_differ(self) -> Simulation:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants {list(self.variants)} names one twice")
        return self


class ServiceLevel(Settings):
    """What a request must keep to count towards goodput: each bound that is given."""

    ttft_ns: int | None = Field(None, gt=0, description="longest time to the first token")
    tpot_ns: int | None = Field(None, gt=0, description="longest mean gap between the tokens of a request")
    e2e_ns: int | None = Field(None, gt=0, description="longest time to the last token")

    @model_validator(mode="after")
    def _bounds_something(self) -> ServiceLevel:
        if self.ttft_ns is None and self.tpot_ns is None and self.e2e_ns is None:
            raise ValueError("expected at least one of ttft_ns, tpot_ns and e2e_ns")
        return self


class Sweep(Settings):
    """Simulations of the scenario's requests under other rates and engine settings: every combination of the lists. An empty list keeps the
    scenario's own value."""

    rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="mean arrivals per second, of arrivals that have one rate (poisson, gamma)"
    )
    max_num_seqs: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="values of engine.max_num_seqs")
    max_num_batched_tokens: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (),
        description="values of engine.max_num_batched_tokens; variant calibrated knows only the one that was profiled",
    )
    num_kv_blocks: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="values of engine.num_kv_blocks")
    variant: Variant = Field("calibrated", description="the simulation's variant")
    service_level: ServiceLevel | None = Field(None, description="null: goodput is not told")

    @model_validator(mode="after")
    def _values_differ(self) -> Sweep:
        for name, values in self:
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        if not any(isinstance(values, tuple) and values for _, values in self):
            raise ValueError("expected a list of rates_per_s, max_num_seqs, max_num_batched_tokens or num_kv_blocks")
        return self


class Comparison(Settings):
    """Bands of the verdict, on the relative error of the headline variant, and which latencies have to keep them (docs/comparison.md)."""

    pass_band: float = Field(0.05, gt=0)
    warn_band: float = Field(0.10, gt=0)
    required_metrics: tuple[Literal["ttft", "itl", "tpot", "e2e", "normalized", "normalized_execution"], ...] = Field(
        ("ttft", "itl", "e2e"), min_length=1
    )
    required_statistics: tuple[Literal["mean", "p50", "p90", "p95", "p99"], ...] = Field(("p50", "p90"), min_length=1)
    service_level: ServiceLevel | None = Field(
        None, description="what a request must keep to count towards goodput; null: goodput is not told"
    )

    @model_validator(mode="after")
    def _bands_are_nested(self) -> Comparison:
        if self.warn_band < self.pass_band:
            raise ValueError(f"warn_band {self.warn_band} is below pass_band {self.pass_band}")
        return self


class Regression(Settings):
    """When a change over nights is called one. See docs/nightly.md for how well these defaults detect and how often they err."""

    min_effect: float = Field(
        0.05, gt=0, lt=1, description="smallest relative change of a segment's median that counts"
    )
    max_pvalue: float = Field(
        0.0002,
        gt=0,
        lt=0.05,
        description="largest p-value of a change point; small, as twelve series are judged every night",
    )
    min_nights: int = Field(8, ge=4, description="fewer nights of a subject are insufficient data")
    min_nights_after: int = Field(3, ge=2, description="nights since a change before it is more than suspicious")
    alarm_nights: int = Field(14, ge=3, description="nights for which a change is told; then it is the new baseline")
    window_nights: int = Field(50, ge=8, description="sliding window of the change-point detection")


class Capacity(Settings):
    """The search for the highest rate of Poisson arrivals at which the P99 of scheduling delay (first scheduled - intended arrival) stays under a
    bound. Each probe plays the same lengths, drawn from the workload's, with the same gaps scaled to its rate."""

    sides: tuple[Literal["simulator", "engine"], ...] = Field(
        ("simulator",),
        min_length=1,
        description="where to search: in every variant of the simulation, on the real engine",
    )
    max_p99_delay_ms: float = Field(gt=0, description="bound of the P99 of scheduling delay")
    low_rate_per_s: float = Field(gt=0, description="lowest rate probed, expected to be sustained")
    high_rate_per_s: float = Field(gt=0, description="highest rate probed, expected not to be")
    relative_tolerance: float = Field(
        0.05, gt=0, lt=1, description="the search ends when the bounds are closer than this, relative to the lower one"
    )
    num_requests: int = Field(1000, gt=1, description="requests of a probe; a P99 of fewer than 1,000 is flagged")
    seed: int = Field(ge=0, lt=2**63, description="of the lengths drawn and of the gaps, the same in every probe")

    @model_validator(mode="after")
    def _bounds_differ(self) -> Capacity:
        if self.high_rate_per_s <= self.low_rate_per_s:
            raise ValueError(
                f"high_rate_per_s {self.high_rate_per_s} is not above low_rate_per_s {self.low_rate_per_s}"
            )
        if len(set(self.sides)) < len(self.sides):
            raise ValueError(f"sides {list(self.sides)} names one twice")
        return self


class Scenario(Settings):
    """One run, resolved: everything that decides what is measured, simulated and compared."""

    name: str
    description: str
    nightly: bool = False
    model: Model
    hardware: Hardware
    workload: Workload
    engine: Engine
    replay: Replay = Replay()
    profile: Profile
    simulation: Simulation = Simulation()
    comparison: Comparison = Comparison()
    regression: Regression = Regression()
    capacity: Capacity | None = Field(None, description="null: no capacity is searched for")
    sweep: Sweep | None = None
    overrides: tuple[str, ...] = Field(
        (), description="the overrides as given, oldest first; what they set is in the settings themselves"
    )

    @model_validator(mode="after")
    def _sweep_has_a_rate_to_change(self) -> Scenario:
        arrivals = self.workload.arrivals
        if self.sweep is not None and self.sweep.rates_per_s and not isinstance(arrivals, Poisson | Gamma):
            raise ValueError(
                f"sweep.rates_per_s needs workload.arrivals of kind poisson or gamma, found {arrivals.kind}"
            )
        return self

    @property
    def measured_together(self) -> bool:
        """Whether runs and profile come from one engine start: asked for, and possible, since calibration switches early stops off in its engine."""
        return (
            self.replay.between_calibration
            and self.engine.backend == "vllm"
            and not self.engine.sampling.may_stop_early
            and self.profile.root is None
        )

    def digest(self, *sections: str) -> str:
        """First 16 hex digits of the sha256 over the named sections' resolved values."""
        chosen = {name: self.model_dump(mode="json")[name] for name in sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """The scenario's file: a shipped one relative to the project root, an own one with its folder; where it is not here, its name alone."""
        for directory in scenario_directories():
            if (directory / f"{self.name}.yaml").is_file():
                shipped = directory == SCENARIO_DIR
                return f"gst_assets/scenarios/{self.name}.yaml" if shipped else str(directory / f"{self.name}.yaml")
        return f"{self.name}.yaml"


# --- loading ----------------------------------------------------------------------------------------------------------


def scenario_directories() -> tuple[Path, ...]:
    """Where scenario files are: in the package, and in `GST_SCENARIO_DIR` where that is set.

    Raises:
        EnvironmentVariableError: the variable names no directory.
    """
    own = read(OwnScenarios).directory
    return (SCENARIO_DIR,) if own is None else (SCENARIO_DIR, own.expanduser().absolute())


def scenario_names(directory: Path | None = None) -> list[str]:
    """Names of the scenarios in `directory`, or in all of `scenario_directories`, sorted. Files that begin with `_` are parents only. Reads no file."""
    files = _files(scenario_directories() if directory is None else (directory,))
    return sorted(name for name in files if not name.startswith("_"))


def _files(folders: Sequence[Path]) -> dict[str, Path]:
    """The files that a scenario may be or extend, by name.

    Raises:
        ScenarioError: two folders have a file of one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.yaml"):
            if path.stem in found:
                raise ScenarioError(
                    f"{path}: {found[path.stem].parent} has a file of the same name. Rename yours: a name means one scenario."
                )
            found[path.stem] = path
    return found


def load_scenario(name: str, overrides: Sequence[str] = (), directory: Path | None = None) -> Scenario:
    """Compose and validate the scenario `name`, of `directory` or of any of `scenario_directories`.

    `overrides` are `dotted.key=value` with a YAML value, e.g. `workload.num_decode_tokens=32` or `profile.num_tokens=[1, 2, 4]` (a list is
    given whole). Of several for one key the last counts. `workload.arrivals.kind=static` drops the settings of the former kind.

    Raises:
        ScenarioError: unknown scenario, parent or key, wrong type, or impossible value; names the key, the file and what is allowed.
    """
    return _load(name, overrides, scenario_directories() if directory is None else (directory,))


def load_file(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Compose and validate the scenario in `path`, wherever it lies. It may extend shipped files and those beside it.

    Raises:
        ScenarioError: no such file, or see `load_scenario`.
    """
    if not path.is_file():
        raise ScenarioError(f"{path}: no such file. Expected a scenario, FILE.yaml, or the name of one (gst list).")
    return _load(path.stem, overrides, tuple(dict.fromkeys((SCENARIO_DIR, path.resolve().parent))))


def _load(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> Scenario:
    files = _files(folders)
    known = sorted(one for one in files if not one.startswith("_"))
    if name not in known:
        places = " and ".join(map(str, folders))
        raise ScenarioError(f"unknown scenario {name!r}; {places} has {', '.join(known) or 'none'}.")
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            f"scenario {name!r}: names are lower-case letters, digits and underscores (they become partition and run names)."
        )
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_resolver(_ENVIRONMENT, _refuse_environment, replace=True)
    source = str(files[name])
    values, lines = _compose(name, files, ())
    # Joined first, so that their order does not matter where one names a kind and another a setting of that kind.
    chosen: dict[str, Any] = {}
    origins = _Origins(source, lines, {})
    for override in overrides:
        parsed = _parse_override(override)
        chosen = _merge(chosen, parsed)
        origins.overrides |= dict.fromkeys(_dotted_keys(parsed), f"override {override!r} of scenario {name}")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(_merge(values, chosen)), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise ScenarioError(f"{origins.of(key)}: {key}: {str(error).splitlines()[0]}.") from None
    assert isinstance(resolved, dict)
    return _validate(json.dumps({**resolved, "name": name, "overrides": list(overrides)}, default=repr), origins)


def read_resolved(path: Path) -> Scenario:
    """Read a scenario that was resolved to JSON, as carried to a host without this project's configuration library.

    Raises:
        ScenarioError: missing, not JSON (with its line), or not a scenario; names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=lambda pairs: _once_each(pairs, path))
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file. Write it with `gst show NAME --json > FILE.json`.") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 ({error.reason}).") from None
    return _validate(text, _Origins(str(path), {}, {}))


def _once_each(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object; an error where it has a key twice, of which JSON would silently take the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ScenarioError(
                f"{path}: the key {key!r} is written twice in one object, and JSON would take the last. Remove one of them."
            )
        found[key] = value
    return found


def read_reference(reference: str, overrides: Sequence[str]) -> Scenario:
    """The scenario that a command line names: a scenario's name or its file `FILE.yaml`, to which `overrides` are applied, or a resolved
    `FILE.json`, which holds its own.

    Raises:
        ScenarioError: see `load_scenario` and `read_resolved`; or overrides for a resolved file.
    """
    if reference.endswith(".yaml"):
        return load_file(Path(reference), overrides)
    if not reference.endswith(".json"):
        return load_scenario(reference, overrides)
    if overrides:
        raise ScenarioError(
            f"override {overrides[0]!r}: {reference} is resolved, its overrides inside. Resolve it again with this one, "
            f"`gst show NAME -o {overrides[0]} --json > {reference}`, or give the scenario's name instead of the file."
        )
    return read_resolved(Path(reference))


def _refuse_environment(*_: object) -> str:
    raise ValueError(
        f"${{{_ENVIRONMENT}:...}} is not resolved: the value would be written into the metadata of every run. Give the value itself; of a "
        "secret, name the variable (engine.server.api_key_variable)"
    )


def resolve_path(text: str) -> Path:
    """A path of a scenario file: absolute, or relative as `locations.locate` says."""
    return locate(text)


def _compose(name: str, files: Mapping[str, Path], seen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's settings over its parents', interpolations unresolved, and for each dotted key the file and line it comes from."""
    path = files[name]
    if name in seen:
        raise ScenarioError(
            f"{path}: {_EXTENDS} goes in a circle: {' -> '.join([*seen, name])}. Take one of them out of {_EXTENDS}."
        )
    own, origins = _read_file(path)
    if "name" in own:
        raise ScenarioError(f"{origins['name']}: name: the file's name is the scenario's name. Remove the key.")
    if "overrides" in own:
        raise ScenarioError(
            f"{origins['overrides']}: overrides: overrides are given with a run. Write the settings themselves into the file."
        )
    parents = own.pop(_EXTENDS, [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(parent, str) for parent in names):
        raise ScenarioError(
            f"{origins[_EXTENDS]}: {_EXTENDS}: expected a scenario name or a list of them, found {parents!r}."
        )
    merged: dict[str, Any] = {}
    merged_origins: dict[str, str] = {}
    for parent in names:
        if parent not in files:
            places = " and ".join(sorted({str(file.parent) for file in files.values()}))
            raise ScenarioError(
                f"{origins[_EXTENDS]}: {_EXTENDS} names {parent!r}, but {places} has no {parent}.yaml; it has {', '.join(sorted(files))}."
            )
        values, where = _compose(parent, files, (*seen, name))
        merged, merged_origins = _merge(merged, values), merged_origins | where
    return _merge(merged, own), merged_origins | origins


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gst_assets.scenario_yaml import RewrittenError, read_yaml

    try:
        text = path.read_text(encoding="utf-8")
        values, root = read_yaml(text)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ScenarioError(f"{path}: expected a mapping of settings at the top level, found {text.strip()!r:.60}.")
        own = OmegaConf.to_container(OmegaConf.create(values or {}))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    except RewrittenError as error:
        assert error.problem_mark is not None
        raise ScenarioError(f"{path}: line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ScenarioError(f"{path}:{line} not valid YAML ({error.problem or error.context}).") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: not valid YAML ({error}).") from None
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        where = _lines(root).get(key)
        line = f" line {where}:" if where else ""
        raise ScenarioError(f"{path}:{line} {key}: not a valid interpolation ({str(error).splitlines()[0]}).") from None
    assert isinstance(own, dict)
    return {str(key): value for key, value in own.items()}, {
        key: f"{path}: line {line}" for key, line in _lines(root).items()
    }


def _lines(node: Any, prefix: str = "") -> dict[str, int]:
    """Line (from 1) of each dotted key of a YAML mapping node."""
    found: dict[str, int] = {}
    for key, value in node.value if node is not None and node.id == "mapping" else ():
        found[f"{prefix}{key.value}"] = key.start_mark.line + 1
        found |= _lines(value, f"{prefix}{key.value}.")
    return found


def _parse_override(override: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from gst_assets.scenario_yaml import RewrittenError, read_yaml

    key, equals, text = override.partition("=")
    if not equals or not _DOTTED_KEY.fullmatch(key):
        raise ScenarioError(
            f"override {override!r}: expected dotted.key=value, e.g. workload.num_decode_tokens=32 or profile.num_tokens=[1, 2, 4] (a list is given whole)."
        )
    section = key.split(".")[0]
    if section in ("name", _EXTENDS):
        raise ScenarioError(f"override {override!r}: {key} cannot be overridden; choose another scenario instead.")
    if section == "overrides":
        raise ScenarioError(f"override {override!r}: {key} cannot be overridden; give the overrides one by one.")
    try:
        value, _ = read_yaml(text, comments=False)
        for part in reversed(key.split(".")):
            value = {part: value}
        parsed = OmegaConf.to_container(OmegaConf.create(value))
    except RewrittenError as error:
        raise ScenarioError(f"override {override!r}: {key}: {error.problem}") from None
    except YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ScenarioError(f"override {override!r}: {key}: the value is not valid YAML ({problem}).") from None
    except OmegaConfBaseException as error:
        raise ScenarioError(
            f"override {override!r}: {key}: not a valid interpolation ({str(error).splitlines()[0]})."
        ) from None
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; lists are replaced whole, and so is a section whose `kind` changes: the old kind's settings mean nothing to the new one."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if (
            isinstance(before, dict)
            and isinstance(value, dict)
            and value.get("kind") in (None, before.get("kind", value.get("kind")))
        ):
            merged[key] = _merge(before, value)
        else:
            merged[key] = value
    return merged


def _dotted_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys of the values that are no mappings."""
    keys = []
    for key, value in values.items():
        keys += _dotted_keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return keys


@dataclass
class _Origins:
    """Where settings were made, by dotted key: `lines` (file and line) and, over them, `overrides`."""

    source: str
    lines: dict[str, str]
    overrides: dict[str, str]

    def of(self, key: str, *, missing: bool = False) -> str:
        """The override or line that set `key`; for a section, or the section of a `missing` key, the overrides that touch it as well."""
        for set_key, override in self.overrides.items():
            if f"{key}.".startswith(f"{set_key}."):
                return override
        section = key.rpartition(".")[0] if missing else key
        touching = [
            where for set_key, where in self.overrides.items() if not section or set_key.startswith(f"{section}.")
        ]
        own = self.source
        if not missing and not touching:
            parts = key.split(".")
            ancestors = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            own = next((self.lines[one] for one in ancestors if one in self.lines), self.source)
        return " with ".join([own, *dict.fromkeys(touching)])


def _validate(text: str, origins: _Origins) -> Scenario:
    """Validate a scenario in JSON. Strictly: neither `"32"` nor `true` is an integer."""
    try:
        return Scenario.model_validate_json(text, strict=True)
    except ValidationError as error:
        # A misspelled key is often also a missing one: the key that stands there is the better hint.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key, problem = _explain(first)
        where = origins.of(key, missing=first["type"] in ("missing", "union_tag_not_found"))
        more = f" ({error.error_count()} settings are wrong in all)" if error.error_count() > 1 else ""
        raise ScenarioError(without_secrets(f"{where}: {key or 'scenario'}: {problem}{more}")) from None


def _explain(error: Any) -> tuple[str, str]:
    """The dotted key of a validation error, and what is wrong with what is allowed."""
    keys, model, kinds = _follow(error["loc"])
    found = f"found {error['input']!r:.120}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["ctx"].get("tag")
        return ".".join(
            [*keys, "kind"]
        ), f"expected one of {', '.join(kinds)}, found {'none' if tag is None else repr(tag)}."
    key = ".".join(keys)
    if error["type"] == "extra_forbidden":
        _, section, _ = _follow(error["loc"][:-1])
        known = set(section.model_fields if section else ()) - (_NO_SETTINGS if section is Scenario else set())
        return key, f"unknown key. Allowed here: {', '.join(sorted(known)) or 'none'}."
    if error["type"] == "missing":
        return key, "required key is missing."
    if error["type"] == "value_error":
        return key, f"{error['ctx']['error']}."
    if model is not None or kinds:
        return key, f"expected a mapping of settings, {found}."
    return key, f"{error['msg']} ({found})."


def _follow(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None, dict[str, type[BaseModel]]]:
    """The keys along an error's location (which also holds the tags of tagged unions), and the section or the kinds it ends at."""
    keys: list[str] = []
    model: type[BaseModel] | None = Scenario
    kinds: dict[str, type[BaseModel]] = {}
    for part in location:
        if kinds:
            model, kinds = kinds[str(part)], {}
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part)) if model else None
        annotation: Any = field.annotation if field else None
        # `Section | None` leads to the section.
        sections = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        if len(sections) == 1:
            annotation = sections[0]
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if field and isinstance(field.discriminator, str):
            kinds = {
                get_args(member.model_fields[field.discriminator].annotation)[0]: member
                for member in get_args(annotation)
            }
    return keys, model, kinds
