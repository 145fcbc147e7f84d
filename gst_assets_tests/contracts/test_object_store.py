"""Artifacts in a real S3-compatible store (Ceph's object gateway on loopback): between processes and machines, killed
ones included.

A second machine is a second cache folder: nothing but the bucket is shared.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gst_assets.contracts.object_store import ObjectStore
from gst_assets.contracts.store import ArtifactStore, Kind, Staging
from gst_assets.environment import CACHE_VARIABLE, ROOT_VARIABLE
from gst_assets.errors import ArtifactError
from gst_assets.provenance import PROJECT_ROOT, sha256_file
from gst_assets.testing.services import S3

pytestmark = pytest.mark.services

PROFILE = "cpu/tiny"


class Machines:
    """Stores on one URL whose caches are apart, and raw access to the bucket."""

    def __init__(self, s3: S3, url: str, area: Path) -> None:
        self.s3, self.url, self.area, self._count = s3, url, area, 0

    def store(self) -> ObjectStore:
        """A machine that has read nothing yet."""
        self._count += 1
        return ObjectStore(self.url, self.area / f"cache{self._count}")

    def objects(self) -> list[str]:
        """Objects below the URL, relative to it."""
        fs, base = self.store()._fs, self.url.removeprefix("s3://")
        return sorted(key.removeprefix(f"{base}/") for key in fs.find(base))

    def write(self, key: str, data: bytes | None) -> None:
        """Change or remove (None) an object behind the store's back."""
        fs, path = self.store()._fs, f"{self.url.removeprefix('s3://')}/{key}"
        fs.rm_file(path) if data is None else fs.pipe_file(path, data)


