"""vLLM's prefix cache by its rules: which prompt tokens of a request are there already, and which KV blocks that costs.

The rules are those of vLLM V1 (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py` and `single_type_kv_cache_manager.py`, 0.32.0, one group of full
attention): only full blocks are kept, each under a key that stands for it and all before it; a request takes the longest run of blocks that are
kept, except the block of its prompt's last token, which is computed in any case; a block belongs to as many requests as use it, and is free when
none does; equal blocks are not merged; who needs a block gets the free one at the front of a queue, which is forgotten thereby. A request gives up
its blocks from the last to the first: those kept go to the queue's end, so that the least recently used is evicted first, those that are not
full to its front.

Owns its state. Blocks are told apart only where it matters: a block that a request holds and that is not full yet is a mere number. When blocks
are needed belongs to `engine_loop`, whose prompts take their blocks at admission.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count
from typing import NamedTuple

_OWN_KEYS = 2**32
"""Keys of blocks with generated tokens are negative, so many for each request: only the request itself can come back to them."""


def prompt_block_keys(prompts: Iterable[Sequence[int]], block_size: int) -> list[list[int]]:
    """For each prompt (token ids) a key of each full block: equal where the block's tokens and all tokens before it are."""
    keys: dict[tuple[int, tuple[int, ...]], int] = {}
    found = []
    for tokens in prompts:
        chain, parent = [], -1
        for begin in range(0, len(tokens) - block_size + 1, block_size):
            parent = keys.setdefault((parent, tuple(tokens[begin : begin + block_size])), len(keys))
            chain.append(parent)
        found.append(chain)
    return found


class Admission(NamedTuple):
    """What a prompt finds."""

    num_cached_tokens: int
    num_blocks: int
    """KV blocks that are no longer free."""


class PrefixCache:
    """The KV blocks of an engine. Requests are known by their row, as in `engine_loop`."""

    def __init__(self, block_size: int, num_blocks: int, prompt_keys: Sequence[Sequence[int]]) -> None:
        """`num_blocks`: those that requests can have. `prompt_keys`: `prompt_block_keys` of all rows."""
        self._block_size = block_size
        self._prompt_keys = prompt_keys
        self._new_id = count()
        # In the order in which they are taken. A block that is taken is forgotten; one that becomes full has an id of its own.
        self._free: OrderedDict[int, None] = OrderedDict((next(self._new_id), None) for _ in range(num_blocks))
        self._key: dict[int, int] = {}
        self._ids: dict[int, dict[int, None]] = {}
        """Blocks of each key, the one kept first in front."""
        self._num_users: dict[int, int] = {}
        self._held: dict[int, list[int]] = {}
        """Full blocks of each row that holds any block, in order."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request uses, kept ones included."""
        return len(self._free)

    def blocks_needed(self, row: int, num_tokens: int) -> int:
        """How many free blocks a request takes that is admitted now to compute `num_tokens`."""
        found = self._found(row, num_tokens)
        return -(-num_tokens // self._block_size) - sum(self._num_users[block] > 0 for block in found)

    def admit(self, row: int, num_tokens: int) -> Admission:
        """The request uses what is kept of its tokens, and takes blocks for the others. There must be as many as `blocks_needed`."""
        found = self._found(row, num_tokens)
        before = len(self._free)
        for block in found:
            self._free.pop(block, None)
            self._num_users[block] += 1
        self._held[row] = found
        self.take(-(-num_tokens // self._block_size) - len(found))
        return Admission(len(found) * self._block_size, before - len(self._free))

    def take(self, num_blocks: int) -> None:
        """So many blocks from the front of the queue go to some request."""
        for _ in range(num_blocks):
            block, _ = self._free.popitem(last=False)
            key = self._key.pop(block, None)
            if key is not None:
                del self._num_users[block]
                same = self._ids[key]
                del same[block]
                if not same:
                    del self._ids[key]

    def keep(self, row: int, num_tokens: int) -> None:
        """The first `num_tokens` of the request are computed by the step that is formed: others can use its full blocks from now on."""
        held = self._held[row]
        for place in range(len(held), num_tokens // self._block_size):
            block, key = next(self._new_id), self._key_of(row, place)
            self._key[block] = key
            self._ids.setdefault(key, {})[block] = None
            self._num_users[block] = 1
            held.append(block)

    def release(self, row: int, num_tokens: int, num_blocks: int) -> int:
        """The request gives up the `num_blocks` that it holds, `num_tokens` of which were computed; returns how many of them are free then."""
        self.keep(row, num_tokens)
        held, before = self._held.pop(row), len(self._free)
        for _ in range(num_blocks - len(held)):
            block = next(self._new_id)
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        for block in reversed(held):
            self._num_users[block] -= 1
            if not self._num_users[block]:
                self._free[block] = None
        return len(self._free) - before

    def _found(self, row: int, num_tokens: int) -> list[int]:
        found = []
        for place in range((num_tokens - 1) // self._block_size):
            same = self._ids.get(self._key_of(row, place))
            if same is None:
                break
            found.append(next(iter(same)))
        return found

    def _key_of(self, row: int, place: int) -> int:
        keys = self._prompt_keys[row]
        return keys[place] if place < len(keys) else -1 - row * _OWN_KEYS - place
