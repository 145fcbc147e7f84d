"""A server on a real socket with two hundred ways of answering badly.

`STREAMS` are answers to a completion, `DESCRIPTIONS` to the questions asked before anything is measured; all that is
not named is answered well.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]

NUM_TOKENS = 4
DRIP_S = 0.05
_BLOCK = b"x" * 65_536
_GOOD_MODELS = {"data": [{"id": "m", "max_model_len": 2048}]}


# --- pieces of answers ------------------------------------------------------------------------------------------------


def event(message: Any) -> bytes:
    return b"data: " + (message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n\n"


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": " x", "finish_reason": None, "token_ids": [7], **fields}]}


def completion(*, prompt_tokens: int = 3, **odd: Any) -> list[dict[str, Any]]:
    """A good completion whose second event has the odd fields."""
    messages = [choice() for _ in range(NUM_TOKENS)]
    messages[1]["choices"][0] |= odd
    messages[-1]["choices"][0]["finish_reason"] = "length"
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": NUM_TOKENS}
    return [*messages, {"choices": [], "usage": usage}]


def with_message(message: Any) -> list[Any]:
    """A good completion with one more message after the first."""
    first, *rest = completion()
    return [first, message, *rest]


def with_usage(usage: Any) -> list[Any]:
    return [*completion()[:-1], {"choices": [], "usage": usage}]


def head(extra: str = "", status: str = "200 OK", kind: str = "text/event-stream") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{extra}\r\n".encode()


def sent(data: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return write


def stream(messages: list[Any]) -> Write:
    return sent(head() + b"".join(map(event, messages)) + event(b"[DONE]"))


def endless(first: bytes, block: bytes, pause_s: float = 0.0) -> Write:
    """`block` again and again; with a pause, a drip that never falls silent."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _ in count():
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return write


