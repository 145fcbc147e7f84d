"""Command line: compare existing run directories without Dagster.

    python -m gst_assets.analysis.compare --real DIR [--real DIR ...] --sim DIR [--sim DIR ...] --out DIR

Writes a complete comparison directory, or nothing and `error: ...` with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import REPORT, SUMMARY, comparison_meta, verdict_sentence, write_comparison
from gst_assets.analysis.run_reading import RealRun, SimulatedRun, load_run, read_calibration_sha256
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.errors import ComparisonError, GstError
from gst_assets.scenario import Bands
from gst_assets.staging import staged_directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        comparison = compare_directories(
            options.real, options.sim, options.out, options.profile, options.pass_band, options.warn_band
        )
    except GstError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(verdict_sentence(comparison))
    print(options.out / REPORT)
    print(options.out / SUMMARY)
    return 0


def compare_directories(
    real: Sequence[Path],
    simulations: Sequence[Path],
    out: Path,
    profile: Path | None = None,
    pass_band: float | None = None,
    warn_band: float | None = None,
) -> Comparison:
    """Compare run directories and write the complete comparison directory `out`.

    `profile` is the bundle whose calibration workloads must not be compared on; without it, the simulation's own profiling root is read
    where it still holds the bundle that was simulated. Bands default to those of the first real run's scenario.

    Several `simulations` of one variant are its seeds, the first the one whose requests are shown.

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
    for directory in simulations:
        sim = load_run(directory, "vidur")
        if variants.setdefault(sim.meta.variant, sim) is not sim:
            further.setdefault(sim.meta.variant, []).append(sim)
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
    with _disk_errors(out), staged_directory(out) as staging:
        write_comparison(comparison, staging)
        name = Kind.COMPARISON.meta_name
        meta = comparison_meta(
            comparison, run_id=out.absolute().name, started_at=started_at, sha256=directory_digests(staging, name)
        )
        write_document(meta, staging / name)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ComparisonError(
            f"{out}: cannot be written ({error.strerror or error}). Name another --out, or check the folder and the free space."
        ) from None


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
        "--real", type=Path, action="append", required=True, metavar="DIR", help="a real run; repeat for each repeat"
    )
    parser.add_argument(
        "--sim",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="a simulation; repeat for each variant, and for each further seed of one",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="comparison directory to create")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="profiling bundle, to refuse its calibration workloads"
    )
    parser.add_argument("--pass-band", type=float, metavar="X", help="largest |relative error| that passes, e.g. 0.05")
    parser.add_argument("--warn-band", type=float, metavar="X", help="largest |relative error| that warns, e.g. 0.10")
    return parser


if __name__ == "__main__":
    sys.exit(main())
