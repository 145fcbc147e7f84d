"""What is staged appears whole or not at all, and leaves nothing next to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.errors import EngineError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.staging import staged_directory, staged_file


def test_a_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    final = tmp_path / "new" / "run"
    with staged_directory(final) as folder:
        (folder / "a").write_text("a")
        assert not final.exists() and folder.name == "run"
        assert folder.parent.parent == final.parent and folder.parent.name.startswith(".")
    assert [path.name for path in final.parent.iterdir()] == ["run"] and (final / "a").read_text() == "a"


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(ZeroDivisionError), staged_directory(tmp_path / "run") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), staged_file(tmp_path / "file") as path:
        path.write_text("after")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "before"


def test_a_directory_that_is_there_is_kept_and_the_refusal_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), staged_directory(tmp_path / "run"):
        pass

    def refused(error: OSError) -> EngineError:
        return EngineError(f"taken ({error.strerror}).")

    taken = pytest.raises(EngineError, match=r"^taken \(Directory not empty\)\.$")
    with taken, staged_directory(tmp_path / "run", refused):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine"]


def test_an_error_of_the_block_is_never_taken_for_a_refusal(tmp_path: Path) -> None:
    def refused(_: OSError) -> EngineError:
        return EngineError("taken")

    with pytest.raises(OSError, match="the disk is full"), staged_directory(tmp_path / "run", refused):
        raise OSError("the disk is full")


def test_a_file_takes_the_place_of_the_former_one(tmp_path: Path) -> None:
    final = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with staged_file(final) as path:
            path.write_text(text)
        assert final.read_text() == text
    assert [path.name for path in final.parent.iterdir()] == ["file"]


_STAY = """
import sys, time
from pathlib import Path
from gst_assets import staging
with getattr(staging, sys.argv[1])(Path(sys.argv[2])) as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["staged_directory", "staged_file"])
def test_what_a_killed_process_left_is_removed_by_the_next_to_write_there(tmp_path: Path, kind: str) -> None:
    """Not what a living one writes, whatever either is called."""
    living, dead = (
        subprocess.Popen(
            [sys.executable, "-c", _STAY, kind, str(tmp_path / name)],
            cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True,
        )
        for name in ("one", "two")
    )  # fmt: skip
    try:
        for process in (living, dead):
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert len(list(tmp_path.glob(".gst-staged-*"))) == 2
        with staged_file(tmp_path / "three") as path:
            path.write_text("whole")
        (left,) = tmp_path.glob(".gst-staged-*")
        assert (left / "one").exists()
    finally:
        for process in (living, dead):
            process.kill()
            process.communicate()


def test_a_name_as_long_as_a_name_may_be_can_be_written(tmp_path: Path) -> None:
    final = tmp_path / ("x" * 255)
    with staged_file(final) as path:
        path.write_text("whole")
    assert final.read_text() == "whole"
