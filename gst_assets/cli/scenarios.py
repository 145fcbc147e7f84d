"""`gst list` and `gst show`: which scenarios there are, and what one is, needs, and whether it can run here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from gst_assets.cli.group import as_json, echo_json, echo_table, examples, with_overrides

if TYPE_CHECKING:
    from gst_assets.scenario import Scenario

_CPU = "cpu"
_TRAFFIC = "traffic [s]"
_HAS = {True: "yes", False: "no", None: "?"}
_NEEDS = (
    "an answer now, from runs recorded on a GPU",
    "an answer about this machine's engine, no GPU",
    "an answer about a GPU, measured on it",
    "an answer about a server that runs already",
    "the highest rate, or many settings",
)
"""What a scenario can be chosen for, in the order of the table in docs/scenarios.md."""


@click.command(
    name="list",
    epilog=examples("gst list", "gst list --no-gpu --hardware h100", "gst list --model qwen3-8b --json"),
)
@click.option("--hardware", metavar="ID", help="Only those for this hardware, e.g. h100.")
@click.option("--model", metavar="NAME", help="Only those with this model, e.g. qwen3-8b.")
@click.option("--no-gpu", is_flag=True, help="Only those that need no GPU.")
@click.option("--markdown", is_flag=True, help="Write a Markdown table by need, as docs/scenarios.md has it.")
@as_json
def list_scenarios(hardware: str | None, model: str | None, no_gpu: bool, markdown: bool, wants_json: bool) -> None:
    """List the scenarios with what each is.

    "traffic [s]" are the seconds in which the engine gets requests, over all repeats: 0 where nothing is measured, ?
    where only the workload says. Starting the engine, its profile and the simulation take their time on top.

    A file that is no valid scenario is reported after the others, and makes the exit status 1.
    """
    from gst_assets.errors import ScenarioError
    from gst_assets.scenario import load_scenario, scenario_names

    found, broken = [], []
    for name in scenario_names():
        try:
            found.append(load_scenario(name))
        except ScenarioError as error:
            broken.append(error)
    chosen = [
        one
        for one in found
        if hardware in (None, one.hardware.hardware_id)
        and model in (None, one.model.name)
        and not (no_gpu and _needs_gpu(one))
    ]
    listed = [_facts(one) for one in chosen]
    if wants_json:
        echo_json(listed)
    elif markdown:
        click.echo(_markdown(chosen))
    else:
        header = ["scenario", "gst ...", "model", "hardware", "engine", "GPU", _TRAFFIC, "what"]
        echo_table(header, [[_cell(value) for value in one.values()] for one in listed])
    for problem in broken:
        click.echo(f"error: {problem}", err=True)
    if broken:
        click.get_current_context().exit(1)


def _facts(scenario: Scenario) -> dict[str, str | bool | float | None]:
    return {
        "name": scenario.name,
        "command": _command(scenario),
        "model": scenario.model.name,
        "hardware": scenario.hardware.hardware_id,
        "engine": scenario.engine.backend,
        "needs_gpu": _needs_gpu(scenario),
        "traffic_s": _traffic_s(scenario),
        "description": scenario.description,
    }


def _markdown(scenarios: Iterable[Scenario]) -> str:
    """The scenarios as a Markdown table, by purpose and then by name."""
    header = ("you want", "scenario", "command", "model", "hardware", "real side", "GPU here", _TRAFFIC, "what")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for one in sorted(scenarios, key=lambda scenario: (_NEEDS.index(_need(scenario)), scenario.name)):
        facts = _facts(one)
        cells = [
            _need(one),
            f"`{one.name}`",
            f"`gst {facts['command']}`",
            facts["model"],
            facts["hardware"],
            _real_side(one),
            facts["needs_gpu"],
            facts["traffic_s"],
            facts["description"],
        ]
        lines.append("| " + " | ".join(_cell(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _need(scenario: Scenario) -> str:
    recorded, this_machine, gpu, server, limits = _NEEDS
    if _command(scenario) != "run":
        return limits
    by_backend = {"recorded": recorded, "openai": server}
    return by_backend.get(scenario.engine.backend, gpu if _needs_gpu(scenario) else this_machine)


def _real_side(scenario: Scenario) -> str:
    """Whether the real side is measured by the scenario's command, was measured before, or is absent."""
    if scenario.engine.backend == "recorded":
        return "recorded"
    return "live" if _needs_engine(scenario) else "none: simulated only"


def _traffic_s(scenario: Scenario) -> int | None:
    """Whole seconds in which the scenario's command sends requests to an engine; None where the settings do not
    say."""
    from gst_assets.scenario import traffic_s

    if _real_side(scenario) != "live":
        return 0
    seconds = traffic_s(scenario)
    return None if seconds is None else round(seconds)


def _command(scenario: Scenario) -> str:
    """The command that the scenario was written for."""
    return "sweep" if scenario.sweep else "capacity" if scenario.capacity else "run"


def _needs_gpu(scenario: Scenario) -> bool:
    """Whether that command needs a GPU of this machine; a server has its own, and recorded runs were measured
    before."""
    if scenario.hardware.hardware_id == _CPU or scenario.engine.backend not in ("vllm", "transformers"):
        return False
    return _needs_engine(scenario)


def _needs_engine(scenario: Scenario) -> bool:
    """Whether that command measures something, if only a profile."""
    command = _command(scenario)
    if scenario.profile.root is None or command == "run":
        return True
    return command == "capacity" and scenario.capacity is not None and "engine" in scenario.capacity.sides


def _cell(value: str | bool | float | None) -> str:
    return _HAS[value] if value is None or isinstance(value, bool) else str(value)


@click.command(
    epilog=examples(
        "gst show h100_8b_half",
        "gst show smoke -o workload.num_decode_tokens=16",
        "gst show ./mine.yaml",
        "gst show a100_light --json > a100_light.json",
    )
)
@click.argument("name")
@with_overrides
@as_json
def show(name: str, overrides: tuple[str, ...], wants_json: bool) -> None:
    """Show what scenario NAME is and needs.

    What it needs, whether this machine has it, and every setting. NAME may be a file of your own, ./mine.yaml. With
    --json only the resolved scenario, as the commands for a GPU host read it.
    """
    from gst_assets.scenario import read_reference

    scenario = read_reference(name, overrides)
    if wants_json:
        echo_json(scenario.model_dump(mode="json"))
        return
    import yaml

    from gst_assets.readiness import can_run, needs, router_warning

    command = _command(scenario)
    asked = needs(scenario, with_engine=_needs_engine(scenario))
    click.echo(f"{scenario.name}: {scenario.description}\n")
    echo_table(["needs", "here", "found"], [[one.what, _HAS[one.met], one.found] for one in asked])
    answer = {True: "yes", False: "no", None: "as far as is known before it starts, yes"}[can_run(asked)]
    click.echo(f"\ngst {command} {name} can run on this machine: {answer}")
    if (seconds := _traffic_s(scenario)) is not None:
        click.echo(f"seconds of requests to an engine, over all repeats: {seconds}")
    if warning := router_warning(scenario):
        click.echo(f"warning: {warning}")
    settings = scenario.model_dump(mode="json", exclude={"name", "description"})
    click.echo(f"\n{yaml.safe_dump(settings, sort_keys=False, width=110)}".rstrip())


COMMANDS = (list_scenarios, show)
