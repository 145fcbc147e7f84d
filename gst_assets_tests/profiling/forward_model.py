"""Steps whose parts are known: both records of them, as an engine with a host and a device would leave them. No test
stands here.

Written from what `profiling.step_samples` says of its terms, not from `vidur_adapter.core`, so that the two can
disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gst_assets.engine.protocol import IterationField as F
from gst_assets.profiling.calibration import SeenRequest, Stretch
from gst_assets.profiling.worker_steps import StepField as W
from gst_assets.step_costs.shapes import CapturedGraphs, StepShape
from gst_assets.step_costs.terms import Features, features
from gst_assets.step_costs.warmth import Warmth

Costs = Callable[[str, str, Features], float]
"""Nanoseconds of a term of a step, by term, kind and what the step holds."""

_IDLE_NS = 1_000_000


class Made(NamedTuple):
    """A step to play."""

    shape: StepShape
    is_after_idle: bool = False
    """Nothing is out and a millisecond passed before it is formed."""
    slowness: float = 1.0
    """What its host's parts take of their cost."""
    head_start_ns: int = 0


def play(
    made: Sequence[Made],
    costs: Costs,
    graphs: CapturedGraphs,
    *,
    queue_size: int,
    is_gpu: bool,
    begin_ns: int = 10**9,
    watching_ns: int = 0,
    has_own_workers: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Records of the steps: shape (steps, len(IterationField)) and (steps, len(StepField)).

    A host forms and launches steps, a device runs them behind it, and the host waits for the oldest when `queue_size`
    are out. Without `is_gpu` the host runs them itself. On a GPU every step takes the host `watching_ns` more, for
    being watched. `has_own_workers`: the host only forms steps, another process prepares and launches them one by one.
    """
    warmth = Warmth()
    steps = np.zeros((len(made), len(F)), dtype=np.int64)
    watched = np.zeros((len(made), len(W)), dtype=np.int64)
    now, device_done, workers_free, out = begin_ns, 0, 0, []

    def hand_out() -> None:
        nonlocal now
        index, there_ns, process_ns = out.pop(0)
        now = max(now, there_ns)
        steps[index, F.OUTPUT_NS] = now
        now += process_ns
        steps[index, F.COMPLETION_NS] = now

    for index, step in enumerate(made):
        held = features(step.shape)
        kind = graphs.kind(held.prefill_token, held.decode_request)

        def ns(term: str, slowness: float = 1.0, warm: float = 0.0, kind: str = kind, held: Features = held) -> int:
            return round(costs(term, kind, held.at_warmth(warm)) * slowness)

        if step.is_after_idle:
            while out:
                hand_out()
            now += _IDLE_NS
        formed = now
        after_idle = ns("prepare_after_idle", step.slowness) if step.is_after_idle else 0
        taken = max(formed, workers_free) if has_own_workers else formed
        forward = taken + ns("prepare", step.slowness) + after_idle
        if is_gpu:
            now = launched = forward + ns("launch", step.slowness) + watching_ns
            begun = max(forward, device_done) + ns("lead_in") + step.head_start_ns
            ended = max(begun + ns("device", warm=warmth.at(begun)), launched + ns("drain"))
        else:
            begun, ended = forward, forward + ns("device", step.slowness, warmth.at(forward))
            now = launched = ended
        workers_free = launched
        if has_own_workers:
            now = formed + ns("form", step.slowness)
        device_done = ended
        warmth.ran(begun, ended, held.prefill_token + held.decode_request)
        composition = step.shape.composition
        steps[index, F.SCHEDULED_NS] = formed
        steps[index, [F.PREFILL_REQUESTS, F.PREFILL_TOKENS, F.DECODE_REQUESTS, F.CONTEXT_TOKENS]] = composition
        steps[index, F.LAUNCHED_NS] = now
        steps[index, F.PREFILL_CONTEXT_TOKENS] = composition.num_context_tokens - step.shape.decode_context_tokens
        steps[index, F.ATTENTION_PAIRS] = step.shape.num_attention_pairs
        steps[index, F.REREAD_CONTEXT_TOKENS] = step.shape.reread_context_tokens
        watched[index, W.BEGUN_NS] = (taken + forward) // 2
        watched[index, [W.FORWARD_NS, W.LAUNCHED_NS]] = forward, launched
        watched[index, [W.DEVICE_BEGUN_NS, W.DEVICE_ENDED_NS, W.HEAD_START_NS]] = begun, ended, step.head_start_ns
        watched[index, W.WATCHING_NS] = watching_ns
        out.append((index, ended + ns("copy_out"), ns("process")))
        if len(out) == queue_size:
            hand_out()
    while out:
        hand_out()
    return steps, watched


class Asked(NamedTuple):
    """A request of a stretch: its prompt runs whole in step `first_step`, and each later step gives it a token."""

    first_step: int
    num_prefill_tokens: int
    num_decode_tokens: int


def stretch(
    name: str,
    kind: str,
    asked: Sequence[Asked],
    costs: Costs,
    graphs: CapturedGraphs,
    *,
    queue_size: int,
    is_gpu: bool,
    handover_ns: Callable[[int], int],
    delivery_ns: Callable[[int], int],
    begin_ns: int = 10**9,
) -> Stretch:
    """Requests, one for each prompt in order of their steps, and the steps they make. A step with prompts alone comes
    after an idle time.

    `handover_ns` is by prompt tokens, `delivery_ns` by decodes in the step.
    """
    made = []
    for index in range(max(one.first_step + one.num_decode_tokens for one in asked)):
        chunks = [(0, one.num_prefill_tokens) for one in asked if one.first_step == index]
        running = [one for one in asked if one.first_step < index < one.first_step + one.num_decode_tokens]
        context = sum(one.num_prefill_tokens + index - one.first_step - 1 for one in running)
        made.append(Made(StepShape(len(running), context, chunks), is_after_idle=not running))
    steps, watched = play(made, costs, graphs, queue_size=queue_size, is_gpu=is_gpu, begin_ns=begin_ns)
    requests = []
    for one in asked:
        last_step = one.first_step + one.num_decode_tokens - 1
        mine = steps[one.first_step : last_step + 1]
        sent_ns = int(mine[0, F.SCHEDULED_NS]) - handover_ns(one.num_prefill_tokens)
        times = tuple(int(row[F.OUTPUT_NS]) + delivery_ns(int(row[F.DECODE_REQUESTS])) for row in mine)
        requests.append(
            SeenRequest(
                one.num_prefill_tokens,
                one.num_decode_tokens,
                sent_ns,
                sent_ns,
                times,
                int(mine[0, F.COMPLETION_NS]),
                int(mine[-1, F.COMPLETION_NS]),
            )
        )
    return Stretch(name, kind, tuple(requests), steps, watched)
