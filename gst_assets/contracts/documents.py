"""One pydantic model per JSON document of the contract, and the functions that read and write them.

Models describe what is stored, not how it is produced. Importable on a GPU host (pydantic only).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gst_assets import provenance
from gst_assets.errors import ContractError
from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_text

if TYPE_CHECKING:
    from gst_assets.scenario import Scenario

SCHEMA_VERSION: Literal["v1"] = "v1"
NOT_STATED = "not stated"
"""Stands where a required text of an imported run is not known."""
_MOST_BYTES = 64 << 20


def _in_utc(moment: datetime) -> datetime:
    try:
        moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("in UTC this is beyond the years 1 to 9999") from None
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with its zone that has a time in UTC: on the first day of year 1 not every one has."""


def _fits(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, dict):
        return all(map(_fits, value.values()))
    return all(map(_fits, value)) if isinstance(value, list | tuple) else True


class Stored(BaseModel):
    """Base of everything stored. Keys the contract does not know are preserved, so other programs may add theirs."""

    # "constants": otherwise pydantic turns NaN into null; as NaN it is refused by `write_document`.
    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="constants")

    @model_validator(mode="after")
    def _check_integers(self) -> Self:
        for name in type(self).model_fields:
            if not _fits(getattr(self, name)):
                raise ValueError(f"{name} holds an integer that does not fit 64 bits")
        return self


class Document(Stored):
    """Base of the stored documents, one file each."""

    schema_version: Literal["v1"] = SCHEMA_VERSION


class Hydra(Stored):
    """Which configuration made the result. Named for readers of the contract; it names the scenario file and its
    overrides."""

    config_path: str
    config_name: str
    overrides: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, scenario: Scenario) -> Hydra:
        """That of a scenario of this project."""
        return cls(config_path=scenario.file, config_name=scenario.name, overrides=list(scenario.overrides))


class WorkloadPaths(BaseModel):
    """File names relative to the workload directory."""

    model_config = ConfigDict(frozen=True)

    prompts: str = "prompts.jsonl"
    trace_lengths: str = "trace_lengths.csv"
    trace_intervals: str = "trace_intervals.csv"


class WorkloadSource(Stored):
    """Where a workload's requests came from, and everything that was left out or changed on the way, counted.

    Of a trace: `rows` in the window read; `sampled_out`, `unusable_dropped` (no prompt or no output tokens) and
    `over_length_dropped` of them; `num_selected` left, over a time of `span_ns` (null: no times), of which the first
    `num_requests` are sent. `prompts_truncated` were shortened by `tokens_truncated` in all to end within
    `max_total_tokens`. `unused_columns` of the file stand for nothing in the workload. Of synthetic lengths: how many
    draws fell outside the bounds and were drawn anew. Of sessions: `num_selected` turns of `num_sessions` sessions,
    over a time of `span_ns`. Of a trace whose conversations are taken turn by turn, `rows` and `sampled_out` count
    conversations, the others turns, of `num_sessions` conversations.
    """

    kind: Literal["prompts", "trace", "synthetic", "sessions"]
    path: str | None = None
    sha256: str | None = None
    format: str | None = None
    publication: str | None = None
    licence: str | None = None
    unused_columns: list[str] = Field(default_factory=list)
    rows: int | None = None
    sampled_out: int | None = None
    unusable_dropped: int | None = None
    over_length_dropped: int | None = None
    prompts_truncated: int | None = None
    tokens_truncated: int | None = None
    max_total_tokens: int | None = None
    num_selected: int | None = None
    span_ns: int | None = None
    prefill_lengths_redrawn: int | None = None
    decode_lengths_redrawn: int | None = None
    num_sessions: int | None = Field(None, exclude_if=lambda value: value is None)


class WorkloadSchedule(Stored):
    """The rate over the whole schedule and the one asked for (null: none was asked, or the schedule has no length);
    `time_scale` is what a trace's gaps were multiplied by. Where turns wait for answers: if these took no time."""

    span_ns: int = Field(ge=0)
    asked_rate_per_s: float | None = None
    offered_rate_per_s: float | None = None
    time_scale: float | None = None


