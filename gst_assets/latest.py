"""The newest comparison of a scenario, and the first screen of a report as plain text: what `gst latest` and `gst run` print."""

from __future__ import annotations

import re
import shutil
import textwrap
from itertools import takewhile
from pathlib import Path

from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import Kind
from gst_assets.errors import ArtifactError
from gst_assets.scenario import load_scenario

REPORT, SUMMARY = "report.html", "summary.md"
_MOST_COLUMNS = 120


def tell(directory: Path) -> None:
    """Print the first screen of the report in `directory`, and the paths of its page, where it has one, and of its text."""
    print(for_terminal((directory / SUMMARY).read_text(encoding="utf-8")))
    print()
    if (directory / REPORT).is_file():
        print(f"report: {directory / REPORT}")
    print(f"as text: {directory / SUMMARY}")


def newest(scenario: str) -> Path:
    """The directory of the comparison last materialized for `scenario`.

    Raises:
        ArtifactError: none yet, or what names it is damaged.
        ScenarioError: there is no scenario of that name.
    """
    store = open_store()
    pointer = store.current(scenario, "comparison", "comparison_id")
    if pointer is None:
        load_scenario(scenario)  # a name that is none has no partition to materialize
        raise ArtifactError(
            f"{store}: no comparison for scenario {scenario}. Materialize comparison_report for this partition first."
        )
    return store.open(Kind.COMPARISON, pointer["comparison_id"], verify=False)


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
