"""`gst`: everything that a user of the project does, under one name.

`group` has what all commands share, the other modules the commands by kind. A command imports what it needs when it
runs: `gst --help` loads click only. What is done is in the packages below; here are options, and words for a terminal.

Exit status: 0 done; 1 an error, reported in one line, or an answer that is no; 2 wrong usage.
"""

from __future__ import annotations

import gc

import click

from gst_assets import __version__
from gst_assets.cli import answers, doctor, hosts, scenarios
from gst_assets.cli.group import Commands, examples


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("gst list --no-gpu", "gst run h100_8b_half", "gst open h100_8b_half", "gst doctor"),
)
@click.version_option(__version__, package_name="gst-assets", message="gst_assets %(version)s")
def gst() -> None:
    """How far is the Vidur LLM-inference simulator from a real engine?

    Artifacts go to $GST_ARTIFACT_ROOT (default: tmp/ in the checkout, or in the working directory). The history that
    the Dagster UI shows is under $DAGSTER_HOME.
    """


_GARBAGE_AFTER = 50_000
"""New objects in memory."""

for _command in (*scenarios.COMMANDS, *answers.COMMANDS, *hosts.COMMANDS, *doctor.COMMANDS):
    gst.add_command(_command)


def main() -> None:
    """The console command."""
    # Importing Dagster or pandas makes objects that stay: looking for garbage among them, by default after every 700
    # new ones, took a sixth of the time.
    gc.set_threshold(_GARBAGE_AFTER)
    gst.main(prog_name="gst")