class WorkloadMeta(Document):
    """workload_meta.json. `workload_id` derives from `sha256` of the three files, so equal workloads share it. `source`
    and `schedule` are missing in workloads of earlier versions."""

    workload_id: str
    created_at: Moment
    model: str
    seed: int
    tokenizer_ref: str
    tokenizer_sha256: str
    git_commit: str | None
    git_dirty: bool | None
    paths: WorkloadPaths = WorkloadPaths()
    sha256: dict[str, str]
    num_requests: int = Field(ge=1)
    params: dict[str, Any]
    hydra: Hydra
    source: WorkloadSource | None = None
    schedule: WorkloadSchedule | None = None


class StatedHardware(Stored):
    """What a run states about its device. A run of another program may state nothing, or some of it; None: not
    stated."""

    hardware_id: str | None = None
    device_name: str | None = None
    device_count: int | None = Field(None, ge=1)
    """Devices that the engine used, or that were simulated; not those that the host has. 1 for a CPU."""
    driver: str | None = None
    stated: bool = False
    """As the scenario states it; not detected (the engine runs on another machine)."""


class Hardware(StatedHardware):
    """The device a result was measured on, or simulated for."""

    hardware_id: str
    device_name: str
    device_count: int = Field(ge=1)


class Imported(Stored):
    """How `gst import` made a run of another program's results (`gst_assets.importers`).

    `mapping` says of each column where it comes from, `clock` what the times are and how that is known, `arrivals` what
    `arrival_time_ns` stands for, `joined_by` what `source_request_id` (or, without that column, the order of the
    requests) is. `dropped` counts or names what was left out, `unstated` what the results do not say. `transport`: the
    way from client to engine, inside every time. `requested_lengths`: whether `num_decode_tokens` is what was asked
    for; else what was produced stands there (null: not recorded).
    """

    format: str
    source: str
    source_sha256: dict[str, str]
    written_by: str
    mapping: dict[str, str]
    clock: str
    arrivals: str
    joined_by: str
    transport: Literal["in_process", "http"] | None = None
    requested_lengths: bool | None = None
    definitions: dict[str, str] = Field(default_factory=dict)
    dropped: dict[str, str] = Field(default_factory=dict)
    unstated: list[str] = Field(default_factory=list)


RUN_TYPES_IN_WORDS = {
    "real": "a real run",
    "vidur": "a simulation",
    "compare": "a comparison",
    "vidur_profile": "a profiling bundle",
    "capacity": "a search for capacity",
    "sweep": "a sweep",
}
"""What `RunMeta.run_type` is called in messages."""


class RunMeta(Document):
    """run_meta.json of a real run, a simulation, a profile, a comparison, a search for capacity or a sweep.

    `inputs_sha256` maps a readable input name to a digest; `sha256` maps every other file of the directory to its
    digest. A run of another program may leave out `hardware`, `env`, `params`, `git_dirty` and the digests, and may not
    know when it was made (null).
    """

    run_type: Literal["real", "vidur", "compare", "vidur_profile", "capacity", "sweep"]
    run_id: str
    started_at: Moment | None
    ended_at: Moment | None
    git_commit: str | None
    git_dirty: bool | None = None
    model: str
    hardware: StatedHardware | None = None
    env: dict[str, Any] = Field(default_factory=dict)
    params: dict[str, Any] = Field(default_factory=dict)
    hydra: Hydra
    inputs_sha256: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)


class OwnRunMeta(RunMeta):
    """What every run_meta.json of this project states."""

    started_at: AwareDatetime
    ended_at: AwareDatetime
    git_dirty: bool | None
    hardware: Hardware
    env: dict[str, Any]
    params: dict[str, Any]


def run_facts(scenario: Scenario, started_at: datetime) -> dict[str, Any]:
    """The fields that every `RunMeta` of this project fills alike: what was asked, by which code and packages, from
    `started_at` (aware) until now."""
    commit, dirty = provenance.git_state()
    return {
        "started_at": started_at,
        "ended_at": datetime.now(timezone.utc),
        "git_commit": commit,
        "git_dirty": dirty,
        "model": scenario.model.name,
        "env": provenance.environment(),
        "params": scenario.model_dump(mode="json"),
        "hydra": Hydra.of(scenario),
    }


VLLM_POLICY = "vllm_v1"
"""Chunked prefill under one token budget, running requests before waiting ones, first come first served, preemption of
the youngest."""
UNKNOWN_POLICY = "unknown"
UNKNOWN_KERNELS = "unknown"
"""`EngineSettings.attention_backend` of an engine that does not report it."""
KERNEL_SETTINGS = ("attention_backend", "quantized_kernels", "expert_kernel", "all_reduce")
"""Keys of `EngineSettings` that say what computes a step, on which its times depend. A simulation does not choose
them: it has those of its profile's engine."""


