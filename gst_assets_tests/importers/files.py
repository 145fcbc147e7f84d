"""Files of other programs, in the shape that their sources write them, from requests that a test chose.

Not a test module. Field names and structure as cited in each module of `gst_assets.importers`; every number here is
made up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

MS = 1_000_000
EPOCH_S = 1_790_000_000
BOOT_S = 27_536.0


@dataclass(frozen=True)
class Played:
    """One request: nanoseconds since the first arrival. `late_ns`: sent so much after its arrival."""

    arrival_ns: int
    token_ns: tuple[int, ...]
    prompt: int = 9
    late_ns: int = 0
    error: str = ""


def played(
    number: int = 24, tokens: int = 5, *, ttft_ms: float = 20, gap_ms: float = 4, factor: float = 1.0
) -> list[Played]:
    """Requests 50 ms apart whose latencies grow from one to the next, all multiplied by `factor`."""
    found = []
    for i in range(number):
        arrival = 50 * MS * i
        first = round((ttft_ms + i / 4) * MS * factor)
        gap = round((gap_ms + i / 16) * MS * factor)
        found.append(Played(arrival, tuple(arrival + first + gap * k for k in range(tokens)), prompt=8 + i % 5))
    return found


def _s(start_s: float, time_ns: int) -> float:
    return start_s + time_ns / 1e9


def _gaps(one: Played) -> list[int]:
    return [after - before for before, after in pairwise(one.token_ns)]


def vllm_bench(path: Path, requests: Sequence[Played], **changes: Any) -> Path:
    """`vllm bench serve --save-result --save-detailed` of vLLM 0.32.0."""
    sent = [one.arrival_ns + one.late_ns for one in requests]
    document = {
        "date": "20260102-030405",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": None,
        "model_id": "tiny",
        "tokenizer_id": "tiny",
        "num_prompts": len(requests),
        "request_rate": 20.0,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": 2.0,
        "completed": sum(not one.error for one in requests),
        "failed": sum(bool(one.error) for one in requests),
        "input_lens": [one.prompt for one in requests],
        "output_lens": [len(one.token_ns) for one in requests],
        "ttfts": [
            (one.token_ns[0] - at) / 1e9 if one.token_ns else 0.0 for one, at in zip(requests, sent, strict=True)
        ],
        "itls": [[gap / 1e9 for gap in _gaps(one)] for one in requests],
        "latencies": [
            (one.token_ns[-1] - at) / 1e9 if one.token_ns else 0.0 for one, at in zip(requests, sent, strict=True)
        ],
        "start_times": [_s(BOOT_S, at) for at in sent],
        "queue_times": [one.late_ns / 1e9 for one in requests],
        "generated_texts": ["w1" for _ in requests],
        "errors": [one.error for one in requests],
        "mean_ttft_ms": 1.0,
        **changes,
    }
    path.write_text(json.dumps({name: value for name, value in document.items() if value != "left out"}))
    return path


def guidellm(path: Path, requests: Sequence[Played], **changes: Any) -> Path:
    """`guidellm run --output kind=json,path=benchmarks.json` of guidellm 0.8.1."""

    def stats(number: int, one: Played) -> dict[str, Any]:
        start = _s(EPOCH_S, one.arrival_ns + one.late_ns)
        ends = (_s(EPOCH_S, one.token_ns[0]), _s(EPOCH_S, one.token_ns[-1])) if one.token_ns else (None, None)
        return {
            "type_": "generative_request_stats",
            "request_id": f"{number:08x}-0000-4000-8000-000000000000",
            "output": "w1",
            "info": {
                "status": "errored" if one.error else "completed",
                "scheduler_start_time": EPOCH_S - 1.0,
                "error": one.error or None,
                "timings": {
                    "targeted_start": _s(EPOCH_S, one.arrival_ns),
                    "queued": EPOCH_S - 0.5,
                    "resolve_start": start,
                    "request_start": start,
                    "first_token_iteration": ends[0],
                    "last_token_iteration": ends[1],
                    "token_iterations": len(one.token_ns),
                    "request_end": ends[1],
                },
            },
            "prompt_tokens": one.prompt,
            "output_tokens": len(one.token_ns) or None,
        }

    rows = [(one.error, stats(number, one)) for number, one in enumerate(requests)]
    benchmark = {
        "type_": "generative_benchmark",
        "requests": {
            # guidellm lists requests in the order in which they ended.
            "successful": [row for error, row in reversed(rows) if not error],
            "errored": [row for error, row in rows if error],
            "incomplete": [],
            "total": None,
        },
    }
    document = {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"}, "conclusions": [],
        "config": {"spec": {"backend": {"kind": "openai_http", "target": "http://127.0.0.1:8000", "model": "tiny"}}},
        "benchmarks": [benchmark], **changes,
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def aiperf(path: Path, requests: Sequence[Played], *, unit: str = "ms", warmups: int = 2) -> Path:
    """AIPerf's profile_export.jsonl."""
    per_unit = {"ms": 1e6, "ns": 1.0, "sec": 1e9}[unit]
    lines = []
    for number, one in enumerate([requests[0]] * warmups + list(requests)):
        is_warmup = number < warmups
        metadata = {
            "session_num": number - warmups if not is_warmup else number,
            "x_request_id": f"x-{number}",
            "conversation_id": f"c-{number}",
            "turn_index": 0,
            "request_start_ns": EPOCH_S * 10**9 + one.arrival_ns,
            "request_end_ns": EPOCH_S * 10**9 + one.arrival_ns + 1,
            "worker_id": "w",
            "record_processor_id": "r",
            "benchmark_phase": "warmup" if is_warmup else "profiling",
            "was_cancelled": False,
        }
        if one.error:
            metrics: dict[str, Any] = {"error_isl": {"value": one.prompt, "unit": "tokens"}}
            error: Any = {"code": 499, "type": "RequestCancellationError", "message": one.error}
        else:
            first, last = one.token_ns[0] - one.arrival_ns, one.token_ns[-1] - one.arrival_ns
            metrics, error = {
                "input_sequence_length": {"value": one.prompt, "unit": "tokens"},
                "time_to_first_token": {"value": first / per_unit, "unit": unit},
                "request_latency": {"value": last / per_unit, "unit": unit},
                "inter_chunk_latency": {"value": [gap / per_unit for gap in _gaps(one)], "unit": unit},
                "output_sequence_length": {"value": len(one.token_ns), "unit": "tokens"},
            }, None  # fmt: skip
        lines.append(json.dumps({"metadata": metadata, "metrics": metrics, "error": error}))
    path.write_text("\n".join(lines) + "\n")
    return path


