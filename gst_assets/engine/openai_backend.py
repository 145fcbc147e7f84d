"""The OpenAI backend: `protocol.Engine` on a running server with the completions API (`vllm serve`, SGLang), over HTTP.

Exact token ids go in, and every token is stamped when its message arrives. Connection, HTTP, JSON and the server's own front end are inside
every measured time. How the server was started and what hardware it has is none of this module's business.

The client is aiohttp. Measured against a server that writes to 32 streams every 5 ms, on two cores: a message was seen 1.0 ms after its
writing at the median (httpx 2.6), p99 1.7 to 5.3 ms (13.5), at 32 µs of processor time a message (130).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from gst_assets.contracts.documents import UNKNOWN_POLICY, VLLM_POLICY, EngineSettings
from gst_assets.engine.protocol import UNKNOWN_TOKEN_ID, EngineDied, EngineRequest, TokenMessage
from gst_assets.engine.settings_check import check_settings
from gst_assets.errors import EngineError
from gst_assets.foreign_text import without_secrets
from gst_assets.scenario import Scenario, Server

if TYPE_CHECKING:
    import aiohttp

BACKEND = "openai"
_KEEPALIVE_S = 3.0  # below uvicorn's 5 s, so that no request meets a connection that the server is just closing
_PROBE = EngineRequest("probe", (1, 2, 3), 2, 0)
_UNKNOWN = "unknown"
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TOKEN_IDS: dict[str, Any] = {"return_token_ids": True}
_RUNNING_COUNT: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_SHOWN = 300
_LONGEST_EVENT = 1 << 20


class ServerRefused(EngineError):
    """The server answered a request with an error."""


class ServerSilent(EngineError):
    """The server did not accept a connection, or said nothing for too long."""


class StreamBroken(EngineError):
    """The stream of a request ended half-way, or is no stream of completions."""


# --- connecting -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_openai_engine(scenario: Scenario) -> AsyncIterator[OpenAiEngine]:
    """Connect to the server of `scenario`, find out what it tells about itself, and disconnect at the end of the block.

    A request of a few tokens is played to see that the server takes token ids as they are and says how many tokens a message holds.

    Raises:
        EngineError: nobody answers at the address, it is no such server, it serves another model, its settings differ from the scenario's, or
            the API key is missing.
    """
    import aiohttp

    server = scenario.engine.server
    assert server is not None  # the scenario requires it
    headers, secret = _headers(server)
    session = aiohttp.ClientSession(
        # Connections without limit: a request of an open loop must not wait for an earlier one's.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(sock_connect=server.connect_timeout_s, sock_read=server.read_timeout_s),
        headers=headers,
    )
    async with session:
        http = _Http(session, server, secret)
        try:
            model, max_model_len = await _served_model(http)
            settings = await _read_settings(http, scenario, max_model_len)
            check_settings(scenario, settings)
            extras = await _token_extras(http, scenario, model)
        except (EngineDied, ServerSilent, ServerRefused, StreamBroken) as error:
            raise EngineError(
                f"engine.server.base_url {server.base_url}: {error}. Expected a running OpenAI-compatible server that streams completions of "
                "token ids, such as `vllm serve`. Start it, or correct the address. Nothing was measured."
            ) from error
        yield OpenAiEngine(http, scenario, settings, model, extras)


def _headers(server: Server) -> tuple[dict[str, str], str]:
    """What every request carries, and the secret in it; none where there is none."""
    if server.api_key_variable is None:
        return {}, ""
    key = os.environ.get(server.api_key_variable)
    if not key:
        raise EngineError(
            f"engine.server.api_key_variable: the environment variable {server.api_key_variable} is not set. Set it to the server's API key, "
            "or engine.server.api_key_variable to null."
        )
    scheme, _, credentials = key.strip().rpartition(" ")
    return {"Authorization": f"{scheme or 'Bearer'} {credentials}"}, credentials


class _Http:
    """The session with one server; its failures become this project's errors.

    What the server says goes into tables, errors and metadata: it all comes through here, without the key, which some servers repeat.
    """

    def __init__(self, session: aiohttp.ClientSession, server: Server, secret: str) -> None:
        self.session = session
        self.server = server
        self._secrets = (secret,)
        self._root = server.base_url.rstrip("/").removesuffix("/v1")

    def url(self, path: str) -> str:
        return f"{self._root}{path}"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text."""
        try:
            async with self.session.get(self.url(path), allow_redirects=False) as response:
                return response.status, self.clean(await response.text(errors="replace"))
        except Exception as error:
            await self.fail(error)

    def clean(self, text: str) -> str:
        """What the server said, without the key; in JSON also where the server wrote the key's characters in another way."""
        with suppress(ValueError):
            plainly = json.dumps(json.loads(text), ensure_ascii=False)
            if any(secret and secret in plainly for secret in self._secrets):
                text = plainly
        return without_secrets(text, self._secrets)

    async def fail(self, error: Exception) -> NoReturn:
        """Raise what an error of aiohttp means; any other goes on as it is.

        Raises:
            EngineDied: nobody listens at the address.
            ServerSilent, StreamBroken
        """
        import aiohttp

        if isinstance(error, aiohttp.ConnectionTimeoutError):
            limit = f"{self.server.connect_timeout_s:g} s (engine.server.connect_timeout_s)"
            raise ServerSilent(f"no connection within {limit}") from error
        if isinstance(error, aiohttp.ServerTimeoutError):
            limit = f"{self.server.read_timeout_s:g} s (engine.server.read_timeout_s)"
            raise ServerSilent(f"the server said nothing for {limit}") from error
        if isinstance(error, aiohttp.ClientConnectorError):
            raise EngineDied(f"nobody answers at the server's address ({error.os_error.strerror or error})") from error
        if isinstance(error, (aiohttp.ClientError, ConnectionError)):
            if await self._is_gone():
                raise EngineDied(f"the server is gone ({_shown(self.clean(str(error)))})") from error
            raise StreamBroken(f"the server broke the connection ({_shown(self.clean(str(error)))})") from error
        raise error

    async def _is_gone(self) -> bool:
        """Whether the server's address refuses connections."""
        address = urlsplit(self._root)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            connecting = asyncio.open_connection(address.hostname, port)
            _, writer = await asyncio.wait_for(connecting, self.server.connect_timeout_s)
        except ConnectionRefusedError:
            return True
        except OSError:  # of which TimeoutError is one: busy or out of reach, but not known to be gone
            return False
        writer.close()
        return False


