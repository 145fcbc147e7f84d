"""To how many tokens the engine's captured graphs pad a step, and which kinds of step a simulation can meet.

What a kind is stands in `profiling.async_steps.step_kind`, so that calibrated and simulated steps are told apart alike. Costs of steps belong
to `overheads` and `predictor`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from gst_assets.profiling.async_steps import step_kind


class CapturedGraphs:
    """The token counts for which the engine captured graphs (`EngineSettings.cudagraph_capture_sizes`); none where it runs eagerly."""

    def __init__(self, capture_sizes: Sequence[int]) -> None:
        self.sizes = tuple(sorted(capture_sizes))

    def kind(self, num_prefill_tokens: int, num_decode_requests: int) -> str:
        """Value of `step_kind` in overheads.csv: `decode`, `mixed` or `mixed_eager`."""
        return step_kind(num_prefill_tokens, num_decode_requests, self.sizes[-1:])

    def padded(self, num_tokens: int) -> int:
        """Tokens the kernels really process: the next captured size, or `num_tokens` itself beyond the largest and without graphs."""
        place = bisect_left(self.sizes, num_tokens)
        return self.sizes[place] if place < len(self.sizes) else num_tokens

    def reachable_kinds(self, max_num_batched_tokens: int) -> tuple[str, ...]:
        """The kinds a simulation may meet when a step holds at most `max_num_batched_tokens`."""
        return tuple(dict.fromkeys(self.kind(tokens, 0) for tokens in (0, 1, max_num_batched_tokens)))
