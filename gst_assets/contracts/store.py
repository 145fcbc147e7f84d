"""Artifact directories: where they are, how they are named, and how they appear completely or not at all.

A directory is staged next to its destination and renamed into place once its metadata file, which lists the sha256 of
every other file, has been written last. Nothing here knows what the files mean. Importable on a GPU host (standard
library only). Object stores are in `object_store`; `open_store` chooses between the two.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from gst_assets.contracts.packed_files import MOST_BYTES, packed_copy, stored_path, unpacked
from gst_assets.environment import ROOT_VARIABLE
from gst_assets.errors import ArtifactError
from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_bytes
from gst_assets.provenance import sha256_bytes, sha256_file

_STAGING = ".staging"
CURRENT = "current"
"""The folder of the pointers."""
_CHECK_ROOT = f"Check that {ROOT_VARIABLE} names a writable directory with free space."
_CHECK_READABLE = "Check the disk, the mount and the permissions."
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}


class Kind(StrEnum):
    """The artifact families; the value is the folder under the artifact root."""

    WORKLOAD = "workloads"
    REAL_RUN = "real_runs"
    VIDUR_RUN = "vidur_runs"
    PROFILE = "vidur_profiling"
    COMPARISON = "comparisons"
    HISTORY = "history"
    REGRESSION = "regressions"
    CAPACITY = "capacity"
    SWEEP = "sweeps"
    SWEEP_PART = "sweep_parts"
    NIGHT = "nights"

    @property
    def meta_name(self) -> str:
        """The metadata file whose presence makes a directory of this kind complete."""
        return _META_NAMES.get(self.value, "run_meta.json")


_META_NAMES = {
    "workloads": "workload_meta.json",
    "history": "history_meta.json",
    "regressions": "regression_meta.json",
    "nights": "night_meta.json",
    "sweep_parts": "part_meta.json",
}


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

        The metadata file must have been written. `share`: an existing directory with the same content stays and is
        returned (content-named artifacts). `replace`: an existing directory is swapped for this one (profiling
        bundles).

        Raises:
            ArtifactError: metadata missing or without the digest of a file, the name is taken by other content, or the
                disk failed.
        """
        if self.committed:
            raise RuntimeError(f"{self.committed} was already committed")
        meta = self.path / self.kind.meta_name
        if not meta.is_file():
            raise ArtifactError(
                f"{self.path}: {self.kind.meta_name} was not written, refusing to commit an incomplete directory."
            )
        unlisted = _files(self.path, self.kind.meta_name) - recorded_digests(_read_bytes(meta), meta).keys()
        if unlisted:
            raise ArtifactError(
                f"{meta}: sha256 does not list {min(unlisted)}, so a later change to it would go unseen. Write the"
                " metadata file last."
            )
        self.committed = self._store.publish(self.kind, self.artifact_id, self.path, replace=replace, share=share)
        return self.committed


