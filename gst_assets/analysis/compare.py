"""Comparing existing run directories without Dagster: which is on which side, and the complete comparison directory, or nothing."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import comparison_meta, write_comparison
from gst_assets.analysis.run_reading import RealRun, SimulatedRun, load_run, read_calibration_sha256
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import Kind, directory_digests, open_directory, parse_object
from gst_assets.errors import ArtifactError, ComparisonError
from gst_assets.scenario import Bands
from gst_assets.staging import staged_directory


def sides(words: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The real and the simulated run directories among the words of a command line, each in the order given, as their metadata says.

    A word that is no path and holds `*`, `?` or `[` is a pattern; what it matches comes sorted. A directory named twice counts once.

    Raises:
        ComparisonError: a pattern that matches no directory, or no run of one side.
        ArtifactError: a directory that is no complete run, or of neither side.
    """
    directories = dict.fromkeys(path for word in words for path in _matching(word))
    found: dict[str, list[Path]] = {"real": [], "vidur": []}
    for directory in directories:
        file = open_directory(directory, Kind.REAL_RUN, verify=False) / Kind.REAL_RUN.meta_name
        run_type = parse_object(file.read_bytes(), file, ["run_type"])["run_type"]
        if run_type not in found:
            raise ArtifactError(f"{file}: run_type is {run_type!r}, expected real or vidur. Name run directories only.")
        found[run_type].append(directory)
    for run_type, what in (("real", "a real run"), ("vidur", "a simulated run")):
        if not found[run_type]:
            raise ComparisonError(
                f"none of the {len(directories)} directories is {what} (run_type {run_type} in {Kind.REAL_RUN.meta_name}). Name at least one."
            )
    return found["real"], found["vidur"]


def _matching(word: str) -> list[Path]:
    if not glob.has_magic(word) or Path(word).exists():
        return [Path(word)]
    # Not Path.glob, which takes no absolute pattern.
    directories = [path for path in map(Path, sorted(glob.glob(word))) if path.is_dir()]  # noqa: PTH207
    if not directories:
        raise ComparisonError(f"{word}: the pattern matches no directory. Correct it; gst runs lists the runs.")
    return directories


def compare_directories(
    real: Sequence[Path],
    simulations: Sequence[Path],
    out: Path,
    profile: Path | None = None,
    pass_band: float | None = None,
    warn_band: float | None = None,
    *,
    on_read: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare run directories and write the complete comparison directory `out`.

    `profile` is the bundle whose calibration workloads must not be compared on; without it, the simulation's own profiling root is read
    where it still holds the bundle that was simulated. Bands default to those of the first real run's scenario.

    Several `simulations` of one variant are its seeds, the first the one whose requests are shown. `on_read` is told how
    many directories have been read.

    Raises:
        ComparisonError: runs that cannot be compared, impossible bands, or `out` exists.
        ArtifactError, ContractError: a directory that is not a complete run.
    """
    started_at = datetime.now(timezone.utc)
    if out.exists():
        raise ComparisonError(
            f"{out}: already exists. Comparisons are never overwritten; remove it or name another --out."
        )
    repeats = []
    for directory in real:
        repeats.append(load_run(directory, "real"))
        _tell(on_read, len(repeats))
    variants: dict[str, SimulatedRun] = {}
    further: dict[str, list[SimulatedRun]] = {}
    for number, directory in enumerate(simulations, len(repeats) + 1):
        sim = load_run(directory, "vidur")
        _tell(on_read, number)
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


def _tell(on_read: Callable[[int], None] | None, num_read: int) -> None:
    if on_read is not None:
        on_read(num_read)


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
