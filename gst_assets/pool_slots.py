"""Slots of Dagster's pool `engine`, which guards the engine where steps are spread over machines: taken for as long as
an engine is used, and freed where their runs have ended or are gone.

The assets do not name the pool. Whether a step uses an engine depends on its scenario (recorded runs, a profile that is
there, a search on the simulator alone), and Dagster takes the slot of an asset's pool before the step knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg

from gst_assets.executors import is_spread

POOL = "engine"
_POLL_S = 2.0


@contextmanager
def engine_slot(log: Callable[[str], None]) -> Iterator[None]:
    """Hold a slot of the pool `engine` for the block, within an asset's step; waits for one without limit, as Dagster
    does.

    Does nothing where the steps of a run stay on one machine. There the machine's lock is enough
    (`engine.machine_lock`), and a killed run would keep its slot for ever.

    Raises:
        EnvironmentVariableError: the environment names an unknown executor.
    """
    if not is_spread():
        yield
        return
    context = dg.AssetExecutionContext.get()
    storage, run_id = context.instance.event_log_storage, context.run.run_id
    step = context.op_execution_context.op_def.name
    if not _is_limited(context.instance):
        yield
        return
    told = False
    try:
        while not storage.claim_concurrency_slot(POOL, run_id, step).is_claimed:
            if not told:
                log(f"waiting for a slot of Dagster's pool {POOL}, which another run holds")
                told = True
            time.sleep(_POLL_S)
        yield
    finally:
        # Also of one that only waited: else the next free slot would be given to a step that is gone.
        storage.free_concurrency_slot_for_step(run_id, step)


def _is_limited(instance: dg.DagsterInstance) -> bool:
    """Whether the pool has a limit; one that has none of its own gets the instance's default, where there is one."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return False
    default = storage.get_pool_config().default_pool_limit
    own = next((one for one in storage.get_pool_limits() if one.name == POOL), None)
    # No further: on PostgreSQL Dagster 1.13 fails where the limit is there already.
    if default is not None and (own is None or (own.from_default and own.limit != default)):
        storage.initialize_concurrency_limit_to_default(POOL)
        return True
    return own is not None


@dataclass(frozen=True)
class Slots:
    """Claimed slots: freed ones, and those of runs that count as running, each as `(pool, run id)`."""

    freed: list[tuple[str, str]]
    kept: list[tuple[str, str]]


def free_dead_slots(instance: dg.DagsterInstance) -> Slots:
    """Free the slots of every run that has ended, or that the instance does not know any more.

    A killed run whose end was not recorded still counts as running: `killed_runs.end_killed_runs` ends those whose
    process is known to be gone; any other has to be terminated by a person first.
    """
    storage = instance.event_log_storage
    freed, kept = [], []
    for pool in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(pool)
        # A step that was killed while it waited is next in the queue, and would hold up those behind it.
        taken, waiting = {one.run_id for one in info.claimed_slots}, {one.run_id for one in info.pending_steps}
        for run_id in sorted(taken | waiting):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)
                freed.append((pool, run_id))
            else:
                kept.append((pool, run_id))
    return Slots(freed, kept)
