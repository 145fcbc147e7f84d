"""One engine measurement at a time on a machine, whatever started it: one lock file for all users, held through the
kernel (flock).

The lock ends with the process that holds it, however that ends. A process that waits for it sleeps and can be
interrupted. The file says who holds it; that is for people: only the kernel's lock decides.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from gst_assets.environment import LOCK_VARIABLE, EngineLock, read
from gst_assets.errors import EngineError
from gst_assets.progress import LINE_EVERY_S

# Not tempfile.gettempdir(): with TMPDIR every user or session would have a lock of its own. /run/lock is root's on some
# distributions, and files of /dev/shm go when their owner logs out.
_FILE = Path("/tmp/gst_engine.lock")
_POLL_S = 0.5
_BEING_CREATED_S = 2.0
_SHOWN_CHARACTERS = 80


@contextmanager
def machine_lock(timeout_s: float, log: Callable[[str], None], scenario: str) -> Iterator[None]:
    """Hold the machine's engine lock for the block, and say in it that `scenario` does; waits up to `timeout_s`
    seconds.

    While it waits, `log` names the holder: at once, and again after 10 s, 20 s, 40 s and so on: `gst run` shows only
    some of the lines of a step.

    Raises:
        EngineError: another measurement still held the lock after `timeout_s`, or the lock file cannot be used.
    """
    path = lock_file()
    handle = _taken(path, time.monotonic() + timeout_s, timeout_s, log)
    try:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "user": _user(), "scenario": scenario, "since": since}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)
        yield
    finally:
        os.ftruncate(handle, 0)
        os.close(handle)


def lock_file() -> Path:
    """The file of this machine's engine lock.

    Raises:
        EnvironmentVariableError: the variable that names another one holds no absolute path.
    """
    return read(EngineLock).file or _FILE


def holder() -> str | None:
    """Who holds the lock now, in words; None where no process does. Does not wait, and creates no file.

    Raises:
        EngineError: what is there cannot be used as the lock.
    """
    path = lock_file()
    if not os.path.lexists(path):
        return None
    handle = _opened(path)
    try:
        return None if _try_lock(handle) else _holder(handle)
    finally:
        os.close(handle)


def _taken(path: Path, deadline: float, timeout_s: float, log: Callable[[str], None]) -> int:
    """The descriptor of the lock file, locked."""
    began = time.monotonic()
    named, named_again_s = "", LINE_EVERY_S
    while True:
        handle = _opened(path)
        try:
            while not _try_lock(handle):
                holder = _holder(handle)
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{path}: {holder} for longer than {timeout_s:g} s. Wait for it to end, end it, or raise"
                        " lock_timeout_s."
                    )
                waited_s = time.monotonic() - began
                if holder != named:
                    log(f"waiting for this machine's engine: {holder} (lock {path})")
                    named = holder
                elif waited_s >= named_again_s:
                    log(f"waiting for this machine's engine for {waited_s:.0f} s: {holder} (lock {path})")
                    named_again_s = 2 * waited_s
                time.sleep(_POLL_S)
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        # Removed or replaced in the meantime: what was locked is not what the others lock.
        os.close(handle)


def _opened(path: Path) -> int:
    """The lock file, open for reading and writing by every user; created where absent.

    Raises:
        EngineError: it is not a plain file that this user may write.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    started = time.monotonic()
    while True:
        try:
            # Without O_CREAT first: in a sticky folder Linux refuses it for a file of another user
            # (fs.protected_regular).
            handle = os.open(path, flags)
            break
        except FileNotFoundError:
            try:
                handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(handle, 0o666)  # whatever the umask says
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise _unusable(path, os.strerror(error.errno or 0)) from None
        except OSError as error:
            # Another user may be between creating the file and opening it to all.
            if error.errno == errno.EACCES and time.monotonic() - started < _BEING_CREATED_S:
                time.sleep(0.05)
                continue
            raise _unusable(path, os.strerror(error.errno or 0)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _unusable(path, "not a plain file")
    return handle


def _unusable(path: Path, why: str) -> EngineError:
    return EngineError(
        f"{path}: cannot be used as this machine's engine lock ({why}). Expected a plain file that every user may"
        f" write: remove what is there while no engine runs, or name another file in {LOCK_VARIABLE}."
    )


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _holder(handle: int) -> str:
    """Who says to hold the lock. Any user may write the file, so nothing but short printable text of it is passed
    on."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        pid, user, scenario, since = (_shown(found[key]) for key in ("pid", "user", "scenario", "since"))
    except (ValueError, TypeError, KeyError):
        return "another process has held it"
    return f"process {pid} of user {user} (scenario {scenario}) has held it since {since}"


def _shown(value: object) -> str:
    return "".join(one if one.isprintable() else "?" for one in str(value)[:_SHOWN_CHARACTERS])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
