"""vLLM's scheduler with a record of every step, and the report its worker gives about itself.

The scheduler here derives from vLLM's, so vLLM is imported at the top. Never loaded with the definitions: vLLM imports
this module by name inside its engine and worker processes, and nothing else does (`test_definitions` would see it). The
recording itself stands in `step_recorder`, which knows no vLLM.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from gst_assets.engine.step_recorder import StepRecorder


class _Traced:
    """Mixed in before a vLLM scheduler. Its methods are called by the engine's loop for every step, in this order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder = StepRecorder.from_environment()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        began_ns = time.monotonic_ns()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        ended_ns = time.monotonic_ns()
        if output.total_num_scheduled_tokens:
            self._recorder.scheduled(self, output, began_ns, ended_ns)
        return output

    def get_grammar_bitmask(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        # The loop asks for it between launching the model and launching the sampler (vllm/v1/engine/core.py, 0.22 and
        # 0.32).
        if scheduler_output.total_num_scheduled_tokens:
            self._recorder.launched(scheduler_output, time.monotonic_ns())
        return super().get_grammar_bitmask(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output_ns = time.monotonic_ns()
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if scheduler_output.total_num_scheduled_tokens:
            self._recorder.completed(scheduler_output, output_ns, time.monotonic_ns())
        elif not self.get_num_unfinished_requests():  # type: ignore[attr-defined]
            # The empty step with which the engine clears away its last finished requests: their tokens have been handed
            # out already.
            self._recorder.flush()
        return outputs

    def shutdown(self) -> None:
        self._recorder.flush()
        super().shutdown()  # type: ignore[misc]


class TracingScheduler(_Traced, Scheduler):
    """The scheduler vLLM uses without async scheduling."""


class AsyncTracingScheduler(_Traced, AsyncScheduler):
    """The scheduler vLLM uses with async scheduling: step n+1 is scheduled before step n is completed."""
