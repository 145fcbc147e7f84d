"""A completions server on a real socket whose engine makes a token every few milliseconds, and which delivers them as
servers and proxies do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Any

FIRST_TOKEN_S = 0.2
GAP_S = 0.02
"""Between two tokens of an answer, whatever else is under way: this engine never queues. Where each token is sent it is
the least: after a stall of the machine the next token is made when the one before is out, so that none catch up."""


class Delivery(Enum):
    """How the tokens of an answer leave the server."""

    EACH = "each token as it is made"
    INTERVAL = "the first token, then ten tokens a message"
    WHOLE = "held back by a proxy until the answer is complete, then released at once"


_TOKENS_A_MESSAGE = 10


@asynccontextmanager
async def delivering(delivery: Delivery) -> AsyncIterator[str]:
    """A server that delivers so; yields its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                await _answer(delivery, reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(delivery: Delivery, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if head.startswith("POST /v1/completions"):
        (length,) = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        await _complete(delivery, json.loads(await reader.readexactly(int(length))), writer)
    elif head.startswith("GET /v1/models"):
        _plain(writer, 200, {"data": [{"id": "m", "max_model_len": 2048}]})
    else:
        _plain(writer, 404, {"detail": "Not Found"})
    await writer.drain()


def _plain(writer: asyncio.StreamWriter, status: int, message: dict[str, Any]) -> None:
    text = json.dumps(message)
    writer.write(f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())


async def _complete(delivery: Delivery, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    clock, asked = asyncio.get_running_loop(), body["max_tokens"]
    made_s = [clock.time() + FIRST_TOKEN_S + GAP_S * index for index in range(asked)]
    ids = list(range(100, 100 + asked))
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": asked}
    end = _event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    groups = [[token] for token in ids]
    if delivery is Delivery.INTERVAL:
        rest = range(1, asked, _TOKENS_A_MESSAGE)
        groups = [ids[:1], *(ids[place : place + _TOKENS_A_MESSAGE] for place in rest)]
    events = [_tokens(group, last=group[-1] == ids[-1]) for group in groups]
    if delivery is Delivery.EACH:
        await asyncio.sleep(FIRST_TOKEN_S)
        for event in events:
            _chunk(writer, event)
            await writer.drain()
            await asyncio.sleep(GAP_S)
        _chunk(writer, end)
    elif delivery is Delivery.WHOLE:
        await asyncio.sleep(made_s[-1] - clock.time())
        _chunk(writer, b"".join(events) + end)
    else:
        for group, event in zip(groups, events, strict=True):
            await asyncio.sleep(made_s[ids.index(group[-1])] - clock.time())
            _chunk(writer, event)
            await writer.drain()
        _chunk(writer, end)
    _chunk(writer, b"")


def _tokens(ids: Sequence[int], *, last: bool) -> bytes:
    choice = {"index": 0, "text": " x" * len(ids), "finish_reason": "length" if last else None, "token_ids": list(ids)}
    return _event({"choices": [choice]})


def _event(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
