"""Telling people: one message to a webhook, and to Slack, from environment variables. Silent where neither is set.

GST_WEBHOOK_URL receives the message as JSON, GST_SLACK_WEBHOOK_URL as a Slack incoming webhook expects it. What is worth a message is decided
in `automation`.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from urllib.parse import urlparse

from gst_assets.environment import SLACK_VARIABLE, WEBHOOK_VARIABLE, Messages, read
from gst_assets.errors import NotificationError

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Message:
    """`kind` is run_failed, check_failed or regression; `report` is the report's path, empty where there is none; `link` leads into the UI."""

    kind: str
    scenario: str
    title: str
    text: str
    link: str
    report: str = ""


def is_configured() -> bool:
    """Whether a message would go anywhere.

    Raises:
        EnvironmentVariableError: one of the variables holds no http address.
    """
    addresses = read(Messages)
    return bool(addresses.webhook or addresses.slack)


def send(message: Message) -> None:
    """Post the message to every configured address.

    Raises:
        EnvironmentVariableError: one of the variables holds no http address.
        NotificationError: an address did not answer with success. Names the variable and the host, never the whole address, which may hold a
            secret.
    """
    report = f"\nreport: {message.report}" if message.report else ""
    slack = {"text": f"*{message.title}*\n{message.text}{report}\n{message.link}"}
    addresses = read(Messages)
    for name, address, body in (
        (WEBHOOK_VARIABLE, addresses.webhook, asdict(message)),
        (SLACK_VARIABLE, addresses.slack, slack),
    ):
        if address:
            _post(name, address.get_secret_value(), body)


def _post(name: str, url: str, body: dict[str, str]) -> None:
    host = urlparse(url).hostname
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        raise NotificationError(f"{name}: {host} answered {error.code}. The message is tried again.") from None
    except OSError as error:
        raise NotificationError(f"{name}: {host} cannot be reached ({error}). The message is tried again.") from None
