"""The temporary folder of one engine start: everything that the engine and its libraries leave in the temporary
directory is in it and goes with it.

What killed starts left is swept at the next start: a folder belongs to the process that holds its lock file, and the
kernel frees that lock when the process and all that inherited it are gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "gst-engine-"
_LOCK = ".lock"
_UNLOCKED_KEPT_S = 86_400.0


@contextmanager
def engine_folder() -> Iterator[Path]:
    """A folder that is this process's temporary directory in the block, and that of the processes it starts; removed
    afterwards."""
    base = Path(tempfile.gettempdir())
    _sweep(base)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with variables({"TMPDIR": name}):
                tempfile.tempdir = name  # read from TMPDIR but once
                try:
                    yield folder
                finally:
                    tempfile.tempdir = str(base)
        finally:
            os.close(lock)


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _sweep(base: Path) -> None:
    """Remove this user's engine folders whose owner is dead. One without a lock file is just being made, or of a
    version without: those stay a day."""
    for folder in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                if time.time() - folder.stat().st_mtime > _UNLOCKED_KEPT_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
