"""Comparing runs whose turns wait for answers: each latency from its own side's arrival, sessions drawn as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gst_assets.analysis.alignment import sessions_of
from gst_assets.analysis.bootstrap import Blocks, dependence, replicate
from gst_assets.analysis.compare import compare_directories
from gst_assets.analysis.gate import CLOSED_LOOP, Check
from gst_assets.analysis.history import read_history
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.measures import Samples
from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.store import ArtifactStore
from gst_assets.engine import metric_rows
from gst_assets.engine.protocol import EngineRequest
from gst_assets.engine.replay import PlannedRequest
from gst_assets.errors import ComparisonError
from gst_assets.scenario import Bands
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.analysis.run_directories import Recipe, Request, write_real, write_simulation
from gst_assets_tests.engine.memory_engine import MemoryEngine
from gst_assets_tests.engine.test_replay import play
from gst_assets_tests.vidur_adapter.test_turns import Sessions, workload

MS = 1_000_000
PLAIN = support.scenario("simulation.host_variability=false")
LENGTHS = np.random.default_rng(7).integers(5, 60, size=(45, 3)).tolist()
SESSIONS: Sessions = [
    [(10, one, 3 + two % 9), (40, one + two, 4), (5, one + two + three, 8)][: 2 + number % 2]
    for number, (one, two, three) in enumerate(LENGTHS)
]


def simulated(device_ms: float) -> SimulationResult:
    lengths, intervals = workload(SESSIONS)
    bundle = support.bundle(PLAIN, overheads=support.constant_overheads(device=round(device_ms * MS)))
    return simulate(PLAIN, lengths, intervals, bundle, "calibrated", cache_dir=None)


def recipe(result: SimulationResult) -> Recipe:
    return of_tables(result.requests, result.tokens)


def of_tables(table: pd.DataFrame, tokens: pd.DataFrame) -> Recipe:
    """The recipe of a run without failures, from its two tables."""
    times = tokens.groupby("request_id")["token_time_ns"].agg(tuple)
    requests = [
        Request(int(row.arrival_time_ns), tuple(map(int, times[row.request_id])), int(row.num_prefill_tokens))
        for row in table.itertuples()
    ]
    names = ("completion_time_ns", "scheduled_time_ns", "previous_request_id", "workload_arrival_time_ns")
    return Recipe(requests, columns={name: table[name].tolist() for name in names if name in table})


FAST, SLOW = recipe(simulated(4)), recipe(simulated(6))


def shifted(of: Recipe, later_ns: int) -> Recipe:
    """The same run, all of it later."""
    requests = [
        replace(one, arrival_ns=one.arrival_ns + later_ns, token_ns=tuple(t + later_ns for t in one.token_ns))
        for one in of.requests
    ]
    columns = {
        name: [one if name == "previous_request_id" else one + later_ns for one in values]
        for name, values in of.columns.items()
    }
    return Recipe(requests, columns=columns)


def compared(folder: Path, real: Recipe, sim: Recipe) -> Comparison:
    return compare(
        [load_run(write_real(folder / "real", real), "real")],
        {"calibrated": load_run(write_simulation(folder / "sim", sim), "vidur")},
        bands=Bands(),
        calibration_sha256=set(),
    )


def test_a_simulation_taken_for_the_real_run_has_no_error(tmp_path: Path) -> None:
    found = compared(tmp_path, FAST, FAST)
    assert {cell.relative_error for cell in found.cells} == {0.0}
    assert {rate.relative_error for rate in found.rates} == {0.0}
    assert found.num_sessions == 45 and found.block_length is not None and found.block_length <= 45 // 4
    (check,) = (one for one in found.checks if one.check == CLOSED_LOOP)
    assert check.severity == "note" and "+0.0 ms apart at P50 (+0.0 to +0.0 ms, + is later)" in check.finding


def test_sides_of_different_speed_are_compared_from_their_own_arrivals(tmp_path: Path) -> None:
    found = compared(tmp_path, FAST, SLOW)
    pair = next(iter(found.pairs.values()))
    first = pd.isna(pd.Series(FAST.columns["previous_request_id"])).to_numpy()
    apart = (pair.sim.requests["arrival_time_ns"] - pair.real.requests["arrival_time_ns"]).to_numpy()
    assert not apart[first].any() and (apart[~first] > 0).all()
    for side, given in ((pair.real, FAST), (pair.sim, SLOW)):
        own = [one.token_ns[-1] - one.arrival_ns for one in given.requests]
        assert side.requests["e2e_ns"].tolist() == own
    errors = {(cell.metric, cell.statistic): cell.relative_error for cell in found.cells}
    assert errors["itl", "p50"] > 0.2 and errors["e2e", "p50"] > 0.2
    (check,) = (one for one in found.checks if one.check == CLOSED_LOOP)
    assert f"{int((~first).sum())} later turns arrived +" in check.finding


def test_only_repeats_decide(tmp_path: Path) -> None:
    """Resampled sessions cover too little, so that even an error of a third is not judged with one repeat."""
    once = compared(tmp_path / "once", FAST, SLOW)
    p50 = {cell.metric: cell for cell in once.cells if cell.statistic == "p50"}
    for metric in ("ttft", "itl", "e2e"):
        assert (p50[metric].verdict, p50[metric].interval_basis) == ("insufficient", "none")
        assert p50[metric].reason == "one repeat; where turns wait for answers only repeats decide"
        assert np.isfinite(p50[metric].carry_low), "shown all the same"
    sim = {"calibrated": load_run(write_simulation(tmp_path / "sim", SLOW), "vidur")}
    repeats = [load_run(write_real(tmp_path / f"real{number}", FAST), "real") for number in range(2)]
    twice = compare(repeats, sim, bands=Bands(), calibration_sha256=set())
    p50 = {cell.metric: cell for cell in twice.cells if cell.statistic == "p50"}
    assert (p50["itl"].verdict, p50["itl"].interval_basis) == ("fail", "repeats")


def test_sessions_are_told_by_their_first_turns(tmp_path: Path) -> None:
    run = load_run(write_real(tmp_path / "real", FAST), "real")
    sessions = sessions_of(run)
    assert sessions is not None
    assert np.bincount(sessions).tolist() == [len(turns) for turns in SESSIONS]
    begins = [run.requests["arrival_time_ns"][sessions == one].min() for one in range(45)]
    assert begins == sorted(begins)
    free = replace(FAST, columns={"completion_time_ns": FAST.columns["completion_time_ns"]})
    assert sessions_of(load_run(write_real(tmp_path / "free", free), "real")) is None


def test_an_open_loop_is_not_compared_with_a_closed_one(tmp_path: Path) -> None:
    free = replace(FAST, columns={"completion_time_ns": FAST.columns["completion_time_ns"]})
    with pytest.raises(ComparisonError, match=r"in .*real turns wait for the answers before them .* in .*sim they do"):
        compared(tmp_path, FAST, free)


def test_a_closed_loop_in_which_no_turn_waits_is_an_open_loop_on_both_sides(tmp_path: Path) -> None:
    """Sessions of one turn, measured and simulated from one workload that has the columns of a closed loop."""
    lengths, intervals = workload([[(5, 10 + number, 3)] for number in range(25)])
    assert intervals["previous_request_id"].isna().all()
    planned = [
        PlannedRequest(EngineRequest(str(row.request_id), [1] * int(row.num_prefill_tokens), 3, 0), int(arrival), "p")
        for row, arrival in zip(lengths.itertuples(), intervals["arrival_time_ns"], strict=True)
    ]
    played = play(MemoryEngine(), planned)
    real = of_tables(metric_rows.request_metrics(played, "memory"), metric_rows.token_metrics(played))
    real = replace(real, columns={name: one for name, one in real.columns.items() if name != "scheduled_time_ns"})
    result = simulate(PLAIN, lengths, intervals, support.bundle(PLAIN), "calibrated", cache_dir=None)
    found = compared(tmp_path, real, recipe(result))
    assert found.num_sessions is None and not [one for one in found.checks if one.check == CLOSED_LOOP]
    # Tables written by other programs may have the columns all the same.
    turns = {
        "previous_request_id": [None] * len(planned),
        "workload_arrival_time_ns": intervals["arrival_time_ns"].tolist(),
    }
    told = replace(real, columns=real.columns | turns)
    assert compared(tmp_path / "told", told, recipe(result)).num_sessions is None


def test_other_times_of_the_workload_are_another_workload(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"workload_arrival_time_ns is 10000000 in .* but 10000005 in"):
        compared(tmp_path, FAST, shifted(FAST, 5))


def test_few_sessions_are_not_resampled(tmp_path: Path) -> None:
    few = [number for number in range(len(FAST.requests)) if number < 40]
    some = Recipe(
        [FAST.requests[one] for one in few], columns={name: values[:40] for name, values in FAST.columns.items()}
    )
    found = compared(tmp_path, some, some)
    assert found.num_sessions is not None and found.num_sessions < 20 and found.block_length is None
    assert all(np.isnan(cell.carry_low) for cell in found.cells)


def test_whole_sessions_are_drawn() -> None:
    sessions = np.array([0, 1, 0, 2, 1, 0, 3, 4, 5, 6, 7, 7])
    blocks = Blocks(np.arange(12), 2, num_replicates=50, sessions=sessions)
    assert (blocks.num_items, blocks.items, blocks.num_units) == (8, "sessions", 8)
    assert blocks.unit_of.tolist() == sessions.tolist()
    assert (blocks.weights.sum(axis=1) == 8).all()
    # Values that are alike within each session: a replicate's mean is that of the sessions drawn, weighted by turns.
    values = sessions.astype(np.float64)
    samples = Samples(values, np.ones(12, dtype=np.int64))
    turns = np.bincount(sessions)
    expected = (blocks.weights * turns * np.arange(8)).sum(axis=1) / (blocks.weights * turns).sum(axis=1)
    assert replicate(samples, np.sort(values), blocks).values[:, 0] == pytest.approx(expected)
    series = dependence(samples, samples, np.arange(12), sessions)
    assert {len(one) for one in series} == {8}
    assert np.argsort(series[-1] / turns).tolist() == list(range(8)), "latencies by session, in order"


# --- runs that do not state their workload ----------------------------------------------------------------------------


def unstated(directory: Path) -> Path:
    """The run directory without its workload's name, as another program may write it."""
    path = directory / "run_meta.json"
    values = json.loads(path.read_text())
    for key in ("workload_id", "workload_sha256"):
        del values[key]
    path.write_text(json.dumps(values))
    return directory


