"""The core's prefix cache: hand-worked cases, any history of requests next to vLLM's own block pool, and the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.step_costs.engine_costs import EngineCosts
from gst_assets.step_costs.shapes import DECODE, MIXED, CapturedGraphs
from gst_assets.step_costs.terms import REREAD
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter import core, simulation_loop
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.prefix_keys import prompt_block_keys
from gst_assets.vidur_adapter.simulation_loop import RequestColumns, SimulationLoop

BLOCK = 4
BUNDLE = support.bundle(support.scenario())


def tokens(*blocks: int, rest: int = 0) -> list[int]:
    """A prompt of whole blocks, each of one token repeated, and `rest` tokens beyond."""
    return [block for block in blocks for _ in range(BLOCK)] + [99] * rest


class Cache:
    """The core's functions on a state of their own. Requests get up to 100 tokens."""

    def __init__(self, num_blocks: int, prompts: list[list[int]]) -> None:
        self.limits = Limits(BLOCK, num_blocks, 0, 8, 512)
        lengths = [len(prompt) for prompt in prompts]
        columns = RequestColumns(range(len(prompts)), [0] * len(prompts), lengths, [100] * len(prompts))
        self.state = simulation_loop._state(columns, self.limits, prompt_block_keys(prompts, BLOCK), None)

    @property
    def num_free_blocks(self) -> int:
        return int(self.state.integers[core.NUM_FREE_BLOCKS])

    def blocks_needed(self, row: int, num_tokens: int) -> int:
        self.state.prompt_tokens[row] = num_tokens
        return int(core.blocks_needed(self.state, self.limits, row))

    def admit(self, row: int, num_tokens: int) -> tuple[int, int]:
        """Tokens that are there, and blocks that are no longer free."""
        self.state.prompt_tokens[row], before = num_tokens, self.num_free_blocks
        found = core.take_blocks_of_prompt(self.state, self.limits, row)
        return int(found), before - self.num_free_blocks

    def keep(self, row: int, num_tokens: int) -> None:
        core.keep_full_blocks(self.state, self.limits, row, num_tokens)

    def take(self, num_blocks: int) -> None:
        core.take_blocks(self.state, num_blocks)

    def release(self, row: int, num_tokens: int, num_blocks: int) -> int:
        """Blocks that are free then and were not."""
        before = self.num_free_blocks
        core.give_up_blocks(self.state, self.limits, row, num_blocks * BLOCK, num_tokens)
        return self.num_free_blocks - before


def cache_of(num_blocks: int, *prompts: list[int]) -> Cache:
    return Cache(num_blocks, list(prompts))


# --- hand-worked ------------------------------------------------------------------------------------------------------


def test_a_block_has_the_key_of_all_that_stands_before_it() -> None:
    one, two, three = prompt_block_keys([tokens(1, 2, 3), tokens(1, 2, rest=3), tokens(2, 2, 3)], BLOCK)
    assert one[:2] == two and len(two) == 2
    assert not set(one) & set(three)  # equal blocks behind another beginning are other blocks


def test_full_blocks_are_found_and_the_last_one_of_a_whole_hit_is_computed_again() -> None:
    cache = cache_of(10, tokens(1, 2, 3), tokens(1, 2, 3), tokens(1, 2, 3, rest=1), tokens(1, 5))
    assert cache.admit(0, 12) == (0, 3)
    cache.keep(0, 7)  # the first block is full, the second not yet
    assert cache.blocks_needed(3, 8) == 1
    cache.keep(0, 12)
    assert cache.admit(1, 12) == (8, 1) and cache.admit(2, 13) == (12, 1) and cache.admit(3, 8) == (4, 1)
    assert cache.num_free_blocks == 10 - 6


def test_blocks_are_free_when_nobody_uses_them_and_count_as_needed_again() -> None:
    cache = cache_of(4, tokens(1, 2), tokens(1, 2, 3))
    cache.admit(0, 8)
    assert cache.release(0, 8, 2) == 2 and cache.num_free_blocks == 4
    assert cache.blocks_needed(1, 12) == 3  # two are there, but free: using them takes them from the queue
    assert cache.admit(1, 12) == (8, 3) and cache.num_free_blocks == 1
    assert cache.release(1, 12, 3) == 3


def test_the_tail_that_was_used_least_recently_is_evicted_first() -> None:
    cache = cache_of(
        6, tokens(1, 2, 3), tokens(4, 5, 6), tokens(7, 8, 9, rest=1), tokens(1, 2, 3, rest=1), tokens(4, 5, 6, rest=1)
    )
    for row in (0, 1):
        cache.admit(row, 12)
        cache.release(row, 12, 3)
    cache.admit(2, 13)  # takes four: 3, 2 and 1 of the older request from its end, then 6
    cache.release(2, 0, 4)
    assert cache.admit(3, 13)[0] == 0  # takes the four that were given up
    assert cache.admit(4, 8) == (4, 2)


