"""Running `core`: from requests to its arrays, in plain Python or compiled, and from its buffers to a `StepLog`.

Knows neither Vidur nor pandas, and no rule of the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gst_assets.errors import ProfileError, SimulationError
from gst_assets.step_costs.cost_tables import CostTables, DeliveryTables, as_lists
from gst_assets.step_costs.shapes import StepShape
from gst_assets.vidur_adapter import core
from gst_assets.vidur_adapter.core import Buffers, Limits, State
from gst_assets.vidur_adapter.step_log import StepLog

Mode = Literal["compiled", "python"]
Column = Sequence[int] | NDArray[np.int64]
_MOST_PLAIN_STEPS = 20_000
"""So many steps plain Python simulates in less time than importing numba and loading the compiled code takes."""
_MOST_PLAIN_REQUESTS = 2_000
"""More requests hardly take fewer steps than that."""
_BUFFER_STEPS = 1 << 16
_PLAIN_BUFFER_STEPS = 1 << 12
_LEAST_SPANS = 1 << 14


class _Process:
    """What a process knows of its simulations."""

    plain_steps = 0
    """Simulated in plain Python for want of enough to do."""


class RequestColumns(NamedTuple):
    """One entry per request, in order of arrival; of those that arrive together the first one waits before the
    others."""

    request_id: Column
    arrived_at_ns: Column
    num_prefill_tokens: Column
    """At least 1 each."""
    num_decode_tokens: Column
    """At least 1 each."""


class TurnColumns(NamedTuple):
    """One entry per request, where requests wait for the answers of others; `arrived_at_ns` of those who wait for none
    is then when they are due, and of the others not used."""

    previous: Column
    """The place of the request whose last token it waits for, -1 for none: an earlier one, for which no other waits."""
    think_ns: Column
    """From that token at the client to this request's arrival, at least 0."""
    handover_ns: Column
    """From a request's arrival to the earliest moment the scheduler can see it."""
    delivery: DeliveryTables


