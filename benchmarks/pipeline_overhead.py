"""What Dagster adds to making a workload: `python benchmarks/pipeline_overhead.py [ROUNDS]`.

The four workload assets materialized in this process by their one op, and the domain functions that it calls for the
same directory. The assets also record materializations and checks, and what the scenario asked for.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from measuring import Ratio, side_by_side, tell

from gst_assets.assets.workloads import workload
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import load_scenario
from gst_assets.workload import build, load

SMOKE: tuple[str, ...] = ()
MANY = (
    "workload.prompts=null",
    "workload.num_requests=50000",
    "workload.num_decode_tokens=null",
    (
        "workload.synthetic={prefill_tokens: {kind: uniform, min_tokens: 1, max_tokens: 200}, decode_tokens: {kind:"
        " fixed, tokens: 32}, share_prompts: true}"
    ),
)


def through_dagster(root: Path, overrides: Sequence[str]) -> str:
    """The workload's id."""
    result = dg.materialize(
        [workload],
        partition_key="smoke",
        resources={
            "scenario": ScenarioResource(overrides=list(overrides)),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(),
        },
    )
    return str(result.asset_materializations_for_node("workload")[-1].metadata["workload_id"].value)


def directly(root: Path, overrides: Sequence[str]) -> str:
    """The workload's id."""
    store = ArtifactStore(root)
    with store.stage(Kind.WORKLOAD, "unnamed") as staging:
        built = build(load_scenario("smoke", overrides), staging.path)
        staging.artifact_id = built.meta.workload_id
        load(staging.commit())
    return built.meta.workload_id


def main() -> None:
    """Print the ratios."""
    numbers = [int(one) for one in sys.argv[1:] if one.isdigit()]
    rounds = numbers[0] if numbers else 3
    logging.disable(logging.WARNING)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in (("120 requests from a prompts file", SMOKE), ("50,000 synthetic requests", MANY)):
            ids: set[str] = set()

            def fresh() -> Path:
                return Path(tempfile.mkdtemp(dir=folder))

            def ours(overrides: Sequence[str] = overrides, ids: set[str] = ids) -> None:
                ids.add(through_dagster(fresh(), overrides))

            def baseline(overrides: Sequence[str] = overrides, ids: set[str] = ids) -> None:
                ids.add(directly(fresh(), overrides))

            times = side_by_side(ours, baseline, rounds)
            assert len(ids) == 1, f"the two ways made different workloads: {ids}"
            found.append(
                Ratio(f"workload of {name} through Dagster", "the same functions called directly", *times, "s")
            )
    tell(found)


if __name__ == "__main__":
    main()
