"""The search for capacity: what it converges to, what it says where it cannot know, and what a probe consists of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gst_assets.analysis import measures
from gst_assets.capacity.capacity_report import write_report
from gst_assets.capacity.search import (
    LEAST_BEYOND,
    CapacitySearch,
    Seen,
    judge,
    probe_intervals,
    probe_workload,
    probes_table,
    result_sentence,
)
from gst_assets.contracts.tables import CapacityProbes, TraceIntervals, TraceLengths, validate
from gst_assets.scenario import Capacity
from gst_assets.workload.bisection import RateBisection

BOUND_MS = 100.0


def settings(**changed: object) -> Capacity:
    values = {
        "max_p99_delay_ms": BOUND_MS,
        "low_rate_per_s": 2.0,
        "high_rate_per_s": 64.0,
        "num_requests": 1000,
        "seed": 5,
    }
    return Capacity.model_validate(values | changed)


def queue(asked: Capacity, rate: float, service_s: float) -> Seen:
    """A server of one request at a time: Lindley's recursion over the probe's own arrivals."""
    arrivals = probe_intervals(asked, rate)["arrival_time_ns"].to_numpy(dtype="float64")
    begins, free = np.empty_like(arrivals), 0.0
    for index, arrival in enumerate(arrivals):
        begins[index] = max(arrival, free)
        free = begins[index] + service_s * 1e9
    return Seen(arrivals, begins, begins + service_s * 1e9, None, len(arrivals))


def searched(asked: Capacity, service_s: float) -> CapacitySearch:
    search = CapacitySearch(asked, "calibrated")
    while (rate := search.next_rate_per_s()) is not None:
        search.record(queue(asked, rate, service_s))
    return search


def p99_s(asked: Capacity, rate: float, service_s: float) -> float:
    seen = queue(asked, rate, service_s)
    return float(np.percentile(seen.scheduled_ns - seen.arrival_ns, 99)) / 1e9


@hypothesis_settings(max_examples=25, deadline=None)
@given(service_ms=st.floats(5, 80), tolerance=st.floats(0.01, 0.3))
def test_the_capacity_of_a_queue_is_found_to_the_tolerance(service_ms: float, tolerance: float) -> None:
    asked, service_s = settings(relative_tolerance=tolerance, num_requests=200), service_ms / 1e3
    found = searched(asked, service_s).result()
    if found.status == "found":
        assert found.capacity_per_s is not None and found.upper_per_s is not None
        assert p99_s(asked, found.capacity_per_s, service_s) <= BOUND_MS / 1e3
        assert p99_s(asked, found.upper_per_s, service_s) > BOUND_MS / 1e3
        assert found.upper_per_s <= found.capacity_per_s * (1 + tolerance)
    elif found.status == "above_high":
        assert found.capacity_per_s == 64 and p99_s(asked, 64, service_s) <= BOUND_MS / 1e3
    else:
        assert found.status == "below_low" and found.capacity_per_s is None
        assert p99_s(asked, 2, service_s) > BOUND_MS / 1e3
    # The bounds, then halvings of the ratio's logarithm.
    assert found.num_probes <= 3 + math.log2(math.log(32) / math.log1p(tolerance))
    assert found.num_probes <= RateBisection.most_rates(2, 64, tolerance)


def test_a_probe_that_failed_requests_is_not_guessed() -> None:
    """It ends the search with the bounds known by then, unless the bound is broken whatever those requests would have
    waited."""
    asked = settings()
    search = CapacitySearch(asked, "engine")
    for _ in range(2):
        rate = search.next_rate_per_s()
        assert rate is not None
        search.record(queue(asked, rate, 0.02))
    rate = search.next_rate_per_s()
    assert rate == pytest.approx(math.sqrt(2 * 64))
    seen = queue(asked, rate, 0.02)
    seen.completion_ns[3] = math.nan
    probe = search.record(seen)
    assert (probe.verdict, probe.num_failed) == ("unjudged", 1) and "1 of 1000 requests failed" in probe.reason
    assert search.next_rate_per_s() is None
    found = search.result()
    assert (found.status, found.capacity_per_s, found.upper_per_s) == ("undetermined", 2, 64)
    assert "undetermined" not in result_sentence("engine", found)
    assert "not known (the probe at 11.31 requests/s: 1 of 1000 requests failed" in result_sentence("engine", found)

    overloaded = queue(asked, 64, 0.05)
    overloaded.scheduled_ns[:5] = math.nan
    assert judge(overloaded, asked, "engine", 0, 64).verdict == "broken"
    overloaded.scheduled_ns[5:] = math.nan
    assert judge(overloaded, asked, "engine", 0, 64).verdict == "unjudged"


@pytest.mark.parametrize("rate", [2, 64])
def test_a_probe_in_which_the_engine_died_is_not_judged_and_ends_the_search(rate: float) -> None:
    asked = settings()
    seen = queue(asked, rate, 0.05)
    dead = Seen(seen.arrival_ns, seen.scheduled_ns, seen.completion_ns, None, 0, death="killed")
    probe = judge(dead, asked, "engine", 0, rate)
    assert (probe.verdict, probe.reason) == ("unjudged", "the engine died: killed")
    assert judge(seen, asked, "engine", 0, rate).verdict == ("kept" if rate == 2 else "broken")
    search = CapacitySearch(asked, "engine")
    search.next_rate_per_s()
    search.record(dead)
    assert search.next_rate_per_s() is None and search.result().status == "undetermined"


def test_few_requests_and_a_late_driver_are_flagged() -> None:
    few = searched(settings(num_requests=999), 0.05).result()
    assert len(few.flags) == 1 and "fewer than 10" in few.flags[0]
    assert searched(settings(), 0.05).result().flags == []
    search = CapacitySearch(settings(), "engine")
    seen = queue(settings(), 2, 0.05)
    late = np.full(1000, 0.11 * BOUND_MS * 1e6)
    search.record(Seen(seen.arrival_ns, seen.scheduled_ns, seen.completion_ns, late, 1000))
    assert "lateness" in search.result().flags[0]
    assert LEAST_BEYOND == measures.MIN_SAMPLES_BEYOND


def test_a_probe_is_the_workloads_lengths_at_the_probes_rate() -> None:
    lengths = pd.DataFrame(
        {
            "request_id": pd.array(range(3), dtype="Int64"),
            "prompt_id": pd.array(["a", "b", "c"], dtype="str"),
            "num_prefill_tokens": pd.array([1, 20, 300], dtype="Int64"),
            "num_decode_tokens": pd.array([4, 5, 6], dtype="Int64"),
        }
    )
    asked = settings(num_requests=7)
    slow, fast = (probe_workload(lengths, asked, rate) for rate in (1.0, 10.0))
    for drawn, intervals in (slow, fast):
        validate(TraceLengths, drawn, "lengths")
        validate(TraceIntervals, intervals, "intervals")
    assert slow[0].equals(fast[0])
    assert sorted(slow[0]["prompt_id"][:3]) == sorted(slow[0]["prompt_id"][3:6]) == ["a", "b", "c"]
    ratio = slow[1]["arrival_time_ns"].to_numpy() / fast[1]["arrival_time_ns"].to_numpy()
    assert ratio == pytest.approx(10, rel=1e-6)
    assert not slow[0].equals(probe_workload(lengths, settings(num_requests=7, seed=6), 1.0)[0])


def test_the_report_has_every_probe_and_equal_bytes(tmp_path: Path) -> None:
    asked = settings(num_requests=100)
    engine, kernels = searched(asked, 0.05), searched(asked, 0.04)
    kernels.probes = [probe.__class__(**{**probe.__dict__, "side": "kernels"}) for probe in kernels.probes]
    engine.probes = [probe.__class__(**{**probe.__dict__, "side": "engine"}) for probe in engine.probes]
    table = validate(CapacityProbes, probes_table([*engine.probes, *kernels.probes]), "probes")
    found = {"engine": engine.result(), "kernels": kernels.result()}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(table, found, asked, "c", tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["delay_by_rate.png", "summary.md"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    text = (tmp_path / "one" / "summary.md").read_text()
    assert text.count("| engine |") == len(engine.probes) and text.count("(few requests)") == len(table)
    ratio = found["kernels"].capacity_per_s / found["engine"].capacity_per_s - 1  # type: ignore[operator]
    assert f"kernels against engine: {100 * ratio:+.1f} %" in text
