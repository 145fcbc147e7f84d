"""One run over several scenarios: each has its own materialization, data version and checks, and one that fails stops
only itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.definitions import defs
from gst_assets.partitions import SCENARIOS
from gst_assets.testing.histories import noisy, write_nights

FIRST, SECOND, THIRD = SCENARIOS.get_partition_keys()[:3]
LINE = [dg.AssetKey("comparison_history"), dg.AssetKey("regression_report")]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(root: Path, instance: dg.DagsterInstance, first: str, last: str) -> dg.ExecuteInProcessResult:
    """What `dagster asset materialize --partition-range first...last` does."""
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        asset_selection=LINE,
        instance=instance,
        raise_on_error=False,
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        run_config={"resources": {"artifacts": {"config": {"root": str(root)}}}},
    )


def made(instance: dg.DagsterInstance, asset: str) -> dict[str | None, dg.AssetMaterialization]:
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=20).records
    found = [record.asset_materialization for record in records]
    return {one.partition: one for one in found if one is not None}


def test_each_scenario_of_a_run_has_its_own_results(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    write_nights(tmp_path, noisy(24, seed=1, step_at=18, step=0.2), FIRST)
    write_nights(tmp_path, noisy(3, seed=2), SECOND)
    result = run(tmp_path, instance, FIRST, SECOND)
    assert result.success
    for asset in ("comparison_history", "regression_report"):
        found = made(instance, asset)
        assert set(found) == {FIRST, SECOND}
        versions = {(one.tags or {})["dagster/data_version"] for one in found.values()}
        assert len(versions) == 2, "a data version is that of one scenario's bytes"
        alone = defs.resolve_asset_graph().get(dg.AssetKey(asset)).code_version
        assert {(one.tags or {})["dagster/code_version"] for one in found.values()} == {alone}
    assert made(instance, "comparison_history")[FIRST].metadata["dagster/row_count"].value == 24
    evaluated = [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    judged = {one.partition: one.passed for one in evaluated if one.check_name == "regression"}
    assert judged == {FIRST: False, SECOND: True}
    assert {one.partition for one in evaluated} == {FIRST, SECOND}


def test_a_run_of_one_gives_the_same_data_version(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    write_nights(tmp_path, noisy(3, seed=2), FIRST)
    write_nights(tmp_path, noisy(3, seed=3), SECOND)
    assert run(tmp_path, instance, FIRST, SECOND).success
    together = {name: (one.tags or {})["dagster/data_version"] for name, one in made(instance, LINE[0].path[0]).items()}
    job = defs.resolve_implicit_global_asset_job_def()
    config = {"resources": {"artifacts": {"config": {"root": str(tmp_path)}}}}
    alone = job.execute_in_process(
        asset_selection=LINE, instance=instance, partition_key=FIRST, run_config=config
    ).asset_materializations_for_node("nightly_line")[0]
    assert (alone.tags or {})["dagster/data_version"] == together[FIRST] != together[SECOND]


def test_a_scenario_that_fails_stops_only_itself(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    for scenario in (FIRST, SECOND, THIRD):
        ids = write_nights(tmp_path, noisy(3, seed=2), scenario)
        if scenario == SECOND:
            (tmp_path / "comparisons" / ids[1] / "tables" / "latency_errors.csv").write_text("nonsense\n")
    result = run(tmp_path, instance, FIRST, THIRD)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    error = failure.event_specific_data.error.cause.message  # type: ignore[union-attr]
    assert "1 of 3 scenarios failed" in error and f"{SECOND}: " in error and f"{FIRST}: " not in error
    assert set(made(instance, "regression_report")) == {FIRST, THIRD}
