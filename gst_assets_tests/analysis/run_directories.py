"""Writes small run directories with the contract's own writers, from token times that a test chose.

Not a test module. Everything derived (ttft, counts, latencies) is computed here from arrivals and token times only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gst_assets.contracts.csv_files import write_csv
from gst_assets.contracts.documents import ProfileMeta, RealRunMeta, VidurRunMeta, write_document
from gst_assets.contracts.store import directory_digests
from gst_assets.contracts.tables import Iterations, RequestMetrics, TokenMetrics
from gst_assets.testing.histories import ENGINE_SETTINGS, HARDWARE

MS = 1_000_000
WORKLOAD_SHA256 = {"prompts.jsonl": "1" * 64, "trace_lengths.csv": "2" * 64, "trace_intervals.csv": "3" * 64}


@dataclass(frozen=True)
class Request:
    """One request: `token_ns` are the absolute times of its tokens; `asked` defaults to as many."""

    arrival_ns: int
    token_ns: tuple[int, ...]
    prompt: int = 8
    asked: int | None = None
    status: str = "ok"


@dataclass(frozen=True)
class Recipe:
    """A run: its requests, changes to the metadata document, further columns of the request table, and the iterations
    table, if any."""

    requests: Sequence[Request]
    meta: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    iterations: pd.DataFrame | None = None

    def with_meta(self, **changes: Any) -> Recipe:
        return replace(self, meta=self.meta | changes)

    def scaled(self, factor: float) -> Recipe:
        """Every latency from arrival multiplied by `factor`."""
        return replace(
            self,
            requests=[
                replace(r, token_ns=tuple(r.arrival_ns + round((t - r.arrival_ns) * factor) for t in r.token_ns))
                for r in self.requests
            ],
        )


def steady(
    num_requests: int, num_tokens: int, *, ttft_ns: int = 20 * MS, itl_ns: int = 4 * MS, step_ns: int = 0
) -> Recipe:
    """Requests 10 ms apart; request i has TTFT `ttft_ns + i * step_ns` and every gap `itl_ns + i * step_ns`."""
    requests = []
    for i in range(num_requests):
        arrival = i * 10 * MS
        first = arrival + ttft_ns + i * step_ns
        requests.append(Request(arrival, tuple(first + k * (itl_ns + i * step_ns) for k in range(num_tokens))))
    return Recipe(requests)


def tables(recipe: Recipe) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The contract's request and token tables of a recipe."""
    rows, tokens = [], []
    for i, r in enumerate(recipe.requests):
        seen = r.status == "ok" and len(r.token_ns) > 0
        rows.append(
            {
                "request_id": i,
                "arrival_time_ns": r.arrival_ns,
                "first_token_time_ns": r.token_ns[0] if seen else None,
                "ttft_ns": r.token_ns[0] - r.arrival_ns if seen else None,
                "num_prefill_tokens": r.prompt,
                "num_decode_tokens": len(r.token_ns) if r.asked is None else r.asked,
                "num_decode_tokens_actual": len(r.token_ns),
                "status": r.status,
            }
        )
        for k, time in enumerate(r.token_ns):
            tokens.append(
                {
                    "request_id": i,
                    "token_index": k,
                    "token_time_ns": time,
                    "token_latency_ns": time - r.token_ns[k - 1] if k else 0,
                }
            )
    required, optional = RequestMetrics.column_types()
    types = required | {name: optional[name] for name in recipe.columns}
    token_types, _ = TokenMetrics.column_types()
    return pd.DataFrame(rows).assign(**recipe.columns).astype(types), pd.DataFrame(
        tokens, columns=list(token_types)
    ).astype(token_types)


def write_real(directory: Path, recipe: Recipe) -> Path:
    """Write a real run directory named after its run id."""
    values = {
        **_common(directory.name),
        "backend": "vllm",
        "group_id": "group",
        "repeat_index": 0,
        "num_repeats": 1,
        "engine_settings": {
            **ENGINE_SETTINGS,
            "backend": "vllm",
            "engine_version": "0.32.0",
            "max_model_len": 2048,
            "attention_backend": "CPU_ATTN",
        },
        "warmup": {"num_requests": 8},
        "lateness_ns": {"p50": 100_000, "p99": 900_000, "max": 1_500_000},
        "degraded": False,
        "num_bunched_messages": 0,
        "num_errors": 0,
        **recipe.meta,
    }
    return _write(directory, recipe, RealRunMeta, values)


def write_simulation(directory: Path, recipe: Recipe, variant: str = "calibrated") -> Path:
    """Write a simulation directory."""
    values = {
        **_common(directory.name),
        "profiling_root": "absent",
        "profile_sha256": {"mlp.csv": "4" * 64},
        "variant": variant,
        "predictor": "interpolation",
        "simulated_settings": {**ENGINE_SETTINGS, "attention_backend": "CPU_ATTN"},
        "num_preemptions": 0,
        **recipe.meta,
    }
    return _write(directory, recipe, VidurRunMeta, values)


def write_profile_meta(
    directory: Path, calibration_sha256: dict[str, str], mlp_sha256: str = "4" * 64, **more: Any
) -> Path:
    """Write the metadata document of a profiling bundle, which is all that a comparison reads of it."""
    directory.mkdir()
    real = {
        **ENGINE_SETTINGS,
        "backend": "vllm",
        "engine_version": "0.32.0",
        "max_model_len": 2048,
        "attention_backend": "CPU_ATTN",
    }
    values = {
        **{key: value for key, value in _common("profile").items() if not key.startswith("workload")},
        "profiling_root": str(directory),
        "profile_key": "key",
        "engine_settings": real,
        "calibration_sha256": calibration_sha256,
        "sha256": {"mlp.csv": mlp_sha256},
        **more,
    }
    write_document(ProfileMeta.model_validate(values), directory / "run_meta.json")
    return directory


def _common(run_id: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "started_at": "2026-01-02T03:04:05+00:00",
        "ended_at": "2026-01-02T03:05:05+00:00",
        "git_commit": "abcdef0123456789",
        "git_dirty": False,
        "model": "qwen3-tiny",
        "hardware": HARDWARE,
        "env": {"python": "3.11.9", "platform": "Linux", "packages": {"vidur": "0.0.26"}},
        "params": {
            "simulation": {"variants": ["kernels", "calibrated"]},
            "comparison": {"pass_band": 0.05, "warn_band": 0.1},
        },
        "hydra": {"config_path": "gst_assets/scenarios/smoke.yaml", "config_name": "smoke", "overrides": []},
        "workload_dir": "workloads/wl",
        "workload_id": "wl-0000000000000001",
        "workload_sha256": WORKLOAD_SHA256,
    }


def _write(directory: Path, recipe: Recipe, model: type[Any], values: dict[str, Any]) -> Path:
    directory.mkdir(parents=True)
    requests, tokens = tables(recipe)
    written = [(RequestMetrics, requests), (TokenMetrics, tokens)]
    if recipe.iterations is not None:
        written.append((Iterations, recipe.iterations))
    for table, frame in written:  # validated when they are read
        write_csv(frame, directory / table.file_name())
    document = model.model_validate(values | {"sha256": directory_digests(directory, "run_meta.json")})
    write_document(document, directory / "run_meta.json")
    return directory
