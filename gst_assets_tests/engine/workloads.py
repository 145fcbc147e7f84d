"""Complete workload directories for the engine's tests, made by the workload package from a scenario."""

from __future__ import annotations

import json
from pathlib import Path

from gst_assets.provenance import sha256_file
from gst_assets.scenario import Scenario
from gst_assets.workload import build


def build_workload(directory: Path, scenario: Scenario) -> Path:
    """Write the workload of `scenario` into `directory`; returns it."""
    directory.mkdir(parents=True)
    return build(scenario, directory).directory


def reseal(directory: Path) -> None:
    """Make the recorded digests those of the files as they are now."""
    path = directory / "workload_meta.json"
    meta = json.loads(path.read_text())
    meta["sha256"] = {name: sha256_file(directory / name) for name in meta["sha256"]}
    path.write_text(json.dumps(meta))
