"""Composition and times of every engine step, buffered in memory and appended to a binary file when the engine is idle.

Writer (`StepRecorder`, inside the engine's process) and reader (`read_steps`) of one format: rows of little-endian
int64, one column per `protocol.IterationField`. Knows the attributes of vLLM's scheduler but imports nothing of it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.engine.protocol import IterationField
from gst_assets.environment import StepFile, read
from gst_assets.errors import EngineError
from gst_assets.step_costs.shapes import attention_pairs

_WIDTH = len(IterationField)


class StepRecorder:
    """Records steps. A step is matched by the identity of its scheduler output: with async scheduling two are under way
    at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._rows = array("q")
        # The output is kept with its row, so that no other object takes its id meanwhile.
        self._open: dict[int, tuple[Any, list[int]]] = {}
        self._shared = SharedBlocks()

    @classmethod
    def from_environment(cls) -> StepRecorder:
        """The recorder for the file that GST_STEP_RECORDS names. Not an engine setting: those enter the key of vLLM's
        compile cache."""
        return cls(read(StepFile).file)

    def scheduled(self, scheduler: Any, output: Any, began_ns: int, ended_ns: int) -> None:
        """A step was formed between `began_ns` and `ended_ns`; `scheduler` already counts its tokens as computed."""
        prefill_requests = prefill_tokens = decode_requests = context_tokens = prefill_context = pairs = 0
        requests, decoding = scheduler.requests, []
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = requests[request_id]
            before = request.num_computed_tokens - num_tokens
            context_tokens += before
            # More than one token beyond the prompt is a preempted request computed again: the work of a prefill.
            if before < request.num_prompt_tokens or num_tokens > 1:
                prefill_requests += 1
                prefill_tokens += num_tokens
                prefill_context += before
                pairs += attention_pairs(before, num_tokens)
            else:
                decode_requests += 1
                decoding.append(request_id)
        reread = self._shared.reread_tokens(scheduler, decoding) if scheduler.cache_config.enable_prefix_caching else 0
        row = [began_ns, 0, prefill_requests, prefill_tokens, decode_requests, context_tokens]
        row += [
            len(scheduler.running),
            len(scheduler.waiting),
            time.monotonic_ns() - ended_ns,
            0,
            0,
            prefill_context,
            pairs,
            reread,
        ]
        self._open[id(output)] = (output, row)

    def launched(self, output: Any, now_ns: int) -> None:
        """The step's model was launched by `now_ns`."""
        _, row = self._open[id(output)]
        row[IterationField.LAUNCHED_NS] = now_ns

    def completed(self, output: Any, output_ns: int, ended_ns: int) -> None:
        """The step's tokens were there at `output_ns` and processed at `ended_ns`."""
        _, row = self._open.pop(id(output))
        row[IterationField.OUTPUT_NS] = output_ns
        row[IterationField.COMPLETION_NS] = ended_ns
        row[IterationField.TRACING_NS] += time.monotonic_ns() - ended_ns
        self._rows.extend(row)

    def flush(self) -> None:
        """Append what was recorded to the file, in order of completion."""
        if self._rows:
            self._file.write(self._rows.tobytes())
            self._file.flush()
            self._rows = array("q")


class SharedBlocks:
    """Which full KV blocks of their prompts the decodes have in common, from the block ids that vLLM gave them.

    Asked once when a request begins to decode, so that a step in which nobody begins or ends costs a set's comparison.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[int]] = {}
        self._readers: dict[int, int] = {}
        self._num_reread = 0

    def reread_tokens(self, scheduler: Any, decoding: Sequence[str]) -> int:
        """`step_costs.shapes.StepShape.reread_context_tokens` of a step in which these requests decode."""
        size = scheduler.cache_config.block_size
        if decoding != list(self._blocks):
            for request_id in self._blocks.keys() - decoding:
                self._count(self._blocks.pop(request_id), -1)
            for request_id in decoding:
                if request_id not in self._blocks:
                    # One group of full attention, as every model here has.
                    (held,) = scheduler.kv_cache_manager.get_block_ids(request_id)
                    self._blocks[request_id] = held[: scheduler.requests[request_id].num_prompt_tokens // size]
                    self._count(self._blocks[request_id], 1)
        return self._num_reread * size

    def _count(self, blocks: Sequence[int], change: int) -> None:
        for block in blocks:
            readers = self._readers.pop(block, 0) + change
            if readers:
                self._readers[block] = readers
            # All readers but the first one read it again.
            if readers + (change < 0) > 1:
                self._num_reread += change


def read_steps(path: Path) -> np.ndarray:
    """Every step in the file, int64 of shape (steps, len(IterationField)), in order of scheduling.

    Raises:
        EngineError: the file ends inside a row.
    """
    values = np.fromfile(path, dtype="<i8") if path.exists() else np.empty(0, dtype="<i8")
    if values.size % _WIDTH or (path.exists() and path.stat().st_size % 8):
        raise EngineError(f"{path}: {values.size} values are no whole number of step records. Repeat the run.")
    steps = values.reshape(-1, _WIDTH)
    return steps[np.argsort(steps[:, IterationField.SCHEDULED_NS], kind="stable")]
