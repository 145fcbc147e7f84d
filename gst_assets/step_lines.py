"""A Dagster logger for people: one line per step with its seconds, and warnings. Chosen by run config `loggers:
{step_lines: {}}`.

What a step says while it works follows its name, in a terminal: the line is rewritten. Elsewhere the newest of it
is a line of its own where nothing was written for ten seconds.
"""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
import time
from typing import Any

import dagster as dg

from gst_assets.progress import ERASE, LINE_EVERY_S

LOGGER = "step_lines"
_WIDTH = 28
_SAID_WIDTH = 110
_QUIET_S = LINE_EVERY_S - 1
"""A step that reports its progress every ten seconds may do so a little early."""


class _StepLines(logging.Handler):
    """Writes a step's name when it begins and its seconds when it ends, on one line where nothing comes between."""

    def __init__(self) -> None:
        super().__init__()
        self._running: str | None = None
        self._is_line_open = False  # the running step's name was written, and no line end
        self._is_said_shown = False  # in a terminal, at the end of the line
        self._written_s = time.monotonic()
        # Asked before the first step: during steps Dagster takes stdout through a file, and the terminal is at the end
        # of that.
        self._rewrites = sys.stdout.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        event: dg.DagsterEvent | None = getattr(record, "dagster_meta", {}).get("dagster_event")
        kind = event.event_type if event is not None else None
        if event is not None and kind is dg.DagsterEventType.STEP_START:
            self._end_line()
            self._open_line(event)
        elif event is not None and kind is dg.DagsterEventType.STEP_SUCCESS:
            self._close(event, f"{event.step_success_data.duration_ms / 1e3:6.1f} s")
        elif event is not None and kind is dg.DagsterEventType.STEP_FAILURE:
            error = event.step_failure_data.error
            cause = error.cause if error and error.cause else error
            told = cause.message if cause else event.message or ""
            if was_cancelled(event):
                told = told.partition("\n")[2]  # the first line is the name of Dagster's exception
            self._close(event, "cancelled" if was_cancelled(event) else "failed")
            if said := " ".join(told.split()):
                self._write(f"    {said}\n")
        elif event is not None and kind is dg.DagsterEventType.STEP_SKIPPED:
            self._close(event, "left out")
        elif event is None and record.levelno >= logging.WARNING:
            self._end_line()
            self._write(f"    {_said(record)}\n")
        elif event is None and record.levelno >= logging.INFO and self._running is not None:
            self._say(_said(record))

    def _say(self, said: str) -> None:
        """What the running step says of itself."""
        if self._rewrites:
            before = self._before()
            self._write(ERASE + f"{before}{said}"[: shutil.get_terminal_size().columns - 1])
            self._is_said_shown = True
        elif time.monotonic() - self._written_s >= _QUIET_S:
            self._end_line()
            self._write(f"    {textwrap.shorten(said, _SAID_WIDTH, placeholder=' ...')}\n")

    def _open_line(self, event: dg.DagsterEvent) -> None:
        self._running, self._is_line_open = event.step_key, True
        self._write(self._before())

    def _close(self, event: dg.DagsterEvent, told: str) -> None:
        if not self._is_line_open or self._running != event.step_key:
            self._end_line()
            self._open_line(event)
        self._erase_said()
        self._write(f"{told}\n")
        self._running, self._is_line_open = None, False

    def _end_line(self) -> None:
        self._erase_said()
        if self._is_line_open:
            self._write("\n")
            self._is_line_open = False

    def _erase_said(self) -> None:
        if self._is_said_shown:
            self._write(ERASE + (self._before() if self._is_line_open else ""))
            self._is_said_shown = False

    def _before(self) -> str:
        """What stands on the line before what a step says."""
        return f"  {self._running:<{_WIDTH}}" if self._is_line_open else "    "

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._written_s = time.monotonic()


def was_cancelled(event: dg.DagsterEvent) -> bool:
    """Whether a step, or its run, ended by Ctrl-C or SIGTERM. Dagster 1.13 has no public name for either."""
    data: Any = event.event_specific_data
    why = getattr(data, "error_source", None) or getattr(data, "failure_reason", None)
    return why is not None and why.value in ("INTERRUPT", "UNEXPECTED_TERMINATION")


def _said(record: logging.LogRecord) -> str:
    """The message without what Dagster puts before it."""
    return record.getMessage().rpartition(" - ")[2]


def _made(_: dg.InitLoggerContext) -> logging.Logger:
    made = logging.Logger(LOGGER, level=logging.DEBUG)
    made.addHandler(_StepLines())
    return made


step_lines = dg.LoggerDefinition(_made, description="One line per step with its seconds, and warnings.")