async def silence(writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    await asyncio.sleep(3600)


def then(first: Write, second: Write) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        await first(writer)
        await second(writer)

    return write


# --- what is sent in answer to a completion ---------------------------------------------------------------------------

_IDS: dict[str, Any] = {
    "texts": ["7"],
    "null": [None],
    "float": [7.5],
    "whole float": [7.0],
    "bool": [True],
    "2**63": [2**63],
    "2**31": [2**31],
    "negative": [-1],
    "list": [[7]],
    "object": [{}],
    "a text": "777",
    "a number": 7,
    "an object": {"0": 7},
    "infinite": [float("inf")],
    "nan": [float("nan")],
    "too many": [7] * 50,
    "a million": [7] * 100_000,
    "mixed": [7, "7"],
}
_CHOICE: dict[str, Any] = {
    "text a number": {"text": 7},
    "text a list": {"text": []},
    "finish a number": {"finish_reason": 1},
    "finish a list": {"finish_reason": []},
    "finish abort": {"finish_reason": "abort"},
    "finish error": {"finish_reason": "error"},
    "ids null, text": {"token_ids": None},
}
_MESSAGES: dict[str, Any] = {
    "list": [],
    "text": "hello",
    "number": 7,
    "null": None,
    "true": True,
    "empty object": {},
    "choices a text": {"choices": "x"},
    "choices a number": {"choices": 1},
    "choices of null": {"choices": [None]},
    "choices of texts": {"choices": ["x"]},
    "choices an object": {"choices": {"0": {}}},
    "two choices": {"choices": [{}, {}]},
    "choices absent": {"id": "c"},
    "usage a text": {"usage": "x"},
    "usage a list": {"usage": [1]},
    "error": {"error": {"message": "on fire"}},
    "error a text": {"error": "on fire"},
    "error of odd shape": {"error": {"message": {"a": [1]}}},
    "error object": {"object": "error", "message": "KV cache is full"},
    "surrogate in error": {"error": {"message": "\ud800 <b>![](http://x/y)"}},
    "control in error": {"error": {"message": "\x1b[2J\x00\u202e"}},
    "message alone": {"message": "on fire"},
    "detail alone": {"detail": "on fire"},
}
_RAW: dict[str, bytes] = {
    "no JSON": b"{nonsense",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "many digits": b'{"choices": ' + b"9" * 5000 + b"}",
    "no UTF-8": b"\xff\xfe\x00{",
    "UTF-16": '{"choices": []}'.encode("utf-16"),
    "NaN": b"NaN",
    "nul": b"\x00" * 100,
    "large": b'"' + b"x" * 900_000 + b'"',
    "escaped surrogate": b'"\\ud800"',
    "duplicate keys": b'{"choices": [], "choices": null}',
}
_USAGES: dict[str, Any] = {
    "texts": {"prompt_tokens": "3", "completion_tokens": "4"},
    "floats": {"prompt_tokens": 3.5},
    "bools": {"prompt_tokens": True},
    "negative": {"completion_tokens": -4},
    "huge": {"completion_tokens": 2**63},
    "infinite": {"completion_tokens": float("inf")},
    "other": {"prompt_tokens": 4, "completion_tokens": 4},
    "lists": {"prompt_tokens": [3]},
    "more": {"completion_tokens": 5},
}
_HEADERS: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/9": b"HTTP/9.9 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status text": b"HTTP/1.1 abc OK\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X-1: 1\r\n" * 5000 + b"\r\n",
    "negative length": head("Content-Length: -1\r\n"),
    "length a text": head("Content-Length: abc\r\n"),
    "two lengths": head("Content-Length: 1\r\nContent-Length: 2\r\n"),
    "short body": head("Content-Length: 1000\r\n") + b"data:",
    "huge length": head(f"Content-Length: {10**18}\r\n") + b"data:",
    "bad chunk": head("Transfer-Encoding: chunked\r\n") + b"zz\r\n",
    "negative chunk": head("Transfer-Encoding: chunked\r\n") + b"-5\r\n",
    "huge chunk": head("Transfer-Encoding: chunked\r\n") + b"ffffffffffffffffff\r\n",
    "no body": head("Content-Length: 0\r\n"),
    "chunk and length": head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    "nul header": b"HTTP/1.1 200 OK\r\nA\x00: b\r\n\r\n",
    "gzip": head("Content-Encoding: gzip\r\n") + gzip.compress(b"x" * 50_000_000),
    "no gzip": head("Content-Encoding: gzip\r\n") + b"data: {}\n\n",
    "unknown packing": head("Content-Encoding: rot13\r\n") + b"data: {}\n\n",
    "odd charset": head(kind="text/plain; charset=no-such"),
    "upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "nothing": b"",
    "204": head(status="204 No Content"),
    "HTML": head(kind="text/html") + b"<html>log in</html>",
    "whole JSON": head(kind="application/json") + b'{"choices": [{"text": "all"}]}',
}
_STATUSES: dict[str, bytes] = {
    "400": head(status="400 Bad") + b'{"error": {"message": "too long"}}',
    "401 text": head(status="401 No") + b"no",
    "429": head("Retry-After: 2\r\n", "429 Slow") + b'{"error": {"message": "Rate limit reached"}}',
    "500 empty": head(status="500 Oops"),
    "500 deep": head(status="500 Oops") + b"[" * 60_000,
    "500 odd": head(status="500 Oops") + b'{"error": {"message": [null]}}',
    "503 list": head(status="503 Busy") + b"[]",
    "500 surrogate": head(status="500 Oops") + b'{"message": "\\udfff"}',
    "999": head(status="999 What"),
    "302": head("Location: https://u:secret@elsewhere.example/path?token=secret\r\n", "302 Found"),
    "307 relative": head("Location: /login?token=secret\r\n", "307 Temporary"),
    "308 odd": head("Location: http://[::1\r\n", "308 Permanent"),
    "301 nowhere": head(status="301 Moved"),
}
_TIMES: dict[str, Write] = {
    "silence": silence,
    "silence after head": then(sent(head()), silence),
    "silence after a token": then(sent(head() + event(choice())), silence),
    "no end after all": then(stream(completion()), silence),
    "drip of the status line": endless(b"HTTP/1.1 ", b" ", DRIP_S),
    "drip of headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", DRIP_S),
    "drip of bytes": endless(head(), b"x", DRIP_S),
    "drip of comments": endless(head(), b": ping\n\n", DRIP_S),
    "drip of an error": endless(head(status="500 Oops"), b"x", DRIP_S),
    "drip of empty chunks": endless(head("Transfer-Encoding: chunked\r\n"), b"1\r\n\n\r\n", DRIP_S),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1000),
    "endless header": endless(b"HTTP/1.1 200 OK\r\nX: ", _BLOCK),
    "endless line": endless(head(), _BLOCK),
    "endless comments": endless(head(), b": ping\n\n" * 8000),
    "endless events": endless(head(), event({"choices": []}) * 1000),
    "endless tokens": endless(head(), event(choice())),
    "endless error": endless(head(status="500 Oops"), _BLOCK),
    "endless chunk extension": endless(head("Transfer-Encoding: chunked\r\n") + b"5;", _BLOCK),
    "endless newlines": endless(head(), b"\n" * 65_536),
}

