"""When the steps of a simulated engine begin and end: one at a time, or formed one step ahead as by vLLM's asynchronous scheduling.

A clock is told of each step as it is formed and says when its output is handed out. Which requests a step holds belongs to `direct_loop`,
what a step costs to `predictor` and `overheads`. Knows neither Vidur nor numpy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gst_assets.vidur_adapter.overheads import Composition, StepCosts


class EngineClock(Protocol):
    """Time of the host that forms steps, in integer ns of the simulation, and the steps it has launched and not handed out."""

    queue_size: int
    """Most steps launched and not handed out."""
    now_ns: int

    def launch(self, batch: Any) -> None:
        """A step of this Vidur batch is formed now; its requests are as they were before it."""

    def is_done(self) -> bool:
        """Whether the oldest step not handed out is complete by now. There must be one."""

    def hand_out(self) -> int:
        """Wait for the oldest step not handed out, and hand out its tokens. Returns when they were handed out."""

    def idle_until(self, time_ns: int) -> None:
        """Nothing to do before `time_ns`."""

    @property
    def num_outside(self) -> int:
        """Steps so far whose composition lies outside what was calibrated."""


class SynchronousClock:
    """A step is formed when the one before it is complete, and takes what the predictor says."""

    queue_size = 1

    def __init__(self, step_ns: Callable[[Any], int], num_outside: Callable[[], int]) -> None:
        self.now_ns = 0
        self._step_ns = step_ns
        self._num_outside = num_outside
        self._completed_ns = 0

    def launch(self, batch: Any) -> None:
        """See `EngineClock`."""
        self._completed_ns = self.now_ns + self._step_ns(batch)

    def is_done(self) -> bool:
        """See `EngineClock`."""
        return self._completed_ns <= self.now_ns

    def hand_out(self) -> int:
        """See `EngineClock`."""
        self.now_ns = self._completed_ns
        return self._completed_ns

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = time_ns

    @property
    def num_outside(self) -> int:
        """See `EngineClock`."""
        return self._num_outside()


class AsynchronousClock:
    """vLLM's asynchronous scheduling (`EngineCore.step_with_batch_queue`, a queue of two): the host launches step n+1 while step n runs.

    Step n is formed at S(n). Its launch keeps the host until L(n) = S(n) + host(n); the device completes it at G(n) = max(G(n-1) + device(n),
    L(n) + tail(n)): kernels run while later ones are launched, so either the device is behind or the launch is. The host takes the output at
    U(n) = max(G(n), when it begins to wait) and needs process(n) before it goes on.
    """

    queue_size = 2

    def __init__(self, costs: StepCosts, composition_of: Callable[[Any], Composition]) -> None:
        self.now_ns = 0
        self._costs = costs
        self._composition_of = composition_of
        self._device_done_ns: int | None = None
        self._launched: deque[tuple[int, int]] = deque()
        self._num_outside = 0

    def launch(self, batch: Any) -> None:
        """See `EngineClock`."""
        costs, step = self._costs, self._composition_of(batch)
        self.now_ns += costs.host_ns(step, self.now_ns, after_idle=not self._launched)
        done_ns = self.now_ns + costs.tail_ns(step)
        if self._device_done_ns is not None:
            done_ns = max(done_ns, self._device_done_ns + costs.device_ns(step))
        self._device_done_ns = done_ns
        self._launched.append((done_ns, costs.process_ns(step)))
        self._num_outside += costs.is_outside(step)

    def is_done(self) -> bool:
        """See `EngineClock`."""
        return self._launched[0][0] <= self.now_ns

    def hand_out(self) -> int:
        """See `EngineClock`."""
        done_ns, process_ns = self._launched.popleft()
        handed_out_ns = max(self.now_ns, done_ns)
        self.now_ns = handed_out_ns + process_ns
        return handed_out_ns

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = max(self.now_ns, time_ns)

    @property
    def num_outside(self) -> int:
        """See `EngineClock`."""
        return self._num_outside
