"""What a run is: the typed, frozen `Scenario`, and the loader that composes it from YAML files and overrides.

One file per scenario in `gst_assets/scenarios/`; its name is the Dagster partition. A file may name parents under `extends`; later
ones win, then the file itself, then overrides. What the settings do belongs to the packages that read them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gst_assets.errors import ScenarioError
from gst_assets.provenance import PROJECT_ROOT

SCENARIO_DIR = Path(__file__).resolve().parent / "scenarios"
_EXTENDS = "extends"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


class Settings(BaseModel):
    """Base of all scenario sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- workload ---------------------------------------------------------------------------------------------------------


class FixedInterval(Settings):
    """Requests `interval_ns` apart; the first arrives at 0."""

    kind: Literal["fixed_interval"]
    interval_ns: int = Field(gt=0, description="nanoseconds between arrivals")


class Poisson(Settings):
    """Exponentially distributed gaps at a mean rate; the first request arrives after the first gap."""

    kind: Literal["poisson"]
    rate_per_s: float = Field(gt=0, allow_inf_nan=False, description="mean arrivals per second")


class Static(Settings):
    """Every request arrives at 0."""

    kind: Literal["static"]


Arrivals = Annotated[FixedInterval | Poisson | Static, Field(discriminator="kind")]


class Workload(Settings):
    """What is asked of the engine and when."""

    prompts: str = Field(description="a prompts.jsonl, relative to the project root")
    num_requests: int | None = Field(
        None,
        gt=0,
        description="requests to send, taking prompts in order and starting over at the end; null: one per prompt",
    )
    num_decode_tokens: int = Field(gt=0, description="tokens requested of each request")
    arrivals: Arrivals
    seed: int = Field(ge=0, lt=2**63)


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
        if self.hardware_id != "cpu" and not self.device_name:
            raise ValueError("device_name is required for an accelerator, e.g. device_name: A100")
        return self


# --- engine and replay ------------------------------------------------------------------------------------------------


class Sampling(Settings):
    """How the engine ends a request. With `ignore_eos` every request yields exactly num_decode_tokens."""

    temperature: float = Field(0.0, ge=0)
    ignore_eos: bool = True
    stop_token_ids: tuple[int, ...] = Field((), description="token ids that end a request early")
    stop_token_id_below: int = Field(
        0, ge=0, description="additionally, every token id below this ends a request early"
    )
    seed: int = Field(0, ge=0, description="request i samples with seed + i")

    @property
    def may_stop_early(self) -> bool:
        """Whether a request can yield fewer tokens than asked."""
        return not self.ignore_eos or bool(self.stop_token_ids) or self.stop_token_id_below > 0


class Engine(Settings):
    """Settings of the real engine; the simulation assumes the same, and both sides record what the engine reported."""

    backend: Literal["vllm"] = "vllm"
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
    def _budget_covers_batch(self) -> Engine:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: a full decode batch would not fit a step"
            )
        return self


class Replay(Settings):
    """How the workload is played against the engine."""

    repeats: int = Field(1, gt=0, description="times the workload is played on one engine start, each its own run")
    warmup_requests: int = Field(16, ge=0, description="requests before the first repeat; never measured")
    warmup_decode_tokens: int = Field(32, gt=0)
    request_timeout_s: float = Field(120, gt=0, description="a request without its last token by then is an error")
    record_iterations: bool = True
    lateness_limit_ns: int = Field(
        5_000_000, gt=0, description="p99 of send - intended arrival above which a run is marked degraded"
    )


