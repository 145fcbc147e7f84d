"""The record of the machine in a process without children, and what the kernel counted in the same spans, as JSON:
`python -m gst_assets_tests.engine.watched_alone own|other`.

A test process may have children, which the record counts as its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from gst_assets.contracts.documents import Hardware
from gst_assets.engine import machine
from gst_assets_tests.engine.kernel_counters import Counted, counted, process_ticks

USED_TICKS = 50
"""So much is used in a window of interest, however long that takes on a busy machine."""


def _spend() -> None:
    """Processor time of this process."""
    until = counted().own + USED_TICKS
    while counted().own < until:
        pass


def _wait(ended: Callable[[], bool]) -> None:
    while not ended():
        time.sleep(0.02)


def _idle() -> None:
    until = counted().total + USED_TICKS
    _wait(lambda: counted().total >= until)


def _another_spends() -> None:
    """Processor time of a program that begins while the machine is watched, and is still there at the end of the
    window."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    _BURNERS.append(burner)
    until = process_ticks(burner.pid) + USED_TICKS
    _wait(lambda: process_ticks(burner.pid) >= until)


_BURNERS: list[subprocess.Popen[bytes]] = []


async def _watch(windows: list[Callable[[], None]]) -> dict[str, object]:
    machine.PERIOD_S = 1000.0  # windows end where the lines below say
    around: list[tuple[Counted, Counted]] = []
    inside: list[Counted] = []
    before = counted()
    with machine.watched(Hardware(hardware_id="cpu", device_name="here", device_count=1)) as watched:
        start_ns = time.monotonic_ns()
        around.append((before, counted()))
        for place, during in enumerate(windows):
            first = counted()
            during()
            inside.append(counted().since(first))
            before = counted()
            if place < len(windows) - 1:
                watched.sample()
                around.append((before, counted()))
    around.append((before, counted()))
    family = machine._family(os.getpid())
    for burner in _BURNERS:
        burner.kill()
        burner.wait()
    return {
        "record": watched.record(start_ns).model_dump(mode="json"),
        "inside": inside,
        "around": [ended.since(began) for (began, _), (_, ended) in pairwise(around)],
        "whole": around[-1][1].since(around[0][0]),
        "family": family,
        "burners": [burner.pid for burner in _BURNERS],
    }


if __name__ == "__main__":
    plays = {"own": [_spend], "other": [_idle, _another_spends, _idle]}
    print(json.dumps(asyncio.run(_watch(plays[sys.argv[1]]))))
