"""When the steps of a simulated engine begin and end, written down as plainly as can be: what `core` must equal.

One at a time, or formed one step ahead as by vLLM's asynchronous scheduling. A clock receives each step as it is
formed and says when its output is handed out. Which requests a step holds is said by `scheduler_loop`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from gst_assets.step_costs.engine_costs import EngineCosts, StepCost
from gst_assets.step_costs.shapes import StepShape
from gst_assets.step_costs.warmth import Warmth


class StepTimes(Protocol):
    """How long steps take that run one after the other, in ns."""

    def step_ns(self, shape: StepShape) -> int:
        """Of one step."""


class EngineClock(Protocol):
    """Time of the host that forms steps, in integer ns of the simulation, and the steps it has launched and not handed
    out."""

    queue_size: int
    """Steps launched and not handed out from which on the host waits for the oldest one."""
    now_ns: int
    num_outside: int
    """Steps so far whose composition lies outside what was calibrated."""

    def launch(self, shape: StepShape) -> None:
        """A step of this shape is formed now."""

    def hand_out(self) -> int:
        """Wait for the oldest step not handed out, and hand out its tokens. Returns when they were handed out."""

    def idle_until(self, time_ns: int) -> None:
        """Nothing to do before `time_ns`."""


class StepByStepClock:
    """Steps that take a time of their own, one after the other: Vidur's clock."""

    queue_size = 1

    def __init__(self, times: StepTimes) -> None:
        self.now_ns = 0
        self.num_outside = 0
        self._times = times
        self._completed_ns = 0

    def launch(self, shape: StepShape) -> None:
        """See `EngineClock`."""
        self._completed_ns = self.now_ns + self._times.step_ns(shape)

    def hand_out(self) -> int:
        """See `EngineClock`."""
        self.now_ns = self._completed_ns
        return self._completed_ns

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = time_ns


class HostDeviceClock:
    """A host that forms and launches steps and a device that runs them, with a queue between (vLLM's `EngineCore`).

    A step formed at S has its forward pass launched at F = S + prepare, and all of it by L = F + launch. The device
    runs it from max(F, G of the step before) for `lead_in` and `device`, and ends at G, at L + drain at the earliest:
    kernels run while later ones are launched, so either the device is behind or the launch is. Its tokens are at the
    host by G + copy_out. With a queue of two (asynchronous scheduling) the host forms the next step at L, and waits for
    the oldest one only when two are out; with a queue of one it waits for each. It takes the tokens as soon as it waits
    for them and they are there, and needs `process` before it goes on. Its slow moments lengthen its own parts alone.

    With workers that are processes of their own, the host needs `form` for a step and goes on. They take the step when
    they have launched the one before, or have run it where they are the device, on a CPU: F = max(S, L or G of the step
    before) + prepare.
    """

    def __init__(self, costs: EngineCosts, queue_size: int) -> None:
        """`queue_size` is 2 for an engine with asynchronous scheduling, else 1."""
        self.queue_size = queue_size
        self.now_ns = 0
        self.num_outside = 0
        self._costs = costs
        self.workers_free_ns = 0
        """When workers of its own may take the next step."""
        self._device_done_ns = 0
        self._warmth = Warmth()
        self._launched: deque[tuple[int, int]] = deque()
        """Of each step out: when its tokens are at the host, and how long processing them takes."""

    def launch(self, shape: StepShape) -> None:
        """See `EngineClock`."""
        # The step before may end after this one is formed, so this is the warmth that it will leave.
        cost = self._costs.step(shape, self._warmth.at(max(self.now_ns, self._device_done_ns)))
        # With a queue of one nothing is ever out: there it is the first step of new requests that comes after an idle
        # time, as calibration counts.
        if not self._launched and not shape.num_decodes:
            cost = self._costs.after_idle(cost, self._costs.kind(shape))
        self._launch(cost, shape.num_tokens, has_prefill=bool(shape.chunks))
        self.num_outside += self._costs.is_outside(shape)

    def _launch(self, cost: StepCost, num_tokens: int, *, has_prefill: bool) -> None:
        ratio = self._costs.ratio(has_prefill, self.now_ns)
        taken_ns = max(self.now_ns, self.workers_free_ns) if self._costs.has_own_workers else self.now_ns
        forward_ns = taken_ns + cost.prepare * ratio
        launched_ns = forward_ns + cost.launch * ratio
        device_ns = cost.device * ratio if self._costs.device_is_host else cost.device
        begun_ns = max(forward_ns, self._device_done_ns) + cost.lead_in
        self._device_done_ns = round(max(begun_ns + device_ns, launched_ns + cost.drain))
        self._warmth.ran(begun_ns, self._device_done_ns, num_tokens)
        self.workers_free_ns = self._device_done_ns if self._costs.device_is_host else round(launched_ns)
        self.now_ns = round(self.now_ns + cost.form * ratio) if self._costs.has_own_workers else round(launched_ns)
        self._launched.append((round(self._device_done_ns + cost.copy_out), round(cost.process * ratio)))

    def hand_out(self) -> int:
        """See `EngineClock`."""
        there_ns, process_ns = self._launched.popleft()
        handed_out_ns = max(self.now_ns, there_ns)
        self.now_ns = handed_out_ns + process_ns
        return handed_out_ns

    def idle_until(self, time_ns: int) -> None:
        """See `EngineClock`."""
        self.now_ns = max(self.now_ns, time_ns)
