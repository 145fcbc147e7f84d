"""Stages, steps and likely causes: each defect is planted in the run directories of an otherwise equal pair, and must
be named."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.analysis.causes import _kv_capacity
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import write_comparison
from gst_assets.analysis.run_reading import load_run
from gst_assets.analysis.stages import durations_ns, longest_common_subsequence, same_composition
from gst_assets.contracts.tables import ErrorCauses, Iterations, StageErrors, StepErrors, read_table
from gst_assets.scenario import Bands
from gst_assets_tests.analysis.run_directories import ENGINE_SETTINGS, MS, Recipe, Request, write_real, write_simulation

NUM_REQUESTS, NUM_TOKENS, PROMPT = 40, 6, 64


@dataclass(frozen=True)
class Costs:
    """What a side's engine needs, in nanoseconds; times of steps are what the defect of a test changes."""

    mixed_ns: int = 10 * MS
    decode_ns: int = 4 * MS
    handover_ns: int = MS // 2
    late_ns: int = 0
    jitter: float = 0.0


def served(costs: Costs, *, seed: int = 0, is_real: bool = True) -> Recipe:
    """An engine that takes one request at a time, all of its prompt in one step, then a token a step."""
    rng = random.Random(seed)
    requests, steps, scheduled, sent = [], [], [], []
    free = 0
    for index in range(NUM_REQUESTS):
        arrival = index * 60 * MS
        send = arrival + costs.late_ns
        now = max(send + costs.handover_ns, free)
        scheduled.append(now)
        sent.append(send)
        times = []
        for token in range(NUM_TOKENS):
            cost = costs.decode_ns if token else costs.mixed_ns
            end = now + round(cost * (1 + costs.jitter * (rng.random() - 0.5)))
            prompt = (1, PROMPT, 0) if token == 0 else (0, 0, 1)
            steps.append((now, end, *prompt, 0 if token == 0 else PROMPT + token - 1, 1, 0))
            times.append(end)
            now = end
        free = now
        requests.append(Request(arrival, tuple(times), prompt=PROMPT))
    names = [
        "scheduled_time_ns",
        "completion_time_ns",
        "num_prefill_requests",
        "num_prefill_tokens",
        "num_decode_requests",
        "num_context_tokens",
        "num_running",
        "num_waiting",
    ]
    table = pd.DataFrame(steps, columns=names)
    table.insert(0, "iteration_id", range(len(table)))
    columns = {"scheduled_time_ns": scheduled}
    if is_real:
        columns |= {"send_time_ns": sent, "num_preemptions": [0] * NUM_REQUESTS}
    return Recipe(requests, columns=columns, iterations=table.astype("Int64"))


def compared(tmp_path: Path, real: list[Recipe], sim: Recipe, variant: str = "calibrated") -> Comparison:
    runs = [
        write_real(tmp_path / f"real{k}", recipe.with_meta(repeat_index=k, num_repeats=len(real)))
        for k, recipe in enumerate(real)
    ]
    simulation = write_simulation(tmp_path / "sim", sim, variant)
    return compare([load_run(run, "real") for run in runs], {variant: load_run(simulation, "vidur")}, bands=Bands())


def causes(comparison: Comparison, metric: str, statistic: str = "p50") -> list[str]:
    table = comparison.error_causes
    return table[(table["metric"] == metric) & (table["statistic"] == statistic)].sort_values("rank")["cause"].tolist()


def evidence(comparison: Comparison, metric: str, statistic: str = "p50", place: int = 0) -> str:
    table = comparison.error_causes
    return str(table[(table["metric"] == metric) & (table["statistic"] == statistic)]["evidence"].iloc[place])


REAL = [served(Costs(jitter=0.02), seed=seed) for seed in (1, 2)]
GOOD = served(Costs(), is_real=False)


