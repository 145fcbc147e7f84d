"""A small profiling bundle whose operator times are known formulas, written as the profiler writes one. For tests
without an engine."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import EngineSettings, Hardware, Hydra, ProfileMeta, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.scenario import CPU, Scenario
from gst_assets.step_costs.bundle import FORMAT_VERSION, profile_key
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS
from gst_assets.vidur_adapter.self_fit import self_fit


def per_token_ms(operator: str, num_tokens: float) -> float:
    """Linear in tokens, another slope for each operator; `add` is fused away."""
    return 0.0 if operator == "add" else 0.01 + 0.001 * (1 + PER_TOKEN_OPERATORS.index(operator)) * num_tokens


def attn_prefill_ms(context: float, chunk: float) -> float:
    """Bilinear, so that interpolation is exact."""
    return 0.02 + 1e-4 * chunk + 1e-6 * chunk * context


def attn_decode_ms(batch: float, context: float) -> float:
    """Bilinear, so that interpolation is exact."""
    return 0.03 + 1e-3 * batch + 2e-6 * batch * context


def mlp_table(scenario: Scenario) -> pd.DataFrame:
    """mlp.csv of the scenario's grid."""
    geometry = scenario.model.geometry
    frame = pd.DataFrame({"num_tokens": scenario.profile.num_tokens})
    for operator in PER_TOKEN_OPERATORS:
        times = [per_token_ms(operator, n) for n in frame["num_tokens"]]
        has_none = geometry.num_experts is not None and operator.startswith("mlp_")
        frame[f"time_stats.{operator}.median"] = [float("nan")] * len(times) if has_none else times
    shapes = {
        "n_head": geometry.num_q_heads,
        "n_kv_head": geometry.num_kv_heads,
        "n_embd": geometry.hidden_size,
        "n_expanded_embd": geometry.mlp_hidden_size,
        "vocab_size": geometry.vocab_size,
        "num_tensor_parallel_workers": scenario.engine.tensor_parallel_size,
    }
    frame = frame.assign(**shapes, use_gated_mlp=True)
    return frame.astype(dict.fromkeys(["num_tokens", *shapes], "Int64"))


def attention_table(scenario: Scenario) -> pd.DataFrame:
    """attention.csv of the scenario's grid."""
    profile, geometry = scenario.profile, scenario.model.geometry
    nan = float("nan")
    points = [
        (True, 1, chunk, context, attn_prefill_ms(context, chunk), nan)
        for context in profile.prefill_context_sizes
        for chunk in profile.prefill_chunk_sizes
    ]
    points += [
        (False, batch, 0, context, nan, attn_decode_ms(batch, context))
        for batch in profile.decode_batch_sizes
        for context in profile.decode_context_sizes
    ]
    columns = ["is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size"]
    columns += ["time_stats.attn_prefill.median", "time_stats.attn_decode.median"]
    frame = pd.DataFrame(points, columns=columns)
    frame["time_stats.attn_kv_cache_save.median"] = 0.005
    shapes = {
        "n_embd": geometry.hidden_size,
        "n_q_head": geometry.num_q_heads,
        "n_kv_head": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "block_size": scenario.engine.block_size,
        "num_tensor_parallel_workers": scenario.engine.tensor_parallel_size,
        "max_model_len": scenario.model.max_model_len,
    }
    frame = frame.assign(**shapes, attention_backend="FORMULA")
    return frame.astype(dict.fromkeys(["batch_size", "prefill_chunk_size", "kv_cache_size", *shapes], "Int64"))


def expert_ms(operator: str, num_tokens: float) -> float:
    """Linear in tokens: `moe_router`, and `moe_experts` of the router's own choice."""
    return {"moe_router": 0.01 + 1e-4 * num_tokens, "moe_experts": 0.5 + 0.003 * num_tokens}[operator]


def experts_table(scenario: Scenario) -> pd.DataFrame:
    """experts.csv of the scenario's grid; other spreads of the tokens take a multiple of the router's."""
    geometry = scenario.model.geometry
    number, chosen = geometry.num_experts, geometry.num_experts_per_token
    assert number and chosen
    rows = [
        {
            "num_tokens": tokens,
            "routing": routing,
            "time_stats.moe_router.median": expert_ms("moe_router", tokens) if routing == "router" else float("nan"),
            "time_stats.moe_experts.median": expert_ms("moe_experts", tokens) * factor,
            "distinct_experts": float(chosen if routing == "same" else min(number, chosen * tokens)),
        }
        for tokens in scenario.profile.num_tokens
        for routing, factor in (("router", 1.0), ("even", 1.5), ("same", 0.5))
    ]
    shapes = {
        "n_expert": number,
        "n_expert_per_token": chosen,
        "n_embd": geometry.hidden_size,
        "n_expanded_embd": geometry.mlp_hidden_size,
        "num_tensor_parallel_workers": 1,
    }
    return pd.DataFrame(rows).assign(**shapes).astype(dict.fromkeys(["num_tokens", *shapes], "Int64"))


