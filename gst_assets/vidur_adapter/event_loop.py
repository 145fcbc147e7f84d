"""One run of Vidur's own event loop, with a recorder in place of Vidur's metrics store.

Its recorder handles Vidur's own entities, so Vidur is imported at the top. Never loaded with the definitions: it is
imported inside functions only (`test_definitions` would see it). Configuration belongs to `registration`, step times to
`predictor`, tables to `simulate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vidur.config import SimulationConfig
from vidur.entities import Batch, BatchStage, Cluster, Request
from vidur.request_generator import RequestGeneratorRegistry
from vidur.scheduler import GlobalSchedulerRegistry
from vidur.simulator import Simulator

from gst_assets.vidur_adapter.predictor import composition_of
from gst_assets.vidur_adapter.registration import EngineScheduler, quiet
from gst_assets.vidur_adapter.step_log import StepLog

_STEPS_BETWEEN_SHARES = 64


class Recorder:
    """Takes the place of Vidur's MetricsStore, and records what happened."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.history = StepLog()
        self.scheduler: EngineScheduler | None = None
        self.on_step: Callable[[], None] | None = None

    def on_request_arrival(self, time: int, request: Request) -> None:
        """Vidur's hook."""
        del time
        self.requests.append(request)

    def on_replica_stage_schedule(
        self, time: int, replica_id: Any, stage_id: int, batch_stage: BatchStage, execution_time: Any
    ) -> None:
        """Vidur's hook: the step begins, its requests are as the scheduler saw them."""
        del replica_id, stage_id, execution_time
        scheduler = self.scheduler
        assert scheduler is not None
        self.history.add_step(time, composition_of(batch_stage), scheduler.num_running, scheduler.num_pending_requests)

    def on_batch_end(self, time: int, batch: Batch, replica_id: Any, memory_usage_percent: float) -> None:
        """Vidur's hook: the step has ended. Every request whose prompt is complete got one token, the first one
        included."""
        del replica_id, memory_usage_percent
        self.history.add_handed_out((time,))
        step = self.history.num_steps - 1
        if self.on_step is not None and not step % _STEPS_BETWEEN_SHARES:
            self.on_step()
        for request in batch._requests:
            if request._is_prefill_complete:
                self.history.add_tokens(request._id, step, step)

    def on_replica_schedule(self, *_: Any) -> None:
        """Vidur's hook; nothing to record."""

    def on_batch_stage_end(self, *_: Any) -> None:
        """Vidur's hook; nothing to record."""

    def plot(self) -> None:
        """Vidur's hook; nothing to draw."""


class RecordedSimulator(Simulator):
    """Vidur's simulator without its metrics store, which writes files and plots, and without its log."""

    recorder: type[Recorder] = Recorder

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._time = 0
        self._terminate = False
        self._time_limit = float("inf")
        self._event_queue: list[Any] = []
        self._event_trace: list[Any] = []
        self._event_chrome_trace: list[Any] = []
        self._cluster = Cluster(config.cluster_config, config.metrics_config)
        self._metric_store = self.recorder()
        self._request_generator = RequestGeneratorRegistry.get(
            config.request_generator_config.get_type(), config.request_generator_config
        )
        self._scheduler = GlobalSchedulerRegistry.get(
            config.cluster_config.global_scheduler_config.get_type(), config, self._cluster.replicas
        )
        (self._metric_store.scheduler,) = self._scheduler._replica_schedulers.values()
        self._init_event_queue()

    def run(self, on_share: Callable[[float], None] | None = None) -> None:
        """Vidur's own; `on_share` is called now and then with the share of the requests that has arrived, from 0 to
        1."""
        rows, store = self._config.request_generator_config.rows, self._metric_store
        if on_share is not None and rows:
            store.on_step = lambda: on_share(len(store.requests) / len(rows))
        with quiet():
            super().run()

    @property
    def scheduled_at_ns(self) -> list[int]:
        """When the first step with each request was formed, in ns of the simulation, in the order of the workload."""
        return [request.scheduled_at for request in self._in_order()]

    @property
    def num_preemptions(self) -> list[int]:
        """How often each request was preempted, in the order of the workload."""
        return [request.num_restarts for request in self._in_order()]

    def _in_order(self) -> list[Request]:
        by_id = {request.id: request for request in self._metric_store.requests}
        return [by_id[request_id] for request_id, *_ in self._config.request_generator_config.rows]

    @property
    def history(self) -> StepLog:
        """What happened."""
        return self._metric_store.history

    @property
    def predictor(self) -> Any:
        """The predictor of step times."""
        scheduler = self._metric_store.scheduler
        assert scheduler is not None
        return scheduler._execution_time_predictor
