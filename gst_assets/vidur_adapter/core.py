"""The simulated engine's core: requests, KV blocks, steps and their times, as functions over arrays of numbers.

What each step holds follows vLLM V1's rules as `registration` lists them; how long steps take comes in tables
(`step_costs.cost_tables`). The functions here call nothing but each other and `math`, so that numba compiles them as
they are (`compiled_core`); called as they stand they are the same simulation in plain Python, with lists in place of
arrays. So none makes an array or returns one. Under operator sums the results are those of Vidur's own event loop
(`event_loop.RecordedSimulator`) to the nanosecond. Building the arrays and reading the results belongs to
`simulation_loop`.

A request is its place among the columns, called its row; steps are numbered from 0. A step's tokens count as computed
when it is formed: a step formed before the output of the one before it is known goes on from there. What a request
holds (its KV blocks and its place among max_num_seqs) is released when the output of its last step is handed out. For
one step at a time the two moments are the same. At most two steps may be formed and not handed out.

With a prefix cache full KV blocks stay cached, by the rules of vLLM V1 (`vllm/v1/core/block_pool.py`,
`kv_cache_manager.py` and `single_type_kv_cache_manager.py`, 0.32.0, one group of full attention): each under a key that
stands for it and all before it; a request takes the longest run of blocks that are cached, except the block of its
prompt's last token, which is computed in any case; a block belongs to as many requests as use it, and is free when none
does; equal blocks are not merged; a request that needs a block gets the free one at the front of a queue, which is no
longer cached then. A request gives up its blocks from the last to the first: those cached go to the queue's end, so
that the least recently used is evicted first, those that are not full to its front.

While KV blocks last each decode gets its token whatever else a step holds. So when it ends, when it fills a block and
how much context all of them have follow from the number of the step in which it got its first token, and a step costs
the same time here however many decodes it holds. One by one they are looked at only where somebody is to be preempted.

With turns that wait for answers (`WaitingTurns`) a request is due a think time after the client has the last token of
the one before it, so it is not known before that step is handed out. That is early enough: it is due no earlier than
then, and the clock has not passed it. Requests are sent in the order in which they are due, and none is seen before one
that was due earlier.
"""

from __future__ import annotations

from math import exp, nan
from typing import Any, NamedTuple

from gst_assets.step_costs.cost_tables import CostTables

# States of `advance`.
DONE, FULL, STUCK, OUTSIDE = 0, 1, 2, 3
"""Everything simulated; the buffers are full; a request can never be scheduled; a step lies outside the profile."""

NOBODY = -1
NOT_DECODING = -1
NO_TIME = -1

# Kinds of step, as places in the tables of their costs (`step_costs.cost_tables.KINDS`).
DECODE, MIXED, MIXED_EAGER = 0, 1, 2

WARM_TIME_CONSTANT_NS = 30e6
WARM_MANY_TOKENS = 256
"""As `step_costs.warmth` says; a test holds them equal."""
SPEED_BLOCK_NS = 250_000_000
"""As `step_costs.engine_costs` says; a test holds them equal."""

# Integers of a state.
(
    NOW_NS, NUM_FREE_BLOCKS, NUM_RUNNING, NUM_FORMED, NUM_HANDED_OUT, NUM_ARRIVED, NUM_ADMITTED, NUM_PREEMPTED,
    PREFILLING, PREFILLED_TOKENS, NUM_DECODES, CONTEXT_OFFSET, NUM_ORDERED, NUM_COMPLETED, NUM_RELEASED, NUM_CHUNKS,
    STEP_DECODES, STEP_CONTEXT, DEVICE_DONE_NS, NUM_OUT, FIRST_OUT_NS, FIRST_OUT_PROCESS_NS, SECOND_OUT_NS,
    SECOND_OUT_PROCESS_NS, NUM_OUTSIDE, NUM_GROUPS, NUM_SPANS, NUM_FORMED_TIMES, NUM_HANDED_OUT_TIMES,
    GROUP_DECODES, GROUP_CONTEXT, GROUP_RUNNING, GROUP_WAITING, NUM_UNKEYED, NUM_REREAD_BLOCKS, STEP_REREAD,
    NUM_QUEUED, LAST_DELIVERED_NS, WORKERS_FREE_NS,
) = range(39)  # fmt: skip
NUM_INTEGERS = 39
WARM_SHARE, WARM_AT_NS = range(2)
NUM_FLOATS = 2


class Limits(NamedTuple):
    """Of the engine. `num_null_blocks` of its KV blocks are given to no request."""

    block_size: int
    """Tokens in a KV block."""
    num_kv_blocks: int
    num_null_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


class PrefixCache(NamedTuple):
    """KV blocks with what is cached in them. `slots` are the places of all full blocks that requests may come to hold,
    request after request. All arrays are empty without a prefix cache."""

    is_on: bool
    first_slot: Any
    """(requests,)"""
    key: Any
    """(slots,): equal where the block's tokens and all before it are."""
    held: Any
    """(slots,): the block that the request holds there."""
    num_held: Any
    """(requests,): full blocks that it holds."""
    first_block: Any
    """(keys,): the block that has been cached longest under it, -1 for none."""
    last_block: Any
    """(keys,): the one cached last."""
    next_same: Any
    """(blocks,): the next one of the same key, -1 for none."""
    previous_same: Any
    key_of: Any
    """(blocks,): -1 where nothing is cached in it."""
    num_users: Any
    """(blocks,)"""
    num_readers: Any
    """(blocks,): decodes among the users, each of which reads the block in every step."""
    next_free: Any
    """(blocks + 1,): the queue of free blocks as a ring, whose last place stands for its ends."""
    previous_free: Any
    unkeyed: Any
    """(blocks,): a stack of blocks that requests hold and that are not full: they are interchangeable."""