def all_reduce_ms(num_tokens: float) -> float:
    """Of one sum over the devices."""
    return 0.02 + 2e-4 * num_tokens


def all_reduce_table(scenario: Scenario) -> pd.DataFrame:
    """all_reduce.csv of the scenario's grid."""
    tokens, degree = pd.Series(scenario.profile.num_tokens), scenario.engine.tensor_parallel_size
    values = tokens * scenario.model.geometry.hidden_size
    shapes = {
        "num_tokens": tokens,
        "message_bytes": scenario.model.bytes_per_value * values,
        "size": 2 * values,
        "num_workers": degree,
    }
    frame = pd.DataFrame({"time_stats.all_reduce.median": [all_reduce_ms(n) for n in tokens], **shapes})
    frame = frame.assign(devices_per_node=degree, collective="all_reduce")
    return frame.astype(dict.fromkeys([*shapes, "devices_per_node"], "Int64"))


def overheads_table(*, has_own_workers: bool = False) -> pd.DataFrame:
    """overheads.csv of an engine without captured graphs: steps of 1 ms and more, another slope for each feature."""
    rows = [_row(term, kind, "base", 0.0, ns) for kind in ("decode", "mixed") for term, ns in _STEP_TERMS_NS.items()]
    for kind in ("decode", "mixed"):
        rows += [_row("device", kind, "base", tokens, 8e5 + 2e3 * tokens) for tokens in (1.0, 512.0)]
        rows.append(_row("device", kind, "decode_context_token", 0.0, 1.5))
    rows += [_row("device", "mixed", name, 0.0, ns) for name, ns in _MIXED_DEVICE_NS.items()]
    rows += [
        _row("prepare", "mixed", name, 0.0, ns) for name, ns in {"prefill_request": 2e4, "prefill_token": 50.0}.items()
    ]
    rows += [_row("prepare_after_idle", "any", "base", 0.0, 4e4), _row("launch_after_idle", "any", "base", 0.0, 1e4)]
    rows += [_row("copy_out", "any", "base", 1.0, 3e4)]
    rows += [_row("form", "any", "base", 1.0, 2e5)] if has_own_workers else []
    rows += [_row("process", "any", "base", requests, 1e5 + 1e3 * requests) for requests in (1.0, 32.0)]
    rows += [_row("handover", "any", "base", tokens, 5e5 + 1e2 * tokens) for tokens in (16.0, 512.0)]
    rows += [_row("delivery", "any", "base", decodes, 4e5 + 1e3 * decodes) for decodes in (0.0, 32.0)]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(["num_samples", "residual_p05_ns", "residual_p95_ns"], "Int64"))


_STEP_TERMS_NS = {"prepare": 2e5, "launch": 0.0, "lead_in": 1e3, "drain": 0.0}
_MIXED_DEVICE_NS = {"prefill_request": 5e4, "decode_request": 1e4, "attention_pair": 3.0}


def _row(term: str, kind: str, feature: str, position: float, ns: float) -> dict[str, Any]:
    return {
        "term": term,
        "step_kind": kind,
        "feature": feature,
        "position": position,
        "ns": ns,
        "num_samples": 5,
        "residual_p05_ns": -100,
        "residual_p95_ns": 100,
    }


