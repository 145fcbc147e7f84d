"""Open-loop replay: every request is handed over at its intended time, whatever became of the earlier ones.

Only measuring belongs here: what is sent comes from `run`, tables are made by `records`, and the engine is any `protocol.Engine`.
"""

from __future__ import annotations

import asyncio
import bisect
import ctypes
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from gst_assets.engine.protocol import Engine, EngineDied, EngineRequest, RequestTimes
from gst_assets.errors import EngineError

LEAD_TIME_NS = 50_000_000
"""Between the call and intended arrival 0, so that the first request can be on time."""

_COARSE_MARGIN_NS = 2_000_000
_FINE_SLEEP_NS = 100_000
_SWITCH_INTERVAL_S = 0.0005
_PR_SET_TIMERSLACK = 29
_CANCEL_ATTEMPTS = 5
_CANCEL_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request of the workload and when it is to arrive, in nanoseconds from run start."""

    request: EngineRequest
    arrival_time_ns: int
    prompt_id: str


@dataclass(slots=True)
class RequestResult:
    """What became of one planned request. Times are on the monotonic clock; a failed request has `error_type` and no tokens."""

    send_ns: int | None = None
    token_times_ns: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_bunched_messages: int = 0
    times: RequestTimes | None = None
    error_type: str = ""
    error_msg: str = ""
    ended: bool = False

    def fail(self, error_type: str, message: str) -> None:
        """Turn this into an error row; the first failure stands."""
        if self.error_type:
            return
        got = len(self.token_times_ns)
        self.error_type = error_type
        self.error_msg = " ".join(f"{message} ({got} tokens had arrived)".split())
        self.token_times_ns, self.token_ids, self.times = [], [], None


@dataclass(frozen=True)
class ReplayResult:
    """One replay. `results[i]` belongs to `planned[i]`; `start_ns` is the moment of intended arrival 0."""

    planned: Sequence[PlannedRequest]
    results: Sequence[RequestResult]
    start_ns: int
    end_ns: int
    death: str | None
    """Why the engine died during the replay; None if it did not."""


async def replay(
    engine: Engine, planned: Sequence[PlannedRequest], *, request_timeout_s: float, may_stop_early: bool
) -> ReplayResult:
    """Play `planned` (ascending arrival times) against the engine and wait until every request has ended.

    A request that fails, or has not ended `request_timeout_s` after its intended arrival, becomes an error result and leaves the others alone.
    When the engine dies, every unfinished request becomes one and the replay returns at once. A request that yields more tokens than asked,
    none, or (without `may_stop_early`) fewer, is an error too.
    """
    arrivals = [item.arrival_time_ns for item in planned]
    if any(later < earlier for earlier, later in itertools.pairwise(arrivals)):
        raise ValueError("planned requests must be in order of arrival")
    loop = asyncio.get_running_loop()
    results = [RequestResult() for _ in planned]
    tasks: set[asyncio.Task[None]] = set()
    unfinished = len(planned)
    over: asyncio.Future[str | None] = loop.create_future()
    if not planned:
        over.set_result(None)

    def settle(reason: str | None) -> None:
        if not over.done():
            over.set_result(reason)

    async def play(item: PlannedRequest, result: RequestResult, start_ns: int) -> None:
        nonlocal unfinished
        result.send_ns = time.monotonic_ns()
        deadline_ns = start_ns + item.arrival_time_ns + int(request_timeout_s * 1e9)
        limit = asyncio.timeout((deadline_ns - result.send_ns) / 1e9)
        try:
            async with limit:
                async for message in engine.generate(item.request):
                    count = len(message.token_ids)
                    result.token_times_ns.extend([message.received_ns] * count)
                    result.token_ids.extend(message.token_ids)
                    result.num_bunched_messages += count > 1
                    result.times = message.times or result.times
            _check_token_count(item.request, result, may_stop_early)
        except EngineDied as death:
            result.fail(EngineDied.__name__, str(death))
            settle(str(death))
        except asyncio.CancelledError:
            if not over.done():
                raise
            result.fail(EngineDied.__name__, over.result() or "the replay ended")
        except Exception as error:  # whatever a backend raises for one request is that request's result
            if isinstance(error, TimeoutError) and limit.expired():
                result.fail("RequestTimeout", f"not finished {request_timeout_s:g} s after its intended arrival")
                await _give_up(engine, item.request.request_id, settle)
            else:
                result.fail(type(error).__name__, str(error))
        result.ended = True
        unfinished -= 1
        if not unfinished:
            settle(None)

    def release(first: int, last: int) -> None:
        for index in range(first, last):
            task = loop.create_task(play(planned[index], results[index], start_ns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    with quiet_interpreter():
        start_ns = time.monotonic_ns() + LEAD_TIME_NS
        pacer = _Pacer(loop, [start_ns + arrival for arrival in arrivals], release)
        pacer.start()
        try:
            death = await over
        finally:
            pacer.stop()
            await _cancel(tasks)
    for index, result in enumerate(results):
        if not result.ended:  # not sent yet, or deaf to its cancellation: a copy, so that a late token cannot reach it
            results[index] = RequestResult(result.send_ns, list(result.token_times_ns))
            results[index].fail(EngineDied.__name__, death or "the replay ended first")
    return ReplayResult(planned, results, start_ns, time.monotonic_ns(), death)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel what still runs. Several times: code that waits with `asyncio.wait_for` may swallow a cancellation (Python 3.11)."""
    for _ in range(_CANCEL_ATTEMPTS):
        running = [task for task in tasks if not task.done()]
        if not running:
            return
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_CANCEL_WAIT_S)