def test_blocks_that_are_not_full_are_taken_before_any_that_is_kept() -> None:
    cache = cache_of(3, tokens(1, rest=2), tokens(8), tokens(1, rest=1))
    cache.admit(0, 6)
    cache.release(0, 6, 2)
    cache.admit(1, 4)
    cache.release(1, 4, 1)
    cache.take(1)
    assert cache.admit(2, 5)[0] == 4


# --- vLLM's own -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_manager() -> Callable[[int], Any]:
    """Makes vLLM's KV-cache manager with so many blocks, one of which is its null block."""
    import torch
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    init_none_hash(sha256)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)

    def made(num_blocks: int) -> Any:
        config = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        return KVCacheManager(config, 4096, scheduler_block_size=BLOCK, hash_block_size=BLOCK)

    return made


class _Served:
    """A request on both sides."""

    def __init__(self, row: int, prompt: list[int]) -> None:
        from vllm import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        self.row = row
        self.request = Request(
            str(row), prompt, SamplingParams(max_tokens=999), None, block_hasher=get_request_block_hasher(BLOCK, sha256)
        )
        self.num_computed = 0

    def admit(self, manager: Any, cache: Cache) -> bool:
        """Compute all its tokens; False, and nothing done, if there is no room for them."""
        num_tokens = self.request.num_tokens
        blocks, hit, _ = manager.get_computed_blocks(self.request)
        got = manager.allocate_slots(self.request, num_tokens - hit, hit, blocks, full_sequence_must_fit=True)
        assert (got is not None) == (cache.blocks_needed(self.row, num_tokens) <= cache.num_free_blocks)
        if got is None:
            return False
        assert cache.admit(self.row, num_tokens)[0] == hit
        cache.keep(self.row, num_tokens)
        self._computed(num_tokens)
        return True

    def grow(self, manager: Any, cache: Cache) -> bool:
        """Compute one token that was generated; False, and nothing done, if there is no block for it."""
        needs_block = self.num_computed % BLOCK == 0
        if needs_block and not cache.num_free_blocks:
            return False
        self.request.append_output_token_ids(7000 + self.row)
        assert manager.allocate_slots(self.request, 1) is not None
        cache.take(needs_block)
        self._computed(self.num_computed + 1)
        return True

    def free(self, manager: Any, cache: Cache) -> None:
        manager.free(self.request)
        cache.release(self.row, self.num_computed, -(-self.num_computed // BLOCK))
        self._computed(0)

    def _computed(self, number: int) -> None:
        self.num_computed = self.request.num_computed_tokens = number


@pytest.mark.engine
@settings(max_examples=300, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=4), st.integers(0, BLOCK - 1)),
        min_size=2,
        max_size=9,
    ),
    num_blocks=st.integers(6, 16),
    moves=st.lists(st.tuples(st.sampled_from("aaggggfp"), st.integers(0, 8)), max_size=60),
)
def test_any_history_of_requests_finds_what_vllm_finds(
    vllm_manager: Callable[[int], Any],
    prompts: list[tuple[list[int], int]],
    num_blocks: int,
    moves: list[tuple[str, int]],
) -> None:
    """Admitted, growing, finished and preempted in any order, with few blocks: the same hits, and as many blocks free,
    throughout."""
    asked = [tokens(*blocks, rest=rest) for blocks, rest in prompts]
    manager = vllm_manager(num_blocks)
    cache = Cache(num_blocks - 1, asked)
    waiting, running = [_Served(row, prompt) for row, prompt in enumerate(asked)], []
    for move, choice in moves:
        if move == "a" and waiting and waiting[0].admit(manager, cache):
            running.append(waiting.pop(0))
        elif move != "a" and running:
            one = running[choice % len(running)]
            if move == "g":
                one.grow(manager, cache)
            else:
                running.remove(one)
                one.free(manager, cache)
                if move == "p":
                    waiting.insert(0, one)
        assert cache.num_free_blocks == manager.block_pool.get_num_free_blocks()


# --- in the loop ------------------------------------------------------------------------------------------------------


