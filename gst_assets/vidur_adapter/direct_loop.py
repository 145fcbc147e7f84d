"""A simulation without events: Vidur's own scheduler, entities and predictor, advanced step by step by an `EngineClock`.

Under a `SynchronousClock` its results are those of Vidur's event loop (`simulation.RecordedSimulator`) to the nanosecond. Imports Vidur:
import it inside functions. When steps begin and end belongs to `clocks`, configuration to `registration`, tables to `simulate`.

A step's tokens count as computed when it is formed: a step formed before the output of the one before it is known goes on from there. What
a request holds (its KV blocks and its place among max_num_seqs) is released when the output of its last step is handed out. For one step at a
time the two moments are the same.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from vidur.entities import Batch

from gst_assets.errors import SimulationError
from gst_assets.vidur_adapter.clocks import AsynchronousClock, EngineClock, SynchronousClock
from gst_assets.vidur_adapter.predictor import CalibratedPredictor, KernelsPredictor, composition_of
from gst_assets.vidur_adapter.registration import EngineRequest, EngineScheduler, EngineSimulation
from gst_assets.vidur_adapter.simulation import Step, replica_scheduler


class DirectSimulator:
    """One simulation. `requests` and `steps` hold what happened once `run` has returned."""

    def __init__(self, config: EngineSimulation) -> None:
        self.requests: list[EngineRequest] = config.request_generator_config.requests()
        self.steps: list[Step] = []
        self.scheduler: EngineScheduler = replica_scheduler(config)
        self.predictor: KernelsPredictor = self.scheduler._execution_time_predictor
        self.clock: EngineClock = _clock(self.predictor)
        self._outstanding: deque[tuple[Step, list[EngineRequest]]] = deque()
        self._steady: Batch | None = None
        """The last step formed, where the next one may hold the same requests."""
        self._repeats_left = 0

    def run(self) -> None:
        """Simulate until every request has its tokens.

        Raises:
            SimulationError: a request can never be scheduled.
        """
        clock, scheduler, outstanding = self.clock, self.scheduler, self._outstanding
        arriving = deque(self.requests)
        while True:
            while arriving and arriving[0]._arrived_at <= clock.now_ns:
                scheduler.add_request(arriving.popleft())
            formed = self._repeat()
            if not formed:
                batch = scheduler.next_batch(clock.now_ns)
                if batch is not None:
                    self._form(batch)
                    formed = True
            if formed and len(outstanding) < clock.queue_size and not clock.is_done():
                continue
            if outstanding:
                self._hand_out()
            elif arriving:
                clock.idle_until(arriving[0]._arrived_at)
            else:
                break
        if not scheduler.is_empty():
            waiting = scheduler.get_pending_requests()
            raise SimulationError(
                f"{len(waiting)} requests can never be scheduled, the first is request {waiting[0].id if waiting else 'unknown'}. "
                "Raise engine.num_kv_blocks or engine.max_num_batched_tokens."
            )

    def _form(self, batch: Batch) -> None:
        now, scheduler, made = self.clock.now_ns, self.scheduler, composition_of(batch)
        step = Step(
            now,
            made.num_prefill_requests,
            made.num_prefill_tokens,
            made.num_decode_requests,
            made.num_context_tokens,
            scheduler.num_running,
            scheduler.num_pending_requests,
        )
        self.clock.launch(batch)
        completed = scheduler.advance(batch, now)
        step.token_requests = [r._id for r in batch._requests if r._is_prefill_complete]
        self.steps.append(step)
        self._outstanding.append((step, completed))
        is_whole = len(scheduler._preempted_requests) == len(batch._requests)
        is_steady = is_whole and not (completed or made.num_prefill_requests or scheduler.num_pending_requests)
        self._steady = batch if is_steady else None
        if is_steady:
            self._repeats_left = min(r.total_tokens - r._num_processed_tokens for r in batch._requests) - 1

    def _repeat(self) -> bool:
        """Form the next step without asking the scheduler where its answer is known: the same decodes as in the last one, since nobody waits,
        nobody ended, nobody ends in this step and the KV blocks last. Returns whether a step was formed."""
        batch, scheduler = self._steady, self.scheduler
        if batch is None or not self._repeats_left or scheduler.num_pending_requests:
            return False
        held, requests = scheduler._allocation_map, batch._requests
        block_size = scheduler._cache_config.block_size
        full = [r._id for r in requests if r._num_processed_tokens > held[r._id] * block_size]
        if full and not scheduler.can_allocate(len(full)):
            return False
        for request_id in full:
            scheduler.allocate(request_id, 1)
        last, num_requests = self.steps[-1], len(requests)
        # A new entity: Vidur's predictor keeps what it worked out of a batch on the batch.
        kv_tokens = [tokens + 1 for tokens in batch._num_kv_tokens]
        batch = self._steady = Batch(batch._replica_id, requests, batch._num_q_tokens, kv_tokens)
        context_tokens = sum(r._num_processed_tokens for r in requests) - num_requests
        step = Step(self.clock.now_ns, 0, 0, num_requests, context_tokens, last.num_running, 0, 0, last.token_requests)
        self.clock.launch(batch)
        for request in requests:
            request._num_processed_tokens += 1
            request._num_stage_processed_tokens += 1
        self._repeats_left -= 1
        self.steps.append(step)
        self._outstanding.append((step, []))
        return True

    def _hand_out(self) -> None:
        step, completed = self._outstanding.popleft()
        step.completed_ns = self.clock.hand_out()
        self.scheduler.release(completed)

    @property
    def steps_outside_calibration(self) -> int:
        """Steps whose composition lies outside what was calibrated."""
        return self.clock.num_outside


def _clock(predictor: KernelsPredictor) -> EngineClock:
    costs = predictor.step_costs if isinstance(predictor, CalibratedPredictor) else None
    if costs is not None:
        return AsynchronousClock(costs, composition_of)

    def step_ns(batch: Any) -> int:
        return predictor.get_execution_time(batch, 0).total_time

    return SynchronousClock(step_ns, lambda: predictor.steps_outside_calibration)
