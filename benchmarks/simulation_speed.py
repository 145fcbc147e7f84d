"""Vidur's stock command, Vidur's event loop in-process and the direct loop on one trace and the same operator tables,
each in a process of its own; and `calibrated` on a shipped profile.

    python benchmarks/simulation_speed.py [--sizes 1000 10000 100000] [--event-limit 10000] [--stock-limit 10000]
        [--token-limit 100000]

About 500 + 128 tokens a request at 20 requests/s (seeded), on made-up operator tables under which a decode step of 40
requests takes about 13 ms. Their times depend on the number of decodes alone: Vidur rounds tokens, chunks and contexts
up before it looks them up and `kernels` does not, so that on other tables the two would simulate different steps.
`calibrated` simulates the same requests on the profile of scenario h100_8b_half, an asynchronous engine.

The stock command is `python -m vidur.main`, unpatched, with its default metrics and without its plots (they start a
browser for each figure and take minutes whatever the number of requests). It finds the tables where its hub client
caches downloads, and replays the trace with its own reader at scale 1. So it serves a model that Vidur has built in,
its default.

Seconds and ratios are of processor time, with wall-clock time next to them: other work on the machine disturbs
processor time least. `whole process` includes imports, tables, and writing the results; `without start` leaves out what
one process pays once however many simulations it makes: imports, and here a small simulation, which makes them. Of a
loop `without tokens` only the request table is made and written, as a sweep or a search for capacity needs. The tables
of the event loop and the direct loop are compared to the byte. The stock command writes seconds as floats and no token
times: what is compared is each request's time to its first token and to its last, and reported is the largest
difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import Child, measured

from gst_assets.provenance import sha256_file
from gst_assets.scenario import Scenario, load_scenario, resolve_path
from gst_assets.step_costs.bundle import Bundle
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS
from gst_assets.testing import simulation_inputs as support

_RATE_PER_S = 20.0
_MAX_TOKENS, _MAX_SEQS, _BLOCKS, _BLOCK_SIZE, _GRANULARITY, _CHUNK = 4096, 128, 60_000, 16, 256, 4096
_GEOMETRY = {
    "num_layers": 32,
    "hidden_size": 4096,
    "num_q_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "mlp_hidden_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
_TIME_SCALE = 0.5
_COMMIT = "0" * 40
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


@dataclass(frozen=True)
class Row:
    """One measurement. `loop_*` in seconds is the simulation alone, `warm_cpu_s` with operator times, tables and
    writing, but without the start of the process; `process` is all of it; None: not reported by that loop."""

    loop: str
    num_requests: int
    num_steps: int | None
    loop_cpu_s: float | None
    loop_wall_s: float | None
    warm_cpu_s: float | None
    process: Child
    equal: str


def scenario(loop: str) -> Scenario:
    """What the stock command simulates, as a scenario."""
    return support.scenario(
        *(f"model.geometry.{name}={value}" for name, value in _GEOMETRY.items()),
        f"model.max_model_len={_MAX_TOKENS}",
        f"engine.max_num_seqs={_MAX_SEQS}",
        f"engine.max_num_batched_tokens={_CHUNK}",
        f"engine.block_size={_BLOCK_SIZE}",
        f"engine.num_kv_blocks={_BLOCKS + 1}",
        f"simulation.loop={loop}",
    )


def bundle(of: Scenario) -> Bundle:
    """Made-up operator tables: a step takes the same time whatever its tokens and contexts, and more with each
    decode."""
    made = support.bundle(of, flat=True, scale=_TIME_SCALE)
    attention, column = made.attention.copy(), "time_stats.attn_decode.median"
    attention[column] = attention[column].where(
        attention["is_prefill"], decode_attention_ms(attention["batch_size"].astype("float64"))
    )
    return replace(made, attention=attention)


def decode_attention_ms(batch_size: Any) -> Any:
    """Per layer; linear, so that what lies between measured batches is as exact as they are."""
    return 0.01 + 0.00425 * batch_size


def trace(num_requests: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """trace_lengths and trace_intervals."""
    random = np.random.default_rng(0)
    gaps = random.exponential(1e9 / _RATE_PER_S, num_requests).astype(int)
    prompts, decodes = random.integers(400, 601, num_requests), random.integers(100, 157, num_requests)
    return support.workload(list(zip(gaps.tolist(), prompts.tolist(), decodes.tolist(), strict=True)))


# --- a loop of this project, in a process of its own ------------------------------------------------------------------


_WITHOUT_TOKENS = " without tokens"
_CALIBRATED = f"calibrated{_WITHOUT_TOKENS}"


def simulate_here(loop: str, num_requests: int, directory: Path) -> None:
    """Simulate, write the tables to `directory`, and print the statistics as JSON."""
    from gst_assets.contracts.tables import RequestMetrics, TokenMetrics, write_table, write_table_parts
    from gst_assets.step_costs.bundle import find_bundle, load_bundle
    from gst_assets.vidur_adapter.simulate import simulate

    kind, variant = loop.removesuffix(_WITHOUT_TOKENS), "kernels"
    if loop == _CALIBRATED:
        of, variant = load_scenario("h100_8b_half"), kind
        assert of.profile.root is not None
        made = load_bundle(find_bundle(resolve_path(of.profile.root), of))
    else:
        of = scenario(kind)
        made = bundle(of)
    # Imports what a simulation of that size needs: the direct loop begins compiled with more than 2,000 requests.
    simulate(of, *trace(2 if kind == "event" else 500 if num_requests <= 2000 else 2001), made, variant, cache_dir=None)
    lengths, intervals = trace(num_requests)
    started = time.process_time()
    result = simulate(of, lengths, intervals, made, variant, cache_dir=None)
    directory.mkdir()
    write_table(RequestMetrics, result.requests, directory)
    if kind == loop:
        write_table_parts(TokenMetrics, result.token_parts(), directory)
    warm = {"warm_cpu_s": time.process_time() - started, "num_steps": len(result.delivered_ns)}
    print(json.dumps({**result.stats, **warm}))


# --- Vidur's stock command --------------------------------------------------------------------------------------------


def stock_command(num_requests: int, area: Path) -> list[str]:
    """The command; writes its trace, and its tables where its hub client looks for them, to `area`."""
    lengths, intervals = trace(num_requests)
    pd.DataFrame(
        {
            "Date": "2026-01-01",
            "Time": intervals["arrival_time_ns"].to_numpy(dtype=float) / 1e9,
            "PromptTokenCount": lengths["num_prefill_tokens"],
            "CompletionTokenCount": lengths["num_decode_tokens"],
        }
    ).to_csv(area / "trace.csv", index=False)
    predictor = "random_forrest_execution_time_predictor_config"
    options = {
        "cluster_config_num_replicas": 1,
        "replica_config_tensor_parallel_size": 1,
        "replica_config_num_pipeline_stages": 1,
        "cache_config_block_size": _BLOCK_SIZE,
        "cache_config_num_blocks": _BLOCKS,
        "cache_config_watermark_blocks_fraction": 0.0,
        "replica_scheduler_config_type": "sarathi",
        "sarathi_scheduler_config_batch_size_cap": _MAX_SEQS,
        "sarathi_scheduler_config_chunk_size": _CHUNK,
        "request_generator_config_type": "trace_replay",
        "trace_request_generator_config_trace_file": area / "trace.csv",
        "trace_request_generator_config_date": "2026-01-01",
        "trace_request_generator_config_prefill_scale_factor": 1.0,
        "trace_request_generator_config_decode_scale_factor": 1.0,
        "trace_request_generator_config_time_scale_factor": 1.0,
        "trace_request_generator_config_max_tokens": _MAX_TOKENS,
        "execution_time_predictor_config_type": "random_forrest",
        f"{predictor}_cache_dir": area / "cache",
        f"{predictor}_kv_cache_prediction_granularity": _GRANULARITY,
        f"{predictor}_attention_decode_batching_overhead_fraction": 0.0,
        "metrics_config_output_dir": area / "out",
    }
    _lay_out_tables(area / "cache")
    return [
        sys.executable,
        "-m",
        "vidur.main",
        "--no-metrics_config_store_plots",
        *(str(part) for name in options for part in (f"--{name}", options[name])),
    ]


def _lay_out_tables(cache: Path) -> None:
    """The operator tables as files of the two repositories that the stock predictor asks its hub client for."""
    made = bundle(scenario("direct"))
    tokens, contexts = range(8, _CHUNK + 1, 8), range(_GRANULARITY, _MAX_TOKENS + 1, _GRANULARITY)
    (prefill_ms,) = made.attention["time_stats.attn_prefill.median"].dropna().unique()
    predictions: dict[str, list[tuple[tuple[int, ...], float]]] = {}
    for name in PER_TOKEN_OPERATORS:
        (per_layer_ms,) = made.mlp[f"time_stats.{name}.median"].unique()
        predictions[name] = [((count,), per_layer_ms) for count in tokens]
    predictions["attn_decode"] = [
        ((batch, context), decode_attention_ms(batch)) for batch in range(1, _MAX_SEQS + 1) for context in contexts
    ]
    predictions["attn_prefill"] = [
        ((context, chunk), prefill_ms) for context in contexts for chunk in range(32, _CHUNK + 1, 32)
    ]
    predictions["attn_kv_cache_save"] = [((tokens,), 0.0) for tokens in range(1, _CHUNK + 1)]
    compute, network = _repositories()
    for kind, repository in (("compute", compute), ("network", network)):
        directory = cache / "hf_predictions" / kind / f"datasets--{repository.replace('/', '--')}"
        snapshot = directory / "snapshots" / _COMMIT
        snapshot.mkdir(parents=True)
        (directory / "refs").mkdir()
        (directory / "refs" / "main").write_text(_COMMIT)
        (snapshot / "config.json").write_text("{}")
        for name, rows in predictions.items() if kind == "compute" else ():
            frame = (
                pd.DataFrame([key for key, _ in rows]).add_prefix("X_").assign(prediction=[value for _, value in rows])
            )
            frame.to_csv(snapshot / f"{name}.csv.xz", index=False)


def _repositories() -> tuple[str, str]:
    """Names that the stock predictor makes up from its configuration."""
    from vidur.config import RandomForrestExecutionTimePredictorConfig, ReplicaConfig
    from vidur.execution_time_predictor.random_forrest_execution_time_predictor import (
        RandomForrestExecutionTimePredictor,
    )

    predictor = RandomForrestExecutionTimePredictor.__new__(RandomForrestExecutionTimePredictor)
    predictor._config = RandomForrestExecutionTimePredictorConfig()
    predictor._replica_config = ReplicaConfig(tensor_parallel_size=1, num_pipeline_stages=1)
    predictor._block_size, predictor._is_multi_node = _BLOCK_SIZE, False
    predictor._max_tokens = predictor._config.prediction_max_tokens_per_request
    return predictor._get_compute_prediction_repo_id(), predictor._get_network_prediction_repo_id()


def difference_ns(stock: Path, direct: Path) -> float:
    """The largest difference, over all requests, of time to first and time to last token."""
    (found,) = stock.glob("*/request_metrics.csv")
    theirs = pd.read_csv(found).set_index("Request Id").sort_index()
    ours = pd.read_csv(direct / "request_metrics.csv").set_index("request_id")
    if len(theirs) != len(ours):
        raise SystemExit(f"{found}: {len(theirs)} requests, expected {len(ours)}.")
    last = ours["completion_time_ns"] - ours["arrival_time_ns"]
    pairs = ((theirs["prefill_e2e_time"], ours["ttft_ns"]), (theirs["request_e2e_time"], last))
    return float(max(np.abs(one.to_numpy() * 1e9 - other.to_numpy()).max() for one, other in pairs))


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Most:
    """The most requests for which a loop is run; `tokens`: for which the direct loop's token tables are written."""

    event: int
    stock: int
    tokens: int


