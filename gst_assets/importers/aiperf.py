"""NVIDIA AIPerf's `profile_export.jsonl`: one JSON object a request, with `metadata`, `metrics` (each a value and its
unit) and `error`.

Read off ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md and
src/aiperf/common/models/record_models.py (`MetricRecordInfo`, `MetricRecordMetadata`), and a published file of
October 2025 (examples/artifacts/run1/profile_export.jsonl), which calls three fields otherwise: `timestamp_ns`,
`credit_phase` and `ttft`, and has no `session_num`. Times are Unix nanoseconds: `request_start_ns` when a worker sent
the request, `credit_issued_ns` (later versions) when the rate limiter let it go. `inter_chunk_latency` has a gap a
message: those are the tokens' only where there is one message a token. `request_latency` ends with the last response,
which may come after the last token.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_json_lines
from gst_assets.importers.results import (
    MODEL_NOT_STATED,
    Options,
    Request,
    Results,
    check_clock,
    check_options,
    counted,
    in_order,
    lengths_told,
    token_times_told,
)

_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "sec": 1e9, "s": 1e9, "seconds": 1e9}
_MEASURED = "profiling"
_ISSUED = "credit_issued_ns"
_ROUNDING_NS = 1000
"""Sums of gaps in milliseconds may miss the latency by it."""


def read(path: Path, options: Options) -> Results:
    """The measured requests of an export; those of a warm-up are left out and counted.

    Raises:
        ResultsError: not such a file, a unit it is not known to have, or conversations of several turns.
    """
    check_options(options, str(path), clock=True)
    every = read_json_lines(path)
    measured = [item for item in every if _phase(item.item("metadata")) == _MEASURED]
    if not measured:
        raise ResultsError(f"{path}: none of {len(every)} records is of phase {_MEASURED}.")
    starts = [_start_ns(item.item("metadata")) for item in measured]
    clock = check_clock(
        [one / 1e9 for one in starts],
        "epoch",
        options,
        f"{path}: request_start_ns",
        "AIPerf's documentation: epoch time in nanoseconds",
    )
    issued = [_issued_ns(item.item("metadata")) for item in measured]
    later = sum(at is not None and at > start for at, start in zip(issued, starts, strict=True))
    is_issued = not later and None not in issued
    arrivals = [at for at in issued if at is not None] if is_issued else starts
    origin = min(arrivals)
    requests = in_order(
        [
            _request(item, arrival - origin, start - origin)
            for item, arrival, start in zip(measured, arrivals, starts, strict=True)
        ]
    )
    is_named = all(one.name.isdigit() for one in requests)
    return Results(
        run_type="real",
        files=(path,),
        requests=requests,
        maker="server driven by AIPerf",
        written_by="NVIDIA AIPerf (version not stated in the file)",
        mapping={
            "arrival_time_ns": f"metadata.{_ISSUED}" if is_issued else "metadata.request_start_ns",
            "send_time_ns": "metadata.request_start_ns",
            "first_token_time_ns": "metadata.request_start_ns + metrics.time_to_first_token",
            "token_time_ns": "first token + running sum of metrics.inter_chunk_latency",
            "completion_time_ns": (
                "the last token's time where every token's is known, else metadata.request_start_ns +"
                " metrics.request_latency"
            ),
            "num_prefill_tokens": "metrics.input_sequence_length",
            "num_decode_tokens": "metrics.output_sequence_length",
        },
        clock=clock,
        arrivals=(
            f"when AIPerf's rate limiter let the request go ({_ISSUED})"
            if is_issued
            else "when the request was sent: the file has no intended time, so a late client is in no latency"
        ),
        joined_by="metadata.session_num" if is_named else "order of sending (the file has no session_num)",
        is_named=is_named,
        transport="http",
        started_at=datetime.fromtimestamp(origin / 1e9, timezone.utc) if origin >= 1e18 else None,
        definitions=(
            {"its own TTFT": "from request_start_ns; here from arrival, so the way to the worker is inside"}
            if is_issued
            else {}
        ),
        dropped={
            **({_ISSUED: f"after request_start_ns in {later} of {len(measured)}: of another clock"} if later else {}),
            **counted(len(every) - len(measured), len(every), "records of another phase (warm-up)"),
            **counted(
                sum(one.error is not None for one in requests),
                len(requests),
                "failed requests and cancelled ones, kept without times",
            ),
        },
        unstated=(
            MODEL_NOT_STATED,
            *(() if is_issued else ("intended arrival times not stated",)),
            *lengths_told(requests),
            *token_times_told(requests, "messages"),
        ),
    )


def _phase(metadata: Item) -> str:
    return metadata.text("benchmark_phase" if metadata.has("benchmark_phase") else "credit_phase")


def _start_ns(metadata: Item) -> int:
    return metadata.count("request_start_ns" if metadata.has("request_start_ns") else "timestamp_ns")


def _issued_ns(metadata: Item) -> int | None:
    """When the rate limiter let the request go; None where the file does not say."""
    return metadata.count(_ISSUED) if metadata.has(_ISSUED) else None


def _request(item: Item, arrival_ns: int, send_ns: int) -> Request:
    metadata, metrics = item.item("metadata"), item.item("metrics")
    if metadata.has("turn_index") and metadata.count("turn_index"):
        raise ResultsError(
            f"{metadata.where}: turn_index is {metadata.values['turn_index']}: conversations of several turns are not"
            " imported, since a turn's arrival depends on the answer before. Measure single turns."
        )
    name = str(metadata.count("session_num")) if metadata.has("session_num") else metadata.text("x_request_id")
    error = _error(item, metadata)
    if error is not None:
        told = next(
            (_value(metrics, key, None) for key in ("input_sequence_length", "error_isl") if metrics.has(key)), None
        )
        prompt = None if told is None else int(told)
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, error=error, where=item.where)
    prompt, produced = (int(_value(metrics, key, None)) for key in ("input_sequence_length", "output_sequence_length"))
    if not produced:
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, where=item.where)
    ttft = round(_value(metrics, "time_to_first_token" if metrics.has("time_to_first_token") else "ttft", _NS))
    latency = round(_value(metrics, "request_latency", _NS))
    gaps = _gaps(metrics) if produced > 1 and metrics.has("inter_chunk_latency") else []
    if latency < ttft or ttft + sum(gaps) > latency + _ROUNDING_NS:
        raise ResultsError(
            f"{metrics.where}: request_latency is {latency / 1e6:.6f} ms, but the first token came after"
            f" {ttft / 1e6:.6f} ms and the gaps behind it are {sum(gaps) / 1e6:.6f} ms: of one request it is no shorter"
            " than both. Is the file edited, or a unit wrong?"
        )
    first, times, at = send_ns + ttft, [send_ns + ttft], 0.0
    for gap in gaps:
        at += gap
        times.append(first + round(at))
    is_told = len(times) == produced
    return Request(
        name,
        arrival_ns,
        first,
        times[-1] if is_told else send_ns + latency,
        prompt,
        produced,
        send_ns=send_ns,
        token_ns=tuple(times) if is_told else (),
        where=item.where,
    )


def _error(item: Item, metadata: Item) -> tuple[str, str] | None:
    """Type and message of a request that failed, or that the client gave up: what it measured of that is no answer."""
    if item.has("error"):
        error = item.item("error")
        return str(error.values.get("type") or "error"), str(error.values.get("message") or "no reason given")[:1000]
    return ("cancelled", "the client cancelled the request") if metadata.flag("was_cancelled") else None


def _value(metrics: Item, key: str, units: dict[str, float] | None) -> float:
    """A metric's value: a whole number of tokens, or a time in nanoseconds by its unit."""
    metric = metrics.item(key)
    if units is None:
        return metric.count("value")
    return metric.number("value", least=0) * _unit(metric, units)


def _gaps(metrics: Item) -> list[float]:
    metric = metrics.item("inter_chunk_latency")
    factor = _unit(metric, _NS)
    return [one * factor for one in metric.numbers("value")]


def _unit(metric: Item, units: dict[str, float]) -> float:
    unit = metric.text("unit")
    if unit not in units:
        raise metric.error("unit", f"one of {', '.join(units)}")
    return units[unit]