def _shown(what: object) -> str:
    """One line for a message, without what a server would fill a page with."""
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# --- what the server tells --------------------------------------------------------------------------------------------


async def _served_model(http: _Http) -> tuple[str, int | None]:
    """The name to ask for, and the longest sequence it takes where the server tells (vLLM and SGLang do)."""
    wanted = http.server.served_model
    status, text = await http.get("/v1/models")
    if status != 200:
        raise ServerRefused(f"GET /v1/models gave HTTP {status}: {_error_message(text)}")
    try:
        cards = {str(card["id"]): card for card in json.loads(text)["data"]}
    except (ValueError, TypeError, KeyError):
        raise StreamBroken(f"GET /v1/models gave no list of models but {_shown(repr(text))}") from None
    if wanted is None and len(cards) != 1:
        raise EngineError(
            f"engine.server.served_model: the server at {http.url('')} serves {', '.join(cards) or 'no model'}. Name one of them."
        )
    name = wanted or next(iter(cards))
    if name not in cards:
        raise EngineError(
            f"engine.server.served_model {name!r}: the server at {http.url('')} serves {', '.join(cards) or 'no model'}. Name one of them."
        )
    return name, cards[name].get("max_model_len")


async def _read_settings(http: _Http, scenario: Scenario, max_model_len: int | None) -> EngineSettings:
    """What the server tells; the rest as the scenario states it, named in `not_read_back`.

    Raises:
        EngineError: the number of KV blocks is neither told nor stated.
    """
    told: dict[str, Any] = {} if max_model_len is None else {"max_model_len": max_model_len}
    told |= await _version(http) | await _cache_settings(http) | await _vllm_config(http)
    engine = scenario.engine
    stated: dict[str, Any] = {
        "engine_version": _UNKNOWN,
        "dtype": scenario.model.dtype,
        "max_model_len": scenario.model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "num_kv_blocks": engine.num_kv_blocks,
        "enable_chunked_prefill": True,  # what every scenario means
        "enable_prefix_caching": engine.enable_prefix_caching,
        "async_scheduling": engine.async_scheduling,
        "enforce_eager": engine.enforce_eager,
        "cudagraph_capture_sizes": [],
        "attention_backend": _UNKNOWN,
        "scheduling_policy": UNKNOWN_POLICY,
    }
    if told.get("num_kv_blocks", engine.num_kv_blocks) is None:
        raise EngineError(
            "engine.num_kv_blocks: the server does not tell it (vLLM does at /metrics) and the scenario leaves it open. Set it to the server's number of KV blocks."
        )
    not_read_back = [name for name in stated if name not in told]
    return EngineSettings(backend=BACKEND, transport="http", not_read_back=not_read_back, **(stated | told))


