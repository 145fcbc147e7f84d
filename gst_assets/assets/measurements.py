"""What is measured on an engine: a scenario's real runs and the profile of its hardware, as one op that can be asked
for either or for both.

One op, because with `replay.between_calibration` both come from one engine start: the repeats are played between the
rounds of the calibration, so that both meet the same drift of the machine.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from gst_assets.assets import profiles, real_runs
from gst_assets.assets.checks import COMPLETENESS, LATENESS, specs
from gst_assets.assets.presentation import contract_check_specs, contract_failed, load_tagged
from gst_assets.assets.workloads import current_workload
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.engine import recorded
from gst_assets.errors import ContractError
from gst_assets.executors import ENGINE_QUEUE
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    from gst_assets.analysis.run_reading import OwnRealRun
    from gst_assets.step_costs.bundle import Bundle

_NAMES = (*real_runs.NAMES, profiles.NAME)


@dg.multi_asset(
    specs=[*real_runs.SPECS, profiles.SPEC],
    check_specs=[*contract_check_specs(_NAMES), *specs(real_runs.NAMES[0], COMPLETENESS, LATENESS)],
    can_subset=True,
    op_tags=ENGINE_QUEUE,
)
def measurements(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    engine: EngineResource,
    profiling_root: VidurProfilingRoot,
) -> Iterator[Any]:
    chosen, store, log = load_tagged(context, scenario, context.partition_key), artifacts.store(), context.log.info
    asked = {key.to_user_string() for key in context.selected_asset_keys}
    names = tuple(name for name in real_runs.NAMES if name in asked)
    fixed = profiling_root.fixed(chosen)
    together = bool(names) and profiles.NAME in asked and chosen.measured_together and fixed is None
    runs: list[OwnRealRun] = []
    bundle: Bundle | None = None
    measured_now, is_recorded = False, chosen.engine.backend == recorded.BACKEND
    try:
        # Before an engine is started. Recorded runs are played back whatever becomes of the profile.
        if profiles.NAME in asked and not is_recorded:
            bundle = profiles.bundle_in_place(store, chosen, fixed)
    except ContractError as error:
        yield contract_failed(profiles.NAME, error)
        raise
    try:
        if together:
            workload = current_workload(store, chosen, context)
            runs, bundle = _measure_together(store, chosen, workload.directory, engine, log)
            measured_now = True
        elif names:
            workload = current_workload(store, chosen, context)
            if is_recorded:
                runs = real_runs.play_back(store, chosen, workload, log)
            else:
                runs = real_runs.measure(store, chosen, workload, engine, log)
    except ContractError as error:
        yield from (contract_failed(name, error) for name in names)
        raise
    if names:
        yield from real_runs.results(store, chosen, runs, names)
    if profiles.NAME not in asked:
        return
    try:
        reused = not measured_now
        if is_recorded:
            bundle = profiles.bundle_in_place(store, chosen, fixed)
        if bundle is None:
            bundle, reused = profiles.bundle_of(store, chosen, engine, log)
    except ContractError as error:
        yield contract_failed(profiles.NAME, error)
        raise
    yield from profiles.results(bundle, reused=reused)


def _measure_together(
    store: ArtifactStore,
    scenario: Scenario,
    workload: Path,
    engine: EngineResource,
    log: Callable[[str], None],
) -> "tuple[list[OwnRealRun], Bundle]":
    """Repeats and profile from one engine start; neither becomes current unless both are valid. Of a measurement that
    failed or was cancelled the repeats are kept."""
    from gst_assets.analysis.run_reading import load_own_run

    with store.stage(Kind.PROFILE, profiles.artifact_id(scenario)) as staging:
        measured, root, runs = staging.path / "bundle", store.root / Kind.PROFILE.value, staging.path / "runs"
        with real_runs.keeping(store, runs):
            played = engine.profile_with_runs(scenario, workload, measured, root, runs, log)
            for directory in played:
                load_own_run(directory, "real")
            bundle = profiles.adopted(store, scenario, measured)
            return real_runs.adopted(store, played), bundle
