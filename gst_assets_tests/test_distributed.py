"""Growing out of one machine, with real parts on loopback: PostgreSQL keeps Dagster's storage, Ceph the artifacts,
Redis the queues.

Workers and the process that runs the job share no folder: each has an artifact cache of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy

from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.object_store import ObjectStore
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.environment import CACHE_VARIABLE, EXECUTOR_CONFIG_VARIABLE, EXECUTOR_VARIABLE, ROOT_VARIABLE
from gst_assets.errors import EnvironmentVariableError
from gst_assets.executors import chosen_executor
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.testing.services import S3

DEPLOY = PROJECT_ROOT / "deploy"
WORKLOAD = "prompts,trace_lengths,trace_intervals,workload_spec"
TINY = [
    "workload.num_requests=4",
    "workload.num_decode_tokens=4",
    "engine.max_num_seqs=4",
    "replay.repeats=1",
    "profile.num_tokens=[1,512]",
    "profile.prefill_chunk_sizes=[1,512]",
    "profile.prefill_context_sizes=[0,1536]",
    "profile.decode_batch_sizes=[1,4]",
    "profile.decode_context_sizes=[1,2048]",
    "profile.operator_repeats=3",
    "profile.calibration_prefill_sizes=[8,64]",
    "profile.traffic_segment_s=1",
]


@pytest.fixture
def home(tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME whose storage is a database of its own on the PostgreSQL server."""
    name = f"dagster_{time.monotonic_ns()}"
    engine = sqlalchemy.create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    monkeypatch.setenv("GST_POSTGRES_URL", f"{postgresql_url.rpartition('/')[0]}/{name}")
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder


def materialize(
    select: str,
    environment: dict[str, str],
    log: Path,
    scenario: str = "smoke",
    overrides: Sequence[str] = TINY,
    ops: dict[str, Any] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    config = json.dumps({"resources": {"scenario": {"config": {"overrides": overrides}}}, "ops": ops or {}})
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "gst_assets.definitions"]
    with log.open("wb") as out:
        return subprocess.run(
            [*command, "--select", select, "--partition", scenario, "--config-json", config],
            cwd=PROJECT_ROOT, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT, timeout=840,
        )  # fmt: skip


@pytest.mark.services
def test_dagster_keeps_runs_and_events_in_postgresql(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    done = materialize(WORKLOAD, {ROOT_VARIABLE: str(root)}, tmp_path / "log.txt")
    assert done.returncode == 0, (tmp_path / "log.txt").read_text()[-4000:]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.SUCCESS
        event = instance.get_latest_materialization_event(dg.AssetKey("workload_spec"))
        assert event is not None and event.asset_materialization is not None
        recorded = event.asset_materialization.metadata["workload_id"].value
    assert [recorded] == ArtifactStore(root).list(Kind.WORKLOAD)
    engine = sqlalchemy.create_engine(os.environ["GST_POSTGRES_URL"])
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("SELECT run_id FROM event_logs WHERE asset_key IS NOT NULL")).all()
    engine.dispose()
    assert {row.run_id for row in rows} == {run.run_id}
    assert not list(home.rglob("*.db")), "SQLite was used as well"


@contextmanager
def worker(queue: str, environment: dict[str, str], area: Path, name: str = "") -> Iterator[None]:
    """A `dagster-celery` worker of one process on one queue, with an artifact cache of its own; `name`: else that of
    the queue."""
    name = name or queue
    programs = str(Path(sys.executable).parent)
    settings = environment | {
        CACHE_VARIABLE: str(area / f"cache_{name}"),
        "PYTHONPATH": str(PROJECT_ROOT),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    log = area / f"{name}.log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            [
                f"{programs}/dagster-celery",
                "worker",
                "start",
                "-A",
                "dagster_celery.app",
                "-y",
                str(DEPLOY / "celery.yaml"),
                "-q",
                queue,
                "-n",
                name,
                "--",
                "--concurrency",
                "1",
            ],
            cwd=PROJECT_ROOT,
            env=os.environ | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        while " ready." not in log.read_text():
            assert running.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def workers_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """The name of the worker that ran each step, by the step's key."""
    return {
        event.step_key: event.engine_event_data.metadata["Celery worker"].value.partition("@")[0]
        for entry in instance.all_logs(run_id)
        if (event := entry.dagster_event)
        and event.is_engine_event
        and "Celery worker" in event.engine_event_data.metadata
    }


