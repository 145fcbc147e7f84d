"""Runs of this process in the UI's timeline.

The timeline shows the runs of a code location, and a run that a process makes for itself belongs to none. Dagster 1.13
has no public name for saying to which it belongs: this is the one module that imports from `dagster._core`.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

LOCATION = "gst_assets.definitions"
"""The code location, as `workspace.yaml`, `[tool.dg]` and `dagster dev -m` name it."""
_REPOSITORY = "__repository__"
"""Dagster's name for the one repository of a module with a `Definitions` object."""


def show_runs_in_timeline(instance: dg.DagsterInstance) -> None:
    """Have the runs that this process makes in `instance` belong to the project's code location."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=LOCATION), LOCATION)
    repository = RemoteRepositoryOrigin(location, _REPOSITORY)
    create = instance.create_run_for_job

    def create_in_location(job_def: dg.JobDefinition, **named: Any) -> dg.DagsterRun:
        named.setdefault("remote_job_origin", repository.get_job_origin(job_def.name))
        return create(job_def=job_def, **named)

    instance.create_run_for_job = create_in_location  # type: ignore[method-assign, assignment]
