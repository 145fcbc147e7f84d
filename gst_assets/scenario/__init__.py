"""What a run is: the typed, frozen `Scenario`, composed from YAML files and overrides.

One file per scenario in `gst_assets/scenarios/`; its name is the Dagster partition. A file may name parents under
`extends`; later ones win, then the file itself, then overrides. What the settings do belongs to the packages that read
them.
"""

from gst_assets.scenario.comparison_section import Bands, Regression, ServiceLevel
from gst_assets.scenario.engine_section import EngineSection, Replay, Sampling, Server
from gst_assets.scenario.files import SCENARIO_DIR, scenario_directories, scenario_files, scenario_names
from gst_assets.scenario.loading import load_file, load_scenario, read_reference, read_resolved, resolve_path
from gst_assets.scenario.model_section import CPU, Geometry, HardwareSection, Model
from gst_assets.scenario.profile_section import Profile
from gst_assets.scenario.sections import Scenario
from gst_assets.scenario.simulation_section import Capacity, Simulation, Sweep, Variant
from gst_assets.scenario.traffic_time import traffic_s
from gst_assets.scenario.workload_section import (
    Arrivals,
    EmpiricalLength,
    FixedInterval,
    FixedLength,
    Gamma,
    Lengths,
    LognormalLength,
    Piece,
    Piecewise,
    Poisson,
    Ramp,
    SessionSource,
    Static,
    SyntheticSource,
    TraceArrivals,
    TraceSource,
    TurnTimes,
    UniformLength,
    Workload,
    ZipfLength,
)

__all__ = [
    "CPU",
    "SCENARIO_DIR",
    "Arrivals",
    "Bands",
    "Capacity",
    "EmpiricalLength",
    "EngineSection",
    "FixedInterval",
    "FixedLength",
    "Gamma",
    "Geometry",
    "HardwareSection",
    "Lengths",
    "LognormalLength",
    "Model",
    "Piece",
    "Piecewise",
    "Poisson",
    "Profile",
    "Ramp",
    "Regression",
    "Replay",
    "Sampling",
    "Scenario",
    "Server",
    "ServiceLevel",
    "SessionSource",
    "Simulation",
    "Static",
    "Sweep",
    "SyntheticSource",
    "TraceArrivals",
    "TraceSource",
    "TurnTimes",
    "UniformLength",
    "Variant",
    "Workload",
    "ZipfLength",
    "load_file",
    "load_scenario",
    "read_reference",
    "read_resolved",
    "resolve_path",
    "scenario_directories",
    "scenario_files",
    "scenario_names",
    "traffic_s",
]
