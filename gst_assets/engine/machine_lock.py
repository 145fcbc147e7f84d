"""One engine measurement at a time on a machine, whatever started it: a lock file held by the operating system.

Dagster's pool says the same for runs of one deployment; this also covers runs without a daemon and from the command line. The lock ends with
the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gst_assets.errors import EngineError

_POLL_S = 0.5


@contextmanager
def machine_lock(timeout_s: float, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the machine's engine lock for the block; waits up to `timeout_s` seconds and says so once.

    Raises:
        EngineError: another measurement still held the lock after `timeout_s`.
    """
    path = Path(tempfile.gettempdir()) / f"gst_engine_{os.getuid()}.lock"
    with path.open("a") as handle:
        deadline = time.monotonic() + timeout_s
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{path}: another engine run held this machine for {timeout_s:.0f} s. Wait for it to end, or raise lock_timeout_s."
                    ) from None
                if not told:
                    log("waiting for another engine run on this machine to end")
                    told = True
                time.sleep(_POLL_S)
        yield