def run(rows: list[tuple[int, list[int], int]], limits: Limits) -> SimulationLoop:
    """Requests (arrival in ns, prompt, decode tokens) with a prefix cache."""
    prompts = [prompt for _, prompt, _ in rows]
    columns = RequestColumns(
        list(range(len(rows))), [row[0] for row in rows], [len(prompt) for prompt in prompts], [row[2] for row in rows]
    )
    tables = BUNDLE.operator_times().tables(limits.max_num_batched_tokens)
    loop = SimulationLoop(columns, limits, tables, prompt_keys=prompt_block_keys(prompts, limits.block_size))
    loop.run()
    assert loop.num_free_blocks == limits.num_kv_blocks - limits.num_null_blocks
    return loop


def test_a_prompt_computes_only_what_is_not_there() -> None:
    first, second = list(range(70)), [*range(64), *range(900, 930)]
    loop = run([(0, first, 5), (10**9, second, 5), (2 * 10**9, first[:64], 5)], Limits(32, 40, 1, 4, 512))
    assert loop.num_cached_tokens == [0, 64, 32]
    steps = loop.history.steps()
    prefills = steps.num_prefill_tokens > 0
    assert steps.num_prefill_tokens[prefills].tolist() == [70, 30, 32]
    assert steps.num_context_tokens[prefills].tolist() == [0, 64, 32]


def test_of_two_that_arrive_together_the_second_finds_what_the_first_computes_in_that_step() -> None:
    prompt = list(range(96))
    loop = run([(0, prompt, 3), (0, prompt, 3)], Limits(32, 40, 1, 4, 512))
    assert loop.num_cached_tokens == [0, 64]
    split = run([(0, prompt, 3), (0, prompt, 3)], Limits(32, 40, 1, 4, 64))  # two chunks: the second waits for the last
    assert split.num_cached_tokens == [0, 64]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 40_000_000),
            st.lists(st.integers(1, 2), min_size=1, max_size=5),
            st.integers(1, 31),
            st.integers(1, 60),
        ),
        min_size=1,
        max_size=12,
    ),
    budget=st.integers(8, 128),
)
def test_a_step_costs_more_by_what_its_decodes_share(rows: list[tuple[int, list[int], int, int]], budget: int) -> None:
    """Next to a count over the finished simulation: who decoded in each step, with which full blocks of the prompt."""
    asked = sorted(
        (arrival, [block for block in blocks for _ in range(32)] + [99] * rest, decode)
        for arrival, blocks, rest, decode in rows
    )
    prompts = [prompt for _, prompt, _ in asked]
    costs = EngineCosts(
        support.overheads_table(
            [
                *support.constant_overheads(device=1_000_000),
                *(support.cost_row("device", 10, kind, REREAD) for kind in support.KINDS),
            ]
        ),
        CapturedGraphs(()),
        (DECODE, MIXED),
        "overheads.csv",
    )
    limits = Limits(32, 400, 1, 12, budget)
    columns = RequestColumns(
        list(range(len(asked))),
        [row[0] for row in asked],
        [len(prompt) for prompt in prompts],
        [row[2] for row in asked],
    )
    keys = prompt_block_keys(prompts, 32)
    loop = SimulationLoop(columns, limits, costs.tables(budget, 1), prompt_keys=keys)
    loop.run()
    log, got = loop.history.steps(), loop.history.tokens()
    expected = [1_000_000] * loop.history.num_steps
    for step in range(loop.history.num_steps):
        # The token of a request's first step is its prompt's.
        held = [
            keys[row] for row in range(len(asked))
            if step in (mine := got.step[got.request_id == row]) and step != mine[0]
        ]  # fmt: skip
        blocks = [key for one in held for key in one]
        expected[step] += 10 * 32 * (len(blocks) - len(set(blocks)))
    assert (log.handed_out_ns - log.formed_ns).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 40_000_000),
            st.lists(st.integers(1, 2), min_size=1, max_size=5),
            st.integers(0, 31),
            st.integers(1, 80),
        ),
        min_size=1,
        max_size=20,
    ),
    num_blocks=st.integers(10, 30),
    num_seqs=st.integers(1, 8),
    budget=st.integers(8, 128),
)
def test_blocks_add_up_under_pressure(
    rows: list[tuple[int, list[int], int, int]], num_blocks: int, num_seqs: int, budget: int
) -> None:
    """With preemptions, chunks and shared prompts: everybody gets all tokens, and every block is free at the end (`run`
    looks)."""
    asked = sorted(
        (arrival, [block for block in blocks for _ in range(32)] + [99] * rest, decode)
        for arrival, blocks, rest, decode in rows
    )
    loop = run(asked, Limits(32, num_blocks, 1, num_seqs, max(budget, num_seqs)))
    got = loop.history.tokens()
    assert len(got.step) == sum(decode for _, _, decode in asked)
    for cached, (_, prompt, _) in zip(loop.num_cached_tokens, asked, strict=True):
        assert cached % 32 == 0 and cached < len(prompt)
