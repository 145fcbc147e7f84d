"""HTTP with one completions server: the session, how long and how large a reply may be, and what a failure is called.

What replies mean belongs to `openai_server` (what the server reports about itself) and `openai_stream` (completions).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from gst_assets.engine.protocol import EngineDied
from gst_assets.errors import EngineError
from gst_assets.foreign_text import visible, without_secrets
from gst_assets.scenario import Server

if TYPE_CHECKING:
    import aiohttp

LONGEST_REPLY = 4 << 20
"""Bytes that a server may take to describe itself; a list of 500 models is 0.5 MB, vLLM's /metrics 0.1 MB."""
_LONGEST_ERROR = 64 << 10
_KEEPALIVE_S = 3.0  # below uvicorn's 5 s, so that no request meets a connection that the server is just closing
_SHOWN = 300
_CA_REMEDY = (
    "Name a file with the certificate of its authority in the environment variable SSL_CERT_FILE (PEM), or correct"
    " engine.server.base_url."
)


class ServerFault(EngineError):
    """A request failed by what the server did or said; other requests are unaffected."""


class ServerRefused(ServerFault):
    """The server answered a request with an error."""


class ServerSilent(ServerFault):
    """The server did not accept a connection, said nothing for too long, or did not come to an end in time."""


class StreamBroken(ServerFault):
    """A reply ended half-way, is too long, or is not what was asked for."""


class ServerOverran(ServerFault):
    """The server sent more tokens than were asked for."""


class OutOfFiles(EngineError):
    """This process may open no further connection: the limit of open files, not the server, is in the way."""


