"""Device times of operators on an NVIDIA GPU, taken from captured graphs. Runs inside vLLM's worker.

On a GPU a small operator takes less time than launching it, so a clock around launches measures the host. Here the
host's time is excluded: an operator is captured in a CUDA graph, once for every layer, and the graph is replayed
between two events. Which operators belongs to `worker_ops`. Torch is imported inside the functions.

On several devices the ranks capture and replay the same operators in the same order. vLLM's own collectives have to
know of a capture: its custom all-reduce registers the buffers of a graph with the other ranks when the capture ends.
Before each timed replay the devices wait for each other, so that no rank's time holds a wait for another's beginning.

One kernel repeated without a pause draws more power than a step that alternates kernels: matrix products of 2,048
tokens brought an H200 to its 700 W, from 1,980 to 1,485 MHz, and took 18 % longer than with rests. So the device rests
before each replay (it spins, which draws little).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gst_assets.errors import ProfileError

_WARMUPS = 2
_REST_SHARE = 3.0
"""Rest before a replay, in multiples of what it takes."""
_SHORTEST_REST_MS = 0.3
"""More than launching a replay takes, so that it waits for the device and not the device for it."""
_CYCLES_PER_MS = 1.98e6


class GraphClock:
    """Times callables by capturing them. The graphs of a clock share a memory pool, which lasts as long as the clock,
    and never run at once. Other ranks may know the pool: then a worker needs one clock for all its graphs."""

    def __init__(self, ranks: Any = None) -> None:
        """`ranks`: vLLM's group of ranks that share each layer (`parallel_state.GroupCoordinator`); None: one
        device."""
        import torch

        self._ranks = ranks
        self._met = torch.zeros(1024, device="cuda") if ranks is not None else None
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        # A pool is freed with its last graph: this one holds it.
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            self._keeper.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            torch.zeros(1, device="cuda")
            self._keeper.capture_end()

    def nanoseconds(self, name: str, run: Callable[[], object], executions: int, repeats: int) -> list[int]:
        """Device time of one execution, `repeats` times. `run` makes `executions` of them and must be capturable.

        Raises:
            ProfileError: the operator `name` cannot be captured.
        """
        import torch

        graph = torch.cuda.CUDAGraph()
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # whatever allocates or compiles at first use
            stream.synchronize()
            try:
                with self._known_to_collectives():
                    # The engine's other threads go on meanwhile; what they do is not part of this capture.
                    graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                    run()
                    graph.capture_end()
            except RuntimeError as error:
                raise ProfileError(
                    f"operator {name} cannot be captured in a CUDA graph ({' '.join(str(error).split()):.200})."
                ) from error
            times = self._timed(graph.replay, executions, repeats, _SHORTEST_REST_MS)
        graph.reset()
        return times

    def launched_nanoseconds(self, run: Callable[[], object], executions: int, repeats: int) -> list[int]:
        """As `nanoseconds`, of what the engine does not capture either: `run` is launched while the device rests."""
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
            self._stream.synchronize()
            began_s = time.perf_counter()
            run()
            launching_ms = (time.perf_counter() - began_s) * 1e3
            return self._timed(run, executions, repeats, _REST_SHARE * launching_ms)

    def _timed(self, launch: Callable[[], object], executions: int, repeats: int, least_rest_ms: float) -> list[int]:
        import torch

        for _ in range(_WARMUPS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            launch()
            end.record()
        self._stream.synchronize()
        rest_ms = max(_REST_SHARE * begin.elapsed_time(end), least_rest_ms)
        pairs = []
        for _ in range(repeats):
            torch.cuda._sleep(round(rest_ms * _CYCLES_PER_MS))
            if self._ranks is not None:
                self._ranks.all_reduce(self._met)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            launch()
            end.record()
            pairs.append((begin, end))
        self._stream.synchronize()
        return [round(begin.elapsed_time(end) * 1e6 / executions) for begin, end in pairs]

    def _known_to_collectives(self) -> AbstractContextManager[Any]:
        if self._ranks is None:
            return nullcontext()
        from vllm.distributed.parallel_state import GraphCaptureContext

        captured: AbstractContextManager[Any] = self._ranks.graph_capture(GraphCaptureContext(self._stream))
        return captured
