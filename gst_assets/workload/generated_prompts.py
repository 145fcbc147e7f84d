"""Text of an exact number of tokens, for requests of which only the length is known.

Text is words that a tokenizer encodes to one token each, alone and behind a blank, and that stay so side by side; every
text is encoded again to see that it has the length asked for. Which words stand in a text depends on the seed and its
place in the workload alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from gst_assets.errors import WorkloadError
from gst_assets.workload.prompts import Prompt, prompt_line
from gst_assets.workload.synthetic import TEXT_STREAM, stream
from gst_assets.workload.tokenizer import Tokenizer

CHUNK_TOKENS = 1 << 18
"""Tokens generated and checked at a time. The text does not depend on it."""
_WORD = re.compile(r"[Ġ▁]?([a-z]{3,10})")
_LEAST_WORDS_LOG2, _MOST_WORDS_LOG2 = 6, 12


@dataclass(frozen=True)
class PromptLengths:
    """What is to be written: of each prompt its id, and the stretches of the seed's stream of words that it is made of.

    Prompt i consists of the stretches `first_stretch[i]` to `first_stretch[i + 1] - 1`, one after another; stretch j is
    `tokens[j]` words from place `word[j]` on. Prompts that share places share words. Arrays are int64: `first_stretch`
    of shape (prompts + 1,), `word` and `tokens` of shape (stretches,).
    """

    prompt_ids: list[str]
    first_stretch: np.ndarray
    word: np.ndarray
    tokens: np.ndarray

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each prompt: int64 of shape (prompts,)."""
        before = np.concatenate([[0], np.cumsum(self.tokens)])
        return np.diff(before[self.first_stretch])

    def places(self, begin: int, end: int) -> np.ndarray:
        """The places of all tokens of prompts `begin` to `end - 1`, one prompt after another: int64."""
        chosen = slice(self.first_stretch[begin], self.first_stretch[end])
        lengths = self.tokens[chosen]
        starts = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self.word[chosen] - starts, lengths)

    def first(self, count: int) -> PromptLengths:
        """The first `count` prompts."""
        stretches = self.first_stretch[count]
        return PromptLengths(
            self.prompt_ids[:count], self.first_stretch[: count + 1], self.word[:stretches], self.tokens[:stretches]
        )


def prompt_of_each(prefill: np.ndarray) -> tuple[PromptLengths, np.ndarray]:
    """A prompt of its own for each request, and the index of each request's prompt. `prefill`: int64 tokens of shape
    (num_requests,)."""
    number = len(prefill)
    return PromptLengths(_ids(number), np.arange(number + 1), np.cumsum(prefill) - prefill, prefill), np.arange(number)


