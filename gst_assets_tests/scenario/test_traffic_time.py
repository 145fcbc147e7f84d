"""The seconds of traffic that the settings promise are those of the schedule that is then made."""

from __future__ import annotations

import pytest

from gst_assets.scenario import load_scenario, traffic_s
from gst_assets.workload.arrivals import NS_PER_S, inter_arrival_ns


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("smoke", 150),  # 100 requests at 8 /s, twelve times
        ("cpu_spaced", 107.5),  # 43 gaps of 0.5 s, five times
        ("h100_4b_bursts", 50),  # 180 requests at 18 /s, five times
    ],
)
def test_the_schedule_takes_as_long(name: str, seconds: float) -> None:
    scenario = load_scenario(name)
    assert traffic_s(scenario) == pytest.approx(seconds)
    workload = scenario.workload
    assert workload.num_requests is not None
    made = inter_arrival_ns(workload.arrivals, workload.num_requests, workload.seed).sum() / NS_PER_S
    assert made * scenario.replay.repeats == pytest.approx(seconds, rel=0.2)


def test_sessions_send_their_turns_at_the_rate_they_are_scaled_to() -> None:
    assert traffic_s(load_scenario("h100_8b_prefix_half")) == pytest.approx(160 * 3.5 / 23 * 5)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cpu_static", []),  # as long as the engine takes
        ("published_qwen3_prompts", []),  # one request per prompt of a file
        ("h100_8b_azure", []),  # rows of a trace, of which some are left out
        ("cpu_capacity", []),  # a search stops when it has found its rate
        ("smoke", ["workload.arrivals={kind: ramp, start_rate_per_s: 1, end_rate_per_s: 9, duration_s: 5}"]),
    ],
)
def test_what_the_settings_do_not_tell_is_not_told(name: str, overrides: list[str]) -> None:
    assert traffic_s(load_scenario(name, overrides)) is None