async def _version(http: _Http) -> dict[str, Any]:
    """vLLM's version from /version, which tells also whose scheduler it is."""
    version = (await _json(http, "/version")).get("version")
    return {"engine_version": f"vLLM {version}", "scheduling_policy": VLLM_POLICY} if version else {}


async def _cache_settings(http: _Http) -> dict[str, Any]:
    """The KV cache of a vLLM server from its metrics; empty from any other."""
    status, text = await http.get("/metrics")
    found = _CACHE_INFO.search(text) if status == 200 else None
    labels = dict(_LABEL.findall(found[1])) if found else {}
    told: dict[str, Any] = {}
    for label, name in (("block_size", "block_size"), ("num_gpu_blocks", "num_kv_blocks")):
        if labels.get(label, "").isdecimal():
            told[name] = int(labels[label])
    if labels.get("enable_prefix_caching") in ("True", "False"):
        told["enable_prefix_caching"] = labels["enable_prefix_caching"] == "True"
    return told


async def _vllm_config(http: _Http) -> dict[str, Any]:
    """The configuration of a vLLM server that runs with VLLM_SERVER_DEV_MODE=1, which alone tells it; empty from any other."""
    config = (await _json(http, "/server_info?config_format=json")).get("vllm_config")
    if not isinstance(config, dict):
        return {}
    model, scheduler = config["model_config"], config["scheduler_config"]
    return {
        "dtype": str(model["dtype"]).removeprefix("torch."),
        "max_num_seqs": scheduler["max_num_seqs"],
        "max_num_batched_tokens": scheduler["max_num_batched_tokens"],
        "enable_chunked_prefill": bool(scheduler["enable_chunked_prefill"]),
        "async_scheduling": bool(scheduler["async_scheduling"]),
        "enforce_eager": bool(model["enforce_eager"]),
        "cudagraph_capture_sizes": sorted(config["compilation_config"]["cudagraph_capture_sizes"] or []),
    }


async def _json(http: _Http, path: str) -> dict[str, Any]:
    """The object at an address that not every server has; empty where there is none."""
    status, text = await http.get(path)
    try:
        found = json.loads(text) if status == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error_message(text: str) -> str:
    """The message of an error answer: `error.message` of OpenAI's form, `message` of SGLang's, or the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return _shown(text)
    inner = found.get("error", found) if isinstance(found, dict) else found
    return _shown(inner.get("message", inner) if isinstance(inner, dict) else inner)


async def _token_extras(http: _Http, scenario: Scenario, model: str) -> dict[str, Any]:
    """What must be asked for so that messages tell their tokens: their ids, or else how many there were so far.

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


# --- running ----------------------------------------------------------------------------------------------------------


