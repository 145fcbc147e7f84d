"""How late requests are handed over: `replay`'s pacer beside a plain `asyncio.sleep`, against an engine that answers at once.

    python benchmarks/pacer_lateness.py [--rates 32 1000] [--seconds 10] [--rounds 3] [--realtime]

Poisson arrivals, one token per request, in this process: what is late is the driver alone. Lateness is hand-over minus intended arrival. The
rounds of both pacers alternate; the table has the median, least and most over the rounds. The last column is how long the event loop's thread was
ready but had to wait for a CPU (Linux, /proc/self/schedstat): what other programs add. `--realtime` takes them out by running before all others
(SCHED_FIFO, needs the privilege). For the plain pacer each request is a task that sleeps until its time, as in common load generators.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.records import lateness_ns
from gst_assets.engine.replay import (
    LEAD_TIME_NS,
    PlannedRequest,
    ReplayResult,
    RequestResult,
    quiet_interpreter,
    replay,
)


class InstantEngine:
    """Answers every request at once with one token."""

    backend = "instant"

    def settings(self) -> EngineSettings:
        raise NotImplementedError("nothing runs here that has settings")

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:  # noqa: ARG002
        yield TokenMessage([0], time.monotonic_ns())

    async def abort(self, request_id: str) -> None: ...

    async def forget(self) -> None: ...

    async def iterations(self, until_ns: int) -> np.ndarray | None: ...

    def shutdown(self) -> None: ...


def plan(rate_per_s: float, seconds: float, seed: int) -> list[PlannedRequest]:
    """Poisson arrivals at `rate_per_s` for about `seconds`."""
    gaps = np.random.Generator(np.random.PCG64(seed)).exponential(1e9 / rate_per_s, round(rate_per_s * seconds))
    return [
        PlannedRequest(EngineRequest(str(index), [1], 1, 0), int(arrival_ns), "")
        for index, arrival_ns in enumerate(np.cumsum(gaps))
    ]


async def paced(planned: Sequence[PlannedRequest]) -> ReplayResult:
    """The package's own replay."""
    return await replay(InstantEngine(), planned, request_timeout_s=60, may_stop_early=False)


async def plain(planned: Sequence[PlannedRequest]) -> ReplayResult:
    """Every request a task that sleeps until its time."""
    engine, results = InstantEngine(), [RequestResult() for _ in planned]

    async def play(item: PlannedRequest, result: RequestResult) -> None:
        await asyncio.sleep((start_ns + item.arrival_time_ns - time.monotonic_ns()) / 1e9)
        result.send_ns = time.monotonic_ns()
        async for message in engine.generate(item.request):
            result.token_times_ns.append(message.received_ns)

    with quiet_interpreter():
        start_ns = time.monotonic_ns() + LEAD_TIME_NS
        await asyncio.gather(*map(play, planned, results))
    return ReplayResult(planned, results, start_ns, time.monotonic_ns(), None)


PACERS: dict[str, Callable[[Sequence[PlannedRequest]], Coroutine[Any, Any, ReplayResult]]] = {
    "replay": paced,
    "asyncio.sleep": plain,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[32, 1000], help="requests per second")
    parser.add_argument("--seconds", type=float, default=10, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--realtime", action="store_true", help="run before all other programs (SCHED_FIFO)")
    arguments = parser.parse_args()
    if arguments.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} before the first round\n")
    print("| requests/s | pacer | lateness P50 [ms] | P99 [ms] | max [ms] | waited for a CPU [ms/s] |")
    print("|---|---|---|---|---|---|")
    for rate in arguments.rates:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in PACERS}
        for seed in range(arguments.rounds):
            planned = plan(rate, arguments.seconds, seed)
            for name, pacer in PACERS.items():
                waited_ns, began = _waited_for_cpu_ns(), time.monotonic()
                late = lateness_ns(asyncio.run(pacer(planned)))
                waited = (_waited_for_cpu_ns() - waited_ns) / (time.monotonic() - began)
                found[name].append({**late, "waited": waited})
        for name, rounds in found.items():
            cells = [_over_rounds([values[key] for values in rounds]) for key in ("p50", "p99", "max", "waited")]
            print(f"| {rate:g} | {name} | " + " | ".join(cells) + " |", flush=True)


def _waited_for_cpu_ns() -> int:
    """Nanoseconds this thread spent ready to run without running, so far."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def _over_rounds(values_ns: Sequence[float]) -> str:
    least, most = min(values_ns) / 1e6, max(values_ns) / 1e6
    return f"{statistics.median(values_ns) / 1e6:.3f} ({least:.3f} to {most:.3f})"


if __name__ == "__main__":
    main()