class SimulationLoop:
    """One simulation. Once `run` has returned, `history` holds what happened, and by request `scheduled_at_ns`,
    `num_preemptions` and, where requests wait for answers, `due_ns`, in the order of the columns."""

    def __init__(
        self,
        requests: RequestColumns,
        limits: Limits,
        costs: CostTables,
        *,
        ns_of: Callable[[StepShape], float] | None = None,
        prompt_keys: Sequence[Sequence[int]] | None = None,
        turns: TurnColumns | None = None,
        mode: Mode | None = None,
    ) -> None:
        """`ns_of` is what `costs` were made from; it raises for a step outside the profiled range, saying what is.
        `prompt_keys`: with a prefix cache, `prefix_keys.prompt_block_keys` of the prompts; None: without.
        `turns`: which requests wait for the answers of others; None: none does.
        `mode` None: compiled from where this process has had enough to do. Both give the same results.

        Raises:
            SimulationError: requests out of order, one without a token to compute or to give, or one that waits for a
                later one or for one that another waits for.
        """
        _check(requests)
        if turns is not None:
            _check_turns(requests, turns)
        if costs.queue_size > 2:
            raise ValueError(f"a queue of {costs.queue_size} steps, expected 1 or 2.")
        self.history = StepLog()
        self.scheduled_at_ns: list[int] = []
        self.num_preemptions: list[int] = []
        self.num_free_blocks = limits.num_kv_blocks - limits.num_null_blocks
        self.num_outside = 0
        """Steps whose composition lies outside what was calibrated."""
        self._requests, self._limits, self._costs = requests, limits, costs
        self.num_cached_tokens: list[int] = []
        """Prompt tokens of each request that were there when it was first admitted."""
        self._ns_of, self._prompt_keys = ns_of, prompt_keys
        self._turns, self._mode = turns, mode
        self.due_ns: list[int] = []
        # Where each step's tokens end up is known by request id.
        self._request_id = np.array(requests.request_id, dtype=np.int64)

    def run(self, on_share: Callable[[float], None] | None = None) -> None:
        """Simulate until every request has its tokens; `on_share` is called now and then with the share that has, from
        0 to 1.

        Raises:
            SimulationError: a request can never be scheduled.
            ProfileError: a step lies outside the profiled range of the operators.
        """
        state = _state(self._requests, self._limits, self._prompt_keys, self._turns)
        outcome = core.FULL
        if self._is_plain():
            outcome = self._run_plain(state, on_share)
        if outcome == core.FULL:
            outcome = self._run_compiled(state, on_share)
        if outcome == core.STUCK:
            self._raise_stuck(state)
        if outcome == core.OUTSIDE:
            self._raise_outside(state)
        self.scheduled_at_ns, self.num_preemptions, self.num_cached_tokens = (
            column.tolist() for column in (state.scheduled_at_ns, state.num_preemptions, state.num_cached_tokens)
        )
        self.due_ns = state.turns.due_ns.tolist()
        self.num_free_blocks = int(state.integers[core.NUM_FREE_BLOCKS])
        self.num_outside = int(state.integers[core.NUM_OUTSIDE])

    def _is_plain(self) -> bool:
        """Whether the next steps are simulated in plain Python."""
        if self._mode is not None:
            return self._mode == "python"
        return _Process.plain_steps < _MOST_PLAIN_STEPS and len(self._request_id) <= _MOST_PLAIN_REQUESTS

    def _run_plain(self, state: State, on_share: Callable[[float], None] | None) -> int:
        """Simulate in plain Python, to the end or for as long as that is worth while. `state` is then what it came to.
        Returns what `core.advance` does."""
        lists, costs = _as_lists(state), as_lists(self._costs)
        buffers = _as_lists(_buffers(self._limits, min(self._most_steps, _PLAIN_BUFFER_STEPS)))
        outcome = core.FULL
        while outcome == core.FULL and self._is_plain():
            outcome = core.advance(lists, buffers, costs, self._limits)
            if self._mode is None:
                _Process.plain_steps += lists.integers[core.NUM_FORMED_TIMES]
            self._drain(lists, buffers, on_share)
        _read_back(state, lists)
        return outcome

    def _run_compiled(self, state: State, on_share: Callable[[float], None] | None) -> int:
        """Simulate to the end. Returns what `core.advance` does."""
        from gst_assets.vidur_adapter.compiled_core import compiled_advance

        advance, buffers, outcome = compiled_advance(), _buffers(self._limits, self._most_steps), core.FULL
        while outcome == core.FULL:
            outcome = advance(state, buffers, self._costs, self._limits)
            self._drain(state, buffers, on_share)
        return outcome

    @property
    def _most_steps(self) -> int:
        """More than a small simulation takes, so that its buffers are small."""
        return 64 * len(self._request_id) + 64

    def _drain(self, state: State, buffers: Buffers, on_share: Callable[[float], None] | None) -> None:
        """Take what happened out of the buffers, and say how much is done."""
        integers = state.integers
        spans = np.array(buffers.spans[: integers[core.NUM_SPANS]], dtype=np.int64).reshape(-1, 3)
        spans[:, 0] = self._request_id[spans[:, 0]]
        self.history.extend(
            np.array(buffers.groups[: integers[core.NUM_GROUPS]], dtype=np.int64),
            np.array(buffers.formed_ns[: integers[core.NUM_FORMED_TIMES]], dtype=np.int64),
            np.array(buffers.handed_out_ns[: integers[core.NUM_HANDED_OUT_TIMES]], dtype=np.int64),
            spans,
        )
        for counter in (core.NUM_GROUPS, core.NUM_SPANS, core.NUM_FORMED_TIMES, core.NUM_HANDED_OUT_TIMES):
            integers[counter] = 0
        if on_share is not None:
            on_share(int(integers[core.NUM_COMPLETED]) / len(self._request_id) if len(self._request_id) else 1.0)

    def _raise_stuck(self, state: State) -> None:
        waiting, first = core.num_waiting(state.integers), core.first_waiting(state)
        raise SimulationError(
            f"{waiting} requests can never be scheduled, the first is request {self._requests.request_id[first]}. "
            "Raise engine.num_kv_blocks or engine.max_num_batched_tokens."
        )

    def _raise_outside(self, state: State) -> None:
        integers = state.integers
        chunks = [
            (int(state.chunk_present[place]), int(state.chunk_new[place])) for place in range(integers[core.NUM_CHUNKS])
        ]
        shape = StepShape(int(integers[core.STEP_DECODES]), int(integers[core.STEP_CONTEXT]), chunks)
        if self._ns_of is not None:
            self._ns_of(shape)
        raise ProfileError(f"a step of {shape} is outside the profiled range. Measure the profile again.")


