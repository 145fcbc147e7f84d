"""Measure a workload on the real engine: `gst measure`, and the child process in which the Dagster asset measures.

One engine start, `replay.repeats` repeats; each becomes a complete run directory `OUT/<group_id>-r<k>/`. `--workload`
and `--scenario` may be given several times, in pairs, to play several workloads on one engine start; the scenarios must
then agree about model, hardware and engine. Needs no Dagster, pandera, Vidur or (with FILE.json) OmegaConf, so it runs
on a bare GPU host. When a run is `degraded`: `run_directory`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from gst_assets.contracts.documents import timestamp_slug
from gst_assets.engine.backends import engine_environment
from gst_assets.engine.launch import die_with_parent, exit_status
from gst_assets.engine.measuring import measure
from gst_assets.engine.plays import Play, check_one_engine
from gst_assets.errors import EngineError
from gst_assets.scenario import read_reference


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. See `launch.exit_status`."""
    die_with_parent()
    arguments = _parser().parse_args(argv)

    def work() -> None:
        plays = _plays(arguments)
        os.environ.update(engine_environment(plays[0].scenario))
        asyncio.run(measure(plays, arguments.out))

    return exit_status(work, arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gst_assets.engine.run", description=__doc__)
    parser.add_argument("--workload", type=Path, action="append", required=True, help="complete workload directory")
    add_scenario_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory in which the run directories appear")
    parser.add_argument("--group-id", help="prefix of the run ids (one workload only); default: scenario name and time")
    return parser


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """`--scenario` and `--override`, each any number of times, as every command that opens an engine for several
    scenarios takes them."""
    parser.add_argument(
        "--scenario",
        action="append",
        required=True,
        help="scenario name, or a resolved scenario (gst show NAME --json)",
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="applied to scenarios given by name; a resolved scenario has its own inside",
    )


def _plays(arguments: argparse.Namespace) -> list[Play]:
    scenarios = [read_reference(reference, arguments.override) for reference in arguments.scenario]
    if len(scenarios) != len(arguments.workload):
        raise EngineError(
            f"{len(arguments.workload)} --workload and {len(scenarios)} --scenario given, expected one scenario for"
            " each workload."
        )
    if arguments.group_id and len(scenarios) > 1:
        raise EngineError("--group-id names the runs of one workload. Leave it out to name them after their scenarios.")
    check_one_engine(scenarios)
    now = timestamp_slug(datetime.now(timezone.utc))
    return [
        Play(scenario, workload.resolve(), arguments.group_id or f"{scenario.name}-{now}")
        for scenario, workload in zip(scenarios, arguments.workload, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
