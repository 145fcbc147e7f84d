"""One run of Vidur's own event loop, with a recorder where Vidur keeps its metrics.

Imports Vidur: import it inside functions. Configuration belongs to `registration`, step times to `predictor`, tables to `simulate`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vidur.config import SimulationConfig
from vidur.entities import Batch, BatchStage, Cluster, Request
from vidur.request_generator import RequestGeneratorRegistry
from vidur.scheduler import GlobalSchedulerRegistry
from vidur.simulator import Simulator

from gst_assets.vidur_adapter.predictor import KernelsPredictor, composition_of
from gst_assets.vidur_adapter.registration import EngineScheduler


@dataclass
class Step:
    """One iteration; times in ns of the simulation. `token_requests` are the requests that got a token at its end, in batch order."""

    scheduled_ns: int
    num_prefill_requests: int
    num_prefill_tokens: int
    num_decode_requests: int
    num_context_tokens: int
    num_running: int
    num_waiting: int
    completed_ns: int = 0
    token_requests: list[int] = field(default_factory=list)


class Recorder:
    """Stands where Vidur's MetricsStore stands, and keeps what happened."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.steps: list[Step] = []
        self.scheduler: EngineScheduler | None = None

    def on_request_arrival(self, time: int, request: Request) -> None:
        """Vidur's hook."""
        del time
        self.requests.append(request)

    def on_replica_stage_schedule(
        self, time: int, replica_id: Any, stage_id: int, batch_stage: BatchStage, execution_time: Any
    ) -> None:
        """Vidur's hook: the step begins, its requests are as the scheduler saw them."""
        del replica_id, stage_id, execution_time
        step, scheduler = composition_of(batch_stage), self.scheduler
        assert scheduler is not None
        self.steps.append(
            Step(
                time,
                step.num_prefill_requests,
                step.num_prefill_tokens,
                step.num_decode_requests,
                step.num_context_tokens,
                scheduler.num_running,
                scheduler.num_pending_requests,
            )
        )

    def on_batch_end(self, time: int, batch: Batch, replica_id: Any, memory_usage_percent: float) -> None:
        """Vidur's hook: the step has ended. Every request whose prompt is complete got one token, the first one included."""
        del replica_id, memory_usage_percent
        step = self.steps[-1]
        step.completed_ns = time
        step.token_requests = [r._id for r in batch._requests if r._is_prefill_complete]

    def on_replica_schedule(self, *_: Any) -> None:
        """Vidur's hook; nothing to keep."""

    def on_batch_stage_end(self, *_: Any) -> None:
        """Vidur's hook; nothing to keep."""

    def plot(self) -> None:
        """Vidur's hook; nothing to draw."""


class RecordedSimulator(Simulator):
    """Vidur's simulator without its metrics store, which writes files and plots. `run` is Vidur's."""

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._time = 0
        self._terminate = False
        self._time_limit = float("inf")
        self._event_queue: list[Any] = []
        self._event_trace: list[Any] = []
        self._event_chrome_trace: list[Any] = []
        self._cluster = Cluster(config.cluster_config, config.metrics_config)
        self._metric_store = Recorder()
        self._request_generator = RequestGeneratorRegistry.get(
            config.request_generator_config.get_type(), config.request_generator_config
        )
        self._scheduler = GlobalSchedulerRegistry.get(
            config.cluster_config.global_scheduler_config.get_type(), config, self._cluster.replicas
        )
        (self._metric_store.scheduler,) = self._scheduler._replica_schedulers.values()
        self._init_event_queue()

    @property
    def requests(self) -> list[Request]:
        """The requests, in order of arrival."""
        return self._metric_store.requests

    @property
    def steps(self) -> list[Step]:
        """What happened."""
        return self._metric_store.steps

    @property
    def steps_outside_calibration(self) -> int:
        """Steps whose composition lies outside what was calibrated."""
        return self.predictor.steps_outside_calibration

    @property
    def predictor(self) -> KernelsPredictor:
        """The predictor of step times."""
        scheduler = self._metric_store.scheduler
        assert scheduler is not None
        predictor: KernelsPredictor = scheduler._execution_time_predictor
        return predictor


def replica_scheduler(config: SimulationConfig) -> EngineScheduler:
    """The scheduler of the one replica, as Vidur's simulator makes it."""
    cluster = Cluster(config.cluster_config, config.metrics_config)
    made = GlobalSchedulerRegistry.get(
        config.cluster_config.global_scheduler_config.get_type(), config, cluster.replicas
    )
    (scheduler,) = made._replica_schedulers.values()
    assert isinstance(scheduler, EngineScheduler)
    return scheduler


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
