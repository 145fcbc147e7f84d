"""The `Scenario`: all sections of one run, and what holds between them."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field, model_validator

from gst_assets.scenario.comparison_section import Bands, Regression
from gst_assets.scenario.engine_section import EngineSection, Replay
from gst_assets.scenario.files import SCENARIO_DIR, scenario_directories
from gst_assets.scenario.model_section import CPU, HardwareSection, Model
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
    def _experts_stand_alone(self) -> Scenario:
        if self.model.geometry.num_experts is None:
            return self
        why = "the expert block is profiled on one device, with weights of model.dtype"
        for setting, is_set, reset in (
            ("engine.tensor_parallel_size", self.engine.tensor_parallel_size > 1, "1"),
            ("model.quantization", self.model.quantization is not None, "null"),
        ):
            if is_set:
                raise ValueError(f"{setting} is not supported with a mixture of experts: {why}. Set {setting}={reset}")
        return self

    @model_validator(mode="after")
    def _devices_share_each_layer(self) -> Scenario:
        problem = self.model.geometry.unshareable(self.engine.tensor_parallel_size)
        if problem:
            *others, last = map(str, self.model.geometry.shareable_among())
            possible = f"one of {', '.join(others)} and {last}" if others else last
            raise ValueError(
                f"engine.tensor_parallel_size {self.engine.tensor_parallel_size} does not fit the model: {problem}."
                f" Set engine.tensor_parallel_size to {possible}"
            )
        return self

    @model_validator(mode="after")
    def _quantised_where_an_engine_does(self) -> Scenario:
        quantization, backend = self.model.quantization, self.engine.backend
        if quantization is None:
            return self
        if self.hardware.hardware_id == CPU:
            raise ValueError(
                f"model.quantization: {quantization} needs a GPU, found hardware_id {CPU}: vLLM's CPU build does not"
                " start with it, or leaves the activations as they are. Set model.quantization=null, or name a GPU of"
                " compute capability 8.9 or higher (L4, L40S, H100, H200)"
            )
        if backend not in ("vllm", "recorded"):
            raise ValueError(
                f"model.quantization: {quantization} needs engine.backend vllm, or runs of it that were recorded; found"
                f" {backend}, which does not report how weights are quantised. Set model.quantization=null, or change"
                " the backend"
            )
        if self.model.dtype == "float32":
            raise ValueError(
                f"model.quantization: {quantization} needs model.dtype bfloat16 or float16, found float32. Set"
                " model.dtype, or model.quantization=null"
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

    @model_validator(mode="after")
    def _closed_loop_can_be_simulated(self) -> Scenario:
        setting, simulation = self.workload.closed_loop_setting, self.simulation
        if setting is None:
            return self
        for name, value in (("capacity", self.capacity), ("sweep", self.sweep)):
            if value is not None:
                raise ValueError(
                    f"{name} and {setting}: its arrivals are drawn or stretched beforehand, but turns that wait for"
                    f" answers have none. Set {name} to null, or {setting} to false"
                )
        if "published" in simulation.variants or simulation.loop == "event":
            named = "variants with published" if "published" in simulation.variants else "loop event"
            raise ValueError(
                f"simulation.{named} and {setting}: Vidur's own loop takes arrivals known beforehand. Simulate kernels"
                f" and calibrated with loop direct, or set {setting} to false"
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