def shown(what: object) -> str:
    """One line for a message, of characters that can be shown and written, without what a server would fill a page
    with."""
    text = str(what)[: 4 * _SHOWN]
    line = " ".join(visible(text).split()) or type(what).__name__
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def error_message(text: str) -> str:
    """The message of an error answer: `error.message` of OpenAI's form, `message` of SGLang's, or the text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return shown(text)
    inner = found
    if isinstance(found, dict) and found.get("error") is not None:
        inner = found["error"]
    if isinstance(inner, dict) and inner.get("message") is not None:
        inner = inner["message"]
    return shown(inner)


@dataclass(frozen=True)
class Reply:
    """A whole answer: of one that is no 200 the first 64 KiB, and of a redirect where it leads."""

    status: int
    text: str
    location: str

    def refusal(self) -> ServerRefused:
        """What an answer without success means."""
        if 300 <= self.status < 400:
            return ServerRefused(
                f"HTTP {self.status}: redirects to {_origin(self.location)}. What is measured is one server, so"
                " redirects are not followed: set engine.server.base_url to the address at which it answers itself"
            )
        return ServerRefused(f"HTTP {self.status}: {error_message(self.text)}")


class Http:
    """The session with one server; its failures become this project's errors.

    What the server says goes into tables, errors and metadata: it all comes through here, without the key, which some
    servers repeat.
    """

    def __init__(self, session: aiohttp.ClientSession, server: Server, secret: str, request_timeout_s: float) -> None:
        self.server = server
        self._session = session
        self._secrets = (secret,)
        self._request_timeout_s = request_timeout_s
        self._root = server.base_url.rstrip("/").removesuffix("/v1")

    @classmethod
    @asynccontextmanager
    async def opened(cls, server: Server, request_timeout_s: float) -> AsyncIterator[Http]:
        """A session that ends with the block. Limits of a request, in seconds: `connect_timeout_s` to connect,
        `read_timeout_s` of silence, `request_timeout_s` for the whole reply.

        Raises:
            EngineError: the API key is missing.
        """
        import aiohttp

        headers, secret = _headers(server)
        session = aiohttp.ClientSession(
            # Connections without limit: a request of an open loop must not wait for an earlier one's.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=None),
            timeout=aiohttp.ClientTimeout(
                total=request_timeout_s, sock_connect=server.connect_timeout_s, sock_read=server.read_timeout_s
            ),
            # Unpacking would be time of the client's, and of a few bytes it makes any number.
            headers={**headers, "Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        async with session:
            yield cls(session, server, secret, request_timeout_s)

    def url(self, path: str) -> str:
        return f"{self._root}{path}"

    async def get(self, path: str) -> Reply:
        """Ask for `path`. A redirect is not followed.

        Raises:
            EngineDied, ServerSilent, StreamBroken, OutOfFiles
        """
        return await self._whole("GET", path)

    async def post(self, path: str) -> Reply:
        """As `get`, by POST without a body."""
        return await self._whole("POST", path)

    async def _whole(self, method: str, path: str) -> Reply:
        try:
            async with self._session.request(method, self.url(path), allow_redirects=False) as response:
                return await self._read(response, f"{method} {path}")
        except Exception as error:
            await self.fail(error)

    async def pieces(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Post `body` as JSON and yield the reply as it arrives.

        Raises:
            EngineDied, ServerRefused, ServerSilent, StreamBroken, OutOfFiles
        """
        try:
            async with self._session.post(self.url(path), json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise (await self._read(response, f"POST {path}")).refusal()
                _check_plain(response, f"POST {path}")
                async for piece in response.content.iter_any():
                    yield piece
        except Exception as error:
            await self.fail(error)

    async def _read(self, response: aiohttp.ClientResponse, what: str) -> Reply:
        """The reply, within bounds: of an error the beginning is enough; a description that is too long is
        an error."""
        _check_plain(response, what)
        is_error = response.status != 200
        limit = _LONGEST_ERROR if is_error else LONGEST_REPLY
        read = bytearray()
        async for piece in response.content.iter_any():
            read += piece
            if len(read) > limit:
                if is_error:
                    break
                raise StreamBroken(f"{what}: the reply is longer than {limit} bytes")
        text = self.clean(read[:limit].decode(errors="replace"))
        return Reply(response.status, text, response.headers.get("Location", ""))

    def clean(self, text: str) -> str:
        """What the server said, without the key; in JSON also where the server wrote the key's characters in another
        way."""
        if not any(self._secrets):
            return without_secrets(text)
        with suppress(ValueError, RecursionError):
            plainly = json.dumps(json.loads(text), ensure_ascii=False)
            if any(secret and secret in plainly for secret in self._secrets):
                text = plainly
        return without_secrets(text, self._secrets)

    async def fail(self, error: Exception) -> NoReturn:
        """Raise what an error of aiohttp or the operating system means; any other goes on as it is.

        Raises:
            EngineDied: nothing listens at the address.
            OutOfFiles, ServerSilent, StreamBroken
        """
        import aiohttp

        if isinstance(error, EngineError):
            raise error
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise OutOfFiles(
                f"no connection could be opened: {os.strerror(error.errno)} in this process. Raise the limit (`ulimit"
                " -n`) and measure again"
            ) from error
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            limit = f"{self.server.connect_timeout_s:g} s (engine.server.connect_timeout_s)"
            raise ServerSilent(f"no connection within {limit}") from error
        if isinstance(error, aiohttp.ServerTimeoutError):
            limit = f"{self.server.read_timeout_s:g} s (engine.server.read_timeout_s)"
            raise ServerSilent(f"the server said nothing for {limit}") from error
        if isinstance(error, TimeoutError) and error.errno is None:  # aiohttp's own, not that of a system call
            limit = f"{self._request_timeout_s:g} s (replay.request_timeout_s)"
            raise ServerSilent(f"the reply did not end within {limit}") from error
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise ServerSilent(f"its TLS certificate is not accepted ({shown(error)}). {_CA_REMEDY}") from error
        if isinstance(error, aiohttp.ClientSSLError):
            raise ServerSilent(
                f"no TLS connection ({shown(error)}). Does the server speak https? If not, write http:// in"
                " engine.server.base_url"
            ) from error
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = shown(error.os_error.strerror or error)
            if isinstance(error.os_error, ConnectionRefusedError):
                raise EngineDied(f"nothing answers at the server's address ({reason})") from error
            raise ServerSilent(f"no connection to the server's address ({reason})") from error
        if isinstance(error, (aiohttp.ClientError, ConnectionError)):
            told = shown(self.clean(str(error)))
            if await self._is_gone():
                raise EngineDied(f"the server is gone ({told})") from error
            raise StreamBroken(f"the server broke the connection ({told})") from error
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


def _headers(server: Server) -> tuple[dict[str, str], str]:
    """What every request carries, and the secret in it; none where there is none."""
    if server.api_key_variable is None:
        return {}, ""
    key = os.environ.get(server.api_key_variable)
    if not key:
        raise EngineError(
            f"engine.server.api_key_variable: the environment variable {server.api_key_variable} is not set. Set it to"
            " the server's API key, or engine.server.api_key_variable to null."
        )
    scheme, _, credentials = key.strip().rpartition(" ")
    return {"Authorization": f"{scheme or 'Bearer'} {credentials}"}, credentials


def _check_plain(response: aiohttp.ClientResponse, what: str) -> None:
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise StreamBroken(
            f"{what}: the reply is packed ({shown(packed)}), which was not asked for. Switch compression off in the"
            " server or its proxy"
        )


def _origin(location: str) -> str:
    """Where a redirect leads, without path and query, which may hold what is secret."""
    try:
        target = urlsplit(location)
        host, port = target.hostname, target.port
    except ValueError:
        return "an address that is none"
    if not host:
        return "another path of the same server"
    return shown(f"{target.scheme or 'http'}://{host}{f':{port}' if port else ''}")