class WaitingTurns(NamedTuple):
    """Requests that wait for another one's answer. All arrays are empty where none does; of shape (requests,) where
    nothing else is said."""

    is_on: bool
    following: Any
    """The row that waits for this one's answer, -1 for none."""
    think_ns: Any
    """From the last token of the answer it waits for to its arrival."""
    handover_ns: Any
    """From its arrival to the earliest moment the scheduler can see it."""
    due_ns: Any
    """When it arrives; -1 while that is not known."""
    queue: Any
    """A heap of the rows that are due and not yet seen, by the time at which they are due, then by row."""
    seen: Any
    """Rows in the order in which the scheduler sees them."""
    out_decodes: Any
    """(2,): decodes of the steps that are out, by step modulo 2; -1 of one that gives nobody a token."""
    delivery_ns: Any
    """(decodes + 1,): from a step's tokens at the engine's host to the client, at the host's median speed."""
    delivery_order: Any
    """As `step_costs.cost_tables.CostTables.speed_order`; empty where the host is always at its median."""
    delivery_when_ns: Any
    delivery_ratio: Any


class State(NamedTuple):
    """What a simulation knows, as arrays that it changes; of shape (requests,) where nothing else is said."""

    integers: Any
    """int64 of shape (NUM_INTEGERS,)."""
    floats: Any
    """float64 of shape (NUM_FLOATS,)."""
    arrived_at_ns: Any
    prompt_tokens: Any
    """With the tokens that a preempted request got and computes again."""
    decode_tokens: Any
    first_step: Any
    """The step that completed the prompt, last if the request was preempted."""
    last_step: Any
    """The step that gives the last token, known once the prompt is complete."""
    scheduled_at_ns: Any
    """When a step with some of the prompt was first formed."""
    num_preemptions: Any
    preempted: Any
    """Rows, the last one first."""
    completed: Any
    """Rows in the order in which their last step was formed."""
    order: Any
    """(requests + max_num_seqs + 1,): decodes in the order in which they are served, with some who have left."""
    block_borders: Any
    """(block_size,): how many decodes need another KV block in a step, by the step's number modulo the block size."""
    ends: Any
    """(more than any decode_tokens,): a row whose last step has this number modulo the length, -1 for none."""
    next_end: Any
    """The next row with the same last step, -1 for none."""
    previous_end: Any
    chunk_present: Any
    """(max_num_seqs + 1,): KV tokens present of each request in prefill in the step formed last."""
    chunk_new: Any
    """The same of new tokens."""
    num_cached_tokens: Any
    """Prompt tokens that were there when the request was first admitted."""
    prefix: PrefixCache
    turns: WaitingTurns


class Buffers(NamedTuple):
    """What happened since they were emptied last, in int64."""

    groups: Any
    """(groups, 7): the first step's number, prefill requests, prefill tokens, decodes, context tokens, running,
    waiting. The steps up to the next group's first hold the same decodes and nothing else."""
    formed_ns: Any
    """(steps,)"""
    handed_out_ns: Any
    """(steps,)"""
    spans: Any
    """(spans, 3): row, first and last step: the request got one token from each of these steps."""


# --- the loop ---------------------------------------------------------------------------------------------------------


def advance(state: State, buffers: Buffers, costs: CostTables, limits: Limits) -> int:
    """Simulate until every request has its tokens, or the buffers are full. Returns which (`DONE`, `FULL`), or why it
    cannot go on (`STUCK`, `OUTSIDE`)."""
    integers = state.integers
    while True:
        if is_full(integers, buffers, limits):
            return FULL
        arrive(state)
        # vLLM never looks whether the oldest step is done before it forms the next one (`step_with_batch_queue`).
        if form(state, buffers, limits):
            record_step(state, buffers)
            if not launch(state, costs):
                return OUTSIDE
            if integers[NUM_FORMED] - integers[NUM_HANDED_OUT] < costs.queue_size:
                continue
        if integers[NUM_HANDED_OUT] < integers[NUM_FORMED]:
            handed_out_ns = take_oldest(integers)
            buffers.handed_out_ns[integers[NUM_HANDED_OUT_TIMES]] = handed_out_ns
            integers[NUM_HANDED_OUT_TIMES] += 1
            if state.turns.is_on:
                deliver(state, handed_out_ns)
            hand_out(state, limits)
        elif state.turns.is_on:
            if not integers[NUM_QUEUED]:
                return STUCK if num_waiting(integers) else DONE
            integers[NOW_NS] = max(integers[NOW_NS], next_seen_ns(state))
        elif integers[NUM_ARRIVED] < len(state.arrived_at_ns):
            integers[NOW_NS] = max(integers[NOW_NS], state.arrived_at_ns[integers[NUM_ARRIVED]])
        else:
            return STUCK if num_waiting(integers) else DONE


def is_full(integers: Any, buffers: Buffers, limits: Limits) -> bool:
    """Whether another step might not find room."""
    return (
        integers[NUM_GROUPS] >= len(buffers.groups)
        or integers[NUM_FORMED_TIMES] >= len(buffers.formed_ns)
        or integers[NUM_HANDED_OUT_TIMES] >= len(buffers.handed_out_ns)
        or integers[NUM_SPANS] + 2 * limits.max_num_seqs >= len(buffers.spans)
    )


