"""Commands for the host that measures, without Dagster, and for what is measured: workload, measure, profile, probe,
self-fit, search-forests, pack-profile, recorded."""

from __future__ import annotations

from pathlib import Path

import click

from gst_assets.cli.group import DIRECTORY, REFERENCE, Commands, examples, hand_over, with_overrides


@click.command(
    epilog=examples(
        "gst measure --workload wl-1 --scenario a100_light.json --out runs",
        "gst measure --workload wl-1 --scenario smoke --out runs",
    )
)
@click.option("--workload", multiple=True, required=True, metavar=DIRECTORY, help="Complete workload directory.")
@click.option("--scenario", multiple=True, required=True, metavar="NAME", help=f"One a workload: {REFERENCE}.")
@with_overrides
@click.option("--out", required=True, metavar=DIRECTORY, help="Where the run directories appear.")
@click.option("--group-id", help="Prefix of the run ids (one workload only); default: scenario name and time.")
def measure(**_: object) -> None:
    """Play workloads against the real engine.

    Needs no Dagster. One --scenario for each --workload; all on one engine start.
    """
    hand_over("gst_assets.engine.run")


@click.command(
    epilog=examples(
        "gst profile --scenario a100_light.json --out profile/a100/qwen3-0.6b",
        "gst profile --scenario smoke --out profile --between wl-1 smoke --runs runs",
    )
)
@click.option("--scenario", required=True, metavar="NAME", help=f"{REFERENCE[0].upper()}{REFERENCE[1:]}.")
@click.option("--out", required=True, metavar=DIRECTORY, help="The bundle's directory; must be absent or empty.")
@click.option("--profiling-root", metavar=DIRECTORY, help="Recorded as the bundle's root; default: two above --out.")
@click.option(
    "--between",
    multiple=True,
    nargs=2,
    metavar="WORKLOAD SCENARIO",
    help="A workload directory and its scenario, whose repeats are measured between the calibration rounds.",
)
@click.option("--runs", metavar=DIRECTORY, help="Where the runs of --between appear.")
@click.option("--stamps", metavar=DIRECTORY, help="Store the recorded stamps of every calibration step here.")
@with_overrides
def profile(**_: object) -> None:
    """Measure what the engine costs here.

    Writes a profiling bundle. Needs no Dagster. Given again after an interruption, it continues where it was.
    """
    hand_over("gst_assets.profiling.measure_bundle")


@click.command(epilog=examples("gst probe --scenario h100_8b_capacity.json --out capacity"))
@click.option("--scenario", multiple=True, required=True, metavar="NAME", help=f"Each one a search: {REFERENCE}.")
@with_overrides
@click.option("--out", required=True, metavar=DIRECTORY, help="Where the search directories appear.")
@click.option("--group-id", help="Name of the directory (one scenario only); default: scenario name and time.")
def probe(**_: object) -> None:
    """Search the highest rate the engine alone takes.

    Needs no Dagster. The simulator's, or both: gst capacity.
    """
    hand_over("gst_assets.capacity.engine_probe")


@click.command(name="self-fit", epilog=examples("gst self-fit data/profiles/h100/qwen3-8b"))
@click.argument("bundle", type=click.Path(path_type=Path))
def self_fit(bundle: Path) -> None:
    """Check a profile against its calibration.

    Simulates the calibration traffic of BUNDLE with it. Status 1 if anything does not fit.
    """
    from gst_assets.vidur_adapter.self_fit import bundle_fit, misfits

    table = bundle_fit(bundle)
    click.echo(table.to_string(index=False))
    wrong = misfits(table)
    click.echo("\n".join(wrong) if wrong else "everything fits")
    click.get_current_context().exit(1 if wrong else 0)


@click.command(name="search-forests", epilog=examples("gst search-forests data/profiles/h100/qwen3-8b --jobs 4"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--jobs", type=int, default=-1, show_default=True, metavar="N", help="Processes; -1: one per core.")
def search_forests(bundle: Path, jobs: int) -> None:
    """Run Vidur's own search on a profile.

    Stores the forests for BUNDLE that the variant published needs. Some twenty minutes of processor time.
    """
    from gst_assets.vidur_adapter.published import search_bundle

    search_bundle(bundle, jobs, click.echo)


@click.command(
    name="pack-profile", epilog=examples("gst pack-profile profile/a100/qwen3-0.6b --out data/profiles/a100/qwen3-0.6b")
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar=DIRECTORY, help="Must be absent or empty."
)
def pack_profile(bundle: Path, out: Path) -> None:
    """Make a profile small, and seal it.

    Stores BUNDLE with its large tables compressed, as the project ships profiles. Simulations read it as it is.
    """
    from gst_assets.step_costs.bundle_packing import pack_bundle

    click.echo(pack_bundle(bundle, out))


@click.group(cls=Commands, epilog=examples("gst recorded pack runs/a100_light-* --out data/recorded/a100_light"))
def recorded() -> None:
    """Pack real runs, and unpack them."""


@recorded.command(epilog=examples("gst recorded pack runs/a100_light-* --out data/recorded/a100_light"))
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar=DIRECTORY,
    help="Folder in which <run_id>/ appears.",
)
def pack(directories: tuple[Path, ...], out: Path) -> None:
    """Pack run directories, compressed, as a scenario plays them back."""
    from gst_assets.engine.recorded import pack as keep

    for directory in directories:
        click.echo(keep(directory, out))


@recorded.command(epilog=examples("gst recorded expand data/recorded/h100_8b_half/h100_8b_half-* --out runs"))
@click.argument("directories", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar=DIRECTORY,
    help="Folder in which <run_id>/ appears.",
)
def expand(directories: tuple[Path, ...], out: Path) -> None:
    """Unpack recorded runs as run directories."""
    from gst_assets.engine.recorded import expand as unpack

    for directory in directories:
        click.echo(unpack(directory, out))


COMMANDS = (measure, profile, probe, self_fit, search_forests, pack_profile, recorded)
