"""Vidur 0.0.26 exactly as it ships, on a bundle's CSV files and a workload's requests: the variant `published`.

    gst search-forests BUNDLE [--jobs N]

writes `published_forests.json` into a bundle: what Vidur's grid search chooses for each operator (some twenty minutes
of processor time), so that a simulation trains those forests only.

Vidur's own: event loop and clock (float seconds), `SarathiReplicaScheduler` with its watermark, `Request`,
`ReplicaConfig` with its `head_dim`, `RandomForrestExecutionTimePredictor` with every default (batching overhead 0.1,
contexts rounded up to 256, prompts looked up at the tokens after the chunk, random forests by grid search; on several
devices a forest of the bundle's all-reduce by tokens, and 0.02 ms for launching each). What
had to be changed, none of which gives a request another time than Vidur's command does:

- Profiles come from the bundle's files, not from a hub; forests have a `random_state`: one of the outcomes that
  Vidur's, which have none, may have.
- Requests are passed on unchanged. Vidur's trace reader would rescale, clip and truncate them; at scale 1 it
  gives the same.
- The model and the device are registered, as subclasses: Vidur ships no Qwen3. The device's memory decides nothing,
  since KV blocks are stated.
- Tables end where the engine's limits end (`prediction_max_*`): Vidur's reach 2 million tokens, or too few sequences.
  Entries are the same.
- One replica is found by the least load, not in turn: Vidur's turns count from 0, its replicas on from the last
  simulation of the process.
- No metrics store, no files, no plots: a recorder takes its place.

Vidur 0.0.26 fails an assertion some steps after any preemption; here that is one `SimulationError`.

Imports Vidur and scikit-learn at the top, as `predictor` does: import it inside functions.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestRegressor
from vidur.config import (
    BaseRequestGeneratorConfig,
    CacheConfig,
    ClusterConfig,
    RandomForrestExecutionTimePredictorConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
)
from vidur.config.config import LORGlobalSchedulerConfig
from vidur.config.device_sku_config import BaseDeviceSKUConfig
from vidur.entities import Batch, BatchStage, Request
from vidur.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry
from vidur.execution_time_predictor.random_forrest_execution_time_predictor import RandomForrestExecutionTimePredictor
from vidur.request_generator import RequestGeneratorRegistry
from vidur.request_generator.base_request_generator import BaseRequestGenerator
from vidur.types import BaseIntEnum

from gst_assets.contracts.documents import PublishedForests, read_document, write_document
from gst_assets.contracts.listing import add_to_listing, check_listed
from gst_assets.contracts.store import Kind
from gst_assets.errors import ContractError, ProfileError, SimulationError
from gst_assets.provenance import package_versions, sha256_bytes, sha256_file
from gst_assets.scenario import Geometry
from gst_assets.staging import staged_file
from gst_assets.step_costs.bundle import load_bundle
from gst_assets.vidur_adapter.event_loop import RecordedSimulator, Recorder
from gst_assets.vidur_adapter.predictor import composition_of
from gst_assets.vidur_adapter.registration import (
    AdapterType,
    EngineNode,
    EngineSimulation,
    kv_bytes_per_token,
    model_name,
    quiet,
)
from gst_assets.vidur_adapter.table_cache import Table, TableCache, code_sha256

FORESTS_FILE = "published_forests.json"
RANDOM_STATE = 42
"""Of every forest: Vidur's own default seed, which it gives to numpy but not to scikit-learn."""
GRID = ("n_estimators", "max_depth", "min_samples_split")
"""The parameters that Vidur's grid search chooses."""
NUM_FORESTS = 12
"""On one device; on several there is one more, of the all-reduce."""
_CSV_FILES = ("mlp.csv", "attention.csv")
_ALL_REDUCE_FILE = "all_reduce.csv"
_PROFILE_AGAIN = "Measure the bundle again, or point profile.root to another one"


class PublishedType(BaseIntEnum):
    """Keys under which this module registers with Vidur, in addition to `registration.AdapterType`."""

    PUBLISHED_DEVICE = 1100
    PUBLISHED_REQUESTS = 1101
    PUBLISHED_PREDICTOR = 1102


# --- device and requests ----------------------------------------------------------------------------------------------


@dataclass
class PublishedDevice(BaseDeviceSKUConfig):
    """A device with room for any model: Vidur asserts that weights and one token fit. Its FLOPS enter metrics that
    are not computed here."""

    fp16_tflops: int = 1000
    total_memory_gb: int = 1024

    @staticmethod
    def get_type() -> Any:
        return PublishedType.PUBLISHED_DEVICE


