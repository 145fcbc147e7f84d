"""The whole graph through the real command line: real engine, real profile, real Vidur, real report.

One full materialization (small overrides of `smoke`) is shared; the tests then look at what it left, reuse it, and kill
runs in its middle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.documents import CapacityMeta, ComparisonMeta, read_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import CapacityErrors, CapacityProbes, read_table
from gst_assets.definitions import defs
from gst_assets.environment import ROOT_VARIABLE
from gst_assets.errors import GstError
from gst_assets.profiling.calibration import ROUNDS
from gst_assets.provenance import PROJECT_ROOT, sha256_file
from gst_assets.step_costs.bundle import load_bundle

pytestmark = pytest.mark.engine

OVERRIDES = [
    "workload.num_requests=24",
    "workload.num_decode_tokens=12",
    "workload.seed=${engine.block_size}",
    "replay.repeats=2",
    "profile.num_tokens=[1,8,32,128,512]",
    "profile.prefill_chunk_sizes=[1,64,512]",
    "profile.prefill_context_sizes=[0,1536]",
    "profile.decode_batch_sizes=[1,8,32]",
    "profile.decode_context_sizes=[1,512,2048]",
    "profile.operator_repeats=3",
    "profile.calibration_prefill_sizes=[8,128,448]",
    "profile.traffic_segment_s=0.5",
]


def materialize(
    root: Path, select: str, *, home: Path | None = None, overrides: list[str] = OVERRIDES, wait: bool = True
) -> subprocess.Popen[str]:
    """`dagster asset materialize` in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    environment |= {"GST_ARTIFACT_ROOT": str(root)}
    if home is not None:
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
        environment["DAGSTER_HOME"] = str(home)
    config = json.dumps({"resources": {"scenario": {"config": {"overrides": overrides}}}})
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "gst_assets.definitions"]
    log = (root.parent / f"log-{time.monotonic_ns()}.txt").open("w+")
    process = subprocess.Popen(
        [*command, "--select", select, "--partition", "smoke", "--config-json", config],
        cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    process.log = Path(log.name)  # type: ignore[attr-defined]
    if wait:
        process.wait(timeout=800)
    return process


def output(process: subprocess.Popen[str]) -> str:
    return process.log.read_text()  # type: ignore[attr-defined]


def assert_succeeds(process: subprocess.Popen[str]) -> None:
    assert process.returncode == 0, output(process)[-6000:]


def staged(root: Path) -> list[Path]:
    """Directories being filled, or left behind by killed processes."""
    return [path for path in (root / ".staging").iterdir() if path.is_dir()]


def wait_until(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """The limit is for what hangs: another engine may run before this one, on a machine with other work. `process` is
    one whose end means that it will not happen."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        if process is not None:
            assert process.poll() is None, output(process)[-6000:]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact root after every asset of the graph was materialized once, without DAGSTER_HOME."""
    path = tmp_path_factory.mktemp("pipeline") / "artifacts"
    path.mkdir()
    assert_succeeds(materialize(path, "*"))
    return path


def test_full_graph_leaves_complete_artifacts(root: Path) -> None:
    store = ArtifactStore(root)
    assert len(store.list(Kind.WORKLOAD)) == 1
    runs = [load_run(store.open(Kind.REAL_RUN, name), "real") for name in store.list(Kind.REAL_RUN)]
    assert [run.meta.repeat_index for run in runs] == [0, 1]
    assert len({run.meta.group_id for run in runs}) == 1
    for run in runs:
        assert (run.requests["status"] == "ok").all()
        assert len(run.tokens) == 24 * 12
        assert run.iterations is not None
        produced = run.iterations["num_decode_requests"].sum() + run.iterations["num_prefill_requests"].sum()
        assert produced >= len(run.tokens)
    simulations = {
        run.meta.variant: run
        for run in (load_run(store.open(Kind.VIDUR_RUN, name), "vidur") for name in store.list(Kind.VIDUR_RUN))
    }
    assert set(simulations) == {"kernels", "calibrated"}
    engine = runs[0].meta.engine_settings
    for run in simulations.values():
        assert run.meta.workload_sha256 == runs[0].meta.workload_sha256
        assert run.meta.simulated_settings["num_kv_blocks"] == engine.num_kv_blocks
        assert len(run.tokens) == 24 * 12
    assert not staged(root)


def test_repeats_were_played_between_the_rounds_of_the_calibration(root: Path) -> None:
    """One engine start: `smoke` asks for it, so that profile and runs meet the same drift. The machine is on record for
    both."""
    store = ArtifactStore(root)
    profile = load_bundle(store.open(Kind.PROFILE, "cpu/qwen3-tiny")).meta
    runs = [load_run(store.open(Kind.REAL_RUN, name), "real").meta for name in store.list(Kind.REAL_RUN)]
    assert all(profile.started_at < run.started_at < run.ended_at < profile.ended_at for run in runs)
    assert profile.machine is not None and len(profile.machine) == ROUNDS
    for record in (*profile.machine, *(run.machine for run in runs)):
        assert record is not None and record.windows and record.cpu_busy is not None and 0 < record.cpu_busy <= 1


def test_report_holds_both_variants_and_its_figures(root: Path) -> None:
    store = ArtifactStore(root)
    directory = store.open(Kind.COMPARISON, store.list(Kind.COMPARISON)[0])
    summary = (directory / "summary.md").read_text()
    errors = pd.read_csv(directory / "tables" / "latency_errors.csv")
    assert set(errors["variant"]) == {"kernels", "calibrated"}
    assert set(errors["metric"]) == {"ttft", "itl", "tpot", "e2e", "normalized", "normalized_execution"}
    assert (directory / "report.html").is_file()
    for figure in (directory / "figs").glob("*.png"):
        assert f"figs/{figure.name}" in summary
    assert len(list((directory / "figs").glob("*_cdf.png"))) == 2
    meta = read_document(ComparisonMeta, directory / "run_meta.json")
    assert len(meta.real_run_dirs) == 2
    # An interpolated override reaches the engine's process as a value, and the report as it was given.
    for made in (meta, *(load_run(Path(run), "real").meta for run in meta.real_run_dirs)):
        assert made.params["workload"]["seed"] == made.params["engine"]["block_size"] == 32
        assert made.hydra.overrides == made.params["overrides"] == OVERRIDES
    assert "`workload.seed=${engine.block_size}`" in summary
    # How they differ depends on the speeds the machine had while each was measured; the adapter's tests hold what
    # calibration does.
    itl = errors[(errors["statistic"] == "p50") & (errors["metric"] == "itl")].set_index("variant")["sim_ns"]
    assert itl["calibrated"] != itl["kernels"]


def test_killed_report_leaves_nothing_and_the_next_one_reuses_the_latest_runs(root: Path, tmp_path: Path) -> None:
    store = ArtifactStore(root)
    before = {kind: store.list(kind) for kind in Kind}
    home = tmp_path / "home"
    process = materialize(root, "comparison_report", home=home, wait=False)
    wait_until(lambda: any((root / ".staging").glob("*/figs")), "the report being written", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert staged(root)
    assert {kind: store.list(kind) for kind in Kind} == before
    assert_succeeds(materialize(root, "comparison_report", home=home))
    after = {kind: store.list(kind) for kind in Kind}
    assert len(after[Kind.COMPARISON]) == len(before[Kind.COMPARISON]) + 1
    assert {kind: after[kind] for kind in Kind if kind is not Kind.COMPARISON} == {
        kind: before[kind] for kind in Kind if kind is not Kind.COMPARISON
    }
    reports = [store.open(Kind.COMPARISON, name) / "tables" / "latency_errors.csv" for name in after[Kind.COMPARISON]]
    assert len({sha256_file(report) for report in reports}) == 1
    assert not staged(root)


def test_simulating_again_gives_the_same_bytes_and_reuses_the_profile(root: Path) -> None:
    store = ArtifactStore(root)
    before = store.list(Kind.VIDUR_RUN)
    process = materialize(root, "vidur_profile,vidur_request_metrics,vidur_token_metrics")
    assert_succeeds(process)
    assert "reusing" in output(process)
    # SCENARIO-TIME-NUMBER-VARIANT[-SEED]
    first = {name.split("-", 3)[3]: name for name in before}
    new = {name.split("-", 3)[3]: name for name in store.list(Kind.VIDUR_RUN) if name not in before}
    assert set(first) == set(new) == {"kernels", "calibrated", *(f"calibrated-seed{seed}" for seed in range(1, 5))}
    for made, name in new.items():
        old = first[made]
        for file in ("request_metrics.csv", "token_metrics.csv", "iterations.csv"):
            assert sha256_file(store.path(Kind.VIDUR_RUN, name) / file) == sha256_file(
                store.path(Kind.VIDUR_RUN, old) / file
            )


def test_capacity_is_searched_on_both_sides_where_the_scenario_asks_for_it(root: Path) -> None:
    store = ArtifactStore(root)
    assert store.list(Kind.CAPACITY) == []  # smoke asks for none, and `--select '*'` succeeded
    search = (
        "capacity={sides: [simulator, engine], max_p99_delay_ms: 100, low_rate_per_s: 5, high_rate_per_s: 400,"
        " relative_tolerance: 0.9, num_requests: 40, seed: 1}"
    )
    assert_succeeds(materialize(root, "capacity", overrides=[*OVERRIDES, search]))
    directory = store.open(Kind.CAPACITY, store.list(Kind.CAPACITY)[0])
    meta = read_document(CapacityMeta, directory / "run_meta.json")
    probes = read_table(CapacityProbes, directory / "capacity_probes.csv")
    assert list(meta.found) == ["engine", "kernels", "calibrated"] == probes["side"].unique().tolist()
    assert meta.engine_settings is not None and meta.engine_settings.backend == "vllm" and meta.profile_sha256
    engine = probes[probes["side"] == "engine"]
    assert (
        engine["p99_lateness_ns"].notna().all() and probes[probes["side"] != "engine"]["p99_lateness_ns"].isna().all()
    )
    # 40 requests in 0.1 s are more than the engine keeps up with, on whatever machine.
    assert engine["verdict"].iloc[engine["rate_per_s"].argmax()] == "broken"
    for side, found in meta.found.items():
        assert found.num_probes == (probes["side"] == side).sum() and "fewer than 10" in found.flags[0]
    assert {"summary.md", "delay_by_rate.png"} <= {path.name for path in directory.iterdir()}
    assert not staged(root)
    # A comparison with the same settings compares both capacities; the one before knew of none.
    known = set(store.list(Kind.COMPARISON))
    assert_succeeds(materialize(root, "comparison_report", overrides=[*OVERRIDES, search]))
    (after,) = set(store.list(Kind.COMPARISON)) - known
    told = {name: (store.path(Kind.COMPARISON, name) / "summary.md").read_text() for name in (*known, after)}
    assert "Capacity, requests/s (highest rate of Poisson arrivals" in told.pop(after)
    assert told and not any("Capacity" in text for text in told.values())
    errors = read_table(CapacityErrors, store.path(Kind.COMPARISON, after) / "tables" / CapacityErrors.file_name())
    assert errors["variant"].tolist() == ["kernels", "calibrated"]


def refusal(root: Path, monkeypatch: pytest.MonkeyPatch, assets: list[str], *changes: str) -> str:
    """The one error of a run in this process, with the run config that the command line would be given."""
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    with pytest.raises(GstError) as raised:
        defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in assets],
            partition_key="smoke",
            run_config={"resources": {"scenario": {"config": {"overrides": [*OVERRIDES, *changes]}}}},
        )
    return str(raised.value)


def test_other_overrides_than_the_workload_was_built_with_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = ["vidur_request_metrics", "vidur_token_metrics"]
    told = refusal(root, monkeypatch, simulated, "workload.num_decode_tokens=13")
    assert "built with workload.num_decode_tokens = 12, but scenario smoke now asks for 13" in told


def test_a_report_on_runs_of_other_settings_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ArtifactStore(root).list(Kind.COMPARISON)
    told = refusal(root, monkeypatch, ["comparison_report"], "engine.max_num_seqs=8")
    assert "built with engine.max_num_seqs = 32, but scenario smoke now asks for 8" in told
    assert ArtifactStore(root).list(Kind.COMPARISON) == before


def test_missing_upstream_says_what_to_materialize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(tmp_path, monkeypatch, ["comparison_report"])
    assert "no real run for scenario smoke. Materialize real_request_metrics for this partition first" in told
    assert ArtifactStore(tmp_path).list(Kind.COMPARISON) == []


def test_unknown_override_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    process = materialize(root, "prompts", overrides=["workload.colour=red"])
    assert process.returncode != 0
    assert "workload.colour: unknown key. Allowed here: arrivals, num_decode_tokens" in output(process)
    assert not (root / "workloads").exists()


def test_killed_real_run_leaves_nothing_and_the_next_one_is_measured_on_an_engine_of_its_own(
    root: Path, tmp_path: Path
) -> None:
    store, home = (
        ArtifactStore(root),
        tmp_path / "home",
    )  # without a home, a killed Dagster leaves its own in the checkout
    profile = load_bundle(store.open(Kind.PROFILE, "cpu/qwen3-tiny")).meta
    before, pointer = store.list(Kind.REAL_RUN), store.current("smoke", "real_runs")
    process = materialize(root, "real_request_metrics,real_token_metrics", home=home, wait=False)
    wait_until(lambda: "repeat 2 of 2: playing" in output(process), "the second repeat", process)
    assert staged(root)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not _engine_processes(root), "the engine's processes ending with their parent")
    assert store.list(Kind.REAL_RUN) == before
    assert store.current("smoke", "real_runs") == pointer
    assert_succeeds(materialize(root, "real_request_metrics,real_token_metrics"))
    new = [
        load_run(store.open(Kind.REAL_RUN, name), "real") for name in store.list(Kind.REAL_RUN) if name not in before
    ]
    assert len(new) == 2 and all(run.meta.started_at > profile.ended_at for run in new)
    assert load_bundle(store.open(Kind.PROFILE, "cpu/qwen3-tiny")).meta == profile
    assert not staged(root)


def _engine_processes(root: Path) -> list[int]:
    """Processes whose command line names this artifact root: the measuring child and nothing of other tests."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if "gst_assets.engine.run" in command and str(root) in command:
                found.append(int(entry.name))
    return found
