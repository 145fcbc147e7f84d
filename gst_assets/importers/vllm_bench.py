"""`vllm bench serve --save-result --save-detailed`: one JSON object with a list a field, element i of each about
request i.

Read off vLLM 0.32.0, vllm/benchmarks/serve.py (`benchmark`, `main_async`) and
vllm/benchmarks/lib/endpoint_request_func.py (`async_request_openai_completions`): `start_times` are
`time.perf_counter()` when the request is sent, `ttfts`, `itls`, `latencies` and `queue_times` seconds from it,
`queue_times` (missing before 0.32) the time that the client itself held the request back. A gap in `itls` is one
between messages; only where a request has one message a token are they its tokens.
"""

from __future__ import annotations

from pathlib import Path

from gst_assets.contracts.documents import NOT_STATED
from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_object
from gst_assets.importers.results import (
    Options,
    Request,
    Results,
    check_clock,
    check_options,
    counted,
    since,
    token_times_told,
)

_LISTS = ("start_times", "input_lens", "output_lens", "ttfts", "itls", "errors")
_USED = {*_LISTS, "queue_times", "model_id"}


def read(path: Path, options: Options) -> Results:
    """The run in a result file.

    Raises:
        ResultsError: not such a file, saved without details, or a request that contradicts itself.
    """
    check_options(options, str(path), clock=True)
    result = read_object(path)
    columns = {name: _column(result, name) for name in _LISTS}
    sent = Item({"start_times": columns["start_times"]}, result.where).numbers("start_times")
    held = result.numbers("queue_times") if "queue_times" in result.values else None
    if held is not None and len(held) != len(sent):
        raise ResultsError(f"{result.where}: queue_times has {len(held)} elements, start_times {len(sent)}.")
    clock = check_clock(
        sent, "monotonic", options, f"{result.where}: start_times", "time.perf_counter() in vLLM's serve.py"
    )
    arrivals = [one - (held[number] if held else 0.0) for number, one in enumerate(sent)]
    start = min(arrivals, default=0.0)
    requests = [
        _request(
            Item({name: columns[name][number] for name in _LISTS}, f"{result.where}: request {number}"),
            str(number),
            since(start, arrivals[number]),
            since(start, sent[number]),
        )
        for number in range(len(sent))
    ]
    return Results(
        run_type="real",
        files=(path,),
        requests=requests,
        maker=f"server driven by vllm bench serve (API {result.values.get('backend', NOT_STATED)})",
        written_by="vllm bench serve (fields as in vLLM 0.32.0)",
        model=result.text("model_id") if result.has("model_id") else NOT_STATED,
        mapping={
            "arrival_time_ns": "start_times - queue_times" if held else "start_times",
            "send_time_ns": "start_times",
            "first_token_time_ns": "start_times + ttfts",
            "token_time_ns": "first token + running sum of itls",
            "completion_time_ns": "first token + sum of itls",
            "num_prefill_tokens": "input_lens",
            "num_decode_tokens": "output_lens",
            "error_msg": "errors",
        },
        clock=clock,
        arrivals=(
            "when the client's schedule released the request"
            if held
            else "when the request was sent (the file has no queue_times, so the intended time is not known)"
        ),
        joined_by="position in the file, which is that in the data set",
        is_named=True,
        transport="http",
        definitions={
            "its own TTFT": "from sending; here from arrival, so the client's own holding back (queue_times) is inside"
        },
        dropped={
            "fields not used": ", ".join(name for name in result.values if name not in _USED),
            "generated_texts": "texts are not imported",
            **counted(
                sum(one.error is not None for one in requests), len(requests), "failed requests, kept without times"
            ),
        },
        unstated=(
            "requested output lengths not stated: the produced ones stand in",
            "engine version not stated",
            *token_times_told(requests, "messages"),
        ),
    )


def _column(result: Item, name: str) -> list[object]:
    values = result.values.get(name)
    if name not in result.values:
        raise ResultsError(
            f"{result.where}: {name} missing. Only a result saved with --save-detailed has single requests; "
            "run vllm bench serve again with it."
        )
    if not isinstance(values, list):
        raise result.error(name, "a list with an element a request")
    first = result.values.get("start_times")
    if isinstance(first, list) and len(values) != len(first):
        raise ResultsError(
            f"{result.where}: {name} has {len(values)} elements, start_times {len(first)}. Is the file edited?"
        )
    return values


def _request(item: Item, name: str, arrival_ns: int, send_ns: int) -> Request:
    """Element `name` of every list; times of tokens only where there is one message a token."""
    produced, message = item.count("output_lens"), item.values["errors"]
    if message:
        text = str(message).strip()
        return Request(
            name, arrival_ns, None, None, item.count("input_lens"), 0, send_ns=send_ns, error=(_kind(text), text[:1000])
        )
    gaps = item.numbers("itls")
    first = send_ns + round(item.number("ttfts", least=0) * 1e9)
    times, at = [first], 0.0
    for gap in gaps:
        at += gap
        times.append(first + round(at * 1e9))
    if not produced:
        return Request(name, arrival_ns, None, None, item.count("input_lens"), 0, send_ns=send_ns)
    return Request(
        name,
        arrival_ns,
        first,
        times[-1],
        item.count("input_lens"),
        produced,
        send_ns=send_ns,
        token_ns=tuple(times) if len(times) == produced else (),
    )


def _kind(text: str) -> str:
    """The exception's class, which ends a traceback; else that it is an error."""
    last = text.splitlines()[-1].split(":")[0].strip() if text else ""
    return last if last.replace(".", "").replace("_", "").isalnum() and " " not in last else "error"
