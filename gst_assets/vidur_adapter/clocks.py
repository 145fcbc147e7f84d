"""When the steps of a simulated engine begin and end: one at a time, or formed one step ahead as by vLLM's asynchronous scheduling.

A clock is told of each step as it is formed and says when its output is handed out. Which requests a step holds belongs to `engine_loop`,
what a step costs to `predictor` and `async_costs`. Knows neither Vidur nor numpy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import NamedTuple, Protocol

from gst_assets.vidur_adapter.operator_times import StepShape
from gst_assets.vidur_adapter.overheads import Composition, StepCosts


class StepTimes(Protocol):
    """How long steps take that run one after the other, in ns."""

    def step_ns(self, shape: StepShape) -> int:
        """Of one step."""

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """Of consecutive steps of the same decodes, the first with `context_tokens` KV tokens present over all of them. Maybe of fewer."""

    def is_outside(self, step: Composition) -> bool:
        """Whether the composition lies outside what was calibrated."""


class Run(NamedTuple):
    """Consecutive steps: when each was formed, and when outputs were handed out meanwhile, those of steps formed before included."""

    formed_ns: list[int]
    handed_out_ns: list[int]


class EngineClock(Protocol):
    """Time of the host that forms steps, in integer ns of the simulation, and the steps it has launched and not handed out."""

    queue_size: int
    """Most steps launched and not handed out. While there are fewer and anything can be scheduled, another step is formed, whether or not the
    oldest one is complete: vLLM does not look before it waits for it."""
    now_ns: int
    num_outside: int
    """Steps so far whose composition lies outside what was calibrated."""

    def launch(self, shape: StepShape, step: Composition) -> None:
        """A step of this shape, and so of this composition, is formed now."""

    def hand_out(self) -> int:
        """Wait for the oldest step not handed out, and hand out its tokens. Returns when they were handed out."""

    def run_decodes(self, num_decodes: int, context_tokens: int, num_steps: int, until_ns: float) -> Run:
        """Form steps of the same decodes, the first one now with `context_tokens` KV tokens over all of them, and hand out what is due, until
        the next step can be formed. At most `num_steps`, none at or after `until_ns`; possibly none at all. As so many calls of the above."""

    def idle_until(self, time_ns: int) -> None:
        """Nothing to do before `time_ns`."""


class SynchronousClock:
    """A step is formed when the one before it is complete."""

    queue_size = 1

    def __init__(self, times: StepTimes) -> None:
        self.now_ns = 0
        self.num_outside = 0
        self._times = times
        self._completed_ns = 0

    def launch(self, shape: StepShape, step: Composition) -> None:
        """See `EngineClock`."""
        self._completed_ns = self.now_ns + self._times.step_ns(shape)
        self.num_outside += self._times.is_outside(step)

    def hand_out(self) -> int:
        """See `EngineClock`."""
        self.now_ns = self._completed_ns
        return self._completed_ns

    def run_decodes(self, num_decodes: int, context_tokens: int, num_steps: int, until_ns: float) -> Run:
        """See `EngineClock`."""
        taken = self._times.decode_run_ns(num_decodes, context_tokens, num_steps)
        ends = list(accumulate(taken, initial=self.now_ns))
        count = bisect_left(ends, until_ns, 0, len(taken))
        self.now_ns = ends[count]
        self.num_outside += count * self._times.is_outside(Composition(0, 0, num_decodes, context_tokens))
        return Run(ends[:count], ends[1 : count + 1])

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = time_ns


class AsynchronousClock:
    """vLLM's asynchronous scheduling (`EngineCore.step_with_batch_queue`, a queue of two): the host launches step n+1 while step n runs.

    Step n is formed at S(n). Its launch keeps the host until L(n) = S(n) + host(n); the device completes it at G(n) = max(G(n-1) + device(n),
    L(n) + tail(n)): kernels run while later ones are launched, so either the device is behind or the launch is. The host takes the output at
    U(n) = max(G(n), when it begins to wait) and needs process(n) before it goes on.
    """

    queue_size = 2

    def __init__(self, costs: StepCosts) -> None:
        self.now_ns = 0
        self.num_outside = 0
        self._costs = costs
        self._device_done_ns: int | None = None
        self._launched: deque[tuple[int, int]] = deque()

    def launch(self, shape: StepShape, step: Composition) -> None:
        """See `EngineClock`."""
        del shape
        costs = self._costs
        self._launch(step, costs.device_ns(step), costs.tail_ns(step), costs.process_ns(step))
        self.num_outside += costs.is_outside(step)

    def _launch(self, step: Composition, device_ns: int, tail_ns: int, process_ns: int) -> None:
        self.now_ns += self._costs.host_ns(step, self.now_ns, after_idle=not self._launched)
        done_ns = self.now_ns + tail_ns
        if self._device_done_ns is not None:
            done_ns = max(done_ns, self._device_done_ns + device_ns)
        self._device_done_ns = done_ns
        self._launched.append((done_ns, process_ns))

    def hand_out(self) -> int:
        """See `EngineClock`."""
        done_ns, process_ns = self._launched.popleft()
        handed_out_ns = max(self.now_ns, done_ns)
        self.now_ns = handed_out_ns + process_ns
        return handed_out_ns

    def run_decodes(self, num_decodes: int, context_tokens: int, num_steps: int, until_ns: float) -> Run:
        """See `EngineClock`."""
        # Of what a step costs, all but the device's part is the same whatever its context.
        costs, step = self._costs, Composition(0, 0, num_decodes, context_tokens)
        tail_ns, process_ns = costs.tail_ns(step), costs.process_ns(step)
        formed: list[int] = []
        handed_out: list[int] = []
        for device_ns in costs.device_run_ns(num_decodes, context_tokens, num_steps):
            if self.now_ns >= until_ns:
                break
            formed.append(self.now_ns)
            self._launch(step, device_ns, tail_ns, process_ns)
            if len(self._launched) == self.queue_size:
                handed_out.append(self.hand_out())
        self.num_outside += len(formed) * costs.is_outside(step)
        return Run(formed, handed_out)

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = max(self.now_ns, time_ns)
