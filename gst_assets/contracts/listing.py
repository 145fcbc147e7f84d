"""`sha256sums.txt`: the digests of files that no store refers to, in the format of `sha256sum`. It seals the metadata
of what ships with the project (recorded runs, profiles) and of what was added to an artifact afterwards. Without a
listing a folder is not sealed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gst_assets.errors import ArtifactError
from gst_assets.provenance import sha256_bytes, sha256_file
from gst_assets.staging import staged_file

NAME = "sha256sums.txt"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\s/][^\s]*)")


def read_listing(folder: Path) -> dict[str, str] | None:
    """sha256 by name relative to `folder`; None where it has no listing.

    Raises:
        ArtifactError: it cannot be read, or has a line that is none; names the line.
    """
    path = folder / NAME
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). Restore it from version control.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise ArtifactError(
                f"{path}: line {number}: expected a digest, two blanks and a name, each name once. Restore it from"
                " version control."
            )
        found[match[2]] = match[1]
    return found


def check_listed(folder: Path, name: str, data: bytes, remedy: str) -> None:
    """`data`, which was read from the file `name` below `folder`, has the digest of the folder's listing, if there is
    one.

    Raises:
        ArtifactError: it has not, or is not listed; ends with `remedy`.
    """
    listing = read_listing(folder)
    if listing is None:
        return
    if name not in listing:
        raise ArtifactError(f"{folder / name}: not listed in {folder / NAME}, so it is not read. {remedy}")
    if sha256_bytes(data) != listing[name]:
        raise ArtifactError(f"{folder / name}: changed after it was written: {NAME} lists another sha256. {remedy}")


def add_to_listing(folder: Path, names: Iterable[str]) -> None:
    """List files below `folder` as they are now; those listed before stay. Appears whole or not at all.

    Raises:
        ArtifactError: the listing there cannot be read.
    """
    listing = (read_listing(folder) or {}) | {name: sha256_file(folder / name) for name in names}
    with staged_file(folder / NAME) as path:
        path.write_text("".join(f"{listing[name]}  {name}\n" for name in sorted(listing)), encoding="ascii")
