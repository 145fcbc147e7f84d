"""Workloads of a trace, of synthetic lengths, and the sweep of one, through Dagster in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.assets.measurements import measurements
from gst_assets.assets.sweeps import sweep
from gst_assets.assets.workloads import current_workload, prompts, trace_intervals, trace_lengths, workload_spec
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import SweepPoints, read_table
from gst_assets.errors import GstError, ProfileError, WorkloadError
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot
from gst_assets.scenario import load_scenario
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.tokenizer import load_tokenizer

WORKLOAD = [prompts, trace_lengths, trace_intervals, workload_spec]
NO_SOURCE = ["workload.prompts=null", "workload.num_requests=null", "workload.num_decode_tokens=null"]
ROWS = [("0.1", 12, 4), ("0.3", 7, 0), ("1.1", 3000, 9), ("2.5000000004", 25, 6), ("2.6", 12, 5)]


def materialize(
    root: Path, scenario: str, overrides: Sequence[str], *assets: dg.AssetsDefinition | str, workers: int = 1
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*WORKLOAD, measurements, sweep],
        selection=dg.AssetSelection.assets(*assets),
        partition_key=scenario,
        run_config={"ops": {"sweep": {"config": {"workers": workers}}}} if sweep in assets else None,
        resources={
            "scenario": ScenarioResource(overrides=list(overrides)),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(workers=workers),
            "engine": EngineResource(),
            "profiling_root": VidurProfilingRoot(),
        },
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_a_trace_becomes_a_workload_with_everything_left_out_on_record(tmp_path: Path) -> None:
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
        materialize(tmp_path / "root", "smoke", overrides, prompts)
    with pytest.raises(WorkloadError, match="changed or removed since"):
        materialize(tmp_path / "root", "smoke", overrides, trace_lengths)


def test_synthetic_lengths_give_the_same_workload_whatever_the_number_of_workers(tmp_path: Path) -> None:
    lengths = "{prefill_tokens: {kind: lognormal, median: 30, sigma: 1, min_tokens: 1, max_tokens: 90}, decode_tokens: {kind: zipf, exponent: 1, min_tokens: 1, max_tokens: 20}}"
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
    assert result.asset_materializations_for_node("sweep") == [] and result.get_asset_check_evaluations() == []
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
    assert [one.passed for one in result.get_asset_check_evaluations() if one.asset_key.to_user_string() == "sweep"] == [True]  # fmt: skip
    before = store.list(Kind.SWEEP)
    for sweeping, error, says in (
        (["sweep.max_num_batched_tokens=[1024]"], ProfileError, "max_num_batched_tokens is 2048, but the scenario expects 1024"),
        (["sweep.max_num_seqs=[512]", "sweep.variant=kernels"], ProfileError, r"batch_size covers 1 to 256, expected 1 to 512 \(engine.max_num_seqs\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            materialize(tmp_path, "h100_8b_sweep", [*overrides, *sweeping], sweep)
    with pytest.raises(GstError, match=r"built with workload\.num_requests = 12"):
        materialize(tmp_path, "h100_8b_sweep", limits[1:], sweep)
    assert store.list(Kind.SWEEP) == before
