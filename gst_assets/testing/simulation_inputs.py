"""Inputs of simulations: a scenario, a workload, and a bundle whose times follow simple formulas.

The tables are made up; what is tested is what the adapter makes of them, so a test can work out by hand what must come
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from gst_assets.contracts.csv_files import INTEGER
from gst_assets.contracts.documents import EngineSettings, Hardware, Hydra, ProfileMeta
from gst_assets.contracts.tables import (
    AllReduceProfile,
    AttentionProfile,
    HostSpeed,
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
from gst_assets.scenario import Geometry, Scenario, load_scenario
from gst_assets.step_costs.bundle import FORMAT_VERSION, Bundle, profile_key
from gst_assets.step_costs.engine_costs import IDLE_TERMS, OTHER_TERMS, STEP_TERMS
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS
from gst_assets.step_costs.shapes import DECODE, MIXED, MIXED_EAGER
from gst_assets.step_costs.terms import ANY_KIND, BASE
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
        "quantization": of.model.quantization,
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
        "tensor_parallel_size": engine.tensor_parallel_size,
    }
    return EngineSettings(**(values | changes))


def bundle(
    of: Scenario,
    *,
    scale: float = 1.0,
    flat: bool = False,
    overheads: Sequence[dict[str, Any]] | None = None,
    host_speed: pd.DataFrame | None = None,
    hardware_id: str | None = None,
    **engine_changes: Any,
) -> Bundle:
    """A bundle for `of` that covers everything its limits allow.

    Times of operators grow with tokens and contexts, or with `flat` are the same everywhere: then every step takes
    `flat_step_ns`. `overheads` are rows (`cost_row`), by default `default_overheads`; `host_speed` by default that of a
    host whose speed does not change. `hardware_id` is by default the scenario's; on `cpu` the device is the host.
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
        num_tensor_parallel_workers=engine.tensor_parallel_size,
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
        num_tensor_parallel_workers=engine.tensor_parallel_size,
        max_model_len=limit,
        attention_backend="CPU_ATTN",
    )
    attention = _typed(AttentionProfile, attention)
    table = overheads_table(overheads if overheads is not None else default_overheads())
    return Bundle(
        directory=Path("bundle"),
        mlp=mlp,
        attention=attention,
        experts=None,
        overheads=table,
        host_speed=host_speed if host_speed is not None else even_speed(),
        traffic=None,
        self_fit=None,
        all_reduce=_all_reduce(of, tokens, scale) if engine.tensor_parallel_size > 1 else None,
        meta=_meta(of, hardware_id or of.hardware.hardware_id, engine_settings(of, **engine_changes)),
        sha256={},
    )


def _all_reduce(of: Scenario, tokens: Sequence[int], scale: float) -> pd.DataFrame:
    values = pd.Series(tokens) * of.model.geometry.hidden_size
    degree = of.engine.tensor_parallel_size
    frame = pd.DataFrame(
        {
            "time_stats.all_reduce.median": scale * (ALL_REDUCE_MS + 1e-4 * pd.Series(tokens)),
            "num_tokens": tokens,
            "message_bytes": of.model.bytes_per_value * values,
            "size": 2 * values,
            "num_workers": degree,
            "devices_per_node": degree,
            "collective": "all_reduce",
        }
    )
    return _typed(AllReduceProfile, frame)


ALL_REDUCE_MS = 0.03
"""Of a message of no tokens in a bundle of several devices; 0.0001 more for each token."""


def _meta(of: Scenario, hardware_id: str, settings: EngineSettings) -> ProfileMeta:
    made_at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return ProfileMeta(
        run_id="formula",
        started_at=made_at,
        ended_at=made_at,
        git_commit=None,
        git_dirty=None,
        model=of.model.name,
        hardware=Hardware(hardware_id=hardware_id, device_name="Formula processor", device_count=1),
        env={},
        params=of.model_dump(mode="json"),
        hydra=Hydra(config_path=of.file, config_name=of.name),
        sha256={},
        profiling_root="",
        format_version=FORMAT_VERSION,
        profile_key=profile_key(of),
        engine_settings=settings,
    )


def flat_step_ns(of: Scenario) -> int:
    """Duration of a step of a `flat` bundle that holds one request."""
    per_layer_ms = sum(0.01 * (index + 1) for index in range(len(PER_TOKEN_OPERATORS))) + 0.02
    return round(per_layer_ms * of.model.geometry.num_layers * 1e6)


