"""Making a workload directory from a scenario: prompts, lengths, arrivals and the metadata, in one deterministic step.

Loading it back belongs to `spec`. Importable on a GPU host (numpy, pandas, pydantic; transformers for the tokenizer).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import WorkloadSource, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.provenance import sha256_file
from gst_assets.scenario import Scenario, resolve_path
from gst_assets.workload.arrivals import TraceTimes, build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import iterate_prompts, read_prompts, write_prompts
from gst_assets.workload.requests import plan_requests, trace_times
from gst_assets.workload.spec import LENGTHS_TYPES, PATHS, LoadedWorkload, check_joined, schedule_of, workload_meta
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer


def build(
    scenario: Scenario,
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    workers: int = 1,
    contract: bool = True,
    keep_token_ids: bool = False,
) -> LoadedWorkload:
    """Write the scenario's complete workload into the empty `directory`; returns it as `spec.load` would.

    The same scenario gives the same prompts, lengths and arrivals, byte for byte, whatever `workers` (threads that
    write generated prompts) is. `tokenizer`: the scenario's, where it is loaded already. `contract=False` leaves the
    rules of the Pandera models out, for a host without pandera. `keep_token_ids`: retain the token ids by which a
    prompts file was counted, so that `requests_of` need not encode it again; those of generated prompts are not
    retained.

    Raises:
        WorkloadError: the prompts, the trace or the tokenizer cannot be used, or a request does not fit (see `lengths`
            and `requests`).
        ContractError: a table breaks the contract; it was not written.
    """
    asked = scenario.workload
    tokenizer = tokenizer or load_tokenizer(scenario.model.tokenizer)
    path = directory / PATHS.prompts
    times: TraceTimes | None = None
    previous: np.ndarray | None = None
    token_ids: dict[str, list[int]] | None = None
    if asked.prompts is not None:
        file = resolve_path(asked.prompts)
        prompts = read_prompts(file)
        source = WorkloadSource(kind="prompts", path=asked.prompts, sha256=sha256_file(file))
        write_prompts(prompts, path)
        prompt_ids, texts = [prompt.prompt_id for prompt in prompts], [prompt.text for prompt in prompts]
        encoded = tokenizer.encode(texts) if keep_token_ids else None
        counts = tokenizer.count(texts) if encoded is None else [len(one) for one in encoded]
        lengths = build_trace_lengths(scenario, prompts, counts, tokenizer.reference)
        token_ids = None if encoded is None else dict(zip(prompt_ids, encoded, strict=True))
    else:
        plan = plan_requests(scenario, tokenizer)
        planned, source = plan.write_prompts(path, tokenizer, asked.seed, workers=workers), plan.source
        prompt_ids = [prompt.prompt_id for prompt in iterate_prompts(path)]
        lengths, times, previous = planned[list(LENGTHS_TYPES)], trace_times(planned, source), plan.previous
    intervals = build_trace_intervals(asked.arrivals, len(lengths), asked.seed, times, previous)
    if contract:
        from gst_assets.contracts.tables import TraceIntervals, TraceLengths, write_table

        write_table(TraceLengths, lengths, directory)
        write_table(TraceIntervals, intervals, directory)
    else:
        csv_files.write_csv(lengths, directory / PATHS.trace_lengths)
        csv_files.write_csv(intervals, directory / PATHS.trace_intervals)
    check_joined(lengths, intervals, prompt_ids, scenario.file)
    meta = workload_meta(
        scenario,
        tokenizer.sha256,
        directory_digests(directory, Kind.WORKLOAD.meta_name),
        len(lengths),
        source,
        schedule_of(asked.arrivals, intervals, times),
    )
    write_document(meta, directory / Kind.WORKLOAD.meta_name)
    return LoadedWorkload(directory, meta, prompt_ids, lengths, intervals, token_ids)
