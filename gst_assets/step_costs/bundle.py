"""A profiling bundle on disk: finding it, reading it, and whether it serves a scenario.

`check_bundle` asks whether a simulation may rely on the bundle; what it does with it belongs to `vidur_adapter`.
Reading validates with pandera, which is imported only then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from gst_assets.contracts.documents import (
    KERNEL_SETTINGS,
    RUN_TYPES_IN_WORDS,
    UNKNOWN_KERNELS,
    ProfileMeta,
    RunMeta,
    read_document,
    stored_settings,
)
from gst_assets.contracts.listing import check_listed
from gst_assets.contracts.packed_files import stored_path
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.errors import ArtifactError, ContractError, ProfileError
from gst_assets.scenario import CPU, Geometry, Sampling, Scenario
from gst_assets.scenario.profile_section import MORE_TRAFFIC
from gst_assets.step_costs.cost_tables import CostTables
from gst_assets.step_costs.engine_costs import (
    IDLE_TERMS,
    OTHER_TERMS,
    STEP_TERMS,
    EngineCosts,
    HostSpeedTrace,
    RequestWays,
)
from gst_assets.step_costs.operators import OperatorTimes
from gst_assets.step_costs.shapes import MLP_OPERATORS, VIDUR_BYTES_PER_VALUE, CapturedGraphs
from gst_assets.step_costs.terms import ANY_KIND, FORM

M = TypeVar("M", bound=BaseModel)
Made = TypeVar("Made")
FORMAT_VERSION = 2
"""Of the bundles this version writes and reads. Raise when the meaning of a measured figure changes. 1: whole calls as
terms, waits within them."""

_REMEASURE = "Measure again with `gst profile`, or point profile.root to another bundle"


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. Frames are as `contracts.tables` describes them; all but `mlp` and `attention` are None where
    the file is absent."""

    directory: Path
    mlp: pd.DataFrame
    attention: pd.DataFrame
    experts: pd.DataFrame | None
    overheads: pd.DataFrame | None
    host_speed: pd.DataFrame | None
    traffic: pd.DataFrame | None
    self_fit: pd.DataFrame | None
    all_reduce: pd.DataFrame | None
    """Of an engine on several devices."""
    meta: ProfileMeta
    sha256: dict[str, str]
    """Digest of every file that the bundle's run_meta.json lists."""
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was made of the tables, which nobody changes: simulations of one bundle share it."""

    @property
    def tensor_parallel_size(self) -> int:
        """Devices that shared each layer while it was measured."""
        return int(self.mlp["num_tensor_parallel_workers"].iloc[0])

    @property
    def graphs(self) -> CapturedGraphs:
        """The captured graphs of the engine that was measured."""
        return CapturedGraphs(self.meta.engine_settings.cudagraph_capture_sizes)

    @property
    def kernels(self) -> dict[str, str]:
        """What computed in the engine that was measured, by the names of `KERNEL_SETTINGS`, as far as it is known."""
        # Bundles from before engines reported it have what the profiler saw.
        seen = (self.meta.worker or {}).get("expert_kernel")
        found = {name: getattr(self.meta.engine_settings, name) for name in KERNEL_SETTINGS}
        found["expert_kernel"] = found["expert_kernel"] or seen
        return {name: value for name, value in found.items() if isinstance(value, str) and value != UNKNOWN_KERNELS}

    def operator_times(self) -> OperatorTimes:
        """Operator times of this bundle."""
        layers = self.geometry.num_layers
        return self._once(
            lambda: OperatorTimes(
                self.mlp, self.attention, layers, self.graphs, all_reduce=self.all_reduce, experts=self.experts
            ),
            "operators",
        )

    def operator_tables(self, max_num_batched_tokens: int) -> CostTables:
        """`operator_times` as tables, for steps of at most so many tokens."""
        most = max_num_batched_tokens
        return self._once(lambda: self.operator_times().tables(most), "operator tables", most)

    def engine_costs(self, max_num_batched_tokens: int, seed: int | None) -> EngineCosts:
        """What steps of at most so many tokens cost. `seed` orders the slow moments of the host; None: it always takes
        its median.

        Raises:
            ProfileError: a term that is needed has no row.
        """
        most = max_num_batched_tokens
        return self._once(lambda: self._engine_costs(most, seed), "engine costs", most, seed)

    def engine_tables(self, max_num_batched_tokens: int, seed: int | None, queue_size: int) -> CostTables:
        """`engine_costs` as tables, for an engine with a queue of so many steps."""
        most = max_num_batched_tokens
        key = ("engine tables", most, seed, queue_size)
        return self._once(lambda: self.engine_costs(most, seed).tables(most, queue_size), *key)

    def request_ways(self, seed: int | None) -> RequestWays:
        """The paths of a request to the engine and back; arguments and errors as of `engine_costs`."""
        where = f"{self.directory}/overheads.csv"
        return self._once(
            lambda: RequestWays(self._calibrated("overheads"), where, self._speed(seed)), "request ways", seed
        )

    def _engine_costs(self, max_num_batched_tokens: int, seed: int | None) -> EngineCosts:
        return EngineCosts(
            self._calibrated("overheads"),
            self.graphs,
            self.graphs.reachable_kinds(max_num_batched_tokens),
            f"{self.directory}/overheads.csv",
            speed=self._speed(seed),
            device_is_host=self.meta.hardware.hardware_id == CPU,
        )

    def _speed(self, seed: int | None) -> HostSpeedTrace | None:
        if seed is None:
            return None
        return self._once(lambda: HostSpeedTrace(self._calibrated("host_speed"), seed), "speed", seed)

    def _once(self, make: Callable[[], Made], *key: object) -> Made:
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found

    def _calibrated(self, name: str) -> pd.DataFrame:
        frame: pd.DataFrame | None = getattr(self, name)
        if frame is None:
            raise ProfileError(
                f"{self.directory}: no {name}.csv, which variant calibrated needs. {_REMEASURE}, or set"
                " simulation.variants=[kernels]."
            )
        return frame

    @property
    def geometry(self) -> Geometry:
        """Shapes of the model that was measured.

        Raises:
            ContractError: run_meta.json does not state them.
        """
        return self._measured_with(Geometry, "model", "geometry")

    @property
    def sampling(self) -> Sampling:
        """How the engine drew tokens while it was measured.

        Raises:
            ContractError: run_meta.json does not state it.
        """
        return self._measured_with(Sampling, "engine", "sampling")

    def _measured_with(self, model: type[M], *keys: str) -> M:
        path = self.directory / Kind.PROFILE.meta_name
        return stored_settings(self.meta.params, model, *keys, path=path, remedy=f"{_REMEASURE}.")


def profile_key(scenario: Scenario) -> str:
    """First 16 hex digits of the sha256 over everything in the scenario that decides what a profile measures.

    Left out: the workload, the number of KV blocks, and stop conditions, which calibration switches off.
    """
    values: dict[str, Any] = scenario.model_dump(mode="json")
    model, engine, profile = values["model"], values["engine"], values["profile"]
    # Not in the dump where nothing is quantised, nor then in the key.
    of_model = ("geometry", "dtype", "max_model_len", *(["quantization"] if "quantization" in model else []))
    chosen = {
        "format_version": FORMAT_VERSION,
        "hardware": values["hardware"],
        "model": {name: model[name] for name in of_model},
        "engine": {name: engine[name] for name in _ENGINE_SETTINGS}
        | {name: engine[name] for name in _LATER_ENGINE_SETTINGS if name in engine}
        | {"draws": _draws(scenario.engine.sampling)},
        # Without more traffic a profile measures what it did before there were those settings.
        "profile": {
            name: value for name, value in profile.items() if name != "root" and (value or name not in MORE_TRAFFIC)
        },
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


_ENGINE_SETTINGS = (
    "backend", "max_num_seqs", "max_num_batched_tokens", "block_size", "cpu_threads", "enable_prefix_caching",
    "async_scheduling", "enforce_eager", "cudagraph_max_capture_size",
)  # fmt: skip

_LATER_ENGINE_SETTINGS = ("tensor_parallel_size",)
"""Left out at their defaults, at which a profile measures what it did before there were those settings."""


def _draws(sampling: Sampling) -> bool:
    """Whether tokens are drawn. Drawing from the vocabulary costs a step more than taking the likeliest token."""
    return sampling.temperature > 0


def find_bundle(root: Path, scenario: Scenario) -> Path:
    """Directory of the scenario's bundle under a profiling root: `<root>/<hardware_id>/<model.name>`.

    Raises:
        ProfileError: not there; lists the bundles that are.
    """
    directory = root / scenario.hardware.hardware_id / scenario.model.name
    if not (directory / Kind.PROFILE.meta_name).is_file():
        there = sorted(str(meta.parent.relative_to(root)) for meta in root.glob(f"*/*/{Kind.PROFILE.meta_name}"))
        raise ProfileError(
            f"{directory}: no complete profiling bundle for hardware_id {scenario.hardware.hardware_id} and model"
            f" {scenario.model.name}. {root} has {', '.join(there) or 'none'}. {_REMEASURE}."
        )
    return directory


def check_place(directory: Path, scenario: Scenario) -> None:
    """Measuring the scenario's profile into `directory` would not displace one of other steps: of another tensor
    parallel degree, dtype or quantisation, or with or without a prefix cache. A place holds one profile; one that
    cannot be read serves nobody, and may be displaced. Reads no table, so that it can be asked before an engine starts.

    Raises:
        ProfileError: names the first setting that differs, and the remedy.
    """
    path = directory / Kind.PROFILE.meta_name
    try:
        if not path.is_file() or read_document(RunMeta, path).run_type != "vidur_profile":
            return
        meta = read_document(ProfileMeta, path)
    except ContractError:  # cut off, or of an earlier version
        return
    if meta.format_version != FORMAT_VERSION:
        return
    found, engine, model = meta.engine_settings, scenario.engine, scenario.model
    degree, dtype, is_cached = engine.tensor_parallel_size, model.dtype, engine.enable_prefix_caching
    settings = {
        "engine.tensor_parallel_size": (found.tensor_parallel_size or 1, degree, f"x{degree}"),
        "model.dtype": (found.dtype, dtype, dtype),
        "model.quantization": (found.quantization or "null", model.quantization or "null", model.quantization or dtype),
        "engine.enable_prefix_caching": (found.enable_prefix_caching, is_cached, "cached" if is_cached else "uncached"),
    }
    for name, (measured, wanted, suffix) in settings.items():
        if measured != wanted:
            here, there = (str(one).lower() if isinstance(one, bool) else one for one in (measured, wanted))
            raise ProfileError(
                f"{directory}: holds a profile with {name} {here}, but the scenario's is {there}. A folder holds one"
                " profile. To keep both, give the scenario a model.name of its own (such as"
                f" {model.name}-{suffix}), which names the folder, also in --out of `gst profile`. Else remove the"
                " folder."
            )


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle whose files have the digests its run_meta.json records.

    Raises:
        ArtifactError: incomplete, another kind of directory, or a file was changed after it was written; the metadata
            too where `sha256sums.txt`
            in its folder lists it.
        ContractError: a table or the metadata breaks the contract (names file, row and column).
        ProfileError: a hole in the attention grid.
    """
    from gst_assets.contracts import tables

    open_directory(directory, Kind.PROFILE, verify=False)
    meta_path = directory / Kind.PROFILE.meta_name
    # Before the digests: a packed run's are of other bytes than a bundle's, and nobody changed it.
    run_type = read_document(RunMeta, meta_path).run_type
    if run_type != "vidur_profile":
        raise ArtifactError(
            f"{directory}: is {RUN_TYPES_IN_WORDS[run_type]}, not a profiling bundle (run_type is {run_type!r} in"
            f" {meta_path.name}). Name a directory whose run_type is 'vidur_profile', as `gst profile` writes it."
        )
    open_directory(directory, Kind.PROFILE)
    check_listed(directory, meta_path.name, meta_path.read_bytes(), f"Restore it from version control. {_REMEASURE}.")
    meta = read_document(ProfileMeta, directory / Kind.PROFILE.meta_name)
    if meta.format_version != FORMAT_VERSION:
        raise ProfileError(
            f"{directory / Kind.PROFILE.meta_name}: format_version is {meta.format_version}, expected {FORMAT_VERSION}:"
            f" what its terms mean has changed. {_REMEASURE}."
        )

    def optional(model: type[tables.Table]) -> pd.DataFrame | None:
        # A file that the metadata does not list is none of this bundle's.
        if model.file_name() not in meta.sha256:
            return None
        return tables.read_table(model, stored_path(directory / model.file_name()))

    def listed(model: type[tables.Table]) -> pd.DataFrame:
        table = optional(model)
        if table is None:
            raise ArtifactError(
                f"{directory / Kind.PROFILE.meta_name}: key sha256 does not list {model.file_name()}, which every"
                f" bundle has. {_REMEASURE}."
            )
        return table

    bundle = Bundle(
        directory=directory,
        mlp=listed(tables.MlpProfile),
        attention=listed(tables.AttentionProfile),
        experts=optional(tables.ExpertsProfile),
        overheads=optional(tables.Overheads),
        host_speed=optional(tables.HostSpeed),
        traffic=optional(tables.CalibrationTraffic),
        self_fit=optional(tables.SelfFit),
        all_reduce=optional(tables.AllReduceProfile),
        meta=meta,
        sha256=dict(meta.sha256),
    )
    _check_degree(bundle)
    _check_feed_forward(bundle)
    bundle.operator_times()
    return bundle


