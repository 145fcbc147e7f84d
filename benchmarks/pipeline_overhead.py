"""What Dagster adds to making a workload: `python benchmarks/pipeline_overhead.py [ROUNDS]`.

The four workload assets materialized in this process, beside the domain functions called one after the other for the same directory. The
assets also keep each file as an artifact of its own (`workload_parts/`), record materializations and checks, and read back what they wrote.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from measuring import Ratio, side_by_side, tell

from gst_assets.assets.workloads import prompts, trace_intervals, trace_lengths, workload_spec
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import TraceIntervals, TraceLengths, write_table
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import load_scenario, resolve_path
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import read_prompts, write_prompts
from gst_assets.workload.requests import plan_requests
from gst_assets.workload.spec import PATHS, load_workload, schedule_of, workload_meta
from gst_assets.workload.tokenizer import load_tokenizer

SMOKE: tuple[str, ...] = ()
MANY = (
    "workload.prompts=null", "workload.num_requests=50000", "workload.num_decode_tokens=null",
    "workload.synthetic={prefill_tokens: {kind: uniform, min_tokens: 1, max_tokens: 200}, decode_tokens: {kind: fixed, tokens: 32}, share_prompts: true}",
)  # fmt: skip


def through_dagster(root: Path, overrides: Sequence[str]) -> str:
    """The workload's id."""
    result = dg.materialize(
        [prompts, trace_lengths, trace_intervals, workload_spec],
        partition_key="smoke",
        resources={
            "scenario": ScenarioResource(overrides=list(overrides)),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(),
        },
    )
    return str(result.asset_materializations_for_node("workload_spec")[0].metadata["workload_id"].value)


def directly(root: Path, overrides: Sequence[str]) -> str:
    """The workload's id."""
    scenario, store = load_scenario("smoke", overrides), ArtifactStore(root)
    tokenizer, workload = load_tokenizer(scenario.model.tokenizer), scenario.workload
    with store.stage(Kind.WORKLOAD, "unnamed") as staging:
        source = None
        if workload.prompts is not None:
            texts = read_prompts(resolve_path(workload.prompts))
            write_prompts(texts, staging.path / PATHS.prompts)
            lengths = build_trace_lengths(scenario, texts, tokenizer)
        else:
            plan = plan_requests(scenario, tokenizer)
            lengths, source = plan.write_prompts(staging.path / PATHS.prompts, tokenizer, workload.seed), plan.source
        write_table(TraceLengths, lengths, staging.path)
        intervals = build_trace_intervals(workload.arrivals, len(lengths), workload.seed)
        write_table(TraceIntervals, intervals, staging.path)
        schedule = schedule_of(workload.arrivals, intervals)
        meta = workload_meta(scenario, tokenizer.sha256, staging.digests(), len(lengths), source, schedule)
        staging.artifact_id = meta.workload_id
        write_document(meta, staging.path / Kind.WORKLOAD.meta_name)
        load_workload(staging.commit())
    return meta.workload_id


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
            found.append(Ratio(f"workload of {name} through Dagster", "the same functions called directly", *times, "s"))  # fmt: skip
    tell(found)


if __name__ == "__main__":
    main()
