"""The UI as people see it: graph, report with table and figure, a failing check, the launchpad, no warnings, and nothing leaves the machine.

One instance with a comparison of a recorded run against a made-up profile, and a history with a planted regression.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
from playwright.sync_api import Page

from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.analysis.histories import noisy, write_nights
from gst_assets_tests.assets.recorded_nights import SCENARIO, materialize, write_profile
from gst_assets_tests.browser import browser_page, web_server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    area = tmp_path_factory.mktemp("ui")
    home = area / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    profiles = write_profile(area / "profiles")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert materialize(area / "artifacts", profiles, "*", instance).success
        write_nights(area / "regressed", noisy(24, seed=1, step_at=18, step=0.2), SCENARIO)
        line = "key:comparison_history or key:regression_report"
        assert materialize(area / "regressed", profiles, line, instance).success
    return home


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with web_server(home, home.parent / "artifacts", home.parent / "web.log") as running:
        yield running


@pytest.fixture(scope="module")
def outside() -> set[str]:
    return set()


@pytest.fixture(scope="module")
def page(outside: set[str]) -> Iterator[Page]:
    with browser_page(outside) as opened:
        yield opened


def test_the_graph_shows_every_group_and_the_line(page: Page, url: str) -> None:
    groups = ("workload", "real_engine", "simulation", "comparison", "regression")
    page.goto(f"{url}/asset-groups?expanded={quote(','.join(f'global@global:{group}' for group in groups))}")
    for asset in (
        "workload_spec",
        "real_request_metrics",
        "comparison_report",
        "regression_report",
        "simulation_self_check",
    ):
        page.locator("foreignObject").get_by_text(asset).first.wait_for()


def test_a_report_shows_its_table_and_its_figure(page: Page, url: str) -> None:
    page.goto(f"{url}/assets/comparison_report?view=partitions&partition={SCENARIO}")
    page.get_by_text("TTFT P50").first.wait_for()
    assert page.locator("table").filter(has_text="real spread").count() >= 1
    image = page.locator('img[src^="data:image/png;base64"]').first
    image.wait_for()
    assert image.evaluate("image => image.naturalWidth") > 300


def test_a_failing_check_shows_why_and_which_rows(page: Page, url: str) -> None:
    page.goto(f"{url}/assets/regression_report?view=checks&checkDetail=regression")
    page.get_by_text("REGRESSION").first.wait_for()
    page.get_by_text("Failed").first.wait_for()
    # Rows stand in the evaluation's metadata, behind its own link.
    page.get_by_text("slower:").first.wait_for()


def test_the_definitions_page_has_no_warning(page: Page, url: str) -> None:
    page.goto(f"{url}/deployment/locations")
    page.get_by_text("gst_assets.definitions").first.wait_for()
    page.get_by_text("Loaded").first.wait_for()
    assert page.get_by_text("Failed").count() == 0


def test_the_launchpad_materializes_the_smoke_partition(page: Page, url: str, home: Path) -> None:
    """The asset `prompts` of `smoke`, as the whole partition takes minutes on a real engine (the pipeline tests materialize it)."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        before = len(instance.get_runs())
        page.goto(f"{url}/assets/prompts")
        page.get_by_role("button", name="Materialize").first.click(modifiers=["Shift"])
        page.get_by_text("Launchpad", exact=False).first.wait_for()
        _choose_partition(page, "smoke")
        page.get_by_role("button", name="Materialize").last.click()
        deadline = time.monotonic() + 120
        while len(runs := instance.get_runs()) == before or not runs[0].is_finished:
            assert time.monotonic() < deadline, "no finished run"
            time.sleep(1)
        assert runs[0].status is dg.DagsterRunStatus.SUCCESS
        assert runs[0].tags["dagster/partition"] == "smoke"
    assert (home.parent / "artifacts" / "current" / "smoke" / "prompts.json").is_file()


def _choose_partition(page: Page, name: str) -> None:
    page.get_by_placeholder("Select a partition").first.click()
    page.get_by_text(name, exact=True).last.click()


def test_no_request_left_the_machine(outside: set[str]) -> None:
    assert outside == set()
