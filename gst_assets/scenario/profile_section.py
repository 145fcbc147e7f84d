"""`profile` of a scenario: what the profiler measures."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gst_assets.scenario.settings import Settings

MORE_TRAFFIC = ("short_traffic_rates_per_s", "shared_traffic_rates_per_s")
"""Traffic that is only played where a scenario asks for it."""
SHARED_TRAFFIC = "shared traffic"
"""In the name of a stretch of calibration whose prompts begin alike."""
_STARTS_AT_LOWEST = ("num_tokens", "prefill_chunk_sizes", "prefill_context_sizes", "decode_batch_sizes")


class Profile(Settings):
    """What the profiler measures. Grids in tokens; every scenario it serves must stay inside them."""

    root: str | None = Field(
        None,
        description=(
            "profiling root to use as it is (relative to the project root); null: measure on this machine into the"
            " artifact root"
        ),
    )
    num_tokens: tuple[int, ...] = Field(description="token counts for per-token operators, ascending")
    prefill_chunk_sizes: tuple[int, ...] = Field(description="new tokens of a prefill step, ascending")
    prefill_context_sizes: tuple[int, ...] = Field(description="tokens cached before a prefill chunk, ascending from 0")
    decode_batch_sizes: tuple[int, ...] = Field(description="sequences of a decode step, ascending from 1")
    decode_context_sizes: tuple[int, ...] = Field(description="tokens cached per sequence in a decode step, ascending")
    operator_repeats: int = Field(20, gt=2, description="timings per operator and point; the median is used")
    calibration_prefill_sizes: tuple[int, ...] = Field(
        description="lengths of lone calibration prompts in addition to the captured graph sizes, ascending"
    )
    traffic_rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="rates of open-loop calibration traffic, ascending; a burst that fills the engine follows them",
    )
    short_traffic_rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description=(
            "rates of calibration traffic of short prompts, ascending; for engines in which short prompts join many"
            " decodes, as with prefix caching"
        ),
    )
    shared_traffic_rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description=(
            "rates of calibration traffic whose prompts begin alike, ascending; for engines with prefix caching, in"
            " which decodes read the KV blocks that they share in less time"
        ),
    )
    traffic_segment_s: float = Field(3.0, gt=0, description="how long each rate is played in each round")
    seed: int = Field(1_000_003, ge=0)

    @model_validator(mode="after")
    def _ascending(self) -> Profile:
        for name, value in self:
            if not isinstance(value, tuple):
                continue
            if list(value) != sorted(set(value)):
                raise ValueError(f"{name} must be ascending without repeats, found {list(value)}")
            if name in MORE_TRAFFIC:
                continue
            if not value:
                raise ValueError(f"{name} must not be empty")
            if name == "traffic_rates_per_s":
                continue
            lowest = 0 if name == "prefill_context_sizes" else 1
            if value[0] < lowest:
                raise ValueError(f"{name} must hold values of at least {lowest}, found {value[0]}")
            # A prompt may be cut so that one token is left, and a lone request decodes alone: without that corner no
            # simulation could begin.
            if name in _STARTS_AT_LOWEST and value[0] != lowest:
                raise ValueError(
                    f"{name} must begin with {lowest}, the smallest step a scheduler can form, found {value[0]}"
                )
        return self
