"""Writing imported results as a run directory of the contract, complete or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import NOT_STATED, RealRunFacts, SimulationFacts, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.contracts.tables import RequestMetrics, TokenMetrics, validate, write_table
from gst_assets.errors import ArtifactError, ResultsError
from gst_assets.importers.results import Request, Results
from gst_assets.provenance import sha256_file
from gst_assets.staging import staged_directory


def write_run(results: Results, format_name: str, out: Path, stated: dict[str, str]) -> Path:
    """Write the run directory `out`; `stated` holds what the user states in place of the file: model, engine, hardware.

    Raises:
        ArtifactError: `out` exists.
        ResultsError: no request, or two of one name.
        ContractError: numbers that the contract does not hold; names the request by its number (row).
    """
    if out.exists():
        raise ArtifactError(f"{out}: already exists. Runs are never overwritten; name another --out.")
    requests = list(results.requests)
    if not requests:
        raise ResultsError(f"{results.files[0]}: no request in it.")
    _check_names(results)
    # Checked under the name of what was read: the tables are this project's, the times the file's.
    table = validate(RequestMetrics, _request_table(results), results.files[0])
    with_tokens = all(one.has_tokens for one in requests if one.error is None)
    tokens = validate(TokenMetrics, _token_table(requests), results.files[0]) if with_tokens else None
    with staged_directory(out) as staging:
        write_table(RequestMetrics, table, staging)
        if tokens is not None:
            write_table(TokenMetrics, tokens, staging)
        name = Kind.REAL_RUN.meta_name
        document = _document(results, format_name, out.absolute().name, stated)
        model = RealRunFacts if results.run_type == "real" else SimulationFacts
        write_document(model.model_validate({**document, "sha256": directory_digests(staging, name)}), staging / name)
    return out


def _check_names(results: Results) -> None:
    seen: dict[str, str] = {}
    for one in results.requests:
        if one.name in seen:
            raise ResultsError(
                f"{one.where}: called {one.name!r:.80}, as is {seen[one.name]}, so nothing can be joined by it. Give"
                " each request a name of its own."
            )
        seen[one.name] = one.where


def _request_table(results: Results) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(results.requests):
        ok = one.error is None and one.num_produced > 0
        rows.append(
            {
                "request_id": number,
                "arrival_time_ns": one.arrival_ns,
                "first_token_time_ns": one.first_token_ns if ok else None,
                "ttft_ns": one.first_token_ns - one.arrival_ns if ok and one.first_token_ns is not None else None,
                "num_prefill_tokens": one.num_prompt or 0,
                "num_decode_tokens": one.num_produced if one.num_requested is None else one.num_requested,
                "num_decode_tokens_actual": one.num_produced if ok else 0,
                "status": "ok" if one.error is None else "error",
                "completion_time_ns": one.completion_ns if ok else None,
                "scheduled_time_ns": one.scheduled_ns,
                "send_time_ns": one.send_ns,
                "num_preemptions": one.num_preemptions,
                "error_type": one.error[0] if one.error else "",
                "error_msg": one.error[1] if one.error else "",
                "source_request_id": one.name,
                "queued_time_ns": one.queued_ns,
            }
        )
    frame = pd.DataFrame(rows)
    required, optional = RequestMetrics.column_types()
    # A column without any value says nothing; and names that no other results share must not be joined by.
    silent = [name for name in optional if name in frame and frame[name].isna().all()]
    silent += [] if frame["error_type"].any() else ["error_type", "error_msg"]
    silent += [] if results.is_named else ["source_request_id"]
    types = {name: kind for name, kind in (required | optional).items() if name in frame and name not in silent}
    return frame.astype(types)[list(types)]


def _token_table(requests: Sequence[Request]) -> pd.DataFrame:
    answered = [(number, one) for number, one in enumerate(requests) if one.error is None and one.num_produced]
    counts = np.array([one.num_produced for _, one in answered], dtype=np.int64)
    times = np.array([time for _, one in answered for time in one.token_ns], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(starts, counts)
    gaps = np.diff(times, prepend=times[:1])
    gaps[starts] = 0
    columns = (np.repeat(np.array([number for number, _ in answered], dtype=np.int64), counts), index, times, gaps)
    types, _ = TokenMetrics.column_types()
    return pd.DataFrame(dict(zip(types, columns, strict=True))).astype(types)


def _document(results: Results, format_name: str, run_id: str, stated: dict[str, str]) -> dict[str, Any]:
    hardware = {
        "hardware_id": stated.get("hardware") or results.hardware_id,
        "device_name": results.device_name,
        "device_count": results.device_count,
        "stated": bool(stated.get("hardware")),
    }
    known = hardware["hardware_id"] or hardware["device_name"]
    common: dict[str, Any] = {
        "run_type": results.run_type,
        "run_id": run_id,
        "started_at": results.started_at,
        "ended_at": results.ended_at,
        "git_commit": None,
        "model": stated.get("model") or results.model,
        "hardware": hardware if known else None,
        "hydra": {"config_path": NOT_STATED, "config_name": "imported"},
        "imported": {
            "format": format_name,
            "source": results.files[0].name,
            "source_sha256": {path.name: sha256_file(path) for path in results.files},
            "written_by": results.written_by,
            "mapping": results.mapping,
            "clock": results.clock,
            "arrivals": results.arrivals,
            "joined_by": results.joined_by,
            "transport": results.transport,
            "requested_lengths": all(one.num_requested is not None for one in results.requests),
            "definitions": results.definitions,
            "dropped": results.dropped,
            "unstated": list(results.unstated),
        },
    }
    if results.run_type == "vidur":
        preemptions = [one.num_preemptions for one in results.requests]
        known_preemptions = [one for one in preemptions if one is not None]
        return {
            **common,
            "variant": stated.get("engine") or results.maker,
            "simulated_settings": results.simulated_settings,
            "num_preemptions": sum(known_preemptions) if len(known_preemptions) == len(preemptions) else None,
        }
    late = sorted(one.send_ns - one.arrival_ns for one in results.requests if one.send_ns is not None)
    return {
        **common,
        "backend": stated.get("engine") or results.maker,
        "num_errors": sum(one.error is not None for one in results.requests),
        "lateness_ns": (
            {
                "p50": int(np.percentile(late, 50)),
                "p99": int(np.percentile(late, 99)),
                "max": late[-1],
            }
            # All zero: the program knows no intended time and its arrival is the time of sending.
            if any(late)
            else {}
        ),
    }