@pytest.mark.services
@pytest.mark.engine
def test_engine_steps_run_on_their_own_queue(
    home: Path, s3: S3, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole graph with the real engine: two workers, the job's process and the store's reader share only the
    services."""
    environment = s3.environment | {
        ROOT_VARIABLE: s3.new_root(),
        "GST_CELERY_BROKER": redis_url,
        "GST_CELERY_BACKEND": redis_url,
        EXECUTOR_VARIABLE: "celery",
        EXECUTOR_CONFIG_VARIABLE: str(DEPLOY / "celery.yaml"),
    }
    log = tmp_path / "log.txt"
    with worker("dagster", environment, tmp_path), worker("engine", environment, tmp_path):
        done = materialize("*", environment | {CACHE_VARIABLE: str(tmp_path / "cache_job")}, log)
    assert done.returncode == 0, log.read_text()[-6000:]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        ran_on = workers_of(instance, run.run_id)
    print(ran_on)
    engine_steps = {"measurements", "capacity"}
    assert {step for step, name in ran_on.items() if name == "engine"} == engine_steps
    assert {"workload", "vidur_metrics", "comparison_report"} <= {
        step for step, name in ran_on.items() if name == "dagster"
    }
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(environment[ROOT_VARIABLE], tmp_path / "cache_reader")
    for kind, count in (
        (Kind.WORKLOAD, 1),
        (Kind.REAL_RUN, 1),
        (Kind.VIDUR_RUN, 6),  # `kernels`, and `calibrated` under five seeds
        (Kind.PROFILE, 1),
        (Kind.COMPARISON, 1),
    ):
        names = store.list(kind)
        assert len(names) == count, (kind, names)
        for name in names:
            store.open(kind, name)
    (run_id,) = store.list(Kind.REAL_RUN)
    assert len(load_run(store.open(Kind.REAL_RUN, run_id), "real").tokens) == 16
    # The job's process opened no artifact, and Dagster itself stored nothing for a later step: all that it kept on disk
    # are logs.
    assert not (tmp_path / "cache_job").exists()
    kept = [path for path in (home / "storage").rglob("*") if path.is_file()]
    assert kept and all("compute_logs" in path.parts for path in kept), kept


@pytest.mark.services
def test_a_sweep_through_two_workers_is_that_of_one_process(
    home: Path, s3: S3, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight configurations, in one step of one process and in four steps on two workers, to the byte."""
    alone = s3.environment | {ROOT_VARIABLE: s3.new_root(), CACHE_VARIABLE: str(tmp_path / "cache_job")}
    spread = alone | {
        "GST_CELERY_BROKER": redis_url,
        "GST_CELERY_BACKEND": redis_url,
        EXECUTOR_VARIABLE: "celery",
        EXECUTOR_CONFIG_VARIABLE: str(DEPLOY / "celery.yaml"),
    }
    rates, requests = "sweep.rates_per_s=[8,16,24,48]", ["workload.num_requests=40", "workload.num_decode_tokens=6"]
    swept: dict[str, Any] = {
        "scenario": "h100_8b_sweep",
        "overrides": [rates, "sweep.max_num_seqs=[4,256]", *requests],
    }
    in_one, in_four = ({"sweep": {"config": {"workers": 1, "configurations_a_step": size}}} for size in (0, 2))
    log = tmp_path / "log.txt"
    done = materialize(f"{WORKLOAD},vidur_profile,sweep", alone, log, ops=in_one, **swept)
    assert done.returncode == 0, log.read_text()[-6000:]
    with worker("dagster", spread, tmp_path, "one"), worker("dagster", spread, tmp_path, "two"):
        done = materialize("sweep", spread, log, ops=in_four, **swept)
    assert done.returncode == 0, log.read_text()[-6000:]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run, before = instance.get_runs()
        ran_on, told = workers_of(instance, run.run_id), [one.user_message for one in instance.all_logs(run.run_id)]
        assert workers_of(instance, before.run_id) == {}
    print(ran_on)
    simulated = [name for step, name in sorted(ran_on.items()) if step.startswith("sweep.simulate[")]
    assert len(simulated) == 4 and set(simulated) == {"one", "two"} and len(ran_on) == 6
    assert any(line.startswith("the whole sweep: 4 of 4 parts, ") for line in told), told
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(alone[ROOT_VARIABLE], tmp_path / "cache_reader")
    directories = [store.open(Kind.SWEEP, run_id) for run_id in store.list(Kind.SWEEP)]
    assert len(directories) == 2 and store.list(Kind.SWEEP_PART) == []
    for name in ("sweep.csv", "pareto.png", "report.html", "summary.md"):
        assert len({(directory / name).read_bytes() for directory in directories}) == 1, name


def test_an_unusable_executor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "threads")
    with pytest.raises(EnvironmentVariableError, match="GST_EXECUTOR=threads: expected one of in_process"):
        chosen_executor()
    monkeypatch.setenv(EXECUTOR_VARIABLE, "k8s")
    monkeypatch.setitem(sys.modules, "dagster_k8s", None)
    with pytest.raises(
        dg.DagsterInvalidDefinitionError, match=r"GST_EXECUTOR=k8s.*pip install 'gst-assets\[distributed\]'"
    ):
        chosen_executor()
    monkeypatch.setenv(EXECUTOR_VARIABLE, "in_process")
    for text in ("", "execution: [1]", "execution: {config: 3}", "a: :"):
        file = tmp_path / "executor.yaml"
        file.write_text(text)
        monkeypatch.setenv(EXECUTOR_CONFIG_VARIABLE, str(file))
        with pytest.raises(dg.DagsterInvalidDefinitionError, match=f"GST_EXECUTOR_CONFIG={file}: e"):
            chosen_executor()


def test_the_default_executor_is_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXECUTOR_VARIABLE, raising=False)
    monkeypatch.delenv(EXECUTOR_CONFIG_VARIABLE, raising=False)
    assert chosen_executor() is dg.in_process_executor