@dataclass
class PublishedRequestsConfig(BaseRequestGeneratorConfig):
    """Requests as (request_id, arrival in ns, num_prefill_tokens, num_decode_tokens)."""

    rows: Sequence[tuple[int, int, int, int]] = ()

    @staticmethod
    def get_type() -> Any:
        return PublishedType.PUBLISHED_REQUESTS


class PublishedRequests(BaseRequestGenerator):
    """Vidur's requests, arriving in seconds."""

    def generate_requests(self) -> list[Request]:
        """One per row, under the row's id: Vidur's own count goes on from one simulation of a process to the next."""
        requests = []
        for request_id, arrived_at_ns, num_prefill_tokens, num_decode_tokens in self.config.rows:
            request = Request(arrived_at_ns / 1e9, num_prefill_tokens, num_decode_tokens)
            request._id = request_id
            requests.append(request)
        return requests


# --- step times -------------------------------------------------------------------------------------------------------


@dataclass
class PublishedConfig(RandomForrestExecutionTimePredictorConfig):
    """Vidur's settings at their defaults, where the profile is, and what is known of its forests.

    `chosen` has the parameters of every operator's forest; None: Vidur's grid search looks for them. `table_cache`
    stores tables between runs.
    """

    directory: Path = Path()
    chosen: Mapping[str, Mapping[str, int]] | None = None
    table_cache: Path | None = None

    @staticmethod
    def get_type() -> Any:
        return PublishedType.PUBLISHED_PREDICTOR

    def search(self) -> dict[str, Any]:
        """The parts of Vidur's search: candidates, folds, seed."""
        return {
            "n_estimators": self.num_estimators,
            "max_depth": self.max_depth,
            "min_samples_split": self.min_samples_split,
            "k_fold_cv_splits": self.k_fold_cv_splits,
            "random_state": RANDOM_STATE,
        }


class PublishedPredictor(RandomForrestExecutionTimePredictor):
    """Vidur's predictor, its initialiser and all its lookups included. Overridden: where profiles, seeds and cached
    tables come from."""

    _config: PublishedConfig

    def __init__(
        self, predictor_config: PublishedConfig, replica_config: ReplicaConfig, cache_config: CacheConfig
    ) -> None:
        self.chosen: dict[str, dict[str, int]] = {
            name: dict(found) for name, found in (predictor_config.chosen or {}).items()
        }
        started = time.perf_counter()
        self._is_cached = False
        super().__init__(predictor_config, replica_config, cache_config)
        if not self._is_cached and predictor_config.table_cache is not None:
            self._cache().store(self._predictions)
        self.table_seconds = time.perf_counter() - started

    def _cache(self) -> TableCache:
        """Tables of this content. Called before a search nothing is chosen, and such tables are never stored: the key
        is of what is chosen."""
        config, model = self._config, self._model_config
        assert config.table_cache is not None
        content = {
            "code": code_sha256(),
            "csv": csv_digests(config.directory, self._replica_config.tensor_parallel_size),
            "chosen": self.chosen,
            "random_state": RANDOM_STATE,
            "versions": _versions(),
            "max_tokens": config.prediction_max_tokens_per_request,
            "max_batch_size": config.prediction_max_batch_size,
            "max_prefill_chunk_size": config.prediction_max_prefill_chunk_size,
            "kv_cache_granularity": config.kv_cache_prediction_granularity,
            "rows": [
                model.num_q_heads,
                model.num_kv_heads,
                model.embedding_dim,
                model.mlp_hidden_dim,
                self._block_size,
            ],
        }
        return TableCache(config.table_cache, sha256_bytes(json.dumps(content, sort_keys=True).encode())[:32])

    def _load_predictions_from_hf(self) -> dict[str, Table]:
        """Vidur's hook for finished tables; whatever it raises makes Vidur train."""
        stored = self._cache().load() if self.chosen and self._config.table_cache is not None else None
        if stored is None:
            raise LookupError("no tables of this content are stored")
        self._is_cached = True
        return stored

    def _get_input_files(self) -> tuple[str, str, str, str]:
        mlp, attention = (str(self._config.directory / name) for name in _CSV_FILES)
        return mlp, attention, str(self._config.directory / _ALL_REDUCE_FILE), ""

    def _get_estimator(self) -> BaseEstimator:
        return RandomForestRegressor(random_state=RANDOM_STATE)

    def _train_model(
        self, model_name: str, model_type: Any, df: pd.DataFrame, feature_cols: list[str], target_col: str
    ) -> BaseEstimator:
        if df.empty:
            raise ProfileError(
                f"{self._config.directory}: Vidur finds no row for operator {model_name}: none has the model's shapes"
                f" and blocks of {self._block_size} tokens. {_PROFILE_AGAIN}."
            )
        if self._config.chosen is not None:
            # What the search ends with: its estimator, under the parameters it chose, fitted to every row.
            return self._get_estimator().set_params(**self.chosen[model_name]).fit(df[feature_cols], df[target_col])
        started = time.perf_counter()
        found = super()._train_model(model_name, model_type, df, feature_cols, target_col)
        self.chosen[model_name] = {name: found.get_params()[name] for name in GRID}
        print(
            f"published: forest {len(self.chosen)} of {_num_forests(self._replica_config.tensor_parallel_size)},"
            f" {model_name}: {self.chosen[model_name]} "
            f"({time.perf_counter() - started:.0f} s; `gst search-forests` stores what is found)",
            file=sys.stderr,
            flush=True,
        )
        return found

    # Vidur stores models and tables on disk by configuration, whatever the CSV files hold, and pickles them.

    def _load_model_from_cache(self, *_: Any) -> None:
        return None

    def _store_model_in_cache(self, *_: Any) -> None:
        pass

    def _store_training_prediction_data(self, **_: Any) -> None:
        pass

    def _load_model_prediction_cache(self, *_: Any) -> dict[Any, float]:
        return {}

    def _store_model_prediction_cache(self, *_: Any) -> None:
        pass


