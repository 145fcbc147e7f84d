"""Dagster's pool `engine` on a real instance: who uses an engine waits for it, and nobody else does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.environment import EXECUTOR_VARIABLE, LOCK_VARIABLE, ROOT_VARIABLE
from gst_assets.pool_slots import POOL, free_dead_slots
from gst_assets.provenance import PROJECT_ROOT

# Runs a job in this process; its first argument is the job, the second the scenario, the rest overrides.
RUN = """
import os, sys
import dagster as dg
from gst_assets.definitions import defs
job, scenario, selection, *overrides = sys.argv[1:]
with dg.DagsterInstance.get() as instance:
    done = defs.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=scenario, raise_on_error=False,
        asset_selection=[dg.AssetKey(name) for name in selection.split(",")] if selection else None,
        run_config={"resources": {"scenario": {"config": {"overrides": overrides}}}},
    )
sys.exit(0 if done.success else 1)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME whose pools have one slot each, as deploy/dagster.yaml says."""
    folder = tmp_path / "home"
    folder.mkdir()
    settings = "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    (folder / "dagster.yaml").write_text(settings)
    return folder


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def begin(home: Path, *arguments: str, executor: str = "celery") -> subprocess.Popen[bytes]:
    """The job in a process whose definitions were loaded for that executor; what it says goes to `log.txt` beside the
    home."""
    environment = os.environ | {
        "DAGSTER_HOME": str(home), EXECUTOR_VARIABLE: executor, ROOT_VARIABLE: str(home.parent / "artifacts"),
        LOCK_VARIABLE: str(home.parent / "engine.lock"),
    }  # fmt: skip
    with (home.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUN, *arguments],
            cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def ended(run: subprocess.Popen[bytes], home: Path, seconds: float = 600) -> tuple[int, str]:
    """Exit status and log; ends the process where it does not end by itself."""
    try:
        return run.wait(timeout=seconds), (home.parent / "log.txt").read_text()
    finally:
        run.kill()
        run.wait()


def take(instance: dg.DagsterInstance) -> str:
    """Another run takes the only slot; returns its id."""
    other = str(uuid.uuid4())
    instance.event_log_storage.set_concurrency_slots(POOL, 1)
    assert instance.event_log_storage.claim_concurrency_slot(POOL, other, "measurements").is_claimed
    return other


def holders(instance: dg.DagsterInstance) -> list[str]:
    """Runs that hold a slot or stand in line for one."""
    pool = instance.event_log_storage.get_concurrency_info(POOL)
    return sorted({one.run_id for one in pool.claimed_slots} | {one.run_id for one in pool.pending_steps})


def test_a_search_on_the_simulator_alone_does_not_wait_for_the_pool(home: Path, instance: dg.DagsterInstance) -> None:
    """With the profile that ships, workload and all: what a Celery or Kubernetes step of it would do."""
    other = take(instance)
    small = ["capacity.num_requests=40", "capacity.relative_tolerance=0.9", "simulation.variants=[kernels]"]
    status, log = ended(begin(home, "capacity_search", "h100_8b_capacity", "", *small), home)
    assert status == 0, log[-4000:]
    assert list((home.parent / "artifacts" / "capacity").iterdir()), log[-4000:]
    assert holders(instance) == [other]


def test_recorded_runs_are_played_back_without_the_pool(home: Path, instance: dg.DagsterInstance) -> None:
    take(instance)
    wanted = "prompts,trace_lengths,trace_intervals,workload_spec,real_request_metrics,real_token_metrics,vidur_profile"
    status, log = ended(begin(home, "comparison", "h100_8b_single", wanted), home)
    assert status == 0, log[-4000:]


@pytest.mark.parametrize("executor", ["celery", "in_process"])
def test_who_uses_an_engine_holds_a_slot_where_steps_are_spread(
    home: Path, instance: dg.DagsterInstance, executor: str
) -> None:
    """The engine's child ends at once, as this machine is no A100: it must begin after the other run only, and its slot
    must be free afterwards."""
    other = take(instance)
    wanted = "prompts,trace_lengths,trace_intervals,workload_spec,real_request_metrics"
    run = begin(home, "comparison", "a100_light", wanted, executor=executor)
    if executor == "celery":
        deadline = time.monotonic() + 600
        while "waiting for a slot of Dagster's pool engine" not in (log := (home.parent / "log.txt").read_text()):
            assert run.poll() is None and time.monotonic() < deadline, log[-4000:]
            time.sleep(0.2)
        assert "EngineError" not in log and len(holders(instance)) == 2
        instance.event_log_storage.free_concurrency_slot_for_step(other, "measurements")
    status, log = ended(run, home)
    assert status == 1 and "EngineError" in log, log[-4000:]
    assert ("waiting for a slot" in log) == (executor == "celery")
    assert holders(instance) == ([] if executor == "celery" else [other])


def test_a_step_that_was_killed_while_it_waited_is_freed_too(instance: dg.DagsterInstance) -> None:
    """It would be given the next free slot, and nobody would take it."""
    other, waiting = take(instance), str(uuid.uuid4())
    assert not instance.event_log_storage.claim_concurrency_slot(POOL, waiting, "measurements").is_claimed
    assert holders(instance) == sorted([other, waiting])
    assert sorted(free_dead_slots(instance).freed) == sorted([(POOL, other), (POOL, waiting)])
    assert holders(instance) == []
