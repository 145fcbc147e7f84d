"""`vllm bench serve --save-result --save-detailed`: one JSON object with a list a field, element i of each about
request i.

Read off vLLM 0.32.0, vllm/benchmarks/serve.py (`benchmark`, `main_async`) and
vllm/benchmarks/lib/endpoint_request_func.py (`async_request_openai_completions`): `start_times` are
`time.perf_counter()` when the request is sent (missing before pull request 32667 of January 2026), `ttfts`, `itls`,
`latencies` and `queue_times` seconds from it, `queue_times` (missing before 0.32) the time that the client itself held
the request back. A gap in `itls` is one between messages; only where a request has one message a token are they its
tokens. `ttfts` is 0.0 where no first token was seen. `latencies` (missing in some versions) is the sum of `ttfts` and
`itls`; some versions count the end of the stream into it.
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
    lengths_told,
    since,
    token_times_told,
)

_LISTS = ("start_times", "input_lens", "output_lens", "ttfts", "itls", "errors")
_USED = {*_LISTS, "latencies", "queue_times", "model_id"}
_TELLS = {
    "start_times": (
        "when each request was sent is not known: vLLM has written it since January 2026 (pull request 32667)"
    ),
    "input_lens": "the prompts' lengths are not known",
    "output_lens": "how many tokens each answer has is not known",
    "errors": "which requests failed is not known",
}
_ROUNDING_S = 1e-6
"""Sums of gaps may miss the latency by it."""
_STREAM_END_S = 0.05
"""What may follow the last token in a latency: a message with the usage, the end of the stream."""


def read(path: Path, options: Options) -> Results:
    """The run in a result file.

    Raises:
        ResultsError: not such a file, saved without details, or a request that contradicts itself.
    """
    check_options(options, str(path), clock=True)
    result = read_object(path)
    columns = {name: _column(result, name) for name in _LISTS}
    sent = Item({"start_times": columns["start_times"]}, result.where).numbers("start_times")
    held, latencies = (_optional(result, name, len(sent)) for name in ("queue_times", "latencies"))
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
    longer = [
        over
        for one, latency in zip(requests, latencies or (), strict=False)
        if (over := _beyond_tokens(one, latency)) > _ROUNDING_S
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
                len(longer),
                len(requests),
                f"latencies that end up to {1000 * max(longer, default=0):.3f} ms after the last token (end of the"
                " stream), which is not counted",
            ),
            **counted(
                sum(one.error is not None for one in requests), len(requests), "failed requests, kept without times"
            ),
        },
        unstated=(
            *lengths_told(requests),
            "engine version not stated",
            *token_times_told(requests, "messages"),
        ),
    )


def _column(result: Item, name: str) -> list[object]:
    values = result.values.get(name)
    if name not in result.values and {"ttfts", "itls"} <= result.values.keys():
        raise ResultsError(
            f"{result.where}: {name} missing, though the result has details (ttfts, itls), so {_TELLS[name]}. Measure"
            " again with a later vLLM."
        )
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


def _optional(result: Item, name: str, number: int) -> list[float] | None:
    """A list that not every version writes."""
    if name not in result.values:
        return None
    values = result.numbers(name)
    if len(values) != number:
        raise ResultsError(f"{result.where}: {name} has {len(values)} elements, start_times {number}.")
    return values


def _request(item: Item, name: str, arrival_ns: int, send_ns: int) -> Request:
    """Element `name` of every list; times of tokens only where there is one message a token."""
    prompt, produced, message = item.count("input_lens"), item.count("output_lens"), item.values["errors"]
    text = str(message or "").strip()
    ttft_s = 0.0 if text else item.number("ttfts", least=0)
    if text or not (ttft_s or produced):
        error = (_kind(text), text[:1000]) if text else ("no answer", "no first token was seen, and no reason is given")
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, error=error, where=item.where)
    if not ttft_s:
        raise ResultsError(
            f"{item.where}: ttfts is 0, which stands where no first token was seen, but output_lens is {produced}. Is"
            " the file edited, or was it measured without streaming?"
        )
    if not produced:
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, where=item.where)
    first = send_ns + round(ttft_s * 1e9)
    times, at = [first], 0.0
    for gap in item.numbers("itls"):
        at += gap
        times.append(first + round(at * 1e9))
    return Request(
        name,
        arrival_ns,
        first,
        times[-1],
        prompt,
        produced,
        send_ns=send_ns,
        token_ns=tuple(times) if len(times) == produced else (),
        where=item.where,
    )


def _beyond_tokens(request: Request, latency_s: float) -> float:
    """Seconds from an answer's last token to its latency's end; 0 of a request without an answer.

    Raises:
        ResultsError: they contradict each other.
    """
    if request.completion_ns is None or request.send_ns is None:
        return 0.0
    told_s = (request.completion_ns - request.send_ns) / 1e9
    over = latency_s - told_s
    if not -_ROUNDING_S <= over <= max(_STREAM_END_S, told_s):
        raise ResultsError(
            f"{request.where}: latencies is {latency_s:g} s, but ttfts and the sum of itls are {told_s:g} s: of one"
            " request they are the same. Is the file edited, or a unit wrong?"
        )
    return over


def _kind(text: str) -> str:
    """The exception's class, which ends a traceback; else that it is an error."""
    last = text.splitlines()[-1].split(":")[0].strip() if text else ""
    return last if last.replace(".", "").replace("_", "").isalnum() and " " not in last else "error"
