"""What a sweep simulates, what it says of each simulation, and that the number of processes changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gst_assets.errors import ScenarioError, SimulationError
from gst_assets.scenario import Scenario
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter.simulate import SimulationResult
from gst_assets.vidur_adapter.step_log import LoggedSteps, Spans
from gst_assets.vidur_adapter.sweep import Job, KeptRows, configurations, point, points, simulate_all, sweep_jobs
from gst_assets.workload.arrivals import build_trace_intervals

SEARCHED = [
    "sweep.service_level={ttft_ns: 100000000}",
    "sweep.highest_rate={low_rate_per_s: 5, high_rate_per_s: 640, least_share: 0.9}",
]
REQUESTS = [(20_000_000, 40 + 30 * (i % 5), 40 + i % 7) for i in range(24)]


def swept(*overrides: str) -> Scenario:
    return support.scenario("sweep.rates_per_s=[10.0, 200.0]", "sweep.max_num_seqs=[2, 32]", *overrides)


def jobs(scenario: Scenario) -> dict[int, Job]:
    lengths, _ = support.workload(REQUESTS)
    intervals = build_trace_intervals(scenario.workload.arrivals, len(lengths), scenario.workload.seed)
    return sweep_jobs(scenario, lengths, intervals, support.bundle(scenario), None)


def tables_and_point(job: Job) -> tuple[bytes, dict]:
    result = job.run()
    return support.csv_bytes(result), point(job, result)


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    alone = [*simulate_all(jobs(swept()), tables_and_point, workers=1).values()]
    together = [*simulate_all(jobs(swept()), tables_and_point, workers=2).values()]
    assert [one[0] for one in alone] == [one[0] for one in together]
    assert [one[1] for one in alone] == [one[1] for one in together]
    assert len({one[0] for one in alone}) == 4
    crowded = {(one["rate_per_s"], one["max_num_seqs"]): one["scheduling_delay_p99_ns"] for _, one in alone}
    assert crowded[200.0, 2] > crowded[200.0, 32]


def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = simulate_all(jobs(swept()), points, workers=1)
    first = KeptRows(tmp_path, "key")

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_all(jobs(swept()), points, workers=1, on_done=stop, kept=first)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'[2, {"rate_per_s": 2')  # killed in the middle of a line
    again = KeptRows(tmp_path, "key")
    assert list(again.rows) == [0, 1] and again.rows == first.rows
    told: list[int] = []
    assert repr(simulate_all(jobs(swept()), points, workers=1, on_done=told.append, kept=again)) == repr(whole)
    assert told == [3, 4]  # only the others were simulated
    assert repr(KeptRows(tmp_path, "key").rows) == repr(whole)
    assert KeptRows(tmp_path, "another").rows == {}
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\0\0[1, {\n" + lines[2])  # a machine that went down: what follows is not believed
    assert list(KeptRows(tmp_path, "key").rows) == [0] and file.read_bytes() == lines[0]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_every_combination_is_simulated_with_arrivals_of_its_rate() -> None:
    made = jobs(swept("sweep.num_kv_blocks=[64]", "sweep.variant=kernels"))
    found = [*made.values()]
    assert [*made] == [0, 1, 2, 3]
    assert [(job.scenario.workload.arrivals.rate_per_s, job.scenario.engine.max_num_seqs) for job in found] == [
        (10.0, 2), (10.0, 32), (200.0, 2), (200.0, 32),
    ]  # fmt: skip
    assert {(job.variant, job.scenario.engine.num_kv_blocks, *job.scenario.simulation.variants) for job in found} == {
        ("kernels", 64, "kernels")
    }
    # The same seeded gaps, stretched: rounding aside, 20 times as long.
    slow, fast = (job.intervals["arrival_time_ns"].to_numpy(dtype="int64") for job in (found[0], found[2]))
    assert np.abs(slow - 20 * fast).max() <= 20 * len(fast)
    only_engine = support.scenario("sweep.max_num_seqs=[4]")
    lengths, intervals = support.workload(REQUESTS)
    assert sweep_jobs(only_engine, lengths, intervals, support.bundle(only_engine), None)[0].intervals is intervals


def test_the_highest_rate_of_each_combination_is_bracketed_and_a_point_of_it_is_that_of_a_grid() -> None:
    """Whatever the search leaves out: the rates that it names meet the level, and miss it, as listed rates do."""
    few, many = simulate_all(
        jobs(support.scenario("sweep.max_num_seqs=[2, 32]", *SEARCHED)), points, workers=1
    ).values()
    rates = [row["rate_per_s"] for row in few]
    assert rates == sorted(rates) and (rates[0], rates[-1]) == (5.0, 640.0) and len(rates) == 9
    met = [row["rate_per_s"] for row in few if row["level_share"] >= 0.9]
    missed = [row["rate_per_s"] for row in few if row["level_share"] < 0.9]
    assert max(met) < min(missed) <= 1.05 * max(met)
    assert [(row["rate_per_s"], row["level_share"]) for row in many] == [(5.0, 1.0), (640.0, 1.0)]
    grid = support.scenario(f"sweep.rates_per_s=[{max(met)!r}]", "sweep.max_num_seqs=[2]", SEARCHED[0])
    ((listed,),) = simulate_all(jobs(grid), points, workers=1).values()
    assert listed in few
    beyond = support.scenario("sweep.max_num_seqs=[32]", *SEARCHED, "sweep.service_level.ttft_ns=1")
    ((lowest,),) = simulate_all(jobs(beyond), points, workers=1).values()
    assert (lowest["rate_per_s"], lowest["level_share"]) == (5.0, 0.0)


def test_the_figures_of_a_point() -> None:
    """Two requests worked out by hand: 1 s and 2 s to the first token, 3 and 2 tokens."""
    scenario = swept("sweep.service_level={ttft_ns: 1500000000, tpot_ns: 500000000}")
    ms = 1_000_000
    requests = pd.DataFrame(
        {
            "arrival_time_ns": [0, 1000 * ms],
            "first_token_time_ns": [1000 * ms, 3000 * ms],
            "completion_time_ns": [2000 * ms, 3500 * ms],
            "num_decode_tokens_actual": [3, 2],
            "scheduled_time_ns": [100 * ms, 1400 * ms],
        }
    ).astype("Int64")
    spans = Spans(np.array([0, 1]), np.array([0, 3]), np.array([2, 4]))
    delivered = np.array([1000, 1500, 2000, 3000, 3500]) * ms
    steps = LoggedSteps(delivered, delivered, *(np.zeros(5, dtype=np.int64) for _ in range(6)))
    result = SimulationResult(requests, steps, spans, delivered, {"num_kv_blocks": 7}, 3, {})
    job = Job(scenario, requests, requests, None, "kernels", None)  # type: ignore[arg-type]
    row = point(job, result)
    assert row["makespan_ns"] == 3500 * ms
    assert row["requests_per_s"] == pytest.approx(2 / 3.5)
    assert row["output_tokens_per_s"] == pytest.approx(5 / 3.5)
    assert row["goodput_per_s"] == pytest.approx(1 / 3.5)  # the second took 2 s to its first token
    assert (row["ttft_p50_ns"], row["ttft_p90_ns"]) == (1500 * ms, 1900 * ms)
    assert row["itl_p99_ns"] == 500 * ms and row["e2e_p50_ns"] == 2250 * ms
    assert row["scheduling_delay_p99_ns"] == pytest.approx(397 * ms)
    assert row["level_share"] == 0.5
    assert (row["num_preemptions"], row["num_kv_blocks"], row["p99_sufficient"]) == (3, 7, False)
    assert row["steps_outside_calibration"] is None
    assert not {"tokens", "iterations"} & vars(result).keys()  # neither table was made for it
    without = Job(swept(), requests, requests, None, "kernels", None)  # type: ignore[arg-type]
    assert point(without, result)["goodput_per_s"] is None and point(without, result)["level_share"] is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sweep.rates_per_s=[]"], "sweep: expected a list of rates_per_s, max_num_seqs"),
        (["sweep.highest_rate={low_rate_per_s: 4, high_rate_per_s: 8}"], "highest_rate needs service_level"),
        ([*SEARCHED, "sweep.rates_per_s=[4.0]"], "highest_rate searches for the rate, so rates_per_s must be empty"),
        ([*SEARCHED, "sweep.highest_rate.high_rate_per_s=4"], "high_rate_per_s 4.0 is not above low_rate_per_s 5.0"),
        (
            [*SEARCHED, "workload.arrivals={kind: static}"],
            "sweep.highest_rate needs workload.arrivals of kind poisson or gamma, found static",
        ),
        (["sweep.rates_per_s=[4.0, 4.0]"], "rates_per_s [4.0, 4.0] names one twice"),
        (["sweep.rates_per_s=[-1.0]"], "sweep.rates_per_s.0: Input should be greater than 0 (found -1.0)"),
        (["sweep.max_num_seqs=[1.5]"], "sweep.max_num_seqs.0: "),
        (
            ["sweep.rate=[1.0]"],
            "sweep.rate: unknown key. Allowed here: highest_rate, max_num_batched_tokens, max_num_seqs",
        ),
        (["sweep.max_num_seqs=[4]", "sweep.service_level={}"], "expected at least one of ttft_ns, tpot_ns and e2e_ns"),
        (
            ["sweep.rates_per_s=[4.0]", "workload.arrivals={kind: static}"],
            "sweep.rates_per_s needs workload.arrivals of kind poisson or gamma, found static",
        ),
    ],
)
def test_a_sweep_that_means_nothing_is_refused_when_it_is_read(overrides: list[str], says: str) -> None:
    with pytest.raises(ScenarioError) as error:
        support.scenario(*overrides)
    assert says in str(error.value)


def test_an_impossible_combination_and_a_missing_sweep_are_named_before_anything_is_simulated() -> None:
    scenario = support.scenario("sweep.max_num_seqs=[8, 64]", "sweep.max_num_batched_tokens=[32, 512]")
    with pytest.raises(
        SimulationError,
        match=(
            r"scenario smoke: sweep combines max_num_seqs 64, max_num_batched_tokens 32, num_kv_blocks 1024:"
            r" max_num_batched_tokens 32 is below"
        ),
    ):
        configurations(scenario)
    with pytest.raises(SimulationError, match="scenario smoke has no section sweep"):
        configurations(support.scenario())
