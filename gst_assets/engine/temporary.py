"""The temporary folder of one engine start: everything that the engine and its libraries leave in the temporary
directory is in it and goes with it. What killed starts left is swept at the next start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gst_assets.staging import owned_folder

_PREFIX = "gst-engine-"


@contextmanager
def engine_folder() -> Iterator[Path]:
    """A folder that is this process's temporary directory in the block, and that of the processes it starts; removed
    afterwards."""
    base = tempfile.gettempdir()
    with owned_folder(Path(base), _PREFIX) as folder, variables({"TMPDIR": str(folder)}):
        tempfile.tempdir = str(folder)  # read from TMPDIR but once
        try:
            yield folder
        finally:
            tempfile.tempdir = base


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
