"""Measuring in a child process that never outlives its parent: starting one, following it, and ending it with all its
descendants.

The child leads a process group of its own. It goes with its parent in every case: the parent kills the group when it
leaves `run_module` for any reason, and the child itself kills the group once the parent is gone (`die_with_parent`),
which also covers `kill -9`. Outside the group is one helper, which removes the shared memory that killed processes
left and ends after them. What the child measures is the business of the module it runs. POSIX only.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker, util
from pathlib import Path
from typing import Any, NoReturn

from gst_assets.environment import PIPE_VARIABLE, Parent, read
from gst_assets.errors import EngineError, GstError
from gst_assets.provenance import PROJECT_ROOT

_ERROR_PREFIX = "error: "
_TAIL_LINES = 20
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_FULL_DISK = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_POLL_S = 1.0


def run_module(
    module: str,
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> list[str]:
    """Run `python -m module *args` to its end and return its lines (stdout and stderr in the order written).

    `env` adds to this process's environment; `on_line` is called with each line as it comes, in the calling thread.
    However this function is left, the child and every process of its group are dead then.

    Raises:
        EngineError: the child failed; carries its last `error: ` line, or how it ended and its last lines.
    """
    read_end, write_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *args],
            env={**os.environ, "PYTHONPATH": _search_path(), **(env or {}), PIPE_VARIABLE: str(read_end)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(read_end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    lines: list[str] = []
    # The child's death, not the end of its output, ends the reading: a process it leaves behind may hold the output
    # open.
    sweeper = threading.Thread(target=_sweep_when_dead, args=(child.pid,), name="child-sweeper", daemon=True)
    sweeper.start()
    try:
        assert child.stdout is not None
        for raw in child.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            lines.append(line)
            if on_line:
                on_line(line)
    finally:
        _kill_group(child.pid)
        sweeper.join()
        code = child.wait()
        os.close(write_end)
        if child.stdout:
            child.stdout.close()
    if code:
        raise EngineError(_failure(module, code, lines))
    return lines


def _search_path() -> str:
    """The checkout first, so that the child finds this package wherever it is started."""
    return os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _sweep_when_dead(pid: int) -> None:
    # Not reaped yet: while the child is a zombie its group's number cannot be taken by others.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    _kill_group(pid)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # no process left; macOS answers EPERM for a group of zombies
        return


def _failure(module: str, code: int, lines: Sequence[str]) -> str:
    stated = [line for line in lines if line.startswith(_ERROR_PREFIX)]
    full = next((line.strip() for line in reversed(lines) if any(words in line for words in _FULL_DISK)), None)
    if stated:
        error = stated[-1].removeprefix(_ERROR_PREFIX)
        return error if full is None or full in stated[-1] else f"{error} The disk is full, says a line before: {full}"
    how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    guess = ""
    if full is not None:
        guess = f" (the disk is full: {full})"
    elif code == -signal.SIGKILL:
        guess = " (this often means that memory ran out)"
    tail = "\n".join(deque(lines, _TAIL_LINES))
    return f"python -m {module} {how} without an error line{guess}. Its last lines:\n{tail}"


def exit_status(work: Callable[[], object], out: Path) -> int:
    """Do a child's work, which writes into `out`; returns its exit status. What is wrong for a user, a full disk
    included, is one `error: ` line on stderr and status 1."""
    try:
        work()
    except GstError as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        # A write that fails does not name its file, only opening one does.
        problem = (
            f"{error.filename or out}: cannot be written ({error.strerror}). Free space there, or write elsewhere, and"
            " run again."
        )
    else:
        return 0
    print(f"{_ERROR_PREFIX}{' '.join(problem.split())}", file=sys.stderr, flush=True)
    return 1


def die_with_parent() -> None:
    """Called once by a module that `run_module` starts: from now on this process and its group die when the parent
    does.

    Also turns SIGTERM into SystemExit, so that the engine is shut down on the way, and sees to it that shared memory
    goes with the processes that made it. Without `run_module` as parent only these two happen.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    _track_shared_memory()
    descriptor = read(Parent).pipe
    if descriptor is None:
        return
    # Descendants must not take the pipe for theirs, nor this process's parent for their own.
    del os.environ[PIPE_VARIABLE]
    threading.Thread(target=_watch, args=(descriptor, os.getppid()), name="parent-watch", daemon=True).start()


def _track_shared_memory() -> None:
    """Start multiprocessing's resource tracker, which this process and its descendants share, in a session of its own.

    It removes the shared memory (vLLM's: up to 240 MiB a start) of processes that could not do so themselves, once all
    of them are gone. In their process group it would be killed with them, and the memory would stay until the machine
    starts anew.
    """

    def apart(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        # Its only words are warnings about what it removes, and it must not hold the output open.
        return subprocess.Popen(
            args,
            executable=path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[one for one in passfds if one > 2],
            start_new_session=True,
        ).pid

    usual = util.spawnv_passfds
    util.spawnv_passfds = apart
    try:
        resource_tracker.ensure_running()
    finally:
        util.spawnv_passfds = usual


def _exit_on_sigterm(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _watch(descriptor: int, parent: int) -> None:
    """The parent never writes: readable means that its end is closed. A changed parent is looked for too, since a
    process the parent forked at the wrong moment may hold that end open."""
    while os.getppid() == parent and not select.select([descriptor], [], [], _POLL_S)[0]:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
