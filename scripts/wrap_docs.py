"""Wrap the Markdown pages at 120 columns: `python scripts/wrap_docs.py [PAGE ...]`; without pages, all that git knows.

Paragraphs and list items are filled anew. Headings, tables, code, comments and everything in backquotes stay as they
are, so a page looks the same when it is rendered. `gst_assets_tests/test_docs.py` says which lines are too long.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

WIDTH = 120
ROOT = Path(__file__).resolve().parent.parent

_MARKER = re.compile(r" *(?:[-*+]|\d+[.)]) +")
_WORD = re.compile(r"(?:(`+)(?!`).*?(?<!`)\1(?!`)|[^\s`]|`)+")
"""What stays on one line: anything without a space, with all that stands in backquotes."""
_BEGINS_A_BLOCK = re.compile(r"(?:[-*+>=|]|#+|-{2,}|=+|\d+[.)]|```.*|~~~.*|<!--.*|\|.*)$")
"""Words that would begin a list, a heading, a table or the like at the beginning of a line."""


def main(pages: Sequence[str]) -> None:
    """Wrap these pages, or all, and name those that changed."""
    for page in [Path(name) for name in pages] or markdown_pages():
        before = page.read_text(encoding="utf-8")
        after = wrap(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrapped {page}")


def markdown_pages() -> list[Path]:
    """The Markdown files of the checkout that git knows, without the summaries that runs wrote (their digests are
    recorded)."""
    command = ["git", "ls-files", "*.md", ":(exclude)*/summary.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def wrap(text: str) -> str:
    """The page with its prose filled to `WIDTH` columns."""
    lines: list[str] = []
    for is_prose, block in blocks(text.splitlines()):
        lines += _filled(block) if is_prose else block
    return "\n".join(lines) + "\n"


def blocks(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    """Paragraphs and list items (True), and everything else (False), in order; together they are all lines."""
    paragraph: list[str] = []
    fence = ""
    contents = [0]  # columns at which the text of the open list items begins
    for line in lines:
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if fence:
            fence = "" if bare == fence else fence
            yield False, [line]
            continue
        marker = _MARKER.match(line)
        if not paragraph and bare:
            while indent < contents[-1]:
                contents.pop()
            if indent >= contents[-1] + 4:
                yield False, [line]
                continue
        if not bare or marker or bare.startswith(("|", "#", "<!--", "```", "~~~", "![")):
            if paragraph:
                yield True, paragraph
                paragraph = []
            if marker:
                while indent < contents[-1]:
                    contents.pop()
                contents.append(marker.end())
                paragraph = [line]
                continue
            fence = bare[:3] if bare.startswith(("```", "~~~")) else ""
            yield False, [line]
            continue
        paragraph.append(line)
    if paragraph:
        yield True, paragraph


def words(block: Sequence[str]) -> tuple[str, list[str]]:
    """The marker or indentation that a block begins with, and its words."""
    marker = _MARKER.match(block[0])
    first = marker.group() if marker else block[0][: len(block[0]) - len(block[0].lstrip())]
    text = " ".join(line.strip() for line in (block[0][len(first) :], *block[1:]))
    return first, [found.group() for found in _WORD.finditer(text)]


def _filled(block: Sequence[str]) -> list[str]:
    first, rest = words(block)
    lines: list[list[str]] = [[]]
    used = len(first)
    for word in rest:
        if lines[-1] and used + 1 + len(word) > WIDTH:
            begun = [word]
            while lines[-1][1:] and _BEGINS_A_BLOCK.match(begun[0]):
                begun.insert(0, lines[-1].pop())
            lines.append(begun)
            used = len(first) + len(" ".join(begun))
        else:
            used += len(word) + bool(lines[-1])
            lines[-1].append(word)
    return [(first if not number else " " * len(first)) + " ".join(line) for number, line in enumerate(lines)]


if __name__ == "__main__":
    main(sys.argv[1:])
