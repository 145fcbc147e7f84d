"""What the machine was doing while something was measured: processor time of this program and of others, steal, load,
frequency, and the GPU's temperature, clocks and power. What a machine does not report is null, never guessed.

Read from /proc and /sys, and from the NVIDIA driver's own library through ctypes, so that a bare GPU host needs no
package for it. Sampled before, after, and once a second in between in the event loop that measures: no thread that
competes for the interpreter lock, no process that competes for a core. What a sample costs is part of the record.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from gst_assets.contracts.documents import GpuState, Hardware, MachineRecord, MachineState, MachineWindow
from gst_assets.formats import unsigned_percent, value_range
from gst_assets.scenario import CPU

PERIOD_S = 1.0
"""Between two samples."""
MAX_WINDOWS = 64
"""A longer measurement gets longer windows: neighbours are joined, so that the record stays small."""

_PROC = Path("/proc")
_SYS = Path("/sys")
_FREQUENCIES = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
"""As the governor reports it. A virtual machine has none; the nominal frequency in /proc/cpuinfo is no measurement."""
_NVML_LIBRARY = "libnvidia-ml.so.1"
_TEMPERATURE_OF_CHIP, _CLOCK_SM, _CLOCK_MEMORY = 0, 1, 2
_SLOWED_BY = (
    (0x4, "power cap"),
    (0x8, "hardware slowdown"),
    (0x20, "software thermal"),
    (0x40, "hardware thermal"),
    (0x80, "power brake"),
)
"""Bits of NVML's clock event reasons that mean slower than asked; idle and chosen clocks are none of them."""


class _Ticks(NamedTuple):
    """Processor time since boot over all cores, in clock ticks; `ours` is this program with its children."""

    total: int
    busy: int
    steal: int
    ours: int | None


@dataclass(frozen=True)
class _Sample:
    """What was read at `time_ns`, still as text: reading it is all that the measurement has to pay for."""

    time_ns: int
    counters: tuple[bytes | None, ...]
    load_1m: float | None
    cpu_khz: tuple[bytes | None, ...]
    gpu: GpuState | None

    def ticks(self) -> _Ticks | None:
        whole, *ours = self.counters
        return _parsed(whole, ours)

    def state(self) -> MachineState:
        khz = [int(text) for text in self.cpu_khz if text]
        mean = round(sum(khz) / len(khz) / 1e3, 1) if khz else None
        return MachineState(load_1m=self.load_1m, cpu_mhz=mean, gpu=self.gpu)


