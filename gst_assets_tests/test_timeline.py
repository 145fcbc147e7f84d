"""A run of this process belongs to the code location, by which the UI's timeline finds it."""

from __future__ import annotations

import dagster as dg
import yaml

from gst_assets.provenance import PROJECT_ROOT
from gst_assets.timeline import LOCATION, show_runs_in_timeline


@dg.asset
def something() -> None: ...


def test_a_run_of_this_process_belongs_to_the_code_location() -> None:
    job = dg.Definitions([something]).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        before = job.execute_in_process(instance=instance).dagster_run
        show_runs_in_timeline(instance)
        done = job.execute_in_process(instance=instance)
    assert before.remote_job_origin is None and done.success
    origin = done.dagster_run.remote_job_origin
    assert origin is not None and origin.job_name == done.dagster_run.job_name
    assert origin.repository_origin.get_label() == f"__repository__@{LOCATION}"


def test_the_ui_calls_the_code_location_so() -> None:
    (location,) = yaml.safe_load((PROJECT_ROOT / "workspace.yaml").read_text())["load_from"]
    assert location == {"python_module": LOCATION}
