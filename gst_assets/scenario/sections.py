"""The `Scenario`: all sections of one run, and what holds between them."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field, model_validator

from gst_assets.scenario.comparison_section import Bands, Regression
from gst_assets.scenario.engine_section import EngineSection, Replay
from gst_assets.scenario.files import SCENARIO_DIR, scenario_directories
from gst_assets.scenario.model_section import HardwareSection, Model
from gst_assets.scenario.profile_section import Profile
from gst_assets.scenario.settings import Settings
from gst_assets.scenario.simulation_section import Capacity, Simulation, Sweep
from gst_assets.scenario.workload_section import Gamma, Poisson, Workload


class Scenario(Settings):
    """One run, resolved: everything that decides what is measured, simulated and compared."""

    name: str
    description: str
    nightly: bool = Field(
        False, description="run by the nightly schedules; the file itself says so, it is not inherited"
    )
    model: Model
    hardware: HardwareSection
    workload: Workload
    engine: EngineSection
    replay: Replay = Replay()
    profile: Profile
    simulation: Simulation = Simulation()
    comparison: Bands = Bands()
    regression: Regression = Regression()
    capacity: Capacity | None = Field(None, description="null: no capacity is searched for")
    sweep: Sweep | None = None
    overrides: tuple[str, ...] = Field(
        (), description="the overrides as given, oldest first; what they set is in the settings themselves"
    )

    @model_validator(mode="after")
    def _sweep_has_a_rate_to_change(self) -> Scenario:
        arrivals, sweep = self.workload.arrivals, self.sweep
        if sweep is not None and not isinstance(arrivals, Poisson | Gamma):
            for name in ("rates_per_s", "highest_rate"):
                if getattr(sweep, name):
                    raise ValueError(
                        f"sweep.{name} needs workload.arrivals of kind poisson or gamma, found {arrivals.kind}"
                    )
        return self

    @model_validator(mode="after")
    def _vidur_has_no_experts(self) -> Scenario:
        asked = {"simulation.variants": self.simulation.variants}
        asked |= {"sweep.variant": (self.sweep.variant,)} if self.sweep is not None else {}
        for name, variants in asked.items():
            if self.model.geometry.num_experts is not None and "published" in variants:
                raise ValueError(
                    f"{name} has published, but model {self.model.name} is a mixture of experts, which is not modelled:"
                    " Vidur 0.0.26 has no expert layer. Ask for kernels or calibrated"
                )
        return self

    @property
    def measured_together(self) -> bool:
        """Whether runs and profile come from one engine start: asked for, and possible, since calibration switches
        early stops off in its engine."""
        return (
            self.replay.between_calibration
            and self.engine.backend == "vllm"
            and not self.engine.sampling.may_stop_early
            and self.profile.root is None
        )

    def digest(self, *sections: str) -> str:
        """First 16 hex digits of the sha256 over the named sections' resolved values."""
        chosen = {name: self.model_dump(mode="json")[name] for name in sections}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """The scenario's file: a shipped one relative to the project root, a user's own one with its folder; where it
        is not here, its name alone."""
        name = f"{self.name}.yaml"
        for directory in scenario_directories():
            if (directory / name).is_file():
                return f"gst_assets/scenarios/{name}" if directory == SCENARIO_DIR else str(directory / name)
        return name
