"""The newest comparison of a scenario, and the first screen of a report as plain text: what `gst latest` and `gst run`
print."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from gst_assets.contracts import pointers
from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import Kind
from gst_assets.errors import ScenarioError, WorkloadError
from gst_assets.scenario import load_scenario

REPORT, SUMMARY = "report.html", "summary.md"
_MOST_COLUMNS = 120


def tell(directory: Path) -> None:
    """Print the first screen of the report in `directory`, and the paths of its page, where it has one, and of its
    text."""
    print(for_terminal((directory / SUMMARY).read_text(encoding="utf-8")))
    print()
    if (directory / REPORT).is_file():
        print(f"report: {directory / REPORT}")
    print(f"as text: {directory / SUMMARY}")


def newest(scenario: str, overrides: Sequence[str] = ()) -> Path:
    """The directory of the newest comparison of `scenario` with `overrides`; if there is none, of the newest with other
    settings (`difference`).

    Raises:
        ArtifactError: none yet, or what names it is damaged.
        ScenarioError: there is no scenario of that name.
    """
    store = open_store()
    try:
        chosen = load_scenario(scenario, overrides)
    except ScenarioError:
        # The file of a user's own scenario need not be there to read what was made for it.
        for _, pointer in pointers.pointers(store, scenario, pointers.COMPARISON):
            if store.has(Kind.COMPARISON, pointer.comparison_id):
                return pointers.Reference(pointer).open(store, Kind.COMPARISON, pointer.comparison_id)
        raise
    try:
        found = pointers.newest(store, chosen, pointers.COMPARISON)
    except WorkloadError:
        found = pointers.newest_of_any(store, chosen, pointers.COMPARISON)
    return found.open(store, Kind.COMPARISON, found.pointer.comparison_id)


def difference(directory: Path, scenario: str, overrides: Sequence[str] = ()) -> str:
    """In what the comparison in `directory` was made otherwise than `scenario` with `overrides` asks for now, in words;
    "" if in nothing, or if there is no such scenario any more.

    Raises:
        ContractError: its metadata breaks the contract.
    """
    made = read_document(ComparisonMeta, directory / Kind.COMPARISON.meta_name).params
    try:
        chosen = load_scenario(scenario, overrides)
    except ScenarioError:
        return ""
    return pointers.first_difference(made, chosen, pointers.COMPARISON.settings) or ""


def for_terminal(summary: str) -> str:
    """The summary's first screen, up to its figure, as plain text: columns in line, no Markdown marks, lines as wide as
    the terminal."""
    width = min(shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns, _MOST_COLUMNS)
    head = list(takewhile(lambda line: not line.startswith("!["), summary.splitlines()))
    shown: list[str] = []
    for line in (re.sub(r"\*\*|`", "", line) for line in head):
        if line.startswith("|"):
            shown.append(line)
        elif line:
            indent = "  " if line.startswith("- ") else ""
            shown += textwrap.wrap(line.removeprefix("# "), width, subsequent_indent=indent)
        else:
            shown.append("")
    return "\n".join(_in_columns(shown)).strip()


def _in_columns(lines: list[str]) -> list[str]:
    """The rows of the tables among the lines with their columns in line, the first to the left and the others to the
    right."""
    rows = [_cells(line) for line in lines if line.startswith("|")]
    if not rows:
        return lines
    widths = [max(len(row[place]) for row in rows if not _is_rule(row)) for place in range(len(rows[0]))]
    found = []
    for line in lines:
        if line.startswith("|"):
            first, *others = _cells(line)
            if _is_rule([first]):
                continue
            cells = [
                f"{first:<{widths[0]}}",
                *(f"{one:>{width}}" for one, width in zip(others, widths[1:], strict=True)),
            ]
            line = "  ".join(cells)
        found.append(line)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _is_rule(row: list[str]) -> bool:
    return set(row[0]) <= {"-", ":"}