def _check_degree(bundle: Bundle) -> None:
    """The bundle's tables are of one number of devices, and say what the devices' sums take where there are several."""
    degree = bundle.tensor_parallel_size
    columns = {
        "mlp.csv": bundle.mlp["num_tensor_parallel_workers"],
        "attention.csv": bundle.attention["num_tensor_parallel_workers"],
    }
    if bundle.all_reduce is not None:
        columns["all_reduce.csv"] = bundle.all_reduce["num_workers"]
    elif degree > 1:
        raise ProfileError(
            f"{bundle.directory / 'all_reduce.csv'}: missing, but mlp.csv was measured on {degree} devices, whose"
            f" all-reduce is not in its operators. {_REMEASURE}."
        )
    for file, column in columns.items():
        wrong = (column != degree).to_numpy(dtype=bool)
        if wrong.any():
            row = int(wrong.argmax())
            raise ProfileError(
                f"{bundle.directory / file}: {column.name} in row {row} (line {row + 2}) is {column.iloc[row]}, but"
                f" mlp.csv begins with {degree}; a bundle is of one number of devices. {_REMEASURE}."
            )


def _check_feed_forward(bundle: Bundle) -> None:
    """Every layer has one MLP, timed in mlp.csv, or experts, timed in experts.csv."""
    has_mlp, has_experts = bool(bundle.mlp[_MLP_COLUMN].notna().any()), bundle.experts is not None
    if has_mlp != has_experts:
        return
    found = "filled, but the bundle lists experts.csv" if has_mlp else "empty, and the bundle lists no experts.csv"
    raise ProfileError(
        f"{bundle.directory / 'mlp.csv'}: {_MLP_COLUMN} is {found}; expected the times of one MLP or those of experts."
        f" {_REMEASURE}."
    )


