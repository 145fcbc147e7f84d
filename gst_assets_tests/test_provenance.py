"""Where a result came from is reported as it is, and what is not known is reported as unknown."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from gst_assets import provenance
from gst_assets.errors import EnvironmentVariableError

_IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@example.org")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *_IDENTITY, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with this module's file, taken for the project root; no repository yet."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "GST_GIT_"))]:
        monkeypatch.delenv(name)
    root = tmp_path / "outer" / "project"
    (root / "gst_assets").mkdir(parents=True)
    shutil.copyfile(str(provenance.__file__), root / "gst_assets" / "provenance.py")
    monkeypatch.setattr(provenance, "PROJECT_ROOT", root)
    monkeypatch.setattr(provenance, "__file__", str(root / "gst_assets" / "provenance.py"))
    return root


@pytest.mark.usefixtures("checkout")
def test_git_state_outside_a_repository_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state() == (None, None)
    monkeypatch.setenv("GST_GIT_COMMIT", "")
    assert provenance.git_state() == (None, None)
    monkeypatch.setenv("GST_GIT_COMMIT", "abcdef0")
    assert provenance.git_state() == ("abcdef0", None)
    monkeypatch.setenv("GST_GIT_COMMIT", "main")
    with pytest.raises(EnvironmentVariableError, match="GST_GIT_COMMIT=main: expected a commit's hash"):
        provenance.git_state()


def test_git_state_without_git_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(checkout, "init", "-q")
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.git_state() == (None, None)


def test_git_state_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(checkout, "init", "-q")
    assert provenance.git_state() == (None, None)  # no commit yet
    _git(checkout, "add", ".")
    _git(checkout, "commit", "-qm", "one")
    commit = _git(checkout, "rev-parse", "HEAD")
    assert provenance.git_state() == (commit, False)
    (checkout / "untracked").write_text("")
    assert provenance.git_state() == (commit, False)
    (checkout / "gst_assets" / "provenance.py").write_text("# changed\n")
    assert provenance.git_state() == (commit, True)
    # As inside a hook of another repository.
    monkeypatch.setenv("GIT_DIR", "/nowhere/.git")
    assert provenance.git_state() == (commit, True)


def test_a_repository_around_an_installed_copy_is_not_its_source(checkout: Path) -> None:
    outer = checkout.parent
    _git(outer, "init", "-q")
    (outer / "theirs").write_text("")
    _git(outer, "add", "theirs")
    _git(outer, "commit", "-qm", "theirs")
    assert provenance.git_state() == (None, None)


def test_environment_says_what_is_installed() -> None:
    found = provenance.environment()
    assert found["python"] == platform.python_version()
    assert found["platform"] == platform.platform()
    assert found["cpu_count"] == os.cpu_count()
    assert found["cpu"] and found["cpu"] == provenance.cpu_name()
    assert found["packages"]["pandas"] == metadata.version("pandas")
    assert {"numpy", "pydantic", "pandera", "vidur", "torch", "dagster"} <= set(found["packages"])
    assert json.loads(json.dumps(found)) == found
    found["packages"].clear()
    assert provenance.environment()["packages"]


def test_recorded_packages_are_read_without_importing_them() -> None:
    code = (
        "import sys\nfrom gst_assets import provenance\nprovenance.environment()\nheavy = {'torch', 'vllm',"
        " 'transformers', 'vidur', 'dagster', 'pandera', 'sklearn', 'matplotlib', 'numpy', 'pandas'}\nassert not heavy"
        " & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=provenance.PROJECT_ROOT, timeout=600)


def test_utc_now_has_its_zone() -> None:
    moment = datetime.fromisoformat(provenance.utc_now())
    assert moment.utcoffset() == timedelta(0)


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert (
        provenance.sha256_file(tmp_path / "file") == provenance.sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    )
