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


def test_compiled_code_of_other_sources_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba unpickles the whole index that has a function's name, so the name says which sources it is of."""
    digest = compiled_core._digest()
    entry = compiled_core.compiled_advance.__wrapped__().__closure__
    names = [cell.cell_contents.py_func.__qualname__ for cell in entry or () if hasattr(cell.cell_contents, "py_func")]
    assert names == [f"advance_{digest}"]
    getsource = compiled_core.getsource
    monkeypatch.setattr(compiled_core, "getsource", lambda module: getsource(module) + "# another version")
    assert compiled_core._digest() != digest
