"""A child and all its descendants end with `run_module`, and with the parent even when that is killed with -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gst_assets.engine.launch import run_module
from gst_assets.errors import EngineError

CHILD = "gst_assets_tests.engine.child_process"


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that has died and waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if not any(_is_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _pids(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("pid ")]


def test_lines_come_in_order_and_the_environment_is_added() -> None:
    seen: list[str] = []
    lines = run_module(CHILD, ["talk", "a b"], env={"GST_TEST_WORD": "hello"}, on_line=seen.append)
    assert lines == seen == ["out a b", "err hello", "out end"]


def test_the_error_line_of_the_child_becomes_the_error() -> None:
    with pytest.raises(EngineError, match=r"^the engine is on fire\. Put it out\.$"):
        run_module(CHILD, ["fail"])


def test_a_child_without_an_error_line_shows_its_end() -> None:
    with pytest.raises(EngineError, match=r"(?s)ended with exit status 3 without an error line.*last words"):
        run_module(CHILD, ["exit"])
    killed = r"was killed by signal SIGKILL without an error line \(this often means that memory ran out\)"
    with pytest.raises(EngineError, match=killed):
        run_module(CHILD, ["suicide"])


def test_a_full_disk_is_called_that() -> None:
    with pytest.raises(EngineError, match=r"^out: cannot be written \(No space left on device\)\. Free space there"):
        run_module(CHILD, ["fill"])
    elsewhere = r"ended with exit status 1 without an error line \(the disk is full: OSError: .* '/dev/shm/x'\)\. Its"
    with pytest.raises(EngineError, match=elsewhere):
        run_module(CHILD, ["fill elsewhere"])
    stated = r"^the engine did not start\. The disk is full, says a line before: OSError: .* '/dev/shm/x'$"
    with pytest.raises(EngineError, match=stated):
        run_module(CHILD, ["fill elsewhere", "stated"])


def test_what_is_no_full_disk_is_not_called_one() -> None:
    with pytest.raises(
        EngineError, match=r"(?s)ended with exit status 1 without an error line\. Its .*No such file"
    ) as raised:
        run_module(CHILD, ["break"])
    assert "memory" not in str(raised.value) and "full" not in str(raised.value)


def test_what_a_child_leaves_behind_is_killed_and_does_not_hold_up_the_reader() -> None:
    """The grandchild inherits the child's output and would hold it open for an hour."""
    lines = run_module(CHILD, ["leave"])
    assert len(_pids(lines)) == 2
    assert _all_gone(_pids(lines))


def test_an_exception_in_the_parent_ends_the_child() -> None:
    pids: list[int] = []

    def stop(line: str) -> None:
        if line.startswith("pid "):
            pids.append(int(line.split()[1]))
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_module(CHILD, ["stay"], on_line=stop)
    assert _all_gone(pids)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("fork", ["alone", "forked"])
def test_a_killed_parent_takes_child_and_grandchild_along(how: signal.Signals, fork: str) -> None:
    """`forked`: another process forked from the parent keeps the parent's end of the pipe open."""
    parent = subprocess.Popen(
        [sys.executable, "-m", "gst_assets_tests.engine.child_process", "parent", fork],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    lines: list[str] = []
    while len(_pids(lines)) < 2 or (fork == "forked" and not any(line.startswith("bystander ") for line in lines)):
        lines.append(parent.stdout.readline())
        assert lines[-1], f"the parent ended: {lines}"
    pids = _pids(lines)
    assert all(_is_alive(pid) for pid in pids)
    os.kill(parent.pid, how)
    parent.wait()
    try:
        assert _all_gone(pids)
    finally:
        for line in lines:
            if line.startswith("bystander "):
                os.kill(int(line.split()[1]), signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_shared_memory_goes_with_killed_processes(how: signal.Signals | None) -> None:
    """vLLM's is up to 240 MiB. `None`: the parent ends the child, as it does when a run is cancelled."""
    lines: list[str] = []
    if how is None:

        def stop(line: str) -> None:
            lines.append(line)
            if len(lines) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_module(CHILD, ["share"], on_line=stop)
    else:
        command = [sys.executable, "-m", CHILD, "parent", "alone", "share"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            lines += [parent.stdout.readline(), parent.stdout.readline()]
            parent.send_signal(how)
    segments = [Path("/dev/shm") / line.split()[1] for line in lines if line.startswith("shared ")]
    assert len(segments) == 2, lines
    deadline = time.monotonic() + 300
    while any(segment.exists() for segment in segments):
        assert time.monotonic() < deadline, "the shared memory is still there"
        time.sleep(0.05)
