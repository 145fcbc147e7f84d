"""A server on a real socket that misbehaves on demand: what it does with a request is chosen by the prompt's first
token id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Behaviour(IntEnum):
    GOOD = 1
    CUT = 10
    """Two tokens, then the connection is closed."""
    HANG = 11
    """The request is read and never answered."""
    STALL = 12
    """One token, then silence."""
    GARBAGE = 13
    NO_END = 14
    """All tokens and an orderly end of the response, but no finish_reason."""
    OVERLOADED = 15
    FEWER = 16
    ERROR_EVENT = 17
    OTHER_PROMPT = 18
    """Counts one prompt token more than was sent."""
    TOGETHER = 19
    """All tokens in one write."""
    IN_PIECES = 20
    """Events cut anywhere, with comments and CRLF line ends."""
    ABORT = 21
    NOT_TOKENS = 22
    """Text without a word about tokens."""
    ENDLESS = 23
    """Bytes without the end of an event."""
    HTML = 24
    ECHO = 25
    """Refuses and repeats the Authorization header, once in another spelling of JSON."""
    ECHO_EVENT = 26
    """An error inside the stream that repeats it."""
    ECHO_GARBAGE = 27
    """No JSON, and repeats it."""


@dataclass
class Peer:
    """`bodies` are the requests received; `connections` counts what was accepted."""

    base_url: str = ""
    models: tuple[str, ...] = ("m",)
    models_status: int = 200
    counts_only: bool = False
    """Know nothing of return_token_ids; the running count of tokens is sent to a client that asks for it."""
    obeys: bool = True
    """Misbehave as the prompt demands."""
    pause_s: float = 0.002
    together: int = 0
    """After the first, which is a client's probe, no completion is answered before so many more have been asked for."""
    silent_after: int | None = None
    """So many completions are answered, a client's probe among them; those after them never are."""
    dies_after: int | None = None
    """So many are answered; its process is killed by the next."""
    tls: ssl.SSLContext | None = None
    connections: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[Peer]:
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                await _answer(peer, reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=peer.tls, backlog=2048)
    peer.base_url = f"{'https' if peer.tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    peer.headers.append(head)
    if head.startswith("GET /v1/models"):
        _plain(writer, peer.models_status, json.dumps({"data": [{"id": name} for name in peer.models], "asked": head}))
    elif head.startswith("POST /v1/completions"):
        (length,) = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = json.loads(await reader.readexactly(int(length)))
        peer.bodies.append(body)
        await _complete(peer, body, writer)
    else:
        _plain(writer, 404, '{"detail":"Not Found"}')
    await writer.drain()


def _plain(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    writer.write(f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())


async def _complete(peer: Peer, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    try:
        how = Behaviour(body["prompt"][0] if peer.obeys else Behaviour.GOOD)
    except ValueError:
        how = Behaviour.GOOD
    while 1 < len(peer.bodies) <= peer.together:
        await asyncio.sleep(0.01)
    if peer.silent_after is not None and len(peer.bodies) > peer.silent_after:
        await asyncio.sleep(3600)
    if peer.dies_after is not None and len(peer.bodies) > peer.dies_after:
        os.kill(os.getpid(), signal.SIGKILL)
    if how is Behaviour.HANG:
        await asyncio.sleep(3600)
    if how is Behaviour.OVERLOADED:
        _plain(writer, 503, '{"error": {"message": "too many requests waiting", "code": 503}}')
        return
    told = next((line for line in peer.headers[-1].split("\r\n") if line.lower().startswith("authorization:")), "")
    if how is Behaviour.ECHO:
        spelt = "".join(f"\\u{ord(one):04x}" for one in told)
        _plain(writer, 401, f'{{"error": {{"message": "wrong: {told} or {spelt}"}}}}')
        return
    if how is Behaviour.HTML:
        _plain(writer, 200, "<html>a proxy's login page</html>")
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    asked = body["max_tokens"]
    count = 1 if how is Behaviour.FEWER else asked
    tell = "token_ids" if body.get("return_token_ids") and not peer.counts_only else None
    if body["stream_options"].get("continuous_usage_stats"):
        tell = "usage"
    if how is Behaviour.NOT_TOKENS:
        tell = None
    events = [_event(how, index, tell, last=index == count - 1) for index in range(count)]
    prompt_tokens = len(body["prompt"]) + (how is Behaviour.OTHER_PROMPT)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
    events += [_data({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    if how is Behaviour.GARBAGE:
        events[1] = b"data: {nonsense\n\n"
    if how is Behaviour.ERROR_EVENT:
        events[1] = _data({"error": {"message": "the engine is on fire"}})
    if how is Behaviour.ECHO_EVENT:
        events[1] = _data({"error": {"message": f"wrong: {told}"}})
    if how is Behaviour.ECHO_GARBAGE:
        events[1] = f"data: {{{told}\n\n".encode()
    if how is Behaviour.ENDLESS:
        events = [b"x" * 100_000] * 20
    if how is Behaviour.TOGETHER:
        events = [b"".join(events)]
    if how is Behaviour.IN_PIECES:
        whole = b": ping\r\n\r\n" + b"".join(events).replace(b"\n", b"\r\n")
        events = [whole[first : first + 37] for first in range(0, len(whole), 37)]
    for index, event in enumerate(events):
        _chunk(writer, event)
        await writer.drain()
        await asyncio.sleep(peer.pause_s)
        if how is Behaviour.STALL:
            await asyncio.sleep(3600)
        if how is Behaviour.CUT and index == 1:
            raise ConnectionError
    _chunk(writer, b"")


def _event(how: Behaviour, index: int, tell: str | None, *, last: bool) -> bytes:
    choice: dict[str, Any] = {"index": 0, "text": " x", "finish_reason": "length" if last else None}
    message: dict[str, Any] = {"choices": [choice]}
    if how is Behaviour.NO_END:
        choice["finish_reason"] = None
    if how is Behaviour.ABORT and last:
        choice["finish_reason"] = "abort"
    if tell == "usage":
        message["usage"] = {"completion_tokens": index + 1}
    elif tell == "token_ids":
        choice["token_ids"] = [100 + index]
    return _data(message)


def _data(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