def free_of_turns(of: Recipe) -> Recipe:
    return replace(of, columns={name: one for name, one in of.columns.items() if "_request_id" not in name})


def compared_unstated(folder: Path, real: Recipe, sim: Recipe) -> dict[str, Check]:
    """The checks of the runs' workload, arrivals and sessions."""
    found = compare(
        [load_run(unstated(write_real(folder / "real", real)), "real")],
        {"calibrated": load_run(unstated(write_simulation(folder / "sim", sim)), "vidur")},
        bands=Bands(),
        calibration_sha256=set(),
    )
    return {check.check: check for check in found.checks}


def test_later_turns_apart_are_no_mark_where_the_workload_is_not_stated(tmp_path: Path) -> None:
    checks = compared_unstated(tmp_path / "same", FAST, SLOW)
    assert checks["arrivals"].severity == "ok" and "same sessions" not in checks
    assert checks[CLOSED_LOOP].severity == "note"
    moved = shifted(SLOW, 3 * MS)
    checks = compared_unstated(tmp_path / "moved", FAST, moved)
    assert checks["arrivals"].severity == "mark"
    assert "the workload's arrivals are up to 3.00 ms, P50 3.00 ms apart" in checks["arrivals"].finding


def test_sessions_of_another_structure_are_a_mark_where_the_workload_is_not_stated(tmp_path: Path) -> None:
    """The last session's last turn begins a session of its own, at the same time of its own."""
    previous = list(SLOW.columns["previous_request_id"])
    last = max(at for at, one in enumerate(previous) if not pd.isna(one))
    previous[last] = pd.NA
    workload_ns = list(SLOW.columns["workload_arrival_time_ns"])
    workload_ns[last] = SLOW.requests[last].arrival_ns
    other = {"previous_request_id": previous, "workload_arrival_time_ns": workload_ns}
    checks = compared_unstated(tmp_path, FAST, replace(SLOW, columns=SLOW.columns | other))
    check = checks["same sessions"]
    assert check.severity == "mark" and check.marks("calibrated")
    assert "calibrated: its turns wait for other answers (previous_request_id) than those of real" in check.finding
    assert CLOSED_LOOP not in checks


