"""What an engine must offer to be measured. Backends implement it, `replay` drives it; neither measuring nor tables
belong here.

All times are nanoseconds of `time.monotonic_ns` of this machine. A backend that cannot know an engine-side time leaves
it None.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.errors import EngineError

UNKNOWN_TOKEN_ID = -1
"""A token that arrived without its id; its cell in the token table stays empty."""


class EngineDied(EngineError):
    """The engine is gone: no request in flight can finish and no further one can start."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request. `request_id` is unique for the life of the engine; `seed` decides what a sampling engine draws."""

    request_id: str
    prompt_token_ids: Sequence[int]
    num_decode_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """What the engine itself stamped on a request."""

    queued_ns: int | None = None
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    num_preemptions: int | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens taken from the prefix cache when it was first scheduled; None: not reported, or there is no such
    cache."""


@dataclass(frozen=True, slots=True)
class TokenMessage:
    """Tokens that reached the client together. `times` comes with the last message of a request, where the backend
    knows them."""

    token_ids: Sequence[int]
    received_ns: int
    times: RequestTimes | None = None


class IterationField(IntEnum):
    """Columns of the array that `Engine.iterations` returns. `context tokens` are KV tokens present before the step."""

    SCHEDULED_NS = 0
    COMPLETION_NS = 1
    PREFILL_REQUESTS = 2
    PREFILL_TOKENS = 3
    DECODE_REQUESTS = 4
    CONTEXT_TOKENS = 5
    RUNNING = 6
    WAITING = 7
    TRACING_NS = 8
    """What recording this row cost the engine."""
    LAUNCHED_NS = 9
    """When the call that launches the model returned: on a GPU its work is queued by then, not done. 0: not seen."""
    OUTPUT_NS = 10
    """When the step's tokens had reached the engine's process, before the scheduler took note of them."""
    PREFILL_CONTEXT_TOKENS = 11
    """Of CONTEXT_TOKENS, those of the requests in prefill."""
    ATTENTION_PAIRS = 12
    """(query, key) pairs of the requests in prefill (`step_costs.shapes.attention_pairs`)."""
    REREAD_CONTEXT_TOKENS = 13
    """See `step_costs.shapes.StepShape.reread_context_tokens`; 0 without a prefix cache."""


class Engine(Protocol):
    """A running engine."""

    @property
    def backend(self) -> str:
        """Its name in the tables, e.g. `vllm`."""
        ...

    def settings(self) -> EngineSettings:
        """The settings it really runs with, read back from it."""
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        """Submit the request and yield its tokens as they arrive. Cancelling the iteration gives the request up.

        Raises:
            EngineDied: the engine is gone.
            EngineError: this request failed; others are unaffected.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Make the engine drop a request; one it no longer has is ignored."""
        ...

    async def forget(self) -> None:
        """Clear what earlier requests left behind (prefix cache), so that a repeat starts where the first one did."""
        ...

    async def iterations(self, until_ns: int) -> np.ndarray | None:
        """Every step since start, int64 of shape (steps, len(IterationField)) in order of scheduling; None where steps
        are not recorded.

        Waits until the records of all steps that delivered a token before `until_ns` have arrived, or a few seconds at
        most.
        """
        ...

    def shutdown(self) -> None:
        """Stop the engine and its processes. May be called twice."""
        ...
