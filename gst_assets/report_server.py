"""Reports over HTTP on loopback, for the links in the Dagster UI: a browser opens no file from a page of a server.

It shows the files of complete comparisons, regression reports, sweeps and capacity searches under the artifact root,
and nothing else. Whoever serves the artifact root in another way names that address in GST_REPORTS_URL, and needs none
of this.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.environment import REPORTS_VARIABLE, Reports, read
from gst_assets.errors import ArtifactError, ReportServerError

_KINDS = {kind.value: kind for kind in (Kind.COMPARISON, Kind.REGRESSION, Kind.SWEEP, Kind.CAPACITY)}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    # As text: a browser shows it, and nothing in it can do anything.
    ".md": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".json": "text/plain; charset=utf-8",
    ".png": "image/png",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PATH = re.compile(r"/([a-z_]+)/([\w.-]+)/((?:[\w.-]+/)*[\w.-]+)")


class _Handler(BaseHTTPRequestHandler):
    server_version = "gst-reports"
    sys_version = ""

    def do_GET(self) -> None:
        # A page of the web whose name leads here must not read reports through a visitor's browser.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _LOOPBACK:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"reports are shown on loopback only\n")
            return
        file = _file(urlsplit(self.path).path)
        if file is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such file of a complete report\n")
            return
        self._answer(HTTPStatus.OK, _TYPES[file.suffix], file.read_bytes())

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: it would stand between Dagster's lines."""


def _file(path: str) -> Path | None:
    """The file that `/<folder of a kind>/<id>/<file>` names, or None."""
    named = _PATH.fullmatch(unquote(path))
    if named is None or named[1] not in _KINDS:
        return None
    store: ArtifactStore = open_store()
    try:
        directory = store.open(_KINDS[named[1]], named[2], verify=False).resolve()
    except ArtifactError:
        return None
    file = (directory / named[3]).resolve()
    return file if file.is_relative_to(directory) and file.suffix in _TYPES and file.is_file() else None


@contextmanager
def serving_reports() -> Iterator[str | None]:
    """Serve while the block runs; gives the address. None where GST_REPORTS_URL names another machine's: somebody else
    serves there.

    Raises:
        ReportServerError: the port cannot be taken.
        EnvironmentVariableError: GST_REPORTS_URL is no address.
    """
    url = read(Reports).url
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        yield None
        return
    try:
        server = ThreadingHTTPServer(("127.0.0.1", parts.port or 80), _Handler)
    except OSError as error:
        raise ReportServerError(
            f"{url}: reports cannot be served there ({error.strerror}). Another UI may be running; end it, or set"
            f" {REPORTS_VARIABLE} to another port of 127.0.0.1."
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
