"""Making a run directory of another program's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.importers.registry import FORMATS
from gst_assets.importers.results import MODEL_NOT_STATED, Options, Results
from gst_assets.importers.writing import write_run


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
    results = FORMATS[format_name].read(path, options)
    if model:
        results = replace(results, unstated=tuple(text for text in results.unstated if text != MODEL_NOT_STATED))
    given = {"model": model, "engine": engine, "hardware": hardware}
    write_run(results, format_name, out, {name: value for name, value in given.items() if value})
    return results


def told(results: Results) -> str:
    """What came of it, for people: a line for what was read, its clock, and all that is left out or not stated."""
    answered = sum(one.error is None and one.num_produced > 0 for one in results.requests)
    kind = "real run" if results.run_type == "real" else "simulation"
    lines = [
        f"{kind} of {len(results.requests)} requests, {answered} with an answer; written by {results.written_by}",
        f"clock: {results.clock}; arrival: {results.arrivals}; joined by {results.joined_by}",
    ]
    lines += [f"left out: {name}: {what}" for name, what in results.dropped.items() if what]
    lines += [f"note: {text}" for text in results.unstated]
    return "\n".join(lines)
