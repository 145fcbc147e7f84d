"""The server-sent events of one completion: bytes in, token ids out, or what is wrong with them.

No connection and no clock here. Nothing a server sends is believed before it was looked at: a reply of any bytes ends
as tokens or as one `ServerFault`. A field that is null counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gst_assets.engine.openai_http import ServerOverran, ServerRefused, StreamBroken, error_message, shown
from gst_assets.engine.protocol import UNKNOWN_TOKEN_ID

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4
_EVENT_BYTES = 1 << 20
_BYTES_A_PROMPT_TOKEN = 16  # vLLM repeats the prompt's ids in the first event
_BYTES_A_TOKEN = 16 << 10
_HIGHEST_TOKEN_ID = 2**31 - 1
_HIGHEST_COUNT = 2**53
_FIRST_BYTES = 300
_DONE = b"[DONE]"


class _Odd(Exception):
    """A field holds what it cannot; the message says which and what."""


@dataclass
class EventReader:
    """Reads the events of a completion of `num_decode_tokens` asked tokens. Events cut across pieces are put together
    again."""

    num_prefill_tokens: int
    num_decode_tokens: int
    clean: Callable[[str], str]
    """Removes the key from what is shown."""
    _rest: bytearray = field(default_factory=bytearray)
    _size: int = 0
    _first: bytes = b""
    _num_events: int = 0
    _is_done: bool = False
    _count: int = 0
    _finish_reason: str | None = None
    _told: dict[str, int] = field(default_factory=dict)

    def feed(self, piece: bytes) -> list[int]:
        """The token ids of the events that `piece` completes; `UNKNOWN_TOKEN_ID` for those the server only counts.

        Raises:
            ServerRefused: the server reports an error inside the stream.
            ServerOverran: these are more tokens than were asked for.
            StreamBroken: an event is no completion or does not state its tokens, or an event or the whole is too long.
        """
        ids: list[int] = []
        for event in self._events(piece):
            lines = event.splitlines()
            # Lines that begin otherwise are comments and fields that say nothing about tokens.
            data = b"\n".join([line[5:].strip() for line in lines if line.startswith(b"data:")])
            if len(lines) > 1 and any(line[6:].strip() == b"error" for line in lines if line.startswith(b"event:")):
                raise ServerRefused(f"error inside the stream: {error_message(self._text(data))}")
            if data == _DONE:
                self._is_done = True
            elif data:
                ids += self._tokens(data)
        return ids

    def _events(self, piece: bytes) -> list[bytes]:
        """The events that end in `piece`."""
        self._size += len(piece)
        self._first = self._first or piece[:_FIRST_BYTES]
        longest = _EVENT_BYTES + _BYTES_A_PROMPT_TOKEN * self.num_prefill_tokens
        in_all = longest + _BYTES_A_TOKEN * self.num_decode_tokens
        if self._size > in_all:
            raise StreamBroken(
                f"the reply is longer than {in_all} bytes, for {self.num_decode_tokens} tokens of which {self._count}"
                " came"
            )
        # Only what is new can end an event: what is buffered is not looked through again with each piece.
        seam = max(len(self._rest) - (_LONGEST_END - 1), 0)
        self._rest += piece
        if _EVENT_END.search(self._rest, seam) is None:
            events = []
        else:
            *events, rest = _EVENT_END.split(bytes(self._rest))
            self._rest = bytearray(rest)
        if len(self._rest) > longest:
            raise StreamBroken(f"expected server-sent events, found {longest} bytes without the end of one")
        return events

    def _tokens(self, data: bytes) -> list[int]:
        self._num_events += 1
        try:
            message = json.loads(data.decode())  # of bytes, json would take UTF-16 too
        except (ValueError, RecursionError):
            raise StreamBroken(
                f"expected the JSON of a completion in each event, found {self._told_of(data)}"
            ) from None
        if not isinstance(message, dict):
            raise StreamBroken(f"expected the JSON of a completion in each event, found {self._told_of(data)}")
        if message.get("error") is not None or message.get("object") == "error":
            raise ServerRefused(f"error inside the stream: {error_message(self._text(data))}")
        try:
            ids = self._read(message)
        except _Odd as odd:
            raise StreamBroken(f"{odd}, in {self._told_of(data)}") from None
        if ids and self._is_done:
            raise StreamBroken(f"tokens after [DONE], in {self._told_of(data)}")
        return ids

    def _read(self, message: dict[str, Any]) -> list[int]:
        """The token ids of one event, checked and counted."""
        choices, usage = _of(message, "choices", list), _of(message, "usage", dict)
        if choices is None and usage is None:
            raise _Odd("an event has neither choices nor usage")
        counted = self._note(usage) if usage else None
        if not choices:
            return []
        if len(choices) > 1:
            raise _Odd(f"choices: expected one, found {len(choices)}")
        (choice,) = choices
        if not isinstance(choice, dict):
            raise _Odd(f"choices[0]: expected an object, found {_value(choice)}")
        text, reason, ids = (
            _of(choice, "text", str),
            _of(choice, "finish_reason", str),
            _of(choice, "token_ids", list),
        )
        if reason in ("abort", "error"):
            raise ServerRefused(f"the server ended the request with finish_reason {reason!r}")
        self._finish_reason = reason or self._finish_reason
        if ids is not None:
            for place, one in enumerate(ids):
                if type(one) is not int or not 0 <= one <= _HIGHEST_TOKEN_ID:
                    expected = f"a whole number from 0 to {_HIGHEST_TOKEN_ID}"
                    raise _Odd(f"token_ids[{place}]: expected {expected}, found {_value(one)}")
            new = len(ids)
        elif counted is not None:
            new = counted - self._count
            if new < 0:
                raise _Odd(f"usage.completion_tokens: {counted}, after {self._count} before")
        elif text:
            raise StreamBroken("the server's messages state neither token_ids nor how many tokens there were so far")
        else:
            new = 0
        self._count += new
        if self._count > self.num_decode_tokens:
            raise ServerOverran(
                f"the server sent token {self._count} of a request for {self.num_decode_tokens}: it exceeds"
                " max_tokens. Ended there"
            )
        return [UNKNOWN_TOKEN_ID] * new if ids is None else ids

    def _note(self, usage: dict[str, Any]) -> int | None:
        """Store what the server counted; returns the tokens it has sent so far, where it reports them."""
        for name in ("prompt_tokens", "completion_tokens"):
            if (value := _count(usage, name)) is not None:
                self._told[name] = value
        return _count(usage, "completion_tokens")

    def check_end(self) -> None:
        """The stream came to its end, and both sides counted the same.

        Raises:
            StreamBroken
        """
        if self._finish_reason is None:
            sent = "" if self._num_events else f". It holds no event; it begins {shown(repr(self._text(self._first)))}"
            raise StreamBroken(
                f"the stream ended without a finish_reason: it was cut half-way, or is no stream of completions{sent}"
            )
        for name, found in (("prompt_tokens", self.num_prefill_tokens), ("completion_tokens", self._count)):
            told = self._told.get(name, found)
            if told != found:
                raise StreamBroken(f"the server counts {told} {name}, this client {found}")

    def _text(self, data: bytes) -> str:
        return self.clean(data.decode(errors="replace"))

    def _told_of(self, data: bytes) -> str:
        # As bytes: what cannot be shown is visible, and a lone surrogate cannot come about.
        return shown(repr(self._text(data).encode(errors="backslashreplace")[:_FIRST_BYTES]))


_NAMES: dict[type, str] = {list: "a list", dict: "an object", str: "a text"}


def _of(holder: dict[str, Any], name: str, kind: type) -> Any:
    """The value of a field that is of `kind`; None where it is absent or null."""
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise _Odd(f"{name}: expected {_NAMES[kind]}, found {_value(value)}")
    return value


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if value is not None and (type(value) is not int or not 0 <= value <= _HIGHEST_COUNT):
        raise _Odd(f"usage.{name}: expected a whole number, not negative, found {_value(value)}")
    return value


def _value(value: object) -> str:
    return shown(json.dumps(value))
