from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.analysis.gate import COMPARED_SETTINGS
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.tables import (
    AlignmentCounts,
    ErrorGroups,
    GateChecks,
    LatencyErrors,
    PairedErrors,
    RateErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    validate,
)
from gst_assets.engine.recorded import expand
from gst_assets.errors import ComparisonError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Bands, ServiceLevel
from gst_assets.workload.digest import workload_digest
from gst_assets_tests.analysis.run_directories import (
    ENGINE_SETTINGS,
    HARDWARE,
    MS,
    WORKLOAD_SHA256,
    Recipe,
    Request,
    steady,
    write_real,
    write_simulation,
)

BANDS = Bands(pass_band=0.05, warn_band=0.10)


def _compare(folder: Path, reals: list[Recipe], sims: dict[str, Recipe], **options: Any) -> Comparison:
    real = [load_run(write_real(folder / f"r{i}", recipe), "real") for i, recipe in enumerate(reals)]
    sim = {
        name: load_run(write_simulation(folder / f"s-{name}", recipe, name), "vidur") for name, recipe in sims.items()
    }
    return compare(real, sim, **{"bands": BANDS, "calibration_sha256": set(), **options})


def _cell(comparison: Comparison, name: str, variant: str = "calibrated") -> Any:
    return next(cell for cell in comparison.cells if cell.name == name and cell.variant == variant)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_values_by_hand(tmp_path: Path) -> None:
    """TTFT 20, 21, ... 29 ms and gaps 4, 5, ... 13 ms over ten requests of three tokens; the simulation adds 1 ms to
    each TTFT."""
    real = steady(10, 3, step_ns=MS)
    sim = steady(10, 3, ttft_ns=21 * MS, step_ns=MS)
    found = _compare(tmp_path, [real], {"calibrated": sim})
    ttft = _cell(found, "TTFT P50")
    assert (ttft.real_ns, ttft.sim_ns, ttft.error_ns) == (24.5 * MS, 25.5 * MS, MS)
    assert ttft.relative_error == pytest.approx(1 / 24.5)
    assert (ttft.num_real_samples, ttft.num_sim_samples) == (10, 10)
    assert _cell(found, "TTFT P90").real_ns == pytest.approx(28.1 * MS)
    # Twenty gaps: 4, 4, 5, 5, ... 13, 13 ms.
    assert _cell(found, "ITL P50").real_ns == 8.5 * MS
    assert _cell(found, "ITL P50").relative_error == 0
    # E2E of request i: 20 + i + 2 (4 + i) = 28 + 3 i ms.
    assert _cell(found, "E2E P50").real_ns == 41.5 * MS
    assert math.isnan(ttft.real_spread), "one repeat has no spread"


def test_repeats_give_a_median_and_a_spread(tmp_path: Path) -> None:
    reals = [steady(30, 3, ttft_ns=t * MS) for t in (20, 26, 22)]
    found = _compare(tmp_path, reals, {"calibrated": steady(30, 3, ttft_ns=23 * MS)})
    cell = _cell(found, "TTFT P50")
    assert (cell.real_ns, cell.sim_ns) == (22 * MS, 23 * MS)
    assert cell.real_spread == pytest.approx(6 / 22)
    repeats = found.repeat_latencies
    mine = repeats[(repeats["metric"] == "ttft") & (repeats["statistic"] == "p50")]
    assert mine["value_ns"].tolist() == [20 * MS, 26 * MS, 22 * MS]
    assert mine["run_id"].tolist() == ["r0", "r1", "r2"]


def test_the_smallest_repeat_decides_what_is_sufficient(tmp_path: Path) -> None:
    whole = steady(20, 2)
    requests = [*whole.requests[:19], Request(whole.requests[19].arrival_ns, (), asked=2, status="error")]
    found = _compare(tmp_path, [whole, Recipe(requests)], {"calibrated": whole})
    cell = _cell(found, "TTFT P50")
    assert (cell.num_real_samples, cell.num_sim_samples, cell.verdict) == (19, 19, "insufficient")


def test_the_simulation_is_aligned_to_each_repeat(tmp_path: Path) -> None:
    """The second repeat stops after its first token, so that the simulated gaps count once, for the first repeat."""
    full = steady(1, 3)
    stopped = Recipe([Request(0, full.requests[0].token_ns[:1], asked=3)])
    found = _compare(tmp_path, [full, stopped], {"calibrated": full})
    counts = found.alignment_counts.set_index("run_id")
    assert counts["num_tokens_cut"].to_dict() == {"r0": 0, "r1": 2}
    assert _cell(found, "E2E P50").sim_ns == (28 + 20) / 2 * MS


@settings(deadline=None, max_examples=8)
@given(st.floats(0.2, 5), st.integers(1, 5), st.integers(1, 4))
def test_a_planted_scale_is_recovered(factor: float, num_requests: int, num_tokens: int) -> None:
    real = steady(num_requests, num_tokens, step_ns=MS)
    with tempfile.TemporaryDirectory() as folder:
        found = _compare(Path(folder), [real], {"calibrated": real.scaled(factor)})
    for cell in found.cells:
        if cell.num_real_samples:
            assert cell.relative_error == pytest.approx(factor - 1, abs=1e-6)
    errors = found.request_errors
    assert (errors["ttft_error_ns"] / errors["real_ttft_ns"]).tolist() == pytest.approx(
        [factor - 1] * num_requests, abs=1e-6
    )


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_identical_runs_have_no_error(num_requests: int, num_tokens: int, repeats: int) -> None:
    recipe = steady(num_requests, num_tokens, step_ns=MS)
    with tempfile.TemporaryDirectory() as folder:
        found = _compare(Path(folder), [recipe] * repeats, {"calibrated": recipe})
    assert {cell.relative_error for cell in found.cells if cell.num_real_samples} == {0.0}
    assert (found.paired_errors["wasserstein_ns"].dropna() == 0).all() and (
        found.paired_errors["bias"].dropna() == 0
    ).all()
    assert (found.request_errors[["ttft_error_ns", "e2e_error_ns"]] == 0).all(axis=None)


