"""Pictures of a comparison's page as its readers meet it: `python scripts/report_pictures.py REPORT.html DIRECTORY`.

Writes wide.png (1,280 x 800, the first screen), phone.png (400 pixels wide), dark.png and print.pdf. Needs a Chromium
(on the PATH, or named by CHROMIUM). Says which requests the page made, and whether it is wider than the screen; status
1 if it asked for anything or is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Page

from gst_assets.testing.browser import browser_page

COLOURS = 256
VIEWS: tuple[tuple[str, int, int, Literal["light", "dark"]], ...] = (
    ("wide", 1280, 800, "light"),
    ("phone", 400, 1600, "light"),
    ("dark", 1280, 800, "dark"),
)


def main(report: str, directory: str) -> int:
    """Take the pictures; returns the exit status."""
    out, asked, problems = Path(directory), [], []
    out.mkdir(parents=True, exist_ok=True)
    with browser_page(asked) as page:
        page.goto(Path(report).resolve().as_uri())
        for name, width, height, scheme in VIEWS:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            shown = page.evaluate("document.documentElement.scrollWidth")
            if shown > width:
                problems.append(f"{name}: {shown} pixels wide on a screen of {width}")
            _keep(page, out / f"{name}.png")
        page.pdf(path=out / "print.pdf", prefer_css_page_size=True)
    problems += [f"asked for {address}" for address in asked if not address.startswith(("data:", "file:"))]
    print("\n".join(problems) or f"{out}: {len(VIEWS)} pictures and print.pdf; nothing was asked for")
    return 1 if problems else 0


def _keep(page: Page, path: Path) -> None:
    page.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
