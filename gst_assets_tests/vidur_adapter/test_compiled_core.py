"""What is seen of compiling. That compiled code is the same simulation is tested with the core."""

from __future__ import annotations

import io
import sys

import pytest

from gst_assets import progress
from gst_assets.vidur_adapter import compiled_core


class Terminal(io.StringIO):
    """Takes one line that is rewritten."""

    def isatty(self) -> bool:
        return True


def test_compiling_is_shown_and_running_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "REWRITTEN_EVERY_S", 0.001)

    @numba.njit
    def inner(number: int) -> int:
        return number + 1

    @numba.njit
    def outer(number: int) -> int:
        return inner(number) * 2

    advance = compiled_core._telling(outer)
    assert advance(20) == 42
    shown = stream.getvalue()
    assert shown.startswith(f"{progress.ERASE}{compiled_core.COMPILING}: ") and shown.endswith(progress.ERASE)
    assert advance(1) == 4
    assert stream.getvalue() == shown