def test_every_frame_keeps_its_contract(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(3, 1)] * 2, {"kernels": steady(3, 1), "calibrated": steady(3, 1)})
    for model, frame in (
        (LatencyErrors, found.latency_errors),
        (RepeatLatencies, found.repeat_latencies),
        (RequestErrors, found.request_errors),
        (PairedErrors, found.paired_errors),
        (ErrorGroups, found.error_groups),
        (RunTotals, found.run_totals),
        (GateChecks, found.gate_checks),
        (AlignmentCounts, found.alignment_counts),
        (SettingsParity, found.settings_parity),
    ):
        validate(model, frame, "frame")
        assert len(frame)
    assert len(found.request_errors) == 3 * 2 * 2


def test_error_groups_by_hand(tmp_path: Path) -> None:
    """TTFT errors of +10, +20, +30 and +40 % at prompts of 1, 2, 3 and 3 tokens: the equal prompts stay in one
    group."""
    real = Recipe(
        [Request(i * 100 * MS, (i * 100 * MS + 10 * MS,), prompt=prompt) for i, prompt in enumerate((1, 2, 3, 3))]
    )
    sim = Recipe([replace(one, token_ns=(one.token_ns[0] + (i + 1) * MS,)) for i, one in enumerate(real.requests)])
    groups = _compare(tmp_path, [real], {"calibrated": sim}).error_groups
    mine = groups[(groups["metric"] == "ttft") & (groups["factor"] == "num_prefill_tokens")]
    assert mine[["low", "high", "num_requests"]].to_numpy().tolist() == [[1, 1, 1], [2, 2, 1], [3, 3, 2]]
    assert mine["median"].tolist() == pytest.approx([0.1, 0.2, 0.35])
    assert (mine["p10"].iloc[2], mine["p90"].iloc[2]) == pytest.approx((0.31, 0.39))


# --- verdict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.0, "pass"), (1.04, "pass"), (0.96, "pass"), (1.08, "warn"), (0.92, "warn"), (1.2, "fail"), (0.5, "fail")],
)
def test_outcome_by_bands(tmp_path: Path, factor: float, outcome: str) -> None:
    real = steady(100, 3)
    found = _compare(tmp_path, [real], {"kernels": real.scaled(0.1), "calibrated": real.scaled(factor)})
    assert found.headline == "calibrated"
    assert found.verdict.outcome == outcome
    assert len(found.verdict.cells) == 6 and not found.verdict.unjudged
    for cell in found.verdict.cells:
        assert cell.interval_low == pytest.approx(factor - 1, abs=1e-4) == cell.interval_high


def test_too_few_samples_for_any_verdict(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(8, 2)], {"calibrated": steady(8, 2)})
    assert found.verdict.outcome == "insufficient"
    assert found.verdict.cells == () and len(found.verdict.unjudged) == 6


def test_many_tokens_of_few_requests_are_few_observations(tmp_path: Path) -> None:
    """Eight requests of 30 tokens give 232 gaps, and are still eight requests."""
    found = _compare(tmp_path, [steady(8, 30)], {"calibrated": steady(8, 30)})
    assert _cell(found, "ITL P50").num_real_samples == 232
    assert found.verdict.outcome == "insufficient" and found.block_length is None


def test_one_required_cell_with_too_few_samples_leaves_the_verdict_open(tmp_path: Path) -> None:
    """Thirty requests judge every P50 and, with 10 gaps each, ITL P90; TTFT and E2E P90 would need a hundred."""
    found = _compare(tmp_path, [steady(30, 11)], {"calibrated": steady(30, 11)})
    assert {cell.name for cell in found.verdict.cells} == {"TTFT P50", "ITL P50", "ITL P90", "E2E P50"}
    assert {cell.name for cell in found.verdict.unjudged} == {"TTFT P90", "E2E P90"}
    assert {cell.verdict for cell in found.verdict.cells} == {"pass"} and found.verdict.outcome == "insufficient"


def test_a_failure_stands_whatever_else_is_unknown(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(30, 11)], {"calibrated": steady(30, 11).scaled(1.5)})
    assert found.verdict.outcome == "fail" and found.verdict.unjudged


def test_the_scenario_says_what_is_required(tmp_path: Path) -> None:
    real = steady(1000, 1)
    # Spread out: 5 % of the requests, so that hardly a replicate has fewer than 1 % of them.
    tail = Recipe(
        [
            three if i % 20 == 0 else one
            for i, (one, three) in enumerate(zip(real.requests, real.scaled(3).requests, strict=True))
        ]
    )
    usual = _compare(tmp_path / "a", [real], {"calibrated": tail})
    assert _cell(usual, "TTFT P99").verdict == "fail" and usual.verdict.outcome == "pass"
    strict = Bands(required_metrics=("ttft",), required_statistics=("p99",))
    asked = _compare(tmp_path / "b", [real], {"calibrated": tail}, bands=strict)
    assert asked.verdict.outcome == "fail" and [cell.name for cell in asked.verdict.cells] == ["TTFT P99"]


