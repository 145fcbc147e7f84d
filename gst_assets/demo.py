"""`python -m gst_assets.demo SCENARIO ...`: every asset of each scenario, one line a step with its seconds, then what came of it.

What `dagster asset materialize` does, into the same instance ($DAGSTER_HOME; without one nothing is kept for the UI), with what Dagster and the engine say about themselves left out: it is in
the UI. Warnings and errors are shown as they come.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Sequence

import dagster as dg

from gst_assets import latest
from gst_assets.environment import Ui, read
from gst_assets.errors import GstError
from gst_assets.locations import is_installed
from gst_assets.scenario import load_scenario
from gst_assets.step_lines import LOGGER
from gst_assets.timeline import show_runs_in_timeline

_ON_REQUEST = ("capacity", "sweep")
"""Assets of a scenario section of the same name; without it there is nothing to materialize."""


def main(scenarios: Sequence[str]) -> int:
    """Materialize and tell each scenario; returns the exit status: 1 if a step of any of them failed.

    Raises:
        GstError: an unknown scenario or an unusable environment variable, found before the first is begun.
    """
    ui = read(Ui).url.rstrip("/")
    chosen = [load_scenario(name) for name in scenarios]
    from gst_assets.definitions import defs

    job, failed = defs.resolve_implicit_global_asset_job_def(), []
    with _instance() as instance:
        shown_in_ui = not instance.is_ephemeral
        show_runs_in_timeline(instance)
        for scenario in chosen:
            print(f"\n{scenario.name}: {scenario.description}", flush=True)
            began = time.monotonic()
            without = {dg.AssetKey(name) for name in _ON_REQUEST if getattr(scenario, name) is None}
            result = job.execute_in_process(
                instance=instance,
                partition_key=scenario.name,
                asset_selection=sorted(set(job.asset_layer.selected_asset_keys) - without),
                run_config={"loggers": {LOGGER: {}}},
                raise_on_error=False,
            )
            print(f"  {'done' if result.success else 'failed'} after {time.monotonic() - began:.0f} s", flush=True)
            if not result.success:
                failed.append(scenario.name)
    for scenario in chosen:
        if scenario.name not in failed:
            print(flush=True)
            latest.main(scenario.name)
            if shown_in_ui:
                print(
                    f"in the UI ({_start_ui()}): {ui}/assets/comparison_report?view=partitions&partition={scenario.name}"
                )
    return 1 if failed else 0


def quiet_libraries() -> None:
    """Leave out the warnings of libraries, in this process and those it starts: what matters is printed by the steps themselves."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def _instance() -> dg.DagsterInstance:
    """The one under $DAGSTER_HOME; without that one which ends with this process and tells nobody."""
    if os.environ.get("DAGSTER_HOME"):
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.ephemeral(settings={"telemetry": {"enabled": False}})


def _start_ui() -> str:
    return "dagster dev -m gst_assets.definitions" if is_installed() else "make ui"


if __name__ == "__main__":
    quiet_libraries()
    try:
        if len(sys.argv) < 2:
            sys.exit("usage: python -m gst_assets.demo SCENARIO ...")
        sys.exit(main(sys.argv[1:]))
    except GstError as problem:
        sys.exit(f"error: {problem}")
