"""The search for the simulated capacity: every probe a simulation, and what it finds follows the engine's speed."""

from __future__ import annotations

import pytest

from gst_assets.capacity.simulated_probe import search_simulated
from gst_assets.scenario import Capacity
from gst_assets.testing import simulation_inputs as support

MS = 1_000_000
ONE_PLACE = support.scenario("engine.max_num_seqs=1")
ASKED = Capacity(
    max_p99_delay_ms=200, low_rate_per_s=1, high_rate_per_s=200, relative_tolerance=0.1, num_requests=400, seed=3
)


def found_per_s(device_ms: int, told: list[str]) -> float:
    """Capacity of an engine that serves one request at a time, ten steps each."""
    lengths, _ = support.workload([(0, 50, 10)] * 20)
    made = support.bundle(ONE_PLACE, overheads=support.constant_overheads(device=device_ms * MS))
    search = search_simulated(ONE_PLACE, ASKED, lengths, made, "calibrated", cache_dir=None, log=told.append)
    assert len(told) == len(search.probes)
    assert [probe.side for probe in search.probes] == ["calibrated"] * len(told)
    found = search.result()
    assert found.status == "found" and found.capacity_per_s is not None
    return found.capacity_per_s


@pytest.fixture(scope="module")
def slow() -> tuple[float, list[str]]:
    """The capacity of an engine whose steps take 2 ms, and what was told."""
    told: list[str] = []
    return found_per_s(2, told), told


def test_the_capacity_lies_below_one_request_at_a_time_and_follows_the_speed_of_steps(
    slow: tuple[float, list[str]],
) -> None:
    (slow_per_s, told), fast_per_s = slow, found_per_s(1, [])
    # A request takes 20 ms: 50 a second, of 400 arrivals whose own rate is some percent off the one asked
    # for.
    assert 40 < slow_per_s < 55
    assert 1.6 < fast_per_s / slow_per_s < 2.6
    assert all("/s" in line for line in told)


def test_the_same_search_finds_the_same(slow: tuple[float, list[str]]) -> None:
    assert found_per_s(2, []) == pytest.approx(slow[0], abs=0)
