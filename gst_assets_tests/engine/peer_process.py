"""A server in a process of its own that behaves well, up to a point: `python -m gst_assets_tests.engine.peer_process JSON`
prints its address and serves; the fields of `Peer`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.engine.server_peer import Peer, serving


@contextmanager
def peer_process(**fields: object) -> Iterator[str]:
    """The address of a server with limits and a death of its own; `fields` of `Peer` say what it is."""
    command = [sys.executable, "-m", __name__, json.dumps(fields)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def _serve(fields: dict[str, object]) -> None:
    async with serving(Peer(obeys=False, **fields)) as peer:  # type: ignore[arg-type]
        print(peer.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
