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

from vidur.entities import Batch, Request

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
        self._outstanding: deque[tuple[Step, list[Request]]] = deque()

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
            batch = scheduler.next_batch(clock.now_ns)
            if batch is not None:
                self._form(batch)
                if len(outstanding) < clock.queue_size and not clock.is_done():
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