def record_step(state: State, buffers: Buffers) -> None:
    """The step just formed."""
    integers = state.integers
    decodes, context, chunks = integers[STEP_DECODES], integers[STEP_CONTEXT], integers[NUM_CHUNKS]
    running, waiting = integers[NUM_RUNNING], num_waiting(integers)
    buffers.formed_ns[integers[NUM_FORMED_TIMES]] = integers[NOW_NS]
    integers[NUM_FORMED_TIMES] += 1
    goes_on = (
        not chunks
        and decodes == integers[GROUP_DECODES]
        and context == integers[GROUP_CONTEXT] + decodes
        and running == integers[GROUP_RUNNING]
        and waiting == integers[GROUP_WAITING]
    )
    integers[GROUP_CONTEXT] = context
    if goes_on:
        return
    new_tokens = 0
    present = context
    for place in range(chunks):
        new_tokens += state.chunk_new[place]
        present += state.chunk_present[place]
    group = buffers.groups[integers[NUM_GROUPS]]
    group[0] = integers[NUM_FORMED] - 1
    group[1] = chunks
    group[2] = new_tokens
    group[3] = decodes
    group[4] = present
    group[5] = running
    group[6] = waiting
    integers[NUM_GROUPS] += 1
    integers[GROUP_DECODES] = NOBODY if chunks else decodes
    integers[GROUP_RUNNING] = running
    integers[GROUP_WAITING] = waiting


# --- who waits --------------------------------------------------------------------------------------------------------


def arrive(state: State) -> None:
    """Whoever has arrived by now waits."""
    integers, arrived_at_ns = state.integers, state.arrived_at_ns
    if state.turns.is_on:
        see_those_due(state)
        return
    now_ns, count = integers[NOW_NS], integers[NUM_ARRIVED]
    while count < len(arrived_at_ns) and arrived_at_ns[count] <= now_ns:
        count += 1
    integers[NUM_ARRIVED] = count


def num_waiting(integers: Any) -> int:
    """Requests arrived, or preempted, that hold nothing."""
    return integers[NUM_PREEMPTED] + integers[NUM_ARRIVED] - integers[NUM_ADMITTED]


def first_waiting(state: State) -> int:
    """The row of the next one to be admitted: those preempted, the last one first, then those arrived and never
    admitted."""
    integers = state.integers
    if integers[NUM_PREEMPTED]:
        return state.preempted[integers[NUM_PREEMPTED] - 1]
    if integers[NUM_ADMITTED] < integers[NUM_ARRIVED]:
        return state.turns.seen[integers[NUM_ADMITTED]] if state.turns.is_on else integers[NUM_ADMITTED]
    return NOBODY


# --- turns that wait for answers --------------------------------------------------------------------------------------


def see_those_due(state: State) -> None:
    """The scheduler sees whom it can see by now, and nobody before those who were due earlier."""
    integers = state.integers
    while integers[NUM_QUEUED] and next_seen_ns(state) <= integers[NOW_NS]:
        state.turns.seen[integers[NUM_ARRIVED]] = leave_queue(state)
        integers[NUM_ARRIVED] += 1


def next_seen_ns(state: State) -> int:
    """When the scheduler can see the first one of the queue."""
    turns = state.turns
    row = turns.queue[0]
    return turns.due_ns[row] + turns.handover_ns[row]


def deliver(state: State, handed_out_ns: int) -> None:
    """The client gets what the next step to be handed out gave. As `request_times.delivered_ns`."""
    integers, turns = state.integers, state.turns
    decodes = turns.out_decodes[integers[NUM_HANDED_OUT] % 2]
    delivered_ns = handed_out_ns
    if decodes != NOBODY:
        ratio = ratio_at(turns.delivery_order, turns.delivery_when_ns, turns.delivery_ratio, handed_out_ns)
        delivered_ns += round(turns.delivery_ns[decodes] * ratio)
    integers[LAST_DELIVERED_NS] = max(integers[LAST_DELIVERED_NS], delivered_ns)


def let_follow(state: State, row: int) -> None:
    """A request has its last token, delivered with the step handed out last: who waits for it is due a think time
    later."""
    turns = state.turns
    following = turns.following[row]
    if following != NOBODY:
        turns.due_ns[following] = state.integers[LAST_DELIVERED_NS] + turns.think_ns[following]
        join_queue(state, following)


def is_due_before(turns: WaitingTurns, one: int, other: int) -> bool:
    """Of two rows."""
    first, second = turns.due_ns[one], turns.due_ns[other]
    return first < second or (first == second and one < other)


def join_queue(state: State, row: int) -> None:
    """One more row in the heap."""
    integers, turns = state.integers, state.turns
    place = integers[NUM_QUEUED]
    integers[NUM_QUEUED] += 1
    while place:
        above = (place - 1) // 2
        if not is_due_before(turns, row, turns.queue[above]):
            break
        turns.queue[place] = turns.queue[above]
        place = above
    turns.queue[place] = row


