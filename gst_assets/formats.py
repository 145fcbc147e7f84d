"""Numbers and Markdown tables as people read them in reports, summaries, the UI and the terminal.

The one place that decides how many digits are shown, what stands where a number is missing, and how a cell is made
safe. What a number means belongs to its caller; the text of others between tables belongs to `foreign_text`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from gst_assets.foreign_text import inert_cell

MISSING = "–"
_NS_PER_MS = 1e6


def milliseconds(value_ns: float | None, spec: str = "", *, missing: str = MISSING) -> str:
    """Milliseconds by the format `spec`, e.g. `.2f`; without one, three significant digits or all before the point."""
    if value_ns is None or _is_missing(value_ns):
        return missing
    value_ms = value_ns / _NS_PER_MS
    return f"{value_ms:{spec}}" if spec else _three_digits(value_ms)


def signed_milliseconds(value_ns: float) -> str:
    """As `milliseconds`, with a sign."""
    return MISSING if _is_missing(value_ns) else ("-" if value_ns < 0 else "+") + milliseconds(abs(value_ns))


def brief_milliseconds(value_ns: float) -> str:
    """Milliseconds within a sentence: three significant digits without zeros behind, or all before the point."""
    value_ms = value_ns / _NS_PER_MS
    return f"{value_ms:,.0f}" if abs(value_ms) >= 1000 else f"{value_ms:.3g}"


def rate(value_per_s: float) -> str:
    """A rate with three significant digits, or all before the point."""
    return MISSING if _is_missing(value_per_s) else _three_digits(value_per_s)


def _three_digits(value: float) -> str:
    decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def error_percent(relative: float) -> str:
    """A signed relative error in per cent; `undefined` where it is missing."""
    return "undefined" if _is_missing(relative) else signed_percent(relative)


def unsigned_percent(relative: float, digits: int = 1) -> str:
    """An unsigned share in per cent; a dash where it is missing."""
    return MISSING if _is_missing(relative) else f"{100 * relative:.{digits}f} %"


def signed_percent(relative: float) -> str:
    """A signed share in per cent; a dash where it is missing."""
    return MISSING if _is_missing(relative) else f"{100 * relative:+.1f} %"


def interval(low: float, high: float) -> str:
    """`-0.8 to +9.0` in per cent; an infinite end is open, and nothing is shown of one that is not known."""
    if math.isnan(low):
        return MISSING
    return f"{100 * low:+.1f} to {'open' if math.isinf(high) else f'{100 * high:+.1f}'}"


def number(value: float | None, digits: int, *, grouped: bool = True, missing: str = MISSING) -> str:
    """A number with `digits` after the point; `grouped` sets its thousands apart."""
    return missing if value is None or _is_missing(value) else f"{value:{',' if grouped else ''}.{digits}f}"


def value_range(values: Sequence[float | None], digits: int, *, grouped: bool = True) -> str:
    """`low to high` of the values that are known, one number where they are equal, a dash without any."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    low, high = (number(value, digits, grouped=grouped) for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = (), tight: bool = False
) -> str:
    """A Markdown table; no cell can end it, load anything or lead anywhere.

    Columns whose place (from 0) is in `right` are aligned to the right. `tight` writes the rule below the header
    without spaces.
    """
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    lines = [_row(header), f"|{'|'.join(rule)}|" if tight else f"| {' | '.join(rule)} |", *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(inert_cell(cell) for cell in cells)} |"


def _is_missing(value: float | None) -> bool:
    """None, not-a-number, or pandas' own missing value, of which nobody can say whether it is equal to itself."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True
