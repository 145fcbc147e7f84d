"""Notifying people of what went wrong: failed runs, failing checks, regressions, failed ticks of the schedules,
scenario files that cannot be used.

On from the start, silent while no address is configured. How a message is sent is in `notifications`. What is reported
is reported at least once: an event that an address refused is sent again at the next tick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from gst_assets.assets.checks import REGRESSION, REPORT
from gst_assets.automation import SCHEDULES, nightly, tonight
from gst_assets.environment import Ui, read
from gst_assets.errors import GstError
from gst_assets.notifications import Message, is_configured, send

TOLD_TAG = "gst/told"
"""Tag of a failed run whose message was refused: `not yet`, and later when it was sent."""
_NOT_YET = "not yet"
_OVERLAP_S = 60.0
_INTERVAL_S = 30
_TICKS_READ = timedelta(days=7)
_PARTITION_TAG = "dagster/partition"
_NO_SCENARIO = "no scenario"


@dg.run_failure_sensor(
    name="tell_of_failed_runs",
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    monitor_all_code_locations=True,  # a run of the command line belongs to no code location
    description="Failed runs to GST_WEBHOOK_URL and GST_SLACK_WEBHOOK_URL. Silent where neither is set.",
)
def tell_of_failed_runs(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    try:
        if not is_configured():
            return dg.SkipReason("no address is configured")
        send(_run_failed(context.instance, context.dagster_run))
    except GstError:
        # Dagster goes on to the next failed run, whatever happens here; `tell_people` finds the tag and reports this
        # one again.
        context.instance.add_run_tags(context.dagster_run.run_id, {TOLD_TAG: _NOT_YET})
        raise
    return None


@dg.sensor(
    name="tell_people",
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Failing checks, regressions, failed ticks of the schedules and scenario files that a night left out to"
        " GST_WEBHOOK_URL and GST_SLACK_WEBHOOK_URL. Silent where neither is set."
    ),
)
def tell_people(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    now = datetime.now(timezone.utc).timestamp()
    if not is_configured() or context.cursor is None:
        # What happened before an address was configured is not reported.
        return dg.SensorResult(
            cursor=_cursor(now, now, {}, {}, _ticks(context.instance)[0]),
            skip_reason=dg.SkipReason("nothing to report yet"),
        )
    state = json.loads(context.cursor)
    start, told, failing = state["start"], dict(state["told"]), dict(state["failing"])
    since = max(start, state["since"] - _OVERLAP_S)
    seen, ticks = _ticks(context.instance, state.get("ticks", 0))
    messages = [
        *_failing_checks(context.instance, since, told, failing),
        *(message for tick in ticks for message in _of_tick(*tick)),
    ]
    for message in messages:
        # If this raises, the tick fails and the cursor stays: the next tick sends it again. Better twice than never.
        send(message)
    late = _tell_late(context.instance)
    kept = {key: at for key, at in told.items() if at >= now - 10 * _OVERLAP_S}
    return dg.SensorResult(
        cursor=_cursor(start, now, kept, failing, seen),
        skip_reason=dg.SkipReason(f"{len(messages) + late} messages sent"),
    )


SENSORS = (tell_of_failed_runs, tell_people)


def _cursor(start_s: float, now_s: float, told: Mapping[str, float], failing: Mapping[str, str], ticks: int) -> str:
    """`start_s`: since when events are reported (seconds since the epoch), at `now_s`. `told`: events reported lately,
    with their time, as ticks overlap. `failing`: checks reported as failing, until they pass again. `ticks`: the id of
    the last tick of a schedule that was looked at."""
    state = {"start": start_s, "since": now_s, "told": dict(told), "failing": dict(failing), "ticks": ticks}
    return json.dumps(state, sort_keys=True)


# --- failed runs ------------------------------------------------------------------------------------------------------


def _tell_late(instance: dg.DagsterInstance) -> int:
    """Report the failed runs whose message was refused; returns how many."""
    records = instance.get_run_records(dg.RunsFilter(tags={TOLD_TAG: _NOT_YET}))
    for record in records:
        send(_run_failed(instance, record.dagster_run))
        instance.add_run_tags(record.dagster_run.run_id, {TOLD_TAG: datetime.now(timezone.utc).isoformat()})
    return len(records)


def _run_failed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Message:
    scenario = run.tags.get(_PARTITION_TAG, _NO_SCENARIO)
    link = f"{_ui()}/runs/{run.run_id}"
    return Message("run_failed", scenario, f"{run.job_name} failed on {scenario}", _error(instance, run.run_id), link)


def _error(instance: dg.DagsterInstance, run_id: str) -> str:
    """The error of the first failed step, its cause where it has one."""
    failed = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    data: Any = failed[0].event_log_entry.dagster_event.event_specific_data if failed else None  # type: ignore[union-attr]
    if data is None or data.error is None:
        return "no step failed; the run's log says why"
    error = data.error.cause or data.error
    return f"{failed[0].event_log_entry.step_key}: {error.message.strip()}"


# --- checks -----------------------------------------------------------------------------------------------------------


def _failing_checks(
    instance: dg.DagsterInstance, since: float, told: dict[str, float], failing: dict[str, str]
) -> list[Message]:
    """A check is reported when it begins to fail, and again only if it fails of something else, or passed in
    between."""
    found = sorted(_evaluations(instance, since), key=lambda one: one[0])
    messages = []
    for at, run, evaluation in found:
        scenario = evaluation.partition or run.tags.get(_PARTITION_TAG) or _NO_SCENARIO
        asset = evaluation.asset_key.to_user_string()
        problem = f"{asset}:{evaluation.check_name}/{scenario}"
        event_id = f"{run.run_id}/{problem}"
        if event_id in told:
            continue
        told[event_id] = at
        if evaluation.passed:
            failing.pop(problem, None)
            continue
        told_as = _text(evaluation.metadata, "told_as")
        if failing.get(problem) == told_as:
            continue
        failing[problem] = told_as
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


def _evaluations(
    instance: dg.DagsterInstance, since: float
) -> list[tuple[float, dg.DagsterRun, dg.AssetCheckEvaluation]]:
    """Check evaluations since then (seconds since the epoch), with their time and run: of the runs that changed since,
    and of those under way."""
    changed = dg.RunsFilter(updated_after=datetime.fromtimestamp(since, timezone.utc))
    under_way = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    runs = {
        record.dagster_run.run_id: record.dagster_run
        for chosen in (changed, under_way)
        for record in instance.get_run_records(chosen)
    }
    found = []
    for run_id, run in runs.items():
        records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
        for entry in (record.event_log_entry for record in records):
            if entry.timestamp > since and entry.dagster_event is not None:
                found.append((entry.timestamp, run, entry.dagster_event.asset_check_evaluation_data))
    return found


# --- schedules --------------------------------------------------------------------------------------------------------

_Tick = tuple[str, str, float, str]
"""Schedule, status, scheduled time in seconds since the epoch, error."""


def _ticks(instance: dg.DagsterInstance, after_id: int = 0) -> tuple[int, list[_Tick]]:
    """The ticks of this project's schedules that ended since the one of that id, and the id of the last.

    By id, not by time: a tick's time is when it was due, and one of a missed night comes late.
    """
    names = {schedule.name for schedule in SCHEDULES}
    since = (datetime.now(timezone.utc) - _TICKS_READ).timestamp()
    found = [
        (tick.tick_id, (state.name, tick.status.value, tick.timestamp, tick.error.message if tick.error else ""))
        for state in instance.all_instigator_state()
        if state.name in names
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since)
        if tick.tick_id > after_id
    ]
    ended: list[_Tick] = []
    for tick_id, tick in sorted(found):
        if tick[1] == "STARTED":
            break  # looked at again when it has ended
        after_id = tick_id
        ended.append(tick)
    return after_id, ended


def _of_tick(schedule: str, status: str, due: float, error: str) -> list[Message]:
    """What a tick of a schedule has to report: that it failed, and what a night had to leave out."""
    link = f"{_ui()}/automation"
    if status == "FAILURE":
        when = datetime.fromtimestamp(due, timezone.utc).isoformat(timespec="minutes")
        title = f"schedule {schedule} failed at {when}: nothing was started"
        return [Message("tick_failed", _NO_SCENARIO, title, error.strip(), link)]
    if schedule != nightly.name:
        return []
    return [
        Message("scenario_invalid", one.scenario, f"{one.scenario} was left out of the night", one.why, link)
        for one in tonight()[1]
    ]


# --- shared -----------------------------------------------------------------------------------------------------------


def _text(metadata: Mapping[str, dg.MetadataValue], name: str) -> str:
    value = metadata.get(name)
    return str(value.value) if value is not None else ""


def _ui() -> str:
    return read(Ui).url.rstrip("/")