def assumed(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.with_meta(simulated_settings=ENGINE_SETTINGS | settings)


def test_a_clean_pair_has_no_cause(tmp_path: Path) -> None:
    comparison = compared(tmp_path, REAL, GOOD)
    assert comparison.error_causes.empty
    out = tmp_path / "out"
    out.mkdir()
    write_comparison(comparison, out, None)
    assert "No error of `calibrated` is beyond 5 %, so no cause was looked for." in (out / "summary.md").read_text()


@pytest.mark.parametrize(
    ("kind", "costs", "metric"),
    [("mixed", Costs(mixed_ns=12 * MS), "ttft"), ("decode", Costs(decode_ns=3 * MS), "itl")],
)
def test_a_kind_of_step_that_is_off_is_named(kind: str, costs: Costs, metric: str, tmp_path: Path) -> None:
    comparison = compared(tmp_path, REAL, served(costs, is_real=False))
    assert causes(comparison, metric) == [f"step time, {kind}"]
    assert f"{kind} steps take" in evidence(comparison, metric)


def test_a_step_time_off_to_the_other_side_explains_nothing(tmp_path: Path) -> None:
    """Decodes are too fast, and first tokens too slow for another reason."""
    comparison = compared(tmp_path, REAL, served(Costs(decode_ns=3 * MS, handover_ns=5 * MS), is_real=False))
    assert causes(comparison, "ttft") == ["unexplained"] and causes(comparison, "itl") == ["step time, decode"]


def test_a_limit_that_differs_is_named_where_it_was_reached(tmp_path: Path) -> None:
    slow = served(Costs(handover_ns=5 * MS), is_real=False)
    reached = compared(tmp_path / "a", REAL, assumed(slow, max_num_batched_tokens=PROMPT))
    assert causes(reached, "ttft") == ["chunk size"]
    assert (
        evidence(reached, "ttft")
        == "max_num_batched_tokens: engine 512, simulated 64; a step had 64 tokens; at most 100 % of the error goes"
        " with it"
    )
    far = compared(tmp_path / "b", REAL, assumed(slow, max_num_batched_tokens=PROMPT + 1, max_num_seqs=2))
    assert causes(far, "ttft") == ["unexplained"]
    assert "the largest part of the mean error is in queueing, 4.5 ms a request" in evidence(far, "ttft")


def test_kv_blocks_that_differ_are_named_where_they_were_filled(tmp_path: Path) -> None:
    slow = served(Costs(handover_ns=5 * MS), is_real=False)
    filled = compared(tmp_path / "a", REAL, assumed(slow, num_kv_blocks=2))
    assert causes(filled, "ttft") == ["KV blocks"] and "num_kv_blocks: engine 1024, simulated 2" in evidence(
        filled, "ttft"
    )
    assert causes(compared(tmp_path / "b", REAL, assumed(slow, num_kv_blocks=512)), "ttft") == ["unexplained"]
    preempting = assumed(slow, num_kv_blocks=512).with_meta(num_preemptions=3)
    assert causes(compared(tmp_path / "c", REAL, preempting), "ttft") == ["KV blocks"], "preemptions act on the same"
    assert "3 preemptions" in evidence(compared(tmp_path / "d", REAL, preempting), "ttft")


def test_another_scheduler_and_preemptions_are_named(tmp_path: Path) -> None:
    slow = served(Costs(handover_ns=5 * MS), is_real=False)
    policy = compared(tmp_path / "a", REAL, assumed(slow, scheduling_policy="vllm_v0"))
    assert causes(policy, "ttft") == ["scheduling"]
    preempted = [
        replace(one, columns=one.columns | {"num_preemptions": [1] + [0] * (NUM_REQUESTS - 1)}) for one in REAL
    ]
    assert causes(compared(tmp_path / "b", preempted, slow), "ttft") == ["preemptions"]
    assert "1 / 1 in the real repeats, 0 simulated" in evidence(compared(tmp_path / "c", preempted, slow), "ttft")


def test_tokens_from_the_cache_are_named_where_they_differ_request_by_request(tmp_path: Path) -> None:
    def with_cached(recipe: Recipe, first: int) -> Recipe:
        return replace(recipe, columns=recipe.columns | {"num_cached_tokens": [first] + [0] * (NUM_REQUESTS - 1)})

    slow = served(Costs(handover_ns=5 * MS), is_real=False)
    real = [with_cached(one, 16) for one in REAL]
    named = compared(tmp_path / "a", real, with_cached(slow, 0))
    assert causes(named, "ttft") == ["prefix cache"]
    assert f"differ in 1 / 1 of {NUM_REQUESTS} requests: 16 / 16 in the real repeats, 0 simulated" in evidence(
        named, "ttft"
    )
    assert causes(compared(tmp_path / "b", real, with_cached(slow, 16)), "ttft") == ["unexplained"]
    one_agrees = [real[0], *(with_cached(one, 0) for one in REAL[1:])]
    assert causes(compared(tmp_path / "c", one_agrees, with_cached(slow, 0)), "ttft") == ["unexplained"]
    silent = assumed(slow, enable_prefix_caching=None)
    assert causes(compared(tmp_path / "d", real, silent), "ttft") == ["unexplained"], "the simulation does not say"
    without = compared(tmp_path / "e", real, slow)
    assert causes(without, "ttft") == ["prefix cache"], "it says that it has none"
    assert "16 / 16 in the real repeats, 0 simulated" in evidence(without, "ttft")


def test_steps_outside_calibration_are_told_with_the_times_of_steps(tmp_path: Path) -> None:
    slow = served(Costs(mixed_ns=12 * MS), is_real=False)
    some = compared(tmp_path / "a", REAL, assumed(slow, steps_outside_calibration=24))
    assert causes(some, "ttft") == ["step time, mixed"] and "24 of 240 simulated steps" in evidence(some, "ttft")
    few = compared(tmp_path / "b", REAL, assumed(slow, steps_outside_calibration=2))
    assert causes(few, "ttft") == ["step time, mixed"] and "outside" not in evidence(few, "ttft")


def test_a_late_driver_is_named_only_where_it_makes_the_real_side_slower(tmp_path: Path) -> None:
    late = [served(Costs(late_ns=6 * MS, jitter=0.02), seed=seed) for seed in (1, 2)]
    comparison = compared(tmp_path / "a", late, GOOD)
    assert causes(comparison, "ttft") == ["driver busy"] and "6 ms late at P50" in evidence(comparison, "ttft")
    assert causes(comparison, "itl") == []
    slow = served(Costs(handover_ns=13 * MS), is_real=False)
    assert causes(compared(tmp_path / "b", late, slow), "ttft") == ["unexplained"]


def test_a_cause_is_told_with_its_share_and_the_rest_as_unexplained(tmp_path: Path) -> None:
    """Of 4.5 ms by which first tokens are late 2 are the mixed steps': the rest is in the delivery, which no rule
    knows."""
    slow = served(Costs(mixed_ns=12 * MS, handover_ns=3 * MS), is_real=False)
    rows = compared(tmp_path, REAL, slow).error_causes
    mine = rows[(rows["metric"] == "ttft") & (rows["statistic"] == "p50")].set_index("cause")["share"]
    assert mine.index.tolist() == ["step time, mixed", "unexplained"]
    assert mine["step time, mixed"] == pytest.approx(2 / 4.5, abs=0.03)
    assert mine.sum() == pytest.approx(1)


def test_a_small_part_of_an_error_is_not_its_cause(tmp_path: Path) -> None:
    """Mixed steps are 8 % off and first tokens twice as late: what explains less than a tenth is not named."""
    slow = served(Costs(mixed_ns=round(10.8 * MS), handover_ns=12 * MS), is_real=False)
    assert causes(compared(tmp_path, REAL, slow), "ttft") == ["unexplained"]


def disturbed(recipe: Recipe, begin: float, end: float, factor: float) -> Recipe:
    """The recipe with everything between two seconds of the run taking `factor` times as long, from each request's
    arrival or step's forming on."""
    assert recipe.iterations is not None
    steps = recipe.iterations.astype("int64")
    # Requests are 60 ms apart and do not meet: a step belongs to the one that arrived last.
    arrival = steps["scheduled_time_ns"] // (60 * MS) * 60 * MS
    slow = np.where((arrival >= begin * 1e9) & (arrival < end * 1e9), factor, 1)
    for name in ("scheduled_time_ns", "completion_time_ns"):
        steps[name] = arrival + ((steps[name] - arrival) * slow).astype("int64")
    requests = []
    for one in recipe.requests:
        inside = begin * 1e9 <= one.arrival_ns < end * 1e9
        stretch = factor if inside else 1
        requests.append(
            replace(one, token_ns=tuple(one.arrival_ns + round((t - one.arrival_ns) * stretch) for t in one.token_ns))
        )
    return replace(recipe, requests=requests, iterations=steps.astype("Int64"))


def test_a_machine_disturbed_for_some_seconds_is_named_with_its_share(tmp_path: Path) -> None:
    """One of two seconds is 1.7 times as slow in both repeats; the simulation knows only the quiet ones."""
    real = [disturbed(one, 0.99, 2.0, 1.7) for one in REAL]
    comparison = compared(tmp_path, real, GOOD)
    rows = comparison.error_causes
    mine = rows[(rows["metric"] == "e2e") & (rows["statistic"] == "p90")].iloc[0]
    assert mine["cause"] == "host speed, within repeats" and mine["share"] > 0.8, rows.to_string()
    assert "real1: 1.70 times as long in 1 of 3 s (1 s to 2 s after its first step)" in mine["evidence"]
    assert "host speed, within repeats" not in causes(compared(tmp_path / "quiet", REAL, GOOD.scaled(1.2)), "e2e")


def machine(*others: float) -> dict[str, Any]:
    """The machine's record with the share that other programs took in each second."""
    windows = [
        {"start_ns": k * 1000 * MS, "end_ns": (k + 1) * 1000 * MS, "cpu_others": share}
        for k, share in enumerate(others)
    ]
    return {"num_cores": 2, "before": {}, "windows": windows, "sampling_ns_max": 0, "num_samples": len(others) + 1}


def test_other_programs_are_named_with_their_share_where_the_machine_recorded_them(tmp_path: Path) -> None:
    """The same disturbed second as above; steps say it too, but the record goes first."""
    real = [disturbed(one, 0.99, 2.0, 1.7).with_meta(machine=machine(0.02, 0.9, 0.05)) for one in REAL]
    rows = compared(tmp_path, real, GOOD).error_causes
    mine = rows[(rows["metric"] == "e2e") & (rows["statistic"] == "p90")].iloc[0]
    assert mine["cause"] == "other programs" and mine["share"] > 0.8, rows.to_string()
    assert "up to 90 % of the cores in 1 s of real0 (from 1 s to 2 s); 90 % of the cores in 1 s of" in mine["evidence"]
    quiet = [one.with_meta(machine=machine(0.02, 0.2, 0.05)) for one in REAL]
    assert "other programs" not in causes(compared(tmp_path / "quiet", quiet, GOOD.scaled(1.2)), "e2e")
    busy = [one.with_meta(machine=machine(0.02, 0.9, 0.05)) for one in REAL]
    assert "other programs" not in causes(compared(tmp_path / "busy", busy, GOOD.scaled(1.2)), "e2e")
    throughout = [one.with_meta(machine=machine(0.9, 0.9, 0.9, 0.9, 0.9)) for one in REAL]
    assert "other programs" not in causes(compared(tmp_path / "throughout", throughout, GOOD.scaled(1.2)), "e2e")


def test_repeats_at_different_speeds_are_named(tmp_path: Path) -> None:
    """Two of three repeats ran on a host that was a third slower; the simulation is right for the fast one."""
    speeds = (4, 16 / 3, 16 / 3)
    real = [
        served(Costs(mixed_ns=round(2.5 * ms * MS), decode_ns=round(ms * MS)), seed=k) for k, ms in enumerate(speeds)
    ]
    comparison = compared(tmp_path, real, GOOD)
    assert causes(comparison, "itl")[0] == "noise" and "host speed, between repeats" in causes(comparison, "itl")
    assert "1.00 / 1.33 / 1.33 times as long" in evidence(comparison, "itl", place=1)


def test_tokens_delivered_together_are_named(tmp_path: Path) -> None:
    """A proxy keeps each answer until it is complete."""
    real = [
        replace(one, requests=[replace(r, token_ns=(r.token_ns[-1],) * NUM_TOKENS) for r in one.requests])
        for one in REAL
    ]
    comparison = compared(tmp_path, real, GOOD)
    assert {"itl", "ttft"} == {cell.metric for cell in comparison.verdict.unjudged}
    assert comparison.answer.verdict == "cannot_judge", "an exact simulation does not fail"
    assert any("100.0 % of the answers of two tokens or more came in one message" in text for text in comparison.marks)


def test_an_error_within_the_real_spread_is_noise(tmp_path: Path) -> None:
    real = [served(Costs(mixed_ns=ns * MS)) for ns in (9, 12)]
    comparison = compared(tmp_path, real, served(Costs(mixed_ns=12 * MS), is_real=False))
    assert causes(comparison, "ttft") == ["noise"]
    assert "2 real repeats differ by" in evidence(comparison, "ttft")


def test_vidur_as_published_is_named(tmp_path: Path) -> None:
    fast = assumed(served(Costs(mixed_ns=4 * MS, decode_ns=MS), is_real=False), step_overheads=False)
    comparison = compared(tmp_path, REAL, fast, "kernels")
    assert causes(comparison, "itl")[0] == "no step overheads"


def test_stages_add_up_and_steps_stand_beside_each_other(tmp_path: Path) -> None:
    comparison = compared(tmp_path, REAL, served(Costs(mixed_ns=12 * MS, handover_ns=2 * MS), is_real=False))
    stages = comparison.stage_errors.set_index("stage")
    parts = stages.loc[["queueing", "prefill", "decode"]]
    assert parts["error_ns"].sum() == pytest.approx(stages.loc["e2e", "error_ns"])
    assert parts["share_of_e2e_error"].sum() == pytest.approx(1)
    assert stages.loc["queueing", "error_ns"] == pytest.approx(1.5 * MS)
    assert stages.loc["prefill", "error_ns"] == pytest.approx(2 * MS, rel=0.05)
    steps = comparison.step_errors
    whole = steps[(steps["step_kind"] == "all") & (steps["compared_with"] == "calibrated")]
    assert (
        whole["same_composition"].tolist() == [1, 1]
        and whole["num_real_steps"].tolist() == [NUM_REQUESTS * NUM_TOKENS] * 2
    )
    assert steps[steps["compared_with"] == "real0"]["run_id"].unique().tolist() == ["real1"]
    out = tmp_path / "out"
    out.mkdir()
    write_comparison(comparison, out, None)
    for model, frame in (
        (StageErrors, comparison.stage_errors),
        (StepErrors, steps),
        (ErrorCauses, comparison.error_causes),
    ):
        assert len(read_table(model, out / "tables" / model.file_name())) == len(frame)
    for name in ("summary.md", "report.html"):
        text = (out / name).read_text()
        assert "step time, mixed" in text and "the other real repeats" in text


def bare(recipe: Recipe) -> Recipe:
    return replace(recipe, columns={}, iterations=None)


@pytest.mark.parametrize("first", ["bare", "told"])
def test_scheduling_that_some_runs_do_not_record_is_left_out_for_all(tmp_path: Path, first: str) -> None:
    """Whichever comes first: a variant without it, or a repeat without it."""
    other = {"bare": "told", "told": "bare"}[first]
    variants = {"bare": bare(GOOD), "told": GOOD}
    repeats = {"bare": bare(REAL[0]), "told": REAL[1]}
    real = [
        load_run(write_real(tmp_path / name, repeats[name].with_meta(repeat_index=k, num_repeats=2)), "real")
        for k, name in enumerate((first, other))
    ]
    sims = {
        variant: load_run(write_simulation(tmp_path / f"sim_{name}", variants[name], variant), "vidur")
        for variant, name in (("kernels", first), ("calibrated", other))
    }
    all_told = [one for one in real if "scheduled_time_ns" in one.requests]
    assert len(all_told) == 1
    for some in (real, all_told):
        errors = compare(some, sims, bands=Bands()).latency_errors
        execution = errors[errors["metric"] == "normalized_execution"]
        assert (execution["num_real_samples"] == 0).all() and (execution["num_sim_samples"] == 0).all()
        assert (errors.loc[errors["metric"] == "e2e", "num_sim_samples"] > 0).all()


def test_kv_capacity_is_that_of_the_smallest_cache_not_of_the_smallest_numbers() -> None:
    def run(blocks: int | None, size: int | None, real: bool = True) -> Any:
        settings = {"num_kv_blocks": blocks, "block_size": size}
        return SimpleNamespace(
            meta=(
                SimpleNamespace(engine_settings=SimpleNamespace(**settings))
                if real
                else SimpleNamespace(simulated_settings={name: value for name, value in settings.items() if value})
            )
        )

    measured: Any = SimpleNamespace(real_repeats=[run(100, 16)])
    assert _kv_capacity(run(50, 32, real=False), measured) == 1600
    assert _kv_capacity(run(40, 32, real=False), measured) == 1280
    assert _kv_capacity(run(10, None, real=False), measured) == 1600, "a size that is not reported decides nothing"


def test_runs_that_record_neither_scheduling_nor_steps_say_so(tmp_path: Path) -> None:
    slow = bare(served(Costs(handover_ns=5 * MS), is_real=False))
    comparison = compared(tmp_path, [bare(one) for one in REAL], assumed(slow, max_num_batched_tokens=PROMPT))
    assert comparison.stage_errors["stage"].tolist() == ["first_token", "decode", "e2e"]
    assert comparison.step_errors.empty
    assert causes(comparison, "ttft") == ["chunk size"]
    assert "whether it was reached is not known" in evidence(comparison, "ttft")


# --- the order of steps -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=25), st.lists(st.integers(0, 3), max_size=25))
def test_the_longest_common_subsequence_is_that_of_the_textbook(one: list[int], other: list[int]) -> None:
    before = [0] * (len(other) + 1)
    for item in one:
        row = [0]
        for index, two in enumerate(other):
            row.append(before[index] + 1 if item == two else max(before[index + 1], row[-1]))
        before = row
    assert longest_common_subsequence(one, other) == before[-1]


def test_a_step_of_another_composition_is_not_the_same() -> None:
    table = served(Costs()).iterations
    assert table is not None
    other = table.copy()
    other.loc[:23, "num_decode_requests"] = 7
    assert same_composition(table, other) == pytest.approx(0.9)


def test_a_step_formed_ahead_takes_its_time_from_the_end_of_the_one_before() -> None:
    times = np.array([[0, 10], [4, 25], [30, 31]])
    table = pd.DataFrame({"scheduled_time_ns": times[:, 0], "completion_time_ns": times[:, 1]}).astype("Int64")
    assert durations_ns(table).tolist() == [10, 15, 1]
    assert set(table.columns) < set(Iterations.column_types()[0])
