"""npz files: read back as written, and what is damaged, larger than it may be, or no npz is one error."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gst_assets.contracts.npz_files import read_npz
from gst_assets.errors import ContractError


def test_arrays_come_back_as_numpy_wrote_them(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array("\u00e9"),
        "none": np.zeros((0, 4)),
        "last/b": np.float64(1.5) * np.ones(()),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for name in ("a.npz", "b.npz"):
        found = read_npz(tmp_path / name)
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype and np.array_equal(found[key], array)


def member(shape: str, descr: str = "<i8", data: bytes = bytes(16)) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
    return stream.getvalue()


def plain_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an npz file of plain arrays"),
        (plain_npy(), "File is not a zip file"),
        (member("(3,)"), "an array of shape (3,) and type int64 is not what its bytes hold"),
        (member("(1000000000000,)"), "is not what its bytes hold"),
        (member("(-1, -2)"), "is not what its bytes hold"),
        (member("(2,)", "|O"), "type object is not what its bytes hold"),
        (member("(20000000,)", data=bytes(160 << 20)), "167772288 bytes when unpacked, more than 1048576"),
    ],
)
def test_what_is_no_such_file_is_one_error(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ContractError) as error:
        read_npz(path, most_bytes=1 << 20)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)
    assert str(error.value).endswith("Remove it, so that it is made again.")
