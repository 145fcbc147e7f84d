"""Pareto-optimal points against another implementation, and a report that says what limits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paretoset import paretoset

from gst_assets.analysis.sweep_report import caption, pareto, pareto_figure, summary_table, sweep_table, write_sweep
from gst_assets.contracts.tables import SweepPoints, validate
from gst_assets.errors import ContractError

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
    }
    return fixed | latencies | changes


def test_the_directory_is_written_with_the_same_bytes_and_marks_the_optimal(tmp_path: Path) -> None:
    frame = sweep_table([row(10, 5e6), row(20, 5e6, max_num_seqs=16), row(30, 9e6, goodput_per_s=2.5)])
    validate(SweepPoints, frame, "sweep.csv")
    assert frame["pareto_ttft"].tolist() == [False, True, True]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_sweep(frame, "Sweep", tmp_path / name)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {"sweep.csv", "pareto.png", "summary.md"}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    lines = summary_table(frame).splitlines()
    assert "**5 / 5 / 5**" in lines[3] and "**" not in lines[2] and "| 2.50 |" in lines[4]
    with pytest.raises(ContractError, match=r"sweep\.csv: row 0, column makespan_ns: found 0, expected more than 0"):
        write_sweep(frame.assign(makespan_ns=pd.array([0, 1, 1], dtype="Int64")), "Sweep", tmp_path)


def test_every_point_of_the_figure_tells_its_rate_and_every_axis_what_it_is() -> None:
    rows = [row(10 * rate, 5e6 * rate, rate_per_s=rate, max_num_seqs=seqs) for seqs in (8, 16) for rate in (2.0, 4.5)]
    figure = pareto_figure(sweep_table(rows))
    assert [axes.get_ylabel() for axes in figure.axes] == ["TTFT P99 [ms]", "ITL P99 [ms]", "E2E P99 [ms]"]
    assert figure.axes[-1].get_xlabel() == "output tokens/s"
    for axes in figure.axes:
        assert sorted(one.get_text() for one in axes.texts) == ["2/s", "2/s", "4.5/s", "4.5/s"]


def test_too_few_requests_and_extrapolated_steps_are_told() -> None:
    assert "Insufficient" not in caption(sweep_table([row(1, 1)]))
    told = caption(sweep_table([row(1, 1, num_requests=40, p99_sufficient=False, steps_outside_calibration=7)]))
    assert "Insufficient samples: 40 requests" in told and "7 simulated steps lie outside" in told


def test_without_a_second_token_there_is_no_gap_to_judge(tmp_path: Path) -> None:
    nothing = {f"itl_{p}_ns": np.nan for p in ("p50", "p90", "p99")}
    frame = sweep_table([row(1, 1, **nothing), row(2, 2, **nothing)])
    assert not frame["pareto_itl"].any() and frame["pareto_ttft"].all()
    write_sweep(frame, "Sweep", tmp_path)
    assert "– / – / –" in (tmp_path / "summary.md").read_text()