STREAMS: dict[str, Write] = {
    **{f"ids {name}": stream(completion(token_ids=ids)) for name, ids in _IDS.items()},
    **{f"choice {name}": stream(completion(**odd)) for name, odd in _CHOICE.items()},
    **{f"message {name}": stream(with_message(message)) for name, message in _MESSAGES.items()},
    **{f"raw {name}": stream(with_message(data)) for name, data in _RAW.items()},
    **{f"usage {name}": stream(with_usage(usage)) for name, usage in _USAGES.items()},
    **{f"header {name}": sent(data) for name, data in _HEADERS.items()},
    **{f"status {name}": sent(data) for name, data in _STATUSES.items()},
    **_TIMES,
    "event error": sent(head() + event(choice()) + b'event: error\ndata: {"message": "KV cache is full"}\n\n'),
    "event error, no JSON": sent(head() + b"event: error\ndata: out of blocks\n\n"),
    "cut": sent(head() + event(choice()) + b"data: {"),
    "no finish": stream(completion()[:-2]),
    "after the end": sent(head() + b"".join(map(event, completion()[:1])) + event(b"[DONE]") + event(choice())),
    "one token more": stream([*completion()[:-2], choice(), choice(finish_reason="length")]),
}
"""By name, for a request of three prompt tokens and `NUM_TOKENS` tokens. All of them are to end in one error row."""

HARMLESS: dict[str, Write] = {
    "error null": stream([{**message, "error": None} for message in completion()]),
    "usage null": stream([{**message, "usage": None} for message in completion()]),
    "counts null": stream(with_usage({"prompt_tokens": None, "completion_tokens": None})),
    "choices null": stream(with_message({"choices": None, "usage": {}})),
    "ids null, no text": stream(with_message(choice(token_ids=None, text=None))),
    "text of a surrogate": stream(completion(text="\ud83d")),
    "unknown fields": stream([{**message, "x": {"y": [1, None]}} for message in completion()]),
    "only space": stream(with_message(b"  \t")),
    "duplicate keys, the last counts": stream(with_message(b'{"choices": null, "choices": []}')),
}
"""Odd, but a completion all the same."""


# --- what is sent before anything is measured -------------------------------------------------------------------------


def plain(body: bytes, status: str = "200 OK", extra: str = "") -> Write:
    return sent(head(f"Content-Length: {len(body)}\r\n{extra}", status, "application/json") + body)


_BODIES: dict[str, Write] = {
    "no JSON": plain(b"<html>log in</html>"),
    "list": plain(b"[]"),
    "null": plain(b"null"),
    "number": plain(b"7"),
    "text": plain(b'"x"'),
    "deep": plain(b"[" * 200_000),
    "no UTF-8": plain(b"\xff\xfe"),
    "empty": plain(b""),
    "many small": plain(b"[" + b"{}," * 1_000_000 + b"{}]"),
    "endless": endless(head(), _BLOCK),
    "drip": endless(head(), b" ", DRIP_S),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1000),
    "drip of headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", DRIP_S),
    "silence": silence,
    "closed": sent(b""),
    "gzip": sent(head("Content-Encoding: gzip\r\n") + gzip.compress(b" " * 50_000_000)),
    "word": plain(b"a" * 3_000_000),
}
_MODELS: dict[str, Any] = {
    "data null": {"data": None},
    "data a text": {"data": "m"},
    "no models": {"data": []},
    "cards of texts": {"data": ["m"]},
    "id a list": {"data": [{"id": []}]},
    "id null": {"data": [{"id": None}]},
    "id a number": {"data": [{"id": 7}]},
    "length a text": {"data": [{"id": "m", "max_model_len": "2048"}]},
    "length negative": {"data": [{"id": "m", "max_model_len": -1}]},
    "length a float": {"data": [{"id": "m", "max_model_len": 2048.5}]},
    "length true": {"data": [{"id": "m", "max_model_len": True}]},
    "length 2**63": {"data": [{"id": "m", "max_model_len": 2**63}]},
    "surrogates": {"data": [{"id": "\ud800"}, {"id": "\udfff"}]},
    "ten thousand": {"data": [{"id": f"m{index}"} for index in range(10_000)]},
    "no id": {"data": [{}]},
    "an adapter": {"data": [{"id": "m", "parent": "base"}]},
}
_INFOS: dict[str, Any] = {
    "parts of texts": {"model_config": "x"},
    "dtype a number": {"model_config": {"dtype": 7}},
    "seqs a text": {"scheduler_config": {"max_num_seqs": "32"}},
    "seqs null": {"scheduler_config": {"max_num_seqs": None, "max_num_batched_tokens": 2**63}},
    "eager a text": {"model_config": {"enforce_eager": "no"}},
    "sizes a text": {"compilation_config": {"cudagraph_capture_sizes": "x"}},
    "sizes of texts": {"compilation_config": {"cudagraph_capture_sizes": ["1"]}},
    "tensor parallel": {"parallel_config": {"tensor_parallel_size": 2}},
    "pipeline parallel": {"parallel_config": {"pipeline_parallel_size": 2}},
    "data parallel": {"parallel_config": {"data_parallel_size": 2}},
    "interval": {"scheduler_config": {"stream_interval": 10}},
    "speculation": {"speculative_config": {"method": "ngram"}},
    "lora": {"lora_config": {"max_loras": 1}},
    "quantization": {"model_config": {"quantization": "fp8"}},
    "cache": {"cache_config": {"cache_dtype": "fp8_e4m3"}},
    "transfer": {"kv_transfer_config": {"kv_role": "kv_producer"}},
    "context parallel": {"parallel_config": {"decode_context_parallel_size": 2}},
    "size zero": {"parallel_config": {"tensor_parallel_size": 0}},
}
_METRICS: dict[str, str] = {
    "blocks a text": 'vllm:cache_config_info{num_gpu_blocks="many"} 1',
    "blocks long": f'vllm:cache_config_info{{num_gpu_blocks="{"9" * 5000}"}} 1',
    "blocks zero": 'vllm:cache_config_info{num_gpu_blocks="0"} 1',
    "blocks of other digits": 'vllm:cache_config_info{num_gpu_blocks="\u0663"} 1',
    "two engines": 'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="1"} 1',
    "drafts": "vllm:spec_decode_num_drafts_total 0",
    "adapters": 'vllm:lora_requests_info{max_lora="1"} 1',
}


