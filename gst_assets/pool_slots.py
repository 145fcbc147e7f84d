"""Slots of Dagster's pools that no run will give back: those of runs that have ended or are gone. Used where steps are
spread over machines."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True)
class Slots:
    """Claimed slots: freed ones, and those of runs that count as running, each as `(pool, run id)`."""

    freed: list[tuple[str, str]]
    kept: list[tuple[str, str]]


def free_dead_slots(instance: dg.DagsterInstance) -> Slots:
    """Free the slots of every run that has ended, or that the instance does not know any more.

    A killed run whose end was not recorded still counts as running: it has to be terminated first, which only a person
    can decide.
    """
    storage = instance.event_log_storage
    freed, kept = [], []
    for pool in sorted(storage.get_concurrency_keys()):
        for run_id in sorted({slot.run_id for slot in storage.get_concurrency_info(pool).claimed_slots}):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)
                freed.append((pool, run_id))
            else:
                kept.append((pool, run_id))
    return Slots(freed, kept)
