"""A simulation without events: Vidur's own scheduler and entities, and tables summed as Vidur does, advanced by an `EngineClock`.

Under a `SynchronousClock` its results are those of Vidur's event loop (`simulation.RecordedSimulator`) to the nanosecond. Imports Vidur, by way of `registration`:
import it inside functions, so that definitions load without it. When steps begin and end belongs to `clocks`, configuration to `registration`, tables to `simulate`.

Decodes stand aside (`decodes`): while KV blocks last each of them gets its token whatever else a step holds. So Vidur's scheduler is asked about
prompts only, with the decodes counted against its limits; it is given everything where a decode may find no block and somebody is preempted; and
it is not asked at all while there is no prompt to compute or to admit, then a `clock` forms many steps at once.

A step's tokens count as computed when it is formed: a step formed before the output of the one before it is known goes on from there. What
a request holds (its KV blocks and its place among max_num_seqs) is released when the output of its last step is handed out. For one step at a
time the two moments are the same.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

from gst_assets.errors import SimulationError
from gst_assets.vidur_adapter.clocks import AsynchronousClock, EngineClock, SynchronousClock
from gst_assets.vidur_adapter.decodes import Decodes
from gst_assets.vidur_adapter.history import History
from gst_assets.vidur_adapter.operator_times import StepShape
from gst_assets.vidur_adapter.overheads import Composition
from gst_assets.vidur_adapter.predictor import CalibratedPredictor, KernelsPredictor, shape_of_batch
from gst_assets.vidur_adapter.registration import EngineRequest, EngineScheduler, EngineSimulation, replica_scheduler

if TYPE_CHECKING:
    from vidur.entities import Batch


class DirectSimulator:
    """One simulation. `requests` and `history` hold what happened once `run` has returned."""

    def __init__(self, config: EngineSimulation) -> None:
        self.requests: list[EngineRequest] = config.request_generator_config.requests()
        self.history = History()
        self.scheduler: EngineScheduler = replica_scheduler(config)
        self.predictor: KernelsPredictor = self.scheduler._execution_time_predictor
        costs = self.predictor.step_costs if isinstance(self.predictor, CalibratedPredictor) else None
        self.clock: EngineClock = SynchronousClock(self.predictor) if costs is None else AsynchronousClock(costs)
        self._outstanding: deque[list[EngineRequest]] = deque()
        """For each step formed and not handed out, the requests it completes."""
        self._num_unreleased = 0
        """Requests completed by steps that are not handed out."""
        # What Vidur keeps in `_preempted_requests`, in its order: skipped by the last step, then decodes, then what is left of a prompt.
        # Requests completed by the last step still stand where they stood.
        self._skipped: list[EngineRequest] = []
        self._decoding: list[EngineRequest] = []
        self._in_prefill: list[EngineRequest] = []
        self._decodes = Decodes(self.scheduler._cache_config.block_size)

    def run(self) -> None:
        """Simulate until every request has its tokens.

        Raises:
            SimulationError: a request can never be scheduled.
        """
        clock, scheduler, outstanding, requests = self.clock, self.scheduler, self._outstanding, self.requests
        arrivals = [request._arrived_at for request in requests]
        num_arrived = 0
        while True:
            while num_arrived < len(requests) and arrivals[num_arrived] <= clock.now_ns:
                scheduler.add_request(requests[num_arrived])
                num_arrived += 1
            next_arrival = arrivals[num_arrived] if num_arrived < len(requests) else inf
            if self._run_decodes(next_arrival):
                continue
            if self._form() and len(outstanding) < clock.queue_size and not clock.is_done():
                continue
            if outstanding:
                self._hand_out()
            elif num_arrived < len(requests):
                clock.idle_until(arrivals[num_arrived])
            else:
                break
        if not scheduler.is_empty():
            waiting = scheduler.get_pending_requests()
            raise SimulationError(
                f"{len(waiting)} requests can never be scheduled, the first is request {waiting[0].id if waiting else 'unknown'}. "
                "Raise engine.num_kv_blocks or engine.max_num_batched_tokens."
            )

    def _run_decodes(self, until_ns: float) -> bool:
        """Form steps that hold the decodes and nothing else, until somebody arrives, has got the last token or needs a block that there is not.
        Returns whether any was formed."""
        decodes, scheduler = self._decodes, self.scheduler
        if self._num_unreleased or self._in_prefill or self._skipped or not decodes.count:
            return False
        if scheduler._request_queue and scheduler.can_admit_beside(decodes.count):
            return False
        step = self.history.num_steps
        num_steps = decodes.steps_that_fit(step, decodes.next_end + 1 - step, scheduler.num_free_blocks)
        if not num_steps:
            return False
        held = Composition(0, 0, decodes.count, decodes.context_tokens(step))
        formed_ns, handed_out_ns = self.clock.run_decodes(
            held.num_decode_requests, held.num_context_tokens, num_steps, until_ns
        )
        if not formed_ns:
            return False
        scheduler._num_allocated_blocks += decodes.new_blocks_of_run(step, len(formed_ns))
        self.history.add_decodes(formed_ns, held, scheduler.num_running, scheduler.num_pending_requests)
        self._outstanding.extend([] for _ in formed_ns[1:])
        self._outstanding.append(self._complete(step + len(formed_ns) - 1))
        self.history.add_handed_out(handed_out_ns)
        for _ in handed_out_ns:
            self._release(self._outstanding.popleft())
        return True

    def _form(self) -> bool:
        """Form a step, if there is anything to do in it. Returns whether there was."""
        decodes, scheduler, step = self._decodes, self.scheduler, self.history.num_steps
        new_blocks = decodes.new_blocks(step)
        if new_blocks > scheduler.num_free_blocks:
            return self._form_all()
        scheduler._num_allocated_blocks += new_blocks
        prefills, finished = self._in_prefill, []
        if self._num_unreleased or self._skipped:
            listed = self._skipped + self._decoding
            finished = [request for request in listed if request._completed]
            self._decoding = [request for request in self._decoding if not request._completed]
            prefills = [request for request in self._skipped if not request._completed] + prefills
        batch, now_ns = None, self.clock.now_ns
        if prefills or scheduler._request_queue:
            batch, left_out = scheduler.prefills_beside(decodes.count, prefills, now_ns)
            finished += left_out
        self._skipped = sorted(finished, key=lambda request: request._arrived_at)
        self._in_prefill = []
        if batch is None and not decodes.count:
            return False
        chunks = [] if batch is None else shape_of_batch(batch).chunks
        self._launch(StepShape(decodes.count, decodes.context_tokens(step), chunks))
        completed = self._complete(step)
        if batch is not None:
            completed += self._advance(batch)
        self._outstanding.append(completed)
        return True

    def _form_all(self) -> bool:
        """Form a step by Vidur's scheduler alone: some decode finds no block, so that somebody is preempted."""
        decodes, scheduler, history = self._decodes, self.scheduler, self.history
        last = history.num_steps - 1
        before = [(r, r.first_token_step, r._num_restarts) for r in self._decoding if not r._completed]
        for request, _, _ in before:
            decodes.write_back(request, last)
            scheduler._allocation_map[request._id] = decodes.held_blocks(request, last)
        batch, self._skipped = scheduler.next_batch(
            [*self._skipped, *self._decoding, *self._in_prefill], self.clock.now_ns
        )
        for request, first, restarts in before:
            if request._num_restarts != restarts:
                history.add_tokens(request._id, first, last)
        self._decodes = Decodes(scheduler._cache_config.block_size)
        self._decoding, self._in_prefill = [], []
        if batch is None:
            return False
        self._launch(shape_of_batch(batch))
        self._outstanding.append(self._advance(batch))
        return True

    def _launch(self, shape: StepShape) -> None:
        scheduler, step = self.scheduler, shape.composition
        self.history.add_step(self.clock.now_ns, step, scheduler.num_running, scheduler.num_pending_requests)
        self.clock.launch(shape, step)

    def _complete(self, step: int) -> list[EngineRequest]:
        """The decodes that get their last token from a step, which is formed."""
        completed = self._decodes.take_ending(step)
        for request in completed:
            self.scheduler._allocation_map[request._id] = self._decodes.held_blocks(request, step)
            self.history.add_tokens(request._id, request.first_token_step, step)
        self._num_unreleased += len(completed)
        return completed

    def _advance(self, batch: Batch) -> list[EngineRequest]:
        """Count the tokens of the requests in `batch`, which is the step just launched or its prefills. Returns those it completes."""
        step = self.history.num_steps - 1
        completed = []
        for request, had_token in self.scheduler.advance(batch, self.history.last_formed_ns):
            if not request._is_prefill_complete:
                self._in_prefill.append(request)
                continue
            self._decoding.append(request)
            if not had_token:
                request.first_token_step = step
            if request._completed:
                self.history.add_tokens(request._id, request.first_token_step, step)
                completed.append(request)
            else:
                self._decodes.add(request)
        self._num_unreleased += len(completed)
        return completed

    def _hand_out(self) -> None:
        """Hand out the oldest step."""
        self.history.add_handed_out((self.clock.hand_out(),))
        self._release(self._outstanding.popleft())

    def _release(self, completed: list[EngineRequest]) -> None:
        """The step that completes these requests is handed out: they give up what they hold."""
        for request in completed:
            self._num_unreleased -= 1
            if self.scheduler.release(request):
                (self._decoding if request in self._decoding else self._skipped).remove(request)

    @property
    def steps_outside_calibration(self) -> int:
        """Steps whose composition lies outside what was calibrated."""
        return self.clock.num_outside
