"""Turning a report's blocks into Markdown and into one self-contained HTML page. Knows no comparison.

The page asks for nothing: its style (and the script of a table that can be sorted) is inline, figures and small tables
are data URLs, every link stays inside it, and a content security policy makes a browser refuse anything else. So it is
whole when it is sent alone. Texts hold what others wrote (names, errors): in neither form can that be a tag, an image,
or a link that leads out.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gst_assets.analysis.figures import Figure
from gst_assets.analysis.report_blocks import (
    Beside,
    Block,
    Contents,
    Definitions,
    Facts,
    File,
    Files,
    Grid,
    Heading,
    Items,
    Picture,
    Pictures,
    Section,
    Text,
    VerdictBlock,
)
from gst_assets.analysis.report_sorting import SCRIPT, SCRIPT_SOURCE, SORTING_STYLE
from gst_assets.analysis.report_style import STYLE
from gst_assets.foreign_text import inert_line, visible
from gst_assets.formats import markdown_table

_CARRIED_BYTES = 100_000
"""Tables up to this size are inside the page."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\[([^\]]+)\]\((#[^)\s]+)\)"), r'<a href="\2">\1</a>'),
)
_INNER_LINK = re.compile(r"\[([^\]]+)\]\(#[^)\s]+\)")


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(blocks: Sequence[Block], figure_directory: str) -> str:
    """The report in Markdown; pictures are linked from `figure_directory`, nothing is folded."""
    texts = (_as_markdown(block, figure_directory) for block in blocks)
    return "\n\n".join(text for text in texts if text) + "\n"


def grid_markdown(grid: Grid) -> str:
    """A Markdown table, without the links inside the page."""
    header, *rows = ([_unlinked(cell) for cell in row] for row in (grid.header, *grid.rows))
    return markdown_table(header, rows, right=range(grid.numeric_from, len(header)))


def _unlinked(text: str) -> str:
    """Without links inside the page."""
    return _INNER_LINK.sub(r"\1", text)


def _plain(text: str) -> str:
    return inert_line(_unlinked(text))


def _as_markdown(block: Block, pictures: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case VerdictBlock(_, word, sentence):
            return f"**{word.upper()}**: {_plain(sentence)}"
        case Facts(facts):
            return " · ".join(f"{name}: {_plain(value)}" for name, value in facts)
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Grid():
            return grid_markdown(block)
        case Picture(figure):
            return f"![{_plain(figure.title)}]({pictures}/{figure.file_name})\n\n*{_plain(figure.caption)}*"
        case Pictures(figures):
            return "\n\n".join(_as_markdown(Picture(figure), pictures) for figure in figures)
        case Beside(left, right):
            return markdown((*left, *right), pictures).rstrip()
        case Definitions(terms):
            return "\n".join(f"- {name}: {_plain(definition)}" for _, name, definition in terms)
        case Files(listed):
            return "\n".join(f"- [{file.path}]({file.path}): {_plain(file.told)}" for file in listed)
        case Section(title, inner):
            return f"{'###' if block.nested else '##'} {title}\n\n{markdown(inner, pictures)}".rstrip()
        case Contents():
            return ""


# --- HTML -------------------------------------------------------------------------------------------------------------


def page(blocks: Sequence[Block], directory: Path, figure_directory: str) -> str:
    """The report as one HTML page. `directory` holds the report's files; figures and small tables are taken into the
    page."""
    writer = _Page(blocks, directory, figure_directory)
    title = next(block.text for block in blocks if isinstance(block, Heading))
    policy, style, script = _POLICY, STYLE, ""
    if any(isinstance(block, Grid) and block.sortable for block in _all(blocks)):
        policy, style = f"{policy}; script-src {SCRIPT_SOURCE}", STYLE + SORTING_STYLE
        script = f"<script>{SCRIPT}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + writer.written(blocks)
        + f"\n</main>\n{script}</body>\n</html>\n"
    )


