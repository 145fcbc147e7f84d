"""Commands that make answers and pass them on: run, sweep, capacity, latest, open, runs, compare, import, export,
prune."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import click

from gst_assets.cli.group import DIRECTORY, as_json, echo_json, echo_table, examples, with_overrides


def _materialize(names: tuple[str, ...], overrides: tuple[str, ...], goal: str) -> None:
    from gst_assets import materialize

    known = _with_own_folder(names)
    materialize.quiet_libraries()
    click.get_current_context().exit(materialize.materialize(known, overrides, goal))


def _with_own_folder(names: Sequence[str]) -> list[str]:
    """Names of scenarios for names and files; the folder of files becomes that of GST_SCENARIO_DIR for this process and
    its children, since Dagster takes its partitions from there."""
    from gst_assets.environment import SCENARIOS_VARIABLE, OwnScenarios, read
    from gst_assets.errors import ScenarioError
    from gst_assets.scenario import SCENARIO_DIR, load_file

    files = {name: Path(name).resolve() for name in names if name.endswith(".yaml")}
    for name in files:
        load_file(Path(name))
    folders = {file.parent for file in files.values()} - {SCENARIO_DIR}
    own = read(OwnScenarios).directory
    if len(folders | ({own.expanduser().resolve()} if own else set())) > 1:
        raise ScenarioError(
            f"{', '.join(files)}: own scenarios of one run come from one folder, which is also that of"
            f" {SCENARIOS_VARIABLE} where that is set. Put the files together, or run them one by one."
        )
    if folders:
        os.environ.update({SCENARIOS_VARIABLE: str(folders.pop())})
    return [files[name].stem if name in files else name for name in names]


@click.command(epilog=examples("gst run h100_8b_half", "gst run smoke -o replay.repeats=5", "gst run ./mine.yaml"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_overrides
def run(names: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Make every asset of scenarios and print the answers.

    One line per step with its seconds. Runs through Dagster: the history is stored under $DAGSTER_HOME where that is
    set, and discarded otherwise. NAME may be a file of your own, ./mine.yaml; the others in its folder are then known
    too, as with GST_SCENARIO_DIR.
    """
    _materialize(names, overrides, "comparison_report")


