"""An engine seen from outside, so that a test can act when so many requests are under way, however long that takes. No
test stands here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gst_assets.engine.protocol import EngineRequest, TokenMessage


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
