"""The OpenAI backend: `protocol.Engine` on a running server with the completions API (`vllm serve`, SGLang), over HTTP.

Exact token ids go in, and every token is stamped when its message arrives. Connection, HTTP, JSON and the server's own
front end are inside every measured time. How the server was started and what hardware it has does not belong
here.

The client is aiohttp. Measured against a server that writes to 32 streams every 5 ms, on two cores: a message was seen
1.0 ms after its writing at the median (httpx 2.6), p99 1.7 to 5.3 ms (13.5), at 32 µs of processor time a message
(130).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.openai_http import Http, ServerFault, ServerRefused, StreamBroken
from gst_assets.engine.openai_server import BACKEND, read_server
from gst_assets.engine.openai_stream import EventReader
from gst_assets.engine.protocol import EngineDied, EngineRequest, TokenMessage
from gst_assets.engine.settings_check import check_settings
from gst_assets.errors import EngineError
from gst_assets.scenario import Scenario

_PROBE = EngineRequest("probe", (1, 2, 3), 2, 0)
_TOKEN_IDS: dict[str, Any] = {"return_token_ids": True}
_RUNNING_COUNT: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@asynccontextmanager
async def open_openai_engine(scenario: Scenario) -> AsyncIterator[OpenAiEngine]:
    """Connect to the server of `scenario`, find out what it reports about itself, and disconnect at the end of the
    block.

    A request of a few tokens is played to see that the server takes token ids as they are and says how many tokens a
    message holds.

    Raises:
        EngineError: nothing answers at the address, it is no such server, it serves another model, its settings differ
            from the scenario's, it runs with what is not supported, or the API key is missing.
    """
    server = scenario.engine.server
    assert server is not None  # the scenario requires it
    async with Http.opened(server, scenario.replay.request_timeout_s) as http:
        try:
            facts = await read_server(http, scenario)
            check_settings(scenario, facts.settings)
            extras = await _token_extras(http, scenario, facts.model)
        except (EngineDied, ServerFault) as error:
            raise EngineError(
                f"engine.server.base_url {server.base_url}: {error}. Expected a running OpenAI-compatible server that"
                " streams completions of token ids, such as `vllm serve`. Start it, or correct the address. Nothing"
                " was measured."
            ) from error
        yield OpenAiEngine(http, scenario, facts.settings, facts.model, extras)


async def _token_extras(http: Http, scenario: Scenario, model: str) -> dict[str, Any]:
    """What must be asked for so that messages state their tokens: their ids, or else how many there were so far.

    Raises:
        StreamBroken: the server does neither, or counts other prompt tokens than were sent.
        ServerRefused: it takes no token ids at all.
    """
    problem: EngineError | None = None
    for extras in (_TOKEN_IDS, _RUNNING_COUNT):
        try:
            async for _ in _stream(http, _body(scenario, model, _PROBE) | extras, _PROBE):
                pass
            return extras
        except (ServerRefused, StreamBroken) as error:
            problem = problem or error
    assert problem is not None
    raise problem


class OpenAiEngine:
    """A server that is connected to. Opened by `open_openai_engine`."""

    backend = BACKEND

    def __init__(
        self, http: Http, scenario: Scenario, settings: EngineSettings, model: str, extras: dict[str, Any]
    ) -> None:
        self._http = http
        self._scenario = scenario
        self._settings = settings
        self._model = model
        self._extras = extras

    def settings(self) -> EngineSettings:
        """What the server reports, completed by what the scenario states (`not_read_back`)."""
        return self._settings

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        """See `protocol.Engine.generate`. Tokens that arrive in one piece make one message.

        Raises:
            EngineDied, ServerFault, OutOfFiles
        """
        return _stream(self._http, _body(self._scenario, self._model, request) | self._extras, request)

    async def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`. Nothing to do: giving a request up closes its connection, upon which servers
        drop it."""

    async def forget(self) -> None:
        """See `protocol.Engine.forget`.

        Raises:
            EngineError: the server caches prefixes and does not let them be dropped.
        """
        if not self._settings.enable_prefix_caching:
            return
        status = (await self._http.post("/reset_prefix_cache")).status
        if status != 200:
            raise EngineError(
                f"engine.enable_prefix_caching=true: the server answers POST /reset_prefix_cache with HTTP {status}, so"
                " what one repeat left in the cache would serve the next. Start vLLM with VLLM_SERVER_DEV_MODE=1, or"
                " the server and the scenario without prefix caching."
            )

    async def iterations(self, until_ns: int) -> np.ndarray | None:  # noqa: ARG002
        """None: a server does not report its steps."""
        return None

    def shutdown(self) -> None:
        """Nothing: the server is not ours, and the connections end with `open_openai_engine`."""


def _body(scenario: Scenario, model: str, request: EngineRequest) -> dict[str, Any]:
    sampling = scenario.engine.sampling
    body = {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": request.num_decode_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Extra parameters of vLLM and SGLang, beyond OpenAI's own.
        "ignore_eos": sampling.ignore_eos,
    }
    stop_ids = sorted({*sampling.stop_token_ids, *range(sampling.stop_token_id_below)})
    if stop_ids:
        body["stop_token_ids"] = stop_ids
    if sampling.temperature > 0:  # a greedy request draws nothing
        body["seed"] = request.seed
    return body


async def _stream(http: Http, body: dict[str, Any], request: EngineRequest) -> AsyncIterator[TokenMessage]:
    reader = EventReader(len(request.prompt_token_ids), request.num_decode_tokens, http.clean)
    async with aclosing(http.pieces("/v1/completions", body)) as pieces:
        async for piece in pieces:
            received_ns = time.monotonic_ns()
            if token_ids := reader.feed(piece):
                yield TokenMessage(token_ids, received_ns)
    reader.check_end()