@pytest.fixture
def machines(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return Machines(s3, s3.new_root(), tmp_path)


def fill(staging: Staging, text: str = "content") -> None:
    (staging.path / "data.csv").write_text(text)
    (staging.path / "figs").mkdir()
    (staging.path / "figs" / "one.txt").write_text(text * 2)
    (staging.path / staging.kind.meta_name).write_text(json.dumps({"sha256": staging.digests()}))


def commit(store: ArtifactStore, kind: Kind, artifact_id: str, text: str = "content", **how: bool) -> Path:
    with store.stage(kind, artifact_id) as staging:
        fill(staging, text)
        return staging.commit(**how)


# --- one writer, other readers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.REAL_RUN, Kind.WORKLOAD, Kind.PROFILE])
def test_what_one_machine_commits_another_reads(machines: Machines, kind: Kind) -> None:
    artifact_id = PROFILE if kind is Kind.PROFILE else "one"
    writer, reader = machines.store(), machines.store()
    assert reader.list(kind) == []
    final = commit(writer, kind, artifact_id)
    assert final == writer.path(kind, artifact_id) == writer.open(kind, artifact_id)
    assert reader.list(kind) == [artifact_id]
    directory = reader.open(kind, artifact_id)
    assert directory != final and (directory / "figs" / "one.txt").read_text() == "contentcontent"
    assert reader.folder(kind) / artifact_id == directory
    assert [path.name for path in (reader.root / ".staging").iterdir()] == [".lock"]


def test_files_have_the_names_of_the_contract(machines: Machines) -> None:
    store = machines.store()
    commit(store, Kind.REAL_RUN, "one")
    commit(store, Kind.PROFILE, PROFILE)
    store.set_current("smoke", "real_runs", {"run_ids": ["one"]})
    plain = re.compile(r"(?<=vidur_profiling/cpu/tiny/)[0-9a-f]{16}(?=/)")
    named = [re.sub(r"/\d{20}-[0-9a-f]{8}\.json$", "/<time>.json", key) for key in machines.objects()]
    assert sorted(plain.sub("<digest>", key) for key in named) == [
        ".create-if-absent",
        "current/smoke/real_runs/<time>.json",
        "real_runs/one/data.csv",
        "real_runs/one/figs/one.txt",
        "real_runs/one/run_meta.json",
        "vidur_profiling/cpu/tiny/<digest>/data.csv",
        "vidur_profiling/cpu/tiny/<digest>/figs/one.txt",
        "vidur_profiling/cpu/tiny/run_meta.json",
    ]


def test_pointers_are_shared(machines: Machines) -> None:
    one, two = machines.store(), machines.store()
    assert two.current("smoke", "workload") is None
    one.set_current("smoke", "workload", {"workload_id": "a"})
    assert two.current("smoke", "workload") == {"workload_id": "a"}
    two.set_current("smoke", "workload", {"workload_id": "é"})
    assert one.current("smoke", "workload") == {"workload_id": "é"}
    assert [value["workload_id"] for _, value in two.pointers("smoke", "workload")] == ["é", "a"]
    machines.write("current/smoke/workload.json", b'{"workload_id": "of an earlier version"}')
    assert [value["workload_id"] for _, value in one.pointers("smoke", "workload")][-1] == "of an earlier version"
    assert one.scenarios() == ["smoke"]
    name, _ = next(one.pointers("smoke", "workload"))
    machines.write(name, b"[]")
    with pytest.raises(ArtifactError, match=f"{machines.url}/{name}: expected a JSON object"):
        one.current("smoke", "workload")
    two.remove_pointer(name)
    assert one.current("smoke", "workload") == {"workload_id": "a"}


def test_a_sealed_artifact_is_refused_once_its_metadata_changed(machines: Machines) -> None:
    writer = machines.store()
    meta = commit(writer, Kind.COMPARISON, "one") / "run_meta.json"
    seal, changed = sha256_file(meta), meta.read_bytes().replace(b"{", b'{"verdict": "pass", ', 1)
    assert machines.store().open(Kind.COMPARISON, "one", seal=seal).is_dir()
    machines.write("comparisons/one/run_meta.json", changed)
    for reader, verify in ((machines.store(), True), (machines.store(), False), (writer, True)):
        with pytest.raises(ArtifactError, match=f"{machines.url}/comparisons/one/run_meta.json: changed after it was"):
            reader.open(Kind.COMPARISON, "one", verify=verify, seal=seal)
    # A damaged copy is no reason to refuse: the object store says what is true.
    machines.write("comparisons/one/run_meta.json", meta.read_bytes())
    meta.write_bytes(changed)
    assert writer.open(Kind.COMPARISON, "one", verify=False, seal=seal) == meta.parent
    assert sha256_file(meta) == seal


def test_removing_an_artifact(machines: Machines) -> None:
    one, two = machines.store(), machines.store()
    commit(one, Kind.REAL_RUN, "run")
    copy = two.open(Kind.REAL_RUN, "run")
    assert two.has(Kind.REAL_RUN, "run")
    two.remove(Kind.REAL_RUN, "run")
    assert not copy.exists() and not one.has(Kind.REAL_RUN, "run") and one.list(Kind.REAL_RUN) == []
    assert not [key for key in machines.objects() if key.startswith("real_runs/")]
    with pytest.raises(ArtifactError, match=r"real_runs/run/run_meta\.json: cannot be removed"):
        two.remove(Kind.REAL_RUN, "run")


def test_existing_content_is_never_overwritten(machines: Machines) -> None:
    one, two = machines.store(), machines.store()
    commit(one, Kind.WORKLOAD, "one", "old")
    for how in ({}, {"share": True}):
        with pytest.raises(ArtifactError, match=r"one/workload_meta\.json: already exists.*never overwritten"):
            commit(two, Kind.WORKLOAD, "one", "new", **how)
    directory = commit(two, Kind.WORKLOAD, "one", "old", share=True)
    assert (directory / "data.csv").read_text() == "old"
    assert (machines.store().open(Kind.WORKLOAD, "one") / "data.csv").read_text() == "old"


def test_sharing_keeps_the_first_metadata(machines: Machines) -> None:
    written = []
    for machine in (machines.store(), machines.store()):
        with machine.stage(Kind.WORKLOAD, "one") as staging:
            (staging.path / "data.csv").write_text("same")
            meta = json.dumps({"sha256": staging.digests(), "by": len(written)})
            (staging.path / "workload_meta.json").write_text(meta)
            written.append((staging.commit(share=True) / "workload_meta.json").read_text())
    assert written[0] == written[1] and '"by": 0' in written[0]


def test_replacing_swaps_a_profile_and_keeps_the_old_files(machines: Machines) -> None:
    one, two = machines.store(), machines.store()
    for text in ("old", "new", "new"):
        commit(one, Kind.PROFILE, PROFILE, text, replace=True)
        assert (two.open(Kind.PROFILE, PROFILE) / "data.csv").read_text() == text
    assert len([key for key in machines.objects() if key.endswith("data.csv")]) == 2
    with pytest.raises(RuntimeError, match="never replaced"):
        commit(one, Kind.REAL_RUN, "run", replace=True)


def test_a_directory_without_metadata_is_never_read(machines: Machines) -> None:
    machines.write("real_runs/run/data.csv", b"half")
    machines.write("real_runs/.hidden/run_meta.json", b"{}")
    machines.write("real_runs/deep/er/run_meta.json", b"{}")
    store = machines.store()
    assert store.list(Kind.REAL_RUN) == []
    with pytest.raises(
        ArtifactError, match=r"real_runs/run/run_meta\.json: not there, so there is no complete artifact"
    ):
        store.open(Kind.REAL_RUN, "run")
    with pytest.raises(ArtifactError, match=r"real_runs/run/data\.csv: already exists with other content"):
        commit(store, Kind.REAL_RUN, "run")
    assert store.list(Kind.REAL_RUN) == []


@pytest.mark.parametrize(
    ("key", "data", "says"),
    [
        ("data.csv", b"changed", "data.csv: content differs from the digest in run_meta.json"),
        ("figs/one.txt", None, "figs/one.txt: missing, but run_meta.json lists it"),
        ("run_meta.json", b"[1]", "run_meta.json: expected a JSON object, found list"),
        ("run_meta.json", b"{}", "run_meta.json: key sha256: expected an object"),
        ("run_meta.json", b'{"sha256": {"../x": "00"}}', "'../x' is not a file of this"),
    ],
)
def test_an_altered_directory_is_not_opened(machines: Machines, key: str, data: bytes | None, says: str) -> None:
    commit(machines.store(), Kind.REAL_RUN, "run")
    machines.write(f"real_runs/run/{key}", data)
    reader = machines.store()
    with pytest.raises(ArtifactError) as error:
        reader.open(Kind.REAL_RUN, "run")
    assert says in str(error.value) and str(error.value).startswith(f"{machines.url}/real_runs/run/{key.split('/')[0]}")
    assert not reader.path(Kind.REAL_RUN, "run").exists()


def test_a_damaged_copy_is_fetched_again(machines: Machines) -> None:
    store = machines.store()
    commit(store, Kind.REAL_RUN, "run")
    for damage in (lambda path: path.write_text("x"), Path.unlink):
        damage(store.path(Kind.REAL_RUN, "run") / "data.csv")
        assert (store.open(Kind.REAL_RUN, "run") / "data.csv").read_text() == "content"


def test_a_removed_artifact_is_gone_although_a_copy_is_left(machines: Machines) -> None:
    store = machines.store()
    commit(store, Kind.REAL_RUN, "run")
    machines.write("real_runs/run/run_meta.json", None)
    assert store.list(Kind.REAL_RUN) == []
    with pytest.raises(ArtifactError, match="not there"):
        store.open(Kind.REAL_RUN, "run")


def test_an_unverified_copy_needs_no_request(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machines.store()
    final = commit(store, Kind.COMPARISON, "one")
    commit(store, Kind.PROFILE, PROFILE)
    monkeypatch.setattr(store, "_read", lambda key: pytest.fail(f"asked for {key}"))
    assert store.open(Kind.COMPARISON, "one", verify=False) == final
    for kind, artifact_id in ((Kind.COMPARISON, "one"), (Kind.PROFILE, PROFILE)):
        with pytest.raises(pytest.fail.Exception, match="asked for"):
            store.open(kind, artifact_id, verify=kind is Kind.COMPARISON)


# --- a store that cannot be used --------------------------------------------------------------------------------------


def test_a_store_that_ignores_the_condition_is_refused(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real gateway through a client that drops `If-None-Match`, which is what a server that ignores it looks
    like."""
    store = machines.store()
    gateway = store._fs

    class Unconditional:
        cat_file = staticmethod(gateway.cat_file)

        @staticmethod
        def pipe_file(path: str, value: bytes, **options: Any) -> None:
            gateway.pipe_file(path, value, **(options | {"mode": "overwrite"}))

    monkeypatch.setattr(store, "_fs", Unconditional())
    with pytest.raises(ArtifactError, match=r"overwrites an object that was to be created only if absent"):
        commit(store, Kind.REAL_RUN, "run")
    assert machines.store().list(Kind.REAL_RUN) == []


def test_wrong_credentials_and_a_missing_bucket_are_named(machines: Machines, tmp_path: Path) -> None:
    store = ObjectStore("s3://no-such-bucket/x", tmp_path / "cache")
    with pytest.raises(ArtifactError, match=f"s3://no-such-bucket/x/.*Check {ROOT_VARIABLE}, the endpoint"):
        commit(store, Kind.REAL_RUN, "run")
    # Not taken for a store without artifacts.
    for asked in (
        lambda: store.list(Kind.COMPARISON),
        lambda: store.current("smoke", "comparison"),
        lambda: store.folder(Kind.PROFILE),
    ):
        with pytest.raises(ArtifactError, match=r"s3://no-such-bucket/x/\S+: cannot be read \(no such bucket\)"):
            asked()
    code = "try:\n    store.list(Kind.REAL_RUN)\nexcept ArtifactError as error:\n    say(error)"
    for wrong in (
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
    ):
        with process(code, machines, environment=wrong) as running:
            message = running.communicate(timeout=600)[0]
        assert message.startswith(f"{machines.url}/real_runs: cannot be read ("), message


# --- several processes ------------------------------------------------------------------------------------------------

_PRELUDE = """
import json, os, signal, sys
from pathlib import Path
from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import Kind
from gst_assets.errors import ArtifactError
store, me = open_store(), sys.argv[1]

def fill(staging, text):
    (staging.path / "a_same.csv").write_text("same")
    (staging.path / "data.csv").write_text(text)
    (staging.path / "more.csv").write_text(text * 2000)
    (staging.path / staging.kind.meta_name).write_text(json.dumps({"sha256": staging.digests(), "by": me}))

def say(text):
    print(text, flush=True)
"""


@contextmanager
def process(
    code: str, machines: Machines, name: str = "me", environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code` with a cache of its own; killed when the block ends."""
    settings = {ROOT_VARIABLE: machines.url, CACHE_VARIABLE: str(machines.area / name), "PYTHONPATH": str(PROJECT_ROOT)}
    running = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | machines.s3.environment | settings | (environment or {}),
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
store._fs
say("ready")
sys.stdin.readline()
for number in range(12):
    with store.stage(Kind.WORKLOAD, f"w{number}") as staging:
        fill(staging, "same" if share else me)
        try:
            staging.commit(share=share)
            say(f"{number} committed")
        except ArtifactError as error:
            say(f"{number} {error}")
"""


@pytest.mark.parametrize("share", [False, True])
def test_two_writers_of_the_same_ids(machines: Machines, share: bool) -> None:
    code = f"share = {share}\n{_COMMIT_MANY}"
    with process(code, machines, "one") as one, process(code, machines, "two") as two:
        both = {"one": one, "two": two}
        for running in both.values():
            assert _line(running) == "ready"
        for running in both.values():
            assert running.stdin is not None
            running.stdin.write("go\n")
            running.stdin.flush()
        said = {name: running.communicate(timeout=600)[0].splitlines() for name, running in both.items()}
    reader = machines.store()
    for number in range(12):
        outcome = {name: lines[number] for name, lines in said.items()}
        winners = [name for name, line in outcome.items() if line == f"{number} committed"]
        directory = reader.open(Kind.WORKLOAD, f"w{number}")
        if share:
            assert winners == ["one", "two"]
        else:
            assert len(winners) == 1, outcome
            assert (directory / "data.csv").read_text() == winners[0]
            assert json.loads((directory / "workload_meta.json").read_text())["by"] == winners[0]
            assert any("already exists" in line for line in outcome.values())


_KILLED_AFTER = """
create, calls = store._create, 0
def counting(key, data):
    global calls
    if not key.endswith(".create-if-absent"):
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
    return create(key, data)
store._create = counting
with store.stage(Kind.WORKLOAD, "w") as staging:
    fill(staging, me)
    staging.commit(share=True)
say("committed")
"""


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_writer_killed_between_any_two_objects(machines: Machines, limit: int) -> None:
    """Two files that all writers share or not, a third, and the metadata: killed before each of the four."""
    with process(f"limit = {limit}\n{_KILLED_AFTER}", machines, "one") as running:
        said = running.communicate(timeout=600)[0]
    assert running.returncode == -signal.SIGKILL, said
    left = ["a_same.csv", "data.csv", "more.csv"][:limit]
    assert [key.rpartition("/")[2] for key in machines.objects()[1:]] == left
    assert machines.store().list(Kind.WORKLOAD) == []
    # Other content is refused where something different was left; the same content is taken up where it was left.
    later = ["one"] if limit < 2 else ["other", "one"]
    for name in later:
        with machines.store().stage(Kind.WORKLOAD, "w") as staging:
            for file, text in (("a_same.csv", "same"), ("data.csv", name), ("more.csv", name * 2000)):
                (staging.path / file).write_text(text)
            (staging.path / "workload_meta.json").write_text(json.dumps({"sha256": staging.digests(), "by": "later"}))
            if name == "one":
                staging.commit(share=True)
            else:
                with pytest.raises(ArtifactError, match=r"data\.csv: already exists with other content"):
                    staging.commit(share=True)
                assert machines.store().list(Kind.WORKLOAD) == []
    assert (machines.store().open(Kind.WORKLOAD, "w") / "data.csv").read_text() == "one"


_COMMIT_FOREVER = """
store._fs
say("ready")
number = start
while True:
    with store.stage(Kind.REAL_RUN, f"run{number}") as staging:
        fill(staging, me)
        staging.commit()
    store.set_current("smoke", "real_runs", {"last": number, "pad": "x" * 5000})
    say(number)
    number += 1
"""


def test_killed_at_any_moment_what_is_listed_is_whole(machines: Machines) -> None:
    seed = random.Random(7)
    for start in (0, 1000, 2000):
        with process(f"start = {start}\n{_COMMIT_FOREVER}", machines) as running:
            assert _line(running) == "ready"
            for number in range(start, start + 2):
                assert _line(running) == str(number)
            time.sleep(seed.uniform(0, 0.2))
        reader = machines.store()
        names = reader.list(Kind.REAL_RUN)
        for run_id in names:
            assert (reader.open(Kind.REAL_RUN, run_id) / "data.csv").read_text() == "me"
        last = reader.current("smoke", "real_runs")
        assert last is not None and f"run{last['last']}" in names


_REPLACE_MANY = """
number, enough = -1, Path(sys.argv[1])
while number < 9 or not enough.exists():
    number += 1
    with store.stage(Kind.PROFILE, "cpu/tiny") as staging:
        fill(staging, f"{number};")
        staging.commit(replace=True)
    if number == 0:
        say("first")
say(number)
"""


def test_a_reader_finds_a_complete_profile_while_two_writers_replace_it(machines: Machines) -> None:
    """The writers go on until they were read often enough, however the three take turns."""
    reads, seen, enough = 0, set(), machines.area / "enough"
    code = _REPLACE_MANY.replace("sys.argv[1]", repr(str(enough)))
    hung = time.monotonic() + 600
    with process(code, machines, "one") as one, process(code, machines, "two") as two:
        assert _line(one) == _line(two) == "first"
        reader = machines.store()
        while (one.poll() is None or two.poll() is None) and time.monotonic() < hung:
            directory = reader.open(Kind.PROFILE, PROFILE)
            text = (directory / "data.csv").read_text()
            assert (directory / "more.csv").read_text() == text * 2000
            assert reader.list(Kind.PROFILE) == [PROFILE]
            seen.add(text)
            reads += 1
            if reads >= 4 and len(seen) > 1:
                enough.touch()
        last = {f"{_line(running)};" for running in (one, two)}
    assert reads > 1 and len(seen) > 1
    assert (reader.open(Kind.PROFILE, PROFILE) / "data.csv").read_text() in last
