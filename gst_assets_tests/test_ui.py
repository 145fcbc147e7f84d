"""The UI as people see it, in a real Chromium after a night: graph, report with table and figure, columns, a failing
check, launchpad; nothing leaves the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import dagster as dg
import pandas as pd
import pytest
from playwright.sync_api import Locator, Page

from gst_assets.testing.browser import browser_page, leaves_loopback
from gst_assets_tests.night import EARLIER_NIGHTS, LOCATION, Night

pytestmark = [pytest.mark.engine, pytest.mark.services]

GROUPS = ("workload", "real_engine", "simulation", "comparison", "regression")
FOLDED = "[Show Markdown]"


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Every address that the browser asked for."""
    return []


@pytest.fixture(scope="module")
def page(asked: list[str]) -> Iterator[Page]:
    with browser_page(asked) as opened:
        yield opened


def entry(page: Page, key: str) -> Locator:
    """The row of a metadata table."""
    return page.locator("tr", has=page.get_by_text(key, exact=True)).first


def test_the_graph_shows_every_group_and_its_assets(page: Page, night: Night) -> None:
    page.goto(f"{night.url}/asset-groups?expanded={quote(','.join(f'global@global:{group}' for group in GROUPS))}")
    # The graph cuts long names in their middle.
    for asset in ("workload_spec", "real_requ", "vidur_profile", "comparison_report", "regression_report"):
        page.locator("foreignObject").get_by_text(asset).first.wait_for()


def test_a_report_shows_its_table_and_its_figure(page: Page, night: Night) -> None:
    page.goto(f"{night.url}/assets/comparison_report?view=partitions&partition=smoke")
    table = entry(page, "headline").locator("table")
    table.get_by_text("TTFT P50").wait_for()
    assert "95 % interval" in table.inner_text() and "cannot judge" in table.inner_text()
    entry(page, "answer").get_by_text(FOLDED).click()
    image = page.locator('img[src^="data:image/png;base64"]').first
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.keyboard.press("Escape")
    image.wait_for(state="detached")


def test_a_table_asset_shows_its_columns(page: Page, night: Night) -> None:
    page.goto(f"{night.url}/assets/real_request_metrics?view=overview")
    column = page.locator("tr", has=page.get_by_text("ttft_ns", exact=True)).first
    column.wait_for()
    assert "Int64" in column.inner_text() and "first_token_time_ns - arrival_time_ns" in column.inner_text()


def test_a_failing_check_shows_why_and_which_rows(page: Page, night: Night) -> None:
    page.goto(f"{night.url}/assets/comparison_report?view=checks&checkDetail=fidelity_band")
    page.get_by_text("no cell has enough (independent) samples to be judged").first.wait_for()
    page.get_by_text(re.compile("metric ttft, statistic p50, real_ns")).first.wait_for()
    assert page.get_by_text("Failed", exact=True).count() >= 1
    entry(page, "rows").get_by_text(FOLDED).click()
    table = page.get_by_role("dialog").locator("table")
    table.get_by_text("p90").first.wait_for()
    assert table.locator("tbody tr").count() == 6
    page.keyboard.press("Escape")


def test_the_definitions_load_without_a_warning(page: Page, night: Night) -> None:
    page.goto(f"{night.url}/deployment/locations")
    row = page.locator("tr, [data-index]", has_text=LOCATION).first
    row.get_by_text("Loaded").wait_for()
    assert page.get_by_text(re.compile("error|warning", re.IGNORECASE)).count() == 0


def test_the_launchpad_materializes_the_smoke_partition(page: Page, night: Night) -> None:
    """Every asset, with the real engine and the config that the launchpad suggests."""
    page.goto(f"{night.url}/asset-groups")
    page.get_by_role("button", name="Materialize all").first.click(modifiers=["Shift"])
    launchpad = page.get_by_role("dialog")
    launchpad.get_by_text("No errors").wait_for()
    launchpad.get_by_placeholder("Partition").fill("smoke")
    page.get_by_text("smoke", exact=True).last.click()
    with dg.DagsterInstance.from_config(str(night.home)) as instance:
        before = {run.run_id for run in instance.get_runs()}

        def launched() -> list[dg.DagsterRun]:
            return [run for run in instance.get_runs() if run.run_id not in before]

        launchpad.get_by_role("button", name="Materialize").click()
        night.wait_for(lambda: any(run.is_finished for run in launched()), "the launched run to end")
        (run,) = launched()
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert run.tags["dagster/partition"] == "smoke"
        made = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    assert len(made) == 13
    history = pd.read_csv(night.root / "history" / "smoke" / "comparison_history.csv")
    assert history["night"].tolist() == [*range(EARLIER_NIGHTS), 0, 1]


def test_no_request_left_the_machine(asked: list[str]) -> None:
    assert len(asked) > 50
    assert [address for address in asked if leaves_loopback(address)] == []
