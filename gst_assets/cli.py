"""`gst`: the project's programs under one name.

Imports click and the standard library only: a command imports what it needs when it runs, so that `--help` answers at once. Commands that are
programs of their own (`python -m ...`) hand their options on; a test holds both to the same options.

Exit status: 0 done; 1 an error, told in one line, or an answer that is no; 2 wrong usage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click

from gst_assets import __version__
from gst_assets.errors import GstError

_DIRECTORY = "DIR"
_REFERENCE = "scenario name, or a resolved scenario (gst show NAME > FILE.json)"


class _Failure(click.ClickException):
    """An error told in one line. Click ends the program with status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", file=file, err=True)


class _Commands(click.Group):
    """Tells a `GstError` and a missing package of an extra in one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GstError as error:
            raise _Failure(str(error)) from None
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not missing or missing == "gst_assets":
                raise
            raise _Failure(
                f"this command needs the package {missing}, which is not installed. Install the extra that has it, e.g. "
                "pip install 'gst-assets[platform]'; docs/how-to.md says which is for what."
            ) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="gst-assets", message="gst_assets %(version)s")
def gst() -> None:
    """How far is the Vidur LLM-inference simulator from a real engine?

    Artifacts go to $GST_ARTIFACT_ROOT (default: tmp/ in the checkout, or in the working directory).
    """


# --- scenarios and answers --------------------------------------------------------------------------------------------


@gst.command(name="list")
def list_scenarios() -> None:
    """List the scenarios with what each is."""
    from gst_assets.scenario import load_scenario, scenario_names

    names = scenario_names()
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:<{width}}  {load_scenario(name).description}")


@gst.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print scenario NAME resolved, as JSON."""
    from gst_assets.scenario import resolved_json

    click.echo(resolved_json(name, overrides))


@gst.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def run(names: tuple[str, ...]) -> None:
    """Make every asset of scenarios and print the answers.

    With Dagster: the history is kept under $DAGSTER_HOME where that is set, and is gone afterwards otherwise.
    """
    from gst_assets import demo

    demo.quiet_libraries()
    click.get_current_context().exit(demo.main(names))


@gst.command()
@click.argument("name")
def latest(name: str) -> None:
    """Print the newest answer of scenario NAME."""
    from gst_assets import latest as newest

    newest.main(name)


