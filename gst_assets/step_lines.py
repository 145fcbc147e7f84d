"""A Dagster logger for people at a terminal: one line a step with its seconds, and warnings. Chosen by run config `loggers: {step_lines: {}}`."""

from __future__ import annotations

import logging
import sys

import dagster as dg

LOGGER = "step_lines"
_WIDTH = 28


class _StepLines(logging.Handler):
    """Writes a step's name when it begins and its seconds when it ends, on one line where nothing comes between."""

    def __init__(self) -> None:
        super().__init__()
        self._open: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        event: dg.DagsterEvent | None = getattr(record, "dagster_meta", {}).get("dagster_event")
        kind = event.event_type if event is not None else None
        if event is not None and kind is dg.DagsterEventType.STEP_START:
            self._end_line()
            self._open = event.step_key
            self._write(f"  {event.step_key:<{_WIDTH}}")
        elif event is not None and kind is dg.DagsterEventType.STEP_SUCCESS:
            self._close(event, f"{event.step_success_data.duration_ms / 1e3:6.1f} s")
        elif event is not None and kind is dg.DagsterEventType.STEP_FAILURE:
            error = event.step_failure_data.error
            cause = error.cause if error and error.cause else error
            self._close(event, "failed")
            self._write(f"    {' '.join(cause.message.split()) if cause else event.message}\n")
        elif event is not None and kind is dg.DagsterEventType.STEP_SKIPPED:
            self._close(event, "left out")
        elif event is None and record.levelno >= logging.WARNING:
            self._end_line()
            self._write(f"    {record.getMessage().rpartition(' - ')[2]}\n")

    def _close(self, event: dg.DagsterEvent, told: str) -> None:
        if self._open != event.step_key:
            self._end_line()
            self._write(f"  {event.step_key:<{_WIDTH}}")
        self._write(f"{told}\n")
        self._open = None

    def _end_line(self) -> None:
        if self._open is not None:
            self._write("\n")
            self._open = None

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _made(_: dg.InitLoggerContext) -> logging.Logger:
    made = logging.Logger(LOGGER, level=logging.DEBUG)
    made.addHandler(_StepLines())
    return made


step_lines = dg.LoggerDefinition(_made, description="One line a step with its seconds, and warnings.")
