"""An engine seen from outside, so that a test can act when so many requests are under way, however long that takes. No
test stands here."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay


class UnderWay:
    """The engine, for `replay`; counts the requests that were handed over and those that have had a token."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.begun, self.with_token = 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        self.begun += 1
        first = True
        async for message in self._engine.generate(request):
            self.with_token += first
            first = False
            yield message

    async def when(self, *, begun: int = 0, with_token: int = 0) -> None:
        """Return once there are so many of each."""
        while self.begun < begun or self.with_token < with_token:
            await asyncio.sleep(0.01)


def vllm_process() -> int:
    """The process in which vLLM schedules, a child of this one."""
    (process,) = [child for child in multiprocessing.active_children() if "EngineCore" in child.name]
    assert process.pid is not None
    return process.pid


async def found_together(engine: Any, planned: Sequence[PlannedRequest], **options: Any) -> ReplayResult:
    """A replay on vLLM whose process is stopped until all requests have been handed over, so that it finds them
    together."""
    watched, process = UnderWay(engine), vllm_process()
    os.kill(process, signal.SIGSTOP)
    try:
        playing = asyncio.create_task(replay(watched, planned, **options))  # type: ignore[arg-type]
        await watched.when(begun=len(planned))
        await asyncio.sleep(2)  # what was handed over is on its way through a socket
    finally:
        os.kill(process, signal.SIGCONT)
    return await playing
