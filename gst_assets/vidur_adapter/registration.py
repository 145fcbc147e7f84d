"""What Vidur 0.0.26 needs to simulate a scenario: model, device, replica, requests, scheduler and configurations
that touch no disk.

Vidur is extended by subclassing and its registries only. Imports Vidur: import it inside functions. Step times belong
to `predictor`, the event loop to `event_loop`. `core` schedules by the same rules without Vidur.

The variant `published` takes the model, the node and the configurations from here, and nothing else (see `published`).

How the registered scheduler, Vidur's `sarathi`, compares with vLLM V1 (`vllm/v1/core/sched/scheduler.py`, 0.32.0,
policy fcfs):

- Equal: running requests before waiting ones, a partial prefill after the decodes admitted before it; first come, first
  served admission while token budget, request limit and KV blocks last; a request is admitted only if its whole prompt
  fits the free blocks (`scheduler_reserve_full_isl`); the request admitted last is preempted first, loses its blocks,
  goes to the head of the waiting queue and recomputes prompt and generated tokens.
- Corrected in `EngineScheduler`: Vidur preempts whenever no block is free, also when the request has room in its last
  one; it uses every block, while vLLM keeps block 0 as its null block. With the first corrected, a step that preempts
  admits no request, as in vLLM: the preempted request heads the queue and needs one block more than it gave up.
- Corrected in `SimulatedRequest`: Vidur's `restart` keeps the stage counters (any preemption then fails an assertion)
  and turns the rest of a half-prefilled prompt into output tokens.
- Left as in Vidur: the blocks of a prompt are taken at admission, vLLM takes them chunk by chunk, so that under KV
  pressure a decode can take a block which Vidur has reserved; prefix caching and async scheduling are modelled only by
  `core`; of requests arriving at the same instant Vidur admits all that fit in one step, while a real engine may begin
  with the first that reaches it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from math import ceil
from typing import Any

from vidur.config import (
    BaseRequestGeneratorConfig,
    CacheConfig,
    ClusterConfig,
    MetricsConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
)
from vidur.config.config import BaseExecutionTimePredictorConfig, LORGlobalSchedulerConfig
from vidur.config.device_sku_config import BaseDeviceSKUConfig
from vidur.config.model_config import BaseModelConfig
from vidur.config.node_sku_config import BaseNodeSKUConfig
from vidur.entities import Request
from vidur.request_generator import RequestGeneratorRegistry
from vidur.request_generator.base_request_generator import BaseRequestGenerator
from vidur.scheduler.replica_scheduler.replica_scheduler_registry import ReplicaSchedulerRegistry
from vidur.scheduler.replica_scheduler.sarathi_replica_scheduler import SarathiReplicaScheduler
from vidur.types import ActivationType, BaseIntEnum, NormType

from gst_assets.scenario import Geometry
from gst_assets.vidur_adapter.core import Limits


class AdapterType(BaseIntEnum):
    """Keys under which this package registers with Vidur. Vidur compares them as integers across its own enums, hence
    the distance."""

    DEVICE = 1000
    NODE = 1001
    REQUESTS = 1002
    SCHEDULER = 1003
    OPERATOR_SUM = 1004


# --- model, device, replica -------------------------------------------------------------------------------------------


@cache
def model_name(geometry: Geometry, max_model_len: int) -> str:
    """Register a decoder of this geometry and return the name Vidur knows it by. Vidur finds models among
    subclasses."""
    name = f"gst/decoder-{len(_REGISTERED_MODELS)}"
    values: dict[str, Any] = {
        "num_layers": geometry.num_layers,
        "num_q_heads": geometry.num_q_heads,
        "num_kv_heads": geometry.num_kv_heads,
        "embedding_dim": geometry.hidden_size,
        "mlp_hidden_dim": geometry.mlp_hidden_size,
        "max_model_len": max_model_len,
        "use_gated_mlp": True,
        "use_bias": False,
        "use_qkv_bias": geometry.qkv_bias,
        "activation": ActivationType.SILU,
        "norm": NormType.RMS_NORM,
        "post_attn_norm": True,
        "vocab_size": geometry.vocab_size,
    }
    model = make_dataclass(
        "ScenarioModelConfig",
        [(key, type(value), value) for key, value in values.items()],
        bases=(BaseModelConfig,),
        namespace={"get_name": staticmethod(lambda: name)},
    )
    _REGISTERED_MODELS.append(model)
    return name


_REGISTERED_MODELS: list[type] = []
"""Holds the model classes: Vidur's registry of subclasses holds them weakly."""


@dataclass
class EngineDevice(BaseDeviceSKUConfig):
    """The device of the scenario. Vidur's FLOPS enter only its utilisation metrics, which are not computed here."""

    fp16_tflops: int = 0
    total_memory_gb: int = 0

    @staticmethod
    def get_type() -> Any:
        return AdapterType.DEVICE


@dataclass
class EngineNode(BaseNodeSKUConfig):
    """Devices of one host. What their links take is measured, as part of the bundle."""

    device_sku_type: Any = AdapterType.DEVICE
    num_devices_per_node: int = 1

    @staticmethod
    def get_type() -> Any:
        return AdapterType.NODE