class EngineSettings(Stored):
    """What the running engine reported about itself; a simulation of it must assume the same.

    Read back from the engine, never copied from the scenario, but for those that `not_read_back` names: a remote server
    does not report everything, and these are as the scenario states them (`unknown` or empty where it states nothing).
    `transport` is the way from the driver to the engine; with `http` it is inside every measured time.
    `scheduling_policy` names the rules by which steps are formed; the simulation knows only vLLM's. `not_told` names
    what no simulation here models (parallelism, speculative decoding, several tokens a message, LoRA) and a server does
    not report.
    """

    backend: str
    engine_version: str
    architecture: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="of the model it runs, by Hugging Face's name; None: not reported",
    )
    dtype: str
    quantization: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="how it computes with quantised weights; None: nothing is quantised, or not reported",
    )
    quantized_kernels: str | None = Field(
        None, exclude_if=lambda value: value is None, description="what computes with them, where the engine reports it"
    )
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_kv_blocks: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    async_scheduling: bool
    enforce_eager: bool
    cudagraph_capture_sizes: list[int] = Field(default_factory=list)
    attention_backend: str
    tensor_parallel_size: int | None = Field(
        None, exclude_if=lambda value: value is None, description="devices that share each layer; None: not reported"
    )
    all_reduce: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="what may sum a layer's results over the devices, in order of trial; None: one device, or unknown",
    )
    expert_kernel: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="what computes the experts of a mixture, where the engine reports it",
    )
    transport: Literal["in_process", "http"] = "in_process"
    not_read_back: list[str] = Field(default_factory=list)
    scheduling_policy: str = UNKNOWN_POLICY
    not_told: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _policy_of_vllm(cls, values: Any) -> Any:
        """Backend `vllm` is vLLM's V1 engine, which has one policy; its runs were also recorded before the key
        existed."""
        if isinstance(values, dict) and values.get("backend") == "vllm" and "scheduling_policy" not in values:
            return {**values, "scheduling_policy": VLLM_POLICY}
        return values

    @model_validator(mode="before")
    @classmethod
    def _one_device_before_there_were_more(cls, values: Any) -> Any:
        """An engine that this program started had one device before the key existed."""
        if (
            isinstance(values, dict)
            and values.get("backend") in ("vllm", "transformers")
            and "tensor_parallel_size" not in values
        ):
            return {**values, "tensor_parallel_size": 1}
        return values


class PacingRecord(Stored):
    """How the driver met the workload's times: woken by `timer` `spin_ns` before a request is due, its thread at
    `priority`; `priority_reason` says why that is not realtime."""

    timer: Literal["timerfd", "event_loop"]
    spin_ns: int = Field(ge=0)
    priority: Literal["realtime", "normal"]
    priority_reason: str


class GpuState(Stored):
    """What the GPU's driver reported at one moment; null where it reports nothing. `slowed_by` names what holds the
    clocks down, power cap or heat."""

    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    slowed_by: list[str] | None = None


class MachineState(Stored):
    """The machine at one moment: load over the last minute, mean frequency of the cores where it is readable, and the
    GPU where one serves."""

    load_1m: float | None = None
    cpu_mhz: float | None = None
    gpu: GpuState | None = None


class MachineWindow(MachineState):
    """A stretch of a measurement, times relative to run start. Shares are of the time of all cores: busy with anything,
    busy with other programs, taken by the hypervisor. The state is that at its end."""

    start_ns: int
    end_ns: int
    cpu_busy: float | None = None
    cpu_others: float | None = None
    cpu_steal: float | None = None


class MachineRecord(Stored):
    """The machine during one measurement, `engine.machine`: shares over the whole, the state before, and the windows
    (about a second each, at most 64: longer ones in runs of more than a minute). `sampling_ns_max`: the longest that
    one of `num_samples` samples blocked the event loop."""

    num_cores: int = Field(ge=1)
    cpu_busy: float | None = None
    cpu_others: float | None = None
    cpu_steal: float | None = None
    before: MachineState
    windows: list[MachineWindow]
    sampling_ns_max: int = Field(ge=0)
    num_samples: int = Field(ge=1)


