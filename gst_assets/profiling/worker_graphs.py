"""Device times on an NVIDIA GPU, taken from captured graphs and from launches that wait in the queue. Runs inside vLLM's worker.

On a GPU a small operator takes less time than launching it, so a clock around launches measures the host. Here the host is out of the way:
an operator is captured in a CUDA graph, once for every layer, and the graph is replayed between two events; a whole step is launched while the
device still sleeps. Which operators and steps belongs to `worker_ops`. Torch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable

from gst_assets.errors import ProfileError

_REPLAYS = 3
"""Replays between two events, so that launching a graph weighs little."""
_WARMUPS = 2
_HEAD_START_CYCLES = 40_000_000
"""Some 20 ms at GPU clock rates: more than launching a step takes; doubled where it was not."""
_MOST_DOUBLINGS = 4


class GraphClock:
    """Times callables by capturing them. One clock for all graphs: they share a memory pool and never run at once."""

    def __init__(self) -> None:
        import torch

        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        # A pool dies with its last graph: this one keeps it.
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
                # The engine's other threads go on meanwhile; what they do is not part of this capture.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                run()
                graph.capture_end()
            except RuntimeError as error:
                raise ProfileError(
                    f"operator {name} cannot be captured in a CUDA graph ({' '.join(str(error).split()):.200})."
                ) from error
            for _ in range(_WARMUPS):
                graph.replay()
            pairs = []
            for _ in range(repeats):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                for _ in range(_REPLAYS):
                    graph.replay()
                end.record()
                pairs.append((begin, end))
            stream.synchronize()
        graph.reset()
        return [round(begin.elapsed_time(end) * 1e6 / _REPLAYS / executions) for begin, end in pairs]


def queued_nanoseconds(launch: Callable[[], object], repeats: int) -> list[int]:
    """Device time of what `launch` launches, `repeats` times after one untimed pass. The device begins when all of it is queued.

    Raises:
        ProfileError: launching takes too long to be queued ahead.
    """
    import torch

    cycles = _HEAD_START_CYCLES
    launch()
    times: list[int] = []
    doublings = 0
    while len(times) < repeats:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        begin.record()
        launch()
        end.record()
        was_ahead = not begin.query()
        torch.cuda.synchronize()
        if was_ahead:
            times.append(round(begin.elapsed_time(end) * 1e6))
        elif doublings == _MOST_DOUBLINGS:
            raise ProfileError(
                "a step takes the host too long to launch, so that its device time cannot be told apart."
            )
        else:
            cycles, doublings = cycles * 2, doublings + 1
    return times
