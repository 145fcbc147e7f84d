"""Two nights in a real Dagster instance with its daemon and the real engine: the schedule ticks, runs do not overlap on the engine, history grows.

The cron of this test's instance is every minute and its scenarios are small (`nightly_location`); all else is the project's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.provenance import PROJECT_ROOT

pytestmark = pytest.mark.engine

LOCATION = "gst_assets_tests.assets.nightly_location"
SCENARIOS = {"smoke", "published_qwen3_prompts"}
NIGHTS = 2
LIMIT_S = 800


def dagster(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "dagster", *arguments]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True, capture_output=True, text=True, timeout=400)


def test_nights_run_by_themselves(tmp_path: Path) -> None:
    home, root = tmp_path / "home", tmp_path / "artifacts"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    environment = {
        **os.environ, "DAGSTER_HOME": str(home), "GST_ARTIFACT_ROOT": str(root), "GST_NIGHTLY_CRON": "* * * * *",
        "PYTHONPATH": str(PROJECT_ROOT),
    }  # fmt: skip
    dagster(environment, "schedule", "start", "nightly", "-m", LOCATION)
    log = (tmp_path / "daemon.log").open("w")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "dagster._daemon", "run", "-m", LOCATION],
        cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            runs = _finished(instance, environment, tmp_path / "daemon.log")
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(timeout=60)
    ticks = sorted({run.tags["gst/nightly"] for run in runs})[:NIGHTS]
    nights = [run for run in runs if run.tags["gst/nightly"] in ticks]
    assert Counter(run.tags["gst/nightly"] for run in nights) == dict.fromkeys(ticks, len(SCENARIOS))
    assert {run.tags["dagster/partition"] for run in nights} == SCENARIOS
    assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in runs), [run.status for run in runs]
    _engine_runs_do_not_overlap(root)
    _history_grew(root, len(runs) // len(SCENARIOS))


def _finished(instance: dg.DagsterInstance, environment: dict[str, str], log: Path) -> list[dg.DagsterRun]:
    """Wait until enough nights were requested, stop the schedule, and wait for every run to end."""
    deadline, stopped = time.monotonic() + LIMIT_S, False
    while True:
        runs = instance.get_runs()
        if len(runs) >= NIGHTS * len(SCENARIOS) and not stopped:
            dagster(environment, "schedule", "stop", "nightly", "-m", LOCATION)
            stopped = True
        elif stopped and all(run.is_finished for run in runs):
            return list(runs)
        assert time.monotonic() < deadline, f"{[(run.status, run.tags) for run in runs]}\n{log.read_text()[-4000:]}"
        time.sleep(1)


def _engine_runs_do_not_overlap(root: Path) -> None:
    store = ArtifactStore(root)
    spans = []
    for kind in (Kind.REAL_RUN, Kind.PROFILE):
        for name in store.list(kind):
            meta = json.loads((store.path(kind, name) / "run_meta.json").read_text())
            spans.append((datetime.fromisoformat(meta["started_at"]), datetime.fromisoformat(meta["ended_at"]), name))
    assert len(spans) >= NIGHTS * len(SCENARIOS) + 1
    for (_, ended, one), (started, _, other) in pairwise(sorted(spans)):
        assert ended <= started, f"{one} and {other} were on the engine together"


def _history_grew(root: Path, nights: int) -> None:
    for scenario in SCENARIOS:
        rows = pd.read_csv(root / "history" / scenario / "comparison_history.csv")
        assert len(rows) == nights and rows["night"].tolist() == list(range(nights))
        assert "INSUFFICIENT DATA" in (root / "regressions" / scenario / "summary.md").read_text()
        assert list((root / "regressions" / scenario / "figs").glob("*.png"))
