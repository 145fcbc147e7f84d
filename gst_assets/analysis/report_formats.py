"""Turning the report's blocks into Markdown and into one self-contained HTML page. Knows no comparison.

The page asks for nothing: its style is inline and its figures are data URLs; a content security policy makes a browser refuse anything else.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from gst_assets.analysis.report_content import Block, Grid, Heading, Items, Picture, Text

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #111; background: #fff; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
.verdict { font-size: 1.1rem; border: 1px solid #888; border-left: 0.6rem solid #888; padding: 0.6rem 0.9rem; }
.pass { border-left-color: #009E73; } .warn { border-left-color: #E69F00; } .fail { border-left-color: #D55E00; }
.inconclusive, .insufficient { border-left-color: #0072B2; border-left-style: double; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.82rem; margin: 0.8rem 0; }
th, td { padding: 0.2rem 0.55rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; } td:first-child { min-width: 11em; }
figure { margin: 1.2rem 0; break-inside: avoid; } figure img { max-width: 100%; height: auto; } figcaption { font-size: 0.85rem; color: #333; }
code { font-size: 0.92em; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; font-size: 10.5pt; } tr { break-inside: avoid; } h2 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 7pt; } th, td { padding: 0.1rem 0.35rem; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)"), r'<a href="\2">\1</a>'),
)


def markdown(blocks: Sequence[Block], figure_directory: str) -> str:
    """The report in Markdown; pictures are linked from `figure_directory`."""
    return "\n\n".join(_as_markdown(block, figure_directory) for block in blocks) + "\n"


def markdown_table(grid: Grid) -> str:
    """A Markdown table."""
    rule = ["---:" if number >= grid.numeric_from else "---" for number in range(len(grid.header))]
    rows = ([cell.replace("|", "\\|") for cell in row] for row in grid.rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (grid.header, rule, *rows))


def _as_markdown(block: Block, figure_directory: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Items(items):
            return "\n".join(f"- {item}" for item in items)
        case Grid():
            return markdown_table(block)
        case Picture(figure):
            return f"![{figure.title}]({figure_directory}/{figure.file_name})\n\n*{figure.caption}*"


def page(blocks: Sequence[Block], outcome: str, figures: Path) -> str:
    """The report as one HTML page. The first paragraph is the verdict, coloured by `outcome`; `figures` holds the PNGs to embed."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    verdict = next(block for block in blocks if isinstance(block, Text))
    parts = []
    for block in blocks:
        if block is verdict:
            parts.append(f'<p class="verdict {html.escape(outcome)}">{_inline(verdict.text)}</p>')
        else:
            parts.append(_as_html(block, figures))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _as_html(block: Block, figures: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Items(items):
            return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
        case Grid():
            return _html_table(block)
        case Picture(figure):
            data = base64.b64encode((figures / figure.file_name).read_bytes()).decode()
            return (
                f'<figure>\n<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{data}">\n'
                f"<figcaption>{_inline(figure.caption)}</figcaption>\n</figure>"
            )


def _html_table(grid: Grid) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks = ["" if number < grid.numeric_from else ' class="n"' for number in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{mark}>{_inline(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
            + "</tr>"
        )

    body = "\n".join(row(cells, "td") for cells in grid.rows)
    return (
        f'<div class="wide"><table>\n<thead>{row(grid.header, "th")}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _inline(text: str) -> str:
    """Bold, code and links of the blocks' text; everything else is shown as it is."""
    shown = html.escape(text)
    for pattern, replacement in _INLINE:
        shown = pattern.sub(replacement, shown)
    return shown
