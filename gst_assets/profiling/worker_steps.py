"""When the steps of a serving engine were launched and when the device ran them, watched from inside vLLM's worker.

`StepWatch` is a vLLM worker extension. While it watches, every step the engine runs leaves one row (`StepField`): the
host's moments by the clock of the worker, and on a GPU the device's by events in its stream, on the same time axis. So
host and device are separated in the very steps that serve requests, with their contexts and mixtures. What is made of
the rows belongs to `step_samples`. Torch is imported inside the functions that run in the worker.

vLLM 0.22.1 and 0.32.0 run a step as `execute_model` (inputs, forward pass, logits) and `sample_tokens` (sampling, start
of the copy to the host) of one model runner. Before the forward pass the older runner
(vllm/v1/worker/gpu_model_runner.py) calls its `_model_forward`, the newer one (vllm/v1/worker/gpu/model_runner.py) its
connector's `pre_forward`, with or without a connector.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

_REBASE_EVERY = 512
"""Steps between two reference events: an event's distance is a float32 of milliseconds, exact to 0.1 us only near
by."""
_CLOCK_READINGS = 7
_CYCLES_PER_NS = 1.98
"""Of the device's clock at most (H100 and H200: 1,980 MHz); slower clocks make a head start longer, never shorter."""


class StepField(IntEnum):
    """Columns of the rows that `gst_take_steps` returns, in ns of `time.monotonic_ns`."""

    BEGUN_NS = 0
    """The worker begins with the step."""
    FORWARD_NS = 1
    """Its inputs are prepared and on their way to the device; the forward pass is launched from here on."""
    LAUNCHED_NS = 2
    """All of its kernels, sampling included, are launched. On a CPU they have run by then."""
    DEVICE_BEGUN_NS = 3
    """The device reaches the forward pass: it has ended the step before, and the launch has begun."""
    DEVICE_ENDED_NS = 4
    """The device has sampled the step's tokens."""
    HEAD_START_NS = 5
    """How long the device was made to sleep before the forward pass, so that the host launched ahead of it; 0: it
    did not."""
    WATCHING_NS = 6
    """Of the time from FORWARD_NS to LAUNCHED_NS: the host's time for putting events into the device's queue, which an
    unwatched step does not spend."""


@dataclass
class _Watch:
    """State while watching. `events` are (begin, end) of each row on a GPU."""

    is_gpu: bool
    rows: list[list[int]] = field(default_factory=list)
    events: list[tuple[Any, Any]] = field(default_factory=list)
    head_start_ns: int = 0
    sleep_ns: int = 0
    """Before the step that is being launched."""
    forward_ns: int = 0
    begin: Any = None
    begin_cost_ns: int = 0
    reference: Any = None
    """On a GPU: what `_synchronised` returned at the beginning."""


