"""The Vidur profiling bundle of a scenario's hardware and model: measured once, then reused while it still fits. The op
is in `measurements`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from gst_assets.assets.presentation import column_schema, contract_passed, preview
from gst_assets.assets.references import as_metadata, made_in_run
from gst_assets.contracts.store import ArtifactStore, Kind, check_seal
from gst_assets.engine import recorded
from gst_assets.errors import ArtifactError, ProfileError
from gst_assets.partitions import SCENARIOS
from gst_assets.provenance import sha256_bytes, sha256_file
from gst_assets.resources import EngineResource
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    from gst_assets.step_costs.bundle import Bundle

NAME = "vidur_profile"
_RUN_ID, _META_SHA256 = "run_id", "meta_sha256"
SPEC = dg.AssetSpec(
    NAME,
    partitions_def=SCENARIOS,
    group_name="simulation",
    kinds={"vllm", "csv"},
    metadata={name: column_schema(name) for name in ("mlp.csv", "attention.csv", "overheads.csv")},
    description=(
        "Operator times of the model's true shapes (mlp.csv, attention.csv) and what an engine step costs beyond them"
        " (overheads.csv), measured on this hardware on calibration batches. A valid bundle of the same hardware, model"
        " and settings is reused, unless `replay.between_calibration` asks for one measured with the runs."
    ),
)


def bundle_in_place(store: ArtifactStore, scenario: Scenario, fixed: Path | None) -> "Bundle | None":
    """The bundle that the scenario must find; None where it is measured if need be, and its place in the artifact root
    is not that of a bundle of other steps. To be asked before an engine starts. `fixed`: the root that the scenario
    names, if it does.

    Raises:
        ProfileError, ContractError, ArtifactError
    """
    from gst_assets.step_costs.bundle import check_place

    # Recorded runs were measured elsewhere: a bundle measured on this machine would not belong to them, so theirs must
    # be there.
    if fixed is not None or scenario.engine.backend == recorded.BACKEND:
        return current_bundle(store, scenario, fixed)
    check_place(store.folder(Kind.PROFILE) / artifact_id(scenario), scenario)
    return None


def bundle_of(
    store: ArtifactStore,
    scenario: Scenario,
    engine: EngineResource,
    log: Callable[[str], None],
) -> "tuple[Bundle, bool]":
    """The scenario's bundle in the artifact root and whether it was there already; measured now where it was not.

    Raises:
        EngineError, ProfileError, ContractError, ArtifactError
    """
    found = _reusable(store, scenario, log)
    if found is not None:
        return found, True
    with store.stage(Kind.PROFILE, artifact_id(scenario)) as staging:
        measured = staging.path / "bundle"
        engine.profile(scenario, measured, store.root / Kind.PROFILE.value, log)
        return adopted(store, scenario, measured), False


def adopted(store: ArtifactStore, scenario: Scenario, measured: Path) -> "Bundle":
    """The measured bundle, moved into the store if it serves the scenario; one that was there is replaced."""
    from gst_assets.step_costs.bundle import check_bundle, load_bundle

    bundle = load_bundle(measured)
    check_bundle(bundle, scenario)
    # Before the bundle appears: between the two a reader finds one whose run the pointer does not name, which is as
    # good as it was.
    store.set_current(*_pointer(scenario), _seal(bundle))
    return load_bundle(store.adopt(Kind.PROFILE, artifact_id(scenario), measured, replace=True))


def artifact_id(scenario: Scenario) -> str:
    """The bundle's place below a profiling root."""
    return f"{scenario.hardware.hardware_id}/{scenario.model.name}"


def results(bundle: "Bundle", *, reused: bool) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """The asset's check and materialization."""
    yield contract_passed(NAME, mlp_rows=len(bundle.mlp), attention_rows=len(bundle.attention))
    yield dg.MaterializeResult(
        asset_key=NAME,
        data_version=dg.DataVersion(
            sha256_bytes("".join(bundle.sha256[name] for name in sorted(bundle.sha256)).encode())
        ),
        metadata={
            **as_metadata(_seal(bundle)),
            "path": dg.MetadataValue.path(str(bundle.directory)),
            "reused": reused,
            "device": bundle.meta.hardware.device_name,
            "measured_at": bundle.meta.ended_at.isoformat(),
            "mlp_rows": len(bundle.mlp),
            "attention_rows": len(bundle.attention),
            **_calibration(bundle),
        },
    )


def current_bundle(
    store: ArtifactStore, scenario: Scenario, fixed: Path | None, context: dg.AssetExecutionContext | None = None
) -> "Bundle":
    """The scenario's bundle, loaded and checked against the scenario. With `context`: where this run measured or chose
    one, that one.

    Raises:
        ProfileError, ContractError
        ArtifactError: incomplete or altered, or another run replaced the one of this run meanwhile.
    """
    from gst_assets.step_costs.bundle import check_bundle, find_bundle, load_bundle

    bundle = load_bundle(find_bundle(fixed or store.folder(Kind.PROFILE), scenario))
    check_bundle(bundle, scenario)
    here, meta = _seal(bundle), bundle.directory / Kind.PROFILE.meta_name
    if fixed is None:
        for _, pointed in store.pointers(*_pointer(scenario), *here):
            if pointed[_RUN_ID] == here[_RUN_ID]:
                check_seal(meta.read_bytes(), str(pointed[_META_SHA256]), meta)
    own = made_in_run(context, (NAME,)) if context is not None else None
    if own is not None and own != here:
        raise ArtifactError(
            f"{meta}: of profile {here[_RUN_ID]}, but this run made {own.get(_RUN_ID)}: another run replaced it"
            f" meanwhile, or it was changed. Materialize {NAME} and what depends on it again."
        )
    return bundle


def _pointer(scenario: Scenario) -> tuple[str, str]:
    """Where the store keeps what bundles were measured for the scenario's hardware and model; no scenario has such a
    name."""
    return f"{NAME}.{scenario.hardware.hardware_id}", scenario.model.name


def _seal(bundle: "Bundle") -> dict[str, str]:
    """What identifies a bundle, down to its metadata file."""
    return {_RUN_ID: bundle.meta.run_id, _META_SHA256: sha256_file(bundle.directory / Kind.PROFILE.meta_name)}


def _reusable(store: ArtifactStore, scenario: Scenario, log: Callable[[str], None]) -> "Bundle | None":
    """The bundle in the artifact root if it was measured with the same settings on this very device; None when one must
    be measured."""
    from gst_assets.engine.hardware import check_hardware
    from gst_assets.step_costs.bundle import profile_key

    present = check_hardware(scenario.hardware, scenario.engine.tensor_parallel_size)
    path = store.path(Kind.PROFILE, artifact_id(scenario))
    if artifact_id(scenario) not in store.list(Kind.PROFILE):
        return None
    try:
        bundle = current_bundle(store, scenario, None)
    except ProfileError as error:
        log(f"measuring again: {error}")
        return None
    if bundle.meta.profile_key != profile_key(scenario) or bundle.meta.hardware.device_name != present.device_name:
        log(f"measuring again: {path} was made with other settings or on {bundle.meta.hardware.device_name}")
        return None
    log(f"reusing {path}, measured {bundle.meta.ended_at.isoformat()}")
    return bundle


def _calibration(bundle: "Bundle") -> dict[str, dg.MetadataValue | str]:
    """What the calibration measured."""
    if bundle.overheads is None:
        return {"calibration": "none: the bundle has no overheads.csv and serves the kernels variant only"}
    return {
        "calibrated_terms": ", ".join(bundle.overheads["term"].unique()),
        "overheads": preview(bundle.overheads),
    }