def _state(
    requests: RequestColumns,
    limits: Limits,
    prompt_keys: Sequence[Sequence[int]] | None,
    waits: TurnColumns | None,
) -> State:
    count = len(requests.request_id)

    def column(values: Any) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    integers = np.zeros(core.NUM_INTEGERS, dtype=np.int64)
    integers[core.NUM_FREE_BLOCKS] = limits.num_kv_blocks - limits.num_null_blocks
    integers[core.PREFILLING] = integers[core.GROUP_DECODES] = core.NOBODY
    turns = _turns(requests, waits)
    integers[core.NUM_QUEUED] = 0 if waits is None else np.sum(np.asarray(waits.previous) < 0)
    longest = int(np.max(requests.num_decode_tokens, initial=1))
    nobody = np.full(count, core.NOBODY, dtype=np.int64)
    return State(
        integers=integers,
        floats=np.zeros(core.NUM_FLOATS),
        arrived_at_ns=column(requests.arrived_at_ns),
        prompt_tokens=column(requests.num_prefill_tokens),
        decode_tokens=column(requests.num_decode_tokens),
        first_step=np.zeros(count, dtype=np.int64),
        last_step=np.full(count, core.NOT_DECODING, dtype=np.int64),
        scheduled_at_ns=np.zeros(count, dtype=np.int64),
        num_preemptions=np.zeros(count, dtype=np.int64),
        preempted=np.zeros(count + 1, dtype=np.int64),
        completed=np.zeros(count, dtype=np.int64),
        order=np.zeros(count + limits.max_num_seqs + 1, dtype=np.int64),
        block_borders=np.zeros(limits.block_size, dtype=np.int64),
        ends=np.full(longest + 1, core.NOBODY, dtype=np.int64),
        next_end=nobody,
        previous_end=nobody.copy(),
        chunk_present=np.zeros(limits.max_num_seqs + 1, dtype=np.int64),
        chunk_new=np.zeros(limits.max_num_seqs + 1, dtype=np.int64),
        num_cached_tokens=np.zeros(count, dtype=np.int64),
        prefix=_prefix_cache(requests, limits, prompt_keys),
        turns=turns,
    )


def _turns(requests: RequestColumns, waits: TurnColumns | None) -> core.WaitingTurns:
    none = np.zeros(0, dtype=np.int64)
    if waits is None:
        floats = none.astype(np.float64)
        return core.WaitingTurns(False, none, none, none, none, none, none, none, floats, none, none, floats)
    count = len(requests.request_id)
    previous, think_ns, handover_ns = (np.array(one, dtype=np.int64) for one in waits[:3])
    later, rows = previous >= 0, np.arange(count)
    nobody = np.full(count, core.NOBODY, dtype=np.int64)
    following, queue = nobody.copy(), nobody.copy()
    following[previous[later]] = rows[later]
    # In order of arrival, so a heap as they stand.
    queue[: count - int(later.sum())] = rows[~later]
    return core.WaitingTurns(
        is_on=True,
        following=following,
        think_ns=think_ns,
        handover_ns=handover_ns,
        due_ns=np.where(later, core.NO_TIME, np.array(requests.arrived_at_ns, dtype=np.int64)),
        queue=queue,
        seen=nobody,
        out_decodes=np.zeros(2, dtype=np.int64),
        delivery_ns=waits.delivery.medians_ns,
        delivery_order=waits.delivery.speed_order,
        delivery_when_ns=waits.delivery.when_ns,
        delivery_ratio=waits.delivery.ratios,
    )


