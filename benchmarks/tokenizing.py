"""Counting tokens, compared with the tokenizer library called alone: `python benchmarks/tokenizing.py [PROMPTS]
[ROUNDS]`.

The same generated prompts (8 to 992 tokens, seeded) in every round; what is compared takes turns. `count` is the
project's counter; the library is called in its two ways: its batch call, which shares the texts among its own threads,
and one call a text.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measuring import Ratio, side_by_side, tell

from gst_assets.workload.generated_prompts import prompt_of_each, write_generated_prompts
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.tokenizer import load_tokenizer

REFERENCE = "data/tokenizer/qwen3"
CLOCKS = {"s": time.perf_counter, "CPU s": time.process_time}


def main() -> None:
    """Print the ratios."""
    numbers = [int(one) for one in sys.argv[1:] if one.isdigit()]
    num_prompts, rounds = (*numbers, *(400, 7)[len(numbers) :])
    tokenizer = load_tokenizer(REFERENCE)
    library = tokenizer._backend
    lengths = np.random.Generator(np.random.PCG64(1)).integers(8, 993, num_prompts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_generated_prompts(prompt_of_each(lengths)[0], path, tokenizer, seed=1)
        texts = [prompt.text for prompt in read_prompts(path)]

    def batch() -> list[int]:
        return [len(one) for one in library.encode_batch_fast(texts, add_special_tokens=False)]

    def single() -> list[int]:
        return [len(library.encode_batch_fast([text], add_special_tokens=False)[0]) for text in texts]

    def alone() -> list[int]:
        return tokenizer.count(texts, workers=1)

    assert tokenizer.count(texts) == alone() == batch() == single() == lengths.tolist()
    what = f"counting {lengths.sum():,} tokens in {num_prompts} prompts"
    cases: list[tuple[str, Callable[[], object], str, Callable[[], object], str]] = [
        ("all cores", lambda: tokenizer.count(texts), "tokenizers' batch call (all cores)", batch, "s"),
        ("all cores", lambda: tokenizer.count(texts), "tokenizers' batch call (all cores)", batch, "CPU s"),
        ("one worker", alone, "tokenizers, one call a text", single, "CPU s"),
    ]
    tell(
        [
            Ratio(f"{what}, {how}", against, *side_by_side(ours, baseline, rounds, CLOCKS[unit]), unit)
            for how, ours, against, baseline, unit in cases
        ]
    )


if __name__ == "__main__":
    main()