class StepWatch:
    """Mixed into vLLM's worker class. Arguments and results are plain data: they cross processes."""

    model_runner: Any

    def gst_watch_steps(self, head_start_ns: int = 0) -> None:
        """Begin to watch. With `head_start_ns` the device sleeps that long before each forward pass with a prompt (GPU
        only)."""
        if getattr(self, "_gst_watch", None) is None:
            self._gst_wrap()
        is_gpu = self.model_runner.device.type == "cuda"
        self._gst_watch: _Watch | None = _Watch(
            is_gpu, head_start_ns=head_start_ns, reference=_synchronised() if is_gpu else None
        )

    def gst_take_steps(self) -> list[list[int]]:
        """Stop watching; the rows of the steps since `gst_watch_steps`, in order. The engine must be idle."""
        watch, self._gst_watch = self._gst_watch, None
        for owner, name in self._gst_hooks():
            delattr(owner, name)
        assert watch is not None
        if watch.is_gpu:
            _add_device_times(watch)
        else:
            for row in watch.rows:
                row[StepField.DEVICE_BEGUN_NS] = row[StepField.FORWARD_NS]
                row[StepField.DEVICE_ENDED_NS] = row[StepField.LAUNCHED_NS]
        return watch.rows

    def _gst_hooks(self) -> list[tuple[Any, str]]:
        """The methods that are wrapped while watching: begin of a step, begin of its forward pass, end of its
        launch."""
        runner = self.model_runner
        forward = (
            (runner, "_model_forward") if hasattr(runner, "_model_forward") else (runner.kv_connector, "pre_forward")
        )
        return [(runner, "execute_model"), forward, (runner, "sample_tokens")]

    def _gst_wrap(self) -> None:
        hooks = self._gst_hooks()
        execute, forward, sample = (getattr(owner, name) for owner, name in hooks)

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            watch = self._gst_watch
            if watch is None or not scheduler_output.total_num_scheduled_tokens:
                return execute(scheduler_output, *args, **kwargs)
            # A decode step is one graph, launched at once: the device is always behind it.
            is_decode = scheduler_output.total_num_scheduled_tokens == len(scheduler_output.num_scheduled_tokens)
            watch.sleep_ns = 0 if is_decode else watch.head_start_ns
            begun_ns = time.monotonic_ns()
            output = execute(scheduler_output, *args, **kwargs)
            watch.rows.append([begun_ns, watch.forward_ns, 0, 0, 0, watch.sleep_ns, watch.begin_cost_ns])
            return output

        def model_forward(*args: Any, **kwargs: Any) -> Any:
            watch = self._gst_watch
            if watch is None:
                return forward(*args, **kwargs)
            watch.forward_ns = time.monotonic_ns()
            if watch.is_gpu:
                watch.begin = _mark(watch.sleep_ns)
                watch.begin_cost_ns = time.monotonic_ns() - watch.forward_ns
            return forward(*args, **kwargs)

        def sample_tokens(*args: Any, **kwargs: Any) -> Any:
            watch = self._gst_watch
            output = sample(*args, **kwargs)
            if watch is not None and watch.rows and not watch.rows[-1][StepField.LAUNCHED_NS]:
                sampled_ns = time.monotonic_ns()
                if watch.is_gpu:
                    watch.events.append((watch.begin, _mark(0)))
                launched_ns = time.monotonic_ns()
                watch.rows[-1][StepField.LAUNCHED_NS] = launched_ns
                watch.rows[-1][StepField.WATCHING_NS] += launched_ns - sampled_ns
            return output

        wrappers: list[Callable[..., Any]] = [execute_model, model_forward, sample_tokens]
        for (owner, name), wrapper in zip(hooks, wrappers, strict=True):
            setattr(owner, name, wrapper)


def _mark(head_start_ns: int) -> Any:
    """An event at the end of the device's queue, behind a sleep of that length."""
    import torch

    if head_start_ns:
        torch.cuda._sleep(round(head_start_ns * _CYCLES_PER_NS))
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _add_device_times(watch: _Watch) -> None:
    """Put the device's moments on the host's clock. The two clocks run apart by some millionths, a millisecond in half
    a minute, so that both ends of the watch are read on both."""
    import torch

    torch.cuda.synchronize()
    first, first_ns = watch.reference
    last, last_ns = _synchronised()
    # By the device's clock since the first reading: each event from one near by, since distances are float32.
    begun, ended, near, near_ns = [], [], first, 0.0
    for index, (begin, end) in enumerate(watch.events):
        begun_ns = near_ns + near.elapsed_time(begin) * 1e6
        begun.append(begun_ns)
        ended.append(begun_ns + begin.elapsed_time(end) * 1e6)
        if index % _REBASE_EVERY == 0:
            near, near_ns = begin, begun_ns
    whole_ns = near_ns + near.elapsed_time(last) * 1e6
    rate = (last_ns - first_ns) / whole_ns
    for row, begun_ns, ended_ns in zip(watch.rows, begun, ended, strict=True):
        row[StepField.DEVICE_BEGUN_NS] = first_ns + round(begun_ns * rate)
        row[StepField.DEVICE_ENDED_NS] = first_ns + round(ended_ns * rate)


def _synchronised() -> tuple[Any, int]:
    """An event and the moment of the host's clock at which the idle device passed it: of several readings the one that
    took least."""
    import torch

    readings = []
    for _ in range(_CLOCK_READINGS):
        event = torch.cuda.Event(enable_timing=True)
        before_ns = time.monotonic_ns()
        event.record()
        event.synchronize()
        readings.append((time.monotonic_ns() - before_ns, event, before_ns))
    took_ns, event, before_ns = min(readings, key=lambda reading: reading[0])
    return event, before_ns + took_ns // 2
