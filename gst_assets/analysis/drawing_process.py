"""A process of its own that draws a report's figures while the first compares and writes tables.

Importing matplotlib and drawing take as long as comparing some hundred thousand tokens; on two cores both go on at the
same time. What is drawn, and how, belongs to `figures` and `drawings`. Imports the standard library only: the process
itself (`python -m gst_assets.analysis.drawing_process`) needs numpy and matplotlib, and nothing heavy of this package.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gst_assets.errors import ComparisonError
from gst_assets.provenance import PROJECT_ROOT

if TYPE_CHECKING:
    from gst_assets.analysis.drawings import Sheet

_SHOWN_CHARACTERS = 500


class DrawingProcess:
    """Started on entering, so that it is ready when there is something to draw; gone when the block is left, whatever
    it did. It also ends by itself when this process is killed."""

    def __enter__(self) -> DrawingProcess:
        """Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ComparisonError: no process can be started.
        """
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        self._said = tempfile.TemporaryFile()
        search = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                # Without -P a numpy.py where the user works would be imported in place of numpy.
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": search},
            )
        except OSError as error:
            self._said.close()
            raise ComparisonError(
                f"the process that draws the figures cannot be started: {error.strerror}. Compare without figures (gst"
                " compare --no-figures), or stop other programs."
            ) from None
        return self

    def begin(self, sheets: Sequence[Sheet], directory: Path) -> None:
        """Have `sheets` drawn into `directory`; `finish` waits for it."""
        assert self._process.stdin is not None
        try:
            with self._process.stdin as handed_over:
                pickle.dump((list(sheets), directory.absolute()), handed_over)
        except BrokenPipeError:
            return  # it failed already; `finish` says how

    def finish(self) -> None:
        """Wait until everything is drawn.

        Raises:
            ComparisonError: the process failed; carries what it said last.
        """
        status = self._process.wait()
        if status:
            self._said.seek(0)
            said = " ".join(self._said.read().decode("utf-8", "replace").split())[-_SHOWN_CHARACTERS:]
            raise ComparisonError(
                f"the process that draws the figures ended with status {status}: {said or 'it said nothing'}. Repair"
                " what it says, or compare without figures (gst compare --no-figures)."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._said.close()


def main() -> int:
    """Draw what comes on standard input; nothing where that ends before anything came."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401  (both while the other process still compares)

    import gst_assets.analysis.drawings  # noqa: F401  (what is pickled)

    try:
        # From the parent that started this process, over a pipe that only the two have.
        sheets, directory = pickle.load(sys.stdin.buffer)
    except EOFError:
        return 0
    for sheet in sheets:
        sheet.save(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
