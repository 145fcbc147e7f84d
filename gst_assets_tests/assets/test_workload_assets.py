"""Workloads of a trace, of synthetic lengths, and the sweep of one, through Dagster in this process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.assets import sweeps
from gst_assets.assets.measurements import measurements
from gst_assets.assets.sweeps import sweep
from gst_assets.assets.workloads import WORKLOAD_SPEC, current_workload, workload
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import SweepPoints, read_table
from gst_assets.errors import ContractError, GstError, ProfileError, SimulationError, WorkloadError
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot
from gst_assets.scenario import load_scenario
from gst_assets.vidur_adapter import sweep as sweeping
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.tokenizer import load_tokenizer

WORKLOAD = ["prompts", "trace_lengths", "trace_intervals", WORKLOAD_SPEC]
LENGTHS_KEY = dg.AssetKey("trace_lengths")
NO_SOURCE = ["workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null"]
ROWS = [("0.1", 12, 4), ("0.3", 7, 0), ("1.1", 3000, 9), ("2.5000000004", 25, 6), ("2.6", 12, 5)]


def materialize(
    root: Path,
    scenario: str,
    overrides: Sequence[str],
    *assets: dg.AssetsDefinition | str,
    workers: int = 1,
    configurations_a_step: int = 0,
    instance: dg.DagsterInstance | None = None,
) -> dg.ExecuteInProcessResult:
    how = {"workers": workers, "configurations_a_step": configurations_a_step}
    return dg.materialize(
        [workload, measurements, sweep],
        selection=dg.AssetSelection.assets(*assets),
        partition_key=scenario,
        run_config={"ops": {"sweep": {"config": how}}} if sweep in assets else None,
        resources={
            "scenario": ScenarioResource(overrides=list(overrides)),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(workers=workers),
            "engine": EngineResource(),
            "profiling_root": VidurProfilingRoot(),
        },
        instance=instance,
        raise_on_error=instance is None,
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = (
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    )
    return {name: value.value for name, value in event.metadata.items()}


def test_a_trace_becomes_a_workload_with_everything_left_out_on_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    header = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
    trace.write_text(header + "".join(f"{time},{prefill},{decode}\n" for time, prefill, decode in ROWS))
    source = f"workload.trace={{path: {trace}, licence: own, unusable: drop, over_length: truncate}}"
    overrides = [*NO_SOURCE, source, "workload.arrivals={kind: trace}"]
    result = materialize(tmp_path / "root", "smoke", overrides, *WORKLOAD)
    told = metadata(result, "workload_spec")
    store = ArtifactStore(tmp_path / "root")
    loaded = current_workload(store, load_scenario("smoke", overrides))
    assert told["workload_id"] == loaded.meta.workload_id and told["num_requests"] == 4
    assert re.search(rf" - workload: {re.escape(str(loaded.directory))}$", capfd.readouterr().err, re.M)
    assert loaded.lengths["num_prefill_tokens"].tolist() == [12, 2039, 25, 12]
    assert loaded.lengths["num_decode_tokens"].tolist() == [4, 9, 6, 5]
    # Exact decimals: 0.1, 1.1, 2.5000000004 and 2.6 s from the first request on.
    assert loaded.intervals["arrival_time_ns"].tolist() == [0, 1_000_000_000, 2_400_000_000, 2_500_000_000]
    meta = loaded.meta.source
    assert meta is not None and (meta.rows, meta.unusable_dropped, meta.prompts_truncated) == (5, 1, 1)
    assert (meta.tokens_truncated, meta.licence, meta.format) == (961, "own", "vidur")
    texts = [prompt.text for prompt in read_prompts(loaded.directory / "prompts.jsonl")]
    assert load_tokenizer("data/tokenizer/qwen3").count(texts) == [12, 2039, 25, 12]
    trace.write_text(header + "0.1,12,4\n0.2,13,-5\n")
    with pytest.raises(WorkloadError, match=r"trace\.csv: line 3, column num_decode_tokens: found '-5'"):
        materialize(tmp_path / "root", "smoke", overrides, "prompts")
    with pytest.raises(WorkloadError, match="changed or removed since"):
        current_workload(store, load_scenario("smoke", overrides))


def test_a_part_alone_is_that_of_the_whole_and_moves_no_pointer(tmp_path: Path) -> None:
    """One deterministic op: a part asked for alone is built with the rest, and only `workload_spec` says which workload
    is the scenario's."""
    store, changed = ArtifactStore(tmp_path), ["workload.num_decode_tokens=5"]
    whole = materialize(tmp_path, "smoke", [], *WORKLOAD)
    assert len(whole.get_asset_check_evaluations()) == 4
    pointer = store.current("smoke", "workload")
    for overrides in ([], changed):
        part = materialize(tmp_path, "smoke", overrides, "trace_lengths")
        assert [event.asset_key for event in part.get_asset_materialization_events()] == [LENGTHS_KEY]
        assert [one.asset_key for one in part.get_asset_check_evaluations()] == [LENGTHS_KEY]
        assert (_version(part, "trace_lengths") == _version(whole, "trace_lengths")) == (overrides == [])
        assert store.current("smoke", "workload") == pointer
    assert len(store.list(Kind.WORKLOAD)) == 2
    with pytest.raises(WorkloadError, match=r"built with workload\.num_decode_tokens = 32"):
        current_workload(store, load_scenario("smoke", changed))


