"""How a prefix cache identifies prompts: a key for each full KV block. What is done with them belongs to `core`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def prompt_block_keys(prompts: Iterable[Sequence[int]], block_size: int) -> list[list[int]]:
    """For each prompt (token ids) a key of each full block: equal where the block's tokens and all tokens before it
    are."""
    keys: dict[tuple[int, tuple[int, ...]], int] = {}
    found = []
    for tokens in prompts:
        chain, parent = [], -1
        for begin in range(0, len(tokens) - block_size + 1, block_size):
            parent = keys.setdefault((parent, tuple(tokens[begin : begin + block_size])), len(keys))
            chain.append(parent)
        found.append(chain)
    return found
