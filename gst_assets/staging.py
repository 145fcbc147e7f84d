"""Files and directories that appear whole or not at all: written next to their place, then renamed into it.

What is written and when it counts as complete belongs to the callers. The artifact store has a staging area of its own,
which also clears what killed processes left. Standard library only; a GPU host needs it too.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gst_assets.errors import GstError


@contextmanager
def staged_directory(final: Path, refused: Callable[[OSError], GstError] | None = None) -> Iterator[Path]:
    """An empty folder next to `final` that becomes it when the block ends well, and is removed otherwise.

    Raises:
        OSError: the folder cannot be made, or cannot become `final`, e.g. because a directory that is not empty is
            there. `refused` says the latter in words.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(final)
    folder.mkdir()
    try:
        yield folder
        try:
            folder.rename(final)
        except OSError as error:
            if refused is None:
                raise
            raise refused(error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A path next to `final`; what the block writes there takes the place of `final` when it ends well, and is removed
    otherwise.

    Raises:
        OSError: the folder of `final` cannot be made, or the file cannot take its place.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    path = _beside(final)
    try:
        yield path
        path.replace(final)
    finally:
        path.unlink(missing_ok=True)


def _beside(final: Path) -> Path:
    """A hidden name of its own in the folder of `final`, so that processes that write the same do not meet."""
    return final.with_name(f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}")
