"""inference-perf's `per_request_lifecycle_metrics.json` (`report.request_lifecycle.per_request: true`): a list of
requests.

Read off kubernetes-sigs/inference-perf, inference_perf/reportgen/base.py (`generate_reports`: start_time, end_time,
request, response, info, error) and inference_perf/apis/base.py (`InferenceInfo`, `StreamedResponseMetrics`); earlier
versions have the token times in `info` itself, and later ones are to have the prompt's length in `request_metrics`
only. No published per-request file was found: those of demos/kubecon-na-2025 are summaries. Times are
`time.perf_counter()` in seconds, `output_token_times` those of the tokens as the client's tokenizer counts them. The
file does not keep `scheduled_time`, so the intended arrival is not known.
"""

from __future__ import annotations

from pathlib import Path

from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, objects, read_json
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
    since,
    token_times_told,
)


def read(path: Path, options: Options) -> Results:
    """The requests of a report.

    Raises:
        ResultsError: not such a file, requests without token times (not streamed), or times that contradict each other.
    """
    check_options(options, str(path), clock=True)
    value = read_json(path)
    if not isinstance(value, list):
        raise ResultsError(
            f"{path}: expected a list of requests, found {type(value).__name__}. Is it "
            "per_request_lifecycle_metrics.json?"
        )
    items = objects(value, str(path))
    if not items:
        raise ResultsError(f"{path}: no request in it.")
    starts = [item.number("start_time") for item in items]
    clock = check_clock(
        starts, "monotonic", options, f"{path}: start_time", "time.perf_counter() in inference-perf's client"
    )
    origin = min(starts)
    requests = in_order(
        [
            _request(item, origin, start, str(number))
            for number, (item, start) in enumerate(zip(items, starts, strict=True))
        ]
    )
    return Results(
        run_type="real",
        files=(path,),
        requests=requests,
        maker="server driven by inference-perf",
        written_by="kubernetes-sigs inference-perf (version not stated in the file)",
        mapping={
            "arrival_time_ns": "start_time",
            "token_time_ns": "info.response_metrics.output_token_times",
            "first_token_time_ns": "its first",
            "completion_time_ns": "its last",
            "num_prefill_tokens": "info.input_tokens, or info.request_metrics.text.input_tokens",
            "num_decode_tokens": "info.response_metrics.output_tokens",
        },
        clock=clock,
        arrivals="when the request was sent: the file has no intended time, so a late client is in no latency",
        joined_by="order of sending (the file names no request)",
        is_named=False,
        transport="http",
        dropped={
            "request, response": "texts are not imported",
            **counted(
                sum(one.error is not None for one in requests), len(requests), "failed requests, kept without times"
            ),
            **counted(
                sum(_retried(item) for item in items),
                len(items),
                "requests sent again after a fault, counted from the first time they were sent",
            ),
        },
        unstated=(
            MODEL_NOT_STATED,
            "intended arrival times not stated",
            *lengths_told(requests),
            *token_times_told(requests, "token times"),
        ),
    )


def _request(item: Item, origin: float, start: float, name: str) -> Request:
    arrival = since(origin, start)
    if item.has("error"):
        error = item.item("error")
        told = (
            str(error.values.get("error_type") or "error"),
            str(error.values.get("error_msg") or "no reason given")[:1000],
        )
        prompt = _prompt(item.item("info")) if item.has("info") else None
        return Request(name, arrival, None, None, prompt, 0, send_ns=arrival, error=told, where=item.where)
    info = item.item("info")
    answer = info.item("response_metrics") if info.has("response_metrics") else info
    prompt, produced = _prompt(info), answer.count("output_tokens")
    if prompt is None:
        raise info.error("input_tokens", "a whole number of at least 0")
    if not produced:
        return Request(name, arrival, None, None, prompt, 0, send_ns=arrival, where=item.where)
    if "output_token_times" not in answer.values:
        raise ResultsError(
            f"{answer.where}: output_token_times missing: without streaming (api.streaming: true) the first token was"
            " not seen. Measure with it."
        )
    seconds = answer.numbers("output_token_times")
    end = item.number("end_time")
    if not seconds or seconds[0] < start or seconds[-1] > end + 1e-6:
        raise ResultsError(
            f"{answer.where}: output_token_times are not between start_time {start} and end_time {end}, so they "
            "are not of one clock."
        )
    times = tuple(since(origin, one) for one in seconds)
    return Request(
        name,
        arrival,
        times[0],
        times[-1],
        prompt,
        produced,
        send_ns=arrival,
        token_ns=times if len(times) == produced else (),
        where=item.where,
    )


def _prompt(info: Item) -> int | None:
    if info.has("input_tokens"):
        return info.count("input_tokens")
    if not info.has("request_metrics") or not info.item("request_metrics").has("text"):
        return None
    text = info.item("request_metrics").item("text")
    return text.count("input_tokens") if text.has("input_tokens") else None


def _retried(item: Item) -> bool:
    info = item.values.get("info")
    return isinstance(info, dict) and bool(info.get("retries_attempted"))
