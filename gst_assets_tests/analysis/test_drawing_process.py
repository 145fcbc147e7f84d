"""Figures drawn by a process of its own: the same bytes, errors in words, and no process left in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gst_assets.analysis.drawing_process import DrawingProcess
from gst_assets.analysis.drawings import DecidingErrors, DecidingRow, Sheet, ShownBands
from gst_assets.errors import ComparisonError
from gst_assets.provenance import PROJECT_ROOT

_ROWS = (DecidingRow("TTFT P50", "pass", 0.01, -0.02, 0.04), DecidingRow("E2E P90", "cannot_judge", 0.2, *[np.nan] * 2))
_SHEET = Sheet("answer.png", 2.0, DecidingErrors(_ROWS, ShownBands(0.05, 0.1)))
_WAIT_S = 600


def test_it_draws_what_this_process_would_draw(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    with DrawingProcess() as drawing:
        drawing.begin([_SHEET], there)
        drawing.finish()
    _SHEET.save(here)
    assert (there / "answer.png").read_bytes() == (here / "answer.png").read_bytes()


def test_what_went_wrong_there_is_said(tmp_path: Path) -> None:
    with DrawingProcess() as drawing:
        drawing.begin([_SHEET], tmp_path / "absent")
        with pytest.raises(ComparisonError, match=r"draws the figures ended with status 1.*No such file.*--no-figures"):
            drawing.finish()


def test_it_is_gone_when_the_block_is_left() -> None:
    with pytest.raises(KeyboardInterrupt), DrawingProcess() as drawing:
        raise KeyboardInterrupt
    assert drawing._process.returncode == -signal.SIGKILL


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    program = (
        "import time; from gst_assets.analysis.drawing_process import DrawingProcess\n"
        "with DrawingProcess() as drawing: print(drawing._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + _WAIT_S
    while _is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    """A zombie, which nobody may come for in a container, runs no more."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_what_lies_where_the_user_works_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "matplotlib", "gst_assets"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    with DrawingProcess() as drawing:
        drawing.begin([_SHEET], tmp_path)
        drawing.finish()
    assert (tmp_path / "answer.png").is_file()


def test_without_matplotlib_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gst_assets.analysis.drawing_process.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"), DrawingProcess():
        pass


def test_it_needs_numpy_and_matplotlib_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(('pandas', 'pandera', 'pydantic', 'scipy', 'dagster')))\n"
    )
    program = (
        "from pathlib import Path; from gst_assets_tests.analysis.test_drawing_process import _SHEET, DrawingProcess\n"
        f"with DrawingProcess() as drawing: drawing.begin([_SHEET], Path({str(tmp_path)!r})); drawing.finish()"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT_ROOT,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (tmp_path / "answer.png").is_file()
