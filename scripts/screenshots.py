"""Take the documentation's screenshots from a running Dagster UI: `python scripts/screenshots.py URL SCENARIO`.

Needs a Chromium (CHROMIUM names it; default /usr/bin/chromium) and a UI with the scenario's assets materialized (`make demo`, then `make ui`).
Also reports every request that would have left this machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote, urlparse

from playwright.sync_api import Page, Request, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main(url: str, scenario: str) -> int:
    """Write graph.png and report_metadata.png; returns 1 if a request left the loopback interface."""
    outside: set[str] = set()

    def watch(request: Request) -> None:
        host = urlparse(request.url).hostname
        if host not in (None, "127.0.0.1", "localhost", "::1"):
            outside.add(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGUMENTS
        )
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.on("request", watch)
        _graph(page, url)
        _report(page, url, scenario)
        browser.close()
    for address in sorted(outside):
        print(f"left the machine: {address}")
    print(f"requests outside loopback: {len(outside)}")
    return 1 if outside else 0


def _graph(page: Page, url: str) -> None:
    groups = ("workload", "real_engine", "simulation", "comparison")
    page.set_viewport_size({"width": 2000, "height": 1250})
    page.goto(f"{url}/asset-groups?expanded={quote(','.join(f'global@global:{group}' for group in groups))}")
    page.locator("foreignObject").get_by_text("comparison_report").first.wait_for(timeout=60_000)
    page.get_by_text("Hide navigation").first.click()
    page.wait_for_timeout(4_000)  # the layout settles after the data arrived
    page.screenshot(path=IMAGES / "graph.png")


def _report(page: Page, url: str, scenario: str) -> None:
    page.set_viewport_size({"width": 1500, "height": 1700})
    page.goto(f"{url}/assets/comparison_report?view=partitions&partition={scenario}")
    page.get_by_text("verdict").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3_000)
    # Paths of the machine that made the picture tell a reader nothing.
    page.screenshot(path=IMAGES / "report_metadata.png", mask=[page.get_by_text("summary.md")], mask_color="#e8e8e8")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
