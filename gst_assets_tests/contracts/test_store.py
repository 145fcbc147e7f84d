"""Artifact directories appear completely or not at all: between real processes, killed ones included."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import ArtifactStore, Kind, Staging, directory_digests, open_directory
from gst_assets.environment import ROOT_VARIABLE
from gst_assets.errors import ArtifactError
from gst_assets.provenance import PROJECT_ROOT, sha256_file

PROFILE = "cpu/tiny"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "root")


def fill(staging: Staging, text: str = "content") -> None:
    """Two files, one in a folder, and the metadata that lists them."""
    (staging.path / "data.csv").write_text(text)
    (staging.path / "figs").mkdir()
    (staging.path / "figs" / "one.txt").write_text(text * 2)
    (staging.path / staging.kind.meta_name).write_text(json.dumps({"sha256": staging.digests()}))


def commit(store: ArtifactStore, kind: Kind, artifact_id: str, text: str = "content", **how: bool) -> Path:
    with store.stage(kind, artifact_id) as staging:
        fill(staging, text)
        return staging.commit(**how)


def staged(store: ArtifactStore) -> list[str]:
    """Names left in the staging area, its own lock aside."""
    return sorted(left.name for left in (store.root / ".staging").iterdir() if left.name != ".lock")


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_commit_open_list(store: ArtifactStore, kind: Kind) -> None:
    artifact_id = PROFILE if kind is Kind.PROFILE else "one"
    assert store.list(kind) == []
    final = commit(store, kind, artifact_id)
    assert final == store.path(kind, artifact_id) == store.open(kind, artifact_id) == open_directory(final, kind)
    assert store.list(kind) == [artifact_id]
    assert (final / "figs" / "one.txt").read_text() == "contentcontent"
    assert staged(store) == []


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """`folder` may not be read in the block; as another user where this one may read everything."""
    before = os.geteuid()
    for parent in [folder, *folder.parents][1:-1]:
        if parent.stat().st_uid == before and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    folder.chmod(0o000)
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
        folder.chmod(0o700)


def test_what_cannot_be_read_is_an_error_and_not_taken_for_empty(store: ArtifactStore) -> None:
    commit(store, Kind.PROFILE, PROFILE)
    run = commit(store, Kind.REAL_RUN, "run")
    store.set_current("smoke", "workload", {"workload_id": "w"})
    root = store.root
    for folder, kind in (
        (root, Kind.REAL_RUN),
        (root / "real_runs", Kind.REAL_RUN),
        (root / "vidur_profiling" / "cpu", Kind.PROFILE),
    ):
        with (
            closed(folder),
            pytest.raises(ArtifactError, match=r"cannot be listed \(Permission denied\)\. Check the disk"),
        ):
            store.list(kind)
    slot = root / "current" / "smoke" / "workload"
    with closed(slot), pytest.raises(ArtifactError, match=r"smoke/workload: cannot be listed \(Permission"):
        store.current("smoke", "workload")
    with closed(next(slot.iterdir())), pytest.raises(ArtifactError, match=r"\.json: cannot be read \(Permission"):
        store.current("smoke", "workload")
    # One closed directory hides no other, and is itself not taken for an incomplete one.
    commit(store, Kind.REAL_RUN, "second")
    with closed(run):
        assert store.list(Kind.REAL_RUN) == ["run", "second"]
        with pytest.raises(ArtifactError, match=r"/run: cannot be read \(Permission denied\)"):
            store.open(Kind.REAL_RUN, "run")
    with closed(run / "figs"), pytest.raises(ArtifactError, match=r"figs: cannot be listed \(Permission denied\)"):
        directory_digests(run, "run_meta.json")


@pytest.mark.parametrize("kind", list(Kind))
def test_a_folder_that_is_none_is_an_error(store: ArtifactStore, kind: Kind) -> None:
    store.root.mkdir()
    (store.root / kind.value).symlink_to(store.root / kind.value)
    with pytest.raises(ArtifactError, match=r"cannot be listed \(Too many levels of symbolic links\)"):
        store.list(kind)
    (store.root / kind.value).unlink()
    (store.root / kind.value).touch()
    with pytest.raises(ArtifactError, match=r"cannot be listed \(Not a directory\)"):
        store.list(kind)


def test_nothing_is_visible_before_commit_nor_left_without_it(store: ArtifactStore) -> None:
    with store.stage(Kind.REAL_RUN, "run") as staging:
        fill(staging)
        assert store.list(Kind.REAL_RUN) == []
        with pytest.raises(ArtifactError, match="no such directory"):
            store.open(Kind.REAL_RUN, "run")
    with pytest.raises(KeyboardInterrupt), store.stage(Kind.REAL_RUN, "run") as staging:
        fill(staging)
        raise KeyboardInterrupt
    assert store.list(Kind.REAL_RUN) == [] and staged(store) == []


def test_commit_without_metadata_is_refused(store: ArtifactStore) -> None:
    with store.stage(Kind.REAL_RUN, "run") as staging:
        (staging.path / "data.csv").write_text("x")
        with pytest.raises(ArtifactError, match=r"run_meta\.json was not written, refusing to commit an incomplete"):
            staging.commit()
    assert not store.path(Kind.REAL_RUN, "run").exists()


def test_commit_of_a_file_that_the_metadata_does_not_list_is_refused(store: ArtifactStore) -> None:
    with store.stage(Kind.REAL_RUN, "run") as staging:
        fill(staging)
        (staging.path / "late.csv").write_text("x")
        with pytest.raises(ArtifactError, match=r"sha256 does not list late\.csv"):
            staging.commit()
    assert store.list(Kind.REAL_RUN) == []


def test_existing_content_is_never_overwritten(store: ArtifactStore) -> None:
    final = commit(store, Kind.WORKLOAD, "one", "old")
    for how in ({}, {"share": True}):
        with pytest.raises(ArtifactError, match=r"already exists.*Artifacts are never overwritten"):
            commit(store, Kind.WORKLOAD, "one", "new", **how)
    assert (store.open(Kind.WORKLOAD, "one") / "data.csv").read_text() == "old"
    inode = final.stat().st_ino
    assert commit(store, Kind.WORKLOAD, "one", "old", share=True) == final
    assert final.stat().st_ino == inode
    assert staged(store) == []


def test_sharing_needs_a_complete_directory(store: ArtifactStore) -> None:
    (commit(store, Kind.WORKLOAD, "one") / "workload_meta.json").unlink()
    with pytest.raises(ArtifactError, match=r"workload_meta\.json missing, so this is not a complete artifact"):
        commit(store, Kind.WORKLOAD, "one", share=True)


def test_replace_swaps_the_content(store: ArtifactStore) -> None:
    commit(store, Kind.PROFILE, PROFILE, "old", replace=True)
    commit(store, Kind.PROFILE, PROFILE, "new", replace=True)
    assert (store.open(Kind.PROFILE, PROFILE) / "data.csv").read_text() == "new"
    assert staged(store) == []


def test_a_file_in_the_way_is_refused(store: ArtifactStore) -> None:
    store.path(Kind.REAL_RUN, "run").parent.mkdir(parents=True)
    store.path(Kind.REAL_RUN, "run").write_text("in the way")
    for how in ({}, {"replace": True}, {"share": True}):
        with pytest.raises(ArtifactError, match="expected a directory, found a file"):
            commit(store, Kind.REAL_RUN, "run", **how)


def test_adopt_commits_what_another_process_wrote(store: ArtifactStore) -> None:
    with store.stage(Kind.REAL_RUN, "group") as staging:
        repeat = Staging(store, Kind.REAL_RUN, "repeat", staging.path / "repeat")
        repeat.path.mkdir()
        with pytest.raises(ArtifactError, match=r"run_meta\.json missing"):
            store.adopt(Kind.REAL_RUN, "repeat", repeat.path)
        fill(repeat)
        final = store.adopt(Kind.REAL_RUN, "repeat", repeat.path)
    assert store.open(Kind.REAL_RUN, "repeat") == final
    assert store.list(Kind.REAL_RUN) == ["repeat"] and staged(store) == []


def _overwrite(path: Path) -> None:
    path.write_text("changed")


def _swap_case(path: Path) -> None:
    path.write_text(path.read_text().upper())


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("data.csv", _overwrite, "content differs from the digest in run_meta.json"),
        ("figs/one.txt", _swap_case, "content differs from the digest in run_meta.json"),
        ("figs/one.txt", Path.unlink, "missing, but run_meta.json lists it"),
        ("run_meta.json", Path.unlink, "run_meta.json missing, so this is not a complete artifact"),
        ("run_meta.json", _overwrite, "line 1: not valid JSON"),
        ("run_meta.json", lambda path: path.write_text("[1]"), "expected a JSON object, found list"),
        ("run_meta.json", lambda path: path.write_text("{}"), "key sha256: expected an object"),
        ("run_meta.json", lambda path: path.write_text('{"sha256": {"../x": "00"}}'), "'../x' is not a file of this"),
        ("run_meta.json", lambda path: path.write_bytes(b'{"\xff"'), "not UTF-8"),
    ],
)
def test_an_altered_directory_is_not_opened(
    store: ArtifactStore, name: str, damage: Callable[[Path], None], says: str
) -> None:
    final = commit(store, Kind.REAL_RUN, "run")
    damage(final / name)
    with pytest.raises(ArtifactError) as error:
        store.open(Kind.REAL_RUN, "run")
    assert says in str(error.value) and str(final) in str(error.value)


def test_incomplete_and_hidden_directories_are_not_listed(store: ArtifactStore) -> None:
    final = commit(store, Kind.REAL_RUN, "run")
    (final.parent / "partial").mkdir()
    (final.parent / ".hidden").mkdir()
    (final.parent / ".hidden" / "run_meta.json").write_text("{}")
    (final.parent / "file").write_text("")
    assert store.list(Kind.REAL_RUN) == ["run"]


@pytest.mark.parametrize(
    "artifact_id",
    ["", ".", "..", "../x", "a/../b", "/etc", "a/b", "a/", "/a", ".hidden", "a\\b", "a\0b", "a\nb", "x" * 300],
)
def test_ids_that_lead_elsewhere_are_refused(store: ArtifactStore, artifact_id: str) -> None:
    for kind in (Kind.REAL_RUN, Kind.PROFILE):
        if kind is Kind.PROFILE and artifact_id == "a/b":
            continue
        with pytest.raises(ArtifactError, match="is not a usable"):
            store.path(kind, artifact_id)
        with pytest.raises(ArtifactError, match="is not a usable"), store.stage(kind, artifact_id):
            pass
    with pytest.raises(ArtifactError, match="plain names"):
        store.set_current(artifact_id, "slot", {})
    with pytest.raises(ArtifactError, match="plain names"):
        store.current("scenario", artifact_id)
    assert not store.root.exists()


def test_profiles_need_hardware_and_model(store: ArtifactStore) -> None:
    for artifact_id in ("cpu", "cpu/tiny/x"):
        with pytest.raises(ArtifactError, match="expected <hardware>/<model>"):
            store.path(Kind.PROFILE, artifact_id)


def test_current_is_what_was_last_set_and_the_former_stay_behind_it(store: ArtifactStore) -> None:
    assert store.current("smoke", "workload") is None and store.scenarios() == []
    store.set_current("smoke", "workload", {"workload_id": "a"})
    store.set_current("smoke", "workload", {"workload_id": "é"})
    store.set_current("smoke", "real_runs", {"run_ids": [1]})
    assert store.current("smoke", "workload") == {"workload_id": "é"}
    pointers = list(store.pointers("smoke", "workload"))
    assert [value["workload_id"] for _, value in pointers] == ["é", "a"]
    assert store.scenarios() == ["smoke"] and staged(store) == []
    store.remove_pointer(pointers[0][0])
    assert store.current("smoke", "workload") == {"workload_id": "a"}
    with pytest.raises(ArtifactError, match="cannot be removed"):
        store.remove_pointer(pointers[0][0])


def test_the_pointer_of_an_earlier_version_is_the_oldest(store: ArtifactStore) -> None:
    (store.root / "current" / "smoke").mkdir(parents=True)
    (store.root / "current" / "smoke" / "workload.json").write_text('{"workload_id": "old"}')
    assert store.current("smoke", "workload") == {"workload_id": "old"}
    store.set_current("smoke", "workload", {"workload_id": "new"})
    assert [value["workload_id"] for _, value in store.pointers("smoke", "workload")] == ["new", "old"]


def test_a_sealed_artifact_is_refused_once_its_metadata_changed(store: ArtifactStore) -> None:
    final = commit(store, Kind.COMPARISON, "one")
    meta = final / "run_meta.json"
    seal = sha256_file(meta)
    assert store.open(Kind.COMPARISON, "one", seal=seal) == final
    meta.write_text(meta.read_text().replace("{", '{"verdict": "pass", ', 1))
    assert store.open(Kind.COMPARISON, "one") == final  # every file still has its digest
    for verify in (True, False):
        with pytest.raises(ArtifactError) as error:
            store.open(Kind.COMPARISON, "one", verify=verify, seal=seal)
        assert str(error.value).startswith(f"{meta}: changed after it was written: its sha256 is ")
        assert f"Restore it from a backup, or remove {final} and materialize again." in str(error.value)


def test_removing_an_artifact(store: ArtifactStore) -> None:
    final = commit(store, Kind.REAL_RUN, "run")
    assert store.has(Kind.REAL_RUN, "run")
    store.remove(Kind.REAL_RUN, "run")
    assert not final.exists() and not store.has(Kind.REAL_RUN, "run") and staged(store) == []
    with pytest.raises(ArtifactError, match=r"run: cannot be removed \(No such file"):
        store.remove(Kind.REAL_RUN, "run")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1: not valid JSON"),
        ('{\n"a":', "line 2: not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "key workload_id missing, found no key"),
    ],
)
def test_a_broken_current_file_is_named(store: ArtifactStore, content: str, says: str) -> None:
    store.set_current("smoke", "workload", {})
    (path,) = (store.root / "current" / "smoke" / "workload").iterdir()
    path.write_text(content)
    with pytest.raises(ArtifactError) as error:
        store.current("smoke", "workload", "workload_id")
    assert str(error.value).startswith(f"{path}: {says}") and "materialize again" in str(error.value)


def test_root_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert open_store().root == tmp_path
    monkeypatch.delenv(ROOT_VARIABLE)
    assert open_store().root == PROJECT_ROOT / "tmp"
    with pytest.raises(ArtifactError, match=r"s3://bucket: a URL, expected a directory path"):
        ArtifactStore("s3://bucket")
    monkeypatch.setenv(ROOT_VARIABLE, "s3://bucket/prefix/")
    assert str(open_store()) == "s3://bucket/prefix"
    for url in ("sftp://host/x", "http://host/x", "file:///tmp/x", "memory://x"):
        with pytest.raises(
            ArtifactError, match=f"{ROOT_VARIABLE}={url}: expected a directory path or the URL of an ob"
        ):
            open_store(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3:///prefix", "gs:///a/b", "az:////"])
def test_a_url_without_a_bucket_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for the root of all buckets, where the first part of a name would be one."""
    monkeypatch.setenv(ROOT_VARIABLE, url)
    with pytest.raises(ArtifactError, match=f"{ROOT_VARIABLE}={url}: names no bucket. Expected e.g. s3://bucket"):
        open_store()