RequestGeneratorRegistry.register(PublishedType.PUBLISHED_REQUESTS, PublishedRequests)
ExecutionTimePredictorRegistry.register(PublishedType.PUBLISHED_PREDICTOR, PublishedPredictor)


# --- forests that were chosen before ----------------------------------------------------------------------------------


def csv_digests(directory: Path, tensor_parallel_size: int) -> dict[str, str]:
    """sha256 of the CSV files that Vidur reads for a model that so many devices share."""
    names = (*_CSV_FILES, _ALL_REDUCE_FILE) if tensor_parallel_size > 1 else _CSV_FILES
    return {name: sha256_file(directory / name) for name in names}


def _num_forests(tensor_parallel_size: int) -> int:
    return NUM_FORESTS + (tensor_parallel_size > 1)


def read_forests(path: Path, csv_sha256: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Parameters by operator that a search over files of these digests chose.

    Raises:
        ContractError: not such a document.
        ProfileError: it was made from other CSV files, by another search, or names no parameter of an operator.
    """
    found = read_document(PublishedForests, path)
    again = f"Remove the file, or search again: gst search-forests {path.parent}"
    for name, digest in csv_sha256.items():
        if found.csv_sha256.get(name) != digest:
            raise ProfileError(
                f"{path}: chosen on a {name} with sha256 {found.csv_sha256.get(name, 'unknown')[:16]}, but the one"
                f" next to it has {digest[:16]}. {again}."
            )
    wanted = PublishedConfig().search()
    if found.search != wanted:
        raise ProfileError(f"{path}: found by the search {found.search}, expected Vidur's, {wanted}. {again}.")
    number = NUM_FORESTS + (_ALL_REDUCE_FILE in csv_sha256)
    if len(found.chosen) != number or any(set(one) != set(GRID) for one in found.chosen.values()):
        raise ProfileError(f"{path}: expected {', '.join(GRID)} of {number} operators under `chosen`. {again}.")
    return found.chosen


def write_forests(
    path: Path, chosen: Mapping[str, Mapping[str, int]], csv_sha256: Mapping[str, str], search: dict[str, Any]
) -> None:
    """Write what a search chose, complete or not at all."""
    document = PublishedForests(
        versions=_versions(), search=search, csv_sha256=dict(csv_sha256),
        chosen={name: dict(found) for name, found in chosen.items()},
    )  # fmt: skip
    with staged_file(path) as unfinished:
        write_document(document, unfinished)


def _kept_path(cache_dir: Path, csv_sha256: Mapping[str, str]) -> Path:
    """Where a simulation stores what it had to search for. One search of one Vidur on one pair of files: one name."""
    content = [csv_sha256, PublishedConfig().search(), _versions()]
    return cache_dir / f"published_forests_{sha256_bytes(json.dumps(content, sort_keys=True).encode())[:32]}.json"


def _known_forests(
    directory: Path, cache_dir: Path | None, tensor_parallel_size: int
) -> dict[str, dict[str, int]] | None:
    digests = csv_digests(directory, tensor_parallel_size)
    path = directory / FORESTS_FILE
    if path.is_file():
        again = f"Remove it, or search again: gst search-forests {directory}"
        check_listed(directory, FORESTS_FILE, path.read_bytes(), f"{again}.")
        return read_forests(path, digests)
    if cache_dir is not None:
        try:
            return read_forests(_kept_path(cache_dir, digests), digests)
        except (ContractError, ProfileError):  # absent or damaged
            return None
    return None


def _versions() -> dict[str, str]:
    versions = package_versions()
    return {name: versions[name] for name in ("vidur", "scikit-learn", "numpy")}


# --- one simulation ---------------------------------------------------------------------------------------------------


class PublishedLimits(NamedTuple):
    """Settings of the engine. `most_*` are the largest that tables must reach: at least those of the engine."""

    block_size: int
    num_kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    most_seqs: int
    most_batched_tokens: int
    most_sequence_tokens: int
    tensor_parallel_size: int


def published_config(
    geometry: Geometry,
    limits: PublishedLimits,
    rows: Sequence[tuple[int, int, int, int]],
    directory: Path,
    cache_dir: Path | None,
) -> EngineSimulation:
    """Vidur's configuration. `rows` are (request_id, arrival in ns, num_prefill_tokens, num_decode_tokens),
    `directory` is the bundle's.

    Raises:
        ProfileError: `published_forests.json` was made from other CSV files.
    """
    step = PublishedConfig().kv_cache_prediction_granularity
    predictor = PublishedConfig(
        directory=directory,
        chosen=_known_forests(directory, cache_dir, limits.tensor_parallel_size),
        table_cache=cache_dir,
        prediction_max_batch_size=limits.most_seqs,
        prediction_max_prefill_chunk_size=_round_up(limits.most_batched_tokens, 32),
        prediction_max_tokens_per_request=max(
            _round_up(limits.most_sequence_tokens, step), _round_up(limits.most_batched_tokens, 8)
        ),
        cache_dir=str(cache_dir or tempfile.gettempdir()),  # Vidur makes it; nothing of Vidur's goes there
    )
    return EngineSimulation(
        cluster_config=ClusterConfig(
            num_replicas=1,
            replica_config=_replica(geometry, limits.max_model_len, limits.tensor_parallel_size),
            cache_config=CacheConfig(block_size=limits.block_size, num_blocks=limits.num_kv_blocks),
            global_scheduler_config=LORGlobalSchedulerConfig(),
            replica_scheduler_config=SarathiSchedulerConfig(
                batch_size_cap=limits.max_num_seqs, chunk_size=limits.max_num_batched_tokens
            ),
        ),
        request_generator_config=PublishedRequestsConfig(rows=rows, max_tokens=limits.max_model_len),
        execution_time_predictor_config=predictor,
    )


def _replica(geometry: Geometry, max_model_len: int, tensor_parallel_size: int) -> ReplicaConfig:
    replica = ReplicaConfig(
        model_name=model_name(geometry, max_model_len),
        num_pipeline_stages=1,
        tensor_parallel_size=tensor_parallel_size,
        device=str(PublishedType.PUBLISHED_DEVICE),
        network_device=str(AdapterType.NODE),
    )
    replica.node_config = EngineNode(num_devices_per_node=tensor_parallel_size)
    return replica


class _SecondsRecorder(Recorder):
    """As `event_loop.Recorder`, under a clock of seconds and Vidur's own scheduler."""

    def on_replica_stage_schedule(
        self, time: float, replica_id: Any, stage_id: int, batch_stage: BatchStage, execution_time: Any
    ) -> None:
        del replica_id, stage_id, execution_time
        scheduler: Any = self.scheduler
        num_running = len(scheduler._allocation_map)
        self.history.add_step(_ns(time), composition_of(batch_stage), num_running, scheduler.num_pending_requests)

    def on_batch_end(self, time: float, batch: Batch, replica_id: Any, memory_usage_percent: float) -> None:
        super().on_batch_end(_ns(time), batch, replica_id, memory_usage_percent)


class PublishedSimulator(RecordedSimulator):
    """Vidur's simulator. `run` is Vidur's, except for what it raises."""

    recorder = _SecondsRecorder

    def run(self, on_share: Callable[[float], None] | None = None) -> None:
        """Simulate; `on_share` as in `RecordedSimulator.run`.

        Raises:
            SimulationError: Vidur failed one of its assertions: a request was preempted, or never fits.
        """
        config = self._config.cluster_config
        try:
            super().run(on_share)
        except AssertionError as error:
            remedy = (
                "Raise engine.num_kv_blocks, lower engine.max_num_seqs, or leave `published` out of simulation.variants"
            )
            preempted = next((request for request in self._metric_store.requests if request.num_restarts), None)
            if preempted is not None:
                raise SimulationError(
                    f"request {preempted.id} was preempted for want of KV blocks (engine.num_kv_blocks"
                    f" {config.cache_config.num_blocks}), on which Vidur 0.0.26 fails. {remedy}."
                ) from None
            waiting = self._scheduler.get_pending_requests()
            if waiting:
                blocks = ceil(waiting[0].num_prefill_tokens / config.cache_config.block_size)
                raise SimulationError(
                    f"request {waiting[0].id} is never admitted: its prompt needs {blocks} KV blocks, and Vidur 0.0.26"
                    f" keeps {config.cache_config.watermark_blocks_fraction:.0%} of engine.num_kv_blocks"
                    f" {config.cache_config.num_blocks} free. {remedy}."
                ) from None
            raise SimulationError(f"Vidur 0.0.26 fails an assertion of its own: {error}. {remedy}.") from error
        predictor: Any = self.predictor
        settings = predictor._config
        if settings.chosen is None and settings.table_cache is not None:
            digests = csv_digests(settings.directory, config.replica_config.tensor_parallel_size)
            write_forests(_kept_path(settings.table_cache, digests), predictor.chosen, digests, settings.search())

    @property
    def scheduled_at_ns(self) -> list[int]:
        """See `RecordedSimulator.scheduled_at_ns`."""
        return [_ns(seconds) for seconds in super().scheduled_at_ns]


def published_settings(simulator: PublishedSimulator) -> dict[str, Any]:
    """What differs from the settings that the other variants assume, under the same names."""
    cluster, predictor = simulator._config.cluster_config, simulator._config.execution_time_predictor_config
    chosen: Any = simulator.predictor
    return {
        "head_dim": cluster.replica_config.attention_head_dim,
        "kv_bytes_per_token": kv_bytes_per_token(cluster.replica_config),
        "num_null_blocks": 0,
        "watermark_blocks_fraction": cluster.cache_config.watermark_blocks_fraction,
        "predictor": "forest",
        "forest": {**predictor.search(), "chosen": chosen.chosen},
        "rounding_tokens": {
            "step_tokens": 8,
            "prefill_chunk": 32,
            "context": predictor.kv_cache_prediction_granularity,
        },
        "attention_batching_overhead_fraction": predictor.attention_decode_batching_overhead_fraction,
    } | (
        {"all_reduce_launch_overhead_ms": predictor.nccl_cpu_launch_overhead_ms}
        if cluster.replica_config.tensor_parallel_size > 1
        else {}
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


# --- command line -----------------------------------------------------------------------------------------------------


def search_bundle(directory: Path, jobs: int, log: Callable[[str], None], **candidates: Any) -> Path:
    """Vidur's whole grid search over a bundle's CSV files, with `jobs` processes (-1: one a core). Returns the file
    written.

    `candidates` replace Vidur's own; simulations refuse what was found among others.

    Raises:
        ArtifactError, ContractError, ProfileError: as `load_bundle`, a mixture of experts, or Vidur finds no rows in
            the files.
    """
    bundle = load_bundle(directory)
    if bundle.experts is not None:
        raise ProfileError(
            f"{directory}: of a mixture of experts, for which Vidur 0.0.26 has no layer, so there is no forest to"
            " choose. Simulate kernels and calibrated."
        )
    reported = bundle.meta.engine_settings
    degree = bundle.tensor_parallel_size
    config = PublishedConfig(
        directory=directory,
        num_training_job_threads=jobs,
        prediction_max_batch_size=1,
        prediction_max_prefill_chunk_size=32,
        prediction_max_tokens_per_request=256,
        cache_dir=tempfile.gettempdir(),
        **candidates,
    )
    started = time.perf_counter()
    with quiet():
        predictor = PublishedPredictor(
            config,
            _replica(bundle.geometry, reported.max_model_len, degree),
            CacheConfig(block_size=reported.block_size),
        )
    path = directory / FORESTS_FILE
    write_forests(path, predictor.chosen, csv_digests(directory, degree), config.search())
    add_to_listing(directory, [FORESTS_FILE, Kind.PROFILE.meta_name])
    log(f"{path}: {len(predictor.chosen)} forests chosen in {time.perf_counter() - started:.0f} s")
    return path