def _imported() -> Any:
    """The field of a run that may have been imported; not written where it was not."""
    return Field(None, exclude_if=lambda value: value is None)


class RealRunFacts(RunMeta):
    """What a comparison needs of a real run, whoever wrote it; None: not recorded. A run of this project is a
    `RealRunMeta`."""

    run_type: Literal["real"] = "real"
    workload_dir: str | None = None
    workload_id: str | None = None
    workload_sha256: dict[str, str] = Field(default_factory=dict)
    backend: str
    group_id: str | None = None
    repeat_index: int | None = Field(None, ge=0)
    num_repeats: int | None = Field(None, ge=1)
    engine_settings: EngineSettings | None = None
    warmup: dict[str, Any] = Field(default_factory=dict)
    lateness_ns: dict[str, int] = Field(default_factory=dict)
    degraded: bool | None = None
    degraded_reasons: list[str] | None = None
    pacing: PacingRecord | None = None
    num_bunched_messages: int | None = Field(None, ge=0)
    num_errors: int | None = Field(None, ge=0)
    machine: MachineRecord | None = None
    imported: Imported | None = _imported()


class RealRunMeta(OwnRunMeta, RealRunFacts):
    """run_meta.json of a real run. `lateness_ns` is send_time - arrival_time: p50, p99 and max over requests.

    `degraded_reasons` says why a run is degraded, one sentence each; it and `pacing` are null where an earlier version
    recorded neither. `machine` is the machine that drove, and the engine's own where that is the same; null where it
    was not recorded.
    """

    run_type: Literal["real"] = "real"
    workload_dir: str
    workload_id: str
    workload_sha256: dict[str, str]
    group_id: str
    repeat_index: int = Field(ge=0)
    num_repeats: int = Field(ge=1)
    engine_settings: EngineSettings
    warmup: dict[str, Any]
    lateness_ns: dict[str, int]
    degraded: bool
    num_bunched_messages: int = Field(ge=0)
    num_errors: int = Field(ge=0)


class SimulationFacts(RunMeta):
    """What a comparison needs of a simulation, whoever wrote it; None: not recorded. One of this project is a
    `VidurRunMeta`.

    `variant` names it in a report; without one it goes by its `run_id`.
    """

    run_type: Literal["vidur"] = "vidur"
    workload_dir: str | None = None
    workload_id: str | None = None
    workload_sha256: dict[str, str] = Field(default_factory=dict)
    profiling_root: str | None = None
    profile_sha256: dict[str, str] = Field(default_factory=dict)
    variant: str | None = None
    predictor: str | None = None
    simulated_settings: dict[str, Any] = Field(default_factory=dict)
    num_preemptions: int | None = Field(None, ge=0)
    imported: Imported | None = _imported()


class VidurRunMeta(OwnRunMeta, SimulationFacts):
    """run_meta.json of a simulation."""

    run_type: Literal["vidur"] = "vidur"
    workload_dir: str
    workload_id: str
    workload_sha256: dict[str, str]
    profiling_root: str
    profile_sha256: dict[str, str]
    variant: str
    predictor: str
    simulated_settings: dict[str, Any]
    num_preemptions: int = Field(ge=0)


class ProfileMeta(OwnRunMeta):
    """run_meta.json of a profiling bundle.

    `engine_settings` are those of the engine the calibration drove; `calibration_sha256` digests each calibration
    workload, so that a comparison on one of them can be refused; `profile_key` digests the settings that decide what is
    measured.
    """

    run_type: Literal["vidur_profile"] = "vidur_profile"
    format_version: int = Field(1, ge=1)
    """Of the bundle's tables (`step_costs.bundle.FORMAT_VERSION`); bundles without one are of version 1."""
    profiling_root: str
    profile_key: str
    engine_settings: EngineSettings
    calibration_sha256: dict[str, str] = Field(default_factory=dict)
    calibration_rounds_taken_over: int = Field(0, ge=0)
    """Rounds measured before an interruption, so on another engine start than the rest."""
    machine: list[MachineRecord | None] | None = None
    """The machine in each calibration round; null for a round that was reused, and where an earlier version did not
    record it."""
    worker: dict[str, Any] | None = None
    """What the engine's worker says of itself: shapes and kernels. Null where an earlier version did not record it."""