def _prefix_cache(
    requests: RequestColumns, limits: Limits, prompt_keys: Sequence[Sequence[int]] | None
) -> core.PrefixCache:
    def of(size: int, value: int = 0) -> NDArray[np.int64]:
        return np.full(size, value, dtype=np.int64)

    none = of(0)
    if prompt_keys is None:
        return core.PrefixCache(False, *(none for _ in core.PrefixCache._fields[1:]))
    tokens = np.array(requests.num_prefill_tokens, dtype=np.int64) + np.array(
        requests.num_decode_tokens, dtype=np.int64
    )
    slots = tokens // limits.block_size + 1
    first_slot = np.cumsum(slots) - slots
    # Only the request itself can come back to a block with tokens that it got: such blocks have keys of their own.
    num_shared = max((max(keys, default=-1) for keys in prompt_keys), default=-1) + 1
    key = np.arange(int(slots.sum())) + num_shared
    for slot, keys in zip(first_slot.tolist(), prompt_keys, strict=True):
        key[slot : slot + len(keys)] = keys
    blocks, num_keys = limits.num_kv_blocks - limits.num_null_blocks, num_shared + len(key)
    ring = np.arange(blocks + 1)
    return core.PrefixCache(
        is_on=True,
        first_slot=first_slot,
        key=key,
        held=of(len(key)),
        num_held=of(len(tokens)),
        first_block=of(num_keys, core.NOBODY),
        last_block=of(num_keys, core.NOBODY),
        next_same=of(blocks, core.NOBODY),
        previous_same=of(blocks, core.NOBODY),
        key_of=of(blocks, core.NOBODY),
        num_users=of(blocks),
        num_readers=of(blocks),
        next_free=np.roll(ring, -1),
        previous_free=np.roll(ring, 1),
        unkeyed=of(blocks),
    )


def _buffers(limits: Limits, most_steps: int) -> Buffers:
    steps = min(_BUFFER_STEPS, most_steps)
    spans = max(_LEAST_SPANS, 4 * limits.max_num_seqs)
    return Buffers(
        groups=np.zeros((steps, 7), dtype=np.int64),
        formed_ns=np.zeros(steps, dtype=np.int64),
        handed_out_ns=np.zeros(steps, dtype=np.int64),
        spans=np.zeros((spans, 3), dtype=np.int64),
    )


def _as_lists(arrays: Any) -> Any:
    return type(arrays)(
        *(
            _as_lists(value) if isinstance(value, tuple) else value.tolist() if isinstance(value, np.ndarray) else value
            for value in arrays
        )
    )


def _read_back(arrays: Any, lists: Any) -> None:
    """Write the lists into the arrays that `_as_lists` made them of."""
    for array, values in zip(arrays, lists, strict=True):
        if isinstance(array, tuple):
            _read_back(array, values)
        elif isinstance(array, np.ndarray):
            array[...] = values


def _check(requests: RequestColumns) -> None:
    arrived_at_ns = np.asarray(requests.arrived_at_ns, dtype=np.int64)
    wrong = np.diff(arrived_at_ns, prepend=arrived_at_ns[:1]) < 0
    for tokens in (requests.num_prefill_tokens, requests.num_decode_tokens):
        wrong |= np.asarray(tokens, dtype=np.int64) < 1
    if wrong.any():
        row = int(wrong.argmax())
        before = f"the one before it at {requests.arrived_at_ns[row - 1]} ns" if row else "the first one"
        raise SimulationError(
            f"request {requests.request_id[row]} arrives at {requests.arrived_at_ns[row]} ns ({before}) with"
            f" {requests.num_prefill_tokens[row]} prompt tokens and {requests.num_decode_tokens[row]} to give; expected"
            " requests in order of arrival with at least one of each. Sort them, or leave the request out."
        )


def _check_turns(requests: RequestColumns, turns: TurnColumns) -> None:
    previous, think_ns = (np.asarray(one, dtype=np.int64) for one in (turns.previous, turns.think_ns))
    rows, later = np.arange(len(previous)), previous >= 0
    _, first = np.unique(previous, return_index=True)
    wrong = later & ((previous >= rows) | ~np.isin(rows, first) | (think_ns < 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise SimulationError(
            f"request {requests.request_id[row]} waits {think_ns[row]} ns after the answer of the request at place"
            f" {previous[row]}; expected an earlier one than its own place {row}, for which no other waits, and a time"
            " of at least 0. Correct previous_request_id and think_time_ns of trace_intervals.csv."
        )