def leave_queue(state: State) -> int:
    """Take the row that is due first out of the heap."""
    integers, turns = state.integers, state.turns
    first = turns.queue[0]
    integers[NUM_QUEUED] -= 1
    count = integers[NUM_QUEUED]
    row, place = turns.queue[count], 0
    while 2 * place + 1 < count:
        below = 2 * place + 1
        if below + 1 < count and is_due_before(turns, turns.queue[below + 1], turns.queue[below]):
            below += 1
        if not is_due_before(turns, turns.queue[below], row):
            break
        turns.queue[place] = turns.queue[below]
        place = below
    turns.queue[place] = row
    return first


# --- one step ---------------------------------------------------------------------------------------------------------


def form(state: State, buffers: Buffers, limits: Limits) -> bool:
    """Form a step, if there is anything to do in it. Returns whether there was."""
    integers = state.integers
    step = integers[NUM_FORMED]
    new_blocks = state.block_borders[step % limits.block_size]
    if new_blocks <= integers[NUM_FREE_BLOCKS]:
        take_blocks(state, new_blocks)
    else:
        take_blocks_one_by_one(state, buffers, limits, step)
    # Prompts that become complete are decodes from the next step on.
    decodes = integers[NUM_DECODES]
    integers[STEP_DECODES] = decodes
    integers[STEP_CONTEXT] = integers[CONTEXT_OFFSET] + decodes * step
    integers[STEP_REREAD] = integers[NUM_REREAD_BLOCKS] * limits.block_size
    integers[NUM_CHUNKS] = 0
    add_prompts(state, buffers, limits, step, limits.max_num_batched_tokens - decodes)
    if not decodes and not integers[NUM_CHUNKS]:
        return False
    complete_decodes(state, buffers, limits, step)
    if state.turns.is_on:
        # The last prompt of the step may go on after it, and gives no token then.
        unfinished = 1 if integers[PREFILLING] != NOBODY else 0
        state.turns.out_decodes[step % 2] = decodes if decodes or integers[NUM_CHUNKS] > unfinished else NOBODY
    integers[NUM_FORMED] += 1
    return True


def add_prompts(state: State, buffers: Buffers, limits: Limits, step: int, budget: int) -> None:
    """Up to `budget` prompt tokens: of the prompt that was begun, then of those who are admitted. `budget` is never
    below 0, and above it where a prompt was begun: there are no more decodes than in the step before but for those
    whose prompts it completed."""
    integers = state.integers
    if integers[PREFILLING] != NOBODY:
        row, present = integers[PREFILLING], integers[PREFILLED_TOKENS]
        new_tokens = min(state.prompt_tokens[row] - present, budget)
        budget -= new_tokens
        compute(state, buffers, limits, row, present, new_tokens, step)
    while budget and integers[NUM_RUNNING] < limits.max_num_seqs:
        row = first_waiting(state)
        if row == NOBODY:
            break
        blocks = blocks_needed(state, limits, row)
        # One that was preempted while its last step ran has nothing to compute, and heads the queue until that step is
        # handed out.
        if state.last_step[row] != NOT_DECODING or blocks > integers[NUM_FREE_BLOCKS]:
            break
        if integers[NUM_PREEMPTED]:
            integers[NUM_PREEMPTED] -= 1
        else:
            integers[NUM_ADMITTED] += 1
            state.scheduled_at_ns[row] = integers[NOW_NS]
        integers[NUM_RUNNING] += 1
        present = take_blocks_of_prompt(state, limits, row)
        new_tokens = min(state.prompt_tokens[row] - present, budget)
        budget -= new_tokens
        compute(state, buffers, limits, row, present, new_tokens, step)


def compute(state: State, buffers: Buffers, limits: Limits, row: int, present: int, new_tokens: int, step: int) -> None:
    """`step` computes so many tokens of a prompt; with the last of them it gives a token."""
    integers = state.integers
    state.chunk_present[integers[NUM_CHUNKS]] = present
    state.chunk_new[integers[NUM_CHUNKS]] = new_tokens
    integers[NUM_CHUNKS] += 1
    if state.prefix.is_on:
        keep_full_blocks(state, limits, row, present + new_tokens)
    if present + new_tokens < state.prompt_tokens[row]:
        integers[PREFILLING] = row
        integers[PREFILLED_TOKENS] = present + new_tokens
        return
    integers[PREFILLING] = NOBODY
    state.first_step[row] = step
    state.last_step[row] = step + state.decode_tokens[row] - 1
    if integers[NUM_ORDERED] == len(state.order):
        forget_those_who_left(state)
    state.order[integers[NUM_ORDERED]] = row
    integers[NUM_ORDERED] += 1
    if state.decode_tokens[row] == 1:
        complete(state, buffers, row)
    else:
        place = state.last_step[row] % len(state.ends)
        following = state.ends[place]
        state.ends[place] = row
        state.next_end[row] = following
        state.previous_end[row] = NOBODY
        if following != NOBODY:
            state.previous_end[following] = row
        count_decode(state, limits, row, 1)


def count_decode(state: State, limits: Limits, row: int, change: int) -> None:
    """One decode more (`change` 1) or less (-1)."""
    integers = state.integers
    # Its context before a step is `apart` and the number of the step. It needs a block where its own are full of that.
    apart = state.prompt_tokens[row] - state.first_step[row] - 1
    integers[NUM_DECODES] += change
    integers[CONTEXT_OFFSET] += change * apart
    state.block_borders[-apart % limits.block_size] += change
    if state.prefix.is_on:
        count_readers(state, row, change)


