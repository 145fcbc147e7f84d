"""Dagster resources: where artifacts live, which tokenizer, which engine, which profiles, and what a run overrides.

Resources hand configuration to the domain packages; what the packages do does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import ArtifactStore
from gst_assets.environment import ROOT_VARIABLE
from gst_assets.pool_slots import engine_slot
from gst_assets.scenario import Scenario, load_scenario, resolve_path

if TYPE_CHECKING:
    from gst_assets.workload.tokenizer import Tokenizer

_SCENARIO_FILE = "scenario.json"


class ScenarioResource(dg.ConfigurableResource):
    """Resolves the partition's scenario. Overrides given here hold for every asset of the run."""

    overrides: list[str] = Field(
        default=[],  # not a factory: Dagster fills the launchpad with defaults that it knows beforehand
        description="dotted.key=value, e.g. workload.num_decode_tokens=32; see gst_assets/scenarios/",
    )

    def load(self, name: str) -> Scenario:
        """The scenario `name` with this run's overrides."""
        return load_scenario(name, self.overrides)


class ArtifactRoot(dg.ConfigurableResource):
    """Where artifacts are written."""

    root: str = Field(
        default="",
        description=(
            f"directory or URL of an object store; empty: ${ROOT_VARIABLE}, or tmp/ in the checkout or, installed, the"
            " working directory"
        ),
    )

    def store(self) -> ArtifactStore:
        """The artifact store under this root."""
        return open_store(self.root)


class TokenizerResource(dg.ConfigurableResource):
    """Loads the scenario's tokenizer."""

    workers: int = Field(
        default=1, gt=0, description="threads that write prompts of generated text; the result does not depend on it"
    )

    def load(self, scenario: Scenario) -> Tokenizer:
        """The tokenizer that `model.tokenizer` names."""
        from gst_assets.workload.tokenizer import load_tokenizer

        return load_tokenizer(scenario.model.tokenizer)


class EngineResource(dg.ConfigurableResource):
    """Runs the real engine in a child process of its own, one at a time on this machine. Of all that runs in a step,
    this alone takes the machine's lock and, where steps are spread over machines, a slot of the pool (`pool_slots`).

    A child, because the engine needs its environment set before torch loads, because its interpreter must be free of
    the orchestrator's threads while it measures, and because it can then be ended as a whole.
    """

    lock_timeout_s: float = Field(
        default=86400.0,  # a night's runs wait here for each other
        gt=0,
        description="how long to wait for another engine run on this machine to end",
    )

    def measure(
        self,
        scenario: Scenario,
        workload: Path,
        group_id: str,
        out: Path,
        log: Callable[[str], None],
    ) -> list[Path]:
        """Play the workload against the engine; returns the complete run directories written under `out`, by repeat.

        Raises:
            EngineError: hardware or settings differ from the scenario, or the engine failed.
        """
        arguments = ["--workload", str(workload), "--out", str(out), "--group-id", group_id]
        self._run("gst_assets.engine.run", arguments, scenario, out, log)
        return in_order(out)

    def profile(self, scenario: Scenario, out: Path, root: Path, log: Callable[[str], None]) -> None:
        """Measure a profiling bundle into the directory `out`, which will be moved below the profiling root `root`.

        Raises:
            EngineError, ProfileError
        """
        arguments = ["--out", str(out), "--profiling-root", str(root)]
        self._run("gst_assets.profiling.measure_bundle", arguments, scenario, out.parent, log)

    def profile_with_runs(
        self,
        scenario: Scenario,
        workload: Path,
        out: Path,
        root: Path,
        runs: Path,
        log: Callable[[str], None],
    ) -> list[Path]:
        """As `profile`, with the repeats of the workload played between the calibration rounds, on the same engine
        start; returns the complete run directories written under `runs`, by repeat.

        Raises:
            EngineError, ProfileError
        """
        between = ["--between", str(workload), str(out.parent / _SCENARIO_FILE), "--runs", str(runs)]
        arguments = ["--out", str(out), "--profiling-root", str(root), *between]
        self._run("gst_assets.profiling.measure_bundle", arguments, scenario, out.parent, log)
        return in_order(runs)

    def capacity(self, scenario: Scenario, group_id: str, out: Path, log: Callable[[str], None]) -> Path:
        """Search the engine's capacity; returns the complete directory written under `out`.

        Raises:
            EngineError: hardware or settings differ from the scenario, or the engine failed.
        """
        self._run("gst_assets.capacity.engine_probe", ["--group-id", group_id, "--out", str(out)], scenario, out, log)
        return out / group_id

    def _run(
        self,
        module: str,
        arguments: list[str],
        scenario: Scenario,
        area: Path,
        log: Callable[[str], None],
    ) -> None:
        from gst_assets.engine.launch import run_module
        from gst_assets.engine.machine_lock import machine_lock

        # The child gets the resolved scenario, overrides inside, so that both sides mean exactly the same settings.
        file = area / _SCENARIO_FILE
        file.write_text(scenario.model_dump_json(indent=2), encoding="utf-8")
        with engine_slot(log), machine_lock(self.lock_timeout_s, log, scenario.name):
            # The engine's libraries warn about themselves at every import; what matters is printed by the program
            # itself.
            quiet = {"PYTHONWARNINGS": "ignore"}
            run_module(module, ["--scenario", str(file), *arguments], env=quiet, on_line=log)


class VidurProfilingRoot(dg.ConfigurableResource):
    """Where Vidur's profiling bundles are: `<root>/<hardware_id>/<model name>/`."""

    root: str = Field(
        default="",
        description="directory; empty: the scenario's profile.root, or vidur_profiling/ under the artifact root",
    )

    def fixed(self, scenario: Scenario) -> Path | None:
        """A profiling root to use as it is, or None when bundles are measured into the artifact root."""
        chosen = self.root or scenario.profile.root
        return resolve_path(chosen) if chosen else None


def in_order(runs: Path) -> list[Path]:
    """The complete run directories of `runs` by their repeat. One that was being written when its process was killed is
    hidden."""
    return sorted(runs.glob("[!.]*-r*"), key=lambda path: int(path.name.rpartition("-r")[2]))
