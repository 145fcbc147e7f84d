"""Steps with known parts, their terms fitted by the profiler, and the same steps given to the simulation's clock: its
times are those recorded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from gst_assets.engine.protocol import IterationField
from gst_assets.step_costs.engine_costs import EngineCosts
from gst_assets.step_costs.shapes import StepShape
from gst_assets_tests.profiling.test_step_samples import ENGINES, Engine, recorded, rows_of, traffic, watched
from gst_assets_tests.vidur_adapter.reference_clocks import HostDeviceClock

by_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


@cache
def fitted(engine: Engine) -> EngineCosts:
    ways = [
        {"term": term, "step_kind": "any", "feature": "base", "position": 0.0, "ns": 0.0}
        for term in ("handover", "delivery")
    ]
    kinds = ("decode", "mixed", "mixed_eager") if engine.is_gpu else ("decode", "mixed")
    overheads = pd.DataFrame([*rows_of(watched(engine)), *ways])
    return EngineCosts(overheads, engine.graphs(), kinds, "overheads.csv", device_is_host=not engine.is_gpu)


@by_engine
def test_the_clock_plays_steps_as_they_were_recorded(engine: Engine) -> None:
    made = traffic(np.random.default_rng(11), 400, slow=False)
    steps, _ = recorded(engine, made, begin_ns=0)
    clock = HostDeviceClock(fitted(engine), engine.queue_size)
    formed, outputs, num_out = [], [], 0
    for step in made:
        if step.is_after_idle:
            outputs += [clock.hand_out() for _ in range(num_out)]
            num_out = 0
            clock.idle_until(clock.now_ns + 1_000_000)
        formed.append(clock.now_ns)
        clock.launch(step.shape)
        num_out += 1
        if num_out == engine.queue_size:
            outputs.append(clock.hand_out())
            num_out -= 1
    outputs += [clock.hand_out() for _ in range(num_out)]
    real = steps[:, IterationField.OUTPUT_NS]
    assert outputs[-1] == pytest.approx(real[-1], rel=0.005)
    gaps = np.diff(outputs) / np.diff(real)
    assert np.median(gaps) == pytest.approx(1, abs=0.002)
    assert np.percentile(np.abs(gaps - 1), 95) < 0.02
    assert formed[-1] == pytest.approx(steps[-1, IterationField.SCHEDULED_NS], rel=0.005)


def idle_ns(costs: EngineCosts, shape: StepShape) -> float:
    """What the host's parts of a step take more after an idle time."""
    cost = costs.step(shape)
    idle = costs.after_idle(cost, costs.kind(shape))
    return idle.prepare + idle.launch - cost.prepare - cost.launch


@by_engine
def test_only_a_step_of_new_requests_pays_for_the_idle_time_before_it(engine: Engine) -> None:
    """One step at a time no step is out when the next one is formed; that alone is no idle time. Who launches pays:
    the host, or workers of its own, while it goes on."""
    costs = fitted(engine)
    alone, among = StepShape(0, 0, [(0, 16)]), StepShape(3, 300, [(0, 16)])

    for shape, more_ns in ((alone, idle_ns(costs, alone)), (among, 0.0)):
        clock, cost = HostDeviceClock(costs, 1), costs.step(shape)
        clock.launch(shape)
        launched_ns = clock.workers_free_ns if costs.has_own_workers else clock.now_ns
        assert launched_ns == pytest.approx(cost.prepare + cost.launch + more_ns, abs=1)
        if costs.has_own_workers:
            assert clock.now_ns == pytest.approx(cost.form, abs=1)
    assert idle_ns(costs, alone) == pytest.approx(2e5, rel=0.02)
