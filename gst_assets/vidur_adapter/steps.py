"""What kind of engine step a batch makes, and to how many tokens a captured graph pads it.

The one definition both of calibration rows and of simulated steps. Costs of steps belong to `overheads` and `predictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class StepKind(StrEnum):
    """The values of `step_kind` in overheads.csv."""

    DECODE = "decode"
    MIXED = "mixed"
    MIXED_EAGER = "mixed_eager"


class CapturedGraphs:
    """The token counts for which the engine captured graphs; none where it runs eagerly."""

    def __init__(self, enforce_eager: bool, capture_sizes: Sequence[int]) -> None:
        self._sizes = () if enforce_eager else tuple(sorted(capture_sizes))

    def kind(self, num_prefill_tokens: int, num_decode_requests: int) -> StepKind:
        """Kind of the step: decode without a prompt token, mixed with one, mixed_eager beyond the largest captured size.

        An engine without graphs knows no mixed_eager: all its steps run alike.
        """
        if num_prefill_tokens == 0:
            return StepKind.DECODE
        if self._sizes and num_prefill_tokens + num_decode_requests > self._sizes[-1]:
            return StepKind.MIXED_EAGER
        return StepKind.MIXED

    def padded(self, num_tokens: int) -> int:
        """Tokens the kernels really process: the next captured size, or `num_tokens` itself beyond the largest and without graphs."""
        return next((size for size in self._sizes if size >= num_tokens), num_tokens)

    def reachable_kinds(self, max_num_batched_tokens: int) -> tuple[StepKind, ...]:
        """The kinds a simulation may meet when a step holds at most `max_num_batched_tokens`."""
        kinds = (StepKind.DECODE, StepKind.MIXED)
        return (*kinds, StepKind.MIXED_EAGER) if self._sizes and max_num_batched_tokens > self._sizes[-1] else kinds
