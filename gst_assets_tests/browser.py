"""A real Chromium against a real Dagster web server on loopback. Not a test module."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from playwright.sync_api import Page, Request, sync_playwright

from gst_assets.provenance import PROJECT_ROOT

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_LOOPBACK = (None, "127.0.0.1", "localhost", "::1")


def chromium() -> str:
    """Path of a Chromium.

    Raises:
        RuntimeError: none installed; says how to get one.
    """
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        raise RuntimeError(
            "no Chromium: expected `chromium` on the PATH, or its path in CHROMIUM. Install it, e.g. `apt-get install chromium` (.ci/run does so as root on Debian)."
        )
    return found


@contextmanager
def web_server(home: Path, root: Path, log: Path) -> Iterator[str]:
    """URL of `dagster dev` (web server and daemon) on the instance `home`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "GST_ARTIFACT_ROOT": str(root)}
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
            cwd=PROJECT_ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not _answers(url):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def browser_page(outside: set[str]) -> Iterator[Page]:
    """A page; addresses that are not on loopback are added to `outside`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1500, "height": 1200})

        def watch(request: Request) -> None:
            if urlparse(request.url).hostname not in _LOOPBACK:
                outside.add(request.url)

        page.on("request", watch)
        page.set_default_timeout(60_000)
        yield page
        browser.close()
