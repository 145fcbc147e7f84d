"""Where files lie, in a checkout and in an installed package; the latter for real is in test_packaging."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets import locations
from gst_assets.contracts.open_store import open_store
from gst_assets.environment import CACHE_VARIABLE, ROOT_VARIABLE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import resolve_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder as a wheel leaves it, and an empty working directory; returns the package."""
    package = tmp_path / "site-packages" / "gst_assets"
    (package / "data" / "prompts").mkdir(parents=True)
    (package / "data" / "prompts" / "own.jsonl").touch()
    monkeypatch.setattr(locations, "_PACKAGE", package)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return package


def test_in_a_checkout_everything_starts_at_its_root_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not locations.is_installed() and locations.work_root() == PROJECT_ROOT
    assert resolve_path("data/prompts") == PROJECT_ROOT / "data" / "prompts"
    assert resolve_path("/elsewhere") == Path("/elsewhere")


def test_installed_shipped_files_are_in_the_package_and_all_else_in_the_working_directory(
    tmp_path: Path, installed: Path
) -> None:
    work = tmp_path / "work"
    assert locations.work_root() == work
    assert resolve_path("data/prompts/own.jsonl") == installed / "data" / "prompts" / "own.jsonl"
    assert resolve_path("data/profiles") == work / "data" / "profiles"  # not shipped
    assert resolve_path("data/traces/mine.csv") == work / "data" / "traces" / "mine.csv"
    assert resolve_path("mine.jsonl") == work / "mine.jsonl"
    assert resolve_path(str(tmp_path)) == tmp_path


def test_installed_a_file_of_the_working_directory_does_not_hide_a_shipped_one(tmp_path: Path, installed: Path) -> None:
    mine = tmp_path / "work" / "data" / "prompts" / "own.jsonl"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert resolve_path("data/prompts/own.jsonl") == installed / "data" / "prompts" / "own.jsonl"


@pytest.mark.usefixtures("installed")
def test_installed_artifacts_and_local_copies_of_an_object_store_are_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert open_store().root == tmp_path / "work" / "tmp"
    assert open_store("s3://bucket/prefix").root.parent == tmp_path / "work" / "tmp" / "object_cache"