class Watch:
    """Samples of one measurement, by `watched`."""

    def __init__(self, gpu: Gpu | None) -> None:
        self._gpu = gpu
        # Kept open: reading again from an open file of /proc takes 15 microseconds, opening it several times that.
        self._counters = [
            _opened(_PROC / "stat"),
            *(_opened(_PROC / str(pid) / "stat") for pid in _family(os.getpid())),
        ]
        self._frequencies = [_opened(file) for file in sorted(_SYS.glob(_FREQUENCIES))]
        self._samples: list[_Sample] = []
        self._costs_ns: list[int] = []
        self._period_s = PERIOD_S
        self._handle: asyncio.TimerHandle | None = None
        self.sample()  # finds cold files, before anything is measured
        self._samples.clear()
        self._costs_ns.clear()
        self._again()

    def _again(self) -> None:
        self.sample()
        self._handle = asyncio.get_running_loop().call_later(self._period_s, self._again)

    def sample(self) -> None:
        """Read the machine now."""
        began_ns = time.monotonic_ns()
        self._samples.append(
            _Sample(
                began_ns,
                tuple(_read(file) for file in self._counters),
                _load_1m(),
                tuple(_read(file) for file in self._frequencies),
                self._gpu.state() if self._gpu else None,
            )
        )
        self._costs_ns.append(time.monotonic_ns() - began_ns)
        if len(self._samples) > 2 * MAX_WINDOWS:
            # Counters only grow, so leaving out every second sample joins two windows into one.
            self._samples = self._samples[::2]
            self._period_s *= 2

    def end(self) -> None:
        """The last sample; the files are closed."""
        if self._handle is not None:
            self._handle.cancel()
        self.sample()
        for file in (*self._counters, *self._frequencies):
            if file is not None:
                os.close(file)

    def record(self, start_ns: int) -> MachineRecord:
        """What was seen; times are relative to `start_ns` on the monotonic clock, as those of the run."""
        first, last = self._samples[0], self._samples[-1]
        every = -(-(len(self._samples) - 1) // MAX_WINDOWS)
        kept = [*self._samples[:-1:every], last]
        busy, others, steal = _shares(first, last)
        return MachineRecord(
            num_cores=os.cpu_count() or 1,
            cpu_busy=busy,
            cpu_others=others,
            cpu_steal=steal,
            before=first.state(),
            windows=[_window(one, two, start_ns) for one, two in pairwise(kept)],
            sampling_ns_max=max(self._costs_ns),
            num_samples=len(self._costs_ns),
        )


@contextmanager
def watched(hardware: Hardware) -> Iterator[Watch]:
    """Watch this machine while the block runs, in the running event loop; `Watch.record` returns what was seen.

    The GPU is sampled where the engine uses one on this machine.
    """
    with _gpu_of(hardware) as gpu:
        watch = Watch(gpu)
        try:
            yield watch
        finally:
            watch.end()


def told(record: MachineRecord) -> str:
    """The record in a few words, e.g. `cores 52 % busy, 0 % with other programs, 0 % stolen`."""
    named = (("busy", record.cpu_busy), ("with other programs", record.cpu_others), ("stolen", record.cpu_steal))
    shares = [f"{unsigned_percent(value, 0)} {what}" for what, value in named if value is not None]
    words = [f"{record.num_cores} cores " + ", ".join(shares)] if shares else []
    states = [record.before, *record.windows]
    if loads := [state.load_1m for state in states if state.load_1m is not None]:
        words.append(f"load {value_range(loads, 2, grouped=False)}")
    if clocks := [state.cpu_mhz for state in states if state.cpu_mhz is not None]:
        words.append(f"cores at {value_range(clocks, 0, grouped=False)} MHz")
    gpus = [state.gpu for state in states if state.gpu is not None]
    if heat := [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]:
        words.append(f"GPU {value_range(heat, 0, grouped=False)} C")
    if sm := [gpu.sm_clock_mhz for gpu in gpus if gpu.sm_clock_mhz is not None]:
        words.append(f"GPU clock {value_range(sm, 0, grouped=False)} MHz")
    if slowed := sorted({name for gpu in gpus for name in gpu.slowed_by or ()}):
        words.append(f"GPU slowed by {', '.join(slowed)}")
    return "; ".join(words) or "nothing readable"


def _window(one: _Sample, two: _Sample, start_ns: int) -> MachineWindow:
    busy, others, steal = _shares(one, two)
    return MachineWindow(
        start_ns=one.time_ns - start_ns,
        end_ns=two.time_ns - start_ns,
        cpu_busy=busy,
        cpu_others=others,
        cpu_steal=steal,
        **two.state().model_dump(),
    )


def _shares(one: _Sample, two: _Sample) -> tuple[float | None, float | None, float | None]:
    """Busy, others' and stolen share of all cores' time between two samples."""
    return _shares_of(one.ticks(), two.ticks())


def _shares_of(before: _Ticks | None, after: _Ticks | None) -> tuple[float | None, float | None, float | None]:
    if before is None or after is None or (total := after.total - before.total) <= 0:
        return None, None, None
    busy, others = after.busy - before.busy, None
    if before.ours is not None and after.ours is not None:
        # Counted in whole ticks and read a moment apart, so the difference may fall below nothing.
        others = round(max(0.0, (busy - (after.ours - before.ours)) / total), 4)
    return round(busy / total, 4), others, round((after.steal - before.steal) / total, 4)


def processor_ticks() -> tuple[bytes | None, ...]:
    """The counters of all cores and of this process alone, as `shares` takes them."""
    files = [_opened(_PROC / "stat"), _opened(_PROC / "self" / "stat")]
    try:
        return tuple(_read(file) for file in files)
    finally:
        for file in files:
            if file is not None:
                os.close(file)


def shares(before: tuple[bytes | None, ...], after: tuple[bytes | None, ...]) -> tuple[float | None, float | None]:
    """The shares of all cores' time that other programs and the machine's host took between two `processor_ticks`."""
    _, others, steal = _shares_of(_parsed(before[0], before[1:]), _parsed(after[0], after[1:]))
    return others, steal


# --- /proc and /sys ---------------------------------------------------------------------------------------------------


def _opened(file: Path) -> int | None:
    """A descriptor, or None where there is no such file (not Linux, or the process has ended)."""
    try:
        return os.open(file, os.O_RDONLY)
    except OSError:
        return None


def _read(file: int | None) -> bytes | None:
    """The file's text from its beginning, as it is now; None once its process has ended."""
    if file is None:
        return None
    try:
        return os.pread(file, 512, 0)
    except OSError:
        return None


def _parsed(whole: bytes | None, processes: Sequence[bytes | None]) -> _Ticks | None:
    """Counters of /proc/stat and of the processes' own; None without the first, `ours` None when a process has ended:
    its time is no longer reported."""
    if whole is None:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, whole.splitlines()[0].split()[1:9])
    busy, ours = user + nice + system + irq + softirq, 0
    for text in processes:
        if text is None:
            return _Ticks(busy + idle + iowait + steal, busy, steal, None)
        fields = _process_fields(text)
        ours += int(fields[11]) + int(fields[12])
    return _Ticks(busy + idle + iowait + steal, busy, steal, ours)


