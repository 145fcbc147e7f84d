"""A real Chromium that keeps a log of every address it asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from playwright.sync_api import Page, Request, WebSocket, sync_playwright

from gst_assets.testing.services import program

# What the browser itself would fetch is off, so that what is asked for is asked for by the page.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 180_000


@contextmanager
def browser_page(asked: list[str]) -> Iterator[Page]:
    """A page; the address of every request and web socket of its browser is appended to `asked`.

    Raises:
        ProgramMissing: no Chromium on the PATH, and none named by CHROMIUM.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or program("chromium"), args=_ARGUMENTS
        )
        context = browser.new_context(viewport={"width": 1500, "height": 1200})

        def note_request(request: Request) -> None:
            asked.append(request.url)

        def note_socket(socket: WebSocket) -> None:
            asked.append(socket.url)

        context.on("request", note_request)
        context.on("page", lambda page: page.on("websocket", note_socket))
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        yield page
        browser.close()


def leaves_loopback(address: str) -> bool:
    """Whether a request to the address leaves this machine. Data and blob addresses ask no server."""
    parts = urlparse(address)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname not in ("127.0.0.1", "localhost", "::1")
