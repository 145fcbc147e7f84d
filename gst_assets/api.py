"""The public API: the names that programs outside this project may rely on. Described, with an example, in docs/api.md.

Everything else in the package may change between versions without notice; a change of these names, or of what they do,
is in CHANGELOG.md. Needs the extra `compare`; simulating `published`, or with Vidur's event loop, needs `platform`.
"""

from gst_assets.analysis.compare import compare_directories
from gst_assets.analysis.judged_errors import Comparison
from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import GstError
from gst_assets.scenario import Scenario, load_scenario, resolve_path, scenario_names
from gst_assets.step_costs.bundle import find_bundle, load_bundle
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets.workload import load as load_workload

__all__ = [
    "ArtifactStore",
    "Comparison",
    "GstError",
    "Kind",
    "Scenario",
    "compare_directories",
    "find_bundle",
    "load_bundle",
    "load_run",
    "load_scenario",
    "load_workload",
    "open_store",
    "resolve_path",
    "scenario_names",
    "simulate",
]