_MLP_COLUMN = f"time_stats.{MLP_OPERATORS[0]}.median"


def check_bundle(bundle: Bundle, scenario: Scenario, lengths: pd.DataFrame | None = None) -> None:
    """The bundle was made for the scenario's model, hardware and engine, and covers every step the scenario can reach.

    `lengths` (`contracts.tables.TraceLengths`): also every context length of that workload.

    Raises:
        ContractError: run_meta.json does not state what was measured.
        ProfileError: the first violation; names file and column or setting, what was found, what was expected, and the
            remedy.
    """
    _check_origin(bundle, scenario)
    if {"published", "kernels"} & set(scenario.simulation.variants):
        _check_coverage(bundle, scenario, lengths)
    if "calibrated" in scenario.simulation.variants:
        _check_overheads(bundle, scenario)


def check_alike(bundle: Bundle, scenario: Scenario) -> None:
    """The bundle's times are of as many devices as the scenario's engine has, of weights that are quantised alike, and
    of one MLP or of experts as its model has.

    Raises:
        ProfileError: names both, and the remedy.
    """
    found_degree, degree = bundle.tensor_parallel_size, scenario.engine.tensor_parallel_size
    if found_degree != degree:
        raise ProfileError(
            f"{bundle.directory}: measured at tensor parallel degree {found_degree}"
            f" (num_tensor_parallel_workers in mlp.csv), but engine.tensor_parallel_size is {degree}. {_REMEASURE}, or"
            f" set engine.tensor_parallel_size={found_degree}."
        )
    # None: nothing is quantised, as in every bundle from before there was the setting.
    quantised = [value or "none" for value in (bundle.meta.engine_settings.quantization, scenario.model.quantization)]
    _same(bundle, "run_meta.json", "engine_settings.quantization", *quantised)
    if (bundle.experts is not None) != (scenario.model.geometry.num_experts is not None):
        found, wanted = ("has", "has none") if bundle.experts is not None else ("has no", "has experts")
        raise ProfileError(f"{bundle.directory}: {found} experts.csv, but the scenario's model {wanted}. {_REMEASURE}.")


