"""Turns that wait for answers on the real engine, through the measuring command, beside simulations of them in a report,
and played back from the packed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.analysis.alignment import same_turns_wait
from gst_assets.analysis.gate import CLOSED_LOOP
from gst_assets.analysis.judged_errors import compare
from gst_assets.analysis.report import write_comparison
from gst_assets.analysis.run_reading import load_run
from gst_assets.assets.real_runs import NAMES, current_real_runs
from gst_assets.contracts.store import ArtifactStore
from gst_assets.contracts.tables import RequestMetrics, read_table
from gst_assets.engine.launch import run_module
from gst_assets.engine.recorded import pack
from gst_assets.scenario import Bands, load_scenario
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets.workload.building import build
from gst_assets.workload.tokenized import prompts_of
from gst_assets_tests.analysis.run_directories import write_simulation
from gst_assets_tests.analysis.test_closed_loop import recipe
from gst_assets_tests.assets.test_recorded import WORKLOAD, materialize

pytestmark = pytest.mark.engine

SESSIONS = (
    "{num_sessions: 8, session_rate_per_s: 1.0, min_turns: 2, max_turns: 4, least_turn_gap_s: 0.2, mean_turn_gap_s:"
    " 0.4, num_system_prompts: 2, system_tokens: {kind: uniform, min_tokens: 60, max_tokens: 200}, user_tokens: {kind:"
    " uniform, min_tokens: 5, max_tokens: 60}, decode_tokens: {kind: uniform, min_tokens: 8, max_tokens: 24},"
    " closed_loop: true}"
)
OVERRIDES = [
    "workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null",
    "workload.arrivals={kind: trace}", f"workload.sessions={SESSIONS}", "engine.enable_prefix_caching=true",
    "replay.repeats=2", "replay.between_calibration=false",
]  # fmt: skip
HANDOVER_NS = min(row["ns"] for row in support.default_overheads() if row["term"] == "handover")


def test_a_real_engine_and_a_simulation_with_turns_that_wait(tmp_path: Path) -> None:
    scenario = load_scenario("smoke", OVERRIDES)
    (tmp_path / "workload").mkdir()
    workload = build(scenario, tmp_path / "workload")
    resolved, out = tmp_path / "scenario.json", tmp_path / "out"
    resolved.write_text(scenario.model_dump_json())
    names = ["--workload", str(workload.directory), "--scenario", str(resolved), "--out", str(out), "--group-id", "g"]
    run_module("gst_assets.engine.run", names)

    results = {
        variant: simulate(
            scenario, workload.lengths, workload.intervals, support.bundle(scenario), variant,
            cache_dir=None, prompts=prompts_of(workload, scenario),
        )
        for variant in ("kernels", "calibrated")
    }  # fmt: skip
    think = workload.intervals["think_time_ns"]
    waits = think.notna()
    real = []
    for repeat in range(2):
        directory = out / f"g-r{repeat}"
        found = read_table(RequestMetrics, directory / "request_metrics.csv")  # holds each arrival to the think time
        assert (found["status"] == "ok").all()
        assert found["previous_request_id"].equals(workload.intervals["previous_request_id"])
        before = found["previous_request_id"][waits].to_numpy(dtype="int64")
        ended = found["completion_time_ns"].to_numpy(dtype="int64")[before]
        assert ((found["arrival_time_ns"][waits] - ended) == think[waits]).all()
        assert (found["send_time_ns"] >= found["arrival_time_ns"]).all()
        # Nearly nothing overlaps: what is in the cache does not depend on times.
        for result in results.values():
            assert found["num_cached_tokens"].tolist() == result.requests["num_cached_tokens"].tolist()
        assert found["num_cached_tokens"].sum() > 0
        real.append(load_run(directory, "real"))

    # Handed over some time after it was due, and its answer delivered some time after the step: both are measured terms
    # of the profile, and the next turn is due a think time after the delivery.
    requests = results["calibrated"].requests
    assert (requests["scheduled_time_ns"] - requests["arrival_time_ns"] >= HANDOVER_NS).all()
    ended = requests["completion_time_ns"].to_numpy(dtype="int64")
    assert not set(ended) & set(results["calibrated"].iterations["completion_time_ns"])
    before = requests["previous_request_id"][waits].to_numpy(dtype="int64")
    assert (requests["arrival_time_ns"][waits] - ended[before]).tolist() == think[waits].tolist()

    shared = {name: getattr(real[0].meta, name) for name in ("workload_id", "workload_sha256", "model", "params")}
    meta = shared | {"hardware": real[0].meta.hardware.model_dump(mode="json")}
    sims = {
        variant: load_run(write_simulation(tmp_path / variant, recipe(result).with_meta(**meta), variant), "vidur")
        for variant, result in results.items()
    }
    found = compare(real, sims, bands=Bands(), calibration_sha256=set())
    assert found.num_sessions == 8
    said = {check.variants: check.finding for check in found.checks if check.check == CLOSED_LOOP}
    assert set(said) == {("kernels",), ("calibrated",)}
    assert all("Simulated, against the median of 2 repeats:" in text for text in said.values())
    (tmp_path / "report").mkdir()
    write_comparison(found, tmp_path / "report", None)
    text = (tmp_path / "report" / "summary.md").read_text()
    assert "Closed loop inside 8 sessions, open loop between them" in text
    assert "in 8 sessions whose turns wait for answers (closed loop)" in text.partition("## ")[0]
    assert "later turns arrived" in text

    # Packed, it is played back through Dagster as it was measured.
    for run in real:
        pack(run.directory, tmp_path / "packed")
    played = ["engine.backend=recorded", f"engine.recorded={tmp_path / 'packed'}"]
    assert materialize(tmp_path / "artifacts", [*WORKLOAD, *NAMES], "smoke", [*OVERRIDES, *played]).success
    store = ArtifactStore(tmp_path / "artifacts")
    again = current_real_runs(store, load_scenario("smoke", [*OVERRIDES, *played]))
    assert [run.meta.run_id for run in again] == ["g-r0", "g-r1"]
    for one, other in zip(real, again, strict=True):
        for name in one.meta.sha256:
            assert (other.directory / name).read_bytes() == (one.directory / name).read_bytes()
        assert same_turns_wait(one, other)
    repeated = compare(again, sims, bands=Bands(), calibration_sha256=set())
    assert repeated.latency_errors.equals(found.latency_errors) and repeated.num_sessions == 8
