"""The nightly line: a scenario's comparison history, its regression report, and the simulation's self-check."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from gst_assets.assets.checks import (
    NO_NIGHT_LOST,
    REGRESSION,
    SELF_CHECK,
    no_night_lost_result,
    regression_result,
    self_check_failed,
    self_check_passed,
    specs,
)
from gst_assets.assets.comparisons import comparison_report
from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_failed,
    contract_passed,
    figures,
    load_tagged,
    preview,
    report_link,
    scenario_facts,
    table_definition_metadata,
)
from gst_assets.assets.profiles import current_bundle
from gst_assets.assets.ranges import for_each_scenario
from gst_assets.assets.vidur_runs import current_vidur_runs, vidur_metrics
from gst_assets.assets.workloads import current_workload
from gst_assets.contracts.documents import HistoryMeta
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError, ContractError, SimulationError
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import ArtifactRoot, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario

GROUP = "regression"
_READ_AGAIN = 2
_COMPARISONS, _VERDICTS = "comparison_history.csv", "regression_verdicts.csv"

_HISTORY, _REPORT = "comparison_history", "regression_report"


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            _HISTORY,
            deps=[comparison_report],
            partitions_def=SCENARIOS,
            group_name=GROUP,
            kinds={"csv"},
            metadata=table_definition_metadata(_COMPARISONS),
            description=(
                "Every completed comparison of the scenario, read from the comparison directories. Materializing it"
                " again, also after Dagster's database was lost, gives the same bytes."
            ),
        ),
        dg.AssetSpec(
            _REPORT,
            deps=[_HISTORY],
            partitions_def=SCENARIOS,
            group_name=GROUP,
            kinds={"markdown", "matplotlib"},
            metadata=table_definition_metadata(_VERDICTS),
            description=(
                "Whether the engine became slower or the simulation less faithful over the nights: change points, noise"
                " floor, verdict. Compares only nights of the same hardware, model, engine settings and workload."
            ),
        ),
    ],
    check_specs=[
        *contract_check_specs([_HISTORY, _REPORT]),
        *specs(_HISTORY, NO_NIGHT_LOST),
        *specs(_REPORT, REGRESSION),
    ],
    can_subset=True,
    # It only reads what is there, and nothing else waits for it: many scenarios in one run are the same as one after
    # the other.
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def nightly_line(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    asked = {key.to_user_string() for key in context.selected_asset_keys}
    store = artifacts.store()

    def line(name: str) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        chosen = load_tagged(context, scenario, name)
        for asset, make in ((_HISTORY, _history), (_REPORT, _judged)):
            if asset not in asked:
                continue
            try:
                with _read_again_on_disk_errors():
                    results = make(store, chosen, context.log.info)
            except ContractError as error:
                yield contract_failed(asset, error)
                raise
            yield from results

    yield from for_each_scenario(context, line)


_Results = list[dg.AssetCheckResult | dg.MaterializeResult]


def _history(store: ArtifactStore, scenario: Scenario, _: Callable[[str], None]) -> _Results:
    from gst_assets.analysis.history import read_history, write_history

    history = read_history(store, scenario.name)
    with store.stage(Kind.HISTORY, scenario.name) as staging:
        meta = write_history(history, staging.path)
        final = staging.commit(replace=True)
    rows = history.comparisons
    return [
        contract_passed(_HISTORY, comparisons=len(rows)),
        no_night_lost_result(history.gone),
        dg.MaterializeResult(
            asset_key=_HISTORY,
            data_version=_version(meta),
            metadata={
                "dagster/row_count": len(rows),
                "nights": int(rows["night"].notna().sum()),
                "subjects": int(rows.loc[rows["subject"] != "", "subject"].nunique()),
                "path": dg.MetadataValue.path(str(final)),
                "newest": preview(
                    rows[["comparison_id", "measured_at", "verdict", "night", "engine_version"]].iloc[::-1]
                ),
            },
        ),
    ]


def _judged(store: ArtifactStore, scenario: Scenario, log: Callable[[str], None]) -> _Results:
    from gst_assets.analysis.change_points import judge_history
    from gst_assets.analysis.history import load_history
    from gst_assets.analysis.regression_report import (
        FIGURES,
        SUMMARY,
        TABLES,
        verdict_figure,
        verdict_line,
        verdict_table,
        write_regression,
    )

    if not store.has(Kind.HISTORY, scenario.name):
        raise ArtifactError(
            f"{store}: no history of scenario {scenario.name}. Materialize {_HISTORY} for this partition first."
        )
    history, history_meta = load_history(store.open(Kind.HISTORY, scenario.name))
    report = judge_history(history, scenario.regression)
    with store.stage(Kind.REGRESSION, scenario.name) as staging:
        meta = write_regression(report, history_meta, staging.path)
        final = staging.commit(replace=True)
    log(verdict_line(report))
    link = report_link(Kind.REGRESSION, scenario.name, SUMMARY)
    return [
        contract_passed(_REPORT, series=len(report.series)),
        regression_result(report, final / SUMMARY, link),
        dg.MaterializeResult(
            asset_key=_REPORT,
            data_version=dg.DataVersion(meta.sha256[f"{TABLES}/{_VERDICTS}"]),
            metadata={
                "verdict": dg.MetadataValue.md(verdict_line(report)),
                "open_report": link,
                **scenario_facts(scenario),
                "report": dg.MetadataValue.path(str(final / SUMMARY)),
                "nights": len(report.nights),
                "series": dg.MetadataValue.md(verdict_table(report)),
                **figures(final / FIGURES, verdict_figure(report)),
            },
        ),
    ]


@dg.asset(
    partitions_def=SCENARIOS,
    group_name=GROUP,
    kinds={"vidur"},
    deps=vidur_metrics.keys,
    check_specs=specs("simulation_self_check", SELF_CHECK),
    description=(
        "Simulates the scenario's last simulations again from the same workload, profile and settings, without any"
        " cached table, and demands the same bytes. Writes nothing; a difference fails the run and names table, row and"
        " column."
    ),
)
def simulation_self_check(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    profiling_root: VidurProfilingRoot,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from gst_assets.vidur_adapter.self_check import check_same_bytes

    chosen, store = load_tagged(context, scenario, context.partition_key), artifacts.store()
    workload = current_workload(store, chosen, context)
    bundle = current_bundle(store, chosen, profiling_root.fixed(chosen), context)
    runs = current_vidur_runs(store, chosen, context, with_further=False).first
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
    """Ask for a retry where a file could not be read or written: nothing was measured here, so trying again can only
    repeat the result.

    Any other error of the project (`GstError`) would only come again and is not retried. Steps that measure are never
    retried.
    """
    try:
        yield
    except (OSError, ArtifactError) as error:
        if isinstance(error, ArtifactError) and not isinstance(error.__cause__, OSError):
            raise
        raise dg.RetryRequested(max_retries=_READ_AGAIN, seconds_to_wait=5) from error


def _version(meta: HistoryMeta) -> dg.DataVersion:
    return dg.DataVersion(meta.sha256[_COMPARISONS])