def _check_origin(bundle: Bundle, scenario: Scenario) -> None:
    model, geometry, meta = scenario.model, scenario.model.geometry, bundle.meta
    found_hardware, wanted_hardware = meta.hardware, scenario.hardware
    _same(bundle, "run_meta.json", "hardware.hardware_id", found_hardware.hardware_id, wanted_hardware.hardware_id)
    if wanted_hardware.device_name and wanted_hardware.device_name not in found_hardware.device_name:
        raise ProfileError(
            f"{bundle.directory / 'run_meta.json'}: hardware.device_name is {found_hardware.device_name!r}, expected a"
            f" name that contains {wanted_hardware.device_name!r}. {_REMEASURE}."
        )
    measured = bundle.geometry
    for name, value in geometry:
        _same(bundle, "run_meta.json", f"params.model.geometry.{name}", getattr(measured, name), value)
    _same(bundle, "run_meta.json", "engine_settings.dtype", meta.engine_settings.dtype, model.dtype)
    check_alike(bundle, scenario)
    expected: dict[str, dict[str, int | pd.Series | None]] = {
        "mlp.csv": {
            "n_head": geometry.num_q_heads,
            "n_kv_head": geometry.num_kv_heads,
            "n_embd": geometry.hidden_size,
            "n_expanded_embd": geometry.mlp_hidden_size,
            "vocab_size": geometry.vocab_size,
        },
        "attention.csv": {
            "n_embd": geometry.hidden_size,
            "n_q_head": geometry.num_q_heads,
            "n_kv_head": geometry.num_kv_heads,
            "head_dim": geometry.head_dim,
            "block_size": scenario.engine.block_size,
        },
    }
    frames = {"mlp.csv": bundle.mlp, "attention.csv": bundle.attention}
    if bundle.experts is not None:
        frames["experts.csv"] = bundle.experts
        expected["experts.csv"] = {
            "n_expert": geometry.num_experts,
            "n_expert_per_token": geometry.num_experts_per_token,
            "n_embd": geometry.hidden_size,
            "n_expanded_embd": geometry.mlp_hidden_size,
            "num_tensor_parallel_workers": 1,
        }
    if bundle.all_reduce is not None:
        frames["all_reduce.csv"] = bundle.all_reduce
        values = bundle.all_reduce["num_tokens"] * geometry.hidden_size
        expected["all_reduce.csv"] = {
            "message_bytes": values * model.bytes_per_value,
            "size": values * VIDUR_BYTES_PER_VALUE,
            "devices_per_node": bundle.all_reduce["num_workers"],
        }
    for file, columns in expected.items():
        frame = frames[file]
        for column, value in columns.items():
            wrong = (frame[column] != value).to_numpy(dtype=bool)
            if wrong.any():
                row = int(wrong.argmax())
                wanted = int(value.iloc[row]) if isinstance(value, pd.Series) else value
                _same(bundle, file, f"{column} in row {row} (line {row + 2})", int(frame[column].iloc[row]), wanted)


