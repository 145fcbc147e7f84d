"""How long a comparison of large runs takes, and how much memory: `python benchmarks/comparison_scale.py`.

Writes two run directories of synthetic tokens (10 million rows a side by default, about 330 MB each), then, in
processes of their own, reads both token tables with pyarrow and compares the two directories with `gst compare`. Prints
the seconds and peak resident memory of each, and the ratio. Both are run twice, alternating, and the faster run of each
is reported: other work on the machine makes a run slower, never faster.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import ROWS, Child, Ratio, measured, tell

from gst_assets.contracts.documents import RealRunMeta, VidurRunMeta, write_document
from gst_assets.contracts.store import directory_digests

MS = 1_000_000
_READ = (
    "import sys; from pyarrow import csv; tables = [csv.read_csv(path) for path in sys.argv[1:]]; print(sum(len(t) for"
    " t in tables))"
)
_SETTINGS = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "block_size": 16,
    "num_kv_blocks": 48120,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "dtype": "bfloat16",
    "async_scheduling": True,
    "enforce_eager": False,
}


def write_run(directory: Path, kind: str, num_tokens: int, tokens_per_request: int, seed: int) -> None:
    """A run whose latencies follow a slowly varying load; both sides share arrivals and lengths."""
    from pyarrow import csv, table

    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    n = num_tokens // tokens_per_request
    arrival = np.cumsum(shared.exponential(20 * MS, n)).astype(np.int64)
    prompt = shared.integers(16, 2048, n)
    load = 1 + 0.5 * np.sin(np.arange(n) / 300)
    ttft = (load * (10 + prompt / 100) * own.lognormal(0, 0.1, n) * MS).astype(np.int64)
    gaps = (load[:, None] * 4 * MS * own.lognormal(0, 0.3, (n, tokens_per_request))).astype(np.int64)
    gaps[:, 0] = 0
    times = (arrival + ttft)[:, None] + np.cumsum(gaps, axis=1)
    directory.mkdir()
    ids = np.repeat(np.arange(n), tokens_per_request)
    index = np.tile(np.arange(tokens_per_request), n)
    columns = {
        "request_id": ids,
        "token_index": index,
        "token_time_ns": times.ravel(),
        "token_latency_ns": gaps.ravel(),
    }
    csv.write_csv(table(columns), directory / "token_metrics.csv", csv.WriteOptions(quoting_style="none"))
    pd.DataFrame(
        {
            "request_id": np.arange(n),
            "arrival_time_ns": arrival,
            "first_token_time_ns": arrival + ttft,
            "ttft_ns": ttft,
            "num_prefill_tokens": prompt,
            "num_decode_tokens": tokens_per_request,
            "num_decode_tokens_actual": tokens_per_request,
            "status": "ok",
        }
    ).to_csv(directory / "request_metrics.csv", index=False)
    common = {
        "run_id": directory.name,
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T01:00:00Z",
        "git_commit": None,
        "git_dirty": None,
        "model": "synthetic",
        "hardware": {"hardware_id": "none", "device_name": "none", "device_count": 1},
        "env": {},
        "params": {},
        "hydra": {"config_path": "-", "config_name": "synthetic"},
        "workload_dir": "-",
        "workload_id": "wl-synthetic",
        "workload_sha256": {},
        "sha256": directory_digests(directory, "run_meta.json"),
    }
    if kind == "real":
        settings = {
            **_SETTINGS,
            "backend": "vllm",
            "engine_version": "-",
            "max_model_len": 8192,
            "attention_backend": "-",
        }
        own_keys = {
            "backend": "vllm",
            "group_id": "g",
            "repeat_index": 0,
            "num_repeats": 1,
            "engine_settings": settings,
        }
        more = {
            "warmup": {"num_requests": 64},
            "lateness_ns": {"p50": 0},
            "degraded": False,
            "num_bunched_messages": 0,
            "num_errors": 0,
        }
        write_document(RealRunMeta.model_validate({**common, **own_keys, **more}), directory / "run_meta.json")
    else:
        own_keys = {
            "profiling_root": "absent",
            "profile_sha256": {},
            "variant": "calibrated",
            "predictor": "-",
            "simulated_settings": _SETTINGS,
        }
        write_document(
            VidurRunMeta.model_validate({**common, **own_keys, "num_preemptions": 0}), directory / "run_meta.json"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000, help="token rows a side")
    parser.add_argument("--tokens-per-request", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(ROWS, action="store_true", help="print the ratio as JSON, for bench.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real, sim, out = (Path(folder) / name for name in ("real", "sim", "out"))
        write_run(real, "real", options.tokens, options.tokens_per_request, 1)
        write_run(sim, "vidur", options.tokens, options.tokens_per_request, 2)
        tables = [str(side / "token_metrics.csv") for side in (real, sim)]
        compare = ["-m", "gst_assets.cli", "compare", str(real), str(sim), "--out", str(out)]
        reads: list[Child] = []
        comparisons: list[Child] = []
        for _ in range(options.rounds):
            reads.append(measured([sys.executable, "-c", _READ, *tables]))
            shutil.rmtree(out, ignore_errors=True)
            comparisons.append(measured([sys.executable, *compare]))
        if options.rows:
            seconds = ([one.seconds for one in comparisons], [one.seconds for one in reads])
            tell(
                [
                    Ratio(
                        f"comparison of two runs, {options.tokens:,} tokens a side",
                        "pyarrow reads both token tables",
                        *seconds,
                        "s",
                    )
                ]
            )
            return 0
        read, compared = (min(found, key=lambda one: one.seconds) for found in (reads, comparisons))
        size = sum(Path(one).stat().st_size for one in tables) / 1e6
        print(f"{options.tokens:,} token rows a side, {size:.0f} MB in both tables, {os.cpu_count()} CPUs")
        print(f"pyarrow reads both: {read.seconds:.1f} s, {read.cpu_seconds:.1f} CPU s, peak {read.peak_gib:.2f} GiB")
        print(
            f"comparison:         {compared.seconds:.1f} s, {compared.cpu_seconds:.1f} CPU s, peak"
            f" {compared.peak_gib:.2f} GiB, {compared.seconds / read.seconds:.1f} times the reading"
        )
        rounds = zip(reads, comparisons, strict=True)
        print("rounds [s]: " + ", ".join(f"{one.seconds:.1f} / {other.seconds:.1f}" for one, other in rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