@dataclass
class EngineReplica(ReplicaConfig):
    """Devices that share each layer, with the true `head_dim` (Vidur computes hidden_size / num_q_heads) and memory for
    the engine's KV blocks.

    The engine says how many blocks it has, so Vidur's memory planner decides nothing; it still asserts that the device
    holds weights and one token, which a device of just the needed size satisfies.
    """

    num_pipeline_stages: int = 1
    tensor_parallel_size: int = 1
    device: str = str(AdapterType.DEVICE)
    network_device: str = str(AdapterType.NODE)
    head_dim: int = 0
    num_kv_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._attention_head_dim = self.head_dim
        from vidur.utils.param_counter import ParamCounter

        two_byte_weights = 2 * ParamCounter(self).get_num_parameters_per_device()
        needed = two_byte_weights + self.num_kv_tokens * kv_bytes_per_token(self)
        self.device_config = EngineDevice(total_memory_gb=ceil(needed / 1024**3))
        self.node_config = EngineNode(num_devices_per_node=self.tensor_parallel_size)


def kv_bytes_per_token(replica: ReplicaConfig) -> int:
    """Bytes of one token's keys and values on one device over all layers at two bytes a value, as Vidur's memory
    planner counts them."""
    from vidur.utils.memory_planner import MemoryPlanner

    return int(MemoryPlanner(replica, CacheConfig())._get_kv_cache_memory_per_device_per_token())


# --- requests and scheduler -------------------------------------------------------------------------------------------


class SimulatedRequest(Request):
    """A request of the workload. `arrived_at` is in integer nanoseconds, as all times here (Vidur's clock has no unit
    of its own)."""

    def __init__(self, request_id: int, arrived_at: int, num_prefill_tokens: int, num_decode_tokens: int) -> None:
        super().__init__(arrived_at, num_prefill_tokens, num_decode_tokens)
        # Vidur's own counter goes on from one simulation of a process to the next.
        self._id = request_id

    def restart(self) -> None:
        """Vidur's, less two faults in 0.0.26 (see the module's docstring)."""
        prefill_tokens, decode_tokens = self.size
        had_completed_prefill = self._is_prefill_complete
        super().restart()
        if not had_completed_prefill:
            self._num_prefill_tokens, self._num_decode_tokens = prefill_tokens, decode_tokens
        self._num_stage_processed_tokens = 0
        self._is_prefill_stage_complete = False


@dataclass
class WorkloadRequestsConfig(BaseRequestGeneratorConfig):
    """Requests as (request_id, arrived_at in ns, num_prefill_tokens, num_decode_tokens)."""

    rows: Sequence[tuple[int, int, int, int]] = ()

    @staticmethod
    def get_type() -> Any:
        return AdapterType.REQUESTS


class WorkloadRequests(BaseRequestGenerator):
    """Passes the rows on unchanged; Vidur's trace readers rescale, clip and shuffle."""

    def generate_requests(self) -> list[SimulatedRequest]:
        return [SimulatedRequest(*row) for row in self.config.rows]


@dataclass
class EngineSchedulerConfig(SarathiSchedulerConfig):
    """Sarathi's settings: `chunk_size` is the engine's max_num_batched_tokens, `batch_size_cap` its max_num_seqs.
    `num_null_blocks` of the engine's KV blocks are given to no request."""

    num_null_blocks: int = 0

    @staticmethod
    def get_type() -> Any:
        return AdapterType.SCHEDULER


class EngineScheduler(SarathiReplicaScheduler):
    """Vidur's sarathi with vLLM V1's use of KV blocks (see the module's docstring)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_allocated_blocks = self._config.num_null_blocks

    def _can_allocate_request(self, request: Request) -> bool:
        held = self._allocation_map.get(request.id, 0)
        has_room = 0 < request.num_processed_tokens <= held * self._cache_config.block_size
        return has_room or super()._can_allocate_request(request)

    @property
    def num_running(self) -> int:
        """Requests holding KV blocks."""
        return len(self._allocation_map)


RequestGeneratorRegistry.register(AdapterType.REQUESTS, WorkloadRequests)
ReplicaSchedulerRegistry.register(AdapterType.SCHEDULER, EngineScheduler)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Vidur's loggers, which otherwise print to stdout, for as long as the context lasts."""
    logger = logging.getLogger("vidur")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- configuration ----------------------------------------------------------------------------------------------------


@dataclass
class NoMetrics(MetricsConfig):
    """Vidur's own metrics, plots and traces switched off; its default creates a directory when constructed."""

    write_metrics: bool = False
    enable_chrome_trace: bool = False
    store_plots: bool = False

    def __post_init__(self) -> None:
        pass


@dataclass
class EngineSimulation(SimulationConfig):
    """Vidur's configuration of one simulation; its default writes config.json when constructed."""

    metrics_config: MetricsConfig = field(default_factory=NoMetrics)

    def write_config_to_file(self) -> None:
        pass


def simulation_config(
    replica: EngineReplica,
    limits: Limits,
    *,
    requests: WorkloadRequestsConfig,
    predictor: BaseExecutionTimePredictorConfig,
) -> EngineSimulation:
    """One replica under the engine's settings."""
    return EngineSimulation(
        cluster_config=ClusterConfig(
            num_replicas=1,
            replica_config=replica,
            cache_config=CacheConfig(
                block_size=limits.block_size,
                num_blocks=limits.num_kv_blocks,
                watermark_blocks_fraction=0.0,
                memory_margin_fraction=0.0,
            ),
            # Round robin addresses replicas by a counter that goes on from one simulation of a process to the next.
            global_scheduler_config=LORGlobalSchedulerConfig(),
            replica_scheduler_config=EngineSchedulerConfig(
                batch_size_cap=limits.max_num_seqs,
                chunk_size=limits.max_num_batched_tokens,
                num_null_blocks=limits.num_null_blocks,
            ),
        ),
        request_generator_config=requests,
        execution_time_predictor_config=predictor,
    )
