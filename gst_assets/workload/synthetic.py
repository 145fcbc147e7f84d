"""Seeded token lengths. The text of that many tokens belongs to `generated_prompts`.

Each length comes from its place in a seeded stream alone, so a longer workload starts with the shorter one's lengths.
"""

from __future__ import annotations

import numpy as np

from gst_assets.errors import WorkloadError
from gst_assets.scenario import EmpiricalLength, FixedLength, Lengths, LognormalLength, UniformLength, ZipfLength

PREFILL_STREAM, DECODE_STREAM, SAMPLE_STREAM, TEXT_STREAM = 1, 2, 3, 4
SESSION_STREAMS = (5, 6, 7, 8, 9, 10, 11)
"""Spawn keys of the seed's streams; the arrival schedule uses the seed's own."""
_LEAST_KEPT = 0.001


def stream(seed: int, key: int) -> np.random.Generator:
    """A generator of the seed, independent of the arrival schedule's and of those of other keys."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(key,))))


def draw_lengths(lengths: Lengths, count: int, seed: int, key: int, setting: str) -> tuple[np.ndarray, int]:
    """Token lengths, int64 of shape (count,), and how many draws before the last accepted one fell outside the bounds
    and were drawn anew.

    Raises:
        WorkloadError: the bounds accept less than one draw in a thousand (names `setting`).
    """
    generator = stream(seed, key)
    match lengths:
        case FixedLength():
            return np.full(count, lengths.tokens, dtype=np.int64), 0
        case UniformLength():
            return generator.integers(lengths.min_tokens, lengths.max_tokens + 1, count, dtype=np.int64), 0
        case ZipfLength():
            sizes = np.arange(lengths.min_tokens, lengths.max_tokens + 1, dtype=np.int64)
            return _choose(sizes, sizes.astype(np.float64) ** -lengths.exponent, generator.random(count)), 0
        case EmpiricalLength():
            weights = np.ones(len(lengths.tokens)) if lengths.weights is None else np.array(lengths.weights)
            return _choose(np.array(lengths.tokens, dtype=np.int64), weights, generator.random(count)), 0
        case LognormalLength():
            return _lognormal(lengths, count, generator, setting)


def _choose(values: np.ndarray, weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The value at each quantile of the weighted distribution."""
    cumulative = np.cumsum(weights)
    return values[np.searchsorted(cumulative, uniform * cumulative[-1], side="right").clip(max=len(values) - 1)]


def _lognormal(
    lengths: LognormalLength, count: int, generator: np.random.Generator, setting: str
) -> tuple[np.ndarray, int]:
    kept: list[np.ndarray] = []
    missing, drawn, last = count, 0, 0
    while missing > 0:
        with np.errstate(over="ignore"):
            sizes = np.rint(lengths.median * np.exp(lengths.sigma * generator.standard_normal(max(missing, 1024))))
        inside = np.flatnonzero((sizes >= lengths.min_tokens) & (sizes <= lengths.max_tokens))[:missing]
        if len(inside):
            last = drawn + int(inside[-1]) + 1
        drawn += len(sizes)
        kept.append(sizes[inside].astype(np.int64))
        missing -= len(inside)
        if drawn >= 100_000 and count - missing < drawn * _LEAST_KEPT:
            raise WorkloadError(
                f"{setting}: of {drawn} lengths drawn {count - missing} lie between min_tokens {lengths.min_tokens} and"
                f" max_tokens {lengths.max_tokens}. Widen the bounds, or move the median between them."
            )
    return np.concatenate(kept), last - count