# --- a disk that fails ------------------------------------------------------------------------------------------------


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", Path("/proc/no_such_place")):
        store = ArtifactStore(root)
        with pytest.raises(ArtifactError, match=f"{root}.*cannot be written .*{ROOT_VARIABLE}"):
            commit(store, Kind.REAL_RUN, "run")
        with pytest.raises(ArtifactError, match=f"{root}.*cannot be written .*{ROOT_VARIABLE}"):
            store.set_current("smoke", "workload", {})
    assert ArtifactStore(Path("/proc/no_such_place")).list(Kind.REAL_RUN) == []


_TOO_BIG = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with store.stage(Kind.REAL_RUN, "run") as staging:
        (staging.path / "data.csv").write_text("x" * 5000)
except ArtifactError as error:
    print(error)
"""


def test_a_disk_that_fills_up_while_staging(store: ArtifactStore) -> None:
    with process(_TOO_BIG, store) as writer:
        message = writer.communicate(timeout=6000)[0]
    assert "cannot be written (File too large). Check that GST_ARTIFACT_ROOT" in message
    assert store.list(Kind.REAL_RUN) == [] and staged(store) == []


def test_other_errors_of_the_block_pass_unchanged(store: ArtifactStore) -> None:
    with pytest.raises(FileNotFoundError), store.stage(Kind.REAL_RUN, "run"):
        Path("/no/such/file").read_text()
    with pytest.raises(ArtifactError, match="No space left"), store.stage(Kind.REAL_RUN, "run"):
        raise OSError(errno.ENOSPC, "No space left on device")


# --- several processes ------------------------------------------------------------------------------------------------

_PRELUDE = """
import json, os, sys, time
from pathlib import Path
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError
store, me = ArtifactStore(sys.argv[1]), sys.argv[2]

