"""How far the simulation is from vLLM's CPU build on this machine, in five regimes: `python benchmarks/cpu_fidelity.py
--out DIR`.

Searches the engine's capacity (scenario cpu_capacity), unless --capacity gives it; then, on one engine start, measures
the profile with the repeats of cpu_spaced, cpu_quarter, cpu_half, cpu_high and cpu_static between its calibration
rounds, so that calibration and runs meet the same drift of the machine. The Poisson regimes run at 25, 50 and 85 % of
the capacity found, for --traffic-s seconds. Then prints the cells (P50 and P90, 10 % band) and the ablation on
cpu_half, as `benchmarks/fidelity_tables.py` does. About 22 minutes on a quiet two-core machine; what else runs there is
in the figures.

DIR gets: capacity/ (the search), artifacts/workloads/, profile/ (the bundle), runs/ (run directories), cpu_fidelity.md
(what is printed). It must be absent or empty.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import positive

from gst_assets.contracts.documents import CapacityMeta, read_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.engine.launch import run_module
from gst_assets.engine.machine_lock import machine_lock
from gst_assets.errors import GstError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario

SHARES = {"cpu_quarter": 0.25, "cpu_half": 0.5, "cpu_high": 0.85}
NAMES = ("cpu_spaced", "cpu_quarter", "cpu_half", "cpu_high", "cpu_static")
ABLATED = "cpu_half"
_LOCK_S = 7200.0
_QUIET = {"PYTHONWARNINGS": "ignore"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--capacity", type=positive(float), help="requests per second; default: searched for")
    parser.add_argument(
        "--traffic-s", type=positive(float), default=22.0, help="seconds of traffic of a Poisson repeat"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for every scenario, capacity and profile included",
    )
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {out}: no directory can be created there ({error.strerror}).")
    if any(out.iterdir()):
        sys.exit(f"error: {out}: not empty. Name another --out.")
    try:
        with machine_lock(_LOCK_S, print, "cpu_fidelity"):
            capacity = arguments.capacity or _capacity(out, arguments.override)
            overrides = {name: _overrides(name, capacity, arguments) for name in NAMES}
            workloads = {name: _workload(out / "artifacts", name, overrides[name]) for name in NAMES}
            _measure(out, overrides, workloads)
    except GstError as error:
        sys.exit(f"error: {error}")
    return _print(out, arguments.override)


def _capacity(out: Path, overrides: Sequence[str]) -> float:
    """The engine's capacity in requests per second, searched for."""
    file = _resolved(out, load_scenario("cpu_capacity", overrides))
    arguments = ["--scenario", str(file), "--group-id", "cpu_capacity", "--out", str(out / "capacity")]
    run_module("gst_assets.capacity.engine_probe", arguments, env=_QUIET, on_line=print)
    meta = read_document(CapacityMeta, out / "capacity" / "cpu_capacity" / Kind.CAPACITY.meta_name)
    found = meta.found["engine"]
    if found.status != "found" or found.capacity_per_s is None:
        sys.exit(
            f"error: no capacity was found: {found.reason}. Widen capacity.low_rate_per_s to high_rate_per_s, or give"
            " --capacity."
        )
    return found.capacity_per_s


def _overrides(name: str, capacity: float, arguments: argparse.Namespace) -> list[str]:
    own: list[str] = []
    if name in SHARES:
        rate = round(SHARES[name] * capacity, 3)
        own = [
            f"workload.arrivals.rate_per_s={rate}",
            f"workload.num_requests={max(2, round(rate * arguments.traffic_s))}",
        ]
    return [*own, *arguments.override]


def _workload(root: Path, name: str, overrides: list[str]) -> Path:
    """The scenario's workload directory, built by the project's own assets."""
    import dagster as dg

    from gst_assets.definitions import defs

    config = {"artifacts": {"config": {"root": str(root)}}, "scenario": {"config": {"overrides": overrides}}}
    job = defs.resolve_implicit_global_asset_job_def()
    selection = [dg.AssetKey(asset) for asset in ("prompts", "trace_lengths", "trace_intervals", "workload_spec")]
    result = job.execute_in_process(
        partition_key=name,
        asset_selection=selection,
        run_config={"resources": config, "loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    assert result.success
    store = ArtifactStore(root)
    pointer = store.current(name, "workload")
    assert pointer is not None
    return store.open(Kind.WORKLOAD, pointer["workload_id"])


def _measure(out: Path, overrides: dict[str, list[str]], workloads: dict[str, Path]) -> None:
    """The profile, with the repeats between its calibration rounds."""
    arguments = [
        "--scenario",
        str(_resolved(out, load_scenario(ABLATED, overrides[ABLATED]))),
        "--out",
        str(out / "profile"),
    ]
    for name in NAMES:
        arguments += ["--between", str(workloads[name]), str(_resolved(out, load_scenario(name, overrides[name])))]
    run_module(
        "gst_assets.profiling.measure_bundle", [*arguments, "--runs", str(out / "runs")], env=_QUIET, on_line=print
    )


def _resolved(out: Path, scenario: Scenario) -> Path:
    path = out / f"{scenario.name}.json"
    path.write_text(scenario.model_dump_json(indent=2), encoding="utf-8")
    return path


def _print(out: Path, overrides: Sequence[str]) -> int:
    """The tables, printed and kept."""
    runs = [word for name in NAMES for word in ("--runs", f"{name}={out / 'runs'}")]
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(PROJECT_ROOT / "benchmarks" / "fidelity_tables.py"),
        *NAMES,
        *runs,
        "--profile",
        str(out / "profile"),
        "--band",
        "10",
        "--percentiles",
        "50",
        "90",
        "--ablate",
        ABLATED,
        *(f"--override={one}" for one in overrides),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if done.returncode == 0:
        (out / "cpu_fidelity.md").write_text(done.stdout, encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
