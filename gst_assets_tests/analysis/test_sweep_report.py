"""Pareto-optimal points against another implementation, and a report that says what limits it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paretoset import paretoset

from gst_assets.analysis.sweep_report import (
    caption,
    highest_rates,
    pareto,
    pareto_figure,
    summary_table,
    sweep_table,
    write_sweep,
)
from gst_assets.contracts.tables import SweepPoints, validate
from gst_assets.errors import ContractError
from gst_assets.scenario import HighestRate, load_scenario
from gst_assets.testing.browser import browser_page

SCENARIO = load_scenario("h100_8b_sweep")
COORDINATE = st.integers(1, 6).map(float)


@settings(deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=12))
def test_the_optimal_points_are_those_of_another_implementation(points: list[tuple[float, float]]) -> None:
    throughput, latency = np.array(points).T
    expected = paretoset(np.array(points), sense=["max", "min"], distinct=False, use_numba=False)
    assert pareto(throughput, latency).tolist() == expected.tolist()


def test_a_point_without_a_latency_is_neither_optimal_nor_in_the_way() -> None:
    assert pareto(np.array([9.0, 1.0]), np.array([np.nan, 5.0])).tolist() == [False, True]


def row(tokens_per_s: float, latency_ns: float, **changes: Any) -> dict[str, Any]:
    """A row of `vidur_adapter.sweep.point`."""
    latencies = {f"{name}_{p}_ns": latency_ns for name in ("ttft", "itl", "e2e") for p in ("p50", "p90", "p99")}
    fixed = {
        "rate_per_s": 4.0,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "num_kv_blocks": 99,
        "variant": "kernels",
        "num_requests": 1000,
        "makespan_ns": 10**9,
        "requests_per_s": 10.0,
        "output_tokens_per_s": tokens_per_s,
        "goodput_per_s": None,
        "scheduling_delay_p99_ns": 0.0,
        "num_preemptions": 0,
        "steps_outside_calibration": None,
        "p99_sufficient": True,
        "level_share": None,
    }
    return fixed | latencies | changes


def test_the_directory_is_written_with_the_same_bytes_and_marks_the_optimal(tmp_path: Path) -> None:
    frame = sweep_table([row(10, 5e6), row(20, 5e6, max_num_seqs=16), row(30, 9e6, goodput_per_s=2.5)])
    validate(SweepPoints, frame, "sweep.csv")
    assert frame["pareto_ttft"].tolist() == [False, True, True]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_sweep(frame, SCENARIO, tmp_path / name)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {"sweep.csv", "pareto.png", "report.html", "summary.md"}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    lines = summary_table(frame, most=3).splitlines()
    assert "**5 / 5 / 5**" in lines[3] and "**" not in lines[2] and "| 2.50 |" in lines[4]
    with pytest.raises(ContractError, match=r"sweep\.csv: row 0, column makespan_ns: found 0, expected more than 0"):
        write_sweep(frame.assign(makespan_ns=pd.array([0, 1, 1], dtype="Int64")), SCENARIO, tmp_path)


def test_every_point_of_the_figure_tells_its_rate_and_every_axis_what_it_is() -> None:
    rows = [row(10 * rate, 5e6 * rate, rate_per_s=rate, max_num_seqs=seqs) for seqs in (8, 16) for rate in (2.0, 4.5)]
    figure = pareto_figure(sweep_table(rows))
    assert [axes.get_ylabel() for axes in figure.axes] == ["TTFT P99 [ms]", "ITL P99 [ms]", "E2E P99 [ms]"]
    assert figure.axes[-1].get_xlabel() == "output tokens/s"
    for axes in figure.axes:
        assert sorted(one.get_text() for one in axes.texts) == ["2/s", "2/s", "4.5/s", "4.5/s"]


def many(count: int) -> pd.DataFrame:
    """As many points under settings of their own; every tenth is optimal."""
    return sweep_table([row(10 + n // 10 * 10, 1e6 * (n + 1), max_num_seqs=n + 1) for n in range(count)])


def test_a_figure_of_many_points_names_those_optimal_ones_that_have_room() -> None:
    frame = many(400)
    figure = pareto_figure(frame)
    for axes in figure.axes:
        names = [one.get_text() for one in axes.texts]
        assert 10 <= len(names) <= 17 and {int(name.removeprefix("#")) % 10 for name in names} == {1}
        assert [len(line.get_xdata()) for line in axes.lines] == [400, 40]
    assert "some of the optimal ones with their numbers" in caption(frame)
    lines = summary_table(frame, most=200).splitlines()
    assert lines[0] == "40 of 400 points are Pareto-optimal in some latency. All are in sweep.csv and report.html."
    assert [line.split(" | ")[0] for line in lines[4:]] == [f"| {n}" for n in range(1, 401, 10)]


def test_the_page_names_every_point_with_all_its_settings(tmp_path: Path) -> None:
    write_sweep(many(300), SCENARIO, tmp_path)
    text = (tmp_path / "report.html").read_text()
    optimal, every = (table.split("</tr>")[1:-1] for table in text.split("<table")[1:])
    assert (len(optimal), len(every)) == (30, 300)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in every]
    assert [(one[0], one[1:5]) for one in cells] == [(str(n), ["4", str(n), "512", "99"]) for n in range(1, 301)]
    first = re.findall(r"<td[^>]*>(.*?)</td>", optimal[0])  # the most tokens first
    assert (first[0], first[5], first[7]) == ("291", "TTFT ITL E2E", "300")
    assert "src=" not in text.replace('src="data:', "") and "://" not in text


@pytest.mark.services
def test_the_page_is_sorted_by_a_click_and_asks_for_nothing(tmp_path: Path) -> None:
    rows = [row(10, 5e6), row(1200, 7e6, rate_per_s=None), row(30, 9e6, rate_per_s=12.0, goodput_per_s=2.5)]
    write_sweep(sweep_table(rows), SCENARIO, tmp_path)
    asked: list[str] = []
    with browser_page(asked) as page:
        page.set_default_timeout(30_000)
        page.goto((tmp_path / "report.html").as_uri())
        page.get_by_text("Every point", exact=True).click()
        table = page.locator("table.sortable").last

        def order(head: str) -> str:
            table.locator("th button", has_text=re.compile(f"^{re.escape(head)}$")).click()
            return "".join(table.locator("tbody td:first-child").all_inner_texts())

        heads = ("tokens/s", "tokens/s", "rate/s", "rate/s", "goodput/s", "#")
        assert [order(head) for head in heads] == ["132", "231", "132", "312", "312", "123"]
        assert table.locator("th[aria-sort]").all_inner_texts() == ["#"]
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def test_the_highest_rate_is_told_of_each_combination_of_settings(tmp_path: Path) -> None:
    search = HighestRate(low_rate_per_s=4, high_rate_per_s=64, least_share=0.9)
    shares = {8: ((4, 1.0), (16, 0.9), (17, 0.89), (64, 0.1)), 16: ((4, 0.5),), 32: ((4, 1.0), (64, 0.95))}
    frame = sweep_table(
        [
            row(10 * rate, 5e6 * rate, rate_per_s=float(rate), max_num_seqs=seqs, level_share=share)
            for seqs, tried in shares.items()
            for rate, share in tried
        ]
    )
    assert highest_rates(frame, search) == [
        ("8", "512", "99", "16", "17", "4"),
        ("16", "512", "99", "below 4", "4", "1"),
        ("32", "512", "99", "64", "–", "2"),
    ]
    level = "sweep.service_level={ttft_ns: 200000000, tpot_ns: 20000000}"
    asked = ["sweep.rates_per_s=[]", level, f"sweep.highest_rate={search.model_dump_json()}"]
    write_sweep(frame, load_scenario("h100_8b_sweep", asked), tmp_path)
    for name in ("summary.md", "report.html"):
        told = (tmp_path / name).read_text()
        assert "between 4 and 64 requests/s and to 5 %, at which at least 90 % of the requests meet" in told
        assert "below 4" in told


def test_too_few_requests_and_extrapolated_steps_are_told() -> None:
    assert "Insufficient" not in caption(sweep_table([row(1, 1)]))
    told = caption(sweep_table([row(1, 1, num_requests=40, p99_sufficient=False, steps_outside_calibration=7)]))
    assert "Insufficient samples: 40 requests" in told and "7 simulated steps lie outside" in told


def test_without_a_second_token_there_is_no_gap_to_judge(tmp_path: Path) -> None:
    nothing = {f"itl_{p}_ns": np.nan for p in ("p50", "p90", "p99")}
    frame = sweep_table([row(1, 1, **nothing), row(2, 2, **nothing)])
    assert not frame["pareto_itl"].any() and frame["pareto_ttft"].all()
    write_sweep(frame, SCENARIO, tmp_path)
    assert "– / – / –" in (tmp_path / "summary.md").read_text()
