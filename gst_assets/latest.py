"""`python -m gst_assets.latest SCENARIO`: the answer of the scenario's newest comparison, and where its report is as one page and as Markdown."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from gst_assets.contracts import references
from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import Kind
from gst_assets.errors import GstError, WorkloadError
from gst_assets.scenario import load_scenario

_REPORT, _SUMMARY = "report.html", "summary.md"
_MOST_COLUMNS = 120


def main(scenario: str, overrides: Sequence[str] = ()) -> None:
    """Print the first screen of the newest report that answers `scenario` with `overrides`, and the paths of report.html and summary.md. If all
    were made with other settings, the newest of those, which is said first.

    Raises:
        ArtifactError: none yet, or what names it is damaged, or it was altered.
        ScenarioError: there is no scenario of that name.
    """
    directory = newest(scenario, overrides)
    if differs := difference(directory, scenario, overrides):
        print(f"note: {differs}\n")
    print(for_terminal((directory / _SUMMARY).read_text(encoding="utf-8")))
    print(f"\nreport: {directory / _REPORT}")
    print(f"as text: {directory / _SUMMARY}")


def newest(scenario: str, overrides: Sequence[str] = ()) -> Path:
    """The directory of the newest comparison of `scenario` with `overrides`; if there is none, of the newest with other settings (`difference`).

    Raises:
        ArtifactError, ScenarioError: as `main`.
    """
    store, chosen = open_store(), load_scenario(scenario, overrides)
    try:
        found = references.newest(store, chosen, references.COMPARISON)
    except WorkloadError:
        found = references.newest_of_any(store, chosen, references.COMPARISON)
    return found.open(store, Kind.COMPARISON, found.pointer.comparison_id)


def difference(directory: Path, scenario: str, overrides: Sequence[str] = ()) -> str:
    """In what the comparison in `directory` was made otherwise than `scenario` with `overrides` asks for now, in words; "" if in nothing.

    Raises:
        ContractError: its metadata breaks the contract. ScenarioError
    """
    made = read_document(ComparisonMeta, directory / Kind.COMPARISON.meta_name).params
    return references.first_difference(made, load_scenario(scenario, overrides), references.COMPARISON.settings) or ""


def for_terminal(summary: str) -> str:
    """The summary's first screen, up to its figure, as plain text: columns in line, no Markdown marks, lines as wide as the terminal."""
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
    """The rows of the tables among the lines with their columns in line, the first to the left and the others to the right."""
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


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            sys.exit("usage: python -m gst_assets.latest SCENARIO")
        main(sys.argv[1])
    except GstError as problem:
        sys.exit(f"error: {problem}")
