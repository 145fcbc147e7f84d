"""The workload directory of `small_workload`, built once and given to each test as a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gst_assets_tests.engine.small_workload import SCENARIO
from gst_assets_tests.engine.workloads import build_workload


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_workload(tmp_path_factory.mktemp("workload") / "wl", SCENARIO)


@pytest.fixture
def workload(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "wl"))
