"""The folder that the scenario tests write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets_tests.scenario.written import MINE, PARENT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A folder with one parent and one scenario, `mine`."""
    (tmp_path / "_parent.yaml").write_text(PARENT)
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path
