"""Making a run directory of another program's results."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.foreign_text import label, visible
from gst_assets.importers.registry import FORMATS
from gst_assets.importers.results import MODEL_NOT_STATED, Options, Request, Results, with_first_scheduling
from gst_assets.importers.writing import write_run
from gst_assets.input_files import usable_path

_YEAR_NS = 365 * 86_400 * 10**9
_LONGEST_NS = 3 * _YEAR_NS
"""No run takes so long, and no clock that is mixed with Unix time is so near to it."""
_EARLY_NS = 1_000_000
"""A timer may wake a client so much before a request is due."""


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
        ResultsError: an unknown format, a file that is not of it or contradicts itself (names file and item), a
            stated name that no report can show, or a path that no file can have.
        ArtifactError: `out` exists.
        ContractError: numbers that the contract does not hold.
    """
    given = {"model": model, "engine": engine, "hardware": hardware}
    stated = {name: _name(f"--{name}", value) for name, value in given.items() if value is not None}
    for place in (path, out):
        usable_path(place, ResultsError)
    if format_name not in FORMATS:
        raise ResultsError(f"unknown format {format_name!r}; known: {', '.join(FORMATS)}.")
    try:
        results = FORMATS[format_name].read(path, options)
    except (OverflowError, ValueError) as error:  # a time beyond the years that there are
        raise ResultsError(
            f"{path}: a time that cannot be ({error}). Are its times in another unit than {format_name} writes?"
        ) from None
    results = with_first_scheduling(results)
    for one in results.requests:
        _check_times(one)
        _check_text(one.where, one.name, *(one.error or ()))
    _check_text(str(results.files[0]), results.model, results.maker, results.written_by, results.device_name or "")
    _check_text(str(results.files[0]), *results.dropped, *results.dropped.values())
    if model:
        results = replace(results, unstated=tuple(text for text in results.unstated if text != MODEL_NOT_STATED))
    try:
        write_run(results, format_name, out, stated)
    except OSError as error:
        raise ResultsError(f"{out}: cannot be written ({error.strerror}). Name another --out.") from None
    return results


def _name(option: str, value: str) -> str:
    """A name as the user states it: one that reports can show as it is."""
    if not value or label(value) != value:
        raise ResultsError(
            f"{option} is {value!r:.80}, expected a name on one line, without control characters, backticks, two stars"
            " or outer spaces. State a plain name."
        )
    return value


def _check_times(one: Request) -> None:
    """A request's times are of one clock, and in the order in which they happen.

    Raises:
        ResultsError: names file and item, and the two times.
    """
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
                f"{one.where}: {what} lies {abs(time_ns) / _YEAR_NS:.0f} years from the first arrival. Are times of two"
                " clocks, or of two units, mixed?"
            )
    if one.first_token_ns is None:
        return
    if one.first_token_ns == (one.arrival_ns if one.send_ns is None else one.send_ns):
        raise ResultsError(
            f"{one.where}: the time to the first token is 0, which programs write where they did not measure it, but"
            f" there are {one.num_produced} tokens. Leave the request out of the file, or measure again."
        )
    if one.send_ns is not None and one.send_ns < one.arrival_ns - _EARLY_NS:
        raise ResultsError(
            f"{one.where}: sent {(one.arrival_ns - one.send_ns) / 1e6:.6f} ms before its arrival, so its latencies"
            " would be too short. Are times of two clocks, or of two units, mixed?"
        )
    for before in ("time of sending", "time in the queue"):
        earlier_ns = times[before]
        if earlier_ns is not None and earlier_ns > one.first_token_ns:
            raise ResultsError(
                f"{one.where}: the first token is {(earlier_ns - one.first_token_ns) / 1e6:.6f} ms before the {before}."
                " Are times of two clocks, or of two units, mixed?"
            )
    steps = [("arrival", one.arrival_ns), ("first token", one.first_token_ns)]
    steps += [(f"token {number}", time_ns) for number, time_ns in enumerate(one.token_ns[1:], 1)]
    if one.completion_ns is not None and not one.token_ns:
        steps.append(("completion", one.completion_ns))
    for (before, earlier_ns), (after, later_ns) in pairwise(steps):
        if later_ns < earlier_ns:
            raise ResultsError(
                f"{one.where}: the {after} is {(earlier_ns - later_ns) / 1e6:.6f} ms before the {before}. Are times of"
                " two clocks, or of two units, mixed?"
            )


def _check_text(where: str, *texts: str) -> None:
    """Text that a file can hold: half of a surrogate pair is none."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ResultsError(
                f"{where}: text {text[error.start : error.end]!r} is half of a surrogate pair, which no file can hold."
                " Replace it."
            ) from None


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
    # The fields of a file are among them.
    return "\n".join(" ".join(visible(line).split()) for line in lines)