@click.command(epilog=examples("gst sweep h100_8b_sweep", "gst sweep h100_8b_sweep -o sweep.rates_per_s=[8,16]"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_overrides
def sweep(names: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Simulate many rates and engine settings.

    Those that the section sweep of the scenario lists. Measures nothing but a profile, where the scenario names none.
    """
    _materialize(names, overrides, "sweep")


@click.command(
    epilog=examples("gst capacity h100_8b_capacity", "gst capacity cpu_capacity -o capacity.sides=[simulator]")
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_overrides
def capacity(names: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Search the highest rate that is served in time.

    On the simulator, the engine, or both, as capacity.sides of the scenario says. The engine alone, on a host without
    Dagster: gst probe.
    """
    _materialize(names, overrides, "capacity")


@click.command(epilog=examples("gst latest", "gst latest h100_8b_half", "gst latest smoke --json"))
@click.argument("name", required=False)
@with_overrides
@as_json
def latest(name: str | None, overrides: tuple[str, ...], wants_json: bool) -> None:
    """Print the newest answer, of scenario NAME or of all.

    Of a scenario the newest that was made with the settings it has now, with -o those of an earlier run. Where all were
    made with other settings it is the newest of those, with a note. With --json where the report is, its scenario,
    verdict and overrides.
    """
    from gst_assets import latest as newest

    directory = _newest(name, overrides)
    if name is not None and (differs := newest.difference(directory, name, overrides)):
        click.echo(f"note: {differs}", err=True)
    if wants_json:
        echo_json(_described(directory))
    else:
        newest.tell(directory)


@click.command(name="open", epilog=examples("gst open", "gst open h100_8b_half"))
@click.argument("name", required=False)
@with_overrides
def open_report(name: str | None, overrides: tuple[str, ...]) -> None:
    """Open the newest report in the browser.

    Of scenario NAME, or of all. Prints where it is; where there is no browser, that is all.
    """
    import webbrowser

    from gst_assets.latest import REPORT

    page = _newest(name, overrides) / REPORT
    click.echo(page)
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if not browser.open(page.as_uri()):
        click.echo("The browser could not be opened.", err=True)


def _newest(name: str | None, overrides: Sequence[str] = ()) -> Path:
    from gst_assets.contracts.inventory import list_runs
    from gst_assets.contracts.open_store import open_store
    from gst_assets.contracts.store import Kind
    from gst_assets.errors import ArtifactError
    from gst_assets.latest import newest

    if name is not None:
        return newest(name, overrides)
    if overrides:
        raise click.UsageError("-o says with which settings scenario NAME was run: give NAME as well.")
    store = open_store()
    found = [one for one in list_runs(store, [Kind.COMPARISON]) if one.started_at is not None]
    if not found:
        raise ArtifactError(f"{store}: no comparison. Make one: gst run h100_8b_half.")
    return store.open(Kind.COMPARISON, found[0].run_id, verify=False)


def _described(directory: Path) -> dict[str, object]:
    import json

    from gst_assets.contracts.store import Kind
    from gst_assets.latest import REPORT, SUMMARY

    meta = json.loads((directory / Kind.COMPARISON.meta_name).read_text(encoding="utf-8"))
    return {
        "comparison_id": meta["run_id"],
        "scenario": meta["params"].get("name"),
        "overrides": meta["params"].get("overrides", []),
        "model": meta["model"],
        "hardware": meta["hardware"]["hardware_id"],
        "started_at": meta["started_at"],
        "verdict": meta["verdict"],
        "report": str(directory / REPORT),
        "summary": str(directory / SUMMARY),
    }


_KINDS = {
    "real": "real_runs",
    "simulated": "vidur_runs",
    "comparison": "comparisons",
    "capacity": "capacity",
    "sweep": "sweeps",
}


@click.command(epilog=examples("gst runs", "gst runs smoke --kind real", "gst runs --kind comparison --last 5 --json"))
@click.argument("name", required=False)
@click.option("--kind", type=click.Choice(list(_KINDS)), help="Only runs of this kind.")
@click.option(
    "--last", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most the N newest."
)
@as_json
def runs(name: str | None, kind: str | None, last: int, wants_json: bool) -> None:
    """List the runs in the artifact root, newest first.

    Of scenario NAME, or of all: kind, id, scenario, model, hardware, when, and how it ended.
    """
    from gst_assets.contracts.inventory import LISTED, list_runs
    from gst_assets.contracts.open_store import open_store
    from gst_assets.contracts.store import Kind

    store = open_store()
    told = {Kind(value): word for word, value in _KINDS.items()}
    found = list_runs(store, LISTED if kind is None else [Kind(_KINDS[kind])], name)
    if wants_json:
        echo_json(
            [
                {
                    "kind": told[one.kind],
                    "id": one.run_id,
                    "path": str(store.path(one.kind, one.run_id)),
                    "scenario": one.scenario,
                    "overrides": list(one.overrides),
                    "model": one.model,
                    "hardware": one.hardware,
                    "started_at": one.started_at,
                    "status": one.status,
                }
                for one in found[:last]
            ]
        )
        return
    if not found:
        click.echo(f"{store}: no such run.")
        return
    header = ["kind", "id", "scenario", "model", "hardware", "started (UTC)", "status"]
    rows = [
        [
            told[one.kind],
            one.run_id,
            one.scenario or "not stated",
            one.model or "not stated",
            one.hardware or "not stated",
            _minute(one.started_at),
            f"{one.status}; with {' '.join(one.overrides)}" if one.overrides else one.status,
        ]
        for one in found[:last]
    ]
    echo_table(header, rows)
    if len(found) > last:
        click.echo(f"and {len(found) - last} older: gst runs --last {len(found)}")


def _minute(started_at: str | None) -> str:
    from datetime import datetime, timezone

    try:
        return datetime.fromisoformat(started_at or "").astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "not stated"


@click.command(
    epilog=examples(
        "gst compare tmp/real_runs/smoke-* tmp/vidur_runs/smoke-* --out comparison",
        "gst compare 'runs/*' vidur_runs/smoke-kernels --out comparison --pass-band 0.05",
        "gst compare measured ours=simulated theirs=imported --out comparison",
    )
)
@click.argument("directories", nargs=-1, required=True, metavar="REAL... [NAME=]SIM...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar=DIRECTORY,
    help="Comparison directory to create; default: comparison_<UTC time> here.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    metavar=DIRECTORY,
    help="Profiling bundle, to refuse its calibration workloads.",
)
@click.option("--pass-band", type=float, metavar="X", help="Largest |relative error| that passes, e.g. 0.05.")
@click.option("--warn-band", type=float, metavar="X", help="Largest |relative error| that warns, e.g. 0.10.")
@click.option(
    "--no-figures", is_flag=True, help="Draw none: the report has its tables alone, in half the processor time."
)
def compare(
    directories: tuple[str, ...],
    out: Path | None,
    profile: Path | None,
    pass_band: float | None,
    warn_band: float | None,
    no_figures: bool,
) -> None:
    """Compare real with simulated run directories.

    In any order: run_meta.json of each says whether it is real or simulated. Several real ones are repeats; several
    simulated ones are variants, or further seeds of one; NAME=SIM gives a simulation a name. Patterns with * work, in
    quotes too. Without Dagster. The runs may come from other programs: docs/contract.md says what they must have.
    Prints the verdict, and several simulations side by side.
    """
    from gst_assets.analysis.compare import compare_directories, sides
    from gst_assets.analysis.report import REPORT, SUMMARY, side_by_side, verdict_sentence
    from gst_assets.foreign_text import visible
    from gst_assets.progress import Progress

    out = out or Path(f"comparison_{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}")
    real, simulated = sides(directories)
    with Progress("reading", len(real) + len(simulated), "runs") as progress:
        comparison = compare_directories(
            real, simulated, out, profile, pass_band, warn_band, with_figures=not no_figures, on_read=progress.at
        )
    click.echo(verdict_sentence(comparison))
    if grid := side_by_side(comparison):
        echo_table(grid.header, grid.rows)
    for path in (out / REPORT, out / SUMMARY):
        click.echo(visible(str(path)))


@click.command(
    epilog=examples("gst export h100_8b_half --out answer.html", "gst export h100_8b_half --out everything.zip")
)
@click.argument("name", metavar="NAME|ID")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="File to create: .html or .zip."
)
def export(name: str, out: Path) -> None:
    """Write one file to send.

    Of the newest comparison of scenario NAME, or of the comparison ID (gst runs lists them). FILE.html is the report as
    one self-contained page; FILE.zip the whole directory, with every table and figure.
    """
    from gst_assets.contracts.open_store import open_store
    from gst_assets.contracts.store import Kind
    from gst_assets.export import export_comparison

    store = open_store()
    directory = store.open(Kind.COMPARISON, name) if name in store.list(Kind.COMPARISON) else _newest(name)
    export_comparison(directory, out)
    click.echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


@click.command(epilog=examples("gst prune --keep 30 --dry-run", "gst prune --keep 30"))
@click.option(
    "--keep", type=click.IntRange(1), required=True, metavar="N", help="The newest of each scenario that stay whole."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
def prune(keep: int, dry_run: bool) -> None:
    """Clean up the artifact root.

    Old comparisons shrink to what the history needs, which stays the same to the byte; runs and workloads that only
    they needed are removed. What a pointer leads to, runs not compared yet, profiles, searches and sweeps stay.
    """
    from gst_assets.analysis.prune import prune_command

    for line in prune_command(keep, dry_run):
        click.echo(line)


@click.command(epilog=examples("gst ui", "gst ui --port 3100"))
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the UI on loopback."
)
def ui(port: int) -> None:
    """Start the Dagster UI with its daemon.

    On loopback, with what its links to reports need, until Ctrl-C. Shows the history under $DAGSTER_HOME.
    """
    from gst_assets.ui import main

    click.get_current_context().exit(main(port))


@click.command(
    name="import",
    epilog=examples(
        "gst import vllm-bench result.json --out imported",
        "gst import llmservingsim sim.csv --out simulated --model qwen3-8b --hardware h100",
    ),
)
@click.argument("format_name", metavar="FORMAT")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar=DIRECTORY, help="Run directory to create."
)
@click.option("--model", metavar="NAME", help="The model, where the file does not name it.")
@click.option("--engine", metavar="NAME", help="The engine, or the simulation's name in reports.")
@click.option("--hardware", metavar="ID", help="The hardware, as stated, e.g. a100.")
@click.option(
    "--clock", type=click.Choice(["epoch", "monotonic"]), help="What the times are, where they look otherwise."
)
@click.option("--part", type=click.IntRange(0), metavar="N", help="Which of several runs in the file, from 0.")
def import_results(
    format_name: str,
    path: Path,
    out: Path,
    model: str | None,
    engine: str | None,
    hardware: str | None,
    clock: Literal["epoch", "monotonic"] | None,
    part: int | None,
) -> None:
    """Make a run directory of another program's results.

    FORMAT is one of docs/importing.md, PATH the file or the folder that holds it. Prints what the file does not state.
    """
    from gst_assets.foreign_text import visible
    from gst_assets.importers import importing
    from gst_assets.importers.results import Options

    results = importing.import_results(
        format_name, path, out, Options(clock, part), model=model, engine=engine, hardware=hardware
    )
    click.echo(importing.told(results))
    click.echo(visible(str(out)))


COMMANDS = (run, latest, open_report, runs, compare, sweep, capacity, export, import_results, prune, ui)
