"""An engine of the protocol that lives in the event loop of the test, so that timing, failures and death can be
arranged exactly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.protocol import EngineDied, EngineRequest, IterationField, RequestTimes, TokenMessage
from gst_assets.errors import EngineError

SETTINGS = EngineSettings(
    backend="memory",
    engine_version="1",
    dtype="float32",
    max_model_len=2048,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    block_size=32,
    num_kv_blocks=1024,
    enable_chunked_prefill=True,
    enable_prefix_caching=False,
    async_scheduling=False,
    enforce_eager=True,
    attention_backend="NONE",
)


@dataclass
class MemoryEngine:
    """Yields the tokens 0, 1, 2, ... of each request, `step_s` apart. The sets name requests that behave otherwise."""

    step_s: float = 0.001
    hang: set[str] = field(default_factory=set)
    fail: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    """Requests that hang and never let themselves be cancelled."""
    bunch: set[str] = field(default_factory=set)
    holds: dict[str, Callable[[], bool]] = field(default_factory=dict)
    """Requests that yield nothing before this is true."""
    stop_after: dict[str, int] = field(default_factory=dict)
    die_at_token: int | None = None
    """The engine dies when this many tokens have been made in all."""

    backend: str = "memory"
    aborted: list[str] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    tokens_made: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)

    def settings(self) -> EngineSettings:
        return SETTINGS

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        name = request.request_id
        self.log.append(("begin", name))
        if self.died.is_set():
            raise EngineDied("the engine was dead already")
        queued_ns = time.monotonic_ns()
        if name in self.hang:
            await self._wait(3600)
        while name in self.holds and not self.holds[name]():
            await asyncio.sleep(0.001)
        while name in self.deaf:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        if self.died.is_set():
            return
        count = self.stop_after.get(name, request.num_decode_tokens)
        width = 2 if name in self.bunch else 1
        for first in range(0, count, width):
            await self._wait(self.step_s)
            if name in self.fail and first:
                raise EngineError("out of luck")
            ids = list(range(first, min(first + width, count)))
            self.tokens_made += len(ids)
            if self.die_at_token is not None and self.tokens_made >= self.die_at_token:
                self.died.set()
                raise EngineDied("the engine was killed")
            now = time.monotonic_ns()
            times = RequestTimes(queued_ns, queued_ns, now, now, 0) if ids[-1] == count - 1 else None
            yield TokenMessage(ids, now, times)
        self.log.append(("end", name))

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.died.is_set():
            await asyncio.sleep(3600)  # only the request that met the death hears of it; the others never hear again

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def forget(self) -> None:
        self.log.append(("forget", ""))

    async def iterations(self, until_ns: int) -> np.ndarray | None:
        self.log.append(("iterations", str(until_ns)))
        return np.empty((0, len(IterationField)), dtype=np.int64)

    def shutdown(self) -> None: ...
