"""The layers that pyproject.toml declares (`tool.importlinter`) hold, and each of its rules refuses what it is there
for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.provenance import PROJECT_ROOT

_LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(config_filename='pyproject.toml',"
    " no_cache=True, no_logo=True))"
)


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `root`."""
    return subprocess.run([sys.executable, "-c", _LINT], cwd=root, capture_output=True, text=True)


def test_the_layers_hold() -> None:
    found = lint(PROJECT_ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Contracts: 4 kept, 0 broken." in found.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("contracts/store.py", "import gst_assets.workload", "Layers"),
        ("engine/run.py", "def late():\n    from gst_assets.analysis import measures", "Layers"),
        ("another.py", "", "Layers"),
        ("api.py", "from gst_assets.testing import services", "Layers"),
        ("vidur_adapter/sweep.py", "import gst_assets.engine.hardware", "Simulation and analysis know no engine"),
        ("contracts/store.py", "import gst_assets.contracts.object_store", "No circles"),
        ("workload/spec.py", "import dagster", "Domain packages know no Dagster"),
    ],
)
def test_what_breaks_a_rule_is_refused(tmp_path: Path, module: str, line: str, broken: str) -> None:
    shutil.copy(PROJECT_ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PROJECT_ROOT / "gst_assets", tmp_path / "gst_assets", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "gst_assets" / module).open("a") as file:
        file.write(f"\n{line}\n")
    found = lint(tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"{broken} BROKEN" in found.stdout, found.stdout