async def _give_up(engine: Engine, request_id: str, settle: Callable[[str], None]) -> None:
    try:
        await engine.abort(request_id)
    except EngineError as error:  # not even aborting works: nothing else will
        settle(str(error))


def _check_token_count(request: EngineRequest, result: RequestResult, may_stop_early: bool) -> None:
    found, asked = len(result.token_times_ns), request.num_decode_tokens
    if found > asked or found == 0 or (found < asked and not may_stop_early):
        raise EngineError(f"the engine ended the request with {found} tokens, expected {asked}")


@dataclass(frozen=True)
class WarmUp:
    """What was played before measuring and is in no table."""

    num_requests: int
    num_prefill_tokens: int
    num_decode_tokens: int
    seconds: float


async def warm_up(engine: Engine, requests: Sequence[EngineRequest], *, request_timeout_s: float) -> WarmUp:
    """Send `requests` together and wait for all of them.

    Raises:
        EngineError: one of them failed; an engine that cannot be warmed up is not measured.
    """
    began = time.monotonic()
    planned = [PlannedRequest(request, 0, "") for request in requests]
    played = await replay(engine, planned, request_timeout_s=request_timeout_s, may_stop_early=True)
    for item, result in zip(planned, played.results, strict=True):
        if result.error_type:
            raise EngineError(
                f"warm-up request {item.request.request_id}: {result.error_type}: {result.error_msg}. Nothing was measured."
            )
    return WarmUp(
        num_requests=len(requests),
        num_prefill_tokens=sum(len(request.prompt_token_ids) for request in requests),
        num_decode_tokens=sum(len(result.token_ids) for result in played.results),
        seconds=round(time.monotonic() - began, 3),
    )


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Keep this interpreter out of the way of the measurement: no garbage collection (it stalls for up to half a second in a large heap),
    and threads handed the interpreter lock within half a millisecond instead of five, so that the pacer is not held up by the event loop.
    Both are restored at the end."""
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()
        if collecting:
            gc.enable()


class _Pacer(threading.Thread):
    """Wakes the event loop at given moments. `release(first, last)` is called in the loop for the requests `first` to `last - 1`.

    A thread, because an event loop's own timers were late by 0.5 ms at the median and 2 ms at p99. It never wakes early.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, due_ns: Sequence[int], release: Callable[[int, int], None]
    ) -> None:
        super().__init__(name="replay-pacer", daemon=True)
        self._loop = loop
        self._due_ns = due_ns
        self._release = release
        self._stopped = threading.Event()

    def run(self) -> None:
        _sharpen_timers()
        index = 0
        while index < len(self._due_ns):
            if not self._sleep_until(self._due_ns[index]):
                return
            upto = bisect.bisect_right(self._due_ns, time.monotonic_ns(), lo=index)
            with suppress(RuntimeError):  # the loop was closed under us: the replay is over
                self._loop.call_soon_threadsafe(self._release, index, upto)
            index = upto

    def stop(self) -> None:
        """End the thread without releasing the rest."""
        self._stopped.set()
        self.join()

    def _sleep_until(self, due_ns: int) -> bool:
        """Sleep coarsely (and stoppably), then in ever shorter naps; False when stopped."""
        while (left := due_ns - time.monotonic_ns()) > 0:
            if left > 2 * _COARSE_MARGIN_NS:
                if self._stopped.wait((left - _COARSE_MARGIN_NS) / 1e9):
                    return False
            else:
                # Half of what is left: a late wake-up then costs nothing until the last nap.
                time.sleep(left / 1e9 if left < _FINE_SLEEP_NS else left / 2e9)
        return not self._stopped.is_set()


def _sharpen_timers() -> None:
    """Ask Linux to wake this thread without its usual 50 µs of timer slack (prctl(2), PR_SET_TIMERSLACK); elsewhere do without."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
