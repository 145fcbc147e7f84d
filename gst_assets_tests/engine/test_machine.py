"""The record of the machine, taken on this machine: who used the cores, windows, what is not reported, and what a
sample costs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.contracts.documents import GpuState, Hardware, MachineRecord, MachineState, MachineWindow
from gst_assets.engine import machine
from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.engine.kernel_counters import Counted, bounds_of_others, counted
from gst_assets_tests.engine.watched_alone import USED_TICKS

CPU = Hardware(hardware_id="cpu", device_name="here", device_count=1)
GPU = Hardware(hardware_id="h100", device_name="NVIDIA H100", device_count=1)
BURN = [sys.executable, "-c", "while True: pass"]
ROUNDED = 0.0001
"""Shares are told with four digits."""


def seen(seconds: float, during: Callable[[], None] = lambda: None, hardware: Hardware = CPU) -> MachineRecord:
    """The record of an event loop that calls `during` once and then waits."""

    async def watch() -> MachineRecord:
        with machine.watched(hardware) as watched:
            start_ns, first = time.monotonic_ns(), counted()
            during()
            await asyncio.sleep(seconds)
            while counted().total < first.total + 5:  # of so short a span the kernel may have counted nothing yet
                await asyncio.sleep(0.01)
        return watched.record(start_ns)

    return asyncio.run(watch())


def alone(what: str) -> tuple[dict[str, Any], MachineRecord]:
    """What `watched_alone` tells, and the record in it; each window's share of others holds against what the kernel
    counted in the same span, which on a busy virtual machine is not what clocks say."""
    command = [sys.executable, "-m", "gst_assets_tests.engine.watched_alone", what]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    record = MachineRecord.model_validate(told["record"])
    assert len(record.windows) == len(told["inside"]) == len(told["around"])
    for window, inside, around in zip(record.windows, told["inside"], told["around"], strict=True):
        least, most = bounds_of_others(Counted(*inside), Counted(*around))
        assert window.cpu_others is not None and window.cpu_busy is not None
        assert least - ROUNDED <= window.cpu_others <= most + ROUNDED, told
        assert window.cpu_others <= window.cpu_busy <= 1
    return told, record


def test_what_this_program_uses_is_not_counted_as_others() -> None:
    told, record = alone("own")
    assert told["inside"][0][Counted._fields.index("own")] >= USED_TICKS
    (window,) = record.windows
    assert (record.cpu_others, record.cpu_busy) == (window.cpu_others, window.cpu_busy)
    assert 0 <= (record.cpu_steal or 0) <= 1 and record.num_cores == os.cpu_count()


def test_what_another_program_uses_is_told_and_in_which_window() -> None:
    """A program that began later is no child that serves the measurement, though it is a child."""
    told, record = alone("other")
    (burner,) = told["burners"]
    assert burner in told["family"] and record.cpu_others is not None
    assert len(record.windows) == 3
    assert all(one.end_ns == two.start_ns for one, two in pairwise(record.windows))


def test_the_machine_is_sampled_again_and_again_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PERIOD_S", 0.05)

    async def watch() -> MachineRecord:
        with machine.watched(CPU) as watched:
            start_ns = time.monotonic_ns()
            async with asyncio.timeout(120):
                while len(watched._samples) < 4:
                    await asyncio.sleep(0.01)
        return watched.record(start_ns)

    *full, _ = asyncio.run(watch()).windows  # the last ends with the block
    assert len(full) >= 3 and all(one.end_ns == two.start_ns for one, two in pairwise(full))
    assert min(window.end_ns - window.start_ns for window in full) >= 49_000_000


def test_children_that_were_there_belong_to_the_measurement_and_one_that_ends_makes_others_unknown() -> None:
    child = subprocess.Popen(BURN)
    try:
        assert {os.getpid(), child.pid} <= set(machine._family(os.getpid()))

        def end() -> None:
            child.kill()
            child.wait()

        record = seen(0.1, end)
    finally:
        child.kill()
        child.wait()
    assert record.cpu_busy is not None and record.cpu_others is None


def test_a_gpu_that_is_not_there_and_a_frequency_that_is_not_told_are_null() -> None:
    record = seen(0.05, hardware=GPU)
    if machine.Gpu.opened() is None:
        assert record.before.gpu is None and record.windows[-1].gpu is None
    if not list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        assert record.before.cpu_mhz is None
    assert record.before.load_1m is not None


def test_the_governors_frequencies_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, khz in enumerate((2_100_000, 2_300_000)):
        folder = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    monkeypatch.setattr(machine, "_SYS", tmp_path)
    assert seen(0.01).before.cpu_mhz == 2200.0


def test_a_machine_without_proc_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    record = seen(0.01)
    assert (record.cpu_busy, record.cpu_others, record.cpu_steal) == (None, None, None)


@pytest.mark.parametrize("samples", [2, 65, 129, 400])
def test_a_long_measurement_has_few_windows_that_cover_it(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PERIOD_S", 1000.0)

    async def watch() -> MachineRecord:
        with machine.watched(CPU) as watched:
            start_ns = time.monotonic_ns()
            for _ in range(samples - 2):
                watched.sample()
        assert watched.record(start_ns).num_samples == samples
        return watched.record(start_ns)

    record = asyncio.run(watch())
    assert 1 <= len(record.windows) <= machine.MAX_WINDOWS
    assert all(one.end_ns == two.start_ns for one, two in pairwise(record.windows))
    assert record.windows[0].start_ns <= 0 < record.windows[-1].end_ns


@given(
    *(st.lists(st.integers(0, 10**6), min_size=8, max_size=8) for _ in range(2)),
    st.binary(max_size=12).filter(lambda name: b"\n" not in name),
    st.integers(0, 10**4),
)
def test_shares_are_of_all_cores_and_never_below_nothing(
    first: list[int], more: list[int], name: bytes, ours: int
) -> None:
    """Whatever the counters, whatever a process calls itself."""

    def parsed(counters: list[int], ticks: int) -> machine._Ticks:
        whole = b"cpu  " + " ".join(map(str, counters)).encode() + b" 0 0\ncpu0 1 2 3"
        process = b"7 (" + name + b") S 1 " + b" 0" * 9 + f" {ticks} 0 0 0".encode()
        found = machine._parsed(whole, [process])
        assert found is not None and found.ours == ticks
        return found

    before, after = parsed(first, 0), parsed([a + b for a, b in zip(first, more, strict=True)], ours)
    assert after.total - before.total == sum(more) and after.steal - before.steal == more[7]
    assert after.busy - before.busy == sum(more) - more[3] - more[4] - more[7]


def test_what_is_told_of_a_record() -> None:
    state = MachineState(load_1m=0.4, gpu=GpuState(temperature_c=41, sm_clock_mhz=1980, slowed_by=[]))
    hot = GpuState(temperature_c=84, sm_clock_mhz=1410, slowed_by=["software thermal"])
    window = MachineWindow(start_ns=0, end_ns=10**9, load_1m=1.2, gpu=hot)
    record = MachineRecord(
        num_cores=2,
        cpu_busy=0.52,
        cpu_others=0.1,
        cpu_steal=0.0,
        before=state,
        windows=[window],
        sampling_ns_max=1,
        num_samples=2,
    )
    assert (
        machine.told(record)
        == "2 cores 52 % busy, 10 % with other programs, 0 % stolen; load 0.40 to 1.20; GPU 41 to 84 C; GPU clock 1410"
        " to 1980 MHz; GPU slowed by software thermal"
    )
    bare = MachineRecord(num_cores=1, before=MachineState(), windows=[], sampling_ns_max=0, num_samples=1)
    assert machine.told(bare) == "nothing readable"