def complete_decodes(state: State, buffers: Buffers, limits: Limits, step: int) -> None:
    """The decodes that get their last token from `step` leave the others."""
    place = step % len(state.ends)
    row = state.ends[place]
    state.ends[place] = NOBODY
    while row != NOBODY:
        following = state.next_end[row]
        count_decode(state, limits, row, -1)
        complete(state, buffers, row)
        row = following


def complete(state: State, buffers: Buffers, row: int) -> None:
    """A request's last step is formed."""
    integers = state.integers
    state.completed[integers[NUM_COMPLETED]] = row
    integers[NUM_COMPLETED] += 1
    record_span(state, buffers, row, state.last_step[row])


def record_span(state: State, buffers: Buffers, row: int, last_step: int) -> None:
    """A request got a token from each step since its prompt was complete."""
    integers = state.integers
    span = buffers.spans[integers[NUM_SPANS]]
    span[0] = row
    span[1] = state.first_step[row]
    span[2] = last_step
    integers[NUM_SPANS] += 1


def blocks_of(num_tokens: int, block_size: int) -> int:
    """KV blocks that so many tokens fill or begin."""
    return -(-num_tokens // block_size)


# --- KV blocks --------------------------------------------------------------------------------------------------------


def blocks_needed(state: State, limits: Limits, row: int) -> int:
    """How many free blocks a waiting request takes that is admitted now: for its whole prompt."""
    num_tokens = state.prompt_tokens[row]
    needed = blocks_of(num_tokens, limits.block_size)
    if not state.prefix.is_on:
        return needed
    prefix = state.prefix
    for place in range(num_found(state, limits, row, num_tokens)):
        if prefix.num_users[prefix.first_block[prefix.key[prefix.first_slot[row] + place]]] > 0:
            needed -= 1
    return needed


def take_blocks(state: State, num_blocks: int) -> None:
    """So many blocks from the front of the queue go to some request."""
    integers = state.integers
    integers[NUM_FREE_BLOCKS] -= num_blocks
    if not state.prefix.is_on:
        return
    prefix = state.prefix
    for _ in range(num_blocks):
        block = prefix.next_free[len(prefix.key_of)]
        leave_free(prefix, block)
        if prefix.key_of[block] != NOBODY:
            drop_key(prefix, block)
        prefix.unkeyed[integers[NUM_UNKEYED]] = block
        integers[NUM_UNKEYED] += 1


def take_blocks_of_prompt(state: State, limits: Limits, row: int) -> int:
    """Blocks for the whole prompt of a request that is admitted. Returns how many of its tokens are there already."""
    num_tokens = state.prompt_tokens[row]
    needed = blocks_of(num_tokens, limits.block_size)
    if not state.prefix.is_on:
        state.integers[NUM_FREE_BLOCKS] -= needed
        return 0
    prefix, slot = state.prefix, state.prefix.first_slot[row]
    found = num_found(state, limits, row, num_tokens)
    for place in range(found):
        block = prefix.first_block[prefix.key[slot + place]]
        if prefix.num_users[block] == 0:
            leave_free(prefix, block)
            state.integers[NUM_FREE_BLOCKS] -= 1
        prefix.num_users[block] += 1
        prefix.held[slot + place] = block
    prefix.num_held[row] = found
    take_blocks(state, needed - found)
    if state.num_preemptions[row] == 0:
        state.num_cached_tokens[row] = found * limits.block_size
    return found * limits.block_size


def give_up_blocks(state: State, limits: Limits, row: int, held_tokens: int, computed_tokens: int) -> None:
    """A request gives up the blocks that it holds for so many tokens, of which so many were computed."""
    integers = state.integers
    blocks = blocks_of(held_tokens, limits.block_size)
    if not state.prefix.is_on:
        integers[NUM_FREE_BLOCKS] += blocks
        return
    keep_full_blocks(state, limits, row, computed_tokens)
    prefix, slot = state.prefix, state.prefix.first_slot[row]
    ends = len(prefix.key_of)
    for _ in range(blocks - prefix.num_held[row]):
        integers[NUM_UNKEYED] -= 1
        join_free(prefix, prefix.unkeyed[integers[NUM_UNKEYED]], ends)
        integers[NUM_FREE_BLOCKS] += 1
    for place in range(prefix.num_held[row] - 1, -1, -1):
        block = prefix.held[slot + place]
        prefix.num_users[block] -= 1
        if prefix.num_users[block] == 0:
            join_free(prefix, block, prefix.previous_free[ends])
            integers[NUM_FREE_BLOCKS] += 1
    prefix.num_held[row] = 0


def num_found(state: State, limits: Limits, row: int, num_tokens: int) -> int:
    """How many full blocks of a request's first tokens are cached. The block of the last token is never looked for."""
    prefix, slot = state.prefix, state.prefix.first_slot[row]
    found = 0
    while found < (num_tokens - 1) // limits.block_size and prefix.first_block[prefix.key[slot + found]] != NOBODY:
        found += 1
    return found


def count_readers(state: State, row: int, change: int) -> None:
    """One decode more (`change` 1) or less (-1) reads the full blocks of its prompt in each step. What more than one
    decode reads is read from memory once and counts as read again for the others."""
    integers, prefix = state.integers, state.prefix
    slot = prefix.first_slot[row]
    for place in range(prefix.num_held[row]):
        block = prefix.held[slot + place]
        others = prefix.num_readers[block] - (1 if change < 0 else 0)
        if others > 0:
            integers[NUM_REREAD_BLOCKS] += change
        prefix.num_readers[block] += change


def keep_full_blocks(state: State, limits: Limits, row: int, num_tokens: int) -> None:
    """The first `num_tokens` of a request are computed by the step that is formed: others can use its full blocks."""
    integers, prefix = state.integers, state.prefix
    slot = prefix.first_slot[row]
    for place in range(prefix.num_held[row], num_tokens // limits.block_size):
        integers[NUM_UNKEYED] -= 1
        block, key = prefix.unkeyed[integers[NUM_UNKEYED]], prefix.key[slot + place]
        before = prefix.last_block[key]
        prefix.key_of[block] = key
        prefix.previous_same[block] = before
        prefix.next_same[block] = NOBODY
        if before == NOBODY:
            prefix.first_block[key] = block
        else:
            prefix.next_same[before] = block
        prefix.last_block[key] = block
        prefix.num_users[block] = 1
        prefix.held[slot + place] = block
        prefix.num_held[row] = place + 1


def drop_key(prefix: PrefixCache, block: int) -> None:
    """Nothing is cached in a block any longer."""
    key, before, after = prefix.key_of[block], prefix.previous_same[block], prefix.next_same[block]
    if before == NOBODY:
        prefix.first_block[key] = after
    else:
        prefix.next_same[before] = after
    if after == NOBODY:
        prefix.last_block[key] = before
    else:
        prefix.previous_same[after] = before
    prefix.key_of[block] = NOBODY


def leave_free(prefix: PrefixCache, block: int) -> None:
    """A block leaves the queue of free ones."""
    before, after = prefix.previous_free[block], prefix.next_free[block]
    prefix.next_free[before] = after
    prefix.previous_free[after] = before


def join_free(prefix: PrefixCache, block: int, before: int) -> None:
    """A block joins the queue of free ones behind another, or with the ring's last place at its front."""
    after = prefix.next_free[before]
    prefix.next_free[before] = block
    prefix.previous_free[after] = block
    prefix.previous_free[block] = before
    prefix.next_free[block] = after


# --- KV pressure ------------------------------------------------------------------------------------------------------


def take_blocks_one_by_one(state: State, buffers: Buffers, limits: Limits, step: int) -> None:
    """Serve the decodes in order, though there are too few blocks. Where one needs a block and there is none, whoever
    is last is preempted, itself at worst. A prompt that was begun is behind all decodes, and so is the first to go."""
    integers = state.integers
    if integers[PREFILLING] != NOBODY:
        preempt(state, buffers, limits, integers[PREFILLING], step)
    forget_those_who_left(state)
    place, num_kept = 0, integers[NUM_ORDERED]
    while place < num_kept:
        row = state.order[place]
        if state.last_step[row] >= step and context_tokens(state, row, step) % limits.block_size == 0:
            while integers[NUM_FREE_BLOCKS] == 0 and place < num_kept:
                num_kept -= 1
                preempt(state, buffers, limits, state.order[num_kept], step)
            if place < num_kept:
                take_blocks(state, 1)
        place += 1
    integers[NUM_ORDERED] = num_kept


def forget_those_who_left(state: State) -> None:
    """Of the decodes in the order in which they are served only those stay whose last step is not handed out."""
    integers, order = state.integers, state.order
    kept = 0
    for place in range(integers[NUM_ORDERED]):
        row = order[place]
        if state.last_step[row] >= integers[NUM_HANDED_OUT]:
            order[kept] = row
            kept += 1
    integers[NUM_ORDERED] = kept


def preempt(state: State, buffers: Buffers, limits: Limits, row: int, step: int) -> None:
    """A request loses its KV blocks before `step` and waits before all others."""
    integers = state.integers
    integers[NUM_RUNNING] -= 1
    state.num_preemptions[row] += 1
    state.preempted[integers[NUM_PREEMPTED]] = row
    integers[NUM_PREEMPTED] += 1
    if row == integers[PREFILLING]:
        integers[PREFILLING] = NOBODY
        give_up_blocks(state, limits, row, state.prompt_tokens[row], integers[PREFILLED_TOKENS])
        return
    computed = context_tokens(state, row, step)
    runs_last_step = state.last_step[row] < step
    if not runs_last_step:
        count_decode(state, limits, row, -1)
    give_up_blocks(state, limits, row, computed, computed)
    if runs_last_step:  # there is nothing to compute again
        return
    following, before = state.next_end[row], state.previous_end[row]
    if before == NOBODY:
        state.ends[state.last_step[row] % len(state.ends)] = following
    else:
        state.next_end[before] = following
    if following != NOBODY:
        state.previous_end[following] = before
    record_span(state, buffers, row, step - 1)
    num_got = step - state.first_step[row]
    state.prompt_tokens[row] += num_got
    state.decode_tokens[row] -= num_got
    state.last_step[row] = NOT_DECODING


def context_tokens(state: State, row: int, step: int) -> int:
    """KV tokens that a decode has before `step`, or had before the step after its last one."""
    return state.prompt_tokens[row] + step - state.first_step[row] - 1


# --- handing out ------------------------------------------------------------------------------------------------------


def hand_out(state: State, limits: Limits) -> None:
    """One more step is handed out: whoever got the last token from it gives up what he holds."""
    integers = state.integers
    integers[NUM_HANDED_OUT] += 1
    while integers[NUM_RELEASED] < integers[NUM_COMPLETED]:
        row = state.completed[integers[NUM_RELEASED]]
        if state.last_step[row] >= integers[NUM_HANDED_OUT]:
            break
        integers[NUM_RELEASED] += 1
        if state.turns.is_on:
            let_follow(state, row)
        if not left_the_preempted(state, row):
            integers[NUM_RUNNING] -= 1
            computed = state.prompt_tokens[row] + state.decode_tokens[row] - 1
            give_up_blocks(state, limits, row, computed, computed)


def left_the_preempted(state: State, row: int) -> bool:
    """Take a request that was preempted while its last step ran out of those who wait. Returns whether it was there."""
    integers, preempted = state.integers, state.preempted
    count = integers[NUM_PREEMPTED]
    for place in range(count):
        if preempted[place] == row:
            for later in range(place + 1, count):
                preempted[later - 1] = preempted[later]
            integers[NUM_PREEMPTED] -= 1
            return True
    return False


# --- the clock: one step at a time, or a host and a device with a queue between -----------------------------------


def launch(state: State, costs: CostTables) -> bool:
    """The step just formed begins now. Returns whether its cost is known."""
    if costs.is_operator_sum:
        taken_ns = operator_sum_ns(state, costs)
        if taken_ns < 0:
            return False
        integers = state.integers
        put_out(integers, integers[NOW_NS] + taken_ns, 0)
    else:
        launch_on_device(state, costs)
    return True


def put_out(integers: Any, there_ns: int, process_ns: int) -> None:
    """A step's tokens will be at the host at a time, and take it so long then."""
    if integers[NUM_OUT] == 0:
        integers[FIRST_OUT_NS] = there_ns
        integers[FIRST_OUT_PROCESS_NS] = process_ns
    else:
        integers[SECOND_OUT_NS] = there_ns
        integers[SECOND_OUT_PROCESS_NS] = process_ns
    integers[NUM_OUT] += 1


def take_oldest(integers: Any) -> int:
    """Wait for the oldest step that is out, and go on when its tokens are processed. Returns when they were there."""
    handed_out_ns = max(integers[NOW_NS], integers[FIRST_OUT_NS])
    integers[NOW_NS] = handed_out_ns + integers[FIRST_OUT_PROCESS_NS]
    integers[FIRST_OUT_NS] = integers[SECOND_OUT_NS]
    integers[FIRST_OUT_PROCESS_NS] = integers[SECOND_OUT_PROCESS_NS]
    integers[NUM_OUT] -= 1
    return handed_out_ns


def launch_on_device(state: State, costs: CostTables) -> None:
    """A host and a device with a queue between: the host prepares and launches, the device is reached once it has ended
    the step before, and ends when both it and the launch are done. Workers that are processes of their own prepare and
    launch while the host goes on forming."""
    integers, floats = state.integers, state.floats
    decodes, chunks, reread = integers[STEP_DECODES], integers[NUM_CHUNKS], integers[STEP_REREAD]
    context = integers[STEP_CONTEXT] - reread
    new_tokens = 0
    pairs = 0
    for place in range(chunks):
        present, new = state.chunk_present[place], state.chunk_new[place]
        new_tokens += new
        pairs += new * present + new * (new + 1) // 2
    tokens = new_tokens + decodes
    kind = DECODE
    if new_tokens:
        kind = MIXED_EAGER if costs.largest_graph and tokens > costs.largest_graph else MIXED
    now_ns, done_ns = integers[NOW_NS], integers[DEVICE_DONE_NS]
    # The step before may end after this one is formed, so this is the warmth that it will leave.
    warmth = warmth_at(floats, max(now_ns, done_ns))

    prepare_ns = host_part_ns(costs.prepare_ns, costs.prepare_slopes_ns, kind, decodes, chunks, new_tokens)
    launch_ns = host_part_ns(costs.launch_ns, costs.launch_slopes_ns, kind, decodes, chunks, new_tokens)
    # With a queue of one nothing is ever out: there it is the first step of new requests that comes after an idle time,
    # as calibration counts.
    if integers[NUM_OUT] == 0 and decodes == 0:
        prepare_ns += costs.after_idle_ns[kind][0]
        launch_ns += costs.after_idle_ns[kind][1]
    padded = costs.padded_tokens[tokens] if tokens < len(costs.padded_tokens) else tokens
    base, slopes = costs.device_ns[kind], costs.device_slopes_ns[kind]
    place = min(padded, len(base) - 1)
    device_ns = base[place]
    device_ns += slopes[0][place] * pairs
    device_ns += slopes[1][place] * context
    device_ns += slopes[2][place] * decodes
    device_ns += slopes[3][place] * chunks
    device_ns += slopes[4][place] * reread
    device_ns += slopes[5][place] * ((new_tokens + decodes) * warmth)
    device_ns += slopes[6][place] * warmth
    requests = chunks + decodes
    copy_out_ns = costs.copy_out_ns[kind][min(requests, len(costs.copy_out_ns[kind]) - 1)]
    process_ns = costs.process_ns[kind][min(requests, len(costs.process_ns[kind]) - 1)]

    ratio = speed_ratio(costs, new_tokens > 0, now_ns)
    begun_by_host_ns = max(now_ns, integers[WORKERS_FREE_NS]) if costs.has_own_workers else now_ns
    forward_ns = begun_by_host_ns + prepare_ns * ratio
    launched_ns = forward_ns + launch_ns * ratio
    if costs.device_is_host:
        device_ns *= ratio
    begun_ns = max(forward_ns, float(done_ns)) + costs.lead_in_ns[kind]
    ended_ns = round(max(begun_ns + device_ns, launched_ns + costs.drain_ns[kind]))
    integers[DEVICE_DONE_NS] = ended_ns
    run_warm(floats, begun_ns, float(ended_ns), tokens)
    if costs.has_own_workers:
        integers[WORKERS_FREE_NS] = ended_ns if costs.device_is_host else round(launched_ns)
        form_ns = costs.form_ns[kind][min(requests, len(costs.form_ns[kind]) - 1)]
        integers[NOW_NS] = round(now_ns + form_ns * ratio)
    else:
        integers[NOW_NS] = round(launched_ns)
    put_out(integers, round(ended_ns + copy_out_ns), round(process_ns * ratio))
    if decodes > costs.largest_batch:
        integers[NUM_OUTSIDE] += 1


def host_part_ns(bases: Any, slopes: Any, kind: int, decodes: int, chunks: int, new_tokens: int) -> float:
    """Of preparing or launching a step."""
    base = bases[kind]
    found = base[min(decodes, len(base) - 1)] if kind == DECODE else base[0]
    slope = slopes[kind]
    found += slope[0] * decodes
    found += slope[1] * chunks
    found += slope[2] * new_tokens
    return found


def warmth_at(floats: Any, time_ns: float) -> float:
    """See `step_costs.warmth.Warmth.at`."""
    return floats[WARM_SHARE] * exp(-(time_ns - floats[WARM_AT_NS]) / WARM_TIME_CONSTANT_NS)


def run_warm(floats: Any, begun_ns: float, ended_ns: float, tokens: int) -> None:
    """See `step_costs.warmth.Warmth.ran`."""
    kept = exp(-(ended_ns - begun_ns) / WARM_TIME_CONSTANT_NS)
    load = 1.0 if tokens > WARM_MANY_TOKENS else 0.0
    floats[WARM_SHARE] = warmth_at(floats, begun_ns) * kept + load * (1.0 - kept)
    floats[WARM_AT_NS] = ended_ns


def speed_ratio(costs: CostTables, has_prefill: bool, at_ns: int) -> float:
    """Of the host's time to its median, see `step_costs.engine_costs.HostSpeedTrace.ratio`."""
    when = costs.prefill_when_ns if has_prefill else costs.decode_when_ns
    return ratio_at(costs.speed_order, when, costs.prefill_ratio if has_prefill else costs.decode_ratio, at_ns)


def ratio_at(order: Any, when: Any, ratios: Any, at_ns: int) -> float:
    """Of one part of the host's work, in a trace whose blocks are met in this order."""
    if len(order) == 0:
        return 1.0
    block, within = at_ns // SPEED_BLOCK_NS, at_ns % SPEED_BLOCK_NS
    place = lower_bound(when, order[block % len(order)] * SPEED_BLOCK_NS + within)
    return ratios[place % len(ratios)]


# --- operator sums ----------------------------------------------------------------------------------------------------


def operator_sum_ns(state: State, costs: CostTables) -> int:
    """As `step_costs.operators.OperatorTimes.step_ns`; -1 outside the profile."""
    integers = state.integers
    decodes, chunks = integers[STEP_DECODES], integers[NUM_CHUNKS]
    tokens = decodes
    for place in range(chunks):
        tokens += state.chunk_new[place]
    tokens_ms = costs.tokens_ms[tokens]
    decode_ms = 0.0
    if decodes:
        decode_ms = surface_at(
            costs.decode_batches, costs.decode_contexts, costs.decode_ms, float(decodes),
            integers[STEP_CONTEXT] / decodes,
        )  # fmt: skip
    prefill_ms = 0.0
    for place in range(chunks):
        prefill_ms += surface_at(
            costs.prefill_contexts, costs.prefill_chunks, costs.prefill_ms, float(state.chunk_present[place]),
            float(state.chunk_new[place]),
        )  # fmt: skip
    taken_ns = (tokens_ms + decode_ms + prefill_ms) * costs.scale
    if taken_ns != taken_ns:
        return NO_TIME
    return round(taken_ns)


def surface_at(firsts: Any, seconds: Any, values: Any, first: float, second: float) -> float:
    """As `step_costs.interpolation.Surface.at`; NaN outside the grid."""
    last_first, last_second = len(firsts) - 1, len(seconds) - 1
    if not (firsts[0] <= first <= firsts[last_first] and seconds[0] <= second <= seconds[last_second]):
        return nan
    below = min(upper_bound(firsts, first) - 1, max(last_first - 1, 0))
    above = min(below + 1, last_first)
    width = firsts[above] - firsts[below]
    across = (first - firsts[below]) / width if width > 0 else 0.0
    left = min(upper_bound(seconds, second) - 1, max(last_second - 1, 0))
    right = min(left + 1, last_second)
    apart = seconds[right] - seconds[left]
    along = (second - seconds[left]) / (apart if apart != 0 else 1.0)
    low_row, high_row = values[below], values[above]
    lower = low_row[left] + (low_row[right] - low_row[left]) * along
    upper = high_row[left] + (high_row[right] - high_row[left]) * along
    return lower + (upper - lower) * across


def lower_bound(values: Any, at: float) -> int:
    """The first place whose value is not below `at`, in ascending values."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < at:
            low = middle + 1
        else:
            high = middle
    return low


def upper_bound(values: Any, at: float) -> int:
    """The first place whose value is above `at`, in ascending values."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if at < values[middle]:
            high = middle
        else:
            low = middle + 1
    return low
