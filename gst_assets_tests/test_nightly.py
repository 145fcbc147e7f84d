"""A night by itself: the schedule ticks, a run starts for each scenario, engine runs do not overlap, history grows,
reports appear, people are notified."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster._core.scheduler.instigation import TickStatus

from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets_tests.night import EARLIER_NIGHTS, SCENARIOS, Night

pytestmark = pytest.mark.engine

Span = tuple[float, float, str]


def test_a_night_runs_by_itself(night: Night) -> None:
    with dg.DagsterInstance.from_config(str(night.home)) as instance:
        (state,) = [state for state in instance.all_instigator_state() if state.name == "nightly"]
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
        assert [(tick.status, tick.timestamp) for tick in ticks] == [(TickStatus.SUCCESS, night.due.timestamp())]
        records = [instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))[0] for run_id in ticks[0].run_ids]
    runs = [record.dagster_run for record in records]
    assert sorted(run.tags["dagster/partition"] for run in runs) == sorted(SCENARIOS)
    assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * len(SCENARIOS)
    # They were under way together, so it was the machine's lock, for which a step waits, that kept them apart on the
    # engine.
    assert overlapping([(one.start_time or 0, one.end_time or 0, one.dagster_run.run_id) for one in records])
    measured = engine_spans(night.root)
    assert len(measured) >= len(SCENARIOS) and not overlapping(measured)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_history_grew_and_the_report_appeared(night: Night, scenario: str) -> None:
    rows = pd.read_csv(night.root / "history" / scenario / "comparison_history.csv").iloc[: EARLIER_NIGHTS + 1]
    made = [one for one in ArtifactStore(night.root).list(Kind.COMPARISON) if one.startswith(f"{scenario}-")]
    assert rows["comparison_id"].tolist() == sorted(made)[: EARLIER_NIGHTS + 1]
    # Measured on another device than the made-up nights: a line of its own, and too short to be judged.
    assert rows["night"].tolist() == [*range(EARLIER_NIGHTS), 0]
    report = night.root / "regressions" / scenario
    summary = (report / "summary.md").read_text()
    assert "**INSUFFICIENT DATA**" in summary and "| yes: nothing across it is compared |" in summary
    assert sorted(path.name for path in (report / "figs").glob("*.png")) == ["engine_latency.png", "fidelity.png"]


def test_people_are_told_of_each_failing_check(night: Night) -> None:
    """Six requests are too few to judge, which fails the fidelity check; the daemon runs the sensor."""
    wanted = {f"comparison_report: fidelity_band fails on {name}" for name in SCENARIOS}
    night.wait_for(lambda: wanted <= {message["title"] for _, message in night.received}, "the messages")
    report = next(message for _, message in night.received if message["title"] in wanted)
    assert (
        "no cell has enough (independent) samples to be judged" in report["text"] and Path(report["report"]).is_file()
    )


def overlapping(spans: Sequence[Span]) -> list[str]:
    """Pairs of spans, neighbours in time, of which the second began before the first ended."""
    return [
        f"{one} and {other}" for (_, ended, one), (began, _, other) in pairwise(sorted(spans)) if began < ended
    ]  # fmt: skip


def engine_spans(root: Path) -> list[Span]:
    """When the engine ran, by the stamps of the real runs."""
    store = ArtifactStore(root)
    metas = [load_run(store.open(Kind.REAL_RUN, name), "real").meta for name in store.list(Kind.REAL_RUN)]
    assert {meta.engine_settings.backend for meta in metas} == {"vllm"}
    return [(meta.started_at.timestamp(), meta.ended_at.timestamp(), meta.run_id) for meta in metas]