# --- profile, simulation, comparison ----------------------------------------------------------------------------------


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
    calibration_decode_batch_sizes: tuple[int, ...] = Field(
        description="decode-only batches driven through the engine, ascending from 1"
    )
    calibration_prefill_sizes: tuple[int, ...] = Field(
        description="prompt lengths of mixed steps driven through the engine, ascending"
    )
    calibration_steps: int = Field(24, gt=4, description="engine steps per calibration batch")
    seed: int = Field(1_000_003, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> Profile:
        for name, value in self:
            if isinstance(value, tuple) and list(value) != sorted(set(value)):
                raise ValueError(f"{name} must be ascending without repeats, found {list(value)}")
            if isinstance(value, tuple) and not value:
                raise ValueError(f"{name} must not be empty")
        return self


class Simulation(Settings):
    """How Vidur is run."""

    variants: tuple[Literal["kernels", "calibrated"], ...] = Field(
        ("kernels", "calibrated"),
        min_length=1,
        description="kernels: operator times only; calibrated: with measured overheads. The last one is the report's headline",
    )
    predictor: Literal["interpolation", "forest"] = Field(
        "interpolation", description="how operator times are read between profiled points"
    )
    kv_cache_granularity: int = Field(16, gt=0, description="tokens to which context lengths are rounded up in lookups")
    seed: int = Field(0, ge=0)


class Comparison(Settings):
    """Bands of the verdict, on the absolute relative error of the headline variant."""

    pass_band: float = Field(0.05, gt=0)
    warn_band: float = Field(0.10, gt=0)

    @model_validator(mode="after")
    def _bands_are_nested(self) -> Comparison:
        if self.warn_band < self.pass_band:
            raise ValueError(f"warn_band {self.warn_band} is below pass_band {self.pass_band}")
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

    def digest(self, *sections: str) -> str:
        """First 16 hex digits of the sha256 over the named sections' resolved values."""
        chosen = {name: self.model_dump(mode="json")[name] for name in sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """The scenario's file, relative to the project root."""
        return f"gst_assets/scenarios/{self.name}.yaml"


# --- loading ----------------------------------------------------------------------------------------------------------


def scenario_names(directory: Path = SCENARIO_DIR) -> list[str]:
    """Names of the scenarios in `directory`, sorted. Files that begin with `_` are parents only. Reads no file."""
    return sorted(path.stem for path in directory.glob("*.yaml") if not path.stem.startswith("_"))


def load_scenario(name: str, overrides: Sequence[str] = (), directory: Path = SCENARIO_DIR) -> Scenario:
    """Compose and validate the scenario `name`.

    `overrides` are `dotted.key=value` with a YAML value, e.g. `workload.num_decode_tokens=32`.

    Raises:
        ScenarioError: unknown scenario, parent or key, wrong type, or impossible value; names the key, the file and what is allowed.
    """
    known = scenario_names(directory)
    if name not in known:
        raise ScenarioError(f"unknown scenario {name!r}; {directory} has {', '.join(known) or 'none'}.")
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            f"scenario {name!r}: names are lower-case letters, digits and underscores (they become partition and run names)."
        )
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = _compose(name, directory, ())
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ScenarioError(
                f"override {override!r}: expected dotted.key=value, e.g. workload.num_decode_tokens=32."
            )
        if key.split(".")[0] in ("name", _EXTENDS):
            raise ScenarioError(f"override {override!r}: {key} cannot be overridden.")
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            raise ScenarioError(f"override {override!r} of scenario {name}: {error}") from None
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ScenarioError(f"{directory / name}.yaml: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    return _validate({**values, "name": name}, f"{directory / name}.yaml", overrides)


def read_resolved(path: Path) -> Scenario:
    """Read a scenario that was resolved to JSON, as carried to a host without this project's configuration library.

    Raises:
        ScenarioError
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(
            f"{path}: no such file. Write it with `python -m gst_assets.scenario NAME > FILE.json`."
        ) from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}).") from None
    return _validate(values, str(path), ())


def resolve_path(text: str) -> Path:
    """A path of a scenario file: absolute, or relative to the project root."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else PROJECT_ROOT / path


def _compose(name: str, directory: Path, seen: tuple[str, ...]) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    path = directory / f"{name}.yaml"
    if name in seen:
        raise ScenarioError(f"{path}: {_EXTENDS} goes in a circle: {' -> '.join([*seen, name])}.")
    if not path.is_file():
        raise ScenarioError(f"{directory / seen[-1]}.yaml: {_EXTENDS} names {name!r}, but {path} does not exist.")
    try:
        own = OmegaConf.load(path)
    except YAMLError as error:
        raise ScenarioError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(own, DictConfig):
        raise ScenarioError(f"{path}: expected a mapping of settings at the top level.")
    parents = own.pop(_EXTENDS, [])
    merged = OmegaConf.create({})
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = OmegaConf.merge(merged, _compose(parent, directory, (*seen, name)))
    return OmegaConf.merge(merged, own)


def _validate(values: dict[str, Any], source: str, overrides: Sequence[str]) -> Scenario:
    try:
        return Scenario.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        touched = [text for text in overrides if key.startswith(text.partition("=")[0]) or text.startswith(key)]
        origin = f"{source} with override {touched[0]!r}" if touched else source
        raise ScenarioError(f"{origin}: {key or 'scenario'}: {_explain(first)}") from None


def _explain(error: Any) -> str:
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"unknown key. Allowed here: {', '.join(_allowed_keys(location[:-1]))}."
    if error["type"] == "missing":
        return "required key is missing."
    return f"{error['msg']} (found {error['input']!r:.120})."


def _allowed_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Scenario
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
        else:  # a tagged union: the tag names the member
            members = [
                member
                for member in (FixedInterval, Poisson, Static)
                if member.model_fields["kind"].annotation.__args__[0] == part
            ]  # type: ignore[union-attr]
            model = members[0] if members else Scenario
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


if __name__ == "__main__":
    import sys

    try:
        print(json.dumps(load_scenario(sys.argv[1], sys.argv[2:]).model_dump(mode="json"), indent=2))
    except ScenarioError as problem:
        sys.exit(f"error: {problem}")
