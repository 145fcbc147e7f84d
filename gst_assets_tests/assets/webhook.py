"""An HTTP server on loopback that keeps the messages it is sent. Not a test module."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Receiver:
    """Keeps (path, body) of every POST; answers 500 and keeps nothing while `broken`."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.broken = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not outer.broken:
                    outer.received.append((self.path, body))
                self.send_response(500 if outer.broken else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A running receiver."""
    running = Receiver()
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