def rows(sizes: Sequence[int], most: Most) -> Iterator[Row]:
    """Measure."""
    for num_requests in sizes:
        with tempfile.TemporaryDirectory() as name:
            area = Path(name)
            known: dict[str, str] = {}
            for loop in ("direct", "event", f"direct{_WITHOUT_TOKENS}"):
                if num_requests > {"event": most.event, "direct": most.tokens}.get(loop, num_requests):
                    continue
                row, tables = _measured_here(loop, num_requests, area)
                yield (
                    replace(row, equal="yes, to the byte" if tables.items() <= known.items() else "NO")
                    if known
                    else row
                )
                known = known or tables
            if num_requests <= min(most.stock, most.tokens):
                child = measured(stock_command(num_requests, area), area, _ENVIRONMENT)
                equal = f"within {difference_ns(area / 'out', area / 'direct'):.0f} ns"
                yield Row("stock command", num_requests, None, None, None, None, child, equal)
            yield _measured_here(_CALIBRATED, num_requests, area)[0]


def _measured_here(loop: str, num_requests: int, area: Path) -> tuple[Row, dict[str, str]]:
    """A loop of this project, and the digests of its tables."""
    place = area / loop.replace(" ", "_")
    program = [sys.executable, str(Path(__file__).resolve())]
    child = measured([*program, "--here", loop, str(num_requests), str(place)], area, _ENVIRONMENT)
    stats: dict[str, Any] = json.loads(child.output.splitlines()[-1])
    tables = {path.name: sha256_file(path) for path in place.iterdir()}
    told = (stats[name] for name in ("num_steps", "loop_cpu_s", "loop_s", "warm_cpu_s"))
    return Row(loop, num_requests, *told, child, "-"), tables


