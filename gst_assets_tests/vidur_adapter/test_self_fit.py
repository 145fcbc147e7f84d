"""A bundle against calibration traffic: what was made with it fits, and a wrong part of a step is reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gst_assets.contracts.csv_files import write_csv
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.contracts.tables import CalibrationTraffic, SelfFit, validate
from gst_assets.errors import ProfileError
from gst_assets.profiling.traffic import segments
from gst_assets.scenario import load_scenario
from gst_assets.scenario.profile_section import SHARED_TRAFFIC
from gst_assets.step_costs.bundle import Bundle
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter import self_fit
from gst_assets.vidur_adapter.self_fit import BAND, misfits
from gst_assets.vidur_adapter.simulate import simulate
from gst_assets_tests.gst_command import run_gst

MS = 1_000_000
SCENARIO = support.scenario()
ROUNDS = 3
HOST, DEVICE = ("prepare", "launch", "process"), ("device",)
Change = Callable[[pd.DataFrame], pd.DataFrame]


def overheads(bound_by: str) -> list[dict[str, Any]]:
    """Terms of an engine whose steps take as long as its device or its host needs."""
    times = 1 if bound_by == "device" else 8
    return [{**row, "ns": row["ns"] * (times if row["term"] in HOST else 1)} for row in support.default_overheads()]


def requests_of(stretch: str, seed: int) -> list[tuple[int, int, int]]:
    """40 requests at 20/s, or 30 at once."""
    rng = np.random.default_rng(seed)
    number = 30 if stretch.endswith("burst") else 40
    gaps = np.zeros(number) if number == 30 else rng.exponential(50 * MS, number)
    return list(
        zip(
            gaps.astype(int).tolist(),
            rng.integers(16, 400, number).tolist(),
            rng.integers(1, 60, number).tolist(),
            strict=True,
        )
    )


@cache
def bundle(bound_by: str, *, is_async: bool = True, hardware_id: str = "h200") -> Bundle:
    """A bundle whose traffic was simulated with it, on a host with slow moments; each stretch with its number as
    seed."""
    slow = [(at * MS, part, 1.0 + (at // 250) % 3 / 10) for at in range(0, 6000, 25) for part in support.SPEED_PARTS]
    made = support.bundle(
        SCENARIO, overheads=overheads(bound_by), host_speed=support.speed_table(slow), hardware_id=hardware_id,
        async_scheduling=is_async,
    )  # fmt: skip
    stretches = [f"round {turn} {sort}" for turn in range(ROUNDS) for sort in ("traffic 20/s", "burst")]
    frames = [simulated_traffic(made, stretch, seed) for seed, stretch in enumerate(stretches)]
    return dataclasses.replace(made, traffic=validate(CalibrationTraffic, pd.concat(frames, ignore_index=True), "t"))


def simulated_traffic(made: Bundle, stretch: str, seed: int) -> pd.DataFrame:
    """The rows of calibration_traffic.csv of one stretch, by `simulate`."""
    of = support.scenario(f"simulation.seed={seed}")
    lengths, intervals = support.workload(requests_of(stretch, seed))
    result = simulate(of, lengths, intervals, made, "calibrated", cache_dir=None)
    gaps = result.tokens[result.tokens["token_index"] > 0].groupby("request_id")["token_latency_ns"]
    table = result.requests[["request_id", "arrival_time_ns", "num_prefill_tokens", "num_decode_tokens", "ttft_ns"]]
    table = table.assign(e2e_ns=result.requests["completion_time_ns"] - table["arrival_time_ns"])
    for percent in (50, 90):
        found = gaps.apply(lambda each, percent=percent: round(np.percentile(each.to_numpy(dtype=float), percent)))
        table[f"itl_p{percent}_ns"] = table["request_id"].map(found).astype("Int64")
    table.insert(0, "stretch", stretch)
    return table


def fitted(made: Bundle, change: Change = lambda table: table) -> pd.DataFrame:
    """self_fit.csv of the bundle, its overheads changed."""
    assert made.overheads is not None and made.host_speed is not None and made.traffic is not None
    tables = {
        "overheads.csv": change(made.overheads),
        "host_speed.csv": made.host_speed,
        "calibration_traffic.csv": made.traffic,
    }
    is_host = made.meta.hardware.hardware_id == "cpu"
    found = self_fit.self_fit(tables, made.meta.engine_settings, device_is_host=is_host)
    return validate(SelfFit, found, "self_fit.csv")


def times(factor: float, *terms: str) -> Change:
    """These terms so many times as long."""
    return lambda table: table.assign(ns=table["ns"].where(~table["term"].isin(terms), table["ns"] * factor))


@pytest.mark.parametrize(
    ("bound_by", "is_async", "hardware_id"),
    [("device", True, "h200"), ("host", True, "h200"), ("device", False, "cpu")],
)
def test_a_bundle_fits_traffic_made_with_it(bound_by: str, is_async: bool, hardware_id: str) -> None:
    made = bundle(bound_by, is_async=is_async, hardware_id=hardware_id)
    table = fitted(made)
    assert misfits(table) == []
    # To the nanosecond, since both simulate the same: but for the rounding of gaps in the traffic's table.
    assert table["relative_error"].tolist() == [0.0] * 12
    assert (table["simulated_ns"] - table["measured_ns"]).abs().max() <= 1
    assert list(zip(table["traffic"], table["num_requests"], strict=True))[:1] == [("traffic 20/s", 40 * ROUNDS)]
    assert sorted(set(zip(table["traffic"], table["metric"], table["statistic"], strict=True))) == [
        (sort, metric, statistic)
        for sort in ("burst", "traffic 20/s")
        for metric in ("e2e", "itl", "ttft")
        for statistic in ("p50", "p90")
    ]


def test_traffic_whose_prompts_begin_alike_is_left_out() -> None:
    """The table does not say what they share, so it would be simulated as if they shared nothing."""
    made = bundle("device")
    assert made.traffic is not None
    shared = made.traffic.assign(stretch=made.traffic["stretch"].str.replace("traffic 20/s", "shared traffic 20/s"))
    assert set(fitted(dataclasses.replace(made, traffic=shared))["traffic"]) == {"burst"}
    of_segments = {one.name for one in segments(load_scenario("h100_8b_prefix"), 0) if one.has_shared_prefixes}
    assert of_segments and all(SHARED_TRAFFIC in name for name in of_segments)


def cells(table: pd.DataFrame, metric: str) -> dict[tuple[str, str], float]:
    """Relative errors of what does not fit, by traffic and statistic."""
    wrong = table[~table["fits"] & (table["metric"] == metric)]
    return dict(zip(zip(wrong["traffic"], wrong["statistic"], strict=True), wrong["relative_error"], strict=True))


def test_a_device_that_is_a_tenth_too_slow_is_told() -> None:
    table = fitted(bundle("device"), times(1.1, *DEVICE))
    assert cells(table, "itl")["traffic 20/s", "p50"] == pytest.approx(0.1, abs=0.02)
    assert cells(table, "e2e")["burst", "p50"] == pytest.approx(0.1, abs=0.03)
    assert any(told.startswith("ITL P50 of calibration's traffic 20/s: simulated +") for told in misfits(table))


def test_a_host_that_is_twice_too_slow_is_told() -> None:
    table = fitted(bundle("host"), times(2.0, *HOST))
    assert cells(table, "itl")["traffic 20/s", "p50"] > 0.7
    assert cells(table, "ttft").keys() >= {("traffic 20/s", "p50"), ("burst", "p50")}
    # Where the device decides, the host's parts still stand before a first token.
    assert cells(fitted(bundle("device"), times(4.0, *HOST)), "ttft").keys() >= {("traffic 20/s", "p50")}


def test_a_part_that_hides_behind_another_is_not_told() -> None:
    assert cells(fitted(bundle("host"), times(1.1, *DEVICE)), "itl") == {}


def test_an_error_within_the_rounds_own_spread_fits_and_one_within_the_band_does() -> None:
    made = bundle("device")
    assert made.traffic is not None
    # The rounds disagree by a fifth, beyond what any simulation could follow.
    turn = made.traffic["stretch"].str.split().str[1].astype(int)
    unsteady = made.traffic.copy()
    for name in ("ttft_ns", "e2e_ns", "itl_p50_ns", "itl_p90_ns"):
        unsteady[name] = (unsteady[name].astype("Float64") * (1 + (turn - 1) / 5)).round().astype("Int64")
    table = fitted(dataclasses.replace(made, traffic=unsteady), times(1.1, *DEVICE))
    assert table["spread"].min() > 0.2
    assert misfits(table) == []
    inside = fitted(made, times(1 + 0.5 * BAND, *DEVICE))
    itl = inside[inside["metric"] == "itl"]
    assert itl["fits"].all() and itl["relative_error"].min() > 0


def test_misfits_are_told_worst_first() -> None:
    rows = [("traffic 8/s", "ttft", "p50", 0.04), ("burst", "e2e", "p90", -0.3), ("traffic 8/s", "itl", "p50", 0.01)]
    table = pd.DataFrame(rows, columns=["traffic", "metric", "statistic", "relative_error"])
    table["fits"] = table["relative_error"].abs() <= BAND
    assert misfits(table) == [
        "E2E P90 of calibration's burst: simulated -30.0%",
        "TTFT P50 of calibration's traffic 8/s: simulated +4.0%",
    ]


def test_a_missing_term_is_named() -> None:
    with pytest.raises(ProfileError, match=r"overheads\.csv: no process rows"):
        fitted(bundle("device"), lambda table: table[table["term"] != "process"])


# --- the command ------------------------------------------------------------------------------------------------------


def written(directory: Path, made: Bundle, **changed: pd.DataFrame | None) -> Path:
    """The bundle on disk; None leaves a table out."""
    tables: dict[str, Any] = {
        "mlp": made.mlp, "attention": made.attention, "overheads": made.overheads, "host_speed": made.host_speed,
        "calibration_traffic": made.traffic,
    } | changed  # fmt: skip
    directory.mkdir(parents=True)
    for name, frame in tables.items():
        if frame is not None:
            write_csv(frame, directory / f"{name}.csv")
    meta = made.meta.model_copy(update={"sha256": directory_digests(directory, Kind.PROFILE.meta_name)})
    write_document(meta, directory / Kind.PROFILE.meta_name)
    return directory


def test_the_command_prints_the_table_and_what_does_not_fit(tmp_path: Path) -> None:
    made = bundle("device")
    assert made.overheads is not None
    done = run_gst("self-fit", written(tmp_path / "fits", made))
    assert done.exit_code == 0
    out = done.stdout
    assert out.endswith("everything fits\n") and "traffic 20/s" in out and "relative_error" in out
    slower = written(tmp_path / "slower", made, overheads=times(1.1, *DEVICE)(made.overheads))
    done = run_gst("self-fit", slower)
    assert done.exit_code == 1 and "\nITL P50 of calibration's traffic 20/s: simulated +" in done.stdout


def test_the_command_names_what_it_cannot_do_in_one_line(tmp_path: Path) -> None:
    without = written(tmp_path / "without", bundle("device"), calibration_traffic=None)
    for directory, says in (
        (without, f"error: {without}: a bundle without calibration has nothing to be compared with."),
        (tmp_path / "absent", f"error: {tmp_path / 'absent'}"),
    ):
        done = run_gst("self-fit", directory)
        assert (
            done.exit_code == 1 and done.stdout == "" and done.stderr.startswith(says) and done.stderr.count("\n") == 1
        )