def fill(staging, text):
    (staging.path / "data.csv").write_text(text)
    (staging.path / "more.csv").write_text(text * 2000)
    (staging.path / staging.kind.meta_name).write_text(json.dumps({"sha256": staging.digests(), "by": me}))

def say(text):
    print(text, flush=True)
"""


@contextmanager
def process(code: str, store: ArtifactStore, name: str = "me") -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code` on the same root; killed when the block ends."""
    running = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code, str(store.root), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def _line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


_COMMIT_MANY = """
say("ready")
sys.stdin.readline()
for number in range(40):
    with store.stage(Kind.WORKLOAD, f"w{number}") as staging:
        fill(staging, "same" if share else me)
        try:
            staging.commit(share=share)
            say(f"{number} committed")
        except ArtifactError as error:
            say(f"{number} {error}")
"""


@pytest.mark.parametrize("share", [False, True])
def test_two_processes_that_commit_the_same_ids(store: ArtifactStore, share: bool) -> None:
    code = f"share = {share}\n{_COMMIT_MANY}"
    with process(code, store, "one") as one, process(code, store, "two") as two:
        both = {"one": one, "two": two}
        for running in both.values():
            assert _line(running) == "ready"
        for running in both.values():
            assert running.stdin is not None
            running.stdin.write("go\n")
            running.stdin.flush()
        said = {name: running.communicate(timeout=600)[0].splitlines() for name, running in both.items()}
    for number in range(40):
        outcome = {name: lines[number] for name, lines in said.items()}
        winners = [name for name, line in outcome.items() if line == f"{number} committed"]
        final = store.open(Kind.WORKLOAD, f"w{number}")
        if share:
            assert winners == ["one", "two"]
        else:
            assert len(winners) == 1, outcome
            assert (final / "data.csv").read_text() == winners[0]
            assert json.loads((final / "workload_meta.json").read_text())["by"] == winners[0]
            assert any("already exists" in line for line in outcome.values())
    assert staged(store) == []


