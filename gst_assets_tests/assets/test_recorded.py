"""Recorded runs through Dagster on a machine without their GPU: workloads come out identical, runs are expanded,
checked and reused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from gst_assets.analysis.judged_errors import compare
from gst_assets.analysis.run_reading import RealRun, Run, SimulatedRun, load_run
from gst_assets.assets.comparisons import comparison_report
from gst_assets.assets.measurements import measurements
from gst_assets.assets.real_runs import NAMES, current_real_runs
from gst_assets.assets.vidur_runs import current_vidur_runs, vidur_metrics
from gst_assets.assets.workloads import workload
from gst_assets.contracts.documents import ComparisonMeta, VidurRunMeta, read_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import CachedTokens, read_table
from gst_assets.engine.recorded import expand, list_recorded
from gst_assets.errors import ArtifactError, GstError, ProfileError, WorkloadError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot
from gst_assets.scenario import load_scenario

WORKLOADS = {
    "h100_8b_single": "wl-2dea3c17e9f5407b",
    "h100_8b_quarter": "wl-10aadfb5213ba08a",
    "h100_8b_half": "wl-4d68fb462fa2f5c2",
    "h100_8b_high": "wl-c98e54297caeec2f",
    "h100_8b_document": "wl-33c09e45c3f7c4d9",
}
WORKLOAD = ["prompts", "trace_lengths", "trace_intervals", "workload_spec"]


def materialize(
    root: Path, assets: Sequence[str], scenario: str, overrides: Sequence[str] = ()
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [workload, measurements, vidur_metrics, comparison_report],
        selection=dg.AssetSelection.assets(*assets),
        partition_key=scenario,
        resources={
            "scenario": ScenarioResource(overrides=list(overrides)),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(),
            "engine": EngineResource(),
            "profiling_root": VidurProfilingRoot(),
        },
    )


def refusal(root: Path, assets: Sequence[str], scenario: str, overrides: Sequence[str] = ()) -> GstError:
    with pytest.raises(GstError) as raised:
        materialize(root, assets, scenario, overrides)
    print(raised.value)
    return raised.value


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact root with the workload and the recorded runs of every recorded scenario."""
    path = tmp_path_factory.mktemp("recorded") / "artifacts"
    for name in WORKLOADS:
        assert materialize(path, [*WORKLOAD, *NAMES], name).success
    return path


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_workload_is_the_recorded_one_and_every_repeat_is_there(root: Path, name: str) -> None:
    store = ArtifactStore(root)
    pointer = store.current(name, "workload")
    assert pointer is not None and pointer["workload_id"] == WORKLOADS[name]
    runs = current_real_runs(store, load_scenario(name))
    kept = list_recorded(PROJECT_ROOT / "data" / "recorded" / name)
    assert [run.meta for run in runs] == [run.meta for run in kept]
    for run in runs:
        assert run.meta.workload_id == WORKLOADS[name]
        assert (run.requests["status"] == "ok").all()
        assert run.iterations is not None
        assert (root / run.meta.workload_dir).is_dir()
    assert not [path for path in (root / ".staging").iterdir() if path.is_dir()]


def test_playing_back_again_reuses_the_runs_and_says_that_they_are_recorded(root: Path) -> None:
    store = ArtifactStore(root)
    before = {name: store.path(Kind.REAL_RUN, name).stat().st_ino for name in store.list(Kind.REAL_RUN)}
    result = materialize(root, NAMES, "h100_8b_single")
    assert {name: store.path(Kind.REAL_RUN, name).stat().st_ino for name in store.list(Kind.REAL_RUN)} == before
    for event in result.asset_materializations_for_node("measurements"):
        assert event.metadata["recorded"].value is True
        assert event.metadata["num_repeats"].value == 5
        assert str(event.metadata["measured_at"].value).startswith("2026-11-26T19:01:40")
        assert str(event.metadata["measured_on"].value).startswith("NVIDIA H100 80GB HBM3, Linux")


def test_fewer_repeats_take_the_first_runs_and_only_where_they_are_asked_for(root: Path) -> None:
    overrides = ["replay.repeats=2"]
    materialize(root, NAMES, "h100_8b_single", overrides)
    found = [
        [
            run.meta.repeat_index
            for run in current_real_runs(ArtifactStore(root), load_scenario("h100_8b_single", asked))
        ]
        for asked in (overrides, [])
    ]
    assert found == [[0, 1], [0, 1, 2, 3, 4]]


