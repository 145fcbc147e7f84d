"""A profiling bundle made small and sealed, as the project ships it. Reading one belongs to `bundle`."""

from __future__ import annotations

import shutil
from pathlib import Path

from gst_assets.contracts.listing import NAME as LISTING
from gst_assets.contracts.listing import add_to_listing, check_listed, read_listing
from gst_assets.contracts.packed_files import MAY_BE_PACKED, PACKED, packed, stored_path, unpacked
from gst_assets.contracts.store import Kind
from gst_assets.errors import ArtifactError
from gst_assets.staging import staged_directory
from gst_assets.step_costs.bundle import load_bundle


def pack_bundle(directory: Path, out: Path) -> Path:
    """Store the bundle in `directory` as `out`: its large tables packed, its metadata and what else `sha256sums.txt` in
    `directory` lists sealed by a `sha256sums.txt`. Returns `out`. Same input, same bytes; run_meta.json stays, and its
    digests are those of what was packed.

    Raises:
        ArtifactError, ContractError, ProfileError: as `load_bundle`; a listed file that is missing or was changed; or
            `out` is there.
    """
    bundle = load_bundle(directory)
    meta = Kind.PROFILE.meta_name
    sealed = read_listing(directory) or {meta: ""}
    restore = "Restore it from version control."
    for name in sealed:
        if not (directory / name).is_file():
            raise ArtifactError(f"{directory / name}: listed in {directory / LISTING}, but not there. {restore}")
        check_listed(directory, name, (directory / name).read_bytes(), restore)
    try:
        with staged_directory(out) as folder:
            for name in {*bundle.sha256, *map(_plain, sealed)}:
                source = stored_path(directory / name)
                if name not in MAY_BE_PACKED:
                    shutil.copyfile(source, folder / name)
                    continue
                data = source.read_bytes()
                content = data if source.name == name else unpacked(data, source, restore)
                (folder / f"{name}{PACKED}").write_bytes(packed(content))
            # A listing says what lies there.
            add_to_listing(folder, (f"{name}{PACKED}" if name in MAY_BE_PACKED else name for name in sealed))
    except OSError as error:
        if out.exists():
            raise ArtifactError(f"{out}: already exists. Bundles are never overwritten; remove it first.") from None
        raise ArtifactError(f"{out}: cannot be written ({error.strerror}). Check the folder and the disk.") from None
    return out


def _plain(name: str) -> str:
    """The name of a table that may be packed before it was."""
    before = name.removesuffix(PACKED)
    return before if before in MAY_BE_PACKED else name
