"""Stock Vidur's output folder: `request_metrics.csv`, and `config.json` next to it.

Read off vidur 0.0.26, vidur/metrics/metrics_store.py (`_store_request_metrics`, `on_request_arrival`,
`_on_request_end`) and vidur/metrics/constants.py; times are seconds of the simulator's clock. The first token is the
prefill's end, so `prefill_e2e_time` is TTFT. The file has no arrival time, but the gap to the request before
(`request_inter_arrival_delay`): arrivals are its running sum in order of `Request Id`. Token times are in no file
(`plots/` has distributions only), so there is no ITL.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gst_assets.contracts.documents import NOT_STATED
from gst_assets.errors import ResultsError
from gst_assets.importers.reading import Item, read_object, read_rows
from gst_assets.importers.results import MODEL_NOT_STATED, Options, Request, Results, check_options

_FILE = "request_metrics.csv"
_GAP = "request_inter_arrival_delay"
_COLUMNS = (
    "Request Id",
    "request_e2e_time",
    "prefill_e2e_time",
    "request_scheduling_delay",
    _GAP,
    "request_num_prefill_tokens",
    "request_num_decode_tokens",
    "request_num_restarts",
)


def read(path: Path, options: Options) -> Results:
    """The simulation in an output folder, or in its request_metrics.csv.

    Raises:
        ResultsError: not such a file, ids that are not 0, 1, 2, ..., or a request that was restarted.
    """
    check_options(options, str(path))
    path = path / _FILE if path.is_dir() else path
    rows = sorted(read_rows(path, _COLUMNS), key=lambda row: row.count("Request Id"))
    ids = [row.count("Request Id") for row in rows]
    if ids != list(range(len(ids))):
        odd = next(number for number, one in enumerate(ids) if one != number)
        raise ResultsError(
            f"{rows[odd].where}: Request Id {ids[odd]}, expected {odd}: arrivals are sums over all requests "
            "before, so every id from 0 has to be there once."
        )
    requests, arrival = list[Request](), 0.0
    for row in rows:
        # The first request follows none, so its field is empty.
        arrival += row.number(_GAP, least=0) if row.has(_GAP) or requests else 0.0
        requests.append(_request(row, arrival))
    replica, num_replicas = _config(path)
    degree = _positive(replica.get("tensor_parallel_size"))
    devices = {"num_replicas": num_replicas, "tensor_parallel_size": degree}
    return Results(
        run_type="vidur",
        files=(path,),
        requests=requests,
        maker="vidur",
        written_by="Vidur (fields as in 0.0.26)",
        model=str(replica.get("model_name") or NOT_STATED),
        hardware_id=str(replica["device"]) if replica.get("device") else None,
        device_count=_device_count(degree, _positive(replica.get("num_pipeline_stages")), num_replicas),
        simulated_settings={name: number for name, number in devices.items() if number is not None},
        mapping={
            "arrival_time_ns": f"running sum of {_GAP}",
            "scheduled_time_ns": "arrival + request_scheduling_delay",
            "first_token_time_ns": "arrival + prefill_e2e_time",
            "completion_time_ns": "arrival + request_e2e_time",
            "num_prefill_tokens": "request_num_prefill_tokens",
            "num_decode_tokens": "request_num_decode_tokens",
            "num_preemptions": "request_num_restarts",
        },
        clock="simulated seconds from the first arrival",
        arrivals="as the simulator was given them, less the first",
        joined_by="Request Id, the position in order of arrival",
        is_named=True,
        dropped={
            "plots": "distributions over all requests; nothing of single tokens",
            "other columns": "derived from those used",
        },
        unstated=(
            "token times are in no file of Vidur's output",
            *(() if replica else ("config.json is not there: device not stated", MODEL_NOT_STATED)),
        ),
    )


def _request(row: Item, arrival_s: float) -> Request:
    arrival, produced = round(arrival_s * 1e9), row.count("request_num_decode_tokens")
    if row.count("request_num_restarts"):
        # vidur/entities/request.py, `restart`: tokens so far become part of the prompt, which is prefilled anew.
        raise ResultsError(
            f"{row.where}: request_num_restarts is {row.values['request_num_restarts']}: Vidur then counts tokens that"
            " it had produced as prompt, and its first token anew, so neither is known. Simulate with more KV blocks."
        )
    first, end, scheduled = (
        arrival + round(row.number(key, least=0) * 1e9)
        for key in ("prefill_e2e_time", "request_e2e_time", "request_scheduling_delay")
    )
    return Request(
        str(row.count("Request Id")),
        arrival,
        first,
        end,
        row.count("request_num_prefill_tokens"),
        produced,
        num_requested=produced,
        scheduled_ns=scheduled,
        num_preemptions=0,
        token_ns=(first,) if produced == 1 else (),
        where=row.where,
    )


def _device_count(*factors: int | None) -> int | None:
    """Devices of all replicas, the product of the factors; None where one of these is not stated."""
    stated = [factor for factor in factors if factor is not None]
    return math.prod(stated) if len(stated) == len(factors) else None


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _config(path: Path) -> tuple[dict[str, Any], int | None]:
    """The section of a replica in config.json next to the file, empty where there is none, and the number of replicas;
    None: not stated."""
    beside = path.with_name("config.json")
    cluster = read_object(beside).values.get("cluster_config") if beside.is_file() else None
    cluster = cluster if isinstance(cluster, dict) else {}
    replica = cluster.get("replica_config")
    return dict(replica) if isinstance(replica, dict) else {}, _positive(cluster.get("num_replicas"))
