"""How late requests are sent: `replay`'s pacer and a plain `asyncio.sleep`, against an engine that answers at
once.

    python benchmarks/pacer_lateness.py [--rates 32 1000] [--seconds 10] [--rounds 3]

Poisson arrivals, one token per request, in this process: what is late is the driver alone. Lateness is send time minus
intended arrival. The rounds of all pacers alternate; the table has the median, least and most over the rounds. `replay`
runs before all ordinary programs where the machine permits it (else it says so), as in a measurement. For
`asyncio.sleep` each request is a task that sleeps until its time, as in common load generators. The last columns say
what the machine did meanwhile (Linux): how long the event loop's thread was ready but had to wait for a CPU
(/proc/thread-self/schedstat), how busy all CPUs were, and what the hypervisor took (/proc/stat).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROWS, Ratio, over_rounds, tell

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.metric_rows import lateness_ns
from gst_assets.engine.protocol import EngineRequest, TokenMessage
from gst_assets.engine.replay import (
    LEAD_TIME_NS,
    PlannedRequest,
    ReplayResult,
    RequestResult,
    quiet_interpreter,
    replay,
)

Pacer = Callable[[Sequence[PlannedRequest]], Coroutine[Any, Any, ReplayResult]]


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


def replayed(realtime: bool) -> Pacer:
    """The package's own replay."""

    async def play(planned: Sequence[PlannedRequest]) -> ReplayResult:
        return await replay(InstantEngine(), planned, request_timeout_s=60, may_stop_early=False, realtime=realtime)

    return play


def asleep(realtime: bool) -> Pacer:
    """Every request a task that sleeps until its time."""

    async def play(planned: Sequence[PlannedRequest]) -> ReplayResult:
        engine, results = InstantEngine(), [RequestResult() for _ in planned]

        async def one(item: PlannedRequest, result: RequestResult) -> None:
            await asyncio.sleep((start_ns + item.arrival_time_ns - time.monotonic_ns()) / 1e9)
            result.send_ns = time.monotonic_ns()
            async for message in engine.generate(item.request):
                result.token_times_ns.append(message.received_ns)

        with quiet_interpreter(realtime):
            start_ns = time.monotonic_ns() + LEAD_TIME_NS
            await asyncio.gather(*map(one, planned, results))
        return ReplayResult(planned, results, start_ns, time.monotonic_ns(), None)

    return play


PACERS: dict[str, Pacer] = {
    "replay": replayed(realtime=True),
    "replay, normal priority": replayed(realtime=False),
    "asyncio.sleep": asleep(realtime=False),
    "asyncio.sleep, realtime": asleep(realtime=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[32, 1000], help="requests per second")
    parser.add_argument("--seconds", type=float, default=10, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(ROWS, action="store_true", help="print `replay` against asyncio.sleep as JSON, for bench.py")
    arguments = parser.parse_args()
    with quiet_interpreter() as priority:
        pass
    if arguments.rows:
        tell(
            [
                _ratio(rate, measure(rate, arguments.seconds, arguments.rounds), priority.name)
                for rate in arguments.rates
            ]
        )
        return
    print(
        f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} before the first round; priority of `replay`:"
        f" {priority.name}" + (f" ({priority.reason})\n" if priority.reason else "\n")
    )
    print(
        "| requests/s | pacer | lateness P50 [ms] | P99 [ms] | max [ms] | waited for a CPU [ms/s] | CPUs busy [%] |"
        " stolen [%] |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rate in arguments.rates:
        for name, rounds in measure(rate, arguments.seconds, arguments.rounds).items():
            cells = [over_rounds([values[key] for values in rounds], digits) for key, digits in _COLUMNS.items()]
            print(f"| {rate:g} | {name} | " + " | ".join(cells) + " |", flush=True)


def measure(rate_per_s: float, seconds: float, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each pacer did in each round: lateness in ms (p50, p99, max) and what the machine did meanwhile."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PACERS}
    for seed in range(rounds):
        planned = plan(rate_per_s, seconds, seed)
        for name, pacer in PACERS.items():
            before = _machine()
            late = lateness_ns(asyncio.run(pacer(planned)))
            found[name].append({name: value / 1e6 for name, value in late.items()} | _since(before))
    return found


def _ratio(rate_per_s: float, found: dict[str, list[dict[str, float]]], priority: str) -> Ratio:
    ours, baseline = ([one["p99"] for one in found[name]] for name in ("replay", "asyncio.sleep"))
    return Ratio(
        f"lateness of `replay` at {rate_per_s:g} requests/s, P99 ({priority} priority)",
        "a task that sleeps for each request",
        ours,
        baseline,
        "ms",
    )


_COLUMNS = {"p50": 3, "p99": 3, "max": 3, "waited": 1, "busy": 0, "stolen": 1}


def _machine() -> dict[str, float]:
    """Counters so far: seconds, this thread's wait for a CPU in ms, and the CPUs' ticks in all, at work and stolen."""
    # user nice system idle iowait irq softirq steal (proc(5))
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return {
        "seconds": time.monotonic(),
        "waited_ms": waited_ns / 1e6,
        "ticks": sum(ticks),
        "busy": sum(ticks) - ticks[3] - ticks[4],
        "stolen": ticks[7],
    }


def _since(before: dict[str, float]) -> dict[str, float]:
    passed = {name: value - before[name] for name, value in _machine().items()}
    return {
        "waited": passed["waited_ms"] / passed["seconds"],
        "busy": 100 * passed["busy"] / max(passed["ticks"], 1),
        "stolen": 100 * passed["stolen"] / max(passed["ticks"], 1),
    }


if __name__ == "__main__":
    main()
