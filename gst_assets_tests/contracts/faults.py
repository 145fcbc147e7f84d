"""Every call to the operating system, or to an object store, failing in turn, as databases are tested. Not a test
module.

The calls are the real ones: they are counted, and the one with the number that is asked for raises an error, or ends
the process, instead of, or after half of, its work. Nothing else is replaced.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from gst_assets.contracts import store as store_module

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)
_NAMES = ("open", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir", "listdir", "stat")
CRASHED = 77
"""Exit status of a process that a fault ended."""


@dataclass
class Faults:
    """Fails the call with number `at` (from 0): with the errno `error`, or by ending the process where that is None."""

    at: int | None = None
    error: int | None = None
    calls: list[str] = field(default_factory=list)

    def called(self, name: str) -> bool:
        """Count a call; whether it is the one to fail."""
        self.calls.append(name)
        return len(self.calls) - 1 == self.at

    def fail(self, path: object = None) -> None:
        if self.error is None:
            os._exit(CRASHED)
        raise OSError(self.error, os.strerror(self.error), path if isinstance(path, str | os.PathLike) else None)


class _Raw(io.FileIO):
    """A file of which a write that fails has written half."""

    faults: Faults

    def write(self, data: Any) -> int:
        if self.faults.called("write"):
            super().write(bytes(data)[: len(data) // 2])
            self.faults.fail(self.name)
        return super().write(data)


@contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """The operating system with these faults, for everything that Python code of this process calls."""

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if faults.called(name):
                faults.fail(arguments[0] if arguments else None)
            return call(*arguments, **named)

        return wrapped

    def opened(
        file: Any, mode: str = "r", _buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None
    ) -> Any:
        if faults.called("open"):
            faults.fail(file)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""))
        raw.faults = faults
        buffered = io.BufferedReader(raw) if mode[0] == "r" else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    with (
        mock.patch.multiple(os, **{name: failing(name, getattr(os, name)) for name in _NAMES}),
        mock.patch.object(io, "open", opened),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(fcntl, "flock", failing("flock", fcntl.flock)),
        mock.patch.object(store_module, "_exchange", failing("renameat2", store_module._exchange)),
    ):
        yield faults


class FaultyObjects:
    """An fsspec filesystem whose call with number `at` raises `error`: before it does anything, or after
    (`answer_lost`)."""

    def __init__(
        self, real: Any, at: int | None = None, error: BaseException | None = None, answer_lost: bool = False
    ) -> None:
        self.real, self.at, self.error, self.answer_lost = real, at, error, answer_lost
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.real, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            fails = len(self.calls) - 1 == self.at and self.error is not None
            if fails and not self.answer_lost:
                raise self.error  # type: ignore[misc]
            result = call(*arguments, **named)
            if fails:
                raise self.error  # type: ignore[misc]
            return result

        return wrapped


class Crash(BaseException):
    """The end of a process, as far as an object store can see."""
