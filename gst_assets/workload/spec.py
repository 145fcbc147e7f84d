"""The workload directory as a whole: its content-derived id, its metadata, and loading it back with every check of the
contract.

Making one belongs to `building`. Importable on a GPU host (numpy, pandas, pydantic).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import (
    Hydra,
    WorkloadMeta,
    WorkloadPaths,
    WorkloadSchedule,
    WorkloadSource,
    read_document,
)
from gst_assets.contracts.pointers import first_difference
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.errors import ArtifactError, ContractError, WorkloadError
from gst_assets.provenance import git_state, sha256_bytes
from gst_assets.scenario import Arrivals, Scenario
from gst_assets.workload.arrivals import TraceTimes, rates
from gst_assets.workload.prompts import iterate_prompts
from gst_assets.workload.tokenizer import Tokenizer

PATHS = WorkloadPaths()
LENGTHS_TYPES = {"request_id": "Int64", "prompt_id": "str", "num_prefill_tokens": "Int64", "num_decode_tokens": "Int64"}
INTERVALS_TYPES = {"request_id": "Int64", "inter_arrival_ns": "Int64", "arrival_time_ns": "Int64"}
TURN_TYPES = {"previous_request_id": "Int64", "think_time_ns": "Int64"}
"""Columns of `contracts.tables.TraceLengths` and `TraceIntervals`, the optional ones last, for a host without
pandera."""


@dataclass(frozen=True)
class LoadedWorkload:
    """A complete workload directory: every table validated, every digest checked. Of the prompts only the ids are held,
    in file order.

    `token_ids`: those of each prompt by its id, where `build` was asked to retain them.
    """

    directory: Path
    meta: WorkloadMeta
    prompt_ids: list[str]
    lengths: pd.DataFrame
    intervals: pd.DataFrame
    token_ids: Mapping[str, list[int]] | None = None

    @property
    def is_closed_loop(self) -> bool:
        """Whether turns wait for the answers before them."""
        return "previous_request_id" in self.intervals.columns


def workload_id(sha256: dict[str, str]) -> str:
    """Id derived from the digests of the three files, so that equal workloads share it whatever scenario asked for
    them."""
    chosen = {name: sha256[name] for name in (PATHS.prompts, PATHS.trace_lengths, PATHS.trace_intervals)}
    return "wl-" + sha256_bytes(json.dumps(chosen, sort_keys=True).encode())[:16]


def workload_meta(
    scenario: Scenario,
    tokenizer_sha256: str,
    sha256: dict[str, str],
    num_requests: int,
    source: WorkloadSource | None = None,
    schedule: WorkloadSchedule | None = None,
) -> WorkloadMeta:
    """workload_meta.json of a directory whose files have the given digests."""
    commit, dirty = git_state()
    return WorkloadMeta(
        workload_id=workload_id(sha256),
        created_at=datetime.now(timezone.utc),
        model=scenario.model.name,
        seed=scenario.workload.seed,
        tokenizer_ref=scenario.model.tokenizer,
        tokenizer_sha256=tokenizer_sha256,
        git_commit=commit,
        git_dirty=dirty,
        sha256=sha256,
        num_requests=num_requests,
        params=scenario.model_dump(mode="json"),
        hydra=Hydra.of(scenario),
        source=source,
        schedule=schedule,
    )


def schedule_of(arrivals: Arrivals, intervals: pd.DataFrame, trace: TraceTimes | None = None) -> WorkloadSchedule:
    """What workload_meta.json says about a schedule: the rate asked and the rate there is."""
    found = rates(arrivals, intervals, trace)
    return WorkloadSchedule(
        span_ns=found.span_ns,
        asked_rate_per_s=found.asked_per_s,
        offered_rate_per_s=found.offered_per_s,
        time_scale=found.time_scale,
    )


def load(directory: Path, *, contract: bool = True) -> LoadedWorkload:
    """Load and check a workload directory: digests, both tables, and what joins them to the prompts.

    `contract=False` leaves the rules of the Pandera models out, for a host without pandera; columns and their types are
    checked all the same.

    Raises:
        ArtifactError: incomplete or altered directory.
        ContractError, WorkloadError: a file that breaks the contract, or files that are not of one workload.
    """
    open_directory(directory, Kind.WORKLOAD)
    meta = read_document(WorkloadMeta, directory / Kind.WORKLOAD.meta_name)
    for name in (meta.paths.prompts, meta.paths.trace_lengths, meta.paths.trace_intervals):
        if name not in meta.sha256:
            raise ArtifactError(
                f"{directory / Kind.WORKLOAD.meta_name}: key sha256 does not list {name}, so it cannot be checked"
                " whether it was changed. Materialize workload_spec again."
            )
    prompt_ids = [prompt.prompt_id for prompt in iterate_prompts(directory / meta.paths.prompts)]
    lengths_path, intervals_path = directory / meta.paths.trace_lengths, directory / meta.paths.trace_intervals
    if contract:
        from gst_assets.contracts.tables import TraceIntervals, TraceLengths, read_table

        lengths, intervals = read_table(TraceLengths, lengths_path), read_table(TraceIntervals, intervals_path)
    else:
        lengths = csv_files.read_csv(lengths_path, LENGTHS_TYPES)
        intervals = csv_files.read_csv(intervals_path, INTERVALS_TYPES, optional=TURN_TYPES)
    check_joined(lengths, intervals, prompt_ids, directory)
    return LoadedWorkload(directory, meta, prompt_ids, lengths, intervals)


def check_joined(lengths: pd.DataFrame, intervals: pd.DataFrame, prompt_ids: Sequence[str], where: Path | str) -> None:
    """Both traces list the same requests, and every request's prompt exists. `where` is only named in the error.

    Raises:
        ContractError
    """
    if lengths["request_id"].tolist() != intervals["request_id"].tolist():
        raise ContractError(
            f"{where}: trace_lengths has {len(lengths)} requests, trace_intervals {len(intervals)}; expected the same"
            " ones in the same order. Materialize workload_spec again."
        )
    unknown = ~lengths["prompt_id"].isin(set(prompt_ids))
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise ContractError(
            f"{where}: trace_lengths row {row} names prompt_id {lengths['prompt_id'].iloc[row]!r}, which prompts.jsonl"
            " does not have. Materialize workload_spec again."
        )


def check_made_for(
    made_params: Mapping[str, Any], scenario: Scenario, directory: Path, sections: Sequence[str], asset: str
) -> None:
    """What lies in `directory` was made with the settings that `scenario` has now in `sections`; `asset` is named as
    the remedy.

    Raises:
        WorkloadError: names the first setting that differs, with both values.
    """
    differs = first_difference(made_params, scenario, sections)
    if differs is not None:
        raise WorkloadError(f"{directory}: {differs}. Materialize {asset} again, with the same overrides.")


def check_tokenizer(tokenizer: Tokenizer, meta: WorkloadMeta, directory: Path) -> None:
    """The tokenizer is the one that counted the workload.

    Raises:
        WorkloadError
    """
    if tokenizer.sha256 != meta.tokenizer_sha256:
        raise WorkloadError(
            f"{directory}: counted with tokenizer {meta.tokenizer_ref} (sha256 {meta.tokenizer_sha256[:12]}), but"
            f" {tokenizer.reference} is {tokenizer.sha256[:12]}. Use the same tokenizer, or materialize workload_spec"
            " again."
        )
