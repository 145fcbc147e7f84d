"""Inputs of simulations: a scenario, a workload, and a bundle whose times follow simple formulas.

The tables are made up; what is tested is what the adapter makes of them, so a test can work out by hand what must come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gst_assets.contracts.csv_files import INTEGER
from gst_assets.contracts.documents import EngineSettings
from gst_assets.contracts.tables import (
    AttentionProfile,
    Iterations,
    MlpProfile,
    Overheads,
    RequestMetrics,
    TokenMetrics,
    TraceIntervals,
    TraceLengths,
    check_run_tables,
    validate,
)
from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS, OperatorModel
from gst_assets.scenario import Geometry, Scenario, load_scenario
from gst_assets.vidur_adapter.simulate import SimulationResult

QWEN3_0_6B = Geometry(
    num_layers=28,
    hidden_size=1024,
    num_q_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_hidden_size=3072,
    vocab_size=151936,
    max_position_embeddings=40960,
)


@dataclass(frozen=True)
class Meta:
    """The part of `documents.ProfileMeta` that a simulation reads."""

    engine_settings: EngineSettings


@dataclass(frozen=True)
class SyntheticBundle:
    """The fields of `profiling.bundle.Bundle`."""

    mlp: pd.DataFrame
    attention: pd.DataFrame
    overheads: pd.DataFrame | None
    meta: Meta
    sha256: dict[str, str] = field(default_factory=dict)
    directory: Path = Path("bundle")
    host_speed: pd.DataFrame | None = None


def scenario(*overrides: str) -> Scenario:
    """The embedded default scenario with overrides."""
    return load_scenario("smoke", overrides)


def engine_settings(of: Scenario, **changes: Any) -> EngineSettings:
    """What an engine started for `of` would report."""
    engine = of.engine
    values: dict[str, Any] = {
        "backend": "vllm",
        "engine_version": "0.32.0",
        "dtype": of.model.dtype,
        "max_model_len": of.model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "num_kv_blocks": engine.num_kv_blocks or 1024,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "enforce_eager": True,
        "attention_backend": "CPU_ATTN",
    }
    return EngineSettings(**(values | changes))


def bundle(
    of: Scenario,
    *,
    scale: float = 1.0,
    flat: bool = False,
    overheads: Sequence[dict[str, Any]] | None = None,
    **engine_changes: Any,
) -> SyntheticBundle:
    """A bundle for `of` that covers everything its limits allow.

    Times grow with tokens and contexts, or with `flat` are the same everywhere: then every step takes `flat_step_ns`.
    """
    geometry, engine, limit = of.model.geometry, of.engine, of.model.max_model_len
    top_tokens = -(-engine.max_num_batched_tokens // 32) * 32
    slope = 0.0 if flat else 1.0
    tokens = sorted({*range(1, 33), *range(32, top_tokens + 1, 32), top_tokens})
    mlp = pd.DataFrame({"num_tokens": tokens})
    for index, name in enumerate(PER_TOKEN_OPERATORS):
        mlp[f"time_stats.{name}.median"] = scale * (0.01 * (index + 1) + slope * 1e-4 * mlp["num_tokens"])
    mlp = mlp.assign(
        n_head=geometry.num_q_heads,
        n_kv_head=geometry.num_kv_heads,
        n_embd=geometry.hidden_size,
        n_expanded_embd=geometry.mlp_hidden_size,
        vocab_size=geometry.vocab_size,
        use_gated_mlp=True,
        num_tensor_parallel_workers=1,
    )
    mlp = _typed(MlpProfile, mlp)

    rows: list[dict[str, Any]] = []
    top_context = -(-limit // 64) * 64
    contexts = sorted({0, 1, 16, 64, 256, 1024, top_context} & set(range(top_context + 1)))
    for context in contexts:
        for chunk in sorted({1, 32, 128, 512, top_tokens} & set(range(top_tokens + 1))):
            time_ms = scale * (0.02 + slope * (1e-6 * chunk * (context + chunk / 2)))
            rows.append(
                {
                    "is_prefill": True,
                    "batch_size": 1,
                    "prefill_chunk_size": chunk,
                    "kv_cache_size": context,
                    "attn_prefill": time_ms,
                }
            )
        for batch in sorted({1, 2, 8, 32, engine.max_num_seqs} & set(range(engine.max_num_seqs + 1))):
            time_ms = scale * (0.02 + slope * 1e-5 * batch * context)
            rows.append(
                {
                    "is_prefill": False,
                    "batch_size": batch,
                    "prefill_chunk_size": 0,
                    "kv_cache_size": context,
                    "attn_decode": time_ms,
                }
            )
    attention = pd.DataFrame(rows).rename(
        columns={name: f"time_stats.{name}.median" for name in ("attn_prefill", "attn_decode")}
    )
    attention = attention.assign(
        **{"time_stats.attn_kv_cache_save.median": 0.001 * scale},
        n_embd=geometry.hidden_size,
        n_q_head=geometry.num_q_heads,
        n_kv_head=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        block_size=engine.block_size,
        num_tensor_parallel_workers=1,
        max_model_len=limit,
        attention_backend="CPU_ATTN",
    )
    attention = _typed(AttentionProfile, attention)
    table = overheads_table(overheads if overheads is not None else default_overheads())
    return SyntheticBundle(mlp, attention, table, Meta(engine_settings(of, **engine_changes)))


def flat_step_ns(of: Scenario) -> int:
    """Duration of a step of a `flat` bundle that holds one request."""
    per_layer_ms = sum(0.01 * (index + 1) for index in range(len(PER_TOKEN_OPERATORS))) + 0.02
    return round(per_layer_ms * of.model.geometry.num_layers * 1e6)


def operator_model(of: Scenario, made: SyntheticBundle) -> OperatorModel:
    """The profiler's own reading of a bundle."""
    return OperatorModel(made.mlp, made.attention, of.model.geometry.num_layers)


