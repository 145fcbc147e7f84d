"""A run whose process was killed does not run for ever in Dagster's records."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.killed_runs import PROCESS_TAG, end_killed_runs, process_tags
from gst_assets.provenance import PROJECT_ROOT

_MAKE = """
import time
import dagster as dg
from gst_assets.killed_runs import process_tags

@dg.asset
def endless():
    time.sleep(600)

with dg.DagsterInstance.get() as instance:
    job = dg.Definitions([endless]).resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, tags=process_tags())
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def running(instance: dg.DagsterInstance) -> subprocess.Popen[bytes]:
    """A process in the middle of a run of its own."""
    known = {run.run_id for run in instance.get_runs()}
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _MAKE], cwd=PROJECT_ROOT)
    while not any(run.run_id not in known and run.status is dg.DagsterRunStatus.STARTED for run in instance.get_runs()):
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.usefixtures("home")
def test_the_run_of_a_killed_process_is_ended_and_that_of_a_living_one_is_not() -> None:
    with dg.DagsterInstance.get() as instance:
        dead = running(instance)
        dead.kill()
        dead.wait()
        living = running(instance)
        try:
            (ended,) = end_killed_runs(instance)
            statuses = {run.run_id: run.status for run in instance.get_runs()}
            assert statuses.pop(ended) is dg.DagsterRunStatus.FAILURE
            assert list(statuses.values()) == [dg.DagsterRunStatus.STARTED]
            (record,) = instance.get_records_for_run(ended, of_type=dg.DagsterEventType.RUN_FAILURE).records
            event = record.event_log_entry.dagster_event
            assert event is not None and f"process of this run, {dead.pid}, was killed" in (event.message or "")
            assert end_killed_runs(instance) == []
        finally:
            living.kill()
            living.wait()


def test_of_other_machines_and_later_processes_of_the_number() -> None:
    @dg.job
    def some() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:

        def is_ended(process: str | None) -> bool:
            run = instance.create_run_for_job(some, tags=None if process is None else {PROCESS_TAG: process})
            return end_killed_runs(instance) == [run.run_id]

        mine = process_tags()[PROCESS_TAG]
        machine, boot, container, number, started = mine.split("/")
        assert int(number) == os.getpid()
        assert not is_ended(mine) and not is_ended(None) and not is_ended("what another program wrote")
        assert is_ended("/".join([machine, boot, container, number, str(int(started) - 1)]))
        assert is_ended("/".join([machine, "an earlier boot", container, number, started]))
        assert not is_ended("/".join([machine, boot, "another container", "1", started]))
        assert not is_ended("/".join(["another machine", "its boot", container, number, started]))
