"""Comparing existing run directories without Dagster: which is on which side, and the complete comparison directory, or
nothing.

A simulation goes by the name it is given, else by the variant it states, else by its run id.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from gst_assets.analysis.drawing_process import DrawingProcess
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import comparison_meta, write_comparison
from gst_assets.analysis.run_reading import RealRun, SimulatedRun, load_run, read_calibration_sha256, run_kind
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.errors import ComparisonError
from gst_assets.foreign_text import label
from gst_assets.input_files import usable_path
from gst_assets.scenario import Bands
from gst_assets.staging import staged_directory

Named = tuple[str | None, Path]
"""A simulation and the name that it was given, if any."""


def sides(words: Sequence[str]) -> tuple[list[Path], list[Named]]:
    """The real runs and the simulations among the words of a command line, each in the order given, as their metadata
    says.

    A word is `DIR` or, of a simulation, `NAME=DIR`. A DIR that is no path and holds `*`, `?` or `[` is a pattern; what
    it matches comes sorted. A directory named twice counts once.

    Raises:
        ComparisonError: a pattern that matches no directory, no run of one side, a name for a real run, or one that no
            report can show.
        ArtifactError, ContractError: a directory that is no complete run, or of neither side.
    """
    named = dict.fromkeys((name, path) for name, word in map(_named, words) for path in _matching(word))
    real: list[Path] = []
    simulations: list[Named] = []
    for name, directory in named:
        if run_kind(directory) == "vidur":
            simulations.append((name, directory))
        elif name is None:
            real.append(directory)
        else:
            raise ComparisonError(
                f"{name}={directory}: only simulations have a name, this is a real run. Leave the name out."
            )
    for found, run_type, what in ((real, "real", "a real run"), (simulations, "vidur", "a simulated run")):
        if not found:
            raise ComparisonError(
                f"none of the {len(named)} directories is {what} (run_type {run_type} in {Kind.REAL_RUN.meta_name}). "
                "Name at least one."
            )
    return real, simulations


def _named(text: str) -> tuple[str | None, str]:
    """`NAME=DIR` taken apart; a directory whose own name has the sign is taken as it stands."""
    name, sign, directory = text.partition("=")
    if not sign or not name or "/" in name or _exists(text):
        return None, text
    if label(name) != name:
        raise ComparisonError(
            f"{name!r:.80}: expected a name on one line, without control characters, backticks, two stars or outer"
            " spaces. Give the simulation a plain name: NAME=DIR."
        )
    return name, directory


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a name that no file can have
        return False


def _matching(word: str) -> list[Path]:
    if not glob.has_magic(word) or _exists(word):
        return [usable_path(Path(word), ComparisonError)]
    # Not Path.glob, which takes no absolute pattern.
    directories = [path for path in map(Path, sorted(glob.glob(word))) if path.is_dir()]  # noqa: PTH207
    if not directories:
        raise ComparisonError(f"{word}: the pattern matches no directory. Correct it; gst runs lists the runs.")
    return directories


def compare_directories(
    real: Sequence[Path],
    simulations: Sequence[Path | Named],
    out: Path,
    profile: Path | None = None,
    pass_band: float | None = None,
    warn_band: float | None = None,
    *,
    with_figures: bool = True,
    on_read: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare run directories and write the complete comparison directory `out`.

    `profile` is the bundle whose calibration workloads must not be compared on; without it, the simulation's own
    profiling root is read where it still holds the bundle that was simulated. Bands default to those of the first real
    run's scenario.

    A simulation may be given with a name, as (name, directory); without, it goes by the variant it states, else by its
    run id. Several of one name are its seeds, the first the one whose requests are shown. The last name given is the
    headline, unless the runs' scenario orders its variants. A second process draws the figures; without them the report
    shows its tables alone, and matplotlib is not needed. `on_read` is called with the number of directories read so
    far.

    Raises:
        ComparisonError: runs that cannot be compared, impossible bands, `out` exists, or figures cannot be drawn.
        ArtifactError, ContractError: a directory that is not a complete run.
    """
    started_at = datetime.now(timezone.utc)
    for place in (out, *([profile] if profile is not None else [])):
        usable_path(place, ComparisonError)
    if profile is not None and not (profile / Kind.PROFILE.meta_name).is_file():
        raise ComparisonError(
            f"{profile}: no profiling bundle: {Kind.PROFILE.meta_name} missing. Correct --profile, or leave it out."
        )
    if out.exists():
        raise ComparisonError(
            f"{out}: already exists. Comparisons are never overwritten; remove it or name another --out."
        )
    with DrawingProcess() if with_figures else nullcontext() as drawing:
        comparison = _compared(real, simulations, profile, pass_band, warn_band, on_read)
        _write_whole(comparison, out, started_at, drawing)
    return comparison


def _compared(
    real: Sequence[Path],
    simulations: Sequence[Path | Named],
    profile: Path | None,
    pass_band: float | None,
    warn_band: float | None,
    on_read: Callable[[int], None] | None,
) -> Comparison:
    repeats = []
    for directory in real:
        repeats.append(load_run(directory, "real"))
        _tell(on_read, len(repeats))
    variants: dict[str, SimulatedRun] = {}
    further: dict[str, list[SimulatedRun]] = {}
    for number, given in enumerate(simulations, len(repeats) + 1):
        name, directory = given if isinstance(given, tuple) else (None, given)
        sim = load_run(directory, "vidur")
        _tell(on_read, number)
        variant = name or sim.meta.variant or sim.meta.run_id
        sim = replace(sim, meta=sim.meta.model_copy(update={"variant": variant}))
        if variants.setdefault(variant, sim) is not sim:
            further.setdefault(variant, []).append(sim)
    return compare(
        repeats,
        variants,
        bands=_bands(repeats, pass_band, warn_band),
        calibration_sha256=read_calibration_sha256(list(variants.values()), profile),
        further_seeds=further,
    )


def _tell(on_read: Callable[[int], None] | None, num_read: int) -> None:
    if on_read is not None:
        on_read(num_read)


def _write_whole(comparison: Comparison, out: Path, started_at: datetime, drawing: DrawingProcess | None) -> None:
    """The whole directory or none of it, metadata document last."""
    with _disk_errors(out), staged_directory(out) as staging:
        write_comparison(comparison, staging, drawing)
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
            f"{out}: cannot be written ({error.strerror or error}). Name another --out, or check the folder and the"
            " free space."
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
