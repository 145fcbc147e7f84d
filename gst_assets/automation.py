"""What runs by itself: the nightly jobs and their schedules, the sensor that tells people, and how fresh the nightly assets must be.

Everything is off until it is switched on in the UI, but the sensor, which does nothing while no address is configured. Nothing is measured
twice to get a better number: no step that measures is ever retried (see docs/nightly.md).
"""

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from gst_assets.assets.checks import REGRESSION, REPORT
from gst_assets.assets.regression import comparison_history, regression_report, simulation_self_check
from gst_assets.contracts.open_store import open_store
from gst_assets.environment import CRON_VARIABLE, TIMEZONE_VARIABLE, Nightly, Ui, read
from gst_assets.errors import EnvironmentVariableError
from gst_assets.notifications import Message, is_configured, send
from gst_assets.scenario import load_scenario, scenario_names


def taken_cron(text: str) -> str:
    """The text of GST_NIGHTLY_CRON, if Dagster takes it.

    Raises:
        EnvironmentVariableError: it does not.
    """
    try:
        dg.ScheduleDefinition(name="when", job_name="when", cron_schedule=text)
    except dg.DagsterInvalidDefinitionError:
        raise EnvironmentVariableError(
            f"{CRON_VARIABLE}={text}: expected five fields as cron has them, e.g. 0 2 * * *. Correct the variable, or unset it."
        ) from None
    return text


_WHEN = read(Nightly)
TIMEZONE, CRON = _WHEN.timezone, taken_cron(_WHEN.cron)
OWNER = "team:inference-performance"
_OVERLAP_S = 60.0
_CHECKS_READ = 50
_PARTITION_TAG = "dagster/partition"

SELF_CHECK = dg.AssetSelection.assets(simulation_self_check)
NIGHTLY = dg.AssetSelection.all() - SELF_CHECK

nightly_comparison = dg.define_asset_job(
    "nightly_comparison",
    NIGHTLY,
    description="Real against simulated: measures, simulates, compares, and judges the trend. One run per scenario; engine steps one at a time.",
)
simulation_check = dg.define_asset_job(
    "simulation_check",
    SELF_CHECK,
    description="Simulates the last simulations again and demands the same bytes. Measures nothing.",
)


def nightly_scenarios() -> list[str]:
    """Scenarios marked `nightly: true`. Reads every scenario file.

    Raises:
        ScenarioError: one of them is not valid.
    """
    return [name for name in scenario_names() if load_scenario(name).nightly]


@dg.schedule(
    name="nightly",
    job=nightly_comparison,
    cron_schedule=CRON,
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=f"Every scenario marked nightly, one run each, at `{CRON}` {TIMEZONE} ({CRON_VARIABLE}, {TIMEZONE_VARIABLE}).",
)
def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    names = nightly_scenarios()
    if not names:
        yield dg.SkipReason("no scenario is marked nightly: true")
    for name in names:
        yield _request(context, name)


@dg.schedule(
    name="nightly_simulation_check",
    job=simulation_check,
    cron_schedule="30 1 * * *",
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="The self-check of every nightly scenario that was simulated before, ahead of the nightly comparison.",
)
def nightly_simulation_check(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    store = open_store()
    names = [name for name in nightly_scenarios() if store.current(name, "vidur_runs") is not None]
    if not names:
        yield dg.SkipReason("no nightly scenario was simulated yet")
    for name in names:
        yield _request(context, name)


def _request(context: dg.ScheduleEvaluationContext, scenario: str) -> dg.RunRequest:
    tick = context.scheduled_execution_time.isoformat()
    return dg.RunRequest(run_key=f"{tick}/{scenario}", partition_key=scenario, tags={"gst/nightly": tick})


@dg.sensor(
    name="tell_people",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Failed runs, failing checks and regressions to GST_WEBHOOK_URL and GST_SLACK_WEBHOOK_URL. Silent where neither is set.",
)
def tell_people(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    now = datetime.now(timezone.utc).timestamp()
    if not is_configured() or context.cursor is None:
        # What happened before anybody asked to be told is not news.
        return dg.SensorResult(cursor=_cursor(now, now, {}, {}), skip_reason=dg.SkipReason("nothing to tell yet"))
    state = json.loads(context.cursor)
    start, told, failing = state["start"], dict(state["told"]), dict(state["failing"])
    since = max(start, state["since"] - _OVERLAP_S)
    messages = [*_failing_checks(context, since, told, failing), *_failed_runs(context, since, told)]
    for message in messages:
        # If this raises, the tick fails and the cursor stays: the next tick tells it again. Better twice than never.
        send(message)
    kept = {key: at for key, at in told.items() if at >= now - 10 * _OVERLAP_S}
    return dg.SensorResult(
        cursor=_cursor(start, now, kept, failing), skip_reason=dg.SkipReason(f"{len(messages)} messages sent")
    )


def _cursor(start: float, now: float, told: Mapping[str, float], failing: Mapping[str, str]) -> str:
    """`start`: since when anybody is told. `told`: events told lately, with their time, as ticks overlap. `failing`: checks told as failing, until they pass again."""
    return json.dumps({"start": start, "since": now, "told": dict(told), "failing": dict(failing)}, sort_keys=True)


def _failed_runs(context: dg.SensorEvaluationContext, since: float, told: dict[str, float]) -> list[Message]:
    after = datetime.fromtimestamp(since, timezone.utc)
    records = context.instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=after),
        order_by="update_timestamp",
        ascending=True,
    )
    messages = []
    for record in records:
        run = record.dagster_run
        if run.run_id not in told:
            told[run.run_id] = record.update_timestamp.timestamp()
            scenario = run.tags.get(_PARTITION_TAG, "no scenario")
            link = f"{_ui()}/runs/{run.run_id}"
            messages.append(
                Message(
                    "run_failed", scenario, f"{run.job_name} failed on {scenario}", _error(context, run.run_id), link
                )
            )
    return messages


