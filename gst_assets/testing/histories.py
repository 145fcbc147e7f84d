"""Comparison directories of chosen nights, written with the contract's own writers.

A night is real and simulated nanoseconds by (metric, statistic); everything else is the same from night to night unless
a test changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.analysis.bootstrap import Interval
from gst_assets.analysis.measures import is_sufficient
from gst_assets.analysis.verdict import judge
from gst_assets.contracts.documents import ComparisonMeta, write_document
from gst_assets.contracts.store import directory_digests
from gst_assets.contracts.tables import LatencyErrors, write_table
from gst_assets.scenario import Bands

FIRST_NIGHT = datetime(2026, 1, 1, 2, 0, tzinfo=timezone.utc)
ENGINE_SETTINGS = {
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "block_size": 32,
    "num_kv_blocks": 1024,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "dtype": "bfloat16",
    "async_scheduling": False,
    "enforce_eager": True,
    "scheduling_policy": "vllm_v1",
}
HARDWARE = {"hardware_id": "cpu", "device_name": "Test CPU", "device_count": 1}
METRICS = ("ttft", "itl", "e2e")
STATISTICS = ("p50", "p90", "p99")
BASE_NS = {"ttft": 20e6, "itl": 4e6, "e2e": 200e6}
Values = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Night:
    """One comparison: values in nanoseconds, and changes to the metadata (`settings` and `env` to what was
    measured)."""

    real: Values
    sim: Values
    num_samples: int = 500
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    measured: bool = True


def values(factor: float = 1.0) -> dict[tuple[str, str], float]:
    """Every latency, `factor` times a base; P90 twice and P99 three times the median."""
    return {
        (metric, statistic): factor * BASE_NS[metric] * (1 + number)
        for metric in METRICS
        for number, statistic in enumerate(STATISTICS)
    }


def noisy(count: int, seed: int, *, sigma: float = 0.02, step_at: int | None = None, step: float = 0.0) -> list[Night]:
    """Nights of one engine with normal noise common to all latencies of a night; from `step_at` on the engine is slower
    by `step`."""
    random = np.random.default_rng(seed)
    nights = []
    for number in range(count):
        slower = 1 + step if step_at is not None and number >= step_at else 1.0
        nights.append(Night(values(slower * (1 + sigma * random.standard_normal())), values(0.97)))
    return nights


def write_nights(root: Path, nights: Sequence[Night], scenario: str = "smoke") -> list[str]:
    """Write a comparison directory for each night under `root`; returns their ids, oldest first."""
    return [write_night(root, scenario, number, night) for number, night in enumerate(nights)]


def write_night(root: Path, scenario: str, number: int, night: Night) -> str:
    """Write the comparison directory of the night `number` days after `FIRST_NIGHT`; returns its id."""
    at = FIRST_NIGHT + timedelta(days=number)
    comparison_id = f"{scenario}-{at:%Y%m%dT%H%M%SZ}-{hashlib.sha256(str(number).encode()).hexdigest()[:4]}"
    directory = root / "comparisons" / comparison_id
    (directory / "tables").mkdir(parents=True)
    write_table(LatencyErrors, _errors(night), directory / "tables")
    settings = {
        **ENGINE_SETTINGS,
        "backend": "vllm",
        "engine_version": "0.32.0",
        "max_model_len": 2048,
        "attention_backend": "CPU_ATTN",
        **night.settings,
    }
    env = {"cpu": "Test CPU", "packages": {"torch": "2.13.0", "vidur": "0.0.26"}, **night.env}
    document: dict[str, Any] = {
        "run_id": comparison_id,
        "started_at": at + timedelta(minutes=5),
        "ended_at": at + timedelta(minutes=6),
        "git_commit": "abcdef0123456789",
        "git_dirty": False,
        "model": "qwen3-tiny",
        "hardware": HARDWARE,
        "env": env,
        "params": {"name": scenario, "model": {"name": "qwen3-tiny"}, "engine": {"backend": "vllm"}},
        "hydra": {"config_path": f"gst_assets/scenarios/{scenario}.yaml", "config_name": scenario, "overrides": []},
        "sha256": directory_digests(directory, "run_meta.json"),
        "real_run_dir": "real",
        "sim_run_dir": "sim",
        "real_run_dirs": ["real"],
        "sim_run_dirs": {"calibrated": "sim"},
        "workload_id": "wl-0000000000000001",
        "headline_variant": "calibrated",
        "verdict": "pass",
        **night.meta,
    }
    if night.measured:
        document["measured"] = {
            "group_id": night.group or f"{scenario}-night-{number}",
            "measured_at": at,
            "engine_settings": settings,
            "env": env,
            "sim_env": env,
            "profile_sha256": {"mlp.csv": "4" * 64},
        }
    write_document(ComparisonMeta.model_validate(document), directory / "run_meta.json")
    return comparison_id


def _errors(night: Night) -> pd.DataFrame:
    rows = []
    for (metric, statistic), real in night.real.items():
        sim = night.sim[metric, statistic]
        error, enough = (sim - real) / real, is_sufficient(statistic, night.num_samples, night.num_samples)
        rows.append(
            {
                "metric": metric,
                "statistic": statistic,
                "variant": "calibrated",
                "real_ns": real,
                "sim_ns": sim,
                "error_ns": sim - real,
                "relative_error": error,
                "real_spread": 0.03,
                "num_real_samples": night.num_samples,
                "num_sim_samples": night.num_samples,
                "verdict": judge(error, Interval(error, error), Bands(), sufficient=enough),
            }
        )
    types, _ = LatencyErrors.column_types()
    return pd.DataFrame(rows).astype(types)
