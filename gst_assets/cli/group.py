"""What all commands share: how errors are reported, common options, and passing options to a program that also runs as
a child process.

Imports click and the standard library only, so that `--help` answers at once. What a command does is in the module of
its kind.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from gst_assets.errors import GstError

DIRECTORY = "DIR"
REFERENCE = "scenario name, own YAML file, or a resolved scenario (gst show NAME --json > FILE.json)"

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


class Failure(click.ClickException):
    """An error reported in one line. Click ends the program with status 1."""

    def show(self, file: Any = None) -> None:
        from gst_assets.foreign_text import visible

        # Errors quote files: nothing in them may act on the terminal.
        click.echo(f"error: {' '.join(visible(self.message).split())}", file=file, err=True)


class Commands(click.Group):
    """Reports a `GstError` and a missing package of an extra in one line each; lists its commands in the order in which
    they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GstError as error:
            raise Failure(str(error)) from None
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not missing or missing == "gst_assets":
                raise
            raise Failure(
                f"this command needs the package {missing}, which is not installed. Install the extra that has it, e.g."
                " pip install 'gst-assets[platform]'; docs/how-to.md says which is for what."
            ) from None


def examples(*lines: str) -> str:
    """The epilog of a command: its examples, each on a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def with_overrides(command: AnyCommand) -> AnyCommand:
    """The option `-o KEY=VALUE`, any number of times, as `overrides`."""
    return click.option(
        "-o",
        "--override",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Another value of a setting, for this run only.",
    )(command)


def as_json(command: AnyCommand) -> AnyCommand:
    """The option `--json`, as `wants_json`."""
    return click.option("--json", "wants_json", is_flag=True, help="Write JSON, for a script.")(command)


def echo_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows with their columns in line; the last column has the width that is left, and is wrapped into it in a
    terminal."""
    import shutil
    import sys
    import textwrap

    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    before = sum(widths[:-1]) + 2 * (len(header) - 1)
    columns = shutil.get_terminal_size((120, 24)).columns
    left = max(30, columns - before) if sys.stdout.isatty() else 10**6
    for row in (header, *rows):
        first, *more = textwrap.wrap(row[-1], left) or [""]
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        click.echo("  ".join([*cells, first]).rstrip())
        for line in more:
            click.echo(" " * before + line)


def hand_over(module: str) -> None:
    """Run the program `module`, which the product also starts as a child process, with the options of the current
    command, and end with its status. A test holds both to the same options."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        if not isinstance(parameter, click.Option):
            continue
        value = context.params[parameter.name or ""]
        given = value if parameter.multiple else [] if value is None else [value]
        name = next(one for one in reversed(parameter.opts))
        for one in given:
            words += [name, *map(str, one if isinstance(one, tuple) else (one,))]
    context.exit(importlib.import_module(module).main(words))
