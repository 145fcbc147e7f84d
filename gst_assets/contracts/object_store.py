"""Artifacts in an object store (`GST_ARTIFACT_ROOT=s3://bucket/prefix`), read and written through a local copy.

Domain code still reads and writes local directories: they are staged and cached with the layout of `store`.
What belongs here is how they are copied to the object store, so that a directory is there completely or not at all:

- Every file is created only where no object has its name yet, in sorted order, the metadata file last. Of two writers
  of one id the one that creates the first differing file wins and the other stops; of a killed writer only files
  without a metadata file remain.
- A directory without its metadata file is never read. What is read is checked against the digests in it.
- What may be replaced (profiles) keeps its files in a folder named by their digests; overwriting the metadata file, one
  object, swaps them.

Needs a store that creates an object only if it is absent (S3: `If-None-Match: *`) and that reads back what was written
last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gst_assets.contracts.store import (
    CURRENT,
    ArtifactStore,
    Kind,
    check_seal,
    directory_digests,
    id_levels,
    is_plain,
    new_pointer_name,
    open_directory,
    parse_object,
    pointer_folder,
    pointer_text,
    recorded_digests,
)
from gst_assets.environment import ROOT_VARIABLE, Artifacts, read
from gst_assets.errors import ArtifactError
from gst_assets.locations import work_root
from gst_assets.provenance import sha256_bytes, sha256_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_WRITTEN_ONCE = frozenset({Kind.WORKLOAD, Kind.REAL_RUN, Kind.VIDUR_RUN, Kind.COMPARISON, Kind.NIGHT, Kind.SWEEP_PART})
"""Kinds whose directories are never replaced: their files have the plain names of the contract."""
_PROBE = ".create-if-absent"
_ATTEMPTS = 5
_CHECK_ACCESS = f"Check {ROOT_VARIABLE}, the endpoint and the credentials (docs/deployment.md)."

_conditional: set[str] = set()
"""URLs of which this process knows that they create an object only if it is absent."""


class ObjectStore(ArtifactStore):
    """An artifact store under a URL. `root` is the local cache: what `open` and `folder` return lies there."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        if url.partition("://")[0] not in _PROTOCOLS:
            raise ArtifactError(
                f"{ROOT_VARIABLE}={url}: expected a directory path or the URL of an object store"
                f" ({', '.join(_PROTOCOLS)}). Other filesystems write objects that can be seen half-written."
            )
        if not url.partition("://")[2].partition("/")[0]:
            # Its objects would be named /real_runs/... and so on, whichever bucket the first part of a name is then.
            raise ArtifactError(f"{ROOT_VARIABLE}={url}: names no bucket. Expected e.g. s3://bucket/prefix.")
        self.url = url.rstrip("/")
        super().__init__(cache or _cache_directory(self.url))

    def __str__(self) -> str:
        return self.url

    def publish(self, kind: Kind, artifact_id: str, path: Path, *, replace: bool, share: bool) -> Path:
        """As `ArtifactStore.publish`. Runs, workloads and comparisons cannot be replaced.

        Raises:
            ArtifactError: incomplete, the name is taken by other content, or the store cannot be reached or does not do
                what is needed.
        """
        if replace and kind in _WRITTEN_ONCE:
            raise RuntimeError(f"{kind.value}: never replaced")
        open_directory(path, kind)
        digests = directory_digests(path, kind.meta_name)
        meta = (path / kind.meta_name).read_bytes()
        manifest = self._manifest(kind, artifact_id)
        existing = None if replace else self._read(manifest)
        if existing is None:
            self._require_conditional_writes()
            for name, digest in digests.items():
                self._create_file(self._file(kind, artifact_id, digests, name), path / name, digest)
            if replace:
                self._write(manifest, meta)
            elif not self._create(manifest, meta):
                existing = self._read(manifest) or b""
        if existing is not None and existing != meta:  # equal: an answer was lost, and the retry met its own object
            where = self._shown(manifest)
            if not share or recorded_digests(existing, where) != digests:
                raise ArtifactError(
                    f"{where}: already exists{' with other content' if share else ''}. Artifacts are never overwritten;"
                    " remove its directory or use another id."
                )
            shutil.rmtree(path, ignore_errors=True)
            return self.open(kind, artifact_id)
        return super().publish(kind, artifact_id, path, replace=True, share=False)

    def open(self, kind: Kind, artifact_id: str, *, verify: bool = True, seal: str | None = None) -> Path:
        """Path of the local copy of a complete artifact, fetched where the cache lacks it or differs. Fetching always
        verifies. `seal`: as of `ArtifactStore.open`.

        Without `verify`, a copy of what is never replaced is returned without a request: as it is, or if it has the
        `seal`.

        Raises:
            ArtifactError: missing, incomplete or altered, or the store cannot be reached.
        """
        local, manifest = self.path(kind, artifact_id), self._manifest(kind, artifact_id)
        cached = local / kind.meta_name
        if not verify and kind in _WRITTEN_ONCE and cached.is_file() and seal in (None, sha256_file(cached)):
            return local
        meta = self._read(manifest)
        while meta is not None:
            if seal is not None:
                check_seal(meta, seal, self._shown(manifest))
            if cached.is_file() and cached.read_bytes() == meta:
                try:
                    return open_directory(local, kind, verify=verify)
                except ArtifactError:
                    pass  # the copy was damaged; the object store is authoritative
            try:
                return self._fetch(kind, artifact_id, meta)
            except ArtifactError:
                # Replaced while it was fetched: what was fetched belongs to neither, so look again.
                before, meta = meta, self._read(manifest)
                if meta == before:
                    raise
        raise ArtifactError(
            f"{self._shown(manifest)}: not there, so there is no complete artifact and none is read. Materialize the"
            " asset that writes it, or correct the id."
        )

    def folder(self, kind: Kind) -> Path:
        for artifact_id in self.list(kind):
            self.open(kind, artifact_id, verify=False)
        return super().folder(kind)

    def list(self, kind: Kind) -> list[str]:
        """Ids of the complete artifacts of a kind, sorted. Lists every object of the kind.

        Raises:
            ArtifactError: the store cannot be reached, or its bucket does not exist.
        """
        found = (name.split("/") for name in self._names(kind.value))
        complete = (parts[:-1] for parts in found if parts[-1] == kind.meta_name and len(parts) == id_levels(kind) + 1)
        return sorted("/".join(parts) for parts in complete)

    def has(self, kind: Kind, artifact_id: str) -> bool:
        return self._read(self._manifest(kind, artifact_id)) is not None

    def remove(self, kind: Kind, artifact_id: str) -> None:
        """As `ArtifactStore.remove`: the metadata file goes first, and without it the rest is no artifact."""
        manifest = self._manifest(kind, artifact_id)
        directory = manifest.rpartition("/")[0]
        if self._read(manifest) is None:  # to remove what is not there is no error to an object store
            raise ArtifactError(f"{self._shown(manifest)}: cannot be removed: it is not there.")
        with _access(self._shown(manifest)):
            self._fs.rm_file(manifest)
            for key in self._fs.find(directory):
                self._fs.rm_file(key)
        if super().has(kind, artifact_id):
            super().remove(kind, artifact_id)

    def set_current(self, scenario: str, slot: str, value: dict[str, Any]) -> None:
        self._write(f"{self._base}/{pointer_folder(scenario, slot)}/{new_pointer_name()}", pointer_text(value).encode())

    def pointers(self, scenario: str, slot: str, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = pointer_folder(scenario, slot)
        names = [f"{folder}/{name}" for name in self._names(folder)]
        # The one pointer of earlier versions comes last.
        for name in (*sorted(names, reverse=True), f"{folder}.json"):
            key = f"{self._base}/{name}"
            data = self._read(key)
            if data is not None:
                yield name, parse_object(data, self._shown(key), keys)

    def remove_pointer(self, name: str) -> None:
        with _access(self._shown(f"{self._base}/{name}")):
            self._fs.rm_file(f"{self._base}/{name}")

    def scenarios(self) -> Sequence[str]:
        return sorted({name.split("/")[0] for name in self._names(CURRENT)})

    def _names(self, folder: str) -> Sequence[str]:
        """Objects below a folder, relative to it, that have plain names.

        Raises:
            ArtifactError: the store cannot be reached, or its bucket does not exist.
        """
        base = f"{self._base}/{folder}"
        try:
            with _access(self._shown(base), reading=True):
                keys = self._fs.find(base)
        except FileNotFoundError as error:  # not so for a prefix without objects
            raise _no_bucket(self._shown(base)) from error
        names = [key.removeprefix(f"{base}/") for key in keys if key.startswith(f"{base}/")]
        return [name for name in names if all(map(is_plain, name.split("/")))]

    def _fetch(self, kind: Kind, artifact_id: str, meta: bytes) -> Path:
        """Copy the artifact that `meta` describes into the cache.

        Raises:
            ArtifactError: a file is missing or differs from its recorded digest.
        """
        digests = recorded_digests(meta, self._shown(self._manifest(kind, artifact_id)))
        with self.stage(kind, artifact_id) as staging:
            for name, digest in digests.items():
                key, target = self._file(kind, artifact_id, digests, name), staging.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with _access(self._shown(key), reading=True):
                        self._fs.get_file(key, str(target))
                except FileNotFoundError:
                    raise ArtifactError(
                        f"{self._shown(key)}: missing, but {kind.meta_name} lists it. Remove its directory and"
                        " materialize again."
                    ) from None
                if sha256_file(target) != digest:
                    raise ArtifactError(
                        f"{self._shown(key)}: content differs from the digest in {kind.meta_name}; it was changed after"
                        " it was written. Remove its directory and materialize again."
                    )
            (staging.path / kind.meta_name).write_bytes(meta)
            return super().publish(kind, artifact_id, staging.path, replace=True, share=False)

    def _create_file(self, key: str, path: Path, digest: str) -> None:
        """Upload a file, or find it there with the same content.

        Raises:
            ArtifactError: another file has the name.
        """
        if not self._create(key, path.read_bytes()):
            there = self._read(key)
            if there is None or sha256_bytes(there) != digest:
                raise ArtifactError(
                    f"{self._shown(key)}: already exists with other content: another writer has this id, or one that"
                    " was interrupted left it. Artifacts are never overwritten; remove its directory or use"
                    " another id."
                )

    def _require_conditional_writes(self) -> None:
        """Two writers are separated by the store's own check; one that ignores the condition would mix their files.

        Raises:
            ArtifactError
        """
        if self.url in _conditional:
            return
        probe = f"{self._base}/{_PROBE}"
        self._create(probe, b"")
        if self._create(probe, b""):
            raise ArtifactError(
                f"{self.url}: this store overwrites an object that was to be created only if absent (If-None-Match: *),"
                " so two writers could mix their files. Use one that honours it (docs/deployment.md)."
            )
        _conditional.add(self.url)

    @cached_property
    def _fs(self) -> AbstractFileSystem:
        import fsspec

        try:
            # Without a cache of listings: what another machine wrote a moment ago must be seen.
            return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]
        except ImportError as error:
            raise ArtifactError(
                f"{ROOT_VARIABLE}={self.url}: {error}. Install what this URL needs, e.g. pip install"
                " 'gst-assets[distributed]'."
            ) from error

    @property
    def _base(self) -> str:
        return self.url.partition("://")[2]

    def _shown(self, key: str) -> str:
        return f"{self.url.partition('://')[0]}://{key}"

    def _manifest(self, kind: Kind, artifact_id: str) -> str:
        """Key of the metadata file, after `path` has checked the id."""
        self.path(kind, artifact_id)
        return f"{self._base}/{kind.value}/{artifact_id}/{kind.meta_name}"

    def _file(self, kind: Kind, artifact_id: str, digests: dict[str, str], name: str) -> str:
        directory = f"{self._base}/{kind.value}/{artifact_id}"
        if kind not in _WRITTEN_ONCE:
            directory += "/" + hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
        return f"{directory}/{name}"

    def _create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one: False."""
        # s3fs turns large objects into multipart uploads, whose condition not every store checks; 5 GiB is what one PUT
        # takes.
        whole = {"chunksize": 5 * 2**29} if self.url.startswith("s3") else {}
        for attempt in range(_ATTEMPTS):
            try:
                with _access(self._shown(key)):
                    self._fs.pipe_file(key, data, mode="create", **whole)
                return True
            except FileExistsError:
                return False
            except _Conflict as conflict:  # another conditional write is under way: S3 asks to try again
                if attempt == _ATTEMPTS - 1:
                    raise ArtifactError(f"{self._shown(key)}: {conflict}. {_CHECK_ACCESS}") from None
        raise AssertionError

    def _write(self, key: str, data: bytes) -> None:
        with _access(self._shown(key)):
            self._fs.pipe_file(key, data)

    def _read(self, key: str) -> bytes | None:
        try:
            with _access(self._shown(key), reading=True):
                return self._fs.cat_file(key)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise _no_bucket(self._shown(key)) from error
            return None


class _Conflict(Exception):
    """The store could not decide a conditional write because of another one at the same time (409)."""


@contextmanager
def _access(where: str, *, reading: bool = False) -> Iterator[None]:
    """Turn what a backend raises into FileNotFoundError (reading), FileExistsError, _Conflict or one ArtifactError that
    names the object."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:  # backends raise classes of their own for networks and credentials
        if reading and isinstance(error, FileNotFoundError):
            raise
        status = _status(error)
        if status == 412:
            raise FileExistsError(where) from error
        if status == 409:
            raise _Conflict(str(error)) from error
        raise ArtifactError(
            f"{where}: cannot be {'read' if reading else 'written'} ({type(error).__name__}:"
            f" {error.__cause__ or error}). {_CHECK_ACCESS}"
        ) from error


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of s3fs."""
    response = getattr(error.__cause__, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None


def _no_bucket(where: str) -> ArtifactError:
    return ArtifactError(f"{where}: cannot be read (no such bucket). {_CHECK_ACCESS}")


def _code(error: Exception) -> object:
    """The store's own name for what is behind an error of s3fs."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _cache_directory(url: str) -> Path:
    """A folder for this URL under `GST_ARTIFACT_CACHE`, or under `tmp/object_cache/` in the checkout (of an installed
    package: in the working directory)."""
    base = read(Artifacts).cache or work_root() / "tmp" / "object_cache"
    return base / sha256_bytes(url.encode())[:16]
