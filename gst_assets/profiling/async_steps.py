"""What a step costs in an engine that schedules asynchronously: the host's part and the device's, told apart from recorded steps.

vLLM forms and launches step n+1 before it waits for the tokens of step n (`EngineCore.step_with_batch_queue`). So the time between two steps is
no property of one of them. The stamps of a recorded step (`protocol.IterationField`) are: formed, model launched, tokens there, tokens
processed. From them:

- `host`: from forming a step until the host takes the tokens of the step before: forming, launching the model and the sampler. A device
  that is behind makes it longer, which a simulation then reproduces, since it waits for the later of both.
- `host_after_idle`: the same of a step formed when none was out, until the next step is formed. A host that was idle is slower at first.
- `process`: from tokens being there to the forming of the next step, in an engine that goes on.
- `turnaround`: from forming a step until its tokens are there, of a step that nothing was launched behind.
- `device`: what the device needs for a step that was launched in time. Told by the worker (`worker_ops.gst_time_steps`).

How a simulation puts them together belongs to `vidur_adapter`; driving the batches to `calibration`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gst_assets.engine.protocol import IterationField
from gst_assets.profiling.operator_model import OperatorModel

DeviceSteps = Mapping[tuple[int, bool], Sequence[int]]
"""Device times in ns of whole steps by (tokens, whether all are decodes). In both the tokens are those of as many requests without context as
the engine takes; decodes run in the graphs of decode steps, others in those of mixed steps or beyond them."""

Key = tuple[str, int, int, int]
"""(step kind, prefill requests, prefill tokens, decode requests)."""

COLUMNS = ("step_kind", "num_prefill_requests", "num_prefill_tokens", "num_decode_requests")


@dataclass
class Parts:
    """Samples by composition: (nanoseconds, context tokens)."""

    host: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    host_after_idle: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    process: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    turnaround: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))


def step_kind(num_prefill_tokens: int, num_decode_requests: int, capture_sizes: Sequence[int]) -> str:
    """`decode`, `mixed`, or `mixed_eager` for a mixed step with more tokens than the largest captured graph (`capture_sizes`, tokens)."""
    if num_prefill_tokens == 0:
        return "decode"
    beyond = bool(capture_sizes) and num_prefill_tokens + num_decode_requests > max(capture_sizes)
    return "mixed_eager" if beyond else "mixed"


def collect(steps: np.ndarray, capture_sizes: Sequence[int]) -> Parts:
    """Every part that the recorded `steps` show, in order of forming. All steps count, designed or not: a part belongs to one step alone."""
    formed, output = steps[:, IterationField.SCHEDULED_NS], steps[:, IterationField.OUTPUT_NS]
    contexts = steps[:, IterationField.CONTEXT_TOKENS].tolist()
    keys, last = _keys(steps, capture_sizes), len(steps) - 1
    parts = Parts()
    for n, key, host_ns in _hosts(steps, keys):
        parts.host[key].append((host_ns, contexts[n]))
    for n, key in enumerate(keys):
        if (n == 0 or output[n - 1] < formed[n]) and n < last and formed[n + 1] < output[n]:
            parts.host_after_idle[key].append((float(formed[n + 1] - formed[n]), contexts[n]))
        if not (n < last and formed[n + 1] < output[n]):
            parts.turnaround[key].append((float(output[n] - formed[n]), contexts[n]))
        # The step formed next after these tokens, while step n+1 is still out: the engine goes on.
        elif n + 2 <= last and output[n] < formed[n + 2] < output[n + 1]:
            parts.process[key].append((float(formed[n + 2] - output[n]), contexts[n]))
    return parts


def host_samples(steps: np.ndarray, capture_sizes: Sequence[int]) -> list[tuple[int, Key, float]]:
    """When each step was formed, its composition and its `host` time in ns, in order; steps that do not show theirs are left out."""
    formed = steps[:, IterationField.SCHEDULED_NS].tolist()
    return [(formed[n], key, host_ns) for n, key, host_ns in _hosts(steps, _keys(steps, capture_sizes))]


def _hosts(steps: np.ndarray, keys: Sequence[Key]) -> Iterator[tuple[int, Key, float]]:
    formed, output = steps[:, IterationField.SCHEDULED_NS].tolist(), steps[:, IterationField.OUTPUT_NS].tolist()
    for n, key in enumerate(keys):
        if n > 0 and output[n - 1] > formed[n]:
            yield n, key, float(output[n - 1] - formed[n])


def _keys(steps: np.ndarray, capture_sizes: Sequence[int]) -> list[Key]:
    counts = steps[
        :, [IterationField.PREFILL_REQUESTS, IterationField.PREFILL_TOKENS, IterationField.DECODE_REQUESTS]
    ].tolist()
    return [
        (step_kind(tokens, decodes, capture_sizes), requests, tokens, decodes) for requests, tokens, decodes in counts
    ]


def rows(
    parts: Parts, device_ns: DeviceSteps, operators: OperatorModel, capture_sizes: Sequence[int], max_num_seqs: int
) -> list[dict[str, Any]]:
    """Rows of the overheads table, one for each composition seen, were it once: prompts differ in length, so mixed ones hardly repeat."""
    found: list[dict[str, Any]] = []
    for term, samples in vars(parts).items():
        for key in sorted(samples):
            values = np.array(samples[key])
            found.append(
                row(term, dict(zip(COLUMNS, key, strict=True)), values[:, 0], int(np.median(values[:, 1])), 0.0)
            )
    shortest = operators.shortest_decode_context
    for (tokens, decodes), times in sorted(device_ns.items()):
        operators_ns = operators.step_ns(tokens, [], [shortest] * min(tokens, max_num_seqs))
        composition = {
            "step_kind": step_kind(0 if decodes else tokens, 0, capture_sizes),
            "num_prefill_requests": 0 if decodes else 1,
            "num_prefill_tokens": 0 if decodes else tokens,
            "num_decode_requests": tokens if decodes else 0,
        }
        found.append(row("device", composition, np.array(times, dtype=float), 0, operators_ns))
    return found


def row(
    term: str, composition: Mapping[str, Any], durations: np.ndarray, context: int, operators_ns: float
) -> dict[str, Any]:
    """A row of `contracts.tables.Overheads` from its samples in ns."""
    low, middle, high = (round(float(value)) for value in np.percentile(durations, [10, 50, 90]))
    return {
        "term": term,
        **composition,
        "num_context_tokens": context,
        "num_samples": len(durations),
        "p10_ns": low,
        "median_ns": middle,
        "p90_ns": high,
        "operators_ns": round(operators_ns),
        "overhead_ns": middle - round(operators_ns),
    }