def test_a_changed_run_of_the_same_id_in_the_artifact_root_is_refused(tmp_path: Path) -> None:
    materialize(tmp_path, [*WORKLOAD, *NAMES], "h100_8b_single")
    store = ArtifactStore(tmp_path)
    names = store.list(Kind.REAL_RUN)
    table = store.path(Kind.REAL_RUN, names[0]) / "request_metrics.csv"
    kept = table.read_bytes()
    table.write_bytes(kept.replace(b"7", b"8", 1))
    assert f"{table.parent}: already exists with other content" in str(refusal(tmp_path, NAMES, "h100_8b_single"))
    table.write_bytes(kept)
    meta = store.path(Kind.REAL_RUN, names[1]) / "run_meta.json"
    meta.write_text(meta.read_text().replace('"NVIDIA H100 80GB HBM3"', '"NVIDIA H200"'))
    error = refusal(tmp_path, NAMES, "h100_8b_single")
    assert isinstance(error, ArtifactError)
    assert f"{meta}: differs from that of the recorded run" in str(error)


def test_another_workload_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    overrides = ["workload.num_decode_tokens=32"]
    error = refusal(tmp_path, [*WORKLOAD, *NAMES], "h100_8b_single", overrides)
    assert isinstance(error, WorkloadError)
    pointer = ArtifactStore(tmp_path).current("h100_8b_single", "workload")
    assert pointer is not None
    assert (
        f"recorded with workload {WORKLOADS['h100_8b_single']}, but the scenario's workload is {pointer['workload_id']}"
        in str(error)
    )
    assert "(trace_lengths.csv differ)" in str(error)
    assert ArtifactStore(tmp_path).list(Kind.REAL_RUN) == []
    assert ArtifactStore(tmp_path).current("h100_8b_single", "real_runs") is None


