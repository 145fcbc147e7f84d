"""Complete workload directories for the engine's tests, made by the workload package from a scenario."""

from __future__ import annotations

import json
from pathlib import Path

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import write_document
from gst_assets.provenance import sha256_file
from gst_assets.scenario import Scenario, resolve_path
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import read_prompts, write_prompts
from gst_assets.workload.spec import PATHS, workload_meta
from gst_assets.workload.tokenizer import load_tokenizer


def build_workload(directory: Path, scenario: Scenario) -> Path:
    """Write the workload of `scenario` into `directory`; returns it."""
    directory.mkdir(parents=True)
    prompts = read_prompts(resolve_path(scenario.workload.prompts))
    tokenizer = load_tokenizer(scenario.model.tokenizer)
    write_prompts(prompts, directory / PATHS.prompts)
    lengths = build_trace_lengths(scenario, prompts, tokenizer)
    csv_files.write_csv(lengths, directory / PATHS.trace_lengths)
    intervals = build_trace_intervals(scenario.workload.arrivals, len(lengths), scenario.workload.seed)
    csv_files.write_csv(intervals, directory / PATHS.trace_intervals)
    seal_workload(directory, scenario, tokenizer.sha256, len(lengths))
    return directory


def seal_workload(directory: Path, scenario: Scenario, tokenizer_sha256: str, num_requests: int) -> None:
    """Write the metadata of what lies in `directory`, digests included."""
    digests = {
        name: sha256_file(directory / name) for name in (PATHS.prompts, PATHS.trace_lengths, PATHS.trace_intervals)
    }
    write_document(workload_meta(scenario, tokenizer_sha256, digests, num_requests), directory / "workload_meta.json")


def reseal(directory: Path) -> None:
    """Make the recorded digests those of the files as they are now."""
    path = directory / "workload_meta.json"
    meta = json.loads(path.read_text())
    meta["sha256"] = {name: sha256_file(directory / name) for name in meta["sha256"]}
    path.write_text(json.dumps(meta))