@pytest.mark.parametrize("closed_side", ["real", "calibrated"])
def test_a_closed_loop_and_an_open_one_are_a_mark_where_the_workload_is_not_stated(
    closed_side: str, tmp_path: Path
) -> None:
    sides = (FAST, free_of_turns(SLOW)) if closed_side == "real" else (free_of_turns(FAST), SLOW)
    checks = compared_unstated(tmp_path, *sides)
    check, open_side = checks["same sessions"], "calibrated" if closed_side == "real" else "real"
    assert check.severity == "mark"
    assert f"turns of {closed_side} wait for the answers before them" in check.finding
    assert f"none of {open_side} is stated to" in check.finding
    assert checks["arrivals"].severity == "ok", "first turns arrive at the same times"


# --- what the check says ----------------------------------------------------------------------------------------------


def said_of_repeats(folder: Path, repeats: list[Recipe], sim: Recipe) -> Check:
    real = [load_run(write_real(folder / f"real{number}", one), "real") for number, one in enumerate(repeats)]
    simulations = {"calibrated": load_run(write_simulation(folder / "sim", sim), "vidur")}
    found = compare(real, simulations, bands=Bands(), calibration_sha256=set())
    (check,) = (one for one in found.checks if one.check == CLOSED_LOOP)
    return check