class ArtifactStore:
    """Names, stages, commits and finds artifact directories under one root directory."""

    def __init__(self, root: Path | str) -> None:
        text = str(root)
        if "://" in text:
            raise ArtifactError(f"{text}: a URL, expected a directory path. `open_store` takes both.")
        self.root = Path(text).expanduser().absolute()

    def __str__(self) -> str:
        """Where the artifacts are, for messages."""
        return str(self.root)

    def path(self, kind: Kind, artifact_id: str) -> Path:
        """Where an artifact is or would be. `artifact_id` is a plain name; for profiles `<hardware>/<model>`.

        Raises:
            ArtifactError: not such a name.
        """
        parts = artifact_id.split("/")
        if len(parts) != id_levels(kind) or not all(map(is_plain, parts)):
            wanted = "<hardware>/<model>" if kind is Kind.PROFILE else "one name"
            raise ArtifactError(
                f"{artifact_id!r} is not a usable {kind.value} id: expected {wanted} of printable characters without"
                " slashes or a leading dot."
            )
        return self.root / kind.value / artifact_id

    @contextmanager
    def stage(self, kind: Kind, artifact_id: str) -> Iterator[Staging]:
        """Stage a directory for `artifact_id`. Whatever is not committed when the block ends is removed; so is what
        killed processes left.

        Raises:
            ArtifactError: the root cannot be written, or the disk failed or filled up inside the block.
        """
        self.path(kind, artifact_id)
        with self._area() as path:
            yield Staging(self, kind, artifact_id, path)

    @contextmanager
    def _area(self) -> Iterator[Path]:
        """A new folder next to the artifacts, removed when the block ends; so is what killed processes left.

        Raises:
            ArtifactError: the root cannot be written, or the disk failed or filled up inside the block.
        """
        area = self.root / _STAGING
        name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        path, lock_file = area / name, area / f"{name}.lock"
        with _disk_errors(area):
            area.mkdir(parents=True, exist_ok=True)
            # Under one lock, so that no other process sweeps this directory before its own lock is held.
            with _locked(area / ".lock"):
                _sweep(area)
                lock = _lock(lock_file)
                try:
                    path.mkdir()
                except OSError:
                    os.close(lock)
                    raise
        try:
            yield path
        except OSError as error:
            if error.errno in _DISK_ERRORS or (error.errno in _DENIED and _is_below(error.filename, path)):
                raise _disk_error(path, error) from error
            raise
        finally:
            shutil.rmtree(path, ignore_errors=True)
            # What cannot be removed now is swept by the next process: no reason to fail what has succeeded.
            with suppress(OSError):
                lock_file.unlink(missing_ok=True)
            os.close(lock)

    def adopt(self, kind: Kind, artifact_id: str, directory: Path, *, replace: bool = False) -> Path:
        """Commit a complete directory that another process wrote below the root; returns the final path. `replace` as
        in `Staging.commit`.

        Raises:
            ArtifactError: incomplete or altered, or the name is taken.
        """
        open_directory(directory, kind)
        return Staging(self, kind, artifact_id, directory).commit(replace=replace)

    def publish(self, kind: Kind, artifact_id: str, path: Path, *, replace: bool, share: bool) -> Path:
        """Make a complete staged directory visible under its final name; `Staging.commit` calls it and says what the
        arguments mean."""
        final = self.path(kind, artifact_id)
        with _disk_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            _flush(path)
            try:
                path.rename(final)
            except OSError:
                if not final.exists():
                    raise
                _settle(path, final, kind, replace=replace, share=share)
            self._sync_up(final.parent)
        return final

    def open(self, kind: Kind, artifact_id: str, *, verify: bool = True, seal: str | None = None) -> Path:
        """Path of a complete artifact. With `verify`, every file listed in its metadata must have its recorded digest.
        `seal`: the sha256 of its metadata file, as whatever refers to the artifact recorded it.

        Raises:
            ArtifactError: missing, incomplete or altered.
        """
        return open_directory(self.path(kind, artifact_id), kind, verify=verify, seal=seal)

    def has(self, kind: Kind, artifact_id: str) -> bool:
        """Whether there is such a complete artifact. One that cannot be looked at counts: opening it says what is
        wrong."""
        return not _is_absent(self.path(kind, artifact_id) / kind.meta_name)

    def remove(self, kind: Kind, artifact_id: str) -> None:
        """Remove an artifact; it disappears in one step. Whether anything still needs it is for the caller to know.

        Raises:
            ArtifactError: it is not there, or cannot be removed.
        """
        path = self.path(kind, artifact_id)
        with self._area() as area, _disk_errors(path, "cannot be removed", _CHECK_READABLE):
            path.rename(area / "removed")
            _sync(path.parent)

    def folder(self, kind: Kind) -> Path:
        """The folder under which the complete artifacts of a kind can be read; an object store copies them there
        first."""
        return self.root / kind.value

    def list(self, kind: Kind) -> list[str]:
        """Ids of the complete artifacts of a kind, sorted; none where the kind's folder does not exist.

        Raises:
            ArtifactError: a folder cannot be listed, or the kind's folder is none.
        """
        base = self.root / kind.value
        ids = _plain_names(base)
        for _ in range(id_levels(kind) - 1):
            with _disk_errors(base, "cannot be listed", _CHECK_READABLE):
                folders = [one for one in ids if (base / one).is_dir()]
            ids = [f"{one}/{name}" for one in folders for name in _plain_names(base / one)]
        return sorted(one for one in ids if not _is_absent(base / one / kind.meta_name))

    def set_current(self, scenario: str, slot: str, value: dict[str, Any]) -> None:
        """Point `slot` of a scenario (e.g. `workload`) at the artifacts just made for it. What it pointed to before
        stays behind this pointer (`pointers`), which appears whole or not at all; two processes that set it at the same
        time lose neither.

        Raises:
            ArtifactError: the root cannot be written.
        """
        path = self.root / pointer_folder(scenario, slot) / new_pointer_name()
        with self._area() as area, _disk_errors(path):
            beside = area / path.name
            beside.write_text(pointer_text(value), encoding="utf-8")
            _sync(beside)
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.rename(path)
            self._sync_up(path.parent)

    def current(self, scenario: str, slot: str, *keys: str) -> dict[str, Any] | None:
        """What `set_current` last stored, or None. It has at least `keys`.

        Raises:
            ArtifactError: the file cannot be read, is not what `set_current` writes, or lacks a key.
        """
        return next((value for _, value in self.pointers(scenario, slot, *keys)), None)

    def pointers(self, scenario: str, slot: str, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Everything that `set_current` stored, newest first, with its file relative to the root; read as it is asked
        for.

        Raises:
            ArtifactError: as `current`.
        """
        folder = pointer_folder(scenario, slot)
        names = [f"{folder}/{name}" for name in sorted(_plain_names(self.root / folder), reverse=True)]
        if not _is_absent(self.root / f"{folder}.json"):
            names.append(f"{folder}.json")  # the one pointer of earlier versions
        for name in names:
            path = self.root / name
            yield name, parse_object(_read_bytes(path), path, keys)

    def remove_pointer(self, name: str) -> None:
        """Remove a pointer by its file relative to the root, as `pointers` gives it.

        Raises:
            ArtifactError
        """
        path = self.root / name
        with _disk_errors(path, "cannot be removed", _CHECK_READABLE):
            path.unlink()
            _sync(path.parent)

    def scenarios(self) -> Sequence[str]:
        """Scenarios that have pointers, sorted.

        Raises:
            ArtifactError: their folder cannot be listed.
        """
        return sorted(_plain_names(self.root / CURRENT))

    def _sync_up(self, folder: Path) -> None:
        """A new name in `folder`, and those of folders created for it, survive a power failure."""
        for parent in (folder, *folder.parents):
            _sync(parent)
            if parent == self.root:
                break


def pointer_folder(scenario: str, slot: str) -> str:
    """Where `set_current` stores a scenario's slot, one file each time it is set, relative to the root.

    Raises:
        ArtifactError: not plain names.
    """
    if not is_plain(scenario) or not is_plain(slot):
        raise ArtifactError(f"{scenario!r}, {slot!r}: expected the plain names of a scenario and a slot.")
    return f"{CURRENT}/{scenario}/{slot}"


def new_pointer_name() -> str:
    """A file name that no other pointer has; names sort by the time they were made."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"


def pointer_text(value: dict[str, Any]) -> str:
    """What `set_current` writes."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _settle(path: Path, final: Path, kind: Kind, *, replace: bool, share: bool) -> None:
    """The name is taken: swap, share or refuse. What is not used is removed."""
    if not final.is_dir():
        raise ArtifactError(f"{final}: expected a directory, found a file. Remove it or use another id.")
    if replace:
        _exchange(path, final)
    elif not share or directory_digests(final, kind.meta_name) != directory_digests(path, kind.meta_name):
        raise ArtifactError(
            f"{final}: already exists{' with other content' if share else ''}. Artifacts are never overwritten; remove"
            " it or use another id."
        )
    else:
        open_directory(final, kind, verify=False)
    shutil.rmtree(path, ignore_errors=True)


def open_directory(path: Path, kind: Kind, *, verify: bool = True, seal: str | None = None) -> Path:
    """`path` if it is a complete artifact of `kind`; `seal` as of `ArtifactStore.open`. Some tables of a
    profile may be packed (`packed_files.MAY_BE_PACKED`); their digests are those of what was packed.

    Raises:
        ArtifactError: missing, without its metadata file, or with a file whose digest differs from the recorded one.
    """
    while True:
        found = _identity(path)
        try:
            _check(path, kind, verify)
            if seal is not None:
                check_seal(_read_bytes(path / kind.meta_name), seal, path / kind.meta_name)
            return path
        except ArtifactError:
            # Swapped for another one while it was read (`commit(replace=True)`): what was read belongs to neither, so
            # look again.
            if _identity(path) == found:
                raise


def check_seal(data: bytes, seal: str, where: Path | str) -> None:
    """`data`, the metadata file read from `where`, is the one whose sha256 was recorded where its artifact is referred
    to.

    Raises:
        ArtifactError
    """
    found = sha256_bytes(data)
    if found != seal:
        raise ArtifactError(
            f"{where}: changed after it was written: its sha256 is {found[:16]}, but where it is referred to"
            f" {seal[:16]} was recorded. Restore it from a backup, or remove {str(where).rpartition('/')[0]} and"
            " materialize again."
        )


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns


def _check(path: Path, kind: Kind, verify: bool) -> None:
    meta = path / kind.meta_name
    with _disk_errors(path, "cannot be read", _CHECK_READABLE):
        if not path.is_dir():
            raise ArtifactError(
                f"{path}: no such directory. Materialize the asset that writes it, or correct the path."
            )
        if not meta.is_file():
            if below := complete_below(path, kind):
                raise ArtifactError(
                    f"{path}: has no {kind.meta_name}, but {len(below)} directories below it do: a folder of artifacts,"
                    f" not one itself. Name one of them, e.g. {below[0]}."
                )
            raise ArtifactError(
                f"{path}: {kind.meta_name} missing, so this is not a complete artifact and is not read. Correct the"
                " path or, if an asset wrote this directory, remove it and materialize again."
            )
    if not verify:
        return
    for name, digest in recorded_digests(_read_bytes(meta), meta).items():
        file = stored_path(path / name) if kind is Kind.PROFILE else path / name
        with _disk_errors(file, "cannot be read", _CHECK_READABLE):
            found = _digest(file, file.name != Path(name).name) if file.is_file() else None
        if found is None and (copy := packed_copy(path / name)):
            raise ArtifactError(
                f"{file}: missing, but {kind.meta_name} lists it, and {copy.name} lies there: packed."
                f" `gst recorded expand {path} --out DIR` unpacks a recorded run."
            )
        if found is None:
            raise ArtifactError(f"{file}: missing, but {kind.meta_name} lists it. Remove {path} and materialize again.")
        if found != digest:
            raise ArtifactError(
                f"{file}: content differs from the digest in {kind.meta_name}; it was changed after it was written."
                f" Remove {path} and materialize again."
            )


def complete_below(path: Path, kind: Kind) -> list[Path]:
    """Directories one or two levels below `path` that have the metadata file of `kind`, sorted."""
    metas = (*path.glob(f"*/{kind.meta_name}"), *path.glob(f"*/*/{kind.meta_name}"))
    return sorted(meta.parent for meta in metas)


def _digest(file: Path, is_packed: bool) -> str:
    if not is_packed:
        return sha256_file(file)
    remedy = f"Restore it, or remove {file.parent} and materialize again."
    kind = InputKind(
        ArtifactError, missing=f"gone meanwhile. {remedy}", expected="a packed table", remedy=remedy,
        most_bytes=MOST_BYTES,
    )  # fmt: skip
    return sha256_bytes(unpacked(read_bytes(file, kind), file, remedy))


def recorded_digests(data: bytes, where: Path | str) -> dict[str, str]:
    """sha256 by file name, as a metadata file records it; `where` names the file in messages.

    Raises:
        ArtifactError
    """
    recorded = parse_object(data, where).get("sha256")
    if not isinstance(recorded, dict) or not all(isinstance(digest, str) for digest in recorded.values()):
        raise ArtifactError(
            f"{where}: key sha256: expected an object of file names and digests. Remove {str(where).rpartition('/')[0]}"
            " and materialize again."
        )
    for name in recorded:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{where}: key sha256: {name!r} is not a file of this directory.")
    return recorded


def _read_bytes(path: Path) -> bytes:
    with _disk_errors(path, "cannot be read", "Check the disk and the permissions."):
        return path.read_bytes()


def parse_object(data: bytes, where: Path | str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in `data`, which was read from `where`. It has at least `keys`.

    Raises:
        ArtifactError: no such object; names file, and line or key.
    """
    remedy = f"Remove {where} and materialize again."
    try:
        value = parse_json(data.decode("utf-8"))
    except JsonProblem as problem:
        line = f" line {problem.line}:" if problem.line else ""
        raise ArtifactError(f"{where}:{line} not valid JSON ({problem.reason}). {remedy}") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8 ({error.reason}). {remedy}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected a JSON object, found {type(value).__name__}. {remedy}")
    for key in keys:
        if key not in value:
            raise ArtifactError(f"{where}: key {key} missing, found {', '.join(value) or 'no key'}. {remedy}")
    return value


def directory_digests(path: Path, meta_name: str) -> dict[str, str]:
    """sha256 of every file below `path` but the metadata file, by relative path, sorted."""
    return {name: sha256_file(path / name) for name in sorted(_files(path, meta_name))}


def _files(path: Path, meta_name: str) -> set[str]:
    def fail(error: OSError) -> None:  # else a folder that cannot be read would be an empty one
        raise _disk_error(Path(error.filename), error, "cannot be listed", _CHECK_READABLE)

    files = (Path(folder) / name for folder, _, names in os.walk(path, onerror=fail) for name in names)
    return {file.relative_to(path).as_posix() for file in files if file != path / meta_name and file.is_file()}


def _plain_names(folder: Path) -> list[str]:
    """What is in a folder under a name that an artifact may have; nothing where there is no folder."""
    with _disk_errors(folder, "cannot be listed", _CHECK_READABLE):
        try:
            return [found.name for found in folder.iterdir() if is_plain(found.name)]
        except FileNotFoundError:
            return []


def _is_absent(path: Path) -> bool:
    """Whether `path` is known not to exist. One that cannot be looked at may exist: opening it says what is wrong."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def id_levels(kind: Kind) -> int:
    """Path parts of an id of this kind."""
    return 2 if kind is Kind.PROFILE else 1


def is_plain(name: str) -> bool:
    """Whether `name` is one path part that cannot lead elsewhere, hide, or break a message."""
    return (
        name.isprintable() and 0 < len(name.encode()) <= 200 and not name.startswith(".") and not set(name) & set("/\\")
    )


def _is_below(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(folder)


def _flush(directory: Path) -> None:
    for found in directory.rglob("*"):
        if found.is_file() or found.is_dir():
            _sync(found)
    _sync(directory)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step (Linux renameat2 with RENAME_EXCHANGE), so that a reader always finds a complete
    one."""
    at_cwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) != 0:
        error = ctypes.get_errno()
        if error in (errno.EINVAL, errno.ENOSYS):
            raise ArtifactError(
                f"{other}: its filesystem cannot swap two directories in one step. Put {ROOT_VARIABLE} on a local one"
                f" (ext4, xfs, btrfs, tmpfs), or remove {other} first."
            )
        raise OSError(error, os.strerror(error), str(other))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = _lock(path)
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    """Take the lock of a file, created where absent. The kernel frees it when the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        os.close(handle)
        raise
    return handle


def _sweep(area: Path) -> None:
    """Remove staging directories whose lock no living process holds. Call with the area locked."""
    for name in {left.name.removesuffix(".lock") for left in area.iterdir()} - {""}:
        lock_file = area / f"{name}.lock"
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(area / name, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
        finally:
            os.close(handle)


@contextmanager
def _disk_errors(
    path: Path,
    what: str = "cannot be written",
    remedy: str = _CHECK_ROOT,
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error, what, remedy) from error


def _disk_error(
    path: Path, error: OSError, what: str = "cannot be written", remedy: str = _CHECK_ROOT
) -> ArtifactError:
    return ArtifactError(f"{path}: {what} ({error.strerror}). {remedy}")
