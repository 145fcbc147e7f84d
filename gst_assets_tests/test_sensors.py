"""Telling people, against a real HTTP server: failed runs, failing checks, failed ticks, scenario files that a night
left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo

from gst_assets import notifications
from gst_assets.definitions import defs
from gst_assets.environment import SCENARIOS_VARIABLE, SLACK_VARIABLE, WEBHOOK_VARIABLE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.sensors import TOLD_TAG, tell_of_failed_runs, tell_people
from gst_assets.testing.histories import noisy, write_nights
from gst_assets_tests.assets.recorded_nights import SCENARIO, materialize
from gst_assets_tests.assets.webhook import Receiver, receiving

LINE = "key:comparison_history or key:regression_report"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as running:
        monkeypatch.setenv(WEBHOOK_VARIABLE, f"{running.url}/hook")
        monkeypatch.delenv(SLACK_VARIABLE, raising=False)
        # A busy machine may take seconds to start the process that posts.
        monkeypatch.setattr(notifications, "_TIMEOUT_S", 300.0)
        yield running


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:  # on disk: an ephemeral one keeps no ticks
        yield made


def tick(instance: dg.DagsterInstance, cursor: str | None) -> str:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=defs.get_repository_def())
    result = tell_people(context)
    assert isinstance(result, dg.SensorResult) and result.cursor is not None
    return result.cursor


def tick_of_failed_runs(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, list[str]]:
    """As the daemon evaluates it; gives the cursor and the errors."""
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, repository_def=defs.get_repository_def(), sensor_name="tell_of_failed_runs"
    )
    done = tell_of_failed_runs.evaluate_tick(context)
    assert done.cursor is not None
    return done.cursor, [one.error.message for one in done.dagster_run_reactions or () if one.error]


def schedule_state(instance: dg.DagsterInstance, name: str) -> InstigatorState:
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="gst_assets.definitions"))
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    data = ScheduleInstigatorData("0 2 * * *", start_timestamp=0.0)
    state = InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, data)
    return instance.add_instigator_state(state)


def add_tick(instance: dg.DagsterInstance, state: InstigatorState, status: TickStatus, error: str = "") -> None:
    info = SerializableErrorInfo(error, [], "RuntimeError") if error else None
    instance.create_tick(
        TickData(
            state.instigator_origin_id, state.name, InstigatorType.SCHEDULE, status, time.time(),
            run_ids=[], error=info, selector_id=state.selector_id,
        )
    )  # fmt: skip


# --- checks -----------------------------------------------------------------------------------------------------------


def test_a_failing_check_is_told_once_with_the_report(
    tmp_path: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = tick(instance, None)
    write_nights(tmp_path, noisy(24, seed=1, step_at=18, step=0.2), SCENARIO)
    assert materialize(tmp_path, tmp_path, LINE, instance).success
    receiver.broken = True
    with pytest.raises(Exception, match=f"{WEBHOOK_VARIABLE}: 127.0.0.1 answered 500"):
        tick(instance, cursor)
    receiver.broken = False
    monkeypatch.setenv(SLACK_VARIABLE, f"{receiver.url}/slack")
    cursor = tick(instance, cursor)
    assert [path for path, _ in receiver.received] == ["/hook", "/slack"]
    told = receiver.received[0][1]
    assert told["kind"] == "regression" and told["scenario"] == SCENARIO
    assert told["report"].endswith(f"regressions/{SCENARIO}/summary.md")
    assert told["link"].endswith(f"/assets/regression_report?view=partitions&partition={SCENARIO}")
    assert told["report"] in receiver.received[1][1]["text"]
    # The next night finds the same regression, and the sensor sees the old evaluation again.
    assert materialize(tmp_path, tmp_path, LINE, instance).success
    tick(instance, cursor)
    assert len(receiver.received) == 2


def test_a_check_of_a_run_over_many_is_told_with_its_own_scenario(
    tmp_path: Path, receiver: Receiver, instance: dg.DagsterInstance
) -> None:
    cursor = tick(instance, None)
    write_nights(tmp_path, noisy(24, seed=1, step_at=18, step=0.2), SCENARIO)
    ends = {f"dagster/asset_partition_range_{end}": SCENARIO for end in ("start", "end")}
    defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey("comparison_history"), dg.AssetKey("regression_report")],
        instance=instance,
        tags=ends,
        run_config={"resources": {"artifacts": {"config": {"root": str(tmp_path)}}}},
    )
    tick(instance, cursor)
    assert [(told["kind"], told["scenario"]) for _, told in receiver.received] == [("regression", SCENARIO)]


# --- failed runs ------------------------------------------------------------------------------------------------------


def test_a_failed_run_is_told_once_with_its_cause(
    tmp_path: Path, receiver: Receiver, instance: dg.DagsterInstance
) -> None:
    cursor, _ = tick_of_failed_runs(instance, None)
    assert not materialize(tmp_path, tmp_path, "regression_report", instance).success
    cursor, errors = tick_of_failed_runs(instance, cursor)
    assert len(receiver.received) == 1 and errors == []
    told = receiver.received[0][1]
    assert told["kind"] == "run_failed" and told["scenario"] == SCENARIO
    assert "no history of scenario h100_8b_quarter. Materialize comparison_history" in told["text"]
    tick_of_failed_runs(instance, cursor)
    tick(instance, tick(instance, None))
    assert len(receiver.received) == 1


def test_a_failed_run_whose_message_was_refused_is_told_later(
    tmp_path: Path, receiver: Receiver, instance: dg.DagsterInstance
) -> None:
    """Dagster's own sensor goes on to the next run whatever happens to a message."""
    cursor, _ = tick_of_failed_runs(instance, None)
    checks = tick(instance, None)
    failed = materialize(tmp_path, tmp_path, "regression_report", instance).run_id
    receiver.broken = True
    cursor, errors = tick_of_failed_runs(instance, cursor)
    assert len(errors) == 1 and f"{WEBHOOK_VARIABLE}: 127.0.0.1 answered 500" in errors[0]
    with pytest.raises(Exception, match="answered 500"):
        tick(instance, checks)
    receiver.broken = False
    tick_of_failed_runs(instance, cursor)
    assert receiver.received == []
    checks = tick(instance, checks)
    assert [told["kind"] for _, told in receiver.received] == ["run_failed"]
    run = instance.get_run_by_id(failed)
    assert run is not None and run.tags[TOLD_TAG] > "2026"
    tick(instance, checks)
    assert len(receiver.received) == 1


