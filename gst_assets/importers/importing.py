"""Making a run directory of another program's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.importers.registry import FORMATS
from gst_assets.importers.results import MODEL_NOT_STATED, Options, Results
from gst_assets.importers.writing import write_run

_YEAR_NS = 365 * 86_400 * 10**9
_LONGEST_NS = 3 * _YEAR_NS
"""No run takes so long, and no clock that is mixed with Unix time is so near to it."""


def import_results(
    format_name: str,
    path: Path,
    out: Path,
    options: Options = Options(),  # noqa: B008  (frozen)
    *,
    model: str | None = None,
    engine: str | None = None,
    hardware: str | None = None,
) -> Results:
    """Read `path` as `format_name` (`registry.FORMATS`) and write the run directory `out`.

    `model`, `engine` and `hardware` are stated by the caller.

    Raises:
        ResultsError: an unknown format, or a file that is not of it.
        ArtifactError: `out` exists.
        ContractError: times that cannot be.
    """
    if format_name not in FORMATS:
        raise ResultsError(f"unknown format {format_name!r}; known: {', '.join(FORMATS)}.")
    try:
        results = FORMATS[format_name].read(path, options)
    except (OverflowError, ValueError) as error:  # a time beyond the years that there are
        raise ResultsError(
            f"{path}: a time that cannot be ({error}). Are its times in another unit than {format_name} writes?"
        ) from None
    _check_one_clock(path, results)
    if model:
        results = replace(results, unstated=tuple(text for text in results.unstated if text != MODEL_NOT_STATED))
    given = {"model": model, "engine": engine, "hardware": hardware}
    try:
        write_run(results, format_name, out, {name: value for name, value in given.items() if value})
    except OSError as error:
        raise ResultsError(f"{out}: cannot be written ({error.strerror}). Name another --out.") from None
    return results


def _check_one_clock(path: Path, results: Results) -> None:
    """All times of a request are within some years of the run's start: what lies further off is of another clock."""
    for one in results.requests:
        times = {
            "arrival": one.arrival_ns,
            "time of sending": one.send_ns,
            "time in the queue": one.queued_ns,
            "first scheduling": one.scheduled_ns,
            "first token": one.first_token_ns,
            "completion": one.completion_ns,
        }
        for what, time_ns in times.items():
            if time_ns is not None and abs(time_ns) > _LONGEST_NS:
                raise ResultsError(
                    f"{path}: request {one.name!r:.80}: {what} lies {abs(time_ns) / _YEAR_NS:.0f} years from the first "
                    "arrival. Are times of two clocks, or of two units, mixed?"
                )


def told(results: Results) -> str:
    """The result, for people: a line for what was read, its clock, and all that is left out or not stated."""
    answered = sum(one.error is None and one.num_produced > 0 for one in results.requests)
    kind = "real run" if results.run_type == "real" else "simulation"
    lines = [
        f"{kind} of {len(results.requests)} requests, {answered} with an answer; written by {results.written_by}",
        f"clock: {results.clock}; arrival: {results.arrivals}; joined by {results.joined_by}",
    ]
    lines += [f"left out: {name}: {what}" for name, what in results.dropped.items() if what]
    lines += [f"note: {text}" for text in results.unstated]
    return "\n".join(lines)
