"""What `core` must equal under any clock: Vidur's own scheduler and entities, asked for every step.

Vidur's event loop, the reference for one step at a time, forms no step before the one before it is complete. Here a
`clock` says when steps are formed. A request that has its last token under way stays among the running ones until that
is handed out, and its scheduler gives it nothing more.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from vidur.entities import Request

from gst_assets.testing.simulation_inputs import QWEN3_0_6B
from gst_assets.vidur_adapter import registration
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.predictor import OperatorSumConfig, shape_of_batch
from gst_assets.vidur_adapter.simulation_loop import RequestColumns
from gst_assets.vidur_adapter.step_log import StepLog
from gst_assets_tests.vidur_adapter.reference_clocks import EngineClock

_MAX_TOKENS = 4096


class AheadRequest(registration.SimulatedRequest):
    """May be preempted while its last step runs: then there is nothing to compute again."""

    def restart(self) -> None:
        if self._completed:
            self._num_restarts += 1
        else:
            super().restart()


class AheadScheduler(registration.EngineScheduler):
    """Has completed requests among those running."""

    def __init__(self, limits: Limits) -> None:
        config = registration.simulation_config(
            registration.EngineReplica(
                model_name=registration.model_name(QWEN3_0_6B, _MAX_TOKENS),
                head_dim=QWEN3_0_6B.head_dim,
                num_kv_tokens=limits.num_kv_blocks * limits.block_size,
            ),
            limits,
            requests=registration.WorkloadRequestsConfig(max_tokens=_MAX_TOKENS),
            predictor=OperatorSumConfig(),
        )
        cluster = config.cluster_config
        super().__init__(
            cluster.replica_config,
            cluster.replica_scheduler_config,
            cluster.cache_config,
            config.request_generator_config,
            SimpleNamespace(id=0),
            1,
            None,
        )

    def _get_request_next_num_q_tokens(self, request: Request, num_batch_tokens: int) -> int:
        return 0 if request._completed else super()._get_request_next_num_q_tokens(request, num_batch_tokens)

    def _can_allocate_request(self, request: Request) -> bool:
        return not request._completed and super()._can_allocate_request(request)


class SchedulerLoop:
    """As `simulation_loop.SimulationLoop`."""

    def __init__(self, requests: RequestColumns, limits: Limits, clock: EngineClock) -> None:
        self.clock = clock
        self.history = StepLog()
        self._requests = [AheadRequest(*row) for row in zip(*requests, strict=True)]
        self._scheduler: Any = AheadScheduler(limits)
        self._outstanding: deque[list[AheadRequest]] = deque()

    @property
    def scheduled_at_ns(self) -> list[int]:
        return [request.scheduled_at for request in self._requests]

    @property
    def num_preemptions(self) -> list[int]:
        return [request.num_restarts for request in self._requests]

    @property
    def num_outside(self) -> int:
        return self.clock.num_outside

    def run(self, on_share: object = None) -> None:
        del on_share  # says nothing of how far it is
        coming = deque(self._requests)
        while True:
            while coming and coming[0].arrived_at <= self.clock.now_ns:
                self._scheduler.add_request(coming.popleft())
            if self._form() and len(self._outstanding) < self.clock.queue_size:
                continue
            if self._outstanding:
                self._hand_out()
            elif coming:
                self.clock.idle_until(coming[0].arrived_at)
            else:
                break

    def _form(self) -> bool:
        scheduler, now_ns, step = self._scheduler, self.clock.now_ns, self.history.num_steps
        batch = scheduler._get_next_batch(now_ns)
        if batch is None:
            return False
        shape = shape_of_batch(batch)
        self.history.add_step(now_ns, shape.composition, scheduler.num_running, scheduler.num_pending_requests)
        self.clock.launch(shape)
        for request, num_tokens in zip(batch.requests, batch._num_q_tokens, strict=True):
            request.on_batch_schedule(now_ns)
            request.on_batch_stage_end(now_ns, 0, 0, 0, num_tokens)
            request.on_batch_end(now_ns, num_tokens)
            if request.is_prefill_complete:
                self.history.add_tokens(request.id, step, step)
        scheduler._preempted_requests += batch.requests  # where Vidur keeps those who run
        self._outstanding.append([request for request in batch.requests if request.completed])
        return True

    def _hand_out(self) -> None:
        self.history.add_handed_out((self.clock.hand_out(),))
        scheduler = self._scheduler
        for request in self._outstanding.popleft():
            if request.id in scheduler._allocation_map:
                scheduler.free(request.id)
                scheduler._preempted_requests.remove(request)
            else:
                scheduler._request_queue.remove(request)