def _process_fields(text: bytes) -> list[bytes]:
    """Fields of /proc/PID/stat after the command, which may hold anything."""
    return text.rpartition(b")")[2].split()


def _family(pid: int) -> tuple[int, ...]:
    """The process and all that descend from it: an engine's workers are children of the driver."""
    parents = {}
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        with suppress(OSError):  # it has ended meanwhile
            if entry.name.isdigit():
                parents[int(entry.name)] = int(_process_fields((entry / "stat").read_bytes())[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return tuple(found)


def _load_1m() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


# --- the GPU ----------------------------------------------------------------------------------------------------------


@contextmanager
def _gpu_of(hardware: Hardware) -> Iterator[Gpu | None]:
    """The GPU that an engine of this machine uses; None for a CPU, for one that is only stated, and where the driver
    has no NVML."""
    gpu = None if hardware.hardware_id == CPU or hardware.stated else Gpu.opened()
    try:
        yield gpu
    finally:
        if gpu is not None:
            gpu.close()


class Gpu:
    """The first visible NVIDIA GPU, through the driver's library NVML."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def opened(cls) -> Gpu | None:
        """None where there is no such library, driver or device."""
        try:
            library = ctypes.CDLL(_NVML_LIBRARY)
        except OSError:
            return None
        if library.nvmlInit_v2():
            return None
        handle, chosen = ctypes.c_void_p(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if chosen.startswith("GPU-"):
            failed = library.nvmlDeviceGetHandleByUUID(chosen.encode(), ctypes.byref(handle))
        else:
            failed = library.nvmlDeviceGetHandleByIndex_v2(int(chosen) if chosen.isdigit() else 0, ctypes.byref(handle))
        if failed:
            library.nvmlShutdown()
            return None
        return cls(library, handle)

    def close(self) -> None:
        """Release the library."""
        self._library.nvmlShutdown()

    def state(self) -> GpuState:
        """Temperature, clocks, power, and what slows the clocks."""
        library, handle = self._library, self._handle
        milliwatts = _asked(lambda to: library.nvmlDeviceGetPowerUsage(handle, to))
        reasons = _asked(lambda to: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle, to), ctypes.c_ulonglong())
        return GpuState(
            temperature_c=_asked(lambda to: library.nvmlDeviceGetTemperature(handle, _TEMPERATURE_OF_CHIP, to)),
            sm_clock_mhz=_asked(lambda to: library.nvmlDeviceGetClockInfo(handle, _CLOCK_SM, to)),
            memory_clock_mhz=_asked(lambda to: library.nvmlDeviceGetClockInfo(handle, _CLOCK_MEMORY, to)),
            power_w=None if milliwatts is None else round(milliwatts / 1e3, 1),
            slowed_by=None if reasons is None else [name for bit, name in _SLOWED_BY if reasons & bit],
        )


def _asked(function: Callable[[object], int], answer: ctypes.c_uint | ctypes.c_ulonglong | None = None) -> int | None:
    """What an NVML function wrote, or None where it reports an error (not supported by this device)."""
    answer = ctypes.c_uint() if answer is None else answer
    return None if function(ctypes.byref(answer)) else int(answer.value)
