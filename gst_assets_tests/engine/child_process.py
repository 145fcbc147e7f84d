"""What the launch tests start: a child that talks, fails, stays or leaves a process behind, and a parent to be
killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from gst_assets.engine.launch import die_with_parent, exit_status, run_module

_HOUR_S = 3600


def _grandchild() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({_HOUR_S})"])
    print(f"pid {os.getpid()}", flush=True)
    print(f"pid {sleeper.pid}", flush=True)


def main(what: str, *words: str) -> int:
    if what == "parent":
        if words[0] == "forked":
            _fork_a_bystander_during_the_run()
        work = words[1] if len(words) > 1 else "stay"
        run_module("gst_assets_tests.engine.child_process", [work], on_line=lambda line: print(line, flush=True))
        return 0
    die_with_parent()
    if what == "talk":
        print("out", *words, flush=True)
        print("err", os.environ["GST_TEST_WORD"], file=sys.stderr, flush=True)
        print("out end", flush=True)
    elif what == "fail":
        print("error: not this one", file=sys.stderr, flush=True)
        print("error: the engine is on fire. Put it out.", file=sys.stderr, flush=True)
        return 1
    elif what == "exit":
        print("last words", flush=True)
        return 3
    elif what == "fill":
        return exit_status(lambda: Path("/dev/full").write_text("x" * 100_000), Path("out"))
    elif what == "fill elsewhere":
        print("OSError: [Errno 28] No space left on device: '/dev/shm/x'", flush=True)
        if words:
            print("error: the engine did not start.", file=sys.stderr, flush=True)
        return 1
    elif what == "break":
        return exit_status(lambda: Path("/nowhere/x").read_text(), Path("out"))
    elif what == "suicide":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "leave":
        _grandchild()
    elif what == "stay":
        _grandchild()
        time.sleep(_HOUR_S)
    elif what == "share":
        # As vLLM's processes do. In a descendant too, and never closed.
        kept = [SharedMemory(create=True, size=4096)]
        print(f"shared {kept[0].name}", flush=True)
        worker = get_context("fork").Process(target=_share)
        worker.start()
        time.sleep(_HOUR_S)
    return 0


def _share() -> None:
    kept = SharedMemory(create=True, size=4096)
    print(f"shared {kept.name}", flush=True)
    time.sleep(_HOUR_S)


def _fork_a_bystander_during_the_run() -> None:
    """Fork, a second from now, a process that keeps every descriptor of this one open and does nothing."""

    def fork(*_: object) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(_HOUR_S)
            os._exit(0)
        print(f"bystander {pid}", flush=True)

    signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 1.0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
