"""Runs of this program whose process was killed: their end was not recorded, so for Dagster they would run for ever.

A run that a process makes for itself is tagged with that process; the next such process finds the tags of the dead.
Runs of the UI and the daemon have a watcher of Dagster's own.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import dagster as dg

from gst_assets.provenance import sha256_bytes

PROCESS_TAG = "gst/process"
_PROC = Path("/proc")
_MACHINE_ID = Path("/etc/machine-id")
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def process_tags() -> dict[str, str]:
    """Tags for a run that this process makes: which process that is, distinct from every other, later ones of the
    same number included. No tags where the system does not say (it has no /proc, or no machine id)."""
    number = str(os.getpid())
    started, here = _start_of(number), _here()
    return {} if started is None or here is None else {PROCESS_TAG: "/".join([*here, number, started])}


def end_killed_runs(instance: dg.DagsterInstance) -> list[str]:
    """Record as failed every unfinished run whose process on this machine is gone; returns their ids."""
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        process = run.tags.get(PROCESS_TAG)
        if process is not None and _is_gone(process):
            instance.report_run_failed(
                run, f"The process of this run, {process.split('/')[-2]}, was killed or ended with its machine."
            )
            ended.append(run.run_id)
    return ended


def _is_gone(process: str) -> bool:
    """Whether a process is known to have ended. Of other machines and containers nothing is known."""
    here, parts = _here(), process.split("/")
    if here is None or len(parts) != len(here) + 2 or parts[0] != here[0]:
        return False
    if parts[1] != here[1]:
        return True  # the machine was started anew
    *place, number, started = parts
    return place == here and _start_of(number) != started


def _here() -> list[str] | None:
    """This machine, its start, and the container in it, whose process numbers are its own; None where the system does
    not say. A host name alone names no machine: two containers may share it."""
    try:
        machine = _MACHINE_ID.read_bytes().strip()
        start = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        container = (_PROC / "self/ns/pid").readlink().name
    except OSError:
        return None
    return [sha256_bytes(machine + socket.gethostname().encode())[:16], start, container] if machine else None


def _start_of(number: str) -> str | None:
    """When a process was started, in the kernel's ticks since the machine's start; None where there is none."""
    try:
        fields = (_PROC / number / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
