"""`python -m gst_assets.latest SCENARIO`: where the scenario's newest comparison report is, as one page and as Markdown."""

from __future__ import annotations

import sys

from gst_assets.analysis.report import REPORT, SUMMARY
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError, GstError
from gst_assets.scenario import load_scenario


def main(scenario: str) -> None:
    """Print the paths of the report last materialized for `scenario`: report.html, and summary.md for a terminal.

    Raises:
        ArtifactError: none yet, or what names it is damaged.
        ScenarioError: there is no scenario of that name.
    """
    store = ArtifactStore.from_environment()
    pointer = store.current(scenario, "comparison", "comparison_id")
    if pointer is None:
        load_scenario(scenario)  # a name that is none has no partition to materialize
        raise ArtifactError(
            f"{store}: no comparison for scenario {scenario}. Materialize comparison_report for this partition first."
        )
    directory = store.open(Kind.COMPARISON, pointer["comparison_id"], verify=False)
    print(f"report: {directory / REPORT}")
    print(f"as text: {directory / SUMMARY}")


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            sys.exit("usage: python -m gst_assets.latest SCENARIO")
        main(sys.argv[1])
    except GstError as problem:
        sys.exit(f"error: {problem}")
