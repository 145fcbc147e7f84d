"""Sorting a table of a page by a click on the head of a column: the only script that a page holds, and only where it
has such a table. Without it the table is shown in the order that it was written in.

A cell counts as a number where it is one, thousands set apart; an empty cell or a dash comes last in either direction.
"""

import base64
import hashlib

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const value = row => {
      const text = row.cells[column].textContent.trim(), number = Number(text.replaceAll(",", ""));
      return text === "" || text === "\u2013" ? null : Number.isNaN(number) ? text : number;
    };
    const compared = (a, b) =>
      typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const turn = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [value(row), row]);
      const known = rows.filter(([found]) => found !== null).sort(([a], [b]) => turn * compared(a, b));
      body.append(...[...known, ...rows.filter(([found]) => found === null)].map(([, row]) => row));
    });
  });
}
"""
SCRIPT_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""Of the content security policy: this script and no other."""
SORTING_STYLE = """
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit; }
th button { cursor: pointer; text-decoration: underline dotted 1px; text-underline-offset: 3px; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
"""