def inference_perf(path: Path, requests: Sequence[Played]) -> Path:
    """inference-perf's per_request_lifecycle_metrics.json."""
    rows = []
    for one in requests:
        answer = {
            "output_tokens": len(one.token_ns), "server_usage": None, "response_chunks": [], "chunk_times": [],
            "output_token_times": [_s(BOOT_S, at) for at in one.token_ns],
        }  # fmt: skip
        rows.append(
            {
                "start_time": _s(BOOT_S, one.arrival_ns),
                "end_time": _s(BOOT_S, max([one.arrival_ns, *one.token_ns]) + MS),
                "request": "{}",
                "response": "w1",
                "info": {
                    "request_metrics": {"text": {"input_tokens": one.prompt}},
                    "response_metrics": answer,
                    "input_tokens": one.prompt,
                },
                "error": {"error_type": "HTTP Error 500", "error_msg": one.error} if one.error else None,
            }
        )
    # In the order in which they ended.
    path.write_text(json.dumps(sorted(rows, key=lambda row: row["end_time"])))
    return path


def llmservingsim_real(
    path: Path, requests: Sequence[Played], *, waits_ms: Sequence[float], one_clock: bool = False
) -> Path:
    """requests.jsonl of LLMServingSim's bench: arrival in Unix time, the rest monotonic; request i is queued
    `waits_ms[i]` after its arrival."""
    base = BOOT_S if one_clock else EPOCH_S
    lines = [
        json.dumps(
            {
                "request_id": f"bench-{number}",
                "input_toks": one.prompt,
                "output_toks": len(one.token_ns),
                "arrival_time": _s(base, one.arrival_ns),
                "queued_ts": _s(BOOT_S, one.arrival_ns) + waits_ms[number] / 1e3,
                "scheduled_ts": _s(BOOT_S, one.arrival_ns) + waits_ms[number] / 1e3,
                "first_token_ts": _s(BOOT_S, one.token_ns[0]),
                "last_token_ts": _s(BOOT_S, one.token_ns[-1]),
            }
        )
        for number, one in enumerate(requests)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def llmservingsim_simulated(
    path: Path, requests: Sequence[Played], *, first_ns: int = 46_926_808, counts_prompt: bool = False
) -> Path:
    """The CSV file of LLMServingSim's --output, in order of completion."""
    lines = ["instance id,request id,model,input,output,arrival,end_time,latency,queuing_delay,TTFT,TPOT,ITL"]
    order = sorted(range(len(requests)), key=lambda number: (requests[number].token_ns[-1], -number))
    for number in order:
        one = requests[number]
        arrival, ttft, latency = (
            one.arrival_ns + first_ns,
            one.token_ns[0] - one.arrival_ns,
            one.token_ns[-1] - one.arrival_ns,
        )
        produced = len(one.token_ns)
        tpot = (latency - ttft) // max(produced - 1, 1)
        output = produced + one.prompt if counts_prompt else produced
        lines.append(
            f'0,{number},meta/Tiny,{one.prompt},{output},{arrival},{arrival + latency},{latency},1000,{ttft},{tpot},"{_gaps(one)}"'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def vidur(
    folder: Path, requests: Sequence[Played], *, model: str = "tiny", num_replicas: object = 1, **replica: Any
) -> Path:
    """Vidur's output folder: request_metrics.csv, config.json (with more of the replica) and an (unread) plots
    folder. `num_replicas` None: left out."""
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "request_e2e_time.csv").write_text("cdf,request_e2e_time\n0.0,0.1\n")
    columns = [
        "Request Id",
        "request_e2e_time",
        "request_e2e_time_normalized",
        "request_execution_time",
        "request_preemption_time",
        "request_scheduling_delay",
        "prefill_e2e_time",
        "request_inter_arrival_delay",
        "request_num_tokens",
        "request_num_prefill_tokens",
        "request_num_decode_tokens",
        "request_pd_ratio",
        "request_num_restarts",
    ]
    lines = [",".join(columns)]
    for number, one in enumerate(requests):
        gap = "" if number == 0 else repr((one.arrival_ns - requests[number - 1].arrival_ns) / 1e9)
        e2e, ttft, tokens = (
            (one.token_ns[-1] - one.arrival_ns) / 1e9,
            (one.token_ns[0] - one.arrival_ns) / 1e9,
            len(one.token_ns),
        )
        lines.append(
            f"{number},{e2e!r},{e2e / tokens!r},{e2e!r},0.0,0.0,{ttft!r},{gap},{one.prompt + tokens}.0,{one.prompt}.0,{tokens}.0,1.0,0"
        )
    (folder / "request_metrics.csv").write_text("\n".join(lines) + "\n")
    cluster = {} if num_replicas is None else {"num_replicas": num_replicas}
    (folder / "config.json").write_text(
        json.dumps(
            {"cluster_config": {**cluster, "replica_config": {"model_name": model, "device": "a100", **replica}}}
        )
    )
    return folder


def blis(path: Path, requests: Sequence[Played], *, unfinished: int = 0) -> Path:
    """BLIS's results file. The last `unfinished` requests did not complete."""
    rows = []
    for number, one in enumerate(requests):
        done = number < len(requests) - unfinished
        rows.append(
            {
                "arrived_at": one.arrival_ns / 1e9 + 1.5,
                "requestID": f"request_{number}",
                "num_prefill_tokens": one.prompt,
                "num_decode_tokens": len(one.token_ns),
                "ttft_ms": (one.token_ns[0] - one.arrival_ns) / 1e6 * done,
                "itl_ms": 4.0 * done,
                "e2e_ms": (one.token_ns[-1] - one.arrival_ns) / 1e6 * done,
                "scheduling_delay_ms": 0.5 * done,
                "model": "tiny",
                "round_index": 0,
            }
        )
    path.write_text(
        json.dumps({"instance_id": "0", "completed_requests": len(rows), "ttft_mean_ms": 1.0, "requests": rows})
    )
    return path
