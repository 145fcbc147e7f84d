"""From what a replay recorded to the contract's tables: request_metrics, token_metrics and iterations, as data frames.

No file is written and nothing is validated here (that needs pandera, which a GPU host lacks); the frames are built so
that the models of `contracts.tables` accept them, which the tests assert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gst_assets.contracts.token_invariants import begins_request, indexes, latencies_ns
from gst_assets.contracts.turns import PREVIOUS, WORKLOAD_ARRIVAL
from gst_assets.engine.protocol import UNKNOWN_TOKEN_ID, IterationField, RequestTimes
from gst_assets.engine.replay import ReplayResult

_REQUEST_COLUMNS = (
    "request_id",
    "arrival_time_ns",
    "first_token_time_ns",
    "ttft_ns",
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_decode_tokens_actual",
    "status",
    "completion_time_ns",
    "prompt_id",
    "backend",
    "scheduled_time_ns",
    "send_time_ns",
    "num_preemptions",
    "error_type",
    "error_msg",
)
_CACHED = "num_cached_tokens"
"""One column more, where the engine has a prefix cache and reports what it took from it."""
_TURN_COLUMNS = (PREVIOUS, WORKLOAD_ARRIVAL)
"""Two columns more, where turns wait for the answers before them."""
_REQUEST_INTEGERS = (
    "request_id", "arrival_time_ns", "first_token_time_ns", "ttft_ns", "num_prefill_tokens", "num_decode_tokens",
    "num_decode_tokens_actual", "completion_time_ns", "scheduled_time_ns", "send_time_ns", "num_preemptions",
)  # fmt: skip
_ITERATION_COLUMNS = {
    "scheduled_time_ns": IterationField.SCHEDULED_NS,
    "completion_time_ns": IterationField.COMPLETION_NS,
    "num_prefill_requests": IterationField.PREFILL_REQUESTS,
    "num_prefill_tokens": IterationField.PREFILL_TOKENS,
    "num_decode_requests": IterationField.DECODE_REQUESTS,
    "num_context_tokens": IterationField.CONTEXT_TOKENS,
    "num_running": IterationField.RUNNING,
    "num_waiting": IterationField.WAITING,
    "launched_time_ns": IterationField.LAUNCHED_NS,
    "output_time_ns": IterationField.OUTPUT_NS,
    "num_prefill_context_tokens": IterationField.PREFILL_CONTEXT_TOKENS,
    "num_attention_pairs": IterationField.ATTENTION_PAIRS,
}

_REREAD = "num_reread_context_tokens"
"""One column more, where the engine has a prefix cache."""
_ITERATION_TIMES = tuple(name for name in _ITERATION_COLUMNS if name.endswith("_time_ns"))

_P50_P90_P99 = {"p50": 50, "p90": 90, "p99": 99}


def request_metrics(played: ReplayResult, backend: str) -> pd.DataFrame:
    """The request_metrics table with every optional column, one row per planned request; times from run start, integers
    nullable.

    `num_cached_tokens` is there if the engine reported it for any request, `previous_request_id` and
    `workload_arrival_time_ns` if any request waits for an answer."""
    rows = [_request_row(index, played, backend) for index in range(len(played.planned))]
    frame = pd.DataFrame(rows, columns=list(_REQUEST_COLUMNS))
    frame = frame.astype({name: "Int64" if name in _REQUEST_INTEGERS else "str" for name in _REQUEST_COLUMNS})
    cached = [result.times.num_cached_tokens if result.times else None for result in played.results]
    if any(count is not None for count in cached):
        frame[_CACHED] = pd.array(cached, dtype="Int64")
    if any(item.previous is not None for item in played.planned):
        previous = [item.previous for item in played.planned]
        arrivals = [item.arrival_time_ns for item in played.planned]
        for name, values in zip(_TURN_COLUMNS, (previous, arrivals), strict=True):
            frame[name] = pd.Series(values, dtype="Int64")
    return frame


def _request_row(index: int, played: ReplayResult, backend: str) -> dict[str, int | str | None]:
    item, result = played.planned[index], played.results[index]
    times = result.times or RequestTimes()
    first = _since(played, result.token_times_ns[0]) if result.token_times_ns else None
    arrival_ns = played.arrival_time_ns(index)
    return {
        "request_id": index,
        "arrival_time_ns": arrival_ns,
        "first_token_time_ns": first,
        "ttft_ns": None if first is None else first - arrival_ns,
        "num_prefill_tokens": len(item.request.prompt_token_ids),
        "num_decode_tokens": item.request.num_decode_tokens,
        "num_decode_tokens_actual": len(result.token_ids),
        "status": "error" if result.error_type else "ok",
        "completion_time_ns": _since(played, result.token_times_ns[-1]) if result.token_times_ns else None,
        "prompt_id": item.prompt_id,
        "backend": backend,
        "scheduled_time_ns": None if times.scheduled_ns is None else _since(played, times.scheduled_ns),
        "send_time_ns": None if result.send_ns is None else _since(played, result.send_ns),
        "num_preemptions": times.num_preemptions,
        "error_type": result.error_type,
        "error_msg": result.error_msg,
    }


def _since(played: ReplayResult, moment_ns: int) -> int:
    return moment_ns - played.start_ns


def token_metrics(played: ReplayResult) -> pd.DataFrame:
    """The token_metrics table with `token_id`, ordered by request and index; failed requests have no rows."""
    seen = [
        (index, time_ns, token_id)
        for index, result in enumerate(played.results)
        for time_ns, token_id in zip(result.token_times_ns, result.token_ids, strict=True)
    ]
    ids, times, token_ids = np.array(seen, dtype=np.int64).reshape(-1, 3).T
    begins = begins_request(ids)
    columns = {
        "request_id": ids,
        "token_index": indexes(begins),
        "token_time_ns": times - played.start_ns,
        "token_latency_ns": latencies_ns(begins, times),
        "token_id": token_ids,
    }
    frame = pd.DataFrame(columns).astype("Int64")
    frame["token_id"] = frame["token_id"].mask(frame["token_id"] == UNKNOWN_TOKEN_ID)
    return frame


def iterations(steps: np.ndarray, played: ReplayResult, *, has_prefix_cache: bool) -> pd.DataFrame:
    """The iterations table: the steps (`Engine.iterations`) scheduled inside the run, in the order of their scheduling
    and numbered from 0, times from run start.

    `num_reread_context_tokens` is there if the engine has a prefix cache."""
    inside = steps_inside(steps, played)
    inside = inside[np.argsort(inside[:, IterationField.SCHEDULED_NS], kind="stable")]
    frame = pd.DataFrame({name: inside[:, column] for name, column in _ITERATION_COLUMNS.items()})
    for name in _ITERATION_TIMES:
        seen = frame[name] != 0  # 0: the engine did not report it
        frame[name] = (frame[name] - played.start_ns).astype("Int64").where(seen)
    if has_prefix_cache:
        frame[_REREAD] = inside[:, IterationField.REREAD_CONTEXT_TOKENS]
    frame.insert(0, "iteration_id", np.arange(len(frame), dtype=np.int64))
    return frame.astype("Int64")


def steps_inside(steps: np.ndarray, played: ReplayResult) -> np.ndarray:
    """The rows of `steps` scheduled between run start and run end."""
    scheduled = steps[:, IterationField.SCHEDULED_NS]
    return steps[(scheduled >= played.start_ns) & (scheduled <= played.end_ns)]


def steps_are_missing(steps: np.ndarray, played: ReplayResult) -> bool:
    """Whether the steps recorded inside the run cannot account for every token the clients saw.

    A step yields at most one token for each request that decodes in it, and a request's first token ends a prefill:
    fewer decodes than tokens after the first, or fewer prefills than requests with a token, mean that records are lost.
    A preempted request is computed again as a prefill, which yields its next token in place of a decode.
    """
    inside = steps_inside(steps, played)
    decoded = int(inside[:, IterationField.DECODE_REQUESTS].sum())
    expected = sum(max(len(result.token_ids) - 1, 0) for result in played.results)
    expected -= sum(result.times.num_preemptions or 0 for result in played.results if result.times)
    prefilled = int(inside[:, IterationField.PREFILL_REQUESTS].sum())
    return decoded < expected or prefilled < sum(bool(result.token_ids) for result in played.results)


def lateness_ns(played: ReplayResult) -> dict[str, int]:
    """p50, p99 and max of send time minus intended arrival, over the requests that were sent; empty if none was."""
    late = [
        result.send_ns - played.start_ns - played.arrival_time_ns(index)
        for index, result in enumerate(played.results)
        if result.send_ns is not None
    ]
    return percentiles(late, {"p50": 50, "p99": 99, "max": 100})


def latency_percentiles(requests: pd.DataFrame, tokens: pd.DataFrame) -> dict[str, dict[str, int]]:
    """p50, p90 and p99 in nanoseconds of `ttft` (requests with a token) and `itl` (gaps between tokens, index 0
    excluded)."""
    gaps = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"]
    return {"ttft": percentiles(requests["ttft_ns"].dropna().tolist()), "itl": percentiles(gaps.tolist())}


def percentiles(values: Sequence[int], wanted: Mapping[str, int] = _P50_P90_P99) -> dict[str, int]:
    """Percentiles (linear interpolation) rounded to whole nanoseconds; empty without values."""
    if not values:
        return {}
    return {name: round(float(np.percentile(values, percent))) for name, percent in wanted.items()}
