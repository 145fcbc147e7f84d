"""Which artifacts a step reads: those that its own Dagster run made, and where it made none the newest that match what
the scenario asks for.

So two runs of one partition at the same time, with different overrides, never mix. What a step makes is recorded twice:
in the store's pointers (`contracts.pointers`), and in the metadata of its materialization (`METADATA`), where this
module looks first.
"""

from collections.abc import Collection
from typing import Any

import dagster as dg

from gst_assets.contracts.pointers import PARAMS, P, Reference, Slot, newest, understood
from gst_assets.contracts.store import ArtifactStore
from gst_assets.scenario import Scenario

METADATA = "artifacts"
"""Metadata key of a materialization: ids and seals of what was made, as JSON."""


def as_metadata(pointer: dict[str, Any]) -> dict[str, dg.MetadataValue]:
    """What a pointer holds, except the settings, which are in the run's config."""
    told = {key: value for key, value in pointer.items() if key != PARAMS}
    return {METADATA: dg.MetadataValue.json(told)}


def made_in_run(context: dg.AssetExecutionContext, assets: Collection[str]) -> dict[str, Any] | None:
    """`METADATA` of what a materialization of one of `assets` in this run, or in a run that this one re-executes, made
    for the step's partition; None: nothing."""
    run: dg.DagsterRun | None = context.run
    while run is not None:
        logged = context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        for record in reversed(logged.records):
            event = record.event_log_entry.dagster_event
            made = event.step_materialization_data.materialization if event else None
            if made and made.asset_key.to_user_string() in assets and made.partition == context.partition_key:
                told = made.metadata.get(METADATA)
                if told is not None and isinstance(told.value, dict):
                    return told.value
        before = run.get_parent_run_id()
        run = context.instance.get_run_by_id(before) if before else None
    return None


def current(
    store: ArtifactStore, scenario: Scenario, slot: Slot[P], context: dg.AssetExecutionContext | None, *assets: str
) -> Reference[P]:
    """What a step that needs `slot`, which `assets` set, is to read. Without `context`: the newest that match the
    scenario.

    Raises:
        WorkloadError, ArtifactError: as `contracts.pointers.newest`.
    """
    own = made_in_run(context, assets or (slot.asset,)) if context is not None else None
    if own is not None and context is not None:
        return Reference(understood(own, slot, f"Dagster's record of run {context.run_id}"))
    found = newest(store, scenario, slot)
    if found.gone and context is not None:
        context.log.warning(
            f"{', '.join(found.gone)}: no longer under {store}. Falling back to the {slot.what} before."
        )
    return found