class PublishedForests(Document):
    """published_forests.json next to a bundle's CSV files: what Vidur's grid search chose for the forest of each
    operator.

    `csv_sha256` digests the files it was chosen on, by name; `search` says from which candidates, `versions` of which
    packages.
    """

    versions: dict[str, str]
    search: dict[str, Any]
    csv_sha256: dict[str, str]
    chosen: dict[str, dict[str, int]]


class HistoryFacts(Stored):
    """What a history needs to know of a comparison's real runs and of its headline simulation, which may have been
    removed since.

    `group_id` names the measurement, shared by its repeats: two comparisons of one group are not two nights. `env` and
    `sim_env` are the environments of the first repeat and of the headline simulation.
    """

    group_id: str
    measured_at: Moment
    engine_settings: EngineSettings
    env: dict[str, Any]
    sim_env: dict[str, Any]
    profile_sha256: dict[str, str]


class ComparisonMeta(RunMeta):
    """run_meta.json of a comparison. `sim_run_dir` is the headline variant; `sim_run_dirs` has every variant,
    `seed_run_dirs` its runs under further seeds.

    `verdict` is the headline variant's outcome; `marks` are the reasons why it cannot be a pass (settings that differ,
    degraded runs). `measured` is absent from comparisons made by versions that did not record it, and of runs that do
    not state their group, start and engine settings; `workload_id` is null where those do not state it.
    """

    run_type: Literal["compare"] = "compare"
    started_at: AwareDatetime
    real_run_dir: str
    sim_run_dir: str
    real_run_dirs: list[str]
    sim_run_dirs: dict[str, str]
    seed_run_dirs: dict[str, list[str]] = Field(default_factory=dict)
    workload_id: str | None
    headline_variant: str
    verdict: Literal["pass", "warn", "inconclusive", "insufficient", "fail"]
    marks: list[str] = Field(default_factory=list)
    measured: HistoryFacts | None = None


class CapacityFound(Stored):
    """The result of a search for capacity on one side. Rates are requests per second.

    `found`: the bound was met at `capacity_per_s` and exceeded at `upper_per_s`, closer than the tolerance.
    `below_low`: exceeded at the lowest rate probed, so no capacity is known. `above_high`: met at the highest, so the
    capacity is at least that. `undetermined`: a probe between could not be judged; the rates are the bounds known by
    then. `reason` says which and why; `flags` what weakens the result.
    """

    status: Literal["found", "below_low", "above_high", "undetermined"]
    capacity_per_s: float | None
    upper_per_s: float | None
    num_probes: int = Field(ge=1)
    reason: str = ""
    flags: list[str] = Field(default_factory=list)


class CapacityMeta(OwnRunMeta):
    """run_meta.json of a search for capacity. `found` maps a side (`engine`, or a variant of the simulation) to its
    result; `criterion` says in words what was searched for. `engine_settings` are of the engine's side,
    `profile_sha256` of the simulation's profile; null where that side was not searched."""

    run_type: Literal["capacity"] = "capacity"
    criterion: str
    found: dict[str, CapacityFound]
    engine_settings: EngineSettings | None = None
    profile_sha256: dict[str, str] | None = None


class HistoryMeta(Document):
    """history_meta.json: every completed comparison of one scenario. Holds no time and no machine, so that rebuilding
    it from the comparison directories gives the same bytes."""

    scenario: str
    num_comparisons: int = Field(ge=0)
    sha256: dict[str, str]


class NightMeta(Document):
    """night_meta.json: what the history needs of a comparison that was pruned. Next to it are its run_meta.json as
    comparison.json, byte for byte, and its latency table."""

    comparison_id: str
    sha256: dict[str, str]


class RegressionMeta(Document):
    """regression_meta.json: a scenario's verdict over its history. Depends on the history and the rule only; `rule` are
    the settings it was judged by, `nights` the comparisons that were judged, oldest first."""

    scenario: str
    verdict: Literal["ok", "suspicious", "regression", "improvement", "insufficient data"]
    rule: dict[str, Any]
    nights: list[str]
    history_sha256: dict[str, str]
    sha256: dict[str, str]


class SweepMeta(OwnRunMeta):
    """run_meta.json of a sweep: simulations of one workload, in one `variant`, under `num_configurations` settings.
    `inputs_sha256`: the workload's and the profile's files."""

    run_type: Literal["sweep"] = "sweep"
    workload_id: str
    variant: str
    num_configurations: int = Field(ge=1)


