"""guidellm's JSON report (`guidellm run --output kind=json,path=FILE`): one object with `benchmarks`, each a run with
its `requests`.

Read off guidellm 0.8.1, guidellm/schemas/base/request_stats.py (`GenerativeRequestStats`),
guidellm/schemas/base/info.py (`RequestTimings`, whose descriptions say "Unix timestamp") and
guidellm/benchmark/schemas/report.py (`GenerativeBenchmarksReport`, version 2), and a file that it wrote; version 1
(0.5) differs in where the model is, and a published file of 0.6 (inference-sim/inference-sim,
eval/ground_truth/jan20-codellama-prefill-1/guidellm-results.json) shows that a report may hold a sample of its requests
only (`sample_requests`, later `sample_size`), and that strategies which send as answers come
(guidellm/scheduler/strategies.py) target every request at the run's start. `requests` has the lists `successful`,
`errored` and `incomplete`. The file has the first and the last token's time only: what guidellm reports as single gaps
it spaces evenly itself, so they are not taken.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

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
    in_order,
    lengths_told,
    since,
)

_SENDS_AS_ANSWERED = ("synchronous", "concurrent", "throughput")
"""Strategies without intended times."""


def read(path: Path, options: Options) -> Results:
    """One benchmark of a report, `options.part` where it has several.

    Raises:
        ResultsError: not such a file, several benchmarks and none chosen, or requests without times or counts.
    """
    check_options(options, str(path), clock=True, part=True)
    report = read_object(path)
    benchmark = _chosen(report.items("benchmarks"), options, report.where)
    groups = benchmark.item("requests")
    answered, failed = groups.items("successful"), groups.items("errored")
    unfinished = groups.items("incomplete") if groups.has("incomplete") else []
    _check_whole(benchmark, {"successful": len(answered), "errored": len(failed)})
    if not answered:
        raise ResultsError(f"{groups.where}: no successful request.")
    starts = [_start(item) for item in answered + failed]
    clock = check_clock(
        starts, "epoch", options, f"{groups.where}: request_start", "guidellm's RequestTimings: Unix timestamps"
    )
    strategy = _strategy(benchmark)
    is_open = strategy not in _SENDS_AS_ANSWERED
    arrivals = [
        _intended(item, sent) if is_open else sent for item, sent in zip(answered + failed, starts, strict=True)
    ]
    origin = min(arrivals)
    requests = in_order(
        [
            _request(item, origin, arrival, sent, failed=number >= len(answered))
            for number, (item, arrival, sent) in enumerate(zip(answered + failed, arrivals, starts, strict=True))
        ]
    )
    metadata = report.values.get("metadata")
    version = metadata.get("guidellm_version", NOT_STATED) if isinstance(metadata, dict) else NOT_STATED
    total = len(requests) + len(unfinished)
    return Results(
        run_type="real",
        files=(path,),
        requests=requests,
        maker="server driven by guidellm",
        written_by=f"guidellm {version}",
        model=_model(report),
        mapping={
            "arrival_time_ns": "info.timings.targeted_start" if is_open else "info.timings.request_start",
            "send_time_ns": "info.timings.request_start",
            "first_token_time_ns": "info.timings.first_token_iteration",
            "completion_time_ns": "info.timings.last_token_iteration",
            "num_prefill_tokens": "prompt_tokens",
            "num_decode_tokens": "output_tokens",
        },
        clock=clock,
        arrivals=(
            "when guidellm meant to start the request (targeted_start); where it does not say, when it was sent"
            if is_open
            else f"when the request was sent: strategy {strategy} sends as answers come, and intends no times"
        ),
        joined_by="order of arrival (request_id is made anew in every run)",
        is_named=False,
        transport="http",
        started_at=_moment(min(starts)),
        definitions=(
            {"its own TTFT": "from request_start; here from arrival, so a late start is inside"} if is_open else {}
        ),
        dropped={
            **counted(len(unfinished), total, "incomplete requests (cut off at the benchmark's end)"),
            **counted(len(failed), total, "failed requests, kept without times"),
            "output": "texts are not imported",
        },
        unstated=(
            *(() if is_open else ("intended arrival times not stated",)),
            *lengths_told(requests),
            "engine version not stated",
            "the file has the first and last token's time only",
        ),
    )


def _chosen(benchmarks: list[Item], options: Options, where: str) -> Item:
    if options.part is None and len(benchmarks) == 1:
        return benchmarks[0]
    if options.part is None or not 0 <= options.part < len(benchmarks):
        raise ResultsError(
            f"{where}: holds {len(benchmarks)} benchmarks, numbered from 0. Say which one with --part, and import "
            "each into a directory of its own."
        )
    return benchmarks[options.part]


def _check_whole(benchmark: Item, found: dict[str, int]) -> None:
    """A sample of the requests is no run: its load and throughput are not those that were measured."""
    metrics = benchmark.values.get("metrics")
    totals = metrics.get("request_totals") if isinstance(metrics, dict) else None
    for name, number in found.items():
        total = totals.get(name) if isinstance(totals, dict) else None
        if total is not None and total != number:
            raise ResultsError(
                f"{benchmark.where}: holds {number} of {total!s:.20} {name} requests: guidellm kept a sample, which"
                " has another load than the run. Run it again without sample_requests (sample_size)."
            )


def _strategy(benchmark: Item) -> str | None:
    config = benchmark.values.get("config")
    strategy = config.get("strategy") if isinstance(config, dict) else None
    kind = strategy.get("type_") if isinstance(strategy, dict) else None
    return kind if isinstance(kind, str) else None


def _timings(item: Item) -> Item:
    return item.item("info").item("timings")


def _start(item: Item) -> float:
    timings = _timings(item)
    return timings.number("request_start") if timings.has("request_start") else timings.number("resolve_start")


def _intended(item: Item, sent: float) -> float:
    timings = _timings(item)
    return timings.number("targeted_start") if timings.has("targeted_start") else sent


def _request(item: Item, origin: float, arrival: float, sent: float, *, failed: bool) -> Request:
    name, timings = item.text("request_id"), _timings(item)
    arrival_ns, send_ns = since(origin, arrival), since(origin, sent)
    prompt = item.count("prompt_tokens") if item.has("prompt_tokens") or not failed else None
    if failed:
        message: Any = item.item("info").values.get("error") or "no reason given"
        error = ("error", str(message)[:1000])
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, error=error, where=item.where)
    produced = item.count("output_tokens")
    if not produced:
        return Request(name, arrival_ns, None, None, prompt, 0, send_ns=send_ns, where=item.where)
    first, last = (since(origin, timings.number(key)) for key in ("first_token_iteration", "last_token_iteration"))
    return Request(
        name,
        arrival_ns,
        first,
        last,
        prompt,
        produced,
        send_ns=send_ns,
        token_ns=(first,) if produced == 1 else (),
        where=item.where,
    )


def _model(report: Item) -> str:
    """The model asked for: in `config.spec.backend` since 0.8, in `args` before."""
    for keys in (("config", "spec", "backend", "model"), ("args", "model")):
        found: Any = report.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str) and found:
            return found
    return NOT_STATED


def _moment(epoch_s: float) -> datetime | None:
    return datetime.fromtimestamp(epoch_s, timezone.utc) if epoch_s >= 1e9 else None
