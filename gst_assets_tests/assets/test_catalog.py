"""What the catalogue says of assets: a code version changes with the code that makes the asset, and with no other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gst_assets.assets import catalog
from gst_assets.provenance import PROJECT_ROOT

ASSETS = PROJECT_ROOT / "gst_assets" / "assets"
# How results are shown and where things are: none of them makes an asset what it is.
_PLUMBING = {
    "assets",
    "environment",
    "errors",
    "executors",
    "foreign_text",
    "formats",
    "locations",
    "partitions",
    "progress",
    "resources",
    "staging",
}


def packages_of(file: Path) -> set[str]:
    """The packages and modules of this project that a file names in an import."""
    modules = {
        node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    return {module.split(".")[1] for module in modules if module.startswith("gst_assets.")} - _PLUMBING


@pytest.mark.parametrize("module", catalog._CODE)
def test_the_code_of_an_asset_is_all_that_its_module_uses(module: str) -> None:
    declared = {*catalog._EVERYWHERE, *catalog._CODE[module]}
    own = [f"assets/{module}", *(name for name in declared if name.startswith("assets/"))]
    used = set().union(*(packages_of(ASSETS.parent / f"{name}.py") for name in own))
    # Nothing else than a package, so that a renamed one is not silently left out.
    assert all((ASSETS.parent / f"{name}.py").is_file() or (ASSETS.parent / name).is_dir() for name in declared)
    assert used <= declared


def test_a_version_changes_with_its_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("assets/comparisons.py", "assets/sweeps.py", "analysis/gate.py", "engine/run.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path)

    def versions() -> tuple[str, str]:
        catalog._digest.cache_clear()
        return catalog.code_version("comparisons"), catalog.code_version("measurements")

    try:
        first = versions()
        assert versions() == first
        (tmp_path / "engine" / "run.py").write_text("x = 2\n")
        comparison, measured = versions()
        assert comparison == first[0] and measured != first[1]
        (tmp_path / "analysis" / "gate.py").rename(tmp_path / "analysis" / "other.py")
        assert versions()[0] != comparison
    finally:
        catalog._digest.cache_clear()