def cost_row(term: str, ns: float, kind: str = ANY_KIND, feature: str = BASE, position: float = 0.0) -> dict[str, Any]:
    """A row of overheads.csv."""
    return {
        "term": term,
        "step_kind": kind,
        "feature": feature,
        "position": float(position),
        "ns": float(ns),
        "num_samples": 24,
        "residual_p05_ns": 0,
        "residual_p95_ns": 0,
    }


KINDS = (DECODE, MIXED, MIXED_EAGER)


def constant_overheads(**ns: float) -> list[dict[str, Any]]:
    """Terms that are one value whatever the step holds: `ns` by the name of the term, or by `<term>_<kind>` for steps
    of one kind; 0 where not given. A step's device has no slope over the context."""
    rows = [cost_row(term, ns.get(f"{term}_{kind}", ns.get(term, 0)), kind) for term in STEP_TERMS for kind in KINDS]
    rows += [cost_row(term, ns.get(term, 0)) for term in (*OTHER_TERMS, *IDLE_TERMS)]
    known = {*STEP_TERMS, *OTHER_TERMS, *IDLE_TERMS, *(f"{term}_{kind}" for term in STEP_TERMS for kind in KINDS)}
    assert not ns.keys() - known, ns.keys() - known
    return [*rows, cost_row("device", 0, DECODE, "decode_context_token")]


def default_overheads() -> list[dict[str, Any]]:
    """Terms of a small engine: every curve and slope that a profile has, the device the longest part of most steps."""
    rows = [cost_row("prepare", 300_000 + 2_000 * n, DECODE, position=n) for n in (1, 8, 32)]
    rows += [cost_row("launch", 400_000 + 1_000 * n, DECODE, position=n) for n in (1, 8, 32)]
    rows += [cost_row("device", 2_000_000 + 50_000 * n, DECODE, position=n) for n in (1, 2, 4, 8, 16, 32)]
    rows += [cost_row("device", 16 + n, DECODE, "decode_context_token", n) for n in (1, 8)]
    for kind in (MIXED, MIXED_EAGER):
        rows += [cost_row("prepare", 500_000, kind), cost_row("launch", 1_200_000, kind)]
        for term in ("prepare", "launch"):
            slopes = {"prefill_request": 9_000, "prefill_token": 300, "decode_request": 2_000}
            rows += [cost_row(term, ns, kind, feature) for feature, ns in slopes.items()]
        rows += [cost_row("device", 2_500_000 + 20_000 * n, kind, position=n) for n in (1, 64, 512, 2048)]
        slopes = {"prefill_request": 80_000, "decode_request": 7_000, "decode_context_token": 20, "attention_pair": 3}
        rows += [cost_row("device", ns, kind, feature) for feature, ns in slopes.items()]
    rows += [cost_row(term, ns, kind) for term, ns in (("lead_in", 20_000), ("drain", 15_000)) for kind in KINDS]
    rows += [cost_row("copy_out", 30_000 + 500 * n, position=n) for n in (1, 32)]
    rows += [cost_row("process", 50_000 + 2_000 * n, position=n) for n in (1, 32)]
    rows += [cost_row("delivery", 80_000 + 20_000 * n, position=n) for n in (1, 16)]
    rows += [cost_row("handover", 250_000 + 100 * n, position=n) for n in (1, 512)]
    idle = [cost_row("prepare_after_idle", 100_000), cost_row("prepare_after_idle", 700_000, MIXED)]
    return [*rows, *idle, cost_row("launch_after_idle", 0)]


def even_speed() -> pd.DataFrame:
    """host_speed.csv of three seconds of a host whose speed does not change."""
    return speed_table([(at, part, 1.0) for at in range(0, 3_000_000_000, 50_000_000) for part in SPEED_PARTS])


SPEED_PARTS = ("decode", "prefill", "delivery")


def speed_table(rows: Sequence[tuple[int, str, float]]) -> pd.DataFrame:
    """host_speed.csv of rows given as (time in ns, part, ratio)."""
    return _typed(HostSpeed, pd.DataFrame(list(rows), columns=["time_ns", "part", "ratio"]))


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
    """Every invariant of the contract, and no token lost or made. `overlapping`: a step may be formed before the one
    before it is complete."""
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


def _typed(model: Any, frame: pd.DataFrame) -> pd.DataFrame:
    required, optional = model.column_types()
    known = {**required, **optional}
    typed = frame.astype({name: INTEGER for name in frame.columns if known.get(name) == INTEGER})
    return validate(model, typed[[name for name in known if name in typed.columns]], model.file_name())
