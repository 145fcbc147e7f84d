"""`core` compiled by numba: the same functions, once per machine.

Apart from `core`, so that numba is neither imported nor compiles where plain Python is fast enough. The
compiled code is cached next to `core.py`, or where $NUMBA_CACHE_DIR says, and made again when that file changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import getsourcefile, isfunction
from types import FunctionType
from typing import Any

from gst_assets.vidur_adapter import core


@cache
def compiled_advance() -> Callable[..., int]:
    """`core.advance`, compiled with all that it calls."""
    import numba

    # Copies, so that the functions of `core` stay plain Python; in a namespace of their own, so that they call each
    # other's compiled copies.
    namespace = dict(vars(core))
    for name, plain in vars(core).items():
        if isfunction(plain) and getsourcefile(plain) == core.__file__:
            namespace[name] = numba.njit(cache=True, error_model="python")(_copy(plain, namespace))
    compiled: Callable[..., int] = namespace[core.advance.__name__]
    return compiled


def _copy(plain: Any, namespace: dict[str, Any]) -> FunctionType:
    copied = FunctionType(plain.__code__, namespace, plain.__name__, plain.__defaults__, plain.__closure__)
    copied.__module__, copied.__qualname__ = plain.__module__, plain.__qualname__
    return copied
