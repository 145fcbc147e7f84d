"""NVIDIA AIPerf's `profile_export.jsonl`: one JSON object a request, with `metadata`, `metrics` (each a value and its
unit) and `error`.

Read off ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md and
src/aiperf/common/models/record_models.py (`MetricRecordInfo`), and an example of October 2025
(examples/artifacts/run1), which calls three fields otherwise: `timestamp_ns`, `credit_phase` and `ttft`. Start times
are Unix nanoseconds, as their names say. `inter_chunk_latency` has a gap a message: those are the tokens' only where
there is one message a token.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_json_lines
from gst_assets.importers.results import (
    Options,
    Request,
    Results,
    check_clock,
    check_options,
    counted,
    in_order,
    token_times_told,
)

_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "sec": 1e9, "s": 1e9, "seconds": 1e9}
_MEASURED = "profiling"


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
    origin = min(starts)
    requests = in_order([_request(item, start - origin) for item, start in zip(measured, starts, strict=True)])
    is_named = all(one.name.isdigit() for one in requests)
    return Results(
        run_type="real",
        files=(path,),
        requests=requests,
        maker="server driven by AIPerf",
        written_by="NVIDIA AIPerf (version not stated in the file)",
        mapping={
            "arrival_time_ns": "metadata.request_start_ns",
            "first_token_time_ns": "+ metrics.time_to_first_token",
            "token_time_ns": "first token + running sum of metrics.inter_chunk_latency",
            "completion_time_ns": "metadata.request_start_ns + metrics.request_latency",
            "num_prefill_tokens": "metrics.input_sequence_length",
            "num_decode_tokens": "metrics.output_sequence_length",
        },
        clock=clock,
        arrivals="when the request was sent: the file has no intended time, so a late client is in no latency",
        joined_by="metadata.session_num" if is_named else "order of sending (the file has no session_num)",
        is_named=is_named,
        transport="http",
        started_at=datetime.fromtimestamp(origin / 1e9, timezone.utc) if origin >= 1e18 else None,
        dropped={
            **counted(len(every) - len(measured), len(every), "records of another phase (warm-up)"),
            **counted(
                sum(one.error is not None for one in requests), len(requests), "failed requests, kept without times"
            ),
        },
        unstated=(
            "model not stated",
            "intended arrival times not stated",
            "requested output lengths not stated: the produced ones stand in",
            *token_times_told(requests, "messages"),
        ),
    )


def _phase(metadata: Item) -> str:
    return metadata.text("benchmark_phase" if metadata.has("benchmark_phase") else "credit_phase")


def _start_ns(metadata: Item) -> int:
    return metadata.count("request_start_ns" if metadata.has("request_start_ns") else "timestamp_ns")


def _request(item: Item, arrival_ns: int) -> Request:
    metadata, metrics = item.item("metadata"), item.item("metrics")
    if metadata.has("turn_index") and metadata.count("turn_index"):
        raise ResultsError(
            f"{metadata.where}: turn_index is {metadata.values['turn_index']}: conversations of several turns are "
            "not imported, since a turn's arrival "
            "depends on the answer before."
        )
    name = str(metadata.count("session_num")) if metadata.has("session_num") else metadata.text("x_request_id")
    if item.has("error"):
        error = item.item("error")
        prompt = next(
            (_value(metrics, key, None) for key in ("input_sequence_length", "error_isl") if key in metrics.values), 0
        )
        told = (str(error.values.get("type") or "error"), str(error.values.get("message") or "no reason given")[:1000])
        return Request(name, arrival_ns, None, None, int(prompt), 0, send_ns=arrival_ns, error=told)
    prompt, produced = (int(_value(metrics, key, None)) for key in ("input_sequence_length", "output_sequence_length"))
    if not produced:
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=arrival_ns)
    first = arrival_ns + round(
        _value(metrics, "time_to_first_token" if "time_to_first_token" in metrics.values else "ttft", _NS)
    )
    end = arrival_ns + round(_value(metrics, "request_latency", _NS))
    times: list[int] = []
    if "inter_chunk_latency" in metrics.values or produced == 1:
        times, at = [first], 0.0
        for gap in _gaps(metrics) if produced > 1 else []:
            at += gap
            times.append(first + round(at))
    is_told = len(times) == produced
    return Request(
        name,
        arrival_ns,
        first,
        times[-1] if is_told else max(end, first),
        prompt,
        produced,
        send_ns=arrival_ns,
        token_ns=tuple(times) if is_told else (),
    )


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