@pytest.mark.parametrize(("file", "asset"), [("trace_intervals.csv", "trace_intervals"), ("smoke.yaml", WORKLOAD_SPEC)])
def test_a_broken_contract_fails_the_check_of_the_table_that_breaks_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, asset: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ContractError(f"somewhere/{file}: line 3: no number", rows=[{"request_id": 1}])

    monkeypatch.setattr("gst_assets.workload.build", broken)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(tmp_path, "smoke", [], *WORKLOAD, instance=instance)
        assert not result.success
        (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key.to_user_string(), check.passed) == (asset, False)
    assert "line 3: no number" in str(check.metadata["violation"].value)
    assert ArtifactStore(tmp_path).list(Kind.WORKLOAD) == []


def _version(result: dg.ExecuteInProcessResult, asset: str) -> str:
    (event,) = (one for one in result.get_asset_materialization_events() if one.asset_key == dg.AssetKey(asset))
    tags = event.step_materialization_data.materialization.tags
    assert tags is not None
    return tags["dagster/data_version"]


def test_synthetic_lengths_give_the_same_workload_whatever_the_number_of_workers(tmp_path: Path) -> None:
    lengths = (
        "{prefill_tokens: {kind: lognormal, median: 30, sigma: 1, min_tokens: 1, max_tokens: 90}, decode_tokens: {kind:"
        " zipf, exponent: 1, min_tokens: 1, max_tokens: 20}}"
    )
    overrides = [*NO_SOURCE[::2], "workload.num_requests=50", f"workload.synthetic={lengths}"]
    found = {
        workers: metadata(
            materialize(tmp_path / str(workers), "smoke", overrides, *WORKLOAD, workers=workers), "workload_spec"
        )
        for workers in (1, 2)
    }
    assert found[1]["num_requests"] == 50
    assert found[1]["workload_id"] == found[2]["workload_id"] and found[1]["sha256"] == found[2]["sha256"]


def test_a_scenario_without_a_sweep_succeeds_and_materializes_none(tmp_path: Path) -> None:
    result = materialize(tmp_path, "smoke", [], sweep)
    assert result.success
    assert result.get_asset_materialization_events() == [] and result.get_asset_check_evaluations() == []
    assert [event.step_key for event in result.all_events if event.is_step_start] == ["sweep.cut_sweep"]
    assert ArtifactStore(tmp_path).list(Kind.SWEEP) == []


