"""Everything of a scenario made in this process: `gst run`, `gst sweep` and `gst capacity`. One line per step with its
seconds, then the result.

What `dagster asset materialize` does, into the same instance ($DAGSTER_HOME; without one nothing is stored for the UI),
with what Dagster and the engine say about themselves left out: it is in the UI. Warnings and errors are shown as they
come.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from gst_assets import latest
from gst_assets.environment import Ui, read
from gst_assets.errors import EnvironmentVariableError, ScenarioError
from gst_assets.killed_runs import end_killed_runs, process_tags
from gst_assets.locations import is_installed
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.step_lines import LOGGER, was_cancelled
from gst_assets.timeline import show_runs_in_timeline

COMPARISON = "comparison_report"
_ON_REQUEST = ("capacity", "sweep")
"""Assets of a scenario section of the same name; without it there is nothing to materialize."""


def materialize(scenarios: Sequence[str], overrides: Sequence[str] = (), goal: str = COMPARISON) -> int:
    """Materialize each scenario and print its result; returns the exit status: 1 if a step of any of them failed. One
    that is cancelled (Ctrl-C, SIGTERM) is the last.

    `goal` is what is printed in the end: with the comparison every asset is made, with `capacity` or `sweep` that one
    and what it needs.

    Raises:
        GstError: an unknown scenario, a wrong override, no section for the goal, or an unusable environment variable;
            found before the first scenario is begun.
    """
    ui = read(Ui).url.rstrip("/")
    chosen = [load_scenario(name, overrides) for name in scenarios]
    for scenario in chosen:
        if goal in _ON_REQUEST and getattr(scenario, goal) is None:
            raise ScenarioError(
                f"scenario {scenario.name}: has no section {goal}, which says what to look for"
                f" (docs/{_PAGES[goal]}.md). Add one, or choose a scenario that has it: gst list."
            )
    from gst_assets.definitions import defs

    job = defs.resolve_implicit_global_asset_job_def()
    made: dict[str, Path] = {}
    with _instance() as instance:
        shown_in_ui = not instance.is_ephemeral
        show_runs_in_timeline(instance)
        end_killed_runs(instance)
        for scenario in chosen:
            print(f"\n{scenario.name}: {scenario.description}", flush=True)
            began = time.monotonic()
            result = job.execute_in_process(
                instance=instance,
                partition_key=scenario.name,
                tags=process_tags(),
                asset_selection=sorted(_wanted(job, scenario, goal)),
                run_config={
                    "loggers": {LOGGER: {}},
                    "resources": {"scenario": {"config": {"overrides": list(overrides)}}},
                },
                raise_on_error=False,
            )
            cancelled = not result.success and any(was_cancelled(event) for event in result.all_events)
            how = "done" if result.success else "cancelled" if cancelled else "failed"
            print(f"  {how} after {time.monotonic() - began:.0f} s", flush=True)
            if cancelled:
                break
            if result.success:
                made[scenario.name] = _made(result, goal)
    for name, directory in made.items():
        print(flush=True)
        latest.tell(directory)
        if shown_in_ui:
            print(f"in the UI ({_start_ui()}): {ui}/assets/{goal}?view=partitions&partition={name}")
    return 0 if len(made) == len(chosen) else 1


_PAGES = {"capacity": "capacity", "sweep": "sweeps"}


def quiet_libraries() -> None:
    """Leave out the warnings of libraries, in this process and those it starts: what matters is printed by the steps
    themselves."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def _wanted(job: dg.JobDefinition, scenario: Scenario, goal: str) -> set[dg.AssetKey]:
    """The keys to materialize for a goal."""
    graph = job.asset_layer.asset_graph
    if goal != COMPARISON:
        return set(dg.AssetSelection.assets(goal).upstream().resolve(graph))
    without = {dg.AssetKey(name) for name in _ON_REQUEST if getattr(scenario, name) is None}
    return set(job.asset_layer.selected_asset_keys) - without


def _made(result: dg.ExecuteInProcessResult, goal: str) -> Path:
    """The directory that this run made, from its own record: the scenario's newest may already be another run's."""
    for event in result.get_asset_materialization_events():
        made = event.step_materialization_data.materialization
        if made.asset_key == dg.AssetKey(goal):
            paths = [
                Path(one.path) for one in made.metadata.values() if isinstance(one, dg.PathMetadataValue) and one.path
            ]
            return next(path.parent for path in paths if path.name == latest.SUMMARY)
    raise AssertionError(f"{goal} was selected and the run succeeded, but nothing was materialized")


def _instance() -> dg.DagsterInstance:
    """The one under $DAGSTER_HOME; without DAGSTER_HOME one that ends with this process and sends no messages."""
    if home := os.environ.get("DAGSTER_HOME"):
        if not Path(home).is_dir():
            raise EnvironmentVariableError(
                f"DAGSTER_HOME={home}: no such directory. Make it, or unset the variable to run without a history."
            )
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}})


def _start_ui() -> str:
    return "dagster dev -m gst_assets.definitions" if is_installed() else "make ui"