def test_arrivals_are_told_against_the_median_repeat_with_the_repeats_own_spread(tmp_path: Path) -> None:
    repeats = [recipe(simulated(device_ms)) for device_ms in (4, 6, 5)]
    check = said_of_repeats(tmp_path, repeats, repeats[2])
    later = ~pd.isna(pd.Series(FAST.columns["previous_request_id"])).to_numpy()
    arrivals = np.array([[one.arrival_ns for one in each.requests] for each in repeats])[:, later] / 1e6
    assert "Simulated, against the median of 3 repeats:" in check.finding
    told = f"{later.sum()} later turns arrived +0.0 ms apart at P50 (+0.0 to +0.0 ms, + is later)"
    spread = np.ptp(arrivals, axis=0)
    own = f"repeats {np.median(spread):,.1f} ms apart at P50, up to {spread.max():,.1f} ms"
    assert f"{told}; the {own}." in check.finding and (check.simulated, check.real) == (told, own)


def test_turns_that_were_not_sent_are_counted(tmp_path: Path) -> None:
    """The first turn of a session fails in one of two repeats, and with it the turns behind it."""
    previous = FAST.columns["previous_request_id"]
    lost: list[int] = [0]
    for turn, before in enumerate(previous):
        if not pd.isna(before) and before in lost:
            lost.append(turn)
    assert len(lost) == 2
    due = FAST.columns["workload_arrival_time_ns"]
    failed = replace(
        FAST,
        requests=[
            Request(due[at], (), one.prompt, len(one.token_ns), "error") if at in lost else one
            for at, one in enumerate(FAST.requests)
        ],
        columns={
            name: [None if at in lost and name == "completion_time_ns" else one for at, one in enumerate(values)]
            for name, values in FAST.columns.items()
        }
        | {"error_type": ["" if at not in lost else "PreviousTurnFailed" if at else "Late" for at in range(len(due))]},
    )
    check = said_of_repeats(tmp_path, [FAST, failed], FAST)
    assert (
        "because the one before failed (PreviousTurnFailed): 1 in real1; the simulation carries them" in check.finding
    )
    assert "PreviousTurnFailed" not in said_of_repeats(tmp_path / "none", [FAST, FAST], FAST).finding


def test_two_nights_are_of_one_subject_whatever_their_arrivals(tmp_path: Path) -> None:
    """Measured, compared and written on two nights; the engine of the second one is slower, so that its later turns
    arrive later."""
    sim = write_simulation(tmp_path / "sim", FAST)
    for night, device_ms in enumerate((4, 5)):
        measured = {"group_id": f"g{night}", "started_at": f"2026-01-0{night + 2}T02:00:00+00:00"}
        real = [
            write_real(tmp_path / f"night{night}-r{repeat}", recipe(simulated(device_ms)).with_meta(**measured))
            for repeat in range(2)
        ]
        (tmp_path / "comparisons").mkdir(exist_ok=True)
        compare_directories(real, [sim], tmp_path / "comparisons" / f"smoke-{night}", with_figures=False)
    history = read_history(ArtifactStore(tmp_path), "smoke")
    rows = history.comparisons
    assert rows["comparison_id"].tolist() == ["smoke-0", "smoke-1"] and rows["night"].tolist() == [0, 1]
    assert rows["subject"].nunique() == 1 and rows["num_marks"].tolist() == [0, 0]
    gaps = history.latencies.query("metric == 'itl' and statistic == 'p50'")
    assert gaps["relative_error"].tolist() == pytest.approx([0, 4 / 5 - 1])
