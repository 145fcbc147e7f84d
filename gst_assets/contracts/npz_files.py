"""Reading npz files of plain arrays within bounds: what is stored is checked before memory is taken for it, and nothing
is unpickled.

What the arrays mean belongs to their readers. Importable on a GPU host (numpy only).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from gst_assets.errors import ContractError
from gst_assets.input_files import InputKind, open_input

MOST_BYTES = 1 << 30
"""Of all arrays of a file together, unpacked."""
_KIND = InputKind(
    ContractError,
    missing="file missing.",
    expected="an npz file of plain arrays",
    remedy="Remove it, so that it is made again.",
    most_bytes=MOST_BYTES,
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, of at most `most_bytes` together.

    Raises:
        ContractError: there is no such file, or it is damaged, larger, or holds Python objects.
    """
    with open_input(path, _KIND) as handle:
        try:
            with zipfile.ZipFile(handle) as archive:
                members = archive.infolist()
                total = sum(member.file_size for member in members)
                if total > most_bytes:
                    raise ValueError(f"{total} bytes when unpacked, more than {most_bytes}")
                # What is read of a member is never more than the size it states.
                return {one.filename.removesuffix(".npy"): _array(archive.read(one)) for one in members}
        # zipfile, zlib and the parser of headers raise some ten kinds of exception for damaged bytes; none of them is
        # an error in this program.
        except Exception as error:
            raise ContractError(
                f"{path}: not {_KIND.expected} ({error or type(error).__name__}). {_KIND.remedy}"
            ) from None


def _array(data: bytes) -> np.ndarray:
    """The array of one member. Its header's shape is compared with what is there before anything is allocated."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"npy version {version}")
    shape, in_columns, dtype = _HEADERS[version](stream)
    count = 1
    for length in shape:
        count *= length
    if dtype.hasobject or min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of shape {shape!s:.60} and type {dtype} is not what its bytes hold")
    flat: np.ndarray = np.frombuffer(data, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if in_columns else "C")
