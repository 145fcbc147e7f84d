"""Notifying people: one message to a webhook, and to Slack, from environment variables. Silent where neither is set.

GST_WEBHOOK_URL receives the message as JSON, GST_SLACK_WEBHOOK_URL as a Slack incoming webhook expects it. What is
worth a message is decided in `sensors`.
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from urllib.parse import urlsplit

from gst_assets.environment import SLACK_VARIABLE, WEBHOOK_VARIABLE, Messages, read
from gst_assets.errors import NotificationError
from gst_assets.provenance import PROJECT_ROOT

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Message:
    """`kind` is run_failed, check_failed or regression; `report` is the report's path, empty where there is none;
    `link` leads into the UI."""

    kind: str
    scenario: str
    title: str
    text: str
    link: str
    report: str = ""


def is_configured() -> bool:
    """Whether a message would go anywhere.

    Raises:
        EnvironmentVariableError: one of the variables holds no http address, or one with user or password.
    """
    addresses = read(Messages)
    return bool(addresses.webhook or addresses.slack)


def send(message: Message) -> None:
    """Post the message to every configured address, ten seconds each at most.

    Raises:
        EnvironmentVariableError: one of the variables holds no http address, or one with user or password.
        NotificationError: no answer with a status of success (2xx; a redirect is none) in time. Names the variable and
            the host, never the whole address, which may hold a secret.
    """
    report = f"\nreport: {message.report}" if message.report else ""
    # Slack reads <...> as links and calls: an error's text must not call a whole channel.
    text = html.escape(f"*{message.title}*\n{message.text}{report}", quote=False)
    slack = {"text": f"{text}\n{message.link}"}
    addresses = read(Messages)
    for name, address, body in (
        (WEBHOOK_VARIABLE, addresses.webhook, asdict(message)),
        (SLACK_VARIABLE, addresses.slack, slack),
    ):
        if address:
            _post(name, address.get_secret_value(), body)


def _post(name: str, url: str, body: dict[str, str]) -> None:
    """Post from a process of its own: that alone ends in time wherever it hangs, in a name server or in an answer that
    comes byte by byte."""
    host = urlsplit(url).hostname
    paths = os.pathsep.join([str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],  # not what lies where the user works
            input=json.dumps([url, body]),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        raise NotificationError(
            f"{name}: {host} did not answer within {_TIMEOUT_S:g} s. The message is tried again."
        ) from None
    # Nothing else of the process is passed on: a traceback would hold the address.
    answer = done.stdout.strip()
    if not answer.isdecimal():
        raise NotificationError(
            f"{name}: {host} cannot be reached ({answer or 'no answer'}). The message is tried again."
        )
    status = int(answer)
    if 300 <= status < 400:
        raise NotificationError(
            f"{name}: {host} answered {status}: it has another address, and a message is not sent on. Correct the"
            " variable; the message is tried again."
        )
    if not 200 <= status < 300:
        raise NotificationError(f"{name}: {host} answered {status}. The message is tried again.")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and at a host that was not named."""

    def redirect_request(self, *_: object) -> None:
        return None


def _status_of_post(url: str, body: object) -> str:
    """The status of the answer, of which no more than its head is read; or what kept it from coming, without the
    address."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or type(error.reason).__name__)
    except (OSError, ValueError, HTTPException) as error:
        return type(error).__name__


if __name__ == "__main__":
    print(_status_of_post(*json.load(sys.stdin)))
