"""Artifact directories: where they are, how they are named, and how they appear completely or not at all.

A directory is staged beside its destination and renamed into place once its metadata file, which lists the sha256 of every other
file, has been written last. Nothing here knows what the files mean. Importable on a GPU host (standard library only).
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from gst_assets.errors import ArtifactError
from gst_assets.provenance import PROJECT_ROOT, sha256_file

ROOT_VARIABLE = "GST_ARTIFACT_ROOT"
_STAGING = ".staging"
_CURRENT = "current"


class Kind(StrEnum):
    """The artifact families; the value is the folder under the artifact root."""

    WORKLOAD_PART = "workload_parts"
    WORKLOAD = "workloads"
    REAL_RUN = "real_runs"
    VIDUR_RUN = "vidur_runs"
    PROFILE = "vidur_profiling"
    COMPARISON = "comparisons"

    @property
    def meta_name(self) -> str:
        """The metadata file whose presence makes a directory of this kind complete."""
        return {Kind.WORKLOAD: "workload_meta.json", Kind.WORKLOAD_PART: "part_meta.json"}.get(self, "run_meta.json")


class Staging:
    """A directory being filled. Write files under `path`, then call `commit` once."""

    def __init__(self, store: ArtifactStore, kind: Kind, artifact_id: str, path: Path) -> None:
        self.kind = kind
        self.artifact_id = artifact_id
        self.path = path
        self._store = store
        self.committed: Path | None = None

    def digests(self) -> dict[str, str]:
        """sha256 of every file staged so far except the metadata file, by path relative to the directory."""
        return directory_digests(self.path, self.kind.meta_name)

    def commit(self, *, replace: bool = False, share: bool = False) -> Path:
        """Make the directory visible under its final name; returns the final path.

        The metadata file must have been written. `share`: an existing directory with the same content is kept and returned (content-named
        artifacts). `replace`: an existing directory is swapped for this one (profiling bundles).

        Raises:
            ArtifactError: metadata missing, or the name is taken by other content.
        """
        if not (self.path / self.kind.meta_name).is_file():
            raise ArtifactError(
                f"{self.path}: {self.kind.meta_name} was not written, refusing to commit an incomplete directory."
            )
        final = self._store.path(self.kind, self.artifact_id)
        final.parent.mkdir(parents=True, exist_ok=True)
        _flush(self.path)
        try:
            self.path.rename(final)
        except OSError:
            if not final.exists():
                raise
            if replace:
                _exchange(self.path, final)
                shutil.rmtree(self.path)
            elif share and directory_digests(final, self.kind.meta_name) == self.digests():
                shutil.rmtree(self.path)
            else:
                raise ArtifactError(
                    f"{final}: already exists with other content. Artifacts are never overwritten; remove it or use another id."
                ) from None
        self.committed = final
        return final


class ArtifactStore:
    """Names, stages, commits and finds artifact directories under one root directory."""

    def __init__(self, root: Path | str) -> None:
        text = str(root)
        if "://" in text:
            raise ArtifactError(
                f"{ROOT_VARIABLE}={text}: object stores are not supported yet, expected a directory path."
            )
        self.root = Path(text).expanduser().absolute()

    @classmethod
    def from_environment(cls) -> ArtifactStore:
        """The store under `GST_ARTIFACT_ROOT`, or `tmp/` in the checkout."""
        return cls(os.environ.get(ROOT_VARIABLE) or PROJECT_ROOT / "tmp")

    def path(self, kind: Kind, artifact_id: str) -> Path:
        """Where an artifact is or would be. `artifact_id` may hold `/` only for profiles (`<hardware>/<model>`)."""
        parts = artifact_id.split("/")
        if any(part in ("", ".", "..") or part.startswith(".") for part in parts) or (
            len(parts) > 1 and kind is not Kind.PROFILE
        ):
            raise ArtifactError(f"{artifact_id!r} is not a usable {kind.value} id.")
        return self.root / kind.value / artifact_id

    @contextmanager
    def stage(self, kind: Kind, artifact_id: str) -> Iterator[Staging]:
        """Stage a directory for `artifact_id`. Whatever is not committed when the block ends is removed; so is what killed processes left."""
        self.path(kind, artifact_id)
        area = self.root / _STAGING
        area.mkdir(parents=True, exist_ok=True)
        _sweep(area)
        path = area / f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        path.mkdir()
        staging = Staging(self, kind, artifact_id, path)
        try:
            yield staging
        finally:
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)

    def adopt(self, kind: Kind, artifact_id: str, directory: Path, *, replace: bool = False) -> Path:
        """Commit a complete directory that another process wrote below the root; returns the final path. `replace` as in `Staging.commit`.

        Raises:
            ArtifactError: incomplete or altered, or the name is taken.
        """
        open_directory(directory, kind)
        return Staging(self, kind, artifact_id, directory).commit(replace=replace)

    def open(self, kind: Kind, artifact_id: str, *, verify: bool = True) -> Path:
        """Path of a complete artifact. With `verify`, every file listed in its metadata must have its recorded digest.

        Raises:
            ArtifactError: missing, incomplete or altered.
        """
        return open_directory(self.path(kind, artifact_id), kind, verify=verify)

    def list(self, kind: Kind) -> list[str]:
        """Ids of the complete artifacts of a kind, sorted."""
        base = self.root / kind.value
        pattern = f"*/*/{kind.meta_name}" if kind is Kind.PROFILE else f"*/{kind.meta_name}"
        return sorted(str(meta.parent.relative_to(base)) for meta in base.glob(pattern))

    def set_current(self, scenario: str, slot: str, value: dict[str, Any]) -> None:
        """Point `slot` of a scenario (e.g. `workload`) at the artifacts last materialized for it. Replaced in one step."""
        path = self.root / _CURRENT / scenario / f"{slot}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)

    def current(self, scenario: str, slot: str) -> dict[str, Any] | None:
        """What `set_current` last stored, or None."""
        path = self.root / _CURRENT / scenario / f"{slot}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def open_directory(path: Path, kind: Kind, *, verify: bool = True) -> Path:
    """`path` if it is a complete artifact of `kind`.

    Raises:
        ArtifactError: missing, without its metadata file, or with a file whose digest differs from the recorded one.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such directory. Materialize the asset that writes it, or correct the path.")
    meta = path / kind.meta_name
    if not meta.is_file():
        raise ArtifactError(
            f"{path}: {kind.meta_name} missing, so this is not a complete artifact and is not read. Remove it and materialize again."
        )
    if verify:
        try:
            recorded = json.loads(meta.read_text(encoding="utf-8")).get("sha256", {})
        except json.JSONDecodeError as error:
            raise ArtifactError(f"{meta}: line {error.lineno}: not valid JSON ({error.msg}).") from None
        for name, digest in recorded.items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(
                    f"{file}: missing, but {kind.meta_name} lists it. Remove {path} and materialize again."
                )
            if sha256_file(file) != digest:
                raise ArtifactError(
                    f"{file}: content differs from the digest in {kind.meta_name}; it was changed after it was written. Remove {path} and materialize again."
                )
    return path


def directory_digests(path: Path, meta_name: str) -> dict[str, str]:
    """sha256 of every file below `path` but the metadata file, by relative path, sorted."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / meta_name)
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def _flush(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step (Linux renameat2 with RENAME_EXCHANGE), so that a reader always finds a complete one."""
    at_cwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot swap {one} and {other}: {os.strerror(error)}")


def _sweep(area: Path) -> None:
    """Remove staging directories of processes of this host that no longer exist."""
    host = socket.gethostname()
    for left in area.iterdir():
        name_host, _, rest = left.name.rpartition(".")[0].rpartition(".")
        if name_host == host and rest.isdigit() and not Path(f"/proc/{rest}").exists():
            shutil.rmtree(left, ignore_errors=True)
