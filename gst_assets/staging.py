"""Files and directories that appear whole or not at all: written next to their place, then renamed into it.

What is written and when it counts as complete belongs to the callers. What killed processes left there is removed by
the next to write there. The artifact store has a staging area of its own. Standard library only; a GPU host needs it
too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gst_assets.errors import GstError

_PREFIX = ".gst-staged-"
_LOCK = ".lock"
_UNLOCKED_KEPT_S = 86_400.0


@contextmanager
def staged_directory(final: Path, refused: Callable[[OSError], GstError] | None = None) -> Iterator[Path]:
    """An empty folder in a hidden one next to `final`, which becomes `final` when the block ends well, and is removed
    otherwise.

    Raises:
        OSError: the folder cannot be made, or cannot become `final`, e.g. because a directory that is not empty is
            there. `refused` says the latter in words.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with owned_folder(final.parent, _PREFIX) as beside:
        folder = beside / final.name
        folder.mkdir()
        yield folder
        try:
            folder.rename(final)
        except OSError as error:
            if refused is None:
                raise
            raise refused(error) from None


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A path in a hidden folder next to `final`; what the block writes there takes the place of `final` when it ends
    well, and is removed otherwise.

    Raises:
        OSError: the folder of `final` cannot be made, or the file cannot take its place.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with owned_folder(final.parent, _PREFIX) as beside:
        path = beside / final.name
        yield path
        path.replace(final)


@contextmanager
def owned_folder(base: Path, prefix: str) -> Iterator[Path]:
    """A new folder `<prefix>...` in `base`, removed when the block ends. Before, those of this user whose owners are
    dead are removed.

    A folder belongs to the process that holds its lock file, and the kernel frees that lock when the process and all
    that inherited it are gone.

    Raises:
        OSError: it cannot be made.
    """
    _sweep(base, prefix)
    folder, lock = _new_folder(base, prefix)
    try:
        yield folder
    finally:
        os.close(lock)  # first: on NFS a file that is open leaves another one behind when it is removed
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder(base: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor of its lock file, locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # the disk is full
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with suppress(OSError):  # a filesystem without locks: nobody sweeps there either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)  # swept by another process before it was locked


def _sweep(base: Path, prefix: str) -> None:
    """Remove this user's folders whose owner is dead. One without a lock file is just being made, or of a version
    without: those stay a day."""
    for folder in base.glob(f"{prefix}*"):
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
