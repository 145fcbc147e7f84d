"""LLMServingSim 2: the real side `requests.jsonl` of its bench, and the simulated side, the CSV file of `--output`
(`sim.csv` in its examples).

Read off casys-kaist/LLMServingSim, bench/core/recorder.py (`write_requests`, `write_meta`), bench/core/runner.py and
bench/core/validate.py, and the examples under bench/examples at 5daddb2 (2026). In `requests.jsonl`, `arrival_time`
is Unix time and the other times are the engine's monotonic clock, so its own TTFT counts from `queued_ts`, up to 0.4
s after arrival. Both are kept: arrival is set on the engine's clock by the smallest `queued_ts - arrival_time` of the
run, so it is late by that request's own wait, and TTFT from arrival is a lower bound. The simulated CSV has
nanoseconds of the simulator's clock, and the gaps between tokens in `ITL`. Files of earlier versions count the prompt
in `output`; the number of gaps shows which.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from gst_assets.contracts.documents import NOT_STATED
from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_json_lines, read_object, read_rows
from gst_assets.importers.results import (
    MODEL_NOT_STATED,
    Options,
    Request,
    Results,
    check_clock,
    check_options,
    counted,
    in_order,
    instances_told,
    lengths_told,
    since,
    token_times_told,
)
from gst_assets.input_files import JsonProblem, parse_json

_COLUMNS = ("request id", "model", "input", "output", "arrival", "end_time", "latency", "queuing_delay", "TTFT", "ITL")
_TIMES = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_PREFIX = "bench-"
_APART_S = 100_000
"""Clocks that differ by more than a day are two (as bench/core/validate.py distinguishes them)."""


def read(path: Path, options: Options) -> Results:
    """The real or the simulated run in a file, or in a directory that has one of them.

    Raises:
        ResultsError: not such a file, or a directory that holds none or both.
    """
    if path.is_dir():
        found = [
            path / name
            for name in ("requests.jsonl", "vllm/requests.jsonl", "sim.csv", "outputs/sim.csv")
            if (path / name).is_file()
        ]
        if len(found) != 1:
            told = ", ".join(str(one) for one in found) or "neither requests.jsonl nor sim.csv"
            raise ResultsError(f"{path}: expected one run, found {told}. Name the file.")
        (path,) = found
    check_options(options, str(path), clock=path.suffix != ".csv")
    return _simulated(path) if path.suffix == ".csv" else _real(path, options)


# --- real -------------------------------------------------------------------------------------------------------------


def _real(path: Path, options: Options) -> Results:
    items = read_json_lines(path)
    answered = [item for item in items if all(item.has(key) for key in _TIMES)]
    if not answered:
        raise ResultsError(f"{path}: none of {len(items)} requests has all of {', '.join(_TIMES)}.")
    apart = [item.number("first_token_ts") - item.number("arrival_time") for item in answered]
    mixed = [abs(one) >= _APART_S for one in apart]
    if any(mixed) != all(mixed):
        item = answered[mixed.index(not mixed[0])]
        raise ResultsError(
            f"{item.where}: arrival_time and first_token_ts are of one clock in some requests and of two in others."
        )
    wait = min(item.number("queued_ts") - item.number("arrival_time") for item in answered) if mixed[0] else 0.0
    if mixed[0]:
        check_clock(
            [item.number("arrival_time") for item in answered],
            "epoch",
            options,
            f"{path}: arrival_time",
            "epoch seconds in bench/core/recorder.py",
        )
    arrivals = [item.number("arrival_time") + wait for item in answered]
    origin = min(arrivals)
    requests = [_measured(item, origin, arrival) for item, arrival in zip(answered, arrivals, strict=True)]
    meta, names = _meta(path), [one.name for one in requests]
    is_named = all(name.isdigit() for name in names)
    waits = [(one.queued_ns or 0) - one.arrival_ns for one in requests]
    return Results(
        run_type="real",
        files=(path,),
        requests=in_order(requests),
        maker="vllm",
        written_by="LLMServingSim bench" + (f" with vLLM {meta['vllm_version']}" if "vllm_version" in meta else ""),
        model=str(meta.get("model") or NOT_STATED),
        mapping={
            "arrival_time_ns": "arrival_time" + (" + smallest (queued_ts - arrival_time)" if mixed[0] else ""),
            "queued_time_ns": "queued_ts",
            "scheduled_time_ns": "scheduled_ts",
            "first_token_time_ns": "first_token_ts",
            "completion_time_ns": "last_token_ts",
            "num_prefill_tokens": "input_toks",
            "num_decode_tokens": "output_toks",
        },
        clock=(
            "two: arrival_time is epoch, the rest monotonic (they lie more than a day apart); joined where the "
            "shortest wait from arrival to queue is 0"
            if mixed[0]
            else "one for all times"
        ),
        arrivals="when the client sent the request to the engine",
        joined_by="request_id" + (f" without '{_PREFIX}', the position in the data set" if is_named else ""),
        is_named=is_named,
        transport="in_process",
        device_name=_device(meta),
        device_count=_device_count(meta),
        started_at=_moment(meta.get("started_at")),
        ended_at=_moment(meta.get("finished_at")),
        definitions={
            "its own TTFT": (
                "from queued_ts; here from arrival, and the report has both. The engine queued requests "
                f"{min(waits) / 1e6:.1f} to {max(waits) / 1e6:.1f} ms after arrival"
            ),
        },
        dropped=counted(len(items) - len(answered), len(items), "requests without all times"),
        unstated=(
            *(() if meta.get("model") else (MODEL_NOT_STATED,)),
            *lengths_told(requests),
            "the file has the first and last token's time only",
        ),
    )


def _measured(item: Item, origin: float, arrival: float) -> Request:
    name = item.text("request_id")
    bare = name.removeprefix(_PREFIX)
    first, last, queued, scheduled = (
        since(origin, item.number(key)) for key in ("first_token_ts", "last_token_ts", "queued_ts", "scheduled_ts")
    )
    produced = item.count("output_toks")
    return Request(
        bare if bare.isdigit() else name,
        since(origin, arrival),
        first,
        last,
        item.count("input_toks"),
        produced,
        scheduled_ns=scheduled,
        queued_ns=queued,
        token_ns=(first,) if produced == 1 else (),
        where=item.where,
    )


def _meta(path: Path) -> dict[str, Any]:
    """meta.json next to the file, where its bench left one."""
    beside = path.with_name("meta.json")
    return dict(read_object(beside).values) if beside.is_file() else {}


def _device(meta: dict[str, Any]) -> str | None:
    hardware = meta.get("hardware")
    name = hardware.get("name") or hardware.get("device_name") if isinstance(hardware, dict) else None
    return name if isinstance(name, str) else None


def _device_count(meta: dict[str, Any]) -> int | None:
    hardware = meta.get("hardware")
    count = hardware.get("device_count") if isinstance(hardware, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def _moment(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


# --- simulated --------------------------------------------------------------------------------------------------------


def _simulated(path: Path) -> Results:
    rows = read_rows(path, _COLUMNS)
    origin = min(row.count("arrival") for row in rows)
    requests, old = [], 0
    for row in rows:
        request, counts_prompt = _finished(row, origin)
        requests.append(request)
        old += counts_prompt
    if old not in (0, len(rows)):
        raise ResultsError(
            f"{path}: {old} of {len(rows)} rows count the prompt in column output, the others do not. Is it of one run?"
        )
    models = sorted({row.text("model") for row in rows})
    if len(models) > 1:
        raise ResultsError(f"{path}: requests of several models ({', '.join(models)}). Import one model's rows.")
    return Results(
        run_type="vidur",
        files=(path,),
        requests=sorted(requests, key=lambda one: int(one.name)),
        maker="llmservingsim",
        written_by="LLMServingSim (version not stated in the file)",
        model=models[0],
        mapping={
            "arrival_time_ns": "arrival",
            "scheduled_time_ns": "arrival + queuing_delay",
            "first_token_time_ns": "arrival + TTFT",
            "token_time_ns": "first token + running sum of ITL",
            "completion_time_ns": "end_time",
            "num_prefill_tokens": "input",
            "num_decode_tokens": "output - input (the file counts the prompt in output)" if old else "output",
        },
        clock=f"simulated nanoseconds, shifted by {origin} so that the first arrival is 0",
        arrivals="as the simulator was given them",
        joined_by="request id, the position in the data set",
        is_named=True,
        dropped={"TPOT": "not used", "instance id": instances_told({row.text("instance id") for row in rows})},
        unstated=token_times_told(requests, "gaps in ITL (or gaps that miss end_time)"),
    )


def _finished(row: Item, origin: int) -> tuple[Request, bool]:
    """A row as a request, and whether its `output` counts the prompt."""
    arrival, end, ttft = row.count("arrival"), row.count("end_time"), row.count("TTFT")
    if end - arrival != row.count("latency"):
        raise ResultsError(
            f"{row.where}: latency is {row.values['latency']}, but end_time - arrival is {end - arrival}."
        )
    try:
        gaps = Item({"ITL": parse_json(row.text("ITL"))}, row.where).numbers("ITL")
    except JsonProblem:
        raise row.error("ITL", "a list of nanoseconds") from None
    prompt, output = row.count("input"), row.count("output")
    counts_prompt = len(gaps) + 1 == output - prompt and len(gaps) + 1 != output
    produced = output - prompt if counts_prompt else output
    first = arrival + ttft - origin
    times = [first]
    for gap in gaps:
        times.append(times[-1] + round(gap))
    # Gaps are whole nanoseconds, so their sum may miss the end by one each.
    is_told = len(times) == produced and abs(times[-1] - (end - origin)) <= produced
    return (
        Request(
            str(row.count("request id")),
            arrival - origin,
            first,
            end - origin,
            prompt,
            produced,
            num_requested=produced,
            scheduled_ns=arrival - origin + row.count("queuing_delay"),
            token_ns=tuple(times) if is_told else (),
            where=row.where,
        ),
        counts_prompt,
    )
