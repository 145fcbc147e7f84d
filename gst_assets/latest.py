"""`python -m gst_assets.latest SCENARIO`: where the scenario's newest comparison report is."""

from __future__ import annotations

import sys

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError, GstError


def main(scenario: str) -> None:
    """Print the path of the report last materialized for `scenario`.

    Raises:
        ArtifactError: none yet.
    """
    store = ArtifactStore.from_environment()
    pointer = store.current(scenario, "comparison")
    if pointer is None:
        raise ArtifactError(
            f"{store}: no comparison for scenario {scenario}. Materialize comparison_report for this partition first."
        )
    print(f"report: {store.open(Kind.COMPARISON, pointer['comparison_id'], verify=False) / 'summary.md'}")


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            sys.exit("usage: python -m gst_assets.latest SCENARIO")
        main(sys.argv[1])
    except GstError as problem:
        sys.exit(f"error: {problem}")