def test_one_token_a_request_has_no_gap_and_is_judged_on_the_rest(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(100, 1)], {"calibrated": steady(100, 1)})
    assert found.verdict.outcome == "pass" and len(found.verdict.cells) == 4
    assert math.isnan(_cell(found, "ITL P50").real_ns) and _cell(found, "TPOT mean").num_real_samples == 0


def test_one_request_only(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(1, 3)], {"calibrated": steady(1, 3)})
    assert found.verdict.outcome == "insufficient"
    assert all(math.isnan(cell.interval_low) for cell in found.cells)


def test_an_interval_that_straddles_is_inconclusive(tmp_path: Path) -> None:
    """Half the requests are 40 % too slow, in an order without meaning, as is that of the latencies: P50 may be
    either."""
    rng = np.random.default_rng(0)
    latencies = [int(20 + one) * MS for one in rng.permutation(60)]
    real = Recipe([Request(i * 10 * MS, (i * 10 * MS + one, i * 10 * MS + 2 * one)) for i, one in enumerate(latencies)])
    slow = rng.random(60) < 0.5
    sim = Recipe(
        [two if late else one for one, two, late in zip(real.requests, real.scaled(1.4).requests, slow, strict=True)]
    )
    found = _compare(tmp_path, [real], {"calibrated": sim})
    cell = _cell(found, "TTFT P50")
    assert cell.interval_low < 0.1 < cell.interval_high and cell.verdict == "inconclusive"
    assert found.verdict.outcome == "insufficient", "P90 has too few requests, which says even less"


def test_a_run_that_is_short_against_its_dependence_proves_a_failure_at_most(tmp_path: Path) -> None:
    """Latencies that grow all the time: 200 requests, and one stretch. An exact copy is no pass; half as long again is
    a fail."""
    real = steady(200, 3, step_ns=MS)
    found = _compare(tmp_path, [real], {"kernels": real.scaled(1.5), "calibrated": real})
    cell = _cell(found, "TTFT P50")
    assert (cell.verdict, cell.interval_flagged, found.verdict.outcome) == ("insufficient", True, "insufficient")
    assert cell.interval_low == pytest.approx(0, abs=1e-6) and cell.num_independent < 10
    assert _cell(found, "TTFT P50", "kernels").verdict == "fail"
    assert "over at least 50 requests, so 200 requests are only 4 independent stretches" in "\n".join(found.notes)


def test_errors_are_put_beside_the_noise(tmp_path: Path) -> None:
    reals = [steady(30, 3, ttft_ns=t * MS) for t in (20, 26, 22)]
    found = _compare(tmp_path, reals, {"calibrated": steady(30, 3, ttft_ns=23 * MS)})
    # Error 1 / 22 over spread 6 / 22.
    assert _cell(found, "TTFT P50").error_to_noise == pytest.approx(1 / 6)
    assert math.isnan(_cell(found, "ITL P50").error_to_noise), "repeats without spread"


def test_tokens_that_came_together_leave_itl_unjudged(tmp_path: Path) -> None:
    """Ten tokens a message: nine gaps of ten are the delivery's, and the first message is not the last."""
    real = steady(25, 20)
    bunched = Recipe(
        [replace(one, token_ns=tuple(one.token_ns[k - k % 10 + 9] for k in range(20))) for one in real.requests]
    )
    found = _compare(tmp_path, [bunched] * 5, {"calibrated": real})
    assert {cell.name for cell in found.verdict.unjudged} == {"ITL P50", "ITL P90"}
    assert "delivered several at a time" in _cell(found, "ITL P50").reason
    assert _cell(found, "E2E P50").verdict == "pass" and _cell(found, "TTFT P50").verdict == "fail"
    assert len(found.marks) == 5 and "ITL is not judged" in found.marks[0]


def test_an_undefined_error_is_the_worst(tmp_path: Path) -> None:
    """The real first token comes with the arrival, the simulated one later."""
    at_once = steady(25, 3, ttft_ns=0)
    found = _compare(tmp_path, [at_once], {"kernels": at_once, "calibrated": steady(25, 3, ttft_ns=MS)})
    assert math.isnan(_cell(found, "TTFT P50").relative_error)
    assert (_cell(found, "TTFT P50").verdict, found.verdict.outcome) == ("fail", "fail")
    assert found.verdict.cells[0].name == "TTFT P50", "an undefined error is the worst"
    assert _cell(found, "TTFT P50", "kernels").verdict == "pass"


def test_the_headline_is_the_last_variant_of_the_scenario_that_is_given(tmp_path: Path) -> None:
    recipe = steady(2, 2)
    both = _compare(tmp_path / "a", [recipe], {"calibrated": recipe, "kernels": recipe})
    assert (both.headline, both.variants) == ("calibrated", ("kernels", "calibrated"))
    assert _compare(tmp_path / "b", [recipe], {"kernels": recipe}).headline == "kernels"
    foreign = recipe.with_meta(params={})
    assert _compare(tmp_path / "c", [foreign], {"one": foreign, "two": foreign}).headline == "two"


# --- this workload: repeats and seeds ---------------------------------------------------------------------------------


