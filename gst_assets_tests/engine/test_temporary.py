"""An engine start leaves nothing in the temporary directory, and removes what killed ones left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gst_assets.engine.temporary import engine_folder
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario

_STAY = """
import os, sys, time
from gst_assets.engine.temporary import engine_folder
with engine_folder() as folder:
    (folder / "steps.bin").touch()
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(600)
    print(folder, os.getpid(), flush=True)
    time.sleep(600)
"""
_START = """
import asyncio, os, sys
from pathlib import Path
from gst_assets.engine.backends import engine_environment, open_engine
from gst_assets.scenario import read_resolved

async def start(scenario):
    async with open_engine(scenario):
        print("inside", os.environ["TMPDIR"], *os.listdir(sys.argv[2]), flush=True)

if __name__ == "__main__":
    scenario = read_resolved(Path(sys.argv[1]))
    os.environ.update(engine_environment(scenario))
    asyncio.run(start(scenario))
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of this test."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def staying(*words: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", _STAY, *words],
        cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().split()[0])


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_it_is_the_temporary_directory_inside_and_gone_afterwards(base: Path) -> None:
    with engine_folder() as folder:
        assert folder.parent == base and os.environ["TMPDIR"] == tempfile.gettempdir() == str(folder)
        Path(tempfile.mkstemp()[1]).write_text("left")
    assert list(base.iterdir()) == []
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(base)
    with pytest.raises(KeyboardInterrupt), engine_folder():
        raise KeyboardInterrupt
    assert list(base.iterdir()) == [] and tempfile.gettempdir() == str(base)


@pytest.mark.usefixtures("base")
def test_folders_of_the_dead_are_swept_and_those_of_the_living_are_not() -> None:
    living, kept = staying()
    dead, left = staying()
    end(dead)
    assert left.is_dir()
    with engine_folder():
        assert not left.exists() and kept.is_dir() and (kept / "steps.bin").exists()
    end(living)


@pytest.mark.usefixtures("base")
def test_a_process_that_the_dead_one_left_still_owns_the_folder() -> None:
    dead, left = staying("fork")
    end(dead)
    with engine_folder():
        assert left.is_dir()
    os.killpg(dead.pid, 9)
    for _ in range(1200):
        with engine_folder():
            pass
        if not left.exists():
            return
        time.sleep(0.1)
    pytest.fail("not swept")


def test_folders_without_an_owner_stay_a_day_and_others_for_ever(base: Path) -> None:
    for name in ("gst-engine-new", "gst-engine-old", "another"):
        (base / name).mkdir()
    target = base / "another"
    (base / "gst-engine-link").symlink_to(target)
    day_old = time.time() - 90_000
    for name in ("gst-engine-old", "another"):
        os.utime(base / name, (day_old, day_old))
    with engine_folder():
        pass
    assert sorted(path.name for path in base.iterdir()) == ["another", "gst-engine-link", "gst-engine-new"]


@pytest.mark.engine
def test_where_the_path_is_too_long_for_sockets_the_engine_starts_and_leaves_only_them(tmp_path: Path) -> None:
    """That nothing at all is left elsewhere is tested in `test_real_engine`, with the workloads that share a start."""
    scenario = tmp_path / "scenario.json"
    scenario.write_text(load_scenario("smoke").model_dump_json())
    (tmp_path / "start.py").write_text(_START)
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own paths are long
    base = short / ("x" * (65 - len(str(short)) - 1))
    try:
        base.mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(tmp_path / "start.py"), str(scenario), str(base)],
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "TMPDIR": str(base)},
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert f"inside {base}/gst-engine-" in done.stdout, done.stderr[-3000:]
        left = [path for path in base.iterdir() if not path.is_socket()]
        assert left == [], left
    finally:
        shutil.rmtree(short)