def test_nothing_is_sent_unless_configured(
    tmp_path: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEBHOOK_VARIABLE)
    (runs, _), checks = tick_of_failed_runs(instance, None), tick(instance, None)
    state = schedule_state(instance, "nightly")
    add_tick(instance, state, TickStatus.FAILURE, "no more disk")
    assert not materialize(tmp_path, tmp_path, "regression_report", instance).success
    (runs, _), checks = tick_of_failed_runs(instance, runs), tick(instance, checks)
    monkeypatch.setenv(WEBHOOK_VARIABLE, f"{receiver.url}/hook")
    tick_of_failed_runs(instance, runs)
    tick(instance, checks)
    assert receiver.received == []


# --- schedules --------------------------------------------------------------------------------------------------------


def test_a_failed_tick_of_a_schedule_is_told_once(receiver: Receiver, instance: dg.DagsterInstance) -> None:
    states = [schedule_state(instance, name) for name in ("nightly", "nightly_simulation_check", "of_somebody_else")]
    add_tick(instance, states[0], TickStatus.FAILURE, "before anybody asked")
    cursor = tick(instance, None)
    for state in states:
        add_tick(instance, state, TickStatus.FAILURE, f"no more disk for {state.name}")
    add_tick(instance, states[0], TickStatus.STARTED)
    cursor = tick(instance, cursor)
    assert [(told["kind"], told["text"]) for _, told in receiver.received] == [
        ("tick_failed", "no more disk for nightly"),
        ("tick_failed", "no more disk for nightly_simulation_check"),
    ]
    assert receiver.received[0][1]["title"].startswith("schedule nightly failed at 20")
    tick(instance, cursor)
    assert len(receiver.received) == 2