def test_without_a_bundle_of_that_gpu_the_profile_fails_and_no_engine_starts(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    error = refusal(tmp_path, ["vidur_profile"], "h100_8b_single", [f"profile.root={bundles}"])
    assert isinstance(error, ProfileError)
    assert str(error).startswith(f"{bundles / 'h100' / 'qwen3-8b'}: no complete profiling bundle for hardware_id h100")
    # The runs are there all the same.
    assert isinstance(
        refusal(tmp_path, [*WORKLOAD, *NAMES, "vidur_profile"], "h100_8b_single", [f"profile.root={bundles}"]),
        ProfileError,
    )
    assert len(ArtifactStore(tmp_path).list(Kind.REAL_RUN)) == 5
    # Without a root of its own either: what this machine could measure would not be a profile of that GPU.
    error = refusal(tmp_path, ["vidur_profile"], "h100_8b_single", ["profile.root=null"])
    assert isinstance(error, ProfileError)
    assert str(error).startswith(f"{tmp_path / 'vidur_profiling' / 'h100' / 'qwen3-8b'}: no complete profiling bundle")


@pytest.mark.parametrize("found", [None, 1])
def test_a_bundle_of_the_older_format_is_refused_with_the_remedy(tmp_path: Path, found: int | None) -> None:
    """Its terms hold waits. The first format did not say its number."""
    bundles = tmp_path / "bundles"
    shutil.copytree(PROJECT_ROOT / "data" / "profiles", bundles)
    path = bundles / "h100" / "qwen3-8b" / "run_meta.json"
    (path.parent / "sha256sums.txt").unlink()
    meta = json.loads(path.read_text())
    assert meta.pop("format_version") == 2
    path.write_text(json.dumps(meta if found is None else meta | {"format_version": found}))
    error = refusal(tmp_path, ["vidur_profile"], "h100_8b_half", [f"profile.root={bundles}"])
    assert isinstance(error, ProfileError)
    assert (
        str(error) == f"{path}: format_version is 1, expected 2: what its terms mean has changed. "
        "Measure again with `gst profile`, or point profile.root to another bundle."
    )


def test_the_analysis_takes_a_recorded_repeat_as_any_other_run(root: Path) -> None:
    """Real against real: a repeat compared with itself has no error, and with another repeat the difference of the
    two."""
    store = ArtifactStore(root)
    first, second = (
        load_run(store.path(Kind.REAL_RUN, run.meta.run_id), "real")
        for run in list_recorded(PROJECT_ROOT / "data" / "recorded" / "h100_8b_quarter")[:2]
    )
    bands = load_scenario("h100_8b_quarter").comparison
    same = compare([first], {"kernels": _as_simulation(first)}, bands=bands)
    assert {cell.error_ns for cell in same.cells} == {0.0}
    medians = same.latency_errors[same.latency_errors["statistic"] == "p50"]
    assert (medians[["interval_low", "interval_high"]] == 0).all(axis=None)
    # 72 requests are too few for a P90, and hold too few independent stretches for the rest.
    assert medians["interval_flagged"].all() and same.verdict.outcome == "insufficient"
    other = compare([first], {"kernels": _as_simulation(second)}, bands=bands)
    cell = next(cell for cell in other.cells if cell.name == "ITL P50")
    gaps = [run.tokens.loc[run.tokens["token_index"] > 0, "token_latency_ns"].median() for run in (first, second)]
    assert cell.relative_error == pytest.approx(gaps[1] / gaps[0] - 1)
    print(other.latency_errors[["metric", "statistic", "real_ns", "sim_ns", "relative_error"]].to_string())


def test_a_variant_that_depends_on_its_seed_is_simulated_under_each_and_an_exact_one_once(tmp_path: Path) -> None:
    """`kernels` is exact, `calibrated` replays the host's speed in an order that its seed decides."""
    overrides = ["simulation.seeds=3", "simulation.seed=7"]
    measured = [*NAMES, "vidur_profile"]
    simulated = ["vidur_request_metrics", "vidur_token_metrics"]
    chain = [*WORKLOAD, *measured, *simulated, "comparison_report"]
    materialize(tmp_path, chain, "h100_8b_single", overrides)
    store, chosen = ArtifactStore(tmp_path), load_scenario("h100_8b_single", overrides)
    made = current_vidur_runs(store, chosen)
    further = made.further
    assert {variant: [run.meta.params["simulation"]["seed"] for run in runs] for variant, runs in further.items()} == {
        "kernels": [],
        "calibrated": [8, 9],
    }
    first = made.first["calibrated"]
    assert first.meta.params["simulation"]["seed"] == 7
    assert len({run.meta.sha256["token_metrics.csv"] for run in (first, *further["calibrated"])}) == 3
    (comparison,) = store.list(Kind.COMPARISON)
    meta = read_document(ComparisonMeta, store.path(Kind.COMPARISON, comparison) / "run_meta.json")
    assert meta.seed_run_dirs == {"kernels": [], "calibrated": [str(run.directory) for run in further["calibrated"]]}


def test_the_recorded_prefix_cache_is_simulated_request_by_request(tmp_path: Path) -> None:
    """Every repeat, both variants; the sentence stands in the UI and in the summary."""
    simulated = ["vidur_request_metrics", "vidur_token_metrics"]
    chain = [*WORKLOAD, *NAMES, "vidur_profile", *simulated, "comparison_report"]
    result = materialize(tmp_path, chain, "h100_8b_prefix", ["simulation.seeds=1"])
    (event,) = result.asset_materializations_for_node("comparison_report")
    sentence = str(event.metadata["prefix_cache"].value)
    assert sentence == (
        "Hit rate of the prefix cache: real 81.6 %, `calibrated` 81.6 %; cached tokens are equal in 206 of 206 requests"
        " (real repeats among each other: 206 of 206)."
    )
    store = ArtifactStore(tmp_path)
    (comparison,) = store.list(Kind.COMPARISON)
    directory = store.path(Kind.COMPARISON, comparison)
    assert sentence in (directory / "summary.md").read_text()
    table = read_table(CachedTokens, directory / "tables" / CachedTokens.file_name())
    assert len(table) == 3 * 2 + 3 and (table["num_equal"] == 206).all()
    for run in list_recorded(PROJECT_ROOT / "data" / "recorded" / "h100_8b_prefix"):
        requests = pd.read_csv(expand(run.directory, tmp_path / "plain") / "request_metrics.csv")
        mine = table[table["run_id"] == run.meta.run_id]
        assert (mine["num_real_cached_tokens"] == requests["num_cached_tokens"].sum()).all()


def _as_simulation(run: RealRun) -> SimulatedRun:
    """A real run in the place of the simulation, with the engine's own settings as those simulated."""
    meta = VidurRunMeta.model_validate(
        json.loads(run.meta.model_dump_json())
        | {
            "run_type": "vidur",
            "profiling_root": "absent",
            "profile_sha256": {},
            "variant": "kernels",
            "predictor": "interpolation",
            "simulated_settings": run.meta.engine_settings.model_dump(mode="json"),
            "num_preemptions": 0,
        }
    )
    return Run(run.directory, meta, run.requests, run.tokens, run.iterations)


def test_the_page_shows_the_figures_of_the_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/recorded_figures.py", "--check"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"run scripts/recorded_figures.py: {done.stderr}"
    page = (PROJECT_ROOT / "docs" / "recorded.md").read_text()
    run = list_recorded(PROJECT_ROOT / "data" / "recorded" / "h100_8b_half")[2].directory
    tokens = pd.read_csv(expand(run, tmp_path) / "token_metrics.csv")
    median_ms = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"].median() / 1e6
    assert f"| {median_ms:.3f} |" in page
