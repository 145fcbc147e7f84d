"""Decodes advanced all together, against counting them request by request as Vidur's scheduler does."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from gst_assets.vidur_adapter.decodes import Decodes
from gst_assets.vidur_adapter.registration import EngineRequest

joining = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 70), st.integers(2, 60)), min_size=1, max_size=12)


@given(joining, st.integers(1, 32))
def test_context_blocks_and_ends_are_those_of_counting(rows: list[tuple[int, int, int]], block_size: int) -> None:
    """`rows`: the step that completes the prompt, prompt tokens, decode tokens."""
    decodes = Decodes(block_size)
    held: dict[int, int] = {}
    running: list[EngineRequest] = []
    for step in range(max(first + decode for first, _, decode in rows) + 1):
        assert decodes.count == len(running)
        assert decodes.context_tokens(step) == sum(r._num_processed_tokens - 1 for r in running)
        # As EngineScheduler: a request needs a block where its counted tokens outgrow those it holds.
        needy = [r for r in running if r._num_processed_tokens > held[r._id] * block_size]
        assert decodes.new_blocks(step) == len(needy)
        for request in needy:
            held[request._id] += 1
        ending = []
        for request in running:
            request._num_processed_tokens += 1
            assert decodes.held_blocks(request, step) == held[request._id]
            if request._num_processed_tokens == request.total_tokens:
                ending.append(request)
        if running:
            assert (decodes.next_end == step) == bool(ending)
        assert {r._id for r in decodes.take_ending(step)} == {r._id for r in ending}
        assert all(r._completed for r in ending)
        running = [r for r in running if r not in ending]
        for index, (first, prompt, decode) in enumerate(rows):
            if first == step:
                request = EngineRequest(index, 0, prompt, decode)
                request._num_processed_tokens, request.first_token_step = prompt + 1, step
                held[index] = ceil(prompt / block_size)
                decodes.add(request)
                running.append(request)
    assert not running


@given(joining, st.integers(1, 32), st.integers(0, 80), st.integers(1, 100))
def test_steps_that_fit_take_no_more_blocks_than_there_are(
    rows: list[tuple[int, int, int]], block_size: int, free: int, most: int
) -> None:
    decodes = Decodes(block_size)
    for index, (first, prompt, decode) in enumerate(rows):
        request = EngineRequest(index, 0, prompt, decode)
        request.first_token_step = first
        decodes.add(request)
    step = 31
    taken = [sum(decodes.new_blocks(step + i) for i in range(n)) for n in range(most + 1)]
    assert [decodes.new_blocks_of_run(step, n) for n in range(most + 1)] == taken
    assert decodes.steps_that_fit(step, most, free) == max(n for n in range(most + 1) if taken[n] <= free)
