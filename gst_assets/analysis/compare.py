"""Command line: compare existing run directories without Dagster.

    python -m gst_assets.analysis.compare DIR [NAME=]DIR ... [--out DIR]
    python -m gst_assets.analysis.compare --real DIR [--real DIR ...] --sim [NAME=]DIR [--sim [NAME=]DIR ...] --out DIR

Writes a complete comparison directory, or nothing and `error: ...` with exit status 1. Directories given without an option are taken for what their
run_meta.json says they are. A simulation goes by NAME, else by the variant it states, else by its run id.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import REPORT, SUMMARY, comparison_meta, verdict_sentence, write_comparison
from gst_assets.analysis.run_reading import RealRun, SimulatedRun, load_run, read_calibration_sha256, run_kind
from gst_assets.contracts.documents import timestamp_slug, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.errors import ComparisonError, GstError
from gst_assets.scenario import Bands
from gst_assets.staging import staged_directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    started_at = datetime.now(timezone.utc)
    out = options.out or Path(f"comparison_{timestamp_slug(started_at)}")
    try:
        real, simulations = _sorted_out(options.runs, options.real, options.sim)
        comparison = compare_directories(real, simulations, out, options.profile, options.pass_band, options.warn_band)
    except GstError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(verdict_sentence(comparison))
    print(out / REPORT)
    print(out / SUMMARY)
    return 0


def _sorted_out(
    runs: Sequence[str], real: Sequence[Path], sim: Sequence[str]
) -> tuple[list[Path], list[tuple[str | None, Path]]]:
    """Real runs and (name, simulation) of the command line.

    Raises:
        ComparisonError: a name for a real run.
        ArtifactError, ContractError: a directory that is no run.
    """
    found, simulations = list(real), [_named(text) for text in sim]
    for name, directory in map(_named, runs):
        if run_kind(directory) == "vidur":
            simulations.append((name, directory))
        elif name is None:
            found.append(directory)
        else:
            raise ComparisonError(
                f"{name}={directory}: only simulations have a name, this is a real run. Leave the name out."
            )
    return found, simulations


def _named(text: str) -> tuple[str | None, Path]:
    """`NAME=DIR` taken apart; a directory whose own name has the sign is taken as it stands."""
    name, sign, directory = text.partition("=")
    if not sign or not name or "/" in name or Path(text).exists():
        return None, Path(text)
    return name, Path(directory)


def compare_directories(
    real: Sequence[Path],
    simulations: Sequence[Path | tuple[str | None, Path]],
    out: Path,
    profile: Path | None = None,
    pass_band: float | None = None,
    warn_band: float | None = None,
) -> Comparison:
    """Compare run directories and write the complete comparison directory `out`.

    `profile` is the bundle whose calibration workloads must not be compared on; without it, the simulation's own profiling root is read
    where it still holds the bundle that was simulated. Bands default to those of the first real run's scenario.

    A simulation may be given with a name, as (name, directory); without, it goes by the variant it states, else by its run id. Several of one name are
    its seeds, the first the one whose requests are shown. The last name given is the headline, unless the runs' scenario orders its variants.

    Raises:
        ComparisonError: runs that cannot be compared, impossible bands, or `out` exists.
        ArtifactError, ContractError: a directory that is not a complete run.
    """
    started_at = datetime.now(timezone.utc)
    if out.exists():
        raise ComparisonError(
            f"{out}: already exists. Comparisons are never overwritten; remove it or name another --out."
        )
    repeats = [load_run(directory, "real") for directory in real]
    variants: dict[str, SimulatedRun] = {}
    further: dict[str, list[SimulatedRun]] = {}
    for given in simulations:
        name, directory = given if isinstance(given, tuple) else (None, given)
        sim = load_run(directory, "vidur")
        variant = name or sim.meta.variant or sim.meta.run_id
        sim = replace(sim, meta=sim.meta.model_copy(update={"variant": variant}))
        if variants.setdefault(variant, sim) is not sim:
            further.setdefault(variant, []).append(sim)
    comparison = compare(
        repeats,
        variants,
        bands=_bands(repeats, pass_band, warn_band),
        calibration_sha256=read_calibration_sha256(list(variants.values()), profile),
        further_seeds=further,
    )
    _write_whole(comparison, out, started_at)
    return comparison


def _write_whole(comparison: Comparison, out: Path, started_at: datetime) -> None:
    """The whole directory or none of it, metadata document last."""
    with staged_directory(out) as staging:
        write_comparison(comparison, staging)
        name = Kind.COMPARISON.meta_name
        meta = comparison_meta(
            comparison, run_id=out.absolute().name, started_at=started_at, sha256=directory_digests(staging, name)
        )
        write_document(meta, staging / name)


def _bands(repeats: Sequence[RealRun], pass_band: float | None, warn_band: float | None) -> Bands:
    recorded = repeats[0].meta.params.get("comparison", {}) if repeats else {}
    given = {"pass_band": pass_band, "warn_band": warn_band}
    try:
        return Bands.model_validate(recorded | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ComparisonError(
            f"bands of the verdict: {error.errors()[0]['msg']}. Correct --pass-band or --warn-band."
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gst_assets.analysis.compare",
        description="Compare real runs (repeats of one workload) with Vidur simulations of it.",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="[NAME=]DIR", help="a run directory, real or simulated as its run_meta.json says"
    )
    parser.add_argument(
        "--real", type=Path, action="append", default=[], metavar="DIR", help="a real run; repeat for each repeat"
    )
    parser.add_argument(
        "--sim",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a simulation; repeat for each variant, and for each further seed of one",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="comparison directory to create (default: comparison_<UTC time> here)"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="profiling bundle, to refuse its calibration workloads"
    )
    parser.add_argument("--pass-band", type=float, metavar="X", help="largest |relative error| that passes, e.g. 0.05")
    parser.add_argument("--warn-band", type=float, metavar="X", help="largest |relative error| that warns, e.g. 0.10")
    return parser


if __name__ == "__main__":
    sys.exit(main())