def _jittered(recipe: Recipe, seed: int, sigma: float = 0.003) -> Recipe:
    """Another repeat: every request's times from arrival by a lognormal factor of its own, and all by one of the
    repeat."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(0, sigma)
    return replace(
        recipe,
        requests=[
            replace(r, token_ns=tuple(r.arrival_ns + round((t - r.arrival_ns) * factor) for t in r.token_ns))
            for r, factor in zip(
                recipe.requests, np.exp(whole + rng.normal(0, sigma, len(recipe.requests))), strict=True
            )
        ],
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Chat requests as an H100 served them, one of the recorded runs that ship with the project."""
    kept = min((PROJECT_ROOT / "data" / "recorded" / "h100_8b_quarter").iterdir())
    folder = expand(kept, tmp_path_factory.mktemp("runs"))
    requests, tokens = (pd.read_csv(folder / f"{name}_metrics.csv") for name in ("request", "token"))
    times = tokens.groupby("request_id")["token_time_ns"].apply(tuple)
    return Recipe(
        [
            Request(int(row.arrival_time_ns), times[row.request_id], prompt=int(row.num_prefill_tokens))
            for row in requests.itertuples(index=False)
        ]
    )


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "pass"), (0.03, "pass"), (0.07, "warn"), (0.15, "fail")])
def test_a_planted_shift_gives_its_verdict(tmp_path: Path, recorded: Recipe, shift: float, outcome: str) -> None:
    """Five repeats of a recorded run that differ by 0.3 %, and the run itself shifted."""
    reals = [_jittered(recorded, seed) for seed in range(5)]
    found = _compare(tmp_path, reals, {"calibrated": recorded.scaled(1 + shift)})
    assert found.verdict.outcome == outcome, found.answer.sentence
    assert {cell.interval_basis for cell in found.verdict.cells} == {"repeats"}
    for cell in found.verdict.cells:
        if cell.metric != "itl":
            assert cell.interval_low < shift < cell.interval_high


