"""The store while every call fails in turn: EIO, ENOSPC, EACCES, and the end of the process; what a later reader finds
is whole and true."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gst_assets.contracts.object_store import ObjectStore
from gst_assets.contracts.store import ArtifactStore, Kind, Staging, open_directory
from gst_assets.errors import ArtifactError
from gst_assets_tests.contracts.faults import CRASHED, ERRORS, Crash, Faults, FaultyObjects, injected

PROFILE = "cpu/tiny"
OLD, NEW = "old", "new"
Work = Callable[[ArtifactStore], object]


def fill(staging: Staging, text: str) -> None:
    (staging.path / "data.csv").write_text(text * 3)
    (staging.path / "figs").mkdir()
    (staging.path / "figs" / "one.txt").write_text(text)
    (staging.path / staging.kind.meta_name).write_text(json.dumps({"sha256": staging.digests(), "by": text}))


def commit(store: ArtifactStore, kind: Kind, artifact_id: str, text: str, **how: bool) -> None:
    with store.stage(kind, artifact_id) as staging:
        fill(staging, text)
        staging.commit(**how)


def prepared(store: ArtifactStore) -> None:
    """The state before: one artifact of each sort, and a pointer."""
    commit(store, Kind.REAL_RUN, OLD, OLD)
    commit(store, Kind.WORKLOAD, OLD, OLD)
    commit(store, Kind.PROFILE, PROFILE, OLD, replace=True)
    store.set_current("smoke", "real_runs", {"run_ids": [OLD], "pad": "x" * 9000})


def measure(store: ArtifactStore) -> None:
    commit(store, Kind.REAL_RUN, NEW, NEW)
    store.set_current("smoke", "real_runs", {"run_ids": [NEW], "pad": "y" * 9000})


def adopt(store: ArtifactStore) -> None:
    with store.stage(Kind.REAL_RUN, "group") as staging:
        inner = Staging(store, Kind.REAL_RUN, NEW, staging.path / NEW)
        inner.path.mkdir()
        fill(inner, NEW)
        store.adopt(Kind.REAL_RUN, NEW, inner.path)


def replace(store: ArtifactStore) -> None:
    commit(store, Kind.PROFILE, PROFILE, NEW, replace=True)


def share(store: ArtifactStore) -> None:
    commit(store, Kind.WORKLOAD, OLD, OLD, share=True)


def remove(store: ArtifactStore) -> None:
    store.remove(Kind.REAL_RUN, OLD)


def forget(store: ArtifactStore) -> None:
    (name, _), *_ = store.pointers("smoke", "real_runs")
    store.remove_pointer(name)


WRITES: dict[str, Work] = {work.__name__: work for work in (measure, adopt, replace, share, remove, forget)}


def seen(store: ArtifactStore) -> dict[str, Any]:
    """Everything that a reader can see; fails if anything of it is not whole."""
    found: dict[str, Any] = {}
    for kind in (Kind.REAL_RUN, Kind.WORKLOAD, Kind.PROFILE):
        for name in store.list(kind):
            directory = store.open(kind, name)
            text = json.loads((directory / kind.meta_name).read_text())["by"]
            assert (directory / "data.csv").read_text() == text * 3, f"{directory}: mixed"
            assert (directory / "figs" / "one.txt").read_text() == text, f"{directory}: mixed"
            found[f"{kind.value}/{name}"] = text
    found["pointers"] = [value["run_ids"][0] for _, value in store.pointers("smoke", "real_runs")]
    return found


def after(work: str) -> dict[str, Any]:
    """What is to be seen once `work` is done."""
    before = {"real_runs/old": OLD, "workloads/old": OLD, f"vidur_profiling/{PROFILE}": OLD, "pointers": [OLD]}
    changes: dict[str, dict[str, Any]] = {
        "measure": {"real_runs/new": NEW, "pointers": [NEW, OLD]},
        "adopt": {"real_runs/new": NEW},
        "replace": {f"vidur_profiling/{PROFILE}": NEW},
        "share": {},
        "remove": {"real_runs/old": None},
        "forget": {"pointers": []},
    }
    both = before | changes[work]
    return {name: value for name, value in both.items() if value is not None}


def half_visible(root: Path) -> list[Path]:
    """Directories where artifacts are that are no complete ones."""
    found = []
    for kind, pattern in ((Kind.REAL_RUN, "*"), (Kind.WORKLOAD, "*"), (Kind.PROFILE, "*/*")):
        for path in (root / kind.value).glob(pattern):
            try:
                open_directory(path, kind)
            except ArtifactError:
                found.append(path)
    return found


def check(store: ArtifactStore, work: str, *, succeeded: bool) -> None:
    """What is seen is as before or as after, each part of it; and exactly as after where the work said that it was
    done."""
    found, before, done = seen(store), after("share"), after(work)
    for name in before.keys() | done.keys() | found.keys():
        assert found.get(name) in (before.get(name), done.get(name)), (name, found)
    if succeeded:
        assert found == done
    if found.get("pointers", [])[:1] == [NEW]:
        assert "real_runs/new" in found, "the pointer leads nowhere"


# --- the local store --------------------------------------------------------------------------------------------------


def crashed(store: ArtifactStore, work: Work, at: int) -> bool:
    """Do `work` in a process that ends at call `at`; whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            with injected(Faults(at)):
                work(store)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CRASHED