class OpenAiEngine:
    """A server that is connected to. Opened by `open_openai_engine`."""

    backend = BACKEND

    def __init__(
        self, http: _Http, scenario: Scenario, settings: EngineSettings, model: str, extras: dict[str, Any]
    ) -> None:
        self._http = http
        self._scenario = scenario
        self._settings = settings
        self._model = model
        self._extras = extras

    def settings(self) -> EngineSettings:
        """What the server tells, completed by what the scenario states (`not_read_back`)."""
        return self._settings

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        """See `protocol.Engine.generate`. Tokens that arrive in one piece make one message.

        Raises:
            EngineDied, ServerRefused, ServerSilent, StreamBroken
        """
        return _stream(self._http, _body(self._scenario, self._model, request) | self._extras, request)

    async def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`. Nothing to do: giving a request up closes its connection, upon which servers drop it."""

    async def forget(self) -> None:
        """See `protocol.Engine.forget`.

        Raises:
            EngineError: the server caches prefixes and does not let them be dropped.
        """
        if not self._settings.enable_prefix_caching:
            return
        try:
            async with self._http.session.post(
                self._http.url("/reset_prefix_cache"), allow_redirects=False
            ) as response:
                status = response.status
        except Exception as error:
            await self._http.fail(error)
        if status != 200:
            raise EngineError(
                f"engine.enable_prefix_caching=true: the server answers POST /reset_prefix_cache with HTTP {status}, so what one repeat left in the cache "
                "would serve the next. Start vLLM with VLLM_SERVER_DEV_MODE=1, or the server and the scenario without prefix caching."
            )

    async def iterations(self, until_ns: int) -> np.ndarray | None:  # noqa: ARG002
        """None: a server does not tell its steps."""
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


async def _stream(http: _Http, body: dict[str, Any], request: EngineRequest) -> AsyncIterator[TokenMessage]:
    reader = _EventReader(http.clean)
    try:
        async with http.session.post(http.url("/v1/completions"), json=body, allow_redirects=False) as response:
            if response.status != 200:
                raise ServerRefused(
                    f"HTTP {response.status}: {_error_message(http.clean(await response.text(errors='replace')))}"
                )
            async for piece in response.content.iter_any():
                received_ns = time.monotonic_ns()
                if token_ids := reader.feed(piece):
                    yield TokenMessage(token_ids, received_ns)
    except EngineError:
        raise
    except Exception as error:
        await http.fail(error)
    reader.check_end(len(request.prompt_token_ids))


@dataclass
class _EventReader:
    """Reads the server-sent events of one completion. Events cut across pieces are put together again."""

    clean: Callable[[str], str]
    """Takes the key out of what is told."""
    _rest: bytes = b""
    _count: int = 0
    _finish_reason: str | None = None
    _usage: dict[str, Any] = field(default_factory=dict)

    def feed(self, piece: bytes) -> list[int]:
        """The token ids of the events that `piece` completes; `UNKNOWN_TOKEN_ID` for those the server only counts.

        Raises:
            ServerRefused: the server reports an error inside the stream.
            StreamBroken: an event is no completion, or does not tell its tokens.
        """
        *events, self._rest = _EVENT_END.split(self._rest + piece)
        if len(self._rest) > _LONGEST_EVENT:
            raise StreamBroken(f"expected server-sent events, found {_LONGEST_EVENT} bytes without the end of one")
        ids: list[int] = []
        for event in events:
            # Lines that begin otherwise are comments and fields that say nothing about tokens.
            data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
            if data and data != b"[DONE]":
                ids += self._tokens(data)
        return ids

    def _tokens(self, data: bytes) -> list[int]:
        try:
            message = json.loads(data)
            if "error" in message:
                raise ServerRefused(
                    f"error inside the stream: {_error_message(self.clean(data.decode(errors='replace')))}"
                )
            usage, choices = message.get("usage") or {}, message.get("choices") or []
            choice = choices[0] if choices else {}
            ids, reason, text = choice.get("token_ids"), choice.get("finish_reason"), choice.get("text")
            counted = usage.get("completion_tokens")
            if ids is None and choices and counted is not None:
                ids = [UNKNOWN_TOKEN_ID] * (counted - self._count)
            if ids is None and text:
                raise StreamBroken("the server's messages tell neither token_ids nor how many tokens there were so far")
            self._count += len(ids or ())
        except (ValueError, TypeError, AttributeError, LookupError):
            raise StreamBroken(
                f"expected the JSON of a completion in each event, found {_shown(repr(self.clean(data.decode(errors='replace')).encode()[:_SHOWN]))}"
            ) from None
        self._usage |= usage
        if reason in ("abort", "error"):
            raise ServerRefused(f"the server ended the request with finish_reason {reason!r}")
        self._finish_reason = reason or self._finish_reason
        return ids or []

    def check_end(self, num_prefill_tokens: int) -> None:
        """The stream came to its end, and both sides counted the same.

        Raises:
            StreamBroken
        """
        if self._finish_reason is None:
            raise StreamBroken(
                "the stream ended without a finish_reason: it was cut half-way, or is no stream of completions"
            )
        for name, found in (("prompt_tokens", num_prefill_tokens), ("completion_tokens", self._count)):
            told = self._usage.get(name, found)
            if told != found:
                raise StreamBroken(f"the server counts {told} {name}, this client {found}")
