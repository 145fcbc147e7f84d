"""A server in a process of its own that behaves well: `python -m gst_assets_tests.engine.peer_process TOGETHER` prints
its address and serves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.engine.server_peer import Peer, serving


@dataclass(frozen=True)
class PeerProcess:
    base_url: str
    process: subprocess.Popen[str]


@contextmanager
def peer_process(together: int) -> Iterator[PeerProcess]:
    """A server with limits and a death of its own; after a probe it answers once so many completions have been asked
    for."""
    command = [sys.executable, "-m", __name__, str(together)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield PeerProcess(process.stdout.readline().strip(), process)
        finally:
            process.kill()


async def _serve(together: int) -> None:
    async with serving(Peer(obeys=False, together=together)) as peer:
        print(peer.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
