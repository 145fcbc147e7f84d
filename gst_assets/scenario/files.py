"""Where scenario files are, and which there are. Reads none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gst_assets.environment import OwnScenarios, read
from gst_assets.errors import ScenarioError

SCENARIO_DIR = Path(__file__).resolve().parents[1] / "scenarios"


def scenario_directories() -> tuple[Path, ...]:
    """Where scenario files are: in the package, and in `GST_SCENARIO_DIR` where that is set.

    Raises:
        EnvironmentVariableError: the variable names no directory.
    """
    own = read(OwnScenarios).directory
    return (SCENARIO_DIR,) if own is None else (SCENARIO_DIR, own.expanduser().absolute())


def scenario_files(folders: Sequence[Path]) -> dict[str, Path]:
    """The files in `folders` that a scenario may be or extend, by name.

    Raises:
        ScenarioError: two folders have a file of one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.yaml"):
            if path.stem in found:
                raise ScenarioError(
                    f"{path}: {found[path.stem].parent} has a file of the same name. Rename yours: a name means one"
                    " scenario."
                )
            found[path.stem] = path
    return found


def scenario_names(directory: Path | None = None) -> list[str]:
    """Names of the scenarios in `directory`, or in all of `scenario_directories`, sorted. Files that begin with `_` are
    parents only.

    Raises:
        ScenarioError, EnvironmentVariableError: see `scenario_files` and `scenario_directories`.
    """
    files = scenario_files(scenario_directories() if directory is None else (directory,))
    return sorted(name for name in files if not name.startswith("_"))
