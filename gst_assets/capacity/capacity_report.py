"""What a search for capacity leaves for people: summary.md and, where matplotlib is installed, a figure of delay
against rate.

The search itself is in `search`. Importable on a GPU host, where there is no matplotlib and the figure is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from gst_assets.capacity.search import criterion, result_sentence
from gst_assets.contracts.documents import CapacityFound
from gst_assets.foreign_text import inert_line
from gst_assets.formats import markdown_table, milliseconds, number, signed_percent
from gst_assets.scenario import Capacity

TABLE = "capacity_probes.csv"
SUMMARY = "summary.md"
FIGURE = "delay_by_rate.png"
_COLOURS = {"engine": "#000000", "calibrated": "#0072B2", "kernels": "#E69F00", "published": "#009E73"}
_MARKERS = {"kept": "o", "broken": "x", "unjudged": "d"}


def write_report(
    probes: pd.DataFrame, found: Mapping[str, CapacityFound], settings: Capacity, name: str, directory: Path
) -> None:
    """Write summary.md and the figure of `probes` (`contracts.tables.CapacityProbes`) into `directory`."""
    drawn = find_spec("matplotlib") is not None
    if drawn:
        _draw(probes, settings, directory / FIGURE)
    lines = [
        f"# Capacity {name}",
        "",
        (
            f"Searched for: {criterion(settings)}. Every probe: the same {settings.num_requests} requests in the same"
            f" order, gaps of seed {settings.seed} scaled to the rate."
        ),
        "",
        *(f"- {inert_line(result_sentence(side, one))}" for side, one in found.items()),
        *_ratios(found),
        "",
        probes_markdown(probes),
        "",
        *([f"![P99 of scheduling delay against rate]({FIGURE})", ""] if drawn else []),
        (
            "A probe is one run: what an engine's probes at one rate differ by is not known from this. Delay includes"
            " the driver's lateness."
        ),
        "",
    ]
    (directory / SUMMARY).write_text("\n".join(lines), encoding="utf-8")


def _ratios(found: Mapping[str, CapacityFound]) -> list[str]:
    """Simulated over measured capacity, where both were found."""
    real = found.get("engine")
    if real is None or real.status != "found" or real.capacity_per_s is None:
        return []
    return [
        f"- {side} against engine: {signed_percent(one.capacity_per_s / real.capacity_per_s - 1)}"
        for side, one in found.items()
        if side != "engine" and one.status == "found" and one.capacity_per_s is not None
    ]


def probes_markdown(probes: pd.DataFrame) -> str:
    """The probes as a markdown table, by side and rate."""
    header = [
        "side",
        "probe",
        "rate [1/s]",
        "P50 delay [ms]",
        "P99 delay [ms]",
        "lateness P99 [ms]",
        "served [1/s]",
        "tokens/s",
        "failed",
        "bound",
    ]
    rows = []
    for row in probes.to_dict("records"):
        flag = "" if row["is_sufficient"] else " (few requests)"
        times = (row["p50_delay_ns"], row["p99_delay_ns"], row["p99_lateness_ns"])
        served = (row["requests_per_s"], row["tokens_per_s"])
        rows.append(
            [
                str(row["side"]),
                str(row["probe_index"]),
                f"{row['rate_per_s']:.3f}",
                *(milliseconds(value, ".2f", missing="-") for value in times),
                *(number(value, 1, grouped=False, missing="-") for value in served),
                str(row["num_failed"]),
                f"{row['verdict']}{flag}{': ' if row['reason'] else ''}{row['reason']}",
            ]
        )
    return markdown_table(header, rows, right=range(1, len(header) - 1), tight=True)


def _draw(probes: pd.DataFrame, settings: Capacity, path: Path) -> None:
    from matplotlib import style
    from matplotlib.figure import Figure

    # Whatever the user configured, equal probes give equal bytes; no time and no version inside.
    with style.context("default"):
        canvas = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
        axes = canvas.add_subplot()
        for side, rows in probes[probes["p99_delay_ns"].notna()].groupby("side", sort=False):
            line = rows.sort_values("rate_per_s")
            colour = _COLOURS.get(str(side), "#009E73")
            axes.plot(line["rate_per_s"], line["p99_delay_ns"] / 1e6, color=colour, linewidth=1, label=str(side))
            for verdict, marker in _MARKERS.items():
                some = line[line["verdict"] == verdict]
                axes.plot(some["rate_per_s"], some["p99_delay_ns"] / 1e6, marker, color=colour, markersize=5)
        axes.axhline(settings.max_p99_delay_ms, color="#D55E00", linestyle="--", linewidth=1)
        axes.annotate(
            f"bound {settings.max_p99_delay_ms:g} ms",
            (1, settings.max_p99_delay_ms),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("arrivals [requests/s]")
        axes.set_ylabel("P99 of scheduling delay [ms]")
        axes.set_title("circle: bound met, cross: exceeded, diamond: not judged", fontsize=8)
        axes.grid(True, which="both", linewidth=0.3)
        if len(probes):
            axes.legend(fontsize=8)
        canvas.savefig(path, metadata={"Software": None})
