"""Tables stored compressed: packing them, finding those of profiles, and unpacking within bounds.

Recorded runs and the profiles that ship have such tables. What a table means, and which ones of a recorded run are
packed, belongs to those who store them. Standard library only; a GPU host needs it too.
"""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

from gst_assets.errors import ArtifactError

PACKED = ".xz"
PACKED_BEFORE = ".gz"
"""Of recorded runs that earlier versions packed."""
MAY_BE_PACKED = ("host_speed.csv", "calibration_traffic.csv")
"""The large tables of a profile, which nobody but `step_costs.bundle.load_bundle` reads. Vidur opens others itself."""
MOST_BYTES = 1 << 30
"""Of one table, unpacked: a thousand times as much can hide in a file."""
_MOST_MEMORY_BYTES = 128 << 20
"""For unpacking. What `packed` writes needs 65 MiB; a file may ask for 4 GiB."""


def packed(data: bytes) -> bytes:
    """`data` as an xz file, which holds neither name nor time. Same input, same bytes."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def stored_path(path: Path) -> Path:
    """Where the table of a profile that belongs at `path` is: there or, where nothing is there, packed next to it if it
    is one of `MAY_BE_PACKED`; `path` where it is in neither place."""
    copy = path.with_name(path.name + PACKED)
    return copy if path.name in MAY_BE_PACKED and copy.is_file() and not path.exists() else path


def packed_copy(path: Path) -> Path | None:
    """The packed table next to `path`, of this version or an earlier one, where nothing is at `path` itself."""
    if path.exists():
        return None
    copies = (path.with_name(path.name + suffix) for suffix in (PACKED, PACKED_BEFORE))
    return next((file for file in copies if file.is_file()), None)


def unpacked(data: bytes, path: Path, remedy: str) -> bytes:
    """What `data`, read from `path`, was before it was packed: the one xz stream (gzip member where `path` ends with
    `.gz`) that it is, of at most `MOST_BYTES`.

    Raises:
        ArtifactError: no such file whole and alone, or beyond a bound; ends with `remedy`.
    """
    kind = "gzip" if path.suffix == PACKED_BEFORE else "xz"
    try:
        unpacker = (
            zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            if kind == "gzip"
            else lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY_BYTES)
        )
        content = unpacker.decompress(data, MOST_BYTES + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise ArtifactError(f"{path}: not a whole {kind} file ({error}). {remedy}") from None
    if len(content) > MOST_BYTES:
        raise ArtifactError(f"{path}: more than {MOST_BYTES} bytes when unpacked. {remedy}")
    if not unpacker.eof or unpacker.unused_data:
        problem = "bytes behind its end" if unpacker.eof else "cut off"
        raise ArtifactError(f"{path}: not a whole {kind} file ({problem}). {remedy}")
    return content