@pytest.fixture
def area() -> Iterator[Path]:
    """In memory where there is such a place: thousands of directories are flushed to it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_which_any_call_fails_leaves_all_or_nothing(area: Path, name: str) -> None:
    work, pristine = WRITES[name], ArtifactStore(area / "pristine")
    prepared(pristine)
    failed = 0
    for error in (*ERRORS, None):
        at = 0
        while True:
            root = area / "root"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(pristine.root, root)
            store, faults, succeeded = ArtifactStore(root), Faults(at, error), False
            if error is None:
                if not crashed(store, work, at):
                    break
            else:
                try:
                    with injected(faults):
                        work(store)
                    succeeded = True
                except ArtifactError as told:
                    assert str(told).startswith(str(root)), told
                if len(faults.calls) <= at:
                    break
            failed, at = failed + 1, at + 1
            check(store, name, succeeded=succeeded)
            assert half_visible(root) == []
            # Whatever was left is no obstacle, and is swept by the next to write.
            commit(store, Kind.REAL_RUN, "next", "next")
            assert [left.name for left in (root / ".staging").iterdir()] == [".lock"]
    assert failed >= 4 * 6
    print(f"{name}: {failed} calls failed")


READS: dict[str, Work] = {
    "list": lambda store: [store.list(kind) for kind in (Kind.REAL_RUN, Kind.PROFILE)],
    "open": lambda store: store.open(Kind.REAL_RUN, OLD),
    "open_unverified": lambda store: store.open(Kind.PROFILE, PROFILE, verify=False),
    "has": lambda store: store.has(Kind.REAL_RUN, OLD),
    "pointers": lambda store: [value for _, value in store.pointers("smoke", "real_runs")],
    "scenarios": lambda store: store.scenarios(),
    "seen": seen,
}


def test_a_read_of_which_any_call_fails_is_true_or_an_error(area: Path) -> None:
    store = ArtifactStore(area / "root")
    prepared(store)
    failed = refused = 0
    for name, work in READS.items():
        true = work(store)
        for error in ERRORS:
            at = 0
            while True:
                faults = Faults(at, error)
                try:
                    with injected(faults):
                        assert work(store) == true, f"{name}: a wrong read"
                except ArtifactError as told:
                    refused += 1
                    assert str(store.root) in str(told)
                except OSError:
                    # The reader's own, of a file in a directory that was opened well.
                    assert name == "seen"
                if len(faults.calls) <= at:
                    break
                failed, at = failed + 1, at + 1
    assert refused > failed / 2 > 90
    print(f"reads: {failed} calls failed, {refused} refused")


# --- the object store -------------------------------------------------------------------------------------------------


def errors() -> list[tuple[BaseException, bool]]:
    """What may come of a request, and whether it took effect all the same."""
    made: list[BaseException] = [
        OSError(5, "Input/output error"),
        PermissionError(13, "Denied"),
        TimeoutError("no answer"),
    ]
    return [(one, lost) for one in (*made, Crash()) for lost in (False, True)]


class Objects(MemoryFileSystem):
    """An object store of its own in memory, whose keys begin with the bucket as those of S3 do. It creates an object
    only if absent."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        return [key.removeprefix("/") for key in self.store if key.startswith(f"/{path}/")]


def test_an_object_store_of_which_any_call_fails(area: Path) -> None:
    failed = machines = 0

    def machine(objects: object) -> ObjectStore:
        nonlocal machines
        machines += 1
        store = ObjectStore("s3://bucket/prefix", area / f"cache{machines}")
        store.__dict__["_fs"] = objects
        return store

    for name, work in WRITES.items():
        for error, answer_lost in errors():
            at = 0
            while True:
                objects = Objects()
                prepared(machine(objects))
                faulty = FaultyObjects(objects, at, error, answer_lost)
                store, succeeded = machine(faulty), False
                try:
                    work(store)
                    succeeded = True
                except ArtifactError as told:
                    assert "s3://bucket/prefix/" in str(told), told
                except Crash:
                    pass
                if len(faulty.calls) <= at:
                    break
                failed, at = failed + 1, at + 1
                check(machine(objects), name, succeeded=succeeded)
                assert half_visible(store.root) == []
                shutil.rmtree(area)
                area.mkdir()
    assert failed > 150
    print(f"object store: {failed} calls failed")


def test_a_read_of_an_object_store_of_which_any_call_fails_is_true_or_an_error(area: Path) -> None:
    objects, failed = Objects(), 0
    written = ObjectStore("s3://bucket/prefix", area / "writer")
    written.__dict__["_fs"] = objects
    prepared(written)
    for name, work in READS.items():
        for error, answer_lost in errors():
            at = 0
            while True:
                store = ObjectStore("s3://bucket/prefix", area / f"cache{failed}")
                store.__dict__["_fs"] = faulty = FaultyObjects(objects, at, error, answer_lost)
                try:
                    found, true = work(store), work(written)
                    assert name.startswith("open") or found == true, f"{name}: a wrong read"
                except ArtifactError as told:
                    assert "s3://bucket/prefix/" in str(told), told
                except Crash:
                    pass
                assert half_visible(store.root) == []
                if len(faulty.calls) <= at:
                    break
                failed, at = failed + 1, at + 1
    assert failed > 100
    print(f"object store, reads: {failed} calls failed")
