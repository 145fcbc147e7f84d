"""What a wheel of this project is: built for real, and used from an empty folder."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from gst_assets import api
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import scenario_names

OWN_CHOICE = {"torch", "vllm"}
"""Engines come in builds for processors and for GPUs; which one is the user's choice, so no extra names them."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout's files, built without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("gst_assets", "data"):
        shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(PROJECT_ROOT / name, source)
    (source / "gst_assets_tests").mkdir()
    (source / "gst_assets_tests" / "__init__.py").touch()
    (source / "data" / "traces").mkdir(exist_ok=True)
    (source / "data" / "traces" / "downloaded.csv").write_text("not ours to pass on\n")
    out = source / "dist"
    command = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files where an installation puts them."""
    site = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def python(installed: Path, folder: Path, *arguments: str) -> str:
    """Output of the interpreter in `folder`, with the installed package before the checkout's."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GST_ARTIFACT_ROOT", "DAGSTER_HOME")
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_the_package_and_what_ships_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {"gst_assets", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    shipped = {name.removeprefix("gst_assets/") for name in names if name.startswith("gst_assets/data/")}
    assert {name.split("/")[1] for name in shipped} == {"models", "profiles", "prompts", "recorded", "tokenizer"}
    folders = (PROJECT_ROOT / "data" / name for name in ("models", "profiles", "prompts", "recorded", "tokenizer"))
    there = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert shipped == {str(path.relative_to(PROJECT_ROOT)) for path in there}
    assert {"gst_assets/py.typed", *(f"gst_assets/scenarios/{name}.yaml" for name in scenario_names())} <= names


def test_metadata_has_the_readme_and_the_command_and_no_address_that_is_none(installed: Path) -> None:
    (found,) = (one for one in metadata.distributions(path=[str(installed)]) if one.name == "gst-assets")
    assert found.read_text("entry_points.txt") == "[console_scripts]\ngst = gst_assets.cli:main\n"
    assert (PROJECT_ROOT / "README.md").read_text() in str(found.read_text("METADATA"))
    assert found.metadata.get_all("Project-URL") is None and found.metadata.get_all("Home-Page") is None


def test_paths_of_scenarios_and_the_artifact_root_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    program = (
        "from gst_assets.api import *\n"
        "from gst_assets.workload.prompts import read_prompts\n"
        "one = load_scenario('h100_8b_half')\n"
        "paths = [one.workload.prompts, one.model.tokenizer, one.profile.root, one.engine.recorded]\n"
        "print(*(resolve_path(path) for path in paths), open_store().root, sep='\\n')\n"
        "read_prompts(resolve_path(paths[0])), load_bundle(find_bundle(resolve_path(paths[2]), one))\n"
    )
    data = installed / "gst_assets" / "data"
    wanted = [
        data / "prompts" / "chat_lengths.jsonl", data / "tokenizer" / "qwen3", data / "profiles",
        data / "recorded" / "h100_8b_half", tmp_path / "tmp",
    ]  # fmt: skip
    assert python(installed, tmp_path, "-c", program).splitlines() == [str(path) for path in wanted]
    assert list(tmp_path.iterdir()) == []


def test_a_recorded_comparison_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Nothing is written but artifacts, under the working directory."""
    before = sorted(installed.rglob("*"))
    told = python(installed, tmp_path, "-B", "-W", "ignore", "-m", "gst_assets.cli", "run", "h100_8b_half")
    (report,) = re.findall(r"^report: (.*)$", told, re.M)
    assert Path(report).is_file() and Path(report).is_relative_to(tmp_path / "tmp" / "comparisons")
    assert "in the UI" not in told  # nothing was kept for it
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert [path for path in sorted(installed.rglob("*")) if "__pycache__" not in path.parts] == before


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_in_the_metadata() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    stated = {_canonical(re.split(r"[^\w.-]", line)[0]) for lines in lists for line in lines}
    imported: set[str] = set()
    for file in (PROJECT_ROOT / "gst_assets").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"gst_assets"} - OWN_CHOICE
    owners = metadata.packages_distributions()
    assert {name for name in foreign if not stated & {_canonical(one) for one in owners.get(name, ())}} == set()
    assert {"aiohttp", "otava", "pyarrow", "click"} <= foreign  # the scan sees imports inside functions


def test_the_public_names_are_those_of_the_page_whose_example_runs(tmp_path: Path) -> None:
    page = (PROJECT_ROOT / "docs" / "api.md").read_text()
    table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)", table)) == set(api.__all__)
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    told = python(PROJECT_ROOT, tmp_path, "-c", example)
    assert re.fullmatch(r"TTFT P50 \d+\.\d ms\n", told)


def test_the_files_that_services_read_are_valid_yaml_and_name_what_exists() -> None:
    files = [*(PROJECT_ROOT / ".github").rglob("*.yml"), PROJECT_ROOT / ".pre-commit-config.yaml"]
    assert len(files) >= 5
    targets = set(re.findall(r"^([\w-]+):", (PROJECT_ROOT / "Makefile").read_text(), re.M))
    for file in files:
        assert yaml.safe_load(file.read_text()), file
        assert set(re.findall(r"\bmake ([\w-]+)", file.read_text())) <= targets, file
