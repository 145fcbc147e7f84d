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
from functools import lru_cache
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
    """What is to be written: of each prompt its id, its length in tokens, and its place in the seed's stream of words.

    Prompts that share places share words. `opening_tokens`, where there are any: so many tokens of each prompt come
    first and come from `opening_word` on; the others follow, from `first_word` on.
    """

    prompt_ids: list[str]
    num_tokens: np.ndarray
    first_word: np.ndarray
    opening_tokens: np.ndarray | None = None
    opening_word: np.ndarray | None = None

    def places(self, begin: int, end: int) -> np.ndarray:
        """The places of all tokens of prompts `begin` to `end - 1`, one prompt after another: int64."""
        lengths = self.num_tokens[begin:end]
        starts = np.cumsum(lengths) - lengths
        index = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        place = np.repeat(self.first_word[begin:end], lengths) + index
        if self.opening_tokens is None or self.opening_word is None:
            return place
        opening = np.repeat(self.opening_tokens[begin:end], lengths)
        return np.where(index < opening, np.repeat(self.opening_word[begin:end], lengths) + index, place - opening)


def prompt_of_each(prefill: np.ndarray) -> tuple[PromptLengths, np.ndarray]:
    """A prompt of its own for each request, and the index of each request's prompt. `prefill`: int64 tokens of shape
    (num_requests,)."""
    ids = [f"r{index}" for index in range(len(prefill))]
    return PromptLengths(ids, prefill, np.cumsum(prefill) - prefill), np.arange(len(prefill))


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
    return PromptLengths([f"n{length}" for length in lengths], lengths, lengths * (lengths - 1) // 2), rank[index]


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
