"""Text that others wrote (prompt ids, servers' errors, names of devices and drivers, overrides), made fit to be shown:
in Markdown it can fetch nothing, lead nowhere and be no HTML, and a secret is not repeated.

Standard library only; a GPU host needs it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_CODE = re.compile(r"(`[^`]*`)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_LINK = re.compile(r"\](?=[(:])")
# Control characters, those that turn the direction of what follows, and halves of a surrogate pair, which no file can
# hold.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BOLD = re.compile(r"\*{2,}")
_USER_INFO = re.compile(r"(://)\S*@")  # up to the last @: a password may hold any mark
_SHORTEST_SECRET = 4
HIDDEN = "***"


def visible(text: str) -> str:
    """`text` without what a terminal or a browser acts on instead of showing it."""
    return _INVISIBLE.sub("\ufffd", text)


def label(text: str) -> str:
    """A name that others gave, to be set into sentences, code and tables: on one line, and without what would end or
    begin code or bold there."""
    return _BOLD.sub("*", " ".join(visible(text).split()).replace("`", "'"))


def labels(value: Any) -> Any:
    """`value`, as JSON has it, with every text in it as `label` gives it."""
    if isinstance(value, str):
        return label(value)
    if isinstance(value, dict):
        return {labels(key): labels(inner) for key, inner in value.items()}
    return [labels(inner) for inner in value] if isinstance(value, list) else value


def inert(text: str) -> str:
    """`text` as Markdown of which bold, italic and code are left: HTML, images, links and link targets are shown as
    they are written."""
    parts = _CODE.split(visible(text))
    # What stands in code is shown as written anyway; where a reader of Markdown sees the code end elsewhere, nothing
    # comes alive either.
    parts[::2] = [_LINK.sub(r"]\\", _TAG.sub("&lt;", part)) for part in parts[::2]]
    parts[1::2] = [_LINK.sub("] ", _TAG.sub("‹", part)) for part in parts[1::2]]
    return "".join(parts)


def inert_line(text: str) -> str:
    """As `inert`, on one line."""
    return " ".join(inert(text).split())


def inert_cell(text: str) -> str:
    """As `inert_line`, in a cell of a Markdown table."""
    return inert_line(text).replace("|", "\\|")


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` without `secrets` (shorter ones than four characters would hide half of it) and without the user and
    password of any URL."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return _USER_INFO.sub(rf"\g<1>{HIDDEN}@", text)