def prompt_of_each_length(prefill: np.ndarray) -> tuple[PromptLengths, np.ndarray]:
    """One prompt for all requests of its length, in the order in which lengths first occur, and the index of each
    request's prompt."""
    lengths, first, index = np.unique(prefill, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lengths = lengths[order]
    # As if the texts of all shorter lengths came before: no two share words of the stream, whatever other lengths there
    # are.
    ids = [f"n{length}" for length in lengths]
    return PromptLengths(ids, np.arange(len(ids) + 1), lengths * (lengths - 1) // 2, lengths), rank[index]


def prompts_of_blocks(
    prefill: np.ndarray, block_ids: np.ndarray, first_block: np.ndarray, block_tokens: int
) -> PromptLengths:
    """A prompt for each request whose blocks of `block_tokens` tokens have the same words wherever their id is the
    same; the last block is cut where the prompt ends.

    `block_ids` (int64, below 2^63 / `block_tokens`): ids of all requests; those of request i begin at
    `first_block[i]` and are at least as many as `prefill[i]` tokens need.
    """
    needed = -(-prefill // block_tokens)
    first_stretch = np.concatenate([[0], np.cumsum(needed)])
    number = np.arange(first_stretch[-1]) - np.repeat(first_stretch[:-1], needed)
    tokens = np.minimum(np.repeat(prefill, needed) - number * block_tokens, block_tokens)
    word = block_ids[np.repeat(first_block, needed) + number] * block_tokens
    return PromptLengths(_ids(len(prefill)), first_stretch, word, tokens)


def _ids(number: int) -> list[str]:
    return [f"r{index}" for index in range(number)]


@lru_cache(maxsize=4)
def one_token_words(tokenizer: Tokenizer) -> list[str]:
    """Words of one token each alone and behind a blank: the first 2^k of the vocabulary, k at most 12.

    Raises:
        WorkloadError: fewer than 64.
    """
    found = (_WORD.fullmatch(entry) for entry in tokenizer.vocabulary())
    words = list(dict.fromkeys(match[1] for match in found if match))
    alone, behind = tokenizer.count(words), tokenizer.count([f"{word} {word}" for word in words])
    good = [word for word, one, two in zip(words, alone, behind, strict=True) if (one, two) == (1, 2)]
    power = min(len(good).bit_length() - 1, _MOST_WORDS_LOG2)
    if power < _LEAST_WORDS_LOG2:
        raise WorkloadError(
            f"model.tokenizer {tokenizer.reference}: {len(good)} lower-case words are one token each, too few to write"
            f" prompts of an exact length (expected at least {2**_LEAST_WORDS_LOG2}). Use another tokenizer, or"
            " workload.prompts with texts of your own."
        )
    return good[: 2**power]


def write_generated_prompts(
    asked: PromptLengths,
    path: Path,
    tokenizer: Tokenizer,
    seed: int,
    *,
    workers: int = 1,
    chunk_tokens: int = CHUNK_TOKENS,
) -> None:
    """Write prompts.jsonl with a text of exactly `num_tokens` tokens for each prompt. The bytes depend on neither
    `workers` (threads) nor `chunk_tokens`.

    Raises:
        WorkloadError: the tokenizer has too few usable words, or a text has another length than asked for (names the
            prompt).
    """
    words = np.array(one_token_words(tokenizer), dtype=object)
    key = stream(seed, TEXT_STREAM).integers(2**64, dtype=np.uint64)

    def lines(begin: int, end: int) -> str:
        texts = list(_texts(asked, begin, end, words, key))
        for prompt_id, text, wanted, found in zip(
            asked.prompt_ids[begin:end],
            texts,
            asked.num_tokens[begin:end].tolist(),
            tokenizer.count(texts, workers=1),  # the threads are those of this function
            strict=True,
        ):
            if found != wanted:
                raise WorkloadError(
                    f"prompt {prompt_id!r}: generated for {wanted} tokens, but {tokenizer.reference} encodes it to"
                    f" {found} ({text!r:.80}). Its words do not stay one token each side by side; use another"
                    " tokenizer, or workload.prompts with texts of your own."
                )
        return "".join(
            prompt_line(Prompt(prompt_id, text))
            for prompt_id, text in zip(asked.prompt_ids[begin:end], texts, strict=True)
        )

    with path.open("w", encoding="utf-8", newline="\n") as handle, ThreadPoolExecutor(workers) as pool:
        # A bounded number ahead, so that memory stays bounded too; written in order.
        pending: deque[Future[str]] = deque()
        for begin, end in _chunks(asked.num_tokens, chunk_tokens):
            pending.append(pool.submit(lines, begin, end))
            if len(pending) > workers:
                handle.write(pending.popleft().result())
        while pending:
            handle.write(pending.popleft().result())


def _chunks(num_tokens: np.ndarray, chunk_tokens: int) -> Iterator[tuple[int, int]]:
    """Begin and end of runs of prompts with about `chunk_tokens` tokens each; at least one prompt a run."""
    after = np.cumsum(num_tokens)
    begin = 0
    while begin < len(num_tokens):
        before = int(after[begin] - num_tokens[begin])
        end = max(int(np.searchsorted(after, before + chunk_tokens, side="right")), begin + 1)
        yield begin, end
        begin = end


def _texts(asked: PromptLengths, begin: int, end: int, words: np.ndarray, key: np.uint64) -> Iterator[str]:
    lengths = asked.num_tokens[begin:end]
    starts = np.cumsum(lengths) - lengths
    chosen = words[
        (_mixed(asked.places(begin, end).astype(np.uint64) + key) >> np.uint64(64 - _log2(len(words)))).astype(np.intp)
    ].tolist()
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        yield " ".join(chosen[start : start + length])


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _mixed(counter: np.ndarray) -> np.ndarray:
    """SplitMix64's output for each counter (uint64): a random number that can be had for any place without those before
    it.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, figure 17 with the constants of
    Stafford's mix 13.
    """
    value = counter * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
