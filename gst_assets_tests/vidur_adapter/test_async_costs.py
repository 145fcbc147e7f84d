"""Costs of an asynchronous engine's steps, on the shipped H100 profile."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pandas as pd
import pytest
from gst_assets.vidur_adapter.async_costs import AsynchronousStepCosts, HostSpeedTrace
from gst_assets.vidur_adapter.operator_times import StepShape
from gst_assets.vidur_adapter.overheads import Composition, Piece
from gst_assets.vidur_adapter.steps import CapturedGraphs

from gst_assets.errors import ProfileError
from gst_assets.profiling.bundle import Bundle, check_bundle, load_bundle
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario
from gst_assets.vidur_adapter import engine_loop
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.vidur_adapter import support

NAME = "h100_quarter"
ROWS = [(30_000_000 * (i % 3), 60 + 150 * (i % 7), 12 + 5 * (i % 4)) for i in range(24)]


class Operators:
    """1 ms whatever the step holds."""

    def ns(self, shape: StepShape) -> float:  # noqa: ARG002 - as OperatorTimes
        return 1e6

    def decode_piece(self, num_decodes: int, context: float) -> Piece:  # noqa: ARG002 - as OperatorTimes
        return Piece(lambda at: 1e6 + 0.0 * at, inf)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(PROJECT_ROOT / "data" / "profiles" / "h100" / "qwen3-0.6b")


def run(bundle: Bundle, *overrides: str) -> SimulationResult:
    lengths, intervals = support.workload(ROWS)
    return simulate(load_scenario(NAME, overrides), lengths, intervals, bundle, "calibrated", cache_dir=None)


def test_the_shipped_profile_serves_its_scenarios(bundle: Bundle) -> None:
    for name in ("h100_spaced", "h100_quarter", "h100_half", "h100_document"):
        check_bundle(bundle, load_scenario(name))


def test_the_engine_is_simulated_as_it_schedules_and_to_the_byte(bundle: Bundle) -> None:
    first, again = run(bundle), run(bundle)
    assert first.settings["async_scheduling"] is True
    assert support.csv_bytes(first) == support.csv_bytes(again)
    # Step n+1 is formed before step n is handed out.
    steps = first.iterations
    assert (steps["scheduled_time_ns"].iloc[1:].to_numpy() < steps["completion_time_ns"].iloc[:-1].to_numpy()).any()


def test_steps_at_once_are_steps_one_by_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = run(bundle)
    monkeypatch.setattr(engine_loop.EngineLoop, "_run_decodes", lambda *_: False)
    one_by_one = run(bundle)
    assert support.csv_bytes(one_by_one) == support.csv_bytes(at_once)
    assert one_by_one.settings == at_once.settings


def test_the_seed_orders_the_hosts_moments_and_medians_know_none(bundle: Bundle) -> None:
    still = "simulation.host_variability=false"
    assert support.csv_bytes(run(bundle, "simulation.seed=1")) != support.csv_bytes(run(bundle))
    assert support.csv_bytes(run(bundle, still, "simulation.seed=1")) == support.csv_bytes(run(bundle, still))


def test_a_bundle_without_a_term_or_the_trace_is_refused(bundle: Bundle) -> None:
    assert bundle.overheads is not None
    scenario = load_scenario(NAME)
    for term in ("host_after_idle", "process", "turnaround", "device"):
        without = replace(bundle, overheads=bundle.overheads[bundle.overheads["term"] != term].reset_index(drop=True))
        with pytest.raises(ProfileError, match=f"no {term} rows"):
            check_bundle(without, scenario)
        with pytest.raises(ProfileError, match=f"no {term} rows"):
            run(without)
    with pytest.raises(ProfileError, match=r"host_speed\.csv: missing"):
        check_bundle(replace(bundle, host_speed=None), scenario)


def test_a_step_after_an_idle_time_and_in_a_slow_moment_takes_longer(bundle: Bundle) -> None:
    assert bundle.overheads is not None
    table = pd.DataFrame({"time_ns": [0, 500], "has_prefill": [False, True], "ratio": [1.0, 2.0]})
    graphs = CapturedGraphs(bundle.meta.engine_settings.cudagraph_capture_sizes)

    def costs(speed: HostSpeedTrace | None) -> AsynchronousStepCosts:
        return AsynchronousStepCosts(
            bundle.overheads, speed, Operators(), graphs, graphs.reachable_kinds(2048), "over.csv"
        )

    prompt = Composition(1, 64, 0, 0)
    plain, slow = costs(None), costs(HostSpeedTrace(table, 0))
    assert plain.host_ns(prompt, 0, after_idle=True) > 1.05 * plain.host_ns(prompt, 0, after_idle=False)
    assert slow.host_ns(prompt, 0, after_idle=False) == pytest.approx(
        2 * plain.host_ns(prompt, 0, after_idle=False), rel=1e-6
    )
    assert plain.host_ns(Composition(1, 2000, 0, 0), 0, after_idle=False) > 1.5 * plain.host_ns(
        prompt, 0, after_idle=False
    )
    assert plain.device_ns(Composition(0, 0, 1, 100)) > 1e6
