"""The nightly line: a scenario's comparison history, its regression report, and the simulation's self-check."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from gst_assets.analysis.change_points import judge_history
from gst_assets.analysis.history import load_history, read_history, write_history
from gst_assets.analysis.regression_report import (
    FIGURES,
    SUMMARY,
    verdict_figure,
    verdict_line,
    verdict_table,
    write_regression,
)
from gst_assets.assets.checks import (
    REGRESSION,
    SELF_CHECK,
    regression_result,
    reports_contract,
    self_check_failed,
    self_check_passed,
    specs,
)
from gst_assets.assets.comparisons import comparison_report
from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_passed,
    figures,
    preview,
    table_definition_metadata,
)
from gst_assets.assets.profiles import current_bundle
from gst_assets.assets.vidur_runs import current_vidur_runs, vidur_metrics
from gst_assets.assets.workloads import current_workload
from gst_assets.contracts.documents import HistoryMeta
from gst_assets.contracts.store import Kind
from gst_assets.contracts.tables import ComparisonHistory, RegressionVerdicts
from gst_assets.errors import ArtifactError, SimulationError
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot
from gst_assets.vidur_adapter.self_check import check_same_bytes

GROUP = "regression"
_READ_AGAIN = 2


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"csv"},
    deps=[comparison_report],
    metadata=table_definition_metadata(ComparisonHistory),
    check_specs=contract_check_specs(["comparison_history"]),
    description=(
        "Every completed comparison of the scenario, read from the comparison directories. Materializing it again, also after Dagster's "
        "database was lost, gives the same bytes."
    ),
)
@reports_contract("comparison_history")
def comparison_history(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    with _read_again_on_disk_errors():
        history = read_history(store, chosen.name)
        with store.stage(Kind.HISTORY, chosen.name) as staging:
            meta = write_history(history, staging.path)
            final = staging.commit(replace=True)
    rows = history.comparisons
    return dg.MaterializeResult(
        data_version=_version(meta),
        check_results=[contract_passed("comparison_history", comparisons=len(rows))],
        metadata={
            "dagster/row_count": len(rows),
            "nights": int(rows["night"].notna().sum()),
            "subjects": int(rows.loc[rows["subject"] != "", "subject"].nunique()),
            "path": dg.MetadataValue.path(str(final)),
            "newest": preview(rows[["comparison_id", "measured_at", "verdict", "night", "engine_version"]].iloc[::-1]),
        },
    )


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"markdown", "matplotlib"},
    deps=[comparison_history],
    metadata=table_definition_metadata(RegressionVerdicts),
    check_specs=[*contract_check_specs(["regression_report"]), *specs("regression_report", REGRESSION)],
    description=(
        "Whether the engine became slower or the simulation less faithful over the nights: change points, noise floor, verdict. Compares "
        "only nights of the same hardware, model, engine settings and workload."
    ),
)
@reports_contract("regression_report")
def regression_report(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    with _read_again_on_disk_errors():
        history, history_meta = load_history(store.open(Kind.HISTORY, chosen.name))
        report = judge_history(history, chosen.regression)
        with store.stage(Kind.REGRESSION, chosen.name) as staging:
            meta = write_regression(report, history_meta, staging.path)
            final = staging.commit(replace=True)
    context.log.info(verdict_line(report))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(meta.sha256[f"tables/{RegressionVerdicts.file_name()}"]),
        check_results=[
            contract_passed("regression_report", series=len(report.series)),
            regression_result(report, final / SUMMARY),
        ],
        metadata={
            "verdict": dg.MetadataValue.md(verdict_line(report)),
            "report": dg.MetadataValue.path(str(final / SUMMARY)),
            "nights": len(report.nights),
            "series": dg.MetadataValue.md(verdict_table(report)),
            **figures(final / FIGURES, verdict_figure(report)),
        },
    )


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"vidur"},
    deps=vidur_metrics.keys,
    check_specs=specs("simulation_self_check", SELF_CHECK),
    description=(
        "Simulates the scenario's last simulations again from the same workload, profile and settings, without any cached table, and "
        "demands the same bytes. Writes nothing; a difference fails the run and names table, row and column."
    ),
)
def simulation_self_check(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    workload = current_workload(store, chosen)
    bundle = current_bundle(store, chosen, profiling_root.fixed(chosen))
    runs = current_vidur_runs(store, chosen)
    for run in runs.values():
        try:
            check_same_bytes(run, chosen, workload, bundle)
        except SimulationError as error:
            yield self_check_failed(run, error)
            raise
    yield self_check_passed(runs)
    digests = "".join(run.meta.sha256[name] for run in runs.values() for name in sorted(run.meta.sha256))
    yield dg.MaterializeResult(
        asset_key="simulation_self_check",
        data_version=dg.DataVersion(sha256_bytes(digests.encode())),
        metadata={"runs": dg.MetadataValue.md("\n".join(f"- {name}: `{run.directory}`" for name, run in runs.items()))},
    )


@contextmanager
def _read_again_on_disk_errors() -> Iterator[None]:
    """Ask for a retry where a file could not be read or written: nothing was measured here, so trying again can only repeat the result.

    Any other error of the project (`GstError`) would only come again and is not retried. Steps that measure are never retried.
    """
    try:
        yield
    except (OSError, ArtifactError) as error:
        if isinstance(error, ArtifactError) and not isinstance(error.__cause__, OSError):
            raise
        raise dg.RetryRequested(max_retries=_READ_AGAIN, seconds_to_wait=5) from error


def _version(meta: HistoryMeta) -> dg.DataVersion:
    return dg.DataVersion(meta.sha256[ComparisonHistory.file_name()])
