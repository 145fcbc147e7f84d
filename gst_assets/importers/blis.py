"""BLIS (inference-sim): the JSON file of `--results-path`, one object with `requests`.

Read off inference-sim/inference-sim, sim/metrics_utils.go (`MetricsOutput`, `RequestMetrics`), sim/metrics.go
(`EmitOutput`) and sim/simulator.go (`InjectArrival`): `arrived_at` is seconds of the simulator's clock, `ttft_ms`,
`e2e_ms` and `scheduling_delay_ms` are milliseconds from arrival. A request that did not complete has zeros there.
`num_decode_tokens` is what was asked for; a `length_capped` request ended with fewer, which the file does not count.
A request that is scheduled again after a preemption overwrites its `scheduling_delay_ms`. `itl_ms` is a request's mean,
so there are no token times. What it prints has no requests: the file has.
"""

from __future__ import annotations

import re
from pathlib import Path

from gst_assets.contracts.documents import NOT_STATED
from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_object
from gst_assets.importers.results import (
    MODEL_NOT_STATED,
    Options,
    Request,
    Results,
    check_options,
    counted,
    in_order,
    instances_told,
    since,
    without_scheduling,
)

_NAME = re.compile(r"request_(\d+)")
_INCOMPLETE, _CAPPED = "incomplete", "length capped"


def read(path: Path, options: Options) -> Results:
    """The simulation in a results file.

    Raises:
        ResultsError: not such a file, or requests of several models.
    """
    check_options(options, str(path))
    output = read_object(path)
    if "requests" not in output.values:
        raise ResultsError(
            f"{path}: requests missing: only the file that --results-path names has them, not what BLIS prints."
        )
    items = output.items("requests")
    if not items:
        raise ResultsError(f"{path}: no request in it.")
    models = sorted({item.text("model") for item in items if item.has("model")})
    if len(models) > 1:
        raise ResultsError(f"{path}: requests of several models ({', '.join(models)}). Import one model's requests.")
    origin = min(item.number("arrived_at", least=0) for item in items)
    bare = [_NAME.fullmatch(item.text("requestID")) for item in items]
    is_named = all(bare)
    requests = in_order(
        [
            _request(item, origin, one[1] if is_named and one else item.text("requestID"))
            for item, one in zip(items, bare, strict=True)
        ]
    )
    errors = [one.error[0] for one in requests if one.error is not None]
    results = Results(
        run_type="vidur",
        files=(path,),
        requests=requests,
        maker="blis",
        written_by="BLIS (inference-sim; version not stated in the file)",
        model=models[0] if models else NOT_STATED,
        mapping={
            "arrival_time_ns": "arrived_at",
            "scheduled_time_ns": "arrived_at + scheduling_delay_ms",
            "first_token_time_ns": "arrived_at + ttft_ms",
            "completion_time_ns": "arrived_at + e2e_ms",
            "num_prefill_tokens": "num_prefill_tokens",
            "num_decode_tokens": "num_decode_tokens",
        },
        clock=f"simulated seconds, shifted by {origin:g} so that the first arrival is 0",
        arrivals="as the simulator was given them",
        joined_by="requestID" + (" without 'request_'" if is_named else ""),
        is_named=True,
        dropped={
            "itl_ms": "a request's mean gap, not its tokens",
            "handled_by": instances_told({item.text("handled_by") for item in items if item.has("handled_by")}),
            **counted(
                errors.count(_INCOMPLETE), len(requests), "requests that did not complete (zeros), kept as failed"
            ),
            **counted(
                errors.count(_CAPPED), len(requests), "requests that ended at the longest length, kept as failed"
            ),
        },
        unstated=(
            *(() if models else (MODEL_NOT_STATED,)),
            "token times are not in the file",
        ),
    )
    preempted = output.count("preemption_count") if output.has("preemption_count") else 0
    if not preempted:
        return results
    return without_scheduling(
        results, f"{preempted} preemptions: scheduling_delay_ms of a preempted request is that of its last scheduling"
    )


def _request(item: Item, origin: float, name: str) -> Request:
    arrival = since(origin, item.number("arrived_at", least=0))
    prompt, produced = item.count("num_prefill_tokens"), item.count("num_decode_tokens")
    ttft, e2e, waited = (item.number(key, least=0) for key in ("ttft_ms", "e2e_ms", "scheduling_delay_ms"))
    error = None
    if not e2e:
        error = (_INCOMPLETE, "the simulation ended before the request did")
    elif item.flag("length_capped"):
        error = (_CAPPED, "ended at the model's longest length; how many tokens it has by then is not in the file")
    if error:
        return Request(name, arrival, None, None, prompt, 0, num_requested=produced, error=error, where=item.where)
    first, end = arrival + round(ttft * 1e6), arrival + round(e2e * 1e6)
    return Request(
        name,
        arrival,
        first,
        end,
        prompt,
        produced,
        num_requested=produced,
        scheduled_ns=arrival + round(waited * 1e6),
        token_ns=(first,) if produced == 1 else (),
        where=item.where,
    )
