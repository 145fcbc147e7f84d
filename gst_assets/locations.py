"""Where files lie: what ships with the project, and where relative paths of settings lead.

In a checkout both start at its root. In an installed package the shipped files are inside it, and all else starts at
the working directory: nothing is ever written next to the package. Standard library only.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = "data"
"""A folder of the checkout; `setup.py` puts it inside the package of a wheel."""


def is_installed() -> bool:
    """Whether this package was installed from a wheel, which holds the shipped data; a checkout, editable or not, has
    it next to the package."""
    return (_PACKAGE / _SHIPPED).is_dir()


def work_root() -> Path:
    """Where relative paths of settings start, and where artifacts go unless said otherwise: the checkout, or the
    working directory of an installed package."""
    return Path.cwd() if is_installed() else _PACKAGE.parent


def locate(text: str) -> Path:
    """The absolute path that a setting names. `~` is the home directory; a relative path starts at `work_root()`,
    except that of an installed package `data/...` is the shipped file or folder of that name where there is one, so
    that its scenarios mean the same from everywhere."""
    path = Path(text).expanduser()
    if path.is_absolute():
        return path
    shipped = _PACKAGE / path
    if is_installed() and path.parts[:1] == (_SHIPPED,) and shipped.exists():
        return shipped
    return work_root() / path