def host_speed_table() -> pd.DataFrame:
    """host_speed.csv of two seconds, a tenth slower in every other quarter of one."""
    times = [at for at in range(0, 2_000_000_000, 10_000_000) for _ in range(3)]
    frame = pd.DataFrame({"time_ns": times, "part": ["prefill", "decode", "delivery"] * (len(times) // 3)})
    frame["ratio"] = [1.0 + 0.1 * (at // 250_000_000 % 2) for at in times]
    return frame.astype({"time_ns": "Int64"})


def traffic_table() -> pd.DataFrame:
    """calibration_traffic.csv of two rounds of four requests each, a burst among them."""
    rows = [
        {
            "stretch": f"round {number} {sort}",
            "request_id": request,
            "arrival_time_ns": request * gap_ns,
            "num_prefill_tokens": 16 + 8 * request + number,
            "num_decode_tokens": 4 - request,
            "ttft_ns": 3_000_000 + request,
            "e2e_ns": 9_000_000 + request,
            "itl_p50_ns": 2_000_000 if request < 3 else None,
            "itl_p90_ns": 2_100_000 if request < 3 else None,
        }
        for number in range(2)
        for sort, gap_ns in (("traffic 5/s", 200_000_000), ("burst", 0))
        for request in range(4)
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({name: "Int64" for name in frame.columns if name != "stretch"})


def unmodelled_table() -> pd.DataFrame:
    """unmodelled.csv, linear in rows."""
    rows = [
        {"operator": operator, "num_rows": count, "median_ms": 0.01 + 0.001 * count}
        for operator, counts in {
            "embedding": (1, 512),
            "final_norm": (1, 512),
            "lm_head": (1, 32),
            "sampling": (1, 32),
        }.items()
        for count in counts
    ]
    return pd.DataFrame(rows).astype({"num_rows": "Int64"})


def coverage_table() -> pd.DataFrame:
    """operator_coverage.csv of one sort of step."""
    row = {
        "step_kind": "decode", "num_tokens": 1, "num_decode_requests": 1, "num_context_tokens": 30,
        "num_samples": 5, "whole_step_ns": 1_000_000, "operators_ns": 990_000, "coverage": 0.99,
    }  # fmt: skip
    frame = pd.DataFrame([row])
    return frame.astype({name: "Int64" for name in frame.columns if name not in ("step_kind", "coverage")})


def engine_settings(scenario: Scenario) -> EngineSettings:
    """What an engine that follows the scenario reports."""
    engine = scenario.engine
    return EngineSettings(
        backend="vllm",
        engine_version="0.0",
        dtype=scenario.model.dtype,
        quantization=scenario.model.quantization,
        max_model_len=scenario.model.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size,
        num_kv_blocks=engine.num_kv_blocks or 1024,
        enable_chunked_prefill=True,
        enable_prefix_caching=False,
        async_scheduling=engine.async_scheduling,
        enforce_eager=engine.enforce_eager,
        attention_backend="FORMULA",
        tensor_parallel_size=engine.tensor_parallel_size,
    )


_SELF_FITS: dict[str, pd.DataFrame] = {}
"""By resolved scenario."""


def write_bundle(directory: Path, scenario: Scenario, **tables: pd.DataFrame | None) -> Path:
    """Write the bundle, with every file a real profile writes; `tables` (by file name without .csv) replace those of
    this module, None leaves the file out. Returns `directory`."""
    frames: dict[str, pd.DataFrame | None] = {
        "mlp": mlp_table(scenario),
        "attention": attention_table(scenario),
        "unmodelled": unmodelled_table(),
        "overheads": overheads_table(has_own_workers=scenario.engine.tensor_parallel_size > 1),
        "host_speed": host_speed_table(),
        "calibration_traffic": traffic_table(),
        "operator_coverage": coverage_table(),
        "experts": experts_table(scenario) if scenario.model.geometry.num_experts is not None else None,
        "all_reduce": all_reduce_table(scenario) if scenario.engine.tensor_parallel_size > 1 else None,
    }
    settings = engine_settings(scenario)
    made = {f"{name}.csv": frame for name, frame in frames.items() if frame is not None}
    key = scenario.model_dump_json()
    if key not in _SELF_FITS:  # it simulates the calibration's traffic, which takes longer than all else
        _SELF_FITS[key] = self_fit(made, settings, device_is_host=scenario.hardware.hardware_id == CPU)
    frames["self_fit"] = _SELF_FITS[key]
    directory.mkdir(parents=True)
    for name, frame in (frames | tables).items():
        if frame is not None:
            csv_files.write_csv(frame, directory / f"{name}.csv")
    now = datetime.now(timezone.utc)
    meta = ProfileMeta(
        run_id="formula",
        started_at=now,
        ended_at=now,
        git_commit=None,
        git_dirty=None,
        model=scenario.model.name,
        hardware=Hardware(hardware_id=scenario.hardware.hardware_id, device_name="Formula processor", device_count=1),
        env={},
        params=scenario.model_dump(mode="json"),
        hydra=Hydra(config_path=scenario.file, config_name=scenario.name),
        sha256=directory_digests(directory, Kind.PROFILE.meta_name),
        profiling_root=str(directory.parent.parent),
        format_version=FORMAT_VERSION,
        profile_key=profile_key(scenario),
        engine_settings=settings,
    )
    write_document(meta, directory / Kind.PROFILE.meta_name)
    return directory