def test_a_run_with_one_per_cent_of_the_requests_says_how_many_would_do(tmp_path: Path) -> None:
    whole = steady(400, 12, step_ns=MS // 100)

    def judged(number: int) -> Comparison:
        cut = replace(whole, requests=whole.requests[:number])
        return _compare(tmp_path / str(number), [_jittered(cut, seed) for seed in range(5)], {"calibrated": cut})

    few = judged(4)
    assert few.answer.verdict == "cannot_judge"
    reasons = {cell.reason for cell in few.answer.cells}
    assert reasons == {"4 requests; 20 would do"} and few.answer.more
    assert judged(20).answer.verdict == "pass"


def test_fewer_than_five_repeats_are_no_pass_and_a_live_run_is_told_how_many_would_do(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    reals = [_jittered(recipe, seed, 0.0005) for seed in range(4)]
    found = _compare(tmp_path / "a", reals, {"calibrated": recipe}, repeatable=True)
    assert found.answer.verdict == "warn" and {cell.verdict for cell in found.verdict.cells} == {"warn"}
    assert _cell(found, "TTFT P50").interval_flagged and "one speed" in _cell(found, "TTFT P50").reason
    assert "about 5 repeats would do" in found.answer.more[0]
    assert _compare(tmp_path / "b", reals, {"calibrated": recipe}).answer.more == (), "a recorded run stays as it is"


def test_with_one_repeat_the_interval_of_resampled_requests_stands_in_and_is_named(tmp_path: Path) -> None:
    found = _compare(tmp_path, [steady(100, 3)], {"calibrated": steady(100, 3)}, repeatable=True)
    cell = _cell(found, "TTFT P50")
    assert (cell.interval_basis, cell.carry_low, cell.carry_high) == ("requests", cell.interval_low, cell.interval_high)
    assert {one.verdict for one in found.rates} == {"insufficient"}, "nothing says how a rate varies"


def test_how_far_it_carries_stands_beside_the_error_on_this_workload(tmp_path: Path) -> None:
    """Requests that differ greatly, repeats that do not: sure about this workload, and not about another."""
    rng = np.random.default_rng(3)
    whole = Recipe(
        [
            Request(i * 10 * MS, (i * 10 * MS + ttft, i * 10 * MS + 2 * ttft))
            for i, ttft in enumerate(rng.integers(MS, 90 * MS, 100).tolist())
        ]
    )
    fast = replace(
        whole, requests=[r if i % 2 else Recipe([r]).scaled(0.8).requests[0] for i, r in enumerate(whole.requests)]
    )
    cell = _cell(_compare(tmp_path, [_jittered(whole, seed) for seed in range(5)], {"calibrated": fast}), "TTFT P50")
    assert cell.carry_high - cell.carry_low > 3 * (cell.interval_high - cell.interval_low)


def test_repeats_that_drift_widen_the_interval_and_are_said_to(tmp_path: Path) -> None:
    recipe = steady(40, 3)
    order = (0, 1, 2, 3, 4)
    found, mixed = (
        _compare(tmp_path / name, [recipe.scaled(1 + 0.01 * k) for k in taken], {"calibrated": recipe})
        for name, taken in (("drift", order), ("mixed", (2, 0, 4, 1, 3)))
    )
    one, other = _cell(found, "E2E P50"), _cell(mixed, "E2E P50")
    assert one.drifts and not other.drifts and one.relative_error == pytest.approx(other.relative_error)
    assert one.interval_high - one.interval_low > 1.5 * (other.interval_high - other.interval_low)
    assert "the repeats drift" in one.reason


def test_seeds_are_part_of_the_interval(tmp_path: Path) -> None:
    recipe = steady(40, 3)
    reals = [load_run(write_real(tmp_path / f"r{k}", recipe), "real") for k in range(5)]

    def seeded(seed: int, factor: float) -> Any:
        params = {"simulation": {"seed": seed}}
        made = recipe.scaled(factor).with_meta(params=params)
        return load_run(write_simulation(tmp_path / f"s{seed}-{factor}", made), "vidur")

    first = seeded(0, 1.0)
    exact = compare(reals, {"calibrated": first}, bands=BANDS)
    found = compare(
        reals, {"calibrated": first}, bands=BANDS, further_seeds={"calibrated": [seeded(1, 1.02), seeded(2, 1.04)]}
    )
    cell = _cell(found, "TTFT P50")
    assert cell.relative_error == pytest.approx(0.02), "the median of the seeds"
    assert cell.interval_low < 0 and cell.interval_high > 0.04
    assert _cell(exact, "TTFT P50").interval_low == _cell(exact, "TTFT P50").interval_high == 0
    assert "the intervals include three seeds of the simulation" in found.answer.sentence
    with pytest.raises(ComparisonError, match="are both of variant 'calibrated' with seed 1"):
        compare(
            reals, {"calibrated": first}, bands=BANDS, further_seeds={"calibrated": [seeded(1, 1.1), seeded(1, 1.2)]}
        )


def test_throughput_and_goodput_by_hand(tmp_path: Path) -> None:
    """Thirty requests of three tokens and 8 prompt tokens, from 0 to 290 + 28 ms; the simulation is later by 4 ms and
    meets the level as well."""
    level = ServiceLevel(ttft_ns=25 * MS)
    bands = Bands(service_level=level)
    real, sim = steady(30, 3), steady(30, 3, ttft_ns=24 * MS)
    slow = replace(
        real,
        requests=[
            replace(r, token_ns=tuple(t + 10 * MS * (i < 15) for t in r.token_ns)) for i, r in enumerate(real.requests)
        ],
    )
    found = _compare(tmp_path, [real] * 5, {"kernels": slow, "calibrated": sim}, bands=bands)
    rates = {(one.metric, one.variant): one for one in found.rates}
    requests = rates["requests_per_s", "calibrated"]
    assert (requests.real_per_s, requests.sim_per_s) == pytest.approx((30 / 0.318, 30 / 0.322))
    assert rates["input_tokens_per_s", "calibrated"].real_per_s == pytest.approx(240 / 0.318)
    assert rates["output_tokens_per_s", "calibrated"].real_per_s == pytest.approx(90 / 0.318)
    goodput = rates["goodput_per_s", "kernels"]
    assert goodput.relative_error == pytest.approx(-0.5) and goodput.verdict == "fail"
    assert rates["goodput_per_s", "calibrated"].verdict == "pass"
    validate(RateErrors, found.rate_errors, "frame")
    assert [one.name for one in found.answers["kernels"].rates][-1] == "goodput, requests/s"


# --- gates ------------------------------------------------------------------------------------------------------------


def test_marks_count_for_the_variant_they_belong_to(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    off = recipe.with_meta(simulated_settings={**ENGINE_SETTINGS, "async_scheduling": True})
    found = _compare(tmp_path, [recipe] * 5, {"kernels": off, "calibrated": recipe})
    assert found.verdict.outcome == "pass" and not found.marks
    assert found.answers["kernels"].verdict == "warn" and "async_scheduling" in found.answers["kernels"].marks[0]
    assert "setting async_scheduling: engine False, simulated with True (kernels)" in found.notes
    severities = found.gate_checks.set_index("check").loc["settings", "severity"]
    assert severities == "note"


def test_settings_that_differ_are_listed_and_mark_the_comparison(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    assumed = {**ENGINE_SETTINGS, "num_kv_blocks": 512, "dtype": None}
    found = _compare(
        tmp_path, [recipe], {"kernels": recipe, "calibrated": recipe.with_meta(simulated_settings=assumed)}
    )
    parity = found.settings_parity.set_index(["variant", "setting"])["parity"]
    assert parity["calibrated", "num_kv_blocks"] == "differs"
    assert parity["calibrated", "dtype"] == "not_recorded"
    assert (parity["kernels"] == "equal").all() and len(parity) == 2 * len(COMPARED_SETTINGS)
    assert found.marks == (
        "setting num_kv_blocks: engine 1024, simulated with 512 (calibrated)",
        "setting dtype: engine bfloat16, not recorded by the simulation, so parity is unknown (calibrated)",
    )
    assert found.verdict.outcome == "warn", "identical latencies, yet marked"


def test_an_engine_with_another_scheduler_than_the_simulated_one_marks_the_comparison(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    reported = {
        **ENGINE_SETTINGS,
        "scheduling_policy": "transformers_fifo",
        "backend": "transformers",
        "engine_version": "5",
        "max_model_len": 2048,
        "attention_backend": "CPU_ATTN",
    }
    found = _compare(tmp_path, [recipe.with_meta(engine_settings=reported)], {"calibrated": recipe})
    assert found.marks == ("setting scheduling_policy: engine transformers_fifo, simulated with vllm_v1 (calibrated)",)
    assert found.verdict.outcome == "warn"


def test_settings_that_differ_between_repeats(tmp_path: Path) -> None:
    recipe = steady(2, 2)
    reported = {
        **ENGINE_SETTINGS,
        "num_kv_blocks": 999,
        "backend": "vllm",
        "engine_version": "0.32.0",
        "max_model_len": 2048,
        "attention_backend": "CPU_ATTN",
    }
    found = _compare(tmp_path, [recipe, recipe.with_meta(engine_settings=reported)], {"calibrated": recipe})
    assert found.marks == ("setting num_kv_blocks: engine 1024 / 999, simulated with 1024 (calibrated)",)


def test_a_degraded_run_marks_the_comparison(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    late = recipe.with_meta(degraded=True, lateness_ns={"p50": 1, "p99": 7 * MS, "max": 9 * MS})
    found = _compare(tmp_path, [recipe, late], {"calibrated": recipe})
    assert found.marks == ("real run r1 is degraded, send lateness P99 7.0 ms",)
    assert found.verdict.outcome == "warn"


def test_a_mark_does_not_hide_a_failure(tmp_path: Path) -> None:
    recipe = steady(100, 3).with_meta(degraded=True)
    assert _compare(tmp_path, [recipe], {"calibrated": steady(100, 3).scaled(2)}).verdict.outcome == "fail"


def test_notes(tmp_path: Path) -> None:
    whole = steady(40, 3)
    lost = [
        Request(one.arrival_ns, (), asked=3, status="error" if i else "ok") for i, one in enumerate(whole.requests[:2])
    ]
    stopped = Request(whole.requests[2].arrival_ns, whole.requests[2].token_ns[:2], asked=3)
    real = Recipe([*lost, stopped, *whole.requests[3:]])
    found = _compare(
        tmp_path,
        [real.with_meta(num_bunched_messages=4, warmup={}, lateness_ns={})],
        {"calibrated": whole.with_meta(num_preemptions=2)},
        calibration_sha256=None,
    )
    notes = "\n".join(found.notes)
    assert "real run r0: 1 failed and 1 gave no token, of 40 requests; left out on both sides" in notes
    assert "4 messages carried more than one token" in notes
    assert "1 of 38 requests stopped early" in notes
    assert "simulation calibrated: 2 preemptions, real unknown" in notes
    assert "one real repeat only" in notes
    assert "not checked that this workload is held out" in notes
    assert len(found.notes) == 6
    assert found.marks == ("real run r0 does not state how late requests were sent or whether it was warmed up",)


def test_many_failures_and_early_stops_mark_the_comparison(tmp_path: Path) -> None:
    real = Recipe([Request(0, (5, 6), asked=3), Request(1, (), asked=3, status="error"), Request(2, (), asked=3)])
    sim = Recipe([Request(i, (5, 6, 7)) for i in range(3)])
    marks = "\n".join(_compare(tmp_path, [real], {"calibrated": sim}).marks)
    assert "1 failed and 1 gave no token, of 3" in marks and "1 of 1 requests stopped early" in marks


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine_settings": {"transport": "http"}}, "tokens came over http, whose time is in every real latency"),
        ({"engine_settings": {"not_read_back": ["block_size", "engine_version"]}}, "block_size as the scenario states, not read back"),
        ({"engine_settings": {"not_told": ["lora", "stream_interval"]}}, "lora, stream_interval not verified: the server does not report them"),
        ({"hardware": {**HARDWARE, "stated": True}}, "hardware cpu is as the scenario states, not detected"),
        ({"warmup": {"num_requests": 0}}, "was measured without warm-up"),
        ({"lateness_ns": {"p50": 2 * MS}}, "late by P50 2.00 ms, 10.0 % of TTFT P50, which is beyond the pass band by itself"),
        ({"degraded": True, "degraded_reasons": ["the CPU was shared"]}, "is degraded: the CPU was shared"),
    ],
)  # fmt: skip
def test_what_else_marks_a_comparison(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    recipe = steady(100, 3)
    if "engine_settings" in changes:
        usual = {"backend": "vllm", "engine_version": "1", "max_model_len": 9, "attention_backend": "CPU_ATTN"}
        changes = {"engine_settings": {**ENGINE_SETTINGS, **usual, **changes["engine_settings"]}}
    found = _compare(tmp_path, [recipe.with_meta(**changes)], {"calibrated": recipe})
    assert len(found.marks) == 1 and says in found.marks[0]
    assert found.verdict.outcome == "warn", "identical latencies, yet marked"


def test_another_tensor_parallel_degree_marks_a_comparison_where_both_sides_state_one(tmp_path: Path) -> None:
    recipe = steady(100, 3)
    usual = {"backend": "vllm", "engine_version": "1", "max_model_len": 9, "attention_backend": "CPU_ATTN"}
    server = {**usual, "backend": "openai", "scheduling_policy": ENGINE_SETTINGS["scheduling_policy"]}

    def marks(of: str, real: dict[str, Any], degree: int | None) -> tuple[str, ...]:
        assumed = {**ENGINE_SETTINGS, **({} if degree is None else {"tensor_parallel_size": degree})}
        measured = recipe.with_meta(engine_settings={**ENGINE_SETTINGS, **real})
        return tuple(
            _compare(tmp_path / of, [measured], {"kernels": recipe.with_meta(simulated_settings=assumed)}).marks
        )

    assert marks("a", {**usual, "tensor_parallel_size": 2}, 1) == (
        "tensor parallel degree: engine 2, simulated with 1 (kernels)",
    )
    assert marks("b", usual, 2) == ("tensor parallel degree: engine 1, simulated with 2 (kernels)",)
    for name, (real, degree) in enumerate([({**usual, "tensor_parallel_size": 2}, 2), (server, 2), (usual, None)]):
        assert marks(f"same {name}", real, degree) == ()


@pytest.mark.parametrize(
    ("engine", "simulated", "says"),
    [
        (None, 2, "not stated by real run r0; engine not stated, simulated 2 (kernels)"),
        (2, None, "not stated by simulation kernels; engine 2, simulated not stated (kernels)"),
        (None, 1, None),
        (1, None, None),
        (2, 2, None),
        (None, None, None),
    ],
)
def test_a_degree_that_one_side_does_not_state_is_a_note_beside_several_devices(
    tmp_path: Path, engine: int | None, simulated: int | None, says: str | None
) -> None:
    recipe = steady(100, 3)
    server = {
        **ENGINE_SETTINGS, "backend": "openai", "engine_version": "1", "max_model_len": 9, "attention_backend": "CPU_ATTN",
        **({} if engine is None else {"tensor_parallel_size": engine}),
    }  # fmt: skip
    assumed = {**ENGINE_SETTINGS, **({} if simulated is None else {"tensor_parallel_size": simulated})}
    real, sim = recipe.with_meta(engine_settings=server), recipe.with_meta(simulated_settings=assumed)
    found = _compare(tmp_path, [real], {"kernels": sim})
    assert found.marks == ()
    told = [note for note in found.notes if note.startswith("tensor parallel degree")]
    assert told == ([] if says is None else [f"tensor parallel degree {says}"])


_MIXTURE = {"simulation": {}, "model": {"geometry": {"num_experts": 8}}}
_TWO = {"tensor_parallel_size": 2}


@pytest.mark.parametrize(
    ("engine", "simulated", "mark", "note"),
    [
        ({}, {}, None, None),
        ({}, {"attention_backend": "B"}, "attention kernels: engine CPU_ATTN, profile measured with B (kernels)", None),
        ({"attention_backend": "unknown"}, {}, None, "attention kernels: engine not recorded, profile measured with CPU_ATTN (kernels)"),
        ({}, {"attention_backend": None}, None, "attention kernels: engine CPU_ATTN, profile measured with not recorded (kernels)"),
        ({"expert_kernel": "A"}, {"expert_kernel": "A"}, None, None),
        ({"expert_kernel": "A"}, {"expert_kernel": "B"}, "kernel of the experts: engine A, profile measured with B (kernels)", None),
        ({}, {"expert_kernel": "B"}, None, "kernel of the experts: engine not recorded, profile measured with B (kernels)"),
        ({"expert_kernel": "A"}, {}, None, "kernel of the experts: engine A, profile measured with not recorded (kernels)"),
        ({"params": _MIXTURE}, {}, None, "kernel of the experts: engine not recorded, profile measured with not recorded (kernels)"),
        ({**_TWO, "all_reduce": "custom,nccl"}, {**_TWO, "all_reduce": "custom,nccl"}, None, None),
        ({**_TWO, "all_reduce": "custom,nccl"}, {**_TWO, "all_reduce": "nccl"}, "ways of the all-reduce: engine custom,nccl, profile measured with nccl (kernels)", None),
        (_TWO, _TWO, None, "ways of the all-reduce: engine not recorded, profile measured with not recorded (kernels)"),
        ({"quantization": "fp8"}, {"quantized_kernels": "A"}, None, "kernels of quantised weights: engine not recorded, profile measured with A (kernels)"),
        ({"quantized_kernels": "A"}, {"quantized_kernels": "B"}, "kernels of quantised weights: engine A, profile measured with B (kernels)", None),
    ],
)  # fmt: skip
def test_other_kernels_than_the_profiles_mark_a_comparison_and_unknown_ones_are_noted(
    tmp_path: Path, engine: dict[str, Any], simulated: dict[str, Any], mark: str | None, note: str | None
) -> None:
    recipe, usual = steady(100, 3), {"backend": "vllm", "engine_version": "1", "max_model_len": 9}
    reported = {**ENGINE_SETTINGS, **usual, "attention_backend": "CPU_ATTN", **engine}
    real = recipe.with_meta(**({"params": reported.pop("params")} if "params" in engine else {}))
    assumed = {**ENGINE_SETTINGS, "attention_backend": "CPU_ATTN", **simulated}
    sim = recipe.with_meta(simulated_settings=assumed)
    found = _compare(tmp_path, [real.with_meta(engine_settings=reported)], {"kernels": sim})
    assert found.marks == ((mark,) if mark else ())
    assert [one for one in found.notes if "profile measured with" in one] == ([note] if note else [])
    rows = found.gate_checks.set_index("check")
    assert rows.loc["attention kernels", "severity"] in ("ok", "mark", "note"), "what was looked at stands in its table"


def test_a_repeat_that_does_not_record_its_kernels_leaves_them_unknown(tmp_path: Path) -> None:
    recipe, usual = steady(100, 3), {"backend": "vllm", "engine_version": "1", "max_model_len": 9}
    reported = {**ENGINE_SETTINGS, **usual, "attention_backend": "CPU_ATTN"}
    reals = [recipe.with_meta(engine_settings=reported | more) for more in ({"expert_kernel": "A"}, {})]
    sims = {
        name: recipe.with_meta(
            simulated_settings={**ENGINE_SETTINGS, "attention_backend": "CPU_ATTN", "expert_kernel": kernel}
        )
        for name, kernel in (("kernels", "A"), ("calibrated", "B"))
    }
    found = _compare(tmp_path, reals, sims)
    assert found.marks == ("kernel of the experts: engine A / not recorded, profile measured with B (calibrated)",)
    assert "kernel of the experts: engine A / not recorded, profile measured with A (kernels)" in found.notes


def test_engines_that_state_no_settings_state_no_degree(tmp_path: Path) -> None:
    """As of imported results: those of two repeats are named."""
    recipe, folder = steady(100, 3), tmp_path / "silent"
    sim = recipe.with_meta(simulated_settings={**ENGINE_SETTINGS, "tensor_parallel_size": 2})
    reals = []
    for name in ("r0", "r1"):
        path = write_real(folder / name, recipe) / "run_meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"engine_settings": None}))
        reals.append(load_run(path.parent, "real"))
    simulations = {"kernels": load_run(write_simulation(folder / "sim", sim, "kernels"), "vidur")}
    found = compare(reals, simulations, bands=BANDS, calibration_sha256=set())
    assert (
        "tensor parallel degree not stated by real run r0, real run r1; engine not stated, simulated 2 (kernels)"
        in found.notes
    )


def test_a_simulation_from_a_bundle_that_counted_the_gpus_of_its_host_compares(tmp_path: Path) -> None:
    """Eight were there, one was used. The runs of today say one."""
    gpu = {"hardware_id": "h100", "device_name": "NVIDIA H100", "device_count": 1}
    recipe = steady(100, 3).with_meta(hardware=gpu, params={"engine": {"backend": "vllm"}})
    real, sim = write_real(tmp_path / "r0", recipe), write_simulation(tmp_path / "s", recipe, "kernels")
    old_real = write_real(tmp_path / "r1", recipe)
    for directory in (sim, old_real):
        path = directory / "run_meta.json"
        path.write_text(path.read_text().replace('"device_count": 1', '"device_count": 8'))
    reals, simulations = [load_run(one, "real") for one in (real, old_real)], {"kernels": load_run(sim, "vidur")}
    found = compare(reals, simulations, bands=BANDS, calibration_sha256=set())
    assert found.marks == ()
    devices = found.gate_checks.set_index("check").loc["hardware"]
    assert (devices["real"], devices["simulated"]) == ("1 x NVIDIA H100 (h100)",) * 2


def test_a_clean_comparison_has_no_note(tmp_path: Path) -> None:
    real = replace(steady(100, 2), columns={"num_preemptions": [0] * 100})
    found = _compare(tmp_path, [real] * 2, {"calibrated": steady(100, 2)})
    assert found.notes == () and found.marks == ()
    assert {one.severity for one in found.checks} == {"ok"} and len(found.checks) > 20


@pytest.mark.parametrize(
    "digest",
    [
        WORKLOAD_SHA256["trace_lengths.csv"],
        "wl-0000000000000001",
        # As the profiler states it: (prompt, output) lengths and arrivals since the first request.
        workload_digest([(8, 2), (8, 2)], [0, 10 * MS]),
    ],
)
def test_a_calibration_workload_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ComparisonError, match=r"workload wl-0000000000000001 .* is one the profile was calibrated on"):
        _compare(tmp_path, [steady(2, 2)], {"calibrated": steady(2, 2)}, calibration_sha256={digest})


@pytest.mark.parametrize("key", ["hardware_id", "device_name"])
def test_simulated_for_other_hardware(tmp_path: Path, key: str) -> None:
    other = {**HARDWARE, key: "other"}
    with pytest.raises(
        ComparisonError,
        match=r"run r0 was measured on 1 x Test CPU \(cpu\), run s-calibrated was simulated for 1 x .*other",
    ):
        _compare(tmp_path, [steady(2, 2)], {"calibrated": steady(2, 2).with_meta(hardware=other)})


def test_repeats_of_two_machines(tmp_path: Path) -> None:
    other = steady(2, 2).with_meta(hardware={**HARDWARE, "device_name": "Other CPU"})
    with pytest.raises(
        ComparisonError, match=r"run r1 was measured on 1 x Other CPU \(cpu\). Repeats must come from one machine"
    ):
        _compare(tmp_path, [steady(2, 2), other], {"calibrated": steady(2, 2)})


def test_another_model(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="run r0 is of model qwen3-tiny, run s-calibrated of model other"):
        _compare(tmp_path, [steady(2, 2)], {"calibrated": steady(2, 2).with_meta(model="other")})


def test_other_weights_of_the_model_of_one_name(tmp_path: Path) -> None:
    """A run says so by the setting, and that it has none by leaving it out."""
    of = {name: steady(2, 2).with_meta(params={"model": {"dtype": "bfloat16", **more}}) for name, more in
          (("none", {}), ("fp8", {"quantization": "fp8"}))}  # fmt: skip
    with pytest.raises(ComparisonError, match=r"run r0 is of model\.quantization fp8, run s-calibrated of none"):
        _compare(tmp_path / "a", [of["fp8"]], {"calibrated": of["none"]})
    with pytest.raises(ComparisonError, match=r"run r0 is of model\.quantization none, run r1 of fp8"):
        _compare(tmp_path / "b", [of["none"], of["fp8"]], {"calibrated": of["none"]})
    _compare(tmp_path / "c", [of["fp8"]], {"calibrated": of["fp8"]})
    _compare(tmp_path / "d", [of["fp8"]], {"calibrated": steady(2, 2)})  # does not state its dtype either


def test_repeats_of_two_workloads(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="run r0 is of workload wl-0000000000000001, run r1 of workload wl-2"):
        _compare(tmp_path, [steady(2, 2), steady(2, 2).with_meta(workload_id="wl-2")], {"calibrated": steady(2, 2)})


def test_one_run_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="real run r0 is given more than once"):
        _compare(tmp_path, [steady(2, 2), steady(2, 2).with_meta(run_id="r0")], {"calibrated": steady(2, 2)})


def test_a_variant_under_another_name(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="is of variant 'kernels', but was given as 'calibrated'"):
        _compare(tmp_path, [steady(2, 2)], {"calibrated": steady(2, 2).with_meta(variant="kernels")})


def test_a_side_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="no real run given"):
        _compare(tmp_path / "a", [], {"calibrated": steady(1, 1)})
    with pytest.raises(ComparisonError, match="no simulation given"):
        _compare(tmp_path / "b", [steady(1, 1)], {})
