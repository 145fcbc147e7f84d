"""The comparison report: real repeats compared with every simulated variant of the same workload."""

import math
import secrets
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import dagster as dg

from gst_assets.assets import real_runs
from gst_assets.assets.capacities import current_capacity
from gst_assets.assets.checks import FIDELITY_BAND, PARITY, fidelity_result, parity_result, reports_contract, specs
from gst_assets.assets.presentation import (
    contract_check_specs,
    contract_passed,
    figures,
    load_tagged,
    report_link,
    scenario_facts,
    table_definition_metadata,
)
from gst_assets.assets.real_runs import current_real_runs
from gst_assets.assets.references import as_metadata
from gst_assets.assets.vidur_runs import current_vidur_runs, vidur_metrics
from gst_assets.contracts.documents import Hydra, timestamp_slug, write_document
from gst_assets.contracts.pointers import COMPARISON, refer
from gst_assets.contracts.store import Kind
from gst_assets.partitions import SCENARIOS
from gst_assets.resources import ArtifactRoot, ScenarioResource
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    from gst_assets.analysis.judged_errors import Comparison

_ERRORS = "latency_errors.csv"


@dg.asset(
    partitions_def=SCENARIOS,
    group_name="comparison",
    kinds={"markdown", "matplotlib"},
    deps=[*real_runs.NAMES, *vidur_metrics.keys],
    metadata=table_definition_metadata(_ERRORS),
    check_specs=[
        *contract_check_specs(["comparison_report"]),
        *specs("comparison_report", PARITY, FIDELITY_BAND),
    ],
    description=(
        "How far the simulation is from the real engine: P50/P90/P99 of TTFT, per-token and end-to-end latency side by"
        " side, signed errors, the spread between real repeats, and how the runs were aligned. Uses the scenario's"
        " latest complete runs. report.html in its directory is the whole report in one file."
    ),
)
@reports_contract("comparison_report")
def comparison_report(
    context: dg.AssetExecutionContext, scenario: ScenarioResource, artifacts: ArtifactRoot
) -> dg.MaterializeResult:
    from gst_assets.analysis.drawing_process import DrawingProcess
    from gst_assets.analysis.figures import VERDICT_FIGURE
    from gst_assets.analysis.judged_errors import compare
    from gst_assets.analysis.report import (
        SUMMARY,
        comparison_meta,
        headline_table,
        latency_table,
        verdict_sentence,
        write_comparison,
    )
    from gst_assets.analysis.report_content import FIGURES, REPORT, TABLES
    from gst_assets.analysis.run_reading import read_calibration_sha256
    from gst_assets.workload.spec import check_made_for

    chosen, store = load_tagged(context, scenario, context.partition_key), artifacts.store()
    started = datetime.now(timezone.utc)
    with DrawingProcess() as drawing:
        real, made = current_real_runs(store, chosen, context), current_vidur_runs(store, chosen, context)
        simulations = made.first
        # A recorded run keeps the engine section it was measured with; what it must share with the scenario was checked
        # when it was expanded.
        sections = ("workload", "model") if chosen.engine.backend == "recorded" else ("workload", "model", "engine")
        for run in real:
            check_made_for(run.meta.params, chosen, run.directory, sections, "real_request_metrics")
        for simulation in simulations.values():
            check_made_for(
                simulation.meta.params, chosen, simulation.directory, (*sections, "simulation"), "vidur_request_metrics"
            )
        comparison = compare(
            real,
            simulations,
            bands=chosen.comparison,
            calibration_sha256=read_calibration_sha256(list(simulations.values())),
            further_seeds=made.further,
            repeatable=chosen.engine.backend != "recorded",
            capacity=current_capacity(store, chosen, context),
        )
        comparison_id = f"{chosen.name}-{timestamp_slug(started)}-{secrets.token_hex(2)}"
        with store.stage(Kind.COMPARISON, comparison_id) as staging:
            write_comparison(comparison, staging.path, drawing)
            meta = comparison_meta(comparison, run_id=comparison_id, started_at=started, sha256=staging.digests())
            asked = {
                "params": chosen.model_dump(mode="json"),
                "hydra": Hydra.of(chosen),
            }
            meta = meta.model_copy(update=asked)
            write_document(meta, staging.path / Kind.COMPARISON.meta_name)
            final = staging.commit()
    pointed = refer(store, chosen, COMPARISON, [(Kind.COMPARISON, comparison_id)], comparison_id=comparison_id)
    context.log.info(verdict_sentence(comparison))
    link = report_link(Kind.COMPARISON, comparison_id, REPORT)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(meta.sha256[f"{TABLES}/{_ERRORS}"]),
        check_results=[
            contract_passed("comparison_report", rows=len(comparison.latency_errors)),
            parity_result(comparison),
            fidelity_result(comparison, final / SUMMARY, link),
        ],
        metadata={
            "verdict": dg.MetadataValue.md(verdict_sentence(comparison)),
            "open_report": link,
            **scenario_facts(chosen),
            "headline": dg.MetadataValue.md(headline_table(comparison)),
            "report": dg.MetadataValue.path(str(final / SUMMARY)),
            "latencies": dg.MetadataValue.md(latency_table(comparison)),
            "page": dg.MetadataValue.path(str(final / REPORT)),
            **figures(final / FIGURES, VERDICT_FIGURE),
            **_prefix_cache(comparison),
            **_trends(comparison, chosen),
            "num_repeats": len(comparison.real_repeats),
            **as_metadata(pointed),
        },
    )


def _prefix_cache(comparison: "Comparison") -> dict[str, dg.MetadataValue[str]]:
    """What is known of cached tokens; nothing where no run has a prefix cache."""
    from gst_assets.analysis.cached_tokens import cached_tokens_sentence

    table = comparison.cached_tokens
    if table.empty:
        return {}
    return {"prefix_cache": dg.MetadataValue.md(cached_tokens_sentence(table, comparison.headline))}


def _trends(comparison: "Comparison", scenario: Scenario) -> dict[str, float]:
    """The deciding errors and real medians as numbers, which the UI plots. Undefined ones are left out.

    Its plots over time put the partitions of an asset into one line; a nightly scenario has lines of its own, under its
    name.
    """
    rows = comparison.latency_errors
    rows = rows[(rows["variant"] == comparison.headline) & rows["required"]]
    values: dict[str, float] = {}
    for row in rows.itertuples(index=False):
        key = f"{row.metric}_{row.statistic}"
        _put(values, f"{key}_error_percent", row.relative_error, 100, 2)
        _put(values, f"{key}_real_ms", row.real_ns, 1e-6, 3)
        if scenario.nightly:
            # With spaces, at which the UI can break a long key.
            name = f"{scenario.name} {row.metric} {row.statistic} error %"
            _put(values, name, row.relative_error, 100, 2)
    return values


def _put(values: dict[str, float], key: str, value: object, factor: float, digits: int) -> None:
    if isinstance(value, float) and math.isfinite(value):
        values[key] = round(value * factor, digits)
