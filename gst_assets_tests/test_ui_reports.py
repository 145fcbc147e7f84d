"""`gst ui` after a demo, without an engine: the run in the timeline, a report three clicks from the front page, and an
end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gst_assets.environment import REPORTS_VARIABLE, ROOT_VARIABLE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.testing.browser import browser_page, leaves_loopback
from gst_assets.testing.services import free_port

SCENARIO = "h100_8b_single"
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Running:
    """The program and the two addresses it serves."""

    process: subprocess.Popen[bytes]
    url: str
    reports: str


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    port, reports = free_port(), f"http://127.0.0.1:{free_port()}"
    environment = {
        **os.environ, "DAGSTER_HOME": str(home), ROOT_VARIABLE: str(home / "artifacts"), REPORTS_VARIABLE: reports,
    }  # fmt: skip
    demo = [sys.executable, "-m", "gst_assets.cli", "run", SCENARIO]
    subprocess.run(demo, cwd=PROJECT_ROOT, env=environment, check=True, capture_output=True, timeout=_LIMIT_S)
    log = home / "log"
    with log.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "gst_assets.cli", "ui", "--port", str(port)],
            cwd=PROJECT_ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline, url = time.monotonic() + _LIMIT_S, f"http://127.0.0.1:{port}"
        while not answers(f"{url}/server_info"):
            assert running.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Running(running, url, reports)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@pytest.mark.services
def test_a_report_is_three_clicks_from_the_front_page_which_shows_the_demos_run(ui: Running) -> None:
    asked: list[str] = []
    with browser_page(asked) as page:
        page.goto(ui.url)
        # The timeline: one run of this code location.
        page.get_by_text("Jobless asset materializations").first.wait_for()
        page.get_by_text("gst_assets.definitions").first.wait_for()
        page.get_by_text("Catalog", exact=True).first.click()
        page.get_by_text("comparison_report", exact=True).first.click()
        link = page.locator(f'a[href^="{ui.reports}/comparisons/{SCENARIO}-"]').first
        link.wait_for()
        for key, value in (("scenario", SCENARIO), ("model", "qwen3-8b"), ("hardware", "h100 (H100)"), ("overrides", "none")):  # fmt: skip
            row = page.locator("tr", has=page.get_by_text(key, exact=True)).first
            assert value in row.inner_text()
        with page.context.expect_page() as opened:
            link.click()
        report = opened.value
        report.get_by_role("heading", name=re.compile("Vidur against vllm: qwen3-8b on h100")).first.wait_for()
    assert [address for address in asked if leaves_loopback(address)] == []


def test_ui_and_reports_go_together(ui: Running) -> None:
    """Stands last: it ends the program."""
    assert answers(f"{ui.reports}/")
    ui.process.send_signal(signal.SIGTERM)
    ui.process.wait(timeout=600)
    deadline = time.monotonic() + 600
    while answers(f"{ui.url}/server_info"):
        assert time.monotonic() < deadline, "the web server outlived the program"
        time.sleep(0.5)
    assert not answers(f"{ui.reports}/")
