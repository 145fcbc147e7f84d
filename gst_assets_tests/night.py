"""A night in a real Dagster instance: `dagster dev` (daemon, web server) on the project's definitions, the schedule
due, the real engine. Not a test module.

The machine was off when the schedule was due, an hour ago, and the daemon makes up for it as it starts: nobody waits
for a minute to pass. Workloads are tiny, the profile and the earlier nights made up (`nightly_location`, `histories`);
all else is the project's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.scheduler.instigation import ScheduleInstigatorData

from gst_assets.engine.hardware import check_hardware
from gst_assets.environment import CRON_VARIABLE, ROOT_VARIABLE, WEBHOOK_VARIABLE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.testing.histories import noisy, write_nights
from gst_assets.testing.services import free_port
from gst_assets.testing.simulation_inputs import bundle, scenario
from gst_assets_tests.assets.recorded_nights import write_bundle
from gst_assets_tests.assets.webhook import receiving
from gst_assets_tests.nightly_location import PROFILES_VARIABLE

LOCATION = "gst_assets_tests.nightly_location"
SCENARIOS = ("published_qwen3_prompts", "smoke")
EARLIER_NIGHTS = 3
_LIMIT_S = 700


@dataclass(frozen=True)
class Night:
    """A night whose runs have ended; the web server at `url` and the daemon go on. `wait_for` fails where they died or
    time ran out."""

    home: Path
    root: Path
    url: str
    due: datetime
    received: list[tuple[str, dict[str, Any]]]
    wait_for: Callable[[Callable[[], bool], str], None]


@contextmanager
def a_night(area: Path) -> Iterator[Night]:
    """Run a night in the folder `area`."""
    home, root, profiles = area / "home", area / "artifacts", area / "profiles"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    # A profile of another device would be refused.
    write_bundle(profiles, scenario(), bundle(scenario()), check_hardware(scenario().hardware))
    for name in SCENARIOS:
        write_nights(root, noisy(EARLIER_NIGHTS, seed=1), name)
    due = datetime.now(timezone.utc).replace(second=0, microsecond=0) - timedelta(hours=1)
    with receiving() as receiver:
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            ROOT_VARIABLE: str(root),
            PROFILES_VARIABLE: str(profiles),
            CRON_VARIABLE: f"{due.minute} {due.hour} * * *",
            WEBHOOK_VARIABLE: receiver.url,
            "PYTHONPATH": str(PROJECT_ROOT),
        }
        _switch_on(environment)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            _as_if_switched_on(instance, due - timedelta(minutes=1))
            with _dagster_dev(environment, area / "dagster.log") as (url, wait_for):
                wait_for(lambda: _all_finished(instance, len(SCENARIOS)), "the night's runs to end")
                yield Night(home, root, url, due, receiver.received, wait_for)


def _switch_on(environment: dict[str, str]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "schedule", "start", "nightly", "-m", LOCATION]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True, capture_output=True, text=True, timeout=600)


def _as_if_switched_on(instance: dg.DagsterInstance, at: datetime) -> None:
    (state,) = [state for state in instance.all_instigator_state() if state.name == "nightly"]
    assert isinstance(state.instigator_data, ScheduleInstigatorData)
    instance.update_instigator_state(state.with_data(state.instigator_data._replace(start_timestamp=at.timestamp())))


@contextmanager
def _dagster_dev(
    environment: dict[str, str], log: Path
) -> Iterator[tuple[str, Callable[[Callable[[], bool], str], None]]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-m", LOCATION, "-h", "127.0.0.1", "-p", str(port)],
            cwd=PROJECT_ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait_for(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            assert running.poll() is None, f"dagster dev ended\n{log.read_text()[-6000:]}"
            assert time.monotonic() < deadline, f"{_LIMIT_S} s were not enough for {what}\n{log.read_text()[-6000:]}"
            time.sleep(0.5)

    try:
        wait_for(lambda: _answers(url), "the web server")
        yield url, wait_for
    finally:
        # Interrupted as from a terminal; where Dagster's own shutdown gets stuck, the night is over all the same.
        os.killpg(running.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _all_finished(instance: dg.DagsterInstance, count: int) -> bool:
    runs = instance.get_runs()
    assert not any(run.is_failure_or_canceled for run in runs), (
        f"a run of the night failed; see {instance.root_directory}/../dagster.log"
    )
    return len(runs) >= count and all(run.is_finished for run in runs)
