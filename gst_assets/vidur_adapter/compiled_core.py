"""`core` compiled by numba: the same functions, once per machine.

Apart from `core`, so that numba is neither imported nor compiles where plain Python is fast enough. The
compiled code is cached next to `core.py`, or where $NUMBA_CACHE_DIR says, under a name that holds a digest of the
sources: numba reads a whole index before it looks whether that is of this source, and fails on one that names a class
which another version of this package had. The options below are no part of what it is found by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from inspect import getsource, getsourcefile, isfunction
from types import FunctionType
from typing import Any

from gst_assets.progress import Ticking
from gst_assets.step_costs import cost_tables
from gst_assets.vidur_adapter import core

COMPILING = "compiling the simulator's core, once per machine"
# Without reference counts: whoever calls `advance` holds the arrays while it runs, and no function makes or gives one.
# Counted, the 60 arrays of a state and its costs go up and down with every call, which is nearly all that a step takes.
_OPTIONS = {"error_model": "python", "_nrt": False}
_ENTRY = {"cache": True}
# Into the one that calls it, so that no call copies what describes the arrays. Nothing but compiled code calls these.
_INNER = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@cache
def compiled_advance() -> Callable[..., int]:
    """`core.advance`, compiled with all that it calls at the first call with arguments of their types, unless that was
    done before on this machine."""
    import numba

    # Copies, so that the functions of `core` stay plain Python; in a namespace of their own, so that they call each
    # other's compiled copies.
    namespace = dict(vars(core))
    entry = core.advance.__name__
    for name, plain in vars(core).items():
        if isfunction(plain) and getsourcefile(plain) == core.__file__:
            options = _OPTIONS | (_ENTRY if name == entry else _INNER)
            qualname = f"{name}_{_digest()}" if name == entry else name
            namespace[name] = numba.njit(**options)(_copy(plain, namespace, qualname))
    return _telling(namespace[entry])


def _telling(compiled: Any) -> Callable[..., int]:
    """The same function, which shows that it is being compiled."""
    from numba.core import event

    class Shown(event.Listener):
        """What `compiled` calls is compiled meanwhile."""

        def on_start(self, started: Any) -> None:
            if started.data["dispatcher"] is compiled:
                self.ticking = Ticking(COMPILING)
                self.ticking.__enter__()

        def on_end(self, ended: Any) -> None:
            if ended.data["dispatcher"] is compiled:
                self.ticking.__exit__(None, None, None)

    def advance(*arguments: Any) -> int:
        with event.install_listener("numba:compile", Shown()):
            outcome: int = compiled(*arguments)
        return outcome

    return advance


def _digest() -> str:
    """Of the sources that say what the arguments' types are."""
    sources = "".join(map(getsource, (core, cost_tables)))
    return hashlib.sha256(sources.encode()).hexdigest()[:12]


def _copy(plain: Any, namespace: dict[str, Any], qualname: str) -> FunctionType:
    copied = FunctionType(plain.__code__, namespace, plain.__name__, plain.__defaults__, plain.__closure__)
    copied.__module__, copied.__qualname__ = plain.__module__, qualname
    return copied