def _json(found: Any) -> Write:
    return plain(json.dumps(found).encode())


DESCRIPTIONS: dict[str, tuple[str, Write]] = {
    **{f"models {name}": ("/v1/models", write) for name, write in _BODIES.items()},
    **{f"models {name}": ("/v1/models", _json(found)) for name, found in _MODELS.items()},
    "models 302": (
        "/v1/models",
        plain(b"", "302 Found", "Location: https://u:secret@elsewhere.example/x?token=secret\r\n"),
    ),
    "models 500": ("/v1/models", plain(b'{"error": {"message": "\\ud800 down"}}', "500 Oops")),
    **{f"info {name}": ("/server_info", _json({"vllm_config": config})) for name, config in _INFOS.items()},
    "info of SGLang, tp 2": ("/server_info", _json({"tp_size": 2})),
    "info of SGLang, eagle": ("/server_info", _json({"speculative_algorithm": "EAGLE"})),
    **{f"metrics {name}": ("/metrics", plain(text.encode())) for name, text in _METRICS.items()},
    **{
        f"{path} {name}": (path, _BODIES[name])
        for path in ("/metrics", "/version", "/server_info")
        for name in ("endless", "drip", "silence", "gzip")
    },
    "version a number": ("/version", _json({"version": 7})),
    "version a surrogate": ("/version", _json({"version": "\ud800"})),
    "version long": ("/version", _json({"version": "1" * 5000})),
}
"""By name: the path that answers badly, and how. All of them are to end in one error before anything is measured."""


# --- the server -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """The address of a server. Below `/b<n>` it is described by the n-th of `DESCRIPTIONS`; a completion whose prompt
    begins with k is answered by the k-th of `STREAMS` and then `HARMLESS`."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await _answer(reader, writer)
            writer.close()
            await writer.wait_closed()
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_IN_ORDER = [*DESCRIPTIONS]
_BY_PROMPT = [*STREAMS.values(), *HARMLESS.values()]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    text = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, target, _ = text.split(" ", 2)
    place, _, path = target.removeprefix("/b").partition("/")
    path = "/" + path.partition("?")[0]
    if place.isdecimal():
        bad_path, write = DESCRIPTIONS[_IN_ORDER[int(place)]]
        if path == bad_path:
            return await write(writer)
    else:
        path = target.partition("?")[0]
    if path == "/v1/models":
        return await _json(_GOOD_MODELS)(writer)
    if method != "POST":
        return await plain(b'{"detail": "Not Found"}', "404 Not Found")(writer)
    (length,) = [line.split(":")[1] for line in text.lower().split("\r\n") if line.startswith("content-length:")]
    body = json.loads(await reader.readexactly(int(length)))
    if body["max_tokens"] != NUM_TOKENS:  # the probe
        messages = [choice(), choice(finish_reason="length")]
        return await stream(messages)(writer)
    return await _BY_PROMPT[body["prompt"][0]](writer)
