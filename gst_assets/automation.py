"""What runs by itself or at one command: the jobs, the nightly schedules, and how fresh the nightly assets must be.

The schedules are off until they are switched on in the UI. Nothing is measured twice to get a better number: no step
that measures is ever retried (see docs/nightly.md). Who is notified of what went wrong is in `sensors`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dagster as dg

from gst_assets.assets.capacities import capacity
from gst_assets.assets.comparisons import comparison_report
from gst_assets.assets.presentation import run_tags
from gst_assets.assets.regression import nightly_line, simulation_self_check
from gst_assets.assets.sweeps import sweep
from gst_assets.contracts.open_store import open_store
from gst_assets.environment import CRON_VARIABLE, TIMEZONE_VARIABLE, Nightly, read
from gst_assets.errors import EnvironmentVariableError, ScenarioError
from gst_assets.partitions import SCENARIOS
from gst_assets.scenario import SCENARIO_DIR, Scenario, load_scenario, scenario_names


def taken_cron(text: str) -> str:
    """The text of GST_NIGHTLY_CRON, if Dagster takes it.

    Raises:
        EnvironmentVariableError: it does not.
    """
    try:
        dg.ScheduleDefinition(name="when", job_name="when", cron_schedule=text)
    except dg.DagsterInvalidDefinitionError:
        raise EnvironmentVariableError(
            f"{CRON_VARIABLE}={text}: expected five fields as cron has them, e.g. 0 2 * * *. Correct the variable, or"
            " unset it."
        ) from None
    return text


_WHEN = read(Nightly)
TIMEZONE, CRON = _WHEN.timezone, taken_cron(_WHEN.cron)

# --- jobs -------------------------------------------------------------------------------------------------------------

_COMPARED = dg.AssetSelection.assets(comparison_report).upstream()

comparison = dg.define_asset_job(
    "comparison",
    _COMPARED,
    description=(
        "One scenario from its workload to its report: measures (or plays back recorded runs), simulates, compares."
    ),
)
# Dagster wants jobs and ops to have different names, and the ops are `sweep` and `capacity`.
sweep_simulation = dg.define_asset_job(
    "sweep_simulation",
    dg.AssetSelection.assets(sweep).upstream(),
    description="The scenario's workload simulated under the rates and engine settings of its section `sweep`.",
)
capacity_search = dg.define_asset_job(
    "capacity_search",
    dg.AssetSelection.assets(capacity).upstream(),
    description=(
        "The highest rate that the scenario's section `capacity` asks for, on the simulator, the engine or both."
    ),
)
nightly_comparison = dg.define_asset_job(
    "nightly_comparison",
    _COMPARED | dg.AssetSelection.assets(nightly_line),
    description=(
        "Real against simulated: measures, simulates, compares, and judges the trend. One run per scenario; engine"
        " steps one at a time."
    ),
)
# Dagster says so whenever it resolves the job; what it then takes, one partition a run, is what is meant.
warnings.filterwarnings("ignore", "Asset job nightly_comparison materializes assets with varying BackfillPolicies")
simulation_check = dg.define_asset_job(
    "simulation_check",
    dg.AssetSelection.assets(simulation_self_check),
    description="Simulates the last simulations again and demands the same bytes. Measures nothing.",
)

# --- nights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A scenario that a night had to leave out: its name, its file, and why."""

    scenario: str
    file: Path
    why: str


def tonight(directory: Path = SCENARIO_DIR) -> tuple[list[Scenario], list[Problem]]:
    """The scenarios marked `nightly: true`, and those that cannot be used, nightly or not. Reads every scenario file.

    A file that is not valid stops no other scenario. One that came since the definitions were loaded is no partition
    yet.
    """
    known = set(SCENARIOS.get_partition_keys())
    chosen: list[Scenario] = []
    problems: list[Problem] = []
    for name in scenario_names(directory):
        file = directory / f"{name}.yaml"
        try:
            scenario = load_scenario(name, directory=directory)
        except ScenarioError as error:
            problems.append(Problem(name, file, str(error)))
            continue
        if scenario.nightly and name in known:
            chosen.append(scenario)
        elif scenario.nightly:
            why = (
                f"{file}: came since the definitions were loaded, so it has no partition. Reload them: in the UI under"
                " Deployment, or start the UI again."
            )
            problems.append(Problem(name, file, why))
    return chosen, problems


@dg.schedule(
    name="nightly",
    job=nightly_comparison,
    cron_schedule=CRON,
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description=(
        f"Every scenario marked nightly, one run each, at `{CRON}` {TIMEZONE} ({CRON_VARIABLE}, {TIMEZONE_VARIABLE})."
    ),
)
def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    chosen, problems = tonight()
    for problem in problems:
        # Reported to people by `sensors.tell_people`, which sees this tick.
        context.log.warning(f"left out: {problem.why}")
    if not chosen:
        yield dg.SkipReason("no scenario is marked nightly: true")
    for scenario in chosen:
        yield _request(context, scenario)


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
    chosen = [one for one in tonight()[0] if store.current(one.name, "vidur_runs") is not None]
    if not chosen:
        yield dg.SkipReason("no nightly scenario was simulated yet")
    for scenario in chosen:
        yield _request(context, scenario)


def _request(context: dg.ScheduleEvaluationContext, scenario: Scenario) -> dg.RunRequest:
    tick = context.scheduled_execution_time.isoformat()
    return dg.RunRequest(
        run_key=f"{tick}/{scenario.name}",
        partition_key=scenario.name,
        tags={"gst/nightly": tick, **run_tags(scenario)},
    )


# --- freshness --------------------------------------------------------------------------------------------------------

_FRESH = dg.FreshnessPolicy.cron(deadline_cron="0 6 * * *", lower_bound_delta=timedelta(hours=5), timezone=TIMEZONE)
"""By 06:00 every night's comparison, history and verdict must have been made. Dagster judges an asset, not each of its
partitions."""
_NIGHTLY_ASSETS = {"comparison_report", *(key.to_user_string() for key in nightly_line.keys)}


def with_freshness(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets, the nightly ones with their freshness policy."""

    def fresh(spec: dg.AssetSpec) -> dg.AssetSpec:
        nightly = spec.key.to_user_string() in _NIGHTLY_ASSETS
        return spec.replace_attributes(freshness_policy=_FRESH) if nightly else spec

    return [one.map_asset_specs(fresh) for one in assets]


JOBS = (comparison, sweep_simulation, capacity_search, nightly_comparison, simulation_check)
SCHEDULES = (nightly, nightly_simulation_check)