def _all(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks and those inside them."""
    for block in blocks:
        yield block
        match block:
            case Section():
                yield from _all(block.blocks)
            case Beside():
                yield from _all((*block.left, *block.right))


class _Page:
    """Writes blocks as HTML; knows the page's sections, and where the files are that it takes in."""

    def __init__(self, blocks: Sequence[Block], directory: Path, figure_directory: str) -> None:
        self._blocks, self._directory, self._figures = blocks, directory, figure_directory

    def written(self, blocks: Sequence[Block]) -> str:
        return "\n".join(self._block(block) for block in blocks)

    def _block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f"<h{level}>{_inline(text)}</h{level}>"
            case Text(text):
                return f"<p>{_inline(text)}</p>"
            case VerdictBlock(judgement, word, sentence):
                return (
                    f'<div class="verdict {judgement}"><span class="word">{html.escape(word)}</span>'
                    f"<p>{_inline(sentence)}</p></div>"
                )
            case Facts(facts):
                pairs = "".join(
                    f"<div><dt>{_inline(name)}</dt><dd>{_inline(value)}</dd></div>" for name, value in facts
                )
                return f'<dl class="facts">{pairs}</dl>'
            case Items(items):
                return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
            case Grid():
                return _html_table(block)
            case Picture(figure):
                return self._picture(figure)
            case Pictures(figures):
                return '<div class="figures">\n' + "\n".join(self._picture(one) for one in figures) + "\n</div>"
            case Beside(left, right):
                return (
                    "<div"
                    f' class="pair">\n<div>\n{self.written(left)}\n</div>\n<div>\n{self.written(right)}\n</div>\n'
                    "</div>"
                )
            case Definitions(terms):
                inner = "\n".join(
                    f'<dt id="{anchor}">{_inline(name)}</dt><dd>{_inline(definition)}</dd>'
                    for anchor, name, definition in terms
                )
                return f'<dl class="terms">\n{inner}\n</dl>'
            case Files(listed):
                return "<ul>\n" + "\n".join(f"<li>{self._file(file)}</li>" for file in listed) + "\n</ul>"
            case Section(title, inner, told):
                note = f' <span class="about">{_inline(told)}</span>' if told else ""
                return (
                    # Inside, so that a browser that is sent there opens the section.
                    f"<details{' class=nested' if block.nested else ''}>\n"
                    f"<summary><span>{_inline(title)}</span>{note}</summary>\n"
                    f'<div class="target" id="{block.anchor}"></div>\n{self.written(inner)}\n</details>'
                )
            case Contents():
                links = "\n".join(
                    f'<a href="#{one.anchor}">{_inline(one.title)}</a>' for one in _sections(self._blocks)
                )
                return f'<nav aria-label="Contents">\n{links}\n</nav>'

    def _picture(self, figure: Figure) -> str:
        path = f"{self._figures}/{figure.file_name}"
        data = base64.b64encode((self._directory / path).read_bytes()).decode()
        return (
            f'<figure id="{_figure_anchor(path)}">\n<img alt="{html.escape(figure.title)}"'
            f' src="data:image/png;base64,{data}">\n<figcaption>{_inline(figure.caption)}</figcaption>\n</figure>'
        )

    def _file(self, file: File) -> str:
        """The file's name, leading to where it is in this page: a figure, or a table that can be saved from it. Else
        only the name."""
        path, shown = self._directory / file.path, f"<code>{html.escape(file.path)}</code>"
        if path.suffix == ".png":
            shown = f'<a href="#{_figure_anchor(file.path)}">{shown}</a>'
        elif path.suffix == ".csv" and path.is_file() and path.stat().st_size <= _CARRIED_BYTES:
            data = base64.b64encode(path.read_bytes()).decode()
            name = html.escape(path.name)
            shown = f'<a download="{name}" href="data:text/csv;base64,{data}">{shown}</a>'
        return f"{shown}: {_inline(file.told)}"


def _sections(blocks: Sequence[Block]) -> Iterator[Section]:
    for block in blocks:
        if isinstance(block, Section):
            yield block


def _figure_anchor(path: str) -> str:
    return "figure-" + Path(path).stem.replace("_", "-")


def _html_table(grid: Grid) -> str:
    def row(cells: Sequence[str], tag: str, judgement: str = "") -> str:
        marks = ["" if number < grid.numeric_from else ' class="n"' for number in range(len(cells))]
        return (
            (f'<tr class="{judgement}">' if judgement else "<tr>")
            + "".join(f"<{tag}{mark}>{_inline(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
            + "</tr>"
        )

    judged = grid.judged or ("",) * len(grid.rows)
    body = "\n".join(row(cells, "td", judgement) for cells, judgement in zip(grid.rows, judged, strict=True))
    kinds = [name for name, is_so in (("judged", grid.judged), ("sortable", grid.sortable)) if is_so]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return (
        "<div"
        f' class="wide"><table{kind}>\n<thead>{row(grid.header, "th")}</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _inline(text: str) -> str:
    """Bold, code and links inside the page, of the blocks' text; everything else is shown as it is."""
    shown = html.escape(visible(text))
    for pattern, replacement in _INLINE:
        shown = pattern.sub(replacement, shown)
    return shown
