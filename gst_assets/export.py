"""A comparison as one file to send: its page, or everything in an archive."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from gst_assets.errors import ArtifactError
from gst_assets.latest import REPORT
from gst_assets.staging import staged_file


def export_comparison(directory: Path, out: Path) -> None:
    """Write the comparison in `directory` to the file `out`: `.html` is its page, `.zip` the directory under its own
    name.

    Raises:
        ArtifactError: `out` exists, is of another kind, or cannot be written; the comparison has no page.
    """
    if out.suffix not in (".html", ".zip"):
        raise ArtifactError(f"{out}: expected a file name that ends in .html (the report) or .zip (everything).")
    if out.exists():
        raise ArtifactError(f"{out}: already exists. Remove it, or name another --out.")
    if out.suffix == ".html" and not (directory / REPORT).is_file():
        raise ArtifactError(f"{directory}: has no {REPORT}. Export it as .zip.")
    try:
        with staged_file(out) as beside:
            if out.suffix == ".html":
                shutil.copyfile(directory / REPORT, beside)
            else:
                _zip(directory, beside)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror}). Check the folder and the disk.") from None


def _zip(directory: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(one for one in directory.rglob("*") if one.is_file()):
            archive.write(path, f"{directory.name}/{path.relative_to(directory)}")