def _check_coverage(bundle: Bundle, scenario: Scenario, lengths: pd.DataFrame | None) -> None:
    engine = scenario.engine
    prefill, decode = (
        bundle.attention[bundle.attention["is_prefill"]],
        bundle.attention[~bundle.attention["is_prefill"]],
    )
    budget = "engine.max_num_batched_tokens"
    _covers(bundle, "mlp.csv", "num_tokens", bundle.mlp["num_tokens"], 1, engine.max_num_batched_tokens, budget)
    if bundle.all_reduce is not None:
        tokens = bundle.all_reduce["num_tokens"]
        _covers(bundle, "all_reduce.csv", "num_tokens", tokens, 1, engine.max_num_batched_tokens, budget)
    if bundle.experts is not None:
        chosen = bundle.experts["num_tokens"][bundle.experts["routing"] == "router"]
        _covers(bundle, "experts.csv (router rows)", "num_tokens", chosen, 1, engine.max_num_batched_tokens, budget)
    _covers(bundle, _DECODE, "batch_size", decode["batch_size"], 1, engine.max_num_seqs, "engine.max_num_seqs")
    if lengths is None:
        return
    prompts, outputs = lengths["num_prefill_tokens"], lengths["num_decode_tokens"]
    first, longest = int(prompts.min()), int((prompts + outputs).max())
    _covers(bundle, _DECODE, "kv_cache_size", decode["kv_cache_size"], first, longest, "the workload's longest request")
    longest_prompt = int(prompts.max())
    chunk = min(longest_prompt, engine.max_num_batched_tokens)
    _covers(bundle, _PREFILL, "prefill_chunk_size", prefill["prefill_chunk_size"], 1, chunk, "the longest prompt chunk")
    # A prompt may be cut anywhere, its last token alone included.
    _covers(
        bundle,
        _PREFILL,
        "kv_cache_size",
        prefill["kv_cache_size"],
        0,
        longest_prompt - 1,
        "the workload's longest prompt",
    )