_NIGHT = """
import json
from datetime import datetime
import dagster as dg
from dagster._core.scheduler.instigation import TickStatus
from gst_assets.automation import nightly
from gst_assets.sensors import tell_people
from gst_assets.definitions import defs
from gst_assets.scenario import SCENARIO_DIR
from gst_assets_tests.test_sensors import add_tick, schedule_state

# After the definitions were loaded.
(SCENARIO_DIR / "late.yaml").write_text("extends: smoke\\ndescription: a new one\\nnightly: true\\n")
(SCENARIO_DIR / "cpu_high.yaml").unlink()
with dg.instance_for_test() as instance:
    def tick(cursor):
        context = dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=defs.get_repository_def())
        return tell_people(context).cursor
    state = schedule_state(instance, "nightly")
    cursor = tick(None)
    context = dg.build_schedule_context(
        instance=instance, repository_def=defs.get_repository_def(), scheduled_execution_time=datetime(2026, 11, 26, 2)
    )
    requests = nightly.evaluate_tick(context).run_requests
    add_tick(instance, state, TickStatus.SUCCESS)
    tick(tick(cursor))
print(json.dumps([[one.partition_key, one.tags] for one in requests]))
"""


def test_a_scenario_that_cannot_be_used_stops_only_itself_and_is_told(tmp_path: Path, receiver: Receiver) -> None:
    """In a copy of the package: a half-finished experiment that is not nightly, a copy of a nightly scenario, one that
    came too late. In a folder of their own: a nightly scenario, and an unfinished one."""
    copy, own = tmp_path / "copy", tmp_path / "own"
    for package in ("gst_assets", "gst_assets_tests"):
        shutil.copytree(PROJECT_ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT_ROOT / "data" / "models", copy / "data" / "models")
    scenarios = copy / "gst_assets" / "scenarios"
    (scenarios / "unfinished.yaml").write_text(
        "extends: smoke\ndescription: half done\nnightly: false\nworkload:\n  num_request: 5\n"
    )
    (scenarios / "no_yaml.yaml").write_text("extends: [smoke\n")
    (scenarios / "of_smoke.yaml").write_text("extends: smoke\ndescription: a copy\n")
    own.mkdir()
    (own / "mine.yaml").write_text("extends: smoke\ndescription: my own\nnightly: true\n")
    (own / "draft.yaml").write_text("extends: smoke\ndescription: half done\nno_such_key: 1\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _NIGHT],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), SCENARIOS_VARIABLE: str(own)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    requests = dict(json.loads(done.stdout.splitlines()[-1]))
    assert set(requests) == {"mine", "published_qwen3_prompts", "smoke"}
    assert requests["smoke"]["gst/model"] == "qwen3-tiny" and requests["smoke"]["gst/engine"] == "vllm"
    told = {one["scenario"]: one for _, one in receiver.received}
    assert set(told) == {"unfinished", "no_yaml", "late", "draft"}
    assert len(receiver.received) == 4, "once, not at every tick"
    assert {one["kind"] for one in told.values()} == {"scenario_invalid"}
    assert f"{scenarios / 'unfinished.yaml'}: line 5: workload.num_request: unknown key" in told["unfinished"]["text"]
    assert str(scenarios / "no_yaml.yaml") in told["no_yaml"]["text"]
    assert "Reload them" in told["late"]["text"]
    assert f"{own / 'draft.yaml'}: line 3: no_such_key: unknown key" in told["draft"]["text"]
