"""The machine's engine lock: one for all users, freed by the kernel, waited for asleep, and never waited for without a
name."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gst_assets.engine import machine_lock as module
from gst_assets.engine.machine_lock import holder, machine_lock
from gst_assets.environment import LOCK_VARIABLE, ROOT_VARIABLE
from gst_assets.errors import EngineError
from gst_assets.provenance import PROJECT_ROOT

_HOLD = """
import sys, time
from gst_assets.engine.machine_lock import machine_lock
with machine_lock(3600, lambda line: print(line, flush=True), sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of this test's own: the machine's may be held by a real engine."""
    path = tmp_path / "engine.lock"
    monkeypatch.setenv(LOCK_VARIABLE, str(path))
    return path


@pytest.fixture(autouse=True)
def hang_ups_end_children() -> Iterator[None]:
    """Also where the tests run under nohup, whose children would ignore them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that takes the lock for a scenario and keeps it; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(scenario: str, **settings: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-u", "-c", _HOLD, scenario],
                cwd=PROJECT_ROOT,
                env=os.environ | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., "subprocess.Popen[str]"]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_the_lock_goes_with_its_holder_however_that_ends(start: Start, number: signal.Signals) -> None:
    holder = start("smoke")
    assert _line(holder) == "held"
    holder.send_signal(number)
    holder.wait(timeout=120)
    with machine_lock(10, pytest.fail, "cpu_high"):  # which fails if it has to wait
        pass


def test_a_waiting_process_says_who_holds_the_lock_and_since_when(start: Start) -> None:
    holder = start("smoke")
    assert _line(holder) == "held"
    waiting = start("cpu_high")
    assert re.fullmatch(
        rf"waiting for this machine's engine: process {holder.pid} of user \w+ \(scenario smoke\) has held it since"
        r" 20\d\d-\S+\+00:00 \(lock \S+\)",
        _line(waiting),
    )
    holder.kill()
    assert _line(waiting) == "held"
    third = start("third")
    assert f"process {waiting.pid} of user" in _line(third)


def test_a_waiting_process_says_it_again_and_ever_more_rarely(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only its own sleeps move."""
    assert _line(start("smoke")) == "held"
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(module, "time", clock)
    said: list[str] = []
    with pytest.raises(EngineError), machine_lock(100, said.append, "cpu_high"):
        pytest.fail("two held the lock")
    assert re.match(r"waiting for this machine's engine: process", said[0])
    waits = [re.match(r"waiting for this machine's engine for (\d+) s: process", line) for line in said[1:]]
    assert [wait and int(wait[1]) for wait in waits] == [10, 20, 40, 80]  # each time that the wait has doubled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_waiting_process_can_be_interrupted(start: Start, number: signal.Signals) -> None:
    assert _line(start("smoke")) == "held"
    waiting = start("cpu_high")
    assert "waiting" in _line(waiting)
    waiting.send_signal(number)
    assert waiting.wait(timeout=120) != 0


def test_waiting_takes_no_processor_time(start: Start) -> None:
    assert _line(start("smoke")) == "held"
    before = resource.getrusage(resource.RUSAGE_THREAD)  # other threads belong to other tests
    with (
        pytest.raises(EngineError, match=r"\(scenario smoke\) has held it since .* for longer than 2 s\. Wait for it"),
        machine_lock(2, lambda _: None, "cpu_high"),
    ):
        pytest.fail("two held the lock")
    after = resource.getrusage(resource.RUSAGE_THREAD)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_the_lock_is_the_machines_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCK_VARIABLE)
    script = "from gst_assets.engine import machine_lock; print(machine_lock._FILE)"
    for settings in ({"TMPDIR": tempfile.mkdtemp()}, {"HOME": "/", "USER": "other"}, {}):
        shown = subprocess.run(
            [sys.executable, "-c", script], cwd=PROJECT_ROOT, env=os.environ | settings, capture_output=True, text=True
        )
        assert shown.stdout == "/tmp/gst_engine.lock\n", shown.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_meets_the_same_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where this user's umask hides what it writes, and in a sticky folder, as /tmp is."""
    shared = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    shared.chmod(0o1777)
    monkeypatch.setenv(LOCK_VARIABLE, str(shared / "engine.lock"))
    nobody = 65534
    ready, told = os.pipe()
    mask = os.umask(0o077)
    try:
        with machine_lock(5, pytest.fail, "smoke"):
            other = os.fork()
            if other == 0:
                os.setuid(nobody)
                lines: list[str] = []
                try:
                    with machine_lock(0.1, lines.append, "cpu_high"):
                        os.write(told, b"two held the lock")
                except EngineError as error:
                    os.write(told, str(error).encode())
                os._exit(0)
            os.waitpid(other, 0)
            assert b"of user root (scenario smoke) has held it since" in os.read(ready, 4096)
    finally:
        os.umask(mask)
        for handle in (ready, told):
            os.close(handle)
        (shared / "engine.lock").unlink()
        shared.rmdir()


def test_a_lock_file_that_was_removed_is_not_a_second_lock(lock_file: Path, start: Start) -> None:
    """A cleaner of /tmp removed it while one waited: the one that gets the old file takes the new one."""
    first = start("smoke")
    assert _line(first) == "held"
    waiting = start("cpu_high")
    assert "waiting" in _line(waiting)
    lock_file.unlink()
    newer = start("newer")
    assert _line(newer) == "held"
    first.kill()
    assert f"process {newer.pid} of user" in _line(waiting)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_lock_file_is_refused(lock_file: Path, kind: str) -> None:
    if kind == "link":
        (lock_file.parent / "target").touch()
        lock_file.symlink_to(lock_file.parent / "target")
    elif kind == "pipe":
        os.mkfifo(lock_file)
    else:
        lock_file.mkdir()
    with (
        pytest.raises(EngineError, match=r"cannot be used as this machine's engine lock \(.*remove what is there"),
        machine_lock(1, pytest.fail, "smoke"),
    ):
        pytest.fail("held")


def test_what_strangers_write_into_the_file_is_not_believed(lock_file: Path, start: Start) -> None:
    holder = start("smoke")
    assert _line(holder) == "held"
    hostile = {"pid": "\x1b[2J", "user": "u" * 500, "scenario": "a\nb", "since": 1}
    for text, shown in (
        (json.dumps(hostile), "process ?[2J of user u"),
        ("[", "another process"),
        ("7", "another process"),
    ):
        lock_file.write_text(text)
        lines: list[str] = []
        with pytest.raises(EngineError), machine_lock(0.1, lines.append, "cpu_high"):
            pytest.fail("two held the lock")
        assert shown in lines[0] and lines[0].isprintable() and len(lines[0]) < 600


@pytest.mark.engine
def test_a_killed_run_leaves_nothing_that_the_next_one_waits_for(lock_file: Path, tmp_path: Path) -> None:
    """Real Dagster processes: one is killed in its engine step, the next takes the lock; a third waits for it asleep
    and ends when it is told to."""
    home = tmp_path / "home"
    home.mkdir()
    # As an instance made before the lock replaced the pool may still say.
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    settings = {"DAGSTER_HOME": str(home), ROOT_VARIABLE: str(tmp_path / "artifacts")}
    workload, engine_step = "prompts,trace_lengths,trace_intervals,workload_spec", "real_request_metrics"
    runs: list[subprocess.Popen[bytes]] = []

    def run(chosen: str = engine_step) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "dagster",
            "asset",
            "materialize",
            "-m",
            "gst_assets.definitions",
        ]
        with (tmp_path / f"log_{len(runs)}").open("wb") as log:
            runs.append(
                subprocess.Popen(
                    [*command, "--select", chosen, "--partition", "smoke"],
                    cwd=PROJECT_ROOT,
                    env=os.environ | settings,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return runs[-1]

    def wait(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            log = (tmp_path / f"log_{runs.index(process)}").read_text(errors="replace")
            assert process.poll() is None and time.monotonic() < deadline, log[-4000:]
            time.sleep(0.1)

    def holds(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
        return lambda: lock_file.exists() and f'"pid": {process.pid},' in lock_file.read_text()

    try:
        assert run(workload).wait(timeout=600) == 0
        for number in (signal.SIGKILL, signal.SIGHUP):
            killed = run()
            wait(killed, holds(killed))
            killed.send_signal(number)
            killed.wait(timeout=120)
        holder = run()
        wait(holder, holds(holder))
        waiting = run()
        log = tmp_path / f"log_{len(runs) - 1}"
        wait(waiting, lambda: f"process {holder.pid} of user" in log.read_text(errors="replace"))
        used = _step_s(waiting.pid)
        time.sleep(3)
        assert _step_s(waiting.pid) - used < 0.9
        waiting.terminate()
        waiting.wait(timeout=120)
        assert holder.poll() is None
    finally:
        for process in runs:
            process.kill()
            process.wait()


def _step_s(pid: int) -> float:
    """Processor time of the thread in which the step waits; Dagster has others."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_lock_is_written_for_people_only_while_it_is_held(lock_file: Path) -> None:
    with machine_lock(1, pytest.fail, "smoke"):
        found = json.loads(lock_file.read_text())
        assert found["pid"] == os.getpid() and found["scenario"] == "smoke" and found["user"] == module._user()
    assert lock_file.read_text() == ""


def test_who_holds_the_lock_is_told_without_waiting_or_creating(
    lock_file: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    assert holder() is None and not lock_file.exists()
    process = start("smoke")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert re.fullmatch(rf"process {process.pid} of user \S+ \(scenario smoke\) has held it since .*", holder() or "")
    process.kill()
    process.wait()
    assert holder() is None
    with machine_lock(1, print, "next"):  # looking left nothing behind
        pass