def _error(context: dg.SensorEvaluationContext, run_id: str) -> str:
    """The error of the first failed step, its cause where it has one."""
    failed = context.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    data: Any = failed[0].event_log_entry.dagster_event.event_specific_data if failed else None  # type: ignore[union-attr]
    if data is None or data.error is None:
        return "no step failed; the run's log says why"
    error = data.error.cause or data.error
    return f"{failed[0].event_log_entry.step_key}: {error.message.strip()}"


def _failing_checks(
    context: dg.SensorEvaluationContext, since: float, told: dict[str, float], failing: dict[str, str]
) -> list[Message]:
    """A check is told when it begins to fail, and again only if it fails of something else, or passed in between."""
    assert context.repository_def is not None
    found = []
    for key in context.repository_def.asset_graph.asset_check_keys:
        for record in context.instance.event_log_storage.get_asset_check_execution_history(key, limit=_CHECKS_READ):
            done = (AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED)
            if record.event is not None and record.status in done and record.event.timestamp > since:
                found.append((record.event.timestamp, record))
    messages = []
    for at, record in sorted(found, key=lambda one: one[0]):
        event_id = f"{record.run_id}/{record.key.to_user_string()}"
        if event_id in told:
            continue
        told[event_id] = at
        evaluation = record.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
        run = context.instance.get_run_by_id(record.run_id)
        scenario = evaluation.partition or (run.tags.get(_PARTITION_TAG) if run else None) or "no scenario"
        problem = f"{record.key.to_user_string()}/{scenario}"
        if evaluation.passed:
            failing.pop(problem, None)
            continue
        told_as = _text(evaluation.metadata, "told_as")
        if failing.get(problem) == told_as:
            continue
        failing[problem] = told_as
        asset = evaluation.asset_key.to_user_string()
        kind = "regression" if evaluation.check_name == REGRESSION.name else "check_failed"
        title = (
            f"regression on {scenario}"
            if kind == "regression"
            else f"{asset}: {evaluation.check_name} fails on {scenario}"
        )
        why = _text(evaluation.metadata, "why") or _text(evaluation.metadata, "violation")
        link = f"{_ui()}/assets/{asset}?view=partitions&partition={scenario}"
        messages.append(Message(kind, scenario, title, why, link, _text(evaluation.metadata, REPORT)))
    return messages


def _text(metadata: Mapping[str, dg.MetadataValue], name: str) -> str:
    value = metadata.get(name)
    return str(value.value) if value is not None else ""


def _ui() -> str:
    return read(Ui).url.rstrip("/")


# --- freshness and owners ---------------------------------------------------------------------------------------------

_FRESH = dg.FreshnessPolicy.cron(deadline_cron="0 6 * * *", lower_bound_delta=timedelta(hours=5), timezone=TIMEZONE)
"""By 06:00 every night's comparison, history and verdict must have been made. Dagster judges an asset, not each of its partitions."""
_NIGHTLY_ASSETS = {
    "comparison_report",
    *(key.to_user_string() for one in (comparison_history, regression_report) for key in one.keys),
}


def as_product(assets: Sequence[Any]) -> list[dg.AssetsDefinition]:
    """The assets with their owner, and the nightly ones with their freshness policy."""

    def complete(spec: dg.AssetSpec) -> dg.AssetSpec:
        spec = spec.replace_attributes(owners=[OWNER])
        if spec.key.to_user_string() in _NIGHTLY_ASSETS:
            spec = spec.replace_attributes(freshness_policy=_FRESH)
        return spec

    with warnings.catch_warnings():
        # Code references are in beta in Dagster 1.13; a reader of the log can do nothing about it.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return [_with_code_reference(one) for one in dg.map_asset_specs(complete, assets)]


def _with_code_reference(assets: Any) -> dg.AssetsDefinition:
    """Where the asset's function is written. Dagster's own `with_source_code_references` would name the decorator of a decorated one."""
    function = inspect.unwrap(assets.op.compute_fn.decorated_fn)
    reference = dg.LocalFileCodeReference(
        file_path=str(Path(inspect.getfile(function))), line_number=function.__code__.co_firstlineno
    )
    references = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
    return assets.map_asset_specs(lambda spec: spec.merge_attributes(metadata=references))


JOBS = (nightly_comparison, simulation_check)
SCHEDULES = (nightly, nightly_simulation_check)
SENSORS = (tell_people,)
