"""The simulated engine's loop: which requests each step holds, by vLLM V1's rules as `registration` lists them, advanced by an `EngineClock`.

Owns its state: requests and KV blocks are columns of integers. Knows neither Vidur nor pandas. Under a `StepByStepClock` its results are those
of Vidur's own event loop (`event_loop.RecordedSimulator`) to the nanosecond. When steps begin and end belongs to `clocks`.

A step's tokens count as computed when it is formed: a step formed before the output of the one before it is known goes on from there. What
a request holds (its KV blocks and its place among max_num_seqs) is released when the output of its last step is handed out. For one step at a
time the two moments are the same.

Decodes are advanced all together. While KV blocks last each of them gets its token whatever else a step holds, so when each ends, when it fills
a block and how much context all have follow from the number of the step in which it got its first token: nothing is counted request by request.
One by one they are looked at only where somebody is to be preempted. While there is no prompt to compute or to admit, the clock forms many steps
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from gst_assets.errors import SimulationError
from gst_assets.step_costs.shapes import Composition, StepShape
from gst_assets.vidur_adapter.clocks import EngineClock
from gst_assets.vidur_adapter.step_log import StepLog

_NOBODY = -1
_NOT_DECODING = -1


class RequestColumns(NamedTuple):
    """One entry per request, in order of arrival; of those that arrive together the first one waits before the others."""

    request_id: Sequence[int]
    arrived_at_ns: Sequence[int]
    num_prefill_tokens: Sequence[int]
    """At least 1 each."""
    num_decode_tokens: Sequence[int]
    """At least 1 each."""


class Limits(NamedTuple):
    """Of the engine. `num_null_blocks` of its KV blocks are given to no request."""

    block_size: int
    """Tokens in a KV block."""
    num_kv_blocks: int
    num_null_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Scheduler:
    """What steps hold. A request is its place among the columns, called its row; steps are numbered from 0.

    Its state is integers and lists of integers, and it calls nothing but itself and `heapq`: a compiler of numeric code could take it as it is.
    At most two steps may be formed and not handed out.
    """

    def __init__(self, requests: RequestColumns, limits: Limits) -> None:
        num_requests = len(requests.request_id)
        self._block_size = limits.block_size
        self._max_num_seqs = limits.max_num_seqs
        self._max_num_batched_tokens = limits.max_num_batched_tokens
        self.num_free_blocks = limits.num_kv_blocks - limits.num_null_blocks
        self.num_running = 0
        """Requests that hold KV blocks and one of the `max_num_seqs` places."""
        self.num_formed = 0
        self.num_handed_out = 0

        # Requests, by row. A preempted one computes the tokens that it has got again: they become part of its prompt.
        self._arrived_at_ns = list(requests.arrived_at_ns)
        self._prompt_tokens = list(requests.num_prefill_tokens)
        self._decode_tokens = list(requests.num_decode_tokens)
        self._first_step = [0] * num_requests
        """The step that completed the prompt, last if the request was preempted."""
        self._last_step = [_NOT_DECODING] * num_requests
        """The step that gives the last token, known once the prompt is complete."""
        self.scheduled_at_ns = [0] * num_requests
        """When a step with some of the prompt was first formed."""
        self.num_preemptions = [0] * num_requests

        # Who waits: those preempted, the last one first, then those arrived and never admitted, in order of arrival.
        self._preempted: list[int] = []
        self._num_admitted = 0
        self._num_arrived = 0

        # Who runs: at most one request whose prompt is not complete, since it took all tokens that the step before could hold ...
        self._prefilling = _NOBODY
        self._prefilled_tokens = 0
        # ... and the decodes.
        self._num_decodes = 0
        self._context_offset = 0
        """Context tokens before a step, over all decodes, less their number times the number of the step."""
        self._block_borders = [0] * limits.block_size
        """How many decodes need another KV block in a step, by the step's number modulo the block size."""
        self._ends: list[int] = []
        """A heap of (last step * number of requests + row)."""
        self._order: list[int] = []
        """Decodes in the order in which they are served, with some who have left."""

        self._completed: list[int] = []
        """Rows in the order in which their last step was formed."""
        self._num_released = 0

        # The step formed last.
        self.step_decodes = 0
        self.step_context_tokens = 0
        """KV tokens present before the step, over its decodes."""
        self.step_chunks: list[tuple[int, int]] = []
        """(KV tokens present, new tokens) of each request in prefill."""

        self.token_spans: list[tuple[int, int, int]] = []
        """(row, first step, last step): the request got one token from each of these steps."""

    def arrive(self, now_ns: int) -> None:
        """Whoever has arrived by now waits."""
        arrived_at_ns, num_arrived = self._arrived_at_ns, self._num_arrived
        while num_arrived < len(arrived_at_ns) and arrived_at_ns[num_arrived] <= now_ns:
            num_arrived += 1
        self._num_arrived = num_arrived

    @property
    def next_arrival_ns(self) -> int | None:
        """When the next request arrives; None: all have."""
        return self._arrived_at_ns[self._num_arrived] if self._num_arrived < len(self._arrived_at_ns) else None

    @property
    def num_waiting(self) -> int:
        """Requests arrived, or preempted, that hold nothing."""
        return len(self._preempted) + self._num_arrived - self._num_admitted

    @property
    def first_waiting(self) -> int:
        """The row of the next one to be admitted, -1 for nobody."""
        if self._preempted:
            return self._preempted[-1]
        return self._num_admitted if self._num_admitted < self._num_arrived else _NOBODY

    # --- one step ---

    def form(self, now_ns: int) -> bool:
        """Form a step (`step_decodes`, `step_context_tokens`, `step_chunks`), if there is anything to do in it. Returns whether there was."""
        step = self.num_formed
        new_blocks = self._block_borders[step % self._block_size]
        if new_blocks <= self.num_free_blocks:
            self.num_free_blocks -= new_blocks
        else:
            self._take_blocks_one_by_one(step)
        # Prompts that become complete are decodes from the next step on.
        num_decodes = self.step_decodes = self._num_decodes
        self.step_context_tokens = self._context_offset + num_decodes * step
        self.step_chunks = []
        self._add_prompts(step, self._max_num_batched_tokens - num_decodes, now_ns)
        if not num_decodes and not self.step_chunks:
            return False
        self._complete_decodes(step)
        self.num_formed += 1
        return True

    def _add_prompts(self, step: int, budget: int, now_ns: int) -> None:
        """Up to `budget` prompt tokens: of the prompt that was begun, then of those who are admitted. `budget` is never below 0, and
        above it where a prompt was begun: there are no more decodes than in the step before but for those whose prompts it completed."""
        if self._prefilling != _NOBODY:
            row, present = self._prefilling, self._prefilled_tokens
            new_tokens = min(self._prompt_tokens[row] - present, budget)
            budget -= new_tokens
            self._compute(row, present, new_tokens, step)
        while budget and self.num_running < self._max_num_seqs:
            row = self.first_waiting
            if row == _NOBODY or not self._can_hold_prompt(row):
                break
            if self._preempted:
                self._preempted.pop()
            else:
                self._num_admitted += 1
                self.scheduled_at_ns[row] = now_ns
            self.num_running += 1
            self.num_free_blocks -= self._blocks_of(self._prompt_tokens[row])
            new_tokens = min(self._prompt_tokens[row], budget)
            budget -= new_tokens
            self._compute(row, 0, new_tokens, step)

    def _can_hold_prompt(self, row: int) -> bool:
        """Whether there are KV blocks for a waiting request's whole prompt. Never for one that was preempted while its last step ran: it has
        nothing to compute, and heads the queue until that step is handed out."""
        return (
            self._last_step[row] == _NOT_DECODING and self._blocks_of(self._prompt_tokens[row]) <= self.num_free_blocks
        )

    def _compute(self, row: int, present: int, new_tokens: int, step: int) -> None:
        """`step` computes so many tokens of a prompt; with the last of them it gives a token."""
        self.step_chunks.append((present, new_tokens))
        prompt_tokens, decode_tokens = self._prompt_tokens[row], self._decode_tokens[row]
        if present + new_tokens < prompt_tokens:
            self._prefilling, self._prefilled_tokens = row, present + new_tokens
            return
        self._prefilling = _NOBODY
        last_step = step + decode_tokens - 1
        self._first_step[row], self._last_step[row] = step, last_step
        self._order.append(row)
        if decode_tokens == 1:
            self._complete(row)
        else:
            heappush(self._ends, last_step * len(self._prompt_tokens) + row)
            self._count_decode(row, 1)

    def _count_decode(self, row: int, change: int) -> None:
        """One decode more (`change` 1) or less (-1)."""
        # Its context before a step is `steps_apart` and the number of the step. It needs a block where the ones it has are full of that.
        steps_apart = self._prompt_tokens[row] - self._first_step[row] - 1
        self._num_decodes += change
        self._context_offset += change * steps_apart
        self._block_borders[-steps_apart % self._block_size] += change

    def _complete_decodes(self, step: int) -> None:
        """The decodes that get their last token from `step` leave the others."""
        num_requests, ends = len(self._prompt_tokens), self._ends
        while ends and ends[0] < (step + 1) * num_requests:
            row = heappop(ends) % num_requests
            self._count_decode(row, -1)
            self._complete(row)

    def _complete(self, row: int) -> None:
        self._completed.append(row)
        self.token_spans.append((row, self._first_step[row], self._last_step[row]))

    # --- KV pressure ---

    def _take_blocks_one_by_one(self, step: int) -> None:
        """Serve the decodes in order, though there are too few blocks. Where one needs a block and there is none, whoever is last is preempted,
        itself at worst. A prompt that was begun is behind all decodes, and so is the first to go."""
        if self._prefilling != _NOBODY:
            self._preempt(self._prefilling, step)
        order = [row for row in self._order if self._last_step[row] >= self.num_handed_out]
        place, num_kept = 0, len(order)
        while place < num_kept:
            row = order[place]
            if self._last_step[row] >= step and not self._context_tokens(row, step) % self._block_size:
                while not self.num_free_blocks and place < num_kept:
                    num_kept -= 1
                    self._preempt(order[num_kept], step)
                if place < num_kept:
                    self.num_free_blocks -= 1
            place += 1
        self._order = order[:num_kept]

    def _preempt(self, row: int, step: int) -> None:
        """A request loses its KV blocks before `step` and waits before all others."""
        self.num_running -= 1
        self.num_preemptions[row] += 1
        self._preempted.append(row)
        if row == self._prefilling:
            self._prefilling = _NOBODY
            self.num_free_blocks += self._blocks_of(self._prompt_tokens[row])
            return
        self.num_free_blocks += self._blocks_of(self._context_tokens(row, step))
        if self._last_step[row] < step:  # its last step runs: there is nothing to compute again
            return
        self._ends.remove(self._last_step[row] * len(self._prompt_tokens) + row)
        heapify(self._ends)
        self._count_decode(row, -1)
        self.token_spans.append((row, self._first_step[row], step - 1))
        num_got = step - self._first_step[row]
        self._prompt_tokens[row] += num_got
        self._decode_tokens[row] -= num_got
        self._last_step[row] = _NOT_DECODING

    def _context_tokens(self, row: int, step: int) -> int:
        """KV tokens that a decode has before `step`, or had before the step after its last one."""
        return self._prompt_tokens[row] + step - self._first_step[row] - 1

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    # --- handing out ---

    def hand_out(self, num_steps: int) -> None:
        """So many more steps are handed out: whoever got the last token from one of them gives up what he holds."""
        self.num_handed_out += num_steps
        while self._num_released < len(self._completed):
            row = self._completed[self._num_released]
            if self._last_step[row] >= self.num_handed_out:
                break
            self._num_released += 1
            if row in self._preempted:  # while that step ran
                self._preempted.remove(row)
            else:
                self.num_running -= 1
                self.num_free_blocks += self._blocks_of(self._prompt_tokens[row] + self._decode_tokens[row] - 1)

    # --- many steps ---

    def num_decode_steps(self) -> int:
        """How many of the next steps hold the decodes and nothing else, and find their KV blocks, if nobody arrives. The last of them gives
        somebody the last token, or the next one finds too few blocks. 0 also where it takes `form` to see."""
        if not self._num_decodes or self._prefilling != _NOBODY or self._num_released < len(self._completed):
            return 0
        row = self.first_waiting
        if (
            row != _NOBODY
            and self._num_decodes < self._max_num_batched_tokens
            and self.num_running < self._max_num_seqs
            and self._can_hold_prompt(row)
        ):
            return 0
        return self._steps_that_fit(self._ends[0] // len(self._prompt_tokens) + 1 - self.num_formed)

    @property
    def next_decodes(self) -> Composition:
        """The next step, if it holds the decodes and nothing else."""
        return Composition(0, 0, self._num_decodes, self._context_offset + self._num_decodes * self.num_formed)

    def form_decodes(self, num_steps: int) -> None:
        """Form steps, at most `num_decode_steps`."""
        self.num_free_blocks -= self._new_blocks(num_steps)
        self.num_formed += num_steps
        self._complete_decodes(self.num_formed - 1)

    def _new_blocks(self, num_steps: int) -> int:
        """KV blocks that the next `num_steps` steps take."""
        # Once around, every decode takes one block.
        whole, rest = divmod(num_steps, self._block_size)
        new_blocks = whole * self._num_decodes
        for step in range(self.num_formed, self.num_formed + rest):
            new_blocks += self._block_borders[step % self._block_size]
        return new_blocks

    def _steps_that_fit(self, most: int) -> int:
        """How many of the next `most` steps find the KV blocks they take."""
        whole, free_blocks = divmod(self.num_free_blocks, self._num_decodes)
        num_steps = whole * self._block_size
        while num_steps < most:
            free_blocks -= self._block_borders[(self.num_formed + num_steps) % self._block_size]
            if free_blocks < 0:
                break
            num_steps += 1
        return min(num_steps, most)


class EngineLoop:
    """One simulation. Once `run` has returned, `history` holds what happened, and by request `scheduled_at_ns` and `num_preemptions`."""

    def __init__(self, requests: RequestColumns, limits: Limits, clock: EngineClock) -> None:
        """Of clocks with up to two steps under way.

        Raises:
            SimulationError: requests out of order, or one without a token to compute or to give.
        """
        if clock.queue_size > 2:
            raise ValueError(f"the clock has up to {clock.queue_size} steps under way, expected 1 or 2.")
        _check(requests)
        self.history = StepLog()
        self.clock = clock
        self._request_id = requests.request_id
        self._scheduler = Scheduler(requests, limits)

    @property
    def scheduled_at_ns(self) -> list[int]:
        """When the first step with each request was formed, in ns of the simulation, in the order of the columns."""
        return self._scheduler.scheduled_at_ns

    @property
    def num_preemptions(self) -> list[int]:
        """How often each request was preempted, in the order of the columns."""
        return self._scheduler.num_preemptions

    @property
    def steps_outside_calibration(self) -> int:
        """Steps whose composition lies outside what was calibrated."""
        return self.clock.num_outside

    def run(self) -> None:
        """Simulate until every request has its tokens.

        Raises:
            SimulationError: a request can never be scheduled.
        """
        clock, scheduler, history = self.clock, self._scheduler, self.history
        while True:
            scheduler.arrive(clock.now_ns)
            if self._run_decodes():
                continue
            # vLLM never looks whether the oldest step is done before it forms the next one (`EngineCore.step_with_batch_queue`).
            if self._form() and scheduler.num_formed - scheduler.num_handed_out < clock.queue_size:
                continue
            if scheduler.num_handed_out < scheduler.num_formed:
                history.add_handed_out((clock.hand_out(),))
                scheduler.hand_out(1)
            elif scheduler.next_arrival_ns is not None:
                clock.idle_until(scheduler.next_arrival_ns)
            else:
                break
        if scheduler.num_waiting:
            raise SimulationError(
                f"{scheduler.num_waiting} requests can never be scheduled, the first is request "
                f"{self._request_id[scheduler.first_waiting]}. "
                "Raise engine.num_kv_blocks or engine.max_num_batched_tokens."
            )
        for row, first_step, last_step in scheduler.token_spans:
            history.add_tokens(self._request_id[row], first_step, last_step)

    def _run_decodes(self) -> bool:
        """Form steps that hold the decodes and nothing else, until somebody arrives, has got the last token or needs a block that there is not.
        Returns whether any was formed."""
        scheduler = self._scheduler
        num_steps = scheduler.num_decode_steps()
        if not num_steps:
            return False
        held, next_arrival_ns = scheduler.next_decodes, scheduler.next_arrival_ns
        formed_ns, handed_out_ns = self.clock.run_decodes(
            held.num_decode_requests,
            held.num_context_tokens,
            num_steps,
            inf if next_arrival_ns is None else next_arrival_ns,
        )
        if not formed_ns:
            return False
        self.history.add_decodes(formed_ns, held, scheduler.num_running, scheduler.num_waiting)
        self.history.add_handed_out(handed_out_ns)
        scheduler.form_decodes(len(formed_ns))
        scheduler.hand_out(len(handed_out_ns))
        return True

    def _form(self) -> bool:
        """Form a step, if there is anything to do in it. Returns whether there was."""
        clock, scheduler = self.clock, self._scheduler
        if not scheduler.form(clock.now_ns):
            return False
        shape = StepShape(scheduler.step_decodes, scheduler.step_context_tokens, scheduler.step_chunks)
        held = shape.composition
        self.history.add_step(clock.now_ns, held, scheduler.num_running, scheduler.num_waiting)
        clock.launch(shape)
        return True


def _check(requests: RequestColumns) -> None:
    earlier_ns = -inf
    for request_id, arrived_at_ns, num_prefill_tokens, num_decode_tokens in zip(*requests, strict=True):
        if arrived_at_ns < earlier_ns or num_prefill_tokens < 1 or num_decode_tokens < 1:
            raise SimulationError(
                f"request {request_id} arrives at {arrived_at_ns} ns (the one before it at {earlier_ns} ns) with {num_prefill_tokens} prompt tokens and {num_decode_tokens} to give; "
                "expected requests in order of arrival with at least one of each. Sort them, or leave the request out."
            )
        earlier_ns = arrived_at_ns