_STAGE_AND_WAIT = """
with store.stage(Kind.REAL_RUN, "run") as staging:
    fill(staging, me)
    say(staging.path)
    sys.stdin.readline()
    staging.commit()
    say("committed")
"""


def test_a_killed_process_leaves_no_run_and_the_next_stage_sweeps_it(store: ArtifactStore) -> None:
    with process(_STAGE_AND_WAIT, store) as running:
        left = Path(_line(running))
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert (left / "run_meta.json").is_file()  # whole, and still no run
    assert store.list(Kind.REAL_RUN) == []
    commit(store, Kind.REAL_RUN, "run")
    assert not left.exists() and staged(store) == []
    assert store.list(Kind.REAL_RUN) == ["run"]


def test_a_living_process_is_not_swept(store: ArtifactStore) -> None:
    with process(_STAGE_AND_WAIT, store) as running:
        living = Path(_line(running))
        commit(store, Kind.REAL_RUN, "other")
        assert living.is_dir()
        assert running.communicate("go\n", timeout=6000)[0].strip() == "committed"
    assert store.list(Kind.REAL_RUN) == ["other", "run"]
    store.open(Kind.REAL_RUN, "run")


def test_a_left_directory_is_swept_though_its_process_number_is_in_use_again(store: ArtifactStore) -> None:
    commit(store, Kind.REAL_RUN, "one")
    left = store.root / ".staging" / f"{os.uname().nodename}.{os.getpid()}.00000000"
    left.mkdir()
    commit(store, Kind.REAL_RUN, "two")
    assert not left.exists()


