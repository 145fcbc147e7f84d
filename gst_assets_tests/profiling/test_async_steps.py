"""Host, device and turnaround told apart from the stamps of a pipelined engine, and the model and the trace made of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts import tables as contract
from gst_assets.engine.protocol import IterationField as F
from gst_assets.errors import ProfileError
from gst_assets.profiling import async_steps, traffic
from gst_assets.profiling.host_model import HostModel, speed_trace
from gst_assets.scenario import load_scenario

US = 1_000
CAPTURED = [1, 2, 4, 8, 256]


def pipeline(
    steps: list[tuple[int, int, int]], *, host: dict[str, int], process: int, device: int, idle_after: set[int]
) -> np.ndarray:
    """Steps of (prefill requests, prefill tokens, decodes) as vLLM's queue of two runs them; nothing is formed behind those in `idle_after`
    until they are handed out, and then only a millisecond later."""
    rows = np.zeros((len(steps), len(F)), dtype=np.int64)
    now, done, outstanding = 1_000_000, 0, []

    def hand_out() -> None:
        nonlocal now
        index, ready = outstanding.pop(0)
        now = max(now, ready)
        rows[index, F.OUTPUT_NS] = now
        now += process
        rows[index, F.COMPLETION_NS] = now - 1

    for index, (requests, tokens, decodes) in enumerate(steps):
        kind = async_steps.step_kind(tokens, decodes, CAPTURED)
        rows[index, [F.PREFILL_REQUESTS, F.PREFILL_TOKENS, F.DECODE_REQUESTS]] = requests, tokens, decodes
        rows[index, F.SCHEDULED_NS] = now
        now += host[kind]
        rows[index, F.LAUNCHED_NS] = now
        done = max(done, now) + device
        outstanding.append((index, done))
        if len(outstanding) == 2:
            hand_out()
        if index in idle_after:
            while outstanding:
                hand_out()
            now += 1_000_000
    while outstanding:
        hand_out()
    return rows


def test_parts_are_those_the_pipeline_was_made_of() -> None:
    host = {"decode": 1_500 * US, "mixed": 6_000 * US, "mixed_eager": 15_000 * US}
    made = [
        (1, 64, 0),
        *[(0, 0, 1)] * 5,
        (1, 100, 1),
        *[(0, 0, 2)] * 5,
        (1, 600, 2),
        *[(0, 0, 3)] * 5,
        (1, 40, 0),
        (0, 0, 1),
        (0, 0, 1),
    ]
    steps = pipeline(made, host=host, process=100 * US, device=300 * US, idle_after={17})
    parts = async_steps.collect(steps, CAPTURED)
    assert {key[0] for key in parts.host} == {"decode", "mixed", "mixed_eager"}
    for key, samples in parts.host.items():
        assert [ns for ns, _ in samples] == [host[key[0]]] * len(samples)
    assert {ns for samples in parts.process.values() for ns, _ in samples} == {100 * US}
    assert set(parts.host_after_idle) == {("mixed", 1, 64, 0), ("mixed", 1, 40, 0)}
    # The last step before the idle time and the last of all: nothing was launched behind them.
    assert parts.turnaround == {
        ("decode", 0, 0, 3): [(1_500 * US + 100 * US + 300 * US - 100 * US, 0)],
        ("decode", 0, 0, 1): [(1_500 * US + 100 * US + 300 * US - 100 * US, 0)],
    }


def rows_of(host: dict[async_steps.Key, float]) -> pd.DataFrame:
    made = [
        async_steps.row("host", dict(zip(async_steps.COLUMNS, key, strict=True)), np.full(6, ns), 0, 0.0)
        for key, ns in host.items()
    ]
    return pd.DataFrame(made)


def test_the_host_model_reads_medians_and_lines() -> None:
    decode = {("decode", 0, 0, n): 1e6 + 1e4 * n for n in (1, 10, 100)}
    mixed = {
        ("mixed", p, t, d): 5e6 + 2e5 * p + 1e3 * t + 1e4 * d for p in (1, 3) for t in (16, 400) for d in (0, 30, 60)
    }
    outlier = {("mixed", 2, 200, 17): 90e6}
    model = HostModel(rows_of({**decode, **mixed, **outlier}), "overheads.csv")
    assert model.ns(("decode", 0, 0, 1)) == pytest.approx(1.01e6)
    assert model.ns(("decode", 0, 0, 55)) == pytest.approx(1.55e6)
    assert model.ns(("decode", 0, 0, 900)) == pytest.approx(2e6)  # the largest batch's median holds
    assert model.ns(("mixed", 2, 100, 20)) == pytest.approx(5e6 + 4e5 + 1e5 + 2e5, rel=0.002)


@pytest.mark.parametrize(("left", "missing"), [("decode", "mixed"), ("mixed", "decode")])
def test_a_host_model_needs_both_kinds(left: str, missing: str) -> None:
    key = ("decode", 0, 0, 1) if left == "decode" else ("mixed", 1, 16, 0)
    with pytest.raises(ProfileError, match=f"over.csv: no row of term host with step_kind {missing}"):
        HostModel(rows_of({key: 1e6}), "over.csv")


def test_the_trace_holds_ratios_and_shortens_idle_time() -> None:
    decode, mixed = ("decode", 0, 0, 1), ("mixed", 1, 16, 0)
    model = HostModel(rows_of({decode: 2e6, mixed: 8e6}), "overheads.csv")
    samples = [(5_000, decode, 2e6), (9_000, mixed, 4e6), (9_000_000, decode, 3e6)]
    trace = contract.validate(contract.HostSpeed, speed_trace(samples, model, 100_000), "host_speed.csv")
    assert trace["time_ns"].tolist() == [0, 4_000, 104_000]
    assert trace["has_prefill"].tolist() == [False, True, False]
    assert trace["ratio"].tolist() == [1.0, 0.5, 1.5]


def test_traffic_is_seeded_and_differs_from_round_to_round() -> None:
    scenario = load_scenario("a100_light")
    first, again, other = (traffic.segments(scenario, number) for number in (0, 0, 1))
    assert first == again and {segment.name for segment in first}.isdisjoint(segment.name for segment in other)
    rates = [segment.rate_per_s for segment in first]
    assert rates == [*scenario.profile.traffic_rates_per_s, None]
    assert first[-1].num_requests == scenario.engine.max_num_seqs
    for segment in first:
        planned = traffic.requests(segment, scenario, 0)
        assert planned == traffic.requests(segment, scenario, 0)
        assert planned != traffic.requests(segment, scenario, 1)
        arrivals = [item.arrival_time_ns for item in planned]
        assert arrivals == sorted(arrivals) and (segment.rate_per_s or not any(arrivals))
        longest = max(len(item.request.prompt_token_ids) + item.request.num_decode_tokens for item in planned)
        assert longest <= scenario.model.max_model_len