@gst.command()
@click.option(
    "--keep", type=click.IntRange(1), required=True, metavar="N", help="The newest of each scenario that stay whole."
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def prune(keep: int, dry_run: bool) -> None:
    """Clean up the artifact root.

    Old comparisons shrink to what the history needs, which stays the same to the byte; runs and workloads that only they
    needed go. What a pointer leads to, runs not compared yet, profiles, searches and sweeps stay.
    """
    from gst_assets.analysis.prune import prune_command

    for line in prune_command(keep, dry_run):
        click.echo(line)


# --- programs of their own --------------------------------------------------------------------------------------------


def _overrides(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--override",
        multiple=True,
        metavar="KEY=VALUE",
        help="Applied to a scenario name; a resolved scenario has its own inside.",
    )(command)


def _hand_over(module: str, *before: str) -> None:
    """Run the program `module` with the options of the current command, and end with its status."""
    context = click.get_current_context()
    words = list(before)
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if isinstance(parameter, click.Option):
            given = value if parameter.multiple else [] if value is None else [value]
            for one in given:
                words += [parameter.opts[0], *map(str, one if isinstance(one, tuple) else (one,))]
        else:
            words += map(str, value if isinstance(value, tuple) else (value,))
    context.exit(importlib.import_module(module).main(words))


@gst.command()
@click.argument("runs", nargs=-1, metavar="[[NAME=]DIR]...")
@click.option("--real", multiple=True, metavar=_DIRECTORY, help="A real run; repeat for each repeat.")
@click.option(
    "--sim",
    multiple=True,
    metavar="[NAME=]DIR",
    help="A simulation; repeat for each variant, and for each further seed of one.",
)
@click.option("--out", metavar=_DIRECTORY, help="Comparison directory to create (default: comparison_<UTC time> here).")
@click.option("--profile", metavar=_DIRECTORY, help="Profiling bundle, to refuse its calibration workloads.")
@click.option("--pass-band", type=float, metavar="X", help="Largest |relative error| that passes, e.g. 0.05.")
@click.option("--warn-band", type=float, metavar="X", help="Largest |relative error| that warns, e.g. 0.10.")
def compare(runs: tuple[str, ...], real: tuple[str, ...], sim: tuple[str, ...], **_: object) -> None:
    """Compare real with simulated run directories.

    Without Dagster. A directory without an option is what its run_meta.json says. The runs may come from other programs: docs/contract.md says what they
    must have, `gst import` makes them of other programs' results.
    """
    if not (runs or (real and sim)):
        raise click.UsageError("Name at least one real run and one simulation.", click.get_current_context())
    _hand_over("gst_assets.analysis.compare")


@gst.command(name="import")
@click.argument("format", metavar="FORMAT")
@click.argument("path", metavar="PATH")
@click.option("--out", required=True, metavar=_DIRECTORY, help="Run directory to create.")
@click.option("--model", metavar="NAME", help="The model, where the file does not name it.")
@click.option("--engine", metavar="NAME", help="The engine, or the simulation's name in reports.")
@click.option("--hardware", metavar="ID", help="The hardware, as stated, e.g. a100.")
@click.option("--clock", metavar="epoch|monotonic", help="What the times are, where they look otherwise.")
@click.option("--part", metavar="N", type=int, help="Which of several runs in the file, from 0.")
def import_(**_: object) -> None:
    """Make a run directory of another program's results.

    FORMAT is vllm-bench, guidellm, aiperf, inference-perf, llmservingsim, vidur or blis: docs/importing.md. Needs no Dagster.
    """
    _hand_over("gst_assets.importers.command")


@gst.command()
@click.option("--workload", multiple=True, required=True, metavar=_DIRECTORY, help="Complete workload directory.")
@click.option("--scenario", multiple=True, required=True, metavar="NAME", help=f"One a workload: {_REFERENCE}.")
@_overrides
@click.option("--out", required=True, metavar=_DIRECTORY, help="Where the run directories appear.")
@click.option("--group-id", help="Prefix of the run ids (one workload only); default: scenario name and time.")
def measure(**_: object) -> None:
    """Play workloads against the real engine.

    Needs no Dagster. One --scenario for each --workload.
    """
    _hand_over("gst_assets.engine.run")


@gst.command()
@click.option("--scenario", required=True, metavar="NAME", help=f"{_REFERENCE[0].upper()}{_REFERENCE[1:]}.")
@click.option("--out", required=True, metavar=_DIRECTORY, help="The bundle's directory; must be absent or empty.")
@click.option("--profiling-root", metavar=_DIRECTORY, help="Recorded as the bundle's root; default: two above --out.")
@click.option(
    "--between",
    multiple=True,
    nargs=2,
    metavar="WORKLOAD SCENARIO",
    help="A workload directory and its scenario, whose repeats are measured between the calibration rounds.",
)
@click.option("--runs", metavar=_DIRECTORY, help="Where the runs of --between appear.")
@click.option("--stamps", metavar=_DIRECTORY, help="Keep the recorded stamps of every calibration step here.")
@_overrides
def profile(**_: object) -> None:
    """Measure what the engine costs here.

    Writes a profiling bundle. Needs no Dagster. Given again after an interruption it goes on where it was.
    """
    _hand_over("gst_assets.profiling.measure_bundle")


@gst.command()
@click.option("--scenario", multiple=True, required=True, metavar="NAME", help=f"Each one a search: {_REFERENCE}.")
@_overrides
@click.option("--out", required=True, metavar=_DIRECTORY, help="Where the search directories appear.")
@click.option("--group-id", help="Name of the directory (one scenario only); default: scenario name and time.")
def capacity(**_: object) -> None:
    """Search the highest rate the engine takes.

    The real engine; the simulator's is the asset `capacity`. Needs no Dagster.
    """
    _hand_over("gst_assets.capacity.engine_probe")


@gst.command(name="self-fit")
@click.argument("bundle")
def self_fit(**_: object) -> None:
    """Hold a profile against its calibration.

    Simulates the calibration traffic of BUNDLE with it. Status 1 if anything does not fit.
    """
    _hand_over("gst_assets.vidur_adapter.self_fit")


@gst.command(name="search-forests")
@click.argument("bundle")
@click.option("--jobs", type=int, metavar="N", help="Processes; -1 (default): one a core.")
def search_forests(**_: object) -> None:
    """Run Vidur's own search on a profile.

    Keeps the forests for BUNDLE that the variant `published` needs. Some twenty minutes of processor time.
    """
    _hand_over("gst_assets.vidur_adapter.published", "search")


@gst.group()
def recorded() -> None:
    """Keep real runs, and unpack them."""


@recorded.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--out", required=True, metavar=_DIRECTORY, help="Folder in which <run_id>/ appears.")
def pack(**_: object) -> None:
    """Keep run directories."""
    _hand_over("gst_assets.engine.recorded", "pack")


@recorded.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--out", required=True, metavar=_DIRECTORY, help="Folder in which <run_id>/ appears.")
def expand(**_: object) -> None:
    """Make run directories of recorded runs."""
    _hand_over("gst_assets.engine.recorded", "expand")


def main() -> None:
    """The console command."""
    gst.main(prog_name="gst")


if __name__ == "__main__":
    main()
