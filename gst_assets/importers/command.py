"""Command line: make a run directory of another program's results.

    python -m gst_assets.importers.command FORMAT PATH --out DIR

Writes a complete run directory and says what it could not tell, or nothing and `error: ...` with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gst_assets.errors import GstError, ResultsError
from gst_assets.importers.registry import FORMATS
from gst_assets.importers.results import Options, Results
from gst_assets.importers.writing import write_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        results = import_results(
            options.format,
            options.path,
            options.out,
            Options(options.clock, options.part),
            model=options.model,
            engine=options.engine,
            hardware=options.hardware,
        )
    except GstError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(_told(results))
    print(options.out)
    return 0


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
    given = {"model": model, "engine": engine, "hardware": hardware}
    write_run(results, format_name, out, {name: value for name, value in given.items() if value})
    return results


def _told(results: Results) -> str:
    answered = sum(one.error is None and one.num_produced > 0 for one in results.requests)
    kind = "real run" if results.run_type == "real" else "simulation"
    lines = [
        f"{kind} of {len(results.requests)} requests, {answered} with an answer; written by {results.written_by}",
        f"clock: {results.clock}; arrival: {results.arrivals}; joined by {results.joined_by}",
    ]
    lines += [f"left out: {name}: {what}" for name, what in results.dropped.items() if what]
    lines += [f"note: {text}" for text in results.unstated]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gst_assets.importers.command", description="Make a run directory of another program's results."
    )
    parser.add_argument(
        "format", metavar="FORMAT", help="; ".join(f"{name}: {one.what}" for name, one in FORMATS.items())
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the file, or the folder that holds it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory to create")
    parser.add_argument("--model", metavar="NAME", help="the model, where the file does not name it")
    parser.add_argument("--engine", metavar="NAME", help="the engine, or the simulation's name in reports")
    parser.add_argument("--hardware", metavar="ID", help="the hardware, as stated, e.g. a100")
    parser.add_argument("--clock", choices=("epoch", "monotonic"), help="what the times are, where they look otherwise")
    parser.add_argument("--part", type=int, metavar="N", help="which of several runs in the file, from 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
