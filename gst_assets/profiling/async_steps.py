"""What a step costs in an engine that schedules asynchronously: the host's part and the device's, told apart from recorded steps.

vLLM forms and launches step n+1 before it waits for the tokens of step n (`EngineCore.step_with_batch_queue`). So the time between two steps is
no property of one of them. The stamps of a recorded step (`protocol.IterationField`) are: formed, model launched, tokens there, tokens
processed. From them:

- `host`: from forming a step until all of it, the sampler included, is launched. The sampler's launch is not stamped. It ends at the latest when
  the tokens of the step before are there, or when the next step is formed; that it often does is what the low quantile below uses.
- `process`: from tokens being there to the forming of the next step, in an engine that goes on.
- `turnaround`: from forming a step until its tokens are there, of a step that nothing was launched behind.
- `device`: what the device needs for a step that was launched in time. Told by the worker (`worker_ops.gst_time_steps`).

How a simulation puts them together belongs to `vidur_adapter`; driving the batches to `calibration`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gst_assets.engine.protocol import IterationField
from gst_assets.profiling.operator_model import OperatorModel

DeviceSteps = Mapping[tuple[int, bool], Sequence[int]]
"""Device times in ns of whole steps by (tokens, whether all are decodes of one token without context); others are without attention."""

Key = tuple[str, int, int, int]
"""(step kind, prefill requests, prefill tokens, decode requests)."""

COLUMNS = ("step_kind", "num_prefill_requests", "num_prefill_tokens", "num_decode_requests")

_SAMPLER_QUANTILE = 0.1
"""Of the waits that bound the sampler's launch from above, this quantile is taken: most of them wait for nothing else."""
_LONGEST_PAUSE_NS = 2_000_000
"""A longer time between processing tokens and forming a step is an engine that had nothing to do."""


@dataclass
class Parts:
    """Samples by composition: (nanoseconds, context tokens)."""

    host: dict[Key, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
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
    formed, launched, output = (
        steps[:, column]
        for column in (IterationField.SCHEDULED_NS, IterationField.LAUNCHED_NS, IterationField.OUTPUT_NS)
    )
    keys: list[Key] = []
    for requests, tokens, decodes in steps[
        :, [IterationField.PREFILL_REQUESTS, IterationField.PREFILL_TOKENS, IterationField.DECODE_REQUESTS]
    ].tolist():
        keys.append((step_kind(tokens, decodes, capture_sizes), requests, tokens, decodes))
    contexts = steps[:, IterationField.CONTEXT_TOKENS].tolist()
    last = len(steps) - 1

    sampler_bounds: dict[tuple[str, int], list[int]] = defaultdict(list)
    for n, key in enumerate(keys):
        bound = None
        if n > 0 and output[n - 1] > formed[n]:
            bound = output[n - 1] - launched[n]
        elif n < last and formed[n + 1] < output[n]:
            bound = formed[n + 1] - launched[n]
        if bound is not None:
            sampler_bounds[key[0], _bucket(key)].append(int(bound))
    sampler = {place: float(np.quantile(found, _SAMPLER_QUANTILE)) for place, found in sampler_bounds.items()}

    parts = Parts()
    for n, key in enumerate(keys):
        launch = sampler.get((key[0], _bucket(key)))
        if launch is None:
            continue
        parts.host[key].append((float(launched[n] - formed[n]) + launch, contexts[n]))
        followed = n < last and formed[n + 1] < output[n]
        if not followed:
            parts.turnaround[key].append((float(output[n] - formed[n]), contexts[n]))
            continue
        # The step formed next after these tokens, while step n+1 is still out.
        following = n + 2
        if following <= last and output[n] < formed[following] < output[n + 1]:
            pause = float(formed[following] - output[n])
            if pause < _LONGEST_PAUSE_NS:
                parts.process[key].append((pause, contexts[n]))
    return parts


def _bucket(key: Key) -> int:
    """Requests whose sampling is launched, on a scale of powers of two."""
    return int(np.ceil(np.log2(max(key[1] + key[3], 1))))


def rows(
    parts: Parts, device_ns: DeviceSteps, operators: OperatorModel, capture_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of the overheads table, one for each composition seen, were it once: prompts differ in length, so mixed ones hardly repeat."""
    found: list[dict[str, Any]] = []
    for term, samples in (("host", parts.host), ("process", parts.process), ("turnaround", parts.turnaround)):
        for key in sorted(samples):
            values = np.array(samples[key])
            found.append(
                row(term, dict(zip(COLUMNS, key, strict=True)), values[:, 0], int(np.median(values[:, 1])), 0.0)
            )
    shortest = operators.shortest_decode_context
    for (tokens, decodes), times in sorted(device_ns.items()):
        operators_ns = operators.step_ns(tokens, [], [shortest] * tokens if decodes else [])
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