def step_row(
    kind: str, prefills: int, prefill_tokens: int, decodes: int, context: int, median_ns: int, term: str = "step"
) -> dict[str, Any]:
    """A row of overheads.csv about a step: the whole of it, or another `term`."""
    return _overhead(term, kind, prefills, prefill_tokens, decodes, context, median_ns)


def term_row(term: str, prefill_tokens: int, decodes: int, median_ns: int) -> dict[str, Any]:
    """A `handover` or `delivery` row of overheads.csv."""
    return _overhead(term, "none", 0, prefill_tokens, decodes, 0, median_ns)


def default_overheads() -> list[dict[str, Any]]:
    """Measured steps a few milliseconds above the operators of the synthetic tables."""
    rows = [step_row("decode", 0, 0, n, 256 * n, 9_000_000 + 50_000 * n) for n in (1, 2, 4, 8, 16, 32)]
    rows += [
        step_row("mixed", 1, tokens, n, 256 * n, 12_000_000 + 20_000 * tokens + 50_000 * n)
        for tokens in (8, 64, 256, 448)
        for n in (0, 4, 16, 31)
    ]
    return [
        *rows,
        term_row("handover", 64, 0, 300_000),
        term_row("delivery", 0, 1, 100_000),
        term_row("delivery", 0, 16, 400_000),
    ]


def overheads_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as overheads.csv holds them."""
    return _typed(Overheads, pd.DataFrame(list(rows)))


def workload(rows: Sequence[tuple[int, int, int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """trace_lengths and trace_intervals of requests given as (inter-arrival ns, prompt tokens, decode tokens)."""
    ids = list(range(len(rows)))
    gaps = [gap for gap, _, _ in rows]
    lengths = pd.DataFrame(
        {
            "request_id": ids,
            "prompt_id": [f"p{i}" for i in ids],
            "num_prefill_tokens": [prompt for _, prompt, _ in rows],
            "num_decode_tokens": [decode for _, _, decode in rows],
        }
    )
    intervals = pd.DataFrame({"request_id": ids, "inter_arrival_ns": gaps})
    intervals["arrival_time_ns"] = intervals["inter_arrival_ns"].cumsum()
    return _typed(TraceLengths, lengths), _typed(TraceIntervals, intervals)


def check(
    result: SimulationResult, lengths: pd.DataFrame, intervals: pd.DataFrame, *, overlapping: bool = False
) -> None:
    """Every invariant of the contract, and no token lost or made. `overlapping`: a step may be formed before the one before it is complete."""
    validate(RequestMetrics, result.requests, "requests")
    validate(TokenMetrics, result.tokens, "tokens")
    validate(Iterations, result.iterations, "iterations")
    check_run_tables(result.requests, result.tokens, "run")
    assert list(result.requests["num_decode_tokens_actual"]) == list(lengths["num_decode_tokens"])
    assert list(result.requests["arrival_time_ns"]) == list(intervals["arrival_time_ns"])
    assert (result.requests["scheduled_time_ns"] >= result.requests["arrival_time_ns"]).all()
    steps = result.iterations
    if not overlapping:
        assert (steps["scheduled_time_ns"].to_numpy()[1:] >= steps["completion_time_ns"].to_numpy()[:-1]).all()
    if result.num_preemptions == 0:
        assert steps["num_prefill_tokens"].sum() == lengths["num_prefill_tokens"].sum()
        # The first token of a request comes from its last prefill step.
        assert steps["num_decode_requests"].sum() == (lengths["num_decode_tokens"] - 1).sum()


def csv_bytes(result: SimulationResult) -> bytes:
    """The tables as they would be written."""
    tables = (result.requests, result.tokens, result.iterations)
    return b"\0".join(table.to_csv(index=False, lineterminator="\n").encode() for table in tables)


def _overhead(
    term: str, kind: str, prefills: int, prefill_tokens: int, decodes: int, context: int, median_ns: int
) -> dict[str, Any]:
    return {
        "term": term,
        "step_kind": kind,
        "num_prefill_requests": prefills,
        "num_prefill_tokens": prefill_tokens,
        "num_decode_requests": decodes,
        "num_context_tokens": context,
        "num_samples": 24,
        "p10_ns": median_ns,
        "median_ns": median_ns,
        "p90_ns": median_ns,
        "operators_ns": 0,
        "overhead_ns": median_ns,
    }


def _typed(model: Any, frame: pd.DataFrame) -> pd.DataFrame:
    required, optional = model.column_types()
    known = {**required, **optional}
    typed = frame.astype({name: INTEGER for name in frame.columns if known.get(name) == INTEGER})
    return validate(model, typed[[name for name in known if name in typed.columns]], model.file_name())