_DECODE, _PREFILL = "attention.csv (decode rows)", "attention.csv (prefill rows)"


def _check_overheads(bundle: Bundle, scenario: Scenario) -> None:
    if bundle.overheads is None:
        raise ProfileError(
            f"{bundle.directory / 'overheads.csv'}: missing, but simulation.variants has `calibrated`. {_REMEASURE}, or"
            " simulate `published` and `kernels` alone."
        )
    settings, meta_file = bundle.meta.engine_settings, "run_meta.json"
    for name in ("async_scheduling", "enforce_eager", "max_num_batched_tokens"):
        _same(bundle, meta_file, f"engine_settings.{name}", getattr(settings, name), getattr(scenario.engine, name))
    sampling = "whether tokens are drawn (params.engine.sampling.temperature > 0)"
    _same(bundle, meta_file, sampling, _draws(bundle.sampling), _draws(scenario.engine.sampling))
    kinds = bundle.graphs.reachable_kinds(settings.max_num_batched_tokens)
    found = set(zip(bundle.overheads["term"], bundle.overheads["step_kind"], strict=True))
    wanted = [(term, kind) for kind in kinds for term in STEP_TERMS]
    # Several devices are run by processes of their own, which launch while the engine's process goes on; with one
    # device it is the engine's process that launches.
    of_workers = (FORM,) if bundle.tensor_parallel_size > 1 else ()
    is_form = (bundle.overheads["term"] == FORM).to_numpy(dtype=bool)
    if is_form.any() and not of_workers:
        row = int(is_form.argmax())
        raise ProfileError(
            f"{bundle.directory / 'overheads.csv'}: term in row {row} (line {row + 2}) is {FORM}, which engines have"
            " whose workers are processes of their own, but mlp.csv was measured on one device; expected no such row."
            f" {_REMEASURE}."
        )
    wanted += [(term, ANY_KIND) for term in (*OTHER_TERMS, *IDLE_TERMS, *of_workers)]
    missing = [f"{name} rows of step_kind {kind}" for name, kind in wanted if (name, kind) not in found]
    if missing:
        raise ProfileError(
            f"{bundle.directory / 'overheads.csv'}: no {', no '.join(missing)}; expected each at least once."
            f" {_REMEASURE}."
        )
    if scenario.simulation.host_variability:
        absent = {"decode", "prefill", "delivery"} - (
            set() if bundle.host_speed is None else set(bundle.host_speed["part"])
        )
        if absent:
            found_there = "missing" if bundle.host_speed is None else f"no row with part {', '.join(sorted(absent))}"
            raise ProfileError(
                f"{bundle.directory / 'host_speed.csv'}: {found_there}, but simulation.host_variability is on."
                f" {_REMEASURE}, or set simulation.host_variability=false."
            )


def _same(bundle: Bundle, file: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ProfileError(
            f"{bundle.directory / file}: {what} is {found}, but the scenario expects {expected}. {_REMEASURE}."
        )


def _covers(bundle: Bundle, file: str, column: str, values: pd.Series, low: int, high: int, reason: str) -> None:
    smallest, largest = int(values.min()), int(values.max())
    if smallest > low or largest < high:
        raise ProfileError(
            f"{bundle.directory / file}: {column} covers {smallest} to {largest}, expected {low} to {high} ({reason}). "
            "Extend the grid under `profile` in the scenario and measure again."
        )