class SweepPartMeta(Document):
    """part_meta.json of a part of a sweep that is not complete yet: what some of its simulations gave."""

    sha256: dict[str, str]


D = TypeVar("D", bound=BaseModel)


def read_document(model: type[D], path: Path) -> D:
    """Read and validate one JSON document. Types are exact: `"7"` is no number. Earlier versions counted in
    `hardware.device_count` the GPUs of the host: their documents are read with those that were used.

    Raises:
        ContractError: missing or unreadable, not UTF-8 or JSON (with its line), or a key that is missing or breaks the
            contract.
    """
    raw = read_text(path, _kind(path))
    try:
        found = parse_json(raw)
    except JsonProblem as problem:
        line = f" line {problem.line}:" if problem.line else ""
        raise ContractError(
            f"{path}:{line} not valid JSON ({problem.reason}). The file may be cut off; materialize it again."
        ) from None
    if issubclass(model, RunMeta) and (upgraded := _with_devices_used(found)) is not found:
        raw = json.dumps(upgraded)  # strict validation takes JSON, not Python, for times
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])[:200]
        if first["type"] == "value_error":
            raise ContractError(f"{path}:{f' key {key}:' if key else ''} {first['ctx']['error']}.") from None
        if not key:
            raise ContractError(
                f"{path}: {first['msg']}; expected a JSON object with the keys of the contract."
            ) from None
        if first["type"] == "missing":
            raise ContractError(f"{path}: key {key} missing. Write the file with the keys of the contract.") from None
        raise ContractError(f"{path}: key {key}: {first['msg']} (found {first['input']!r:.80}).") from None


def _with_devices_used(values: Any) -> Any:
    """The content of a document of this program, not validated yet: where its scenario asks for one device, with a
    `hardware.device_count` of 1. Before scenarios could ask for several it was the number of GPUs of the host.

    Anything else as it is; the counts of other programs (whose `params` are no scenario of this one) are theirs.
    """
    hardware, engine = _section(values, "hardware"), _section(values, "params", "engine")
    count, key = hardware.get("device_count"), "tensor_parallel_size"
    # A scenario of one device leaves the key out.
    if type(count) is not int or count < 2 or "backend" not in engine or key in engine:
        return values
    if any(_section(values, name).get(key, 1) != 1 for name in ("engine_settings", "simulated_settings")):
        return values
    return {**values, "hardware": {**hardware, "device_count": 1}}


def _section(values: Any, *keys: str) -> dict[str, Any]:
    """Empty where there is no such section."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def stored_settings(params: Mapping[str, Any], model: type[D], *keys: str, path: Path, remedy: str) -> D:
    """The section `keys` of the scenario that a result was made with (`params` of its metadata, read from `path`).
    Settings that did not exist then have their defaults.

    Raises:
        ContractError: the section is missing or invalid; names file and key, and ends with `remedy`.
    """
    section: Any = params
    for key in keys:
        section = section.get(key) if isinstance(section, Mapping) else None
    try:
        return model.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["params", *keys, *map(str, first["loc"])])[:200]
        raise ContractError(f"{path}: key {where}: {first['msg']}. {remedy}") from None


def _kind(path: Path) -> InputKind:
    return InputKind(
        ContractError,
        missing=(
            f"file missing, so {path.parent} is not a complete artifact. Materialize it again, or point to a complete"
            " directory."
        ),
        expected="a readable JSON file",
        remedy="Correct the path, or the file's permissions.",
        most_bytes=_MOST_BYTES,
    )


def write_document(document: BaseModel, path: Path) -> None:
    """Write a document as indented JSON with keys in the order of its model, newline at the end.

    Raises:
        ContractError: a value JSON cannot hold (NaN, infinity, half of a surrogate pair).
    """
    try:
        text = json.dumps(document.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
        data = (text + "\n").encode("utf-8")
    except ValueError as error:
        raise ContractError(
            f"{path}: {type(document).__name__} holds a value that JSON cannot ({error}). Leave it out or use null."
        ) from None
    path.write_bytes(data)


def timestamp_slug(moment: datetime) -> str:
    """UTC time as a sortable part of a run id, e.g. `20260102T030405Z`. `moment` must carry its zone.

    Raises:
        ValueError: `moment` has no zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no zone")
    return moment.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