def table(measurements: Iterable[Row]) -> Iterator[str]:
    """The rows as lines of Markdown; ratios are to the first row of so many requests."""
    head = (
        "requests",
        "loop",
        "steps",
        "loop CPU s (wall)",
        "steps per CPU s",
        "ratio",
        "without start CPU s",
        "whole process CPU s (wall)",
        "ratio",
        "peak MiB",
        "equal",
    )
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    direct: Row | None = None
    for row in measurements:
        if direct is None or row.num_requests != direct.num_requests or row.loop == _CALIBRATED:
            direct = row
        loop, ratio, speed = "-", "-", "-"
        if row.loop_cpu_s is not None and direct.loop_cpu_s is not None:
            loop, ratio = f"{row.loop_cpu_s:.3f} ({row.loop_wall_s:.3f})", f"{row.loop_cpu_s / direct.loop_cpu_s:.1f}"
            speed = f"{(row.num_steps or 0) / row.loop_cpu_s:,.0f}"
        process = f"{row.process.cpu_seconds:.1f} ({row.process.seconds:.1f})"
        cells = (
            f"{row.num_requests:,}",
            row.loop,
            "-" if row.num_steps is None else f"{row.num_steps:,}",
            loop,
            speed,
            ratio,
            "-" if row.warm_cpu_s is None else f"{row.warm_cpu_s:.2f}",
            process,
            f"{row.process.cpu_seconds / direct.process.cpu_seconds:.1f}",
            f"{row.process.peak_gib * 1024:.0f}",
            row.equal,
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--event-limit", type=int, default=10_000, help="most requests for Vidur's event loop")
    parser.add_argument("--stock-limit", type=int, default=10_000, help="most requests for the stock command")
    parser.add_argument("--token-limit", type=int, default=100_000, help="most requests with a token table")
    parser.add_argument("--here", nargs=3, metavar=("LOOP", "REQUESTS", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        loop, num_requests, directory = options.here
        simulate_here(loop, int(num_requests), Path(directory))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python"
        f" {platform.python_version()}\n"
    )
    for line in table(rows(options.sizes, Most(options.event_limit, options.stock_limit, options.token_limit))):
        print(line, flush=True)


if __name__ == "__main__":
    main()