def test_a_sweep_of_the_shipped_profile(tmp_path: Path) -> None:
    """The scenario that ships, with few and short requests."""
    overrides = ["workload.num_requests=12", "workload.num_decode_tokens=6", "sweep.rates_per_s=[16.0]"]
    limits = [*overrides, "sweep.max_num_seqs=[2, 256]"]
    result = materialize(tmp_path, "h100_8b_sweep", limits, *WORKLOAD, "vidur_profile", sweep)
    store = ArtifactStore(tmp_path)
    (run_id,) = store.list(Kind.SWEEP)
    directory = store.open(Kind.SWEEP, run_id)
    points = read_table(SweepPoints, directory / "sweep.csv")
    assert points["max_num_seqs"].tolist() == [2, 256] and (points["num_requests"] == 12).all()
    assert not points["p99_sufficient"].any()
    assert "Insufficient samples: 12 requests" in str(metadata(result, "sweep")["caption"])
    assert [
        one.passed for one in result.get_asset_check_evaluations() if one.asset_key.to_user_string() == "sweep"
    ] == [True]
    before = store.list(Kind.SWEEP)
    for wrong, error, says in (
        (["sweep.max_num_batched_tokens=[1024]"], ProfileError, "max_num_batched_tokens is 2048, but the scenario expects 1024"),
        (["sweep.max_num_seqs=[512]", "sweep.variant=kernels"], ProfileError, r"batch_size covers 1 to 256, expected 1 to 512 \(engine.max_num_seqs\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            materialize(tmp_path, "h100_8b_sweep", [*overrides, *wrong], sweep)
    with pytest.raises(GstError, match=r"built with workload\.num_requests = 12"):
        materialize(tmp_path, "h100_8b_sweep", limits[1:], sweep)
    assert store.list(Kind.SWEEP) == before


def test_a_sweep_does_not_depend_on_how_it_was_cut_nor_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Six configurations in one step; in steps of four; and in steps of one of which the fourth fails, then in steps of
    two, which simulate only what is left."""
    overrides = ["workload.num_requests=12", "workload.num_decode_tokens=6", "sweep.max_num_seqs=[2, 256]"]
    overrides.append("sweep.rates_per_s=[8.0, 16.0, 48.0]")
    scenario, store = "h100_8b_sweep", ArtifactStore(tmp_path)
    materialize(tmp_path, scenario, overrides, *WORKLOAD, "vidur_profile")
    whole = materialize(tmp_path, scenario, overrides, sweep)
    in_fours = materialize(tmp_path, scenario, overrides, sweep, configurations_a_step=4)
    assert [_simulated(result) for result in (whole, in_fours)] == [
        ["1_of_1_0_to_5"],
        ["1_of_2_0_to_3", "2_of_2_4_to_5"],
    ]
    told: list[str] = []

    def stop(job: sweeping.Job) -> list[dict[str, object]]:
        if (job.scenario.workload.arrivals.rate_per_s, job.scenario.engine.max_num_seqs) == (16.0, 256):
            raise SimulationError("stopped here")
        return points(job)

    points = sweeping.points
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulationError, match="stopped here"):
        patch.setattr(sweeping, "points", stop)
        materialize(tmp_path, scenario, overrides, sweep, configurations_a_step=1)
    assert len(store.list(Kind.SWEEP_PART)) == 3 and len(store.list(Kind.SWEEP)) == 2

    def count(job: sweeping.Job) -> list[dict[str, object]]:
        told.append(f"{job.scenario.workload.arrivals.rate_per_s:g}/{job.scenario.engine.max_num_seqs}")
        return points(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "points", count)
        resumed = materialize(tmp_path, scenario, overrides, sweep, configurations_a_step=2)
    assert told == ["16/256", "48/2", "48/256"]
    with pytest.raises(dg.DagsterConfigMappingFunctionError) as error:
        materialize(tmp_path, scenario, overrides, sweep, configurations_a_step=-1)
    assert "greater than or equal to 0" in str(error.value.__cause__)
    assert _simulated(resumed) == ["1_of_2_2_to_3", "2_of_2_4_to_5"]
    assert store.list(Kind.SWEEP_PART) == []
    directories = [store.open(Kind.SWEEP, run_id) for run_id in store.list(Kind.SWEEP)]
    for name in ("sweep.csv", "pareto.png", "report.html", "summary.md"):
        assert len(directories) == 3 and len({(directory / name).read_bytes() for directory in directories}) == 1, name


def test_a_worker_that_would_simulate_something_else_is_refused(tmp_path: Path) -> None:
    """A step of a sweep that was cut where other packages are installed."""
    overrides = ["workload.num_requests=12", "workload.num_decode_tokens=6", "sweep.rates_per_s=[16.0]"]
    materialize(tmp_path, "h100_8b_sweep", overrides, *WORKLOAD, "vidur_profile")
    versions = iter(("2.3.5", "2.4.0"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SimulationError, match="this worker would simulate"):
        patch.setattr(sweeps, "environment", lambda: {"packages": {"numpy": next(versions)}})
        materialize(tmp_path, "h100_8b_sweep", overrides, sweep)


def _simulated(result: dg.ExecuteInProcessResult) -> list[str]:
    """The steps of a sweep that simulated, by what they name."""
    keys = [str(event.step_key) for event in result.all_events if event.is_step_start]
    return [key.partition("[")[2].rpartition("_")[0] for key in keys if "sweep.simulate[" in key]
