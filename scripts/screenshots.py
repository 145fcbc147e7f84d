"""Take the documentation's screenshots from a running Dagster UI: `python scripts/screenshots.py URL SCENARIO`.

Needs a Chromium (on the PATH, or named by CHROMIUM) and a UI with the scenario's assets materialized (`make demo`, then
`make ui`). Pictures have 256 colours, which is plenty for a UI and half the size. Also reports every request that would
have left this machine.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page

from gst_assets.testing.browser import browser_page, leaves_loopback

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
GROUPS = ("workload", "real_engine", "simulation", "comparison", "regression")
COLOURS = 256


def main(url: str, scenario: str) -> int:
    """Write graph.png, report_metadata.png, failing_check.png and launchpad.png; returns 1 if a request left the
    loopback interface."""
    asked: list[str] = []
    with browser_page(asked) as page:
        _graph(page, url)
        _report(page, url, scenario)
        _check(page, url)
        _launchpad(page, url)
    outside = sorted({address for address in asked if leaves_loopback(address)})
    for address in outside:
        print(f"left the machine: {address}")
    print(f"{len(asked)} requests, outside loopback: {len(outside)}")
    return 1 if outside else 0


def _graph(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 2000, "height": 1250})
    page.goto(f"{url}/asset-groups?expanded={quote(','.join(f'global@global:{group}' for group in GROUPS))}")
    page.locator("foreignObject").get_by_text("comparison_report").first.wait_for()
    page.get_by_text("Hide navigation").first.click()
    _keep(page, "graph.png")


def _report(page: Page, url: str, scenario: str) -> None:
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.goto(f"{url}/assets/comparison_report?view=partitions&partition={scenario}")
    page.get_by_text("headline", exact=True).first.wait_for()
    _keep(page, "report_metadata.png")


def _check(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 1500, "height": 800})
    page.goto(f"{url}/assets/comparison_report?view=checks&checkDetail=fidelity_band")
    page.get_by_text("first_row", exact=True).first.wait_for()
    _keep(page, "failing_check.png")


def _launchpad(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.goto(f"{url}/asset-groups")
    page.get_by_role("button", name="Materialize all").first.click(modifiers=["Shift"])
    launchpad = page.get_by_role("dialog")
    launchpad.get_by_text("No errors").wait_for()
    launchpad.get_by_placeholder("Partition").fill("smoke")
    page.get_by_text("smoke", exact=True).last.click()
    _keep(page, "launchpad.png")


def _keep(page: Page, name: str) -> None:
    page.wait_for_timeout(4_000)  # the layout settles after the data arrived
    # Paths of the machine that made the picture are of no use to a reader.
    page.screenshot(path=IMAGES / name, mask=[page.get_by_text(re.compile(r"^/\S+/"))], mask_color="#e8e8e8")
    with Image.open(IMAGES / name) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
