"""The Vidur profiling bundle of a scenario's hardware and model: measured once, then reused while it still fits."""

from pathlib import Path

import dagster as dg

from gst_assets.assets.presentation import contract_check_specs, contract_passed, preview
from gst_assets.assets.real_runs import ENGINE_POOL
from gst_assets.checks import reports_contract
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.engine import recorded
from gst_assets.errors import ProfileError
from gst_assets.executors import ENGINE_QUEUE
from gst_assets.partitions import SCENARIOS
from gst_assets.profiling.bundle import Bundle, check_bundle, find_bundle, load_bundle, profile_key
from gst_assets.provenance import sha256_bytes
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, VidurProfilingRoot
from gst_assets.scenario import Scenario


@dg.asset(
    partitions_def=SCENARIOS,
    group_name="simulation",
    kinds={"vllm", "csv"},
    check_specs=contract_check_specs(["vidur_profile"]),
    pool=ENGINE_POOL,
    op_tags=ENGINE_QUEUE,
    description=(
        "Operator times of the model's true shapes (mlp.csv, attention.csv) and what an engine step costs beyond them (overheads.csv), "
        "measured on this hardware on calibration batches. A valid bundle of the same hardware, model and settings is reused."
    ),
)
@reports_contract("vidur_profile")
def vidur_profile(
    context: dg.AssetExecutionContext,
    scenario: ScenarioResource,
    artifacts: ArtifactRoot,
    engine: EngineResource,
    profiling_root: VidurProfilingRoot,
) -> dg.MaterializeResult:
    chosen, store = scenario.load(context.partition_key), artifacts.store()
    fixed = profiling_root.fixed(chosen)
    # Recorded runs were measured elsewhere: a bundle measured on this machine would not belong to them, so theirs must be there.
    measured_elsewhere = fixed is not None or chosen.engine.backend == recorded.BACKEND
    bundle = current_bundle(store, chosen, fixed) if measured_elsewhere else _reusable(store, chosen, context)
    reused = bundle is not None
    if bundle is None:
        artifact_id = f"{chosen.hardware.hardware_id}/{chosen.model.name}"
        with store.stage(Kind.PROFILE, artifact_id) as staging:
            measured = staging.path / "bundle"
            engine.profile(chosen, scenario.overrides, measured, store.root / Kind.PROFILE.value, context.log.info)
            check_bundle(load_bundle(measured), chosen)
            bundle = load_bundle(store.adopt(Kind.PROFILE, artifact_id, measured, replace=True))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(
            sha256_bytes("".join(bundle.sha256[name] for name in sorted(bundle.sha256)).encode())
        ),
        check_results=[
            contract_passed("vidur_profile", mlp_rows=len(bundle.mlp), attention_rows=len(bundle.attention))
        ],
        metadata={
            "path": dg.MetadataValue.path(str(bundle.directory)),
            "reused": reused,
            "device": bundle.meta.hardware.device_name,
            "measured_at": bundle.meta.ended_at.isoformat(),
            "mlp_rows": len(bundle.mlp),
            "attention_rows": len(bundle.attention),
            **_calibration(bundle),
        },
    )


def current_bundle(store: ArtifactStore, scenario: Scenario, fixed: Path | None) -> Bundle:
    """The scenario's bundle, loaded and checked against the scenario.

    Raises:
        ProfileError, ContractError, ArtifactError
    """
    bundle = load_bundle(find_bundle(fixed or store.folder(Kind.PROFILE), scenario))
    check_bundle(bundle, scenario)
    return bundle


def _reusable(store: ArtifactStore, scenario: Scenario, context: dg.AssetExecutionContext) -> Bundle | None:
    """The bundle in the artifact root if it was measured with the same settings on this very device; None when one must be measured."""
    from gst_assets.engine.hardware import check_hardware

    present = check_hardware(scenario.hardware)
    artifact_id = f"{scenario.hardware.hardware_id}/{scenario.model.name}"
    path = store.path(Kind.PROFILE, artifact_id)
    if artifact_id not in store.list(Kind.PROFILE):
        return None
    try:
        bundle = current_bundle(store, scenario, None)
    except ProfileError as error:
        context.log.info(f"measuring again: {error}")
        return None
    if bundle.meta.profile_key != profile_key(scenario) or bundle.meta.hardware.device_name != present.device_name:
        context.log.info(
            f"measuring again: {path} was made with other settings or on {bundle.meta.hardware.device_name}"
        )
        return None
    context.log.info(f"reusing {path}, measured {bundle.meta.ended_at.isoformat()}")
    return bundle


def _calibration(bundle: Bundle) -> dict[str, dg.MetadataValue | float | int | str]:
    """What the calibration measured, and the median share of a decode-only step (of its device time, with async scheduling) that the operator profile explains."""
    if bundle.overheads is None:
        return {"calibration": "none: the bundle has no overheads.csv and serves the kernels variant only"}
    # An engine that schedules asynchronously has no time of a whole step; of what it takes, the device's part has operators in it.
    whole = "device" if bundle.meta.engine_settings.async_scheduling else "step"
    steps = bundle.overheads[bundle.overheads["term"] == whole]
    decode = steps[steps["step_kind"] == "decode"]
    return {
        "calibrated_compositions": len(steps),
        "operators_share_of_decode_step": round(float((decode["operators_ns"] / decode["median_ns"]).median()), 3),
        "overheads": preview(bundle.overheads),
    }
