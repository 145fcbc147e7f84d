"""A webhook that answers otherwise than a webhook does, on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gst_assets import notifications
from gst_assets.environment import SLACK_VARIABLE, WEBHOOK_VARIABLE
from gst_assets.errors import EnvironmentVariableError, GstError, NotificationError
from gst_assets.notifications import Message, send
from gst_assets_tests.assets.webhook import receiving

MESSAGE = Message("run_failed", "smoke", "smoke failed", "an <!channel> error & more", "http://127.0.0.1:3000/runs/1")
SECRET = "T0P/s3cret"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK_VARIABLE, SLACK_VARIABLE, "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # A busy machine may take seconds to start the process that posts.
    monkeypatch.setattr(notifications, "_TIMEOUT_S", 300.0)


@contextmanager
def answering(*pieces: bytes, pause_s: float = 0) -> Iterator[str]:
    """The URL of a server that reads a request and writes `pieces`, the last of them for ever (a minute at least) where
    there is a pause."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)
                    for _ in range(round(60 / pause_s) if pause_s else 0):
                        time.sleep(pause_s)
                        connection.sendall(pieces[-1])
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}"


def failure(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str = WEBHOOK_VARIABLE, kind: type[GstError] = NotificationError
) -> str:
    monkeypatch.setenv(name, url)
    with pytest.raises(kind) as raised:
        send(MESSAGE)
    assert SECRET not in str(raised.value) and "s3cret" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_success_and_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as other:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {other.url}/elsewhere\r\nContent-Length: 0\r\n\r\n"
        with answering(head.encode()) as url:
            assert f"127.0.0.1 answered {status}: it has another address" in failure(url, monkeypatch)
        assert other.received == []


@pytest.mark.parametrize("status", [204, 200, 299])
def test_success_is_any_2xx(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(f"HTTP/1.1 {status} Fine\r\nContent-Length: 0\r\n\r\n".encode()) as url:
        monkeypatch.setenv(WEBHOOK_VARIABLE, url)
        send(MESSAGE)


@pytest.mark.parametrize("status", [304, 400, 404, 500])
def test_any_other_status_is_no_success(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()) as url:
        assert f"127.0.0.1 answered {status}" in failure(url, monkeypatch)


@pytest.mark.parametrize("pieces", [(b"H",), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")], ids=["status", "headers"])
def test_an_answer_that_drips_ends_in_time(pieces: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes well within a socket's own timeout."""
    monkeypatch.setattr(notifications, "_TIMEOUT_S", 1.0)
    began = time.monotonic()
    with answering(*pieces, pause_s=0.1) as url:
        assert "did not answer within 1 s" in failure(url, monkeypatch)
    assert time.monotonic() - began < 60  # after which the server would have ended


def test_an_endless_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_000_000, pause_s=0.001) as url:
        monkeypatch.setenv(WEBHOOK_VARIABLE, url)
        began = time.monotonic()
        send(MESSAGE)
    assert time.monotonic() - began < 60  # 60 GB are more than any client reads in that time


def test_what_is_no_http_is_named_without_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(f"garbage {SECRET}\r\n\r\n".encode()) as url:
        assert "cannot be reached (BadStatusLine)" in failure(url, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "cannot be reached (Connection refused)" in failure(f"http://127.0.0.1:{port}/{SECRET}", monkeypatch)
    assert "cannot be reached (InvalidURL)" in failure(f"http://127.0.0.1:{port}/{SECRET} x", monkeypatch)


@pytest.mark.parametrize(
    "url",
    [
        f"file:///{SECRET}",
        f"ftp://host/{SECRET}",
        f"host/{SECRET}",
        f"http:///{SECRET}",
        f"http://[::1/{SECRET}",
        f"http://host:99999/{SECRET}",
        f"http://me:{SECRET}@host/",
    ],
)
def test_only_http_addresses_are_posted_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEBHOOK_VARIABLE, SLACK_VARIABLE):
        shown = failure(url, monkeypatch, name, EnvironmentVariableError)
        assert shown.startswith(f"{name}: expected an http or https address without user and password.")
        monkeypatch.delenv(name)


def test_slack_calls_nobody_for_the_text_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv(WEBHOOK_VARIABLE, f"{receiver.url}/plain")
        monkeypatch.setenv(SLACK_VARIABLE, f"{receiver.url}/slack")
        send(MESSAGE)
    (_, plain), (_, slack) = receiver.received
    assert plain["text"] == MESSAGE.text
    assert slack["text"].splitlines() == ["*smoke failed*", "an &lt;!channel&gt; error &amp; more", MESSAGE.link]
