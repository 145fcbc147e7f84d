"""How many files this process may have open: a server's answers are a connection each, and the usual limit is a
thousand.

The soft limit is raised as far as a plan needs; where the hard limit is in the way, that is found out before anything
is measured. POSIX only.
"""

from __future__ import annotations

import itertools
import resource
from collections.abc import Iterable
from pathlib import Path

from gst_assets.errors import EngineError

_SPARE = 64
"""Descriptors in addition to the connections and those open now: result files, name look-ups, a test whether the server
is still there."""


def most_at_once(spans_ns: Iterable[tuple[int, int]]) -> int:
    """The most of the spans (first moment, last moment) that hold one moment together."""
    # At one moment those that begin are counted before those that end.
    changes = sorted(change for begin, end in spans_ns for change in ((begin, 0, 1), (end, 1, -1)))
    return max(itertools.accumulate(step for _, _, step in changes), default=0)


def allow_connections(number: int, why: str) -> None:
    """Let this process have `number` connections open at once; `why` there may be so many is for the message.

    Raises:
        EngineError: the hard limit of open files does not allow it, or the system refuses to raise the soft one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + len(list(Path("/dev/fd").iterdir())) + _SPARE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    problem = ""
    if hard == resource.RLIM_INFINITY or needed <= hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
        except (OSError, ValueError) as error:
            problem = f", and raising it was refused ({error})"
    raise EngineError(
        f"this process may have {soft} files open, at most {hard}{problem}; {why} needs up to {number} connections at"
        f" once, {needed} files in all. Raise the limit for the shell or service that starts it (`ulimit -n {needed}`),"
        " or send fewer requests at once. Nothing was measured."
    )
