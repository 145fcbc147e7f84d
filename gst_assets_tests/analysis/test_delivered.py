"""Runs over HTTP whose tokens were delivered otherwise than the engine made them, and an exact simulation of that
engine: marked, named, and not judged as the engine's latency."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import write_comparison
from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets.engine.measuring import measure
from gst_assets.engine.plays import Play
from gst_assets.scenario import Bands, load_scenario
from gst_assets_tests.analysis.run_directories import ENGINE_SETTINGS, Recipe, Request, write_simulation
from gst_assets_tests.engine.delivering_server import FIRST_TOKEN_S, GAP_S, Delivery, delivering
from gst_assets_tests.engine.workloads import build_workload


def _measured(delivery: Delivery, folder: Path) -> RealRun:
    """One repeat, played as the command plays it."""

    async def play() -> None:
        async with delivering(delivery) as base_url:
            scenario = load_scenario(
                "smoke",
                [
                    "engine.backend=openai",
                    f"engine.server={{base_url: '{base_url}', read_timeout_s: 20}}",
                    "workload.num_requests=120",
                    "workload.num_decode_tokens=21",
                    "workload.arrivals={kind: poisson, rate_per_s: 40}",
                    "replay.repeats=1",
                    "replay.warmup_requests=2",
                ],
            )
            workload = build_workload(folder / "workload", scenario)
            await measure([Play(scenario, workload, "g")], folder / "out")

    asyncio.run(play())
    return load_run(folder / "out" / "g-r0", "real")


def _compared(real: RealRun, folder: Path) -> Comparison:
    """Compared with an exact simulation: every token when the server's engine makes it."""
    requests = []
    for row in real.requests.itertuples():
        first_ns = row.arrival_time_ns + round(FIRST_TOKEN_S * 1e9)
        times = tuple(first_ns + round(GAP_S * 1e9) * index for index in range(row.num_decode_tokens))
        requests.append(Request(row.arrival_time_ns, times, prompt=row.num_prefill_tokens))
    settings = {name: getattr(real.meta.engine_settings, name) for name in ENGINE_SETTINGS}
    recipe = Recipe(requests).with_meta(
        workload_id=real.meta.workload_id,
        workload_sha256=real.meta.workload_sha256,
        hardware=real.meta.hardware.model_dump(),
        params=real.meta.params,
        simulated_settings=settings,
    )
    simulated = load_run(write_simulation(folder / "sim", recipe), "vidur")
    return compare([real], {"calibrated": simulated}, bands=Bands(), calibration_sha256=set())


@pytest.mark.parametrize(
    ("delivery", "unjudged"),
    [(Delivery.INTERVAL, {"itl"}), (Delivery.WHOLE, {"itl", "ttft"})],
    ids=["interval", "whole"],
)
def test_what_the_delivery_hides_is_marked_named_and_not_judged(
    tmp_path: Path, delivery: Delivery, unjudged: set[str]
) -> None:
    comparison = _compared(_measured(delivery, tmp_path), tmp_path)
    answer = comparison.answer
    assert answer.verdict != "fail"
    assert {cell.metric for cell in answer.cells if cell.verdict == "cannot_judge"} >= unjudged
    assert not any(cell.verdict == "fail" for cell in answer.cells)
    assert {cell.verdict for cell in answer.cells if cell.metric in unjudged} == {"cannot_judge"}
    marks = [one for one in comparison.checks if one.check == "bunched tokens"]
    assert [one.severity for one in marks] == ["mark"] and "ITL is not judged" in marks[0].finding
    (tmp_path / "report").mkdir()
    write_comparison(comparison, tmp_path / "report", None)
    head = (tmp_path / "report" / "summary.md").read_text().split("\n## ")[0]
    assert "real run g-r0: " in head and "came together with the one before" in head
    assert ("came in one message" in head) == (delivery is Delivery.WHOLE)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "came together with the one before" in page[: page.index("<nav")]


def test_a_server_that_sends_each_token_is_not_marked_for_it(tmp_path: Path) -> None:
    comparison = _compared(_measured(Delivery.EACH, tmp_path), tmp_path)
    assert [one.severity for one in comparison.checks if one.check == "bunched tokens"] in (["ok"], ["note"])