_COMMIT_FOREVER = """
say("ready")
number = 0
while True:
    with store.stage(Kind.REAL_RUN, f"run{number}") as staging:
        fill(staging, me)
        staging.commit()
    store.set_current("smoke", "real_runs", {"last": number, "pad": "x" * 5000})
    say(number)
    number += 1
"""


def test_killed_at_any_moment_what_is_listed_is_whole(store: ArtifactStore) -> None:
    """Before the first has been committed, and later."""
    for delay_s, after in ((0.02, 0), (0.05, 0), (0.0, 1), (0.06, 3)):
        first = int(delay_s * 1e6)
        with process(_COMMIT_FOREVER.replace("number = 0", f"number = {first}"), store) as running:
            assert _line(running) == "ready"
            assert [_line(running) for _ in range(after)] == [str(first + place) for place in range(after)]
            time.sleep(delay_s)
        for run_id in store.list(Kind.REAL_RUN):
            store.open(Kind.REAL_RUN, run_id)
        last = store.current("smoke", "real_runs")
        assert last is None or f"run{last['last']}" in store.list(Kind.REAL_RUN)
    assert store.list(Kind.REAL_RUN)


_REPLACE_MANY = """
number, enough = -1, Path(sys.argv[1]) / "enough"
while number < 40 or not enough.exists():
    number += 1
    with store.stage(Kind.PROFILE, "cpu/tiny") as staging:
        fill(staging, f"{number};")
        staging.commit(replace=True)
    if number == 0:
        say("first")
    store.set_current("smoke", "profile", {"number": number, "pad": "x" * 20000})
say(number)
"""


def test_a_reader_finds_a_complete_directory_while_it_is_replaced(store: ArtifactStore) -> None:
    """The writer goes on until it was read often enough, however the two take turns."""
    reads, seen, numbers = 0, set(), []
    hung = time.monotonic() + 600
    with process(_REPLACE_MANY, store) as writer:
        assert _line(writer) == "first"
        while writer.poll() is None and time.monotonic() < hung:
            directory = store.open(Kind.PROFILE, PROFILE)
            assert store.list(Kind.PROFILE) == [PROFILE]
            seen.add(directory.stat().st_ino)
            pointer = store.current("smoke", "profile")
            numbers.append(pointer["number"] if pointer else -1)
            reads += 1
            if reads >= 20 and len(seen) > 1:
                (store.root / "enough").touch()
        last = _line(writer)
    assert reads > 1 and len(seen) > 1
    assert numbers == sorted(numbers)
    assert (store.open(Kind.PROFILE, PROFILE) / "data.csv").read_text() == f"{last};"
