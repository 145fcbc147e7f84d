"""The blocks that reports are made of. Knows no comparison.

`formats` shows the numbers in them, `report_formats` turns blocks into Markdown or HTML. Text may use `**bold**`,
`*italic*`, `` `code` ``, and `[text](#term)`: a link inside the page, which Markdown shows as plain text. Any other
link is shown as it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from gst_assets.analysis.answer import Judgement
from gst_assets.analysis.figures import Figure


@dataclass(frozen=True)
class Heading:
    """A title: of the page (level 1), or of a part of a section."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names with their values, in one line: what the page is about."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class VerdictBlock:
    """The answer: the judgement with its colour, in a few words, and the sentence."""

    judgement: Judgement
    word: str
    sentence: str


@dataclass(frozen=True)
class Grid:
    """A table; columns from `numeric_from` on are right-aligned. `judged` colours rows by their judgement.
    `sortable`: in a page, by a click on a column's head."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int
    judged: tuple[Judgement, ...] = ()
    sortable: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    figure: Figure


@dataclass(frozen=True)
class Pictures:
    """Figures side by side where there is room."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Beside:
    """Two groups of blocks side by side where there is room, else one below the other."""

    left: tuple[Block, ...]
    right: tuple[Block, ...]


@dataclass(frozen=True)
class Definitions:
    """Definitions, each with the anchor that leads to it."""

    terms: tuple[tuple[str, str, str], ...]
    """(anchor, term, definition)"""


@dataclass(frozen=True)
class File:
    """A file of the comparison's directory: its path there and what it is. A page may carry a small one inside
    itself."""

    path: str
    told: str


@dataclass(frozen=True)
class Files:
    """The files of the directory."""

    files: tuple[File, ...]


@dataclass(frozen=True)
class Section:
    """A part of the report that the page folds up, with the line that says what is inside; `blocks` are what it
    holds."""

    title: str
    blocks: tuple[Block, ...]
    told: str = ""
    """What it holds, readable without opening it."""
    nested: bool = field(default=False)
    """Inside another section: not in the page's contents."""

    @property
    def anchor(self) -> str:
        """Where links to the section lead."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Contents:
    """Links to the sections of the page."""


Block = (
    Heading
    | Text
    | Items
    | Facts
    | VerdictBlock
    | Grid
    | Picture
    | Pictures
    | Beside
    | Definitions
    | Files
    | Section
    | Contents
)


def term(text: str, anchor: str) -> str:
    """`text` with a link to the definition of `anchor`."""
    return f"[{text}](#{anchor})"


def median(values: Sequence[float] | pd.Series) -> float:
    """Their median; NaN where one of them is missing."""
    series = pd.Series(values)
    return float(np.median(series)) if len(series) and series.notna().all() else math.nan
