"""A small profiling bundle whose operator times are known formulas, written as the profiler writes one. For tests without an engine."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import EngineSettings, Hardware, Hydra, ProfileMeta, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.profiling.bundle import profile_key
from gst_assets.profiling.calibration import Samples, overheads_table
from gst_assets.profiling.operator_model import PER_TOKEN_OPERATORS
from gst_assets.scenario import Scenario


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
        frame[f"time_stats.{operator}.median"] = [per_token_ms(operator, n) for n in frame["num_tokens"]]
    shapes = {
        "n_head": geometry.num_q_heads,
        "n_kv_head": geometry.num_kv_heads,
        "n_embd": geometry.hidden_size,
        "n_expanded_embd": geometry.mlp_hidden_size,
        "vocab_size": geometry.vocab_size,
        "num_tensor_parallel_workers": 1,
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
        "num_tensor_parallel_workers": 1,
        "max_model_len": scenario.model.max_model_len,
    }
    frame = frame.assign(**shapes, attention_backend="FORMULA")
    return frame.astype(dict.fromkeys(["batch_size", "prefill_chunk_size", "kv_cache_size", *shapes], "Int64"))


def samples(times: int = 5) -> Samples:
    """A few step compositions, hand-overs and deliveries, `times` samples each."""
    found = Samples()
    for repeat in range(times):
        found.steps["decode", 0, 0, 1].append((3e6 + repeat, 100 + repeat, 1e6))
        found.steps["decode", 0, 0, 8].append((5e6 + repeat, 800 + repeat, 2e6))
        found.steps["mixed", 1, 64, 0].append((9e6 + repeat, 0, 6e6))
        found.handover[64].append(700_000 + repeat)
        found.delivery[1].append(400_000 + repeat)
    return found


def engine_settings(scenario: Scenario) -> EngineSettings:
    """What an engine that follows the scenario reports."""
    engine = scenario.engine
    return EngineSettings(
        backend="vllm",
        engine_version="0.0",
        dtype=scenario.model.dtype,
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
    )


def write_bundle(directory: Path, scenario: Scenario, **tables: pd.DataFrame | None) -> Path:
    """Write the bundle; `tables` (mlp, attention, overheads) replace the formulas', None leaves the file out. Returns `directory`."""
    frames: dict[str, pd.DataFrame | None] = {
        "mlp": mlp_table(scenario),
        "attention": attention_table(scenario),
        "overheads": overheads_table(samples()),
    }
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
        profile_key=profile_key(scenario),
        engine_settings=engine_settings(scenario),
    )
    write_document(meta, directory / Kind.PROFILE.meta_name)
    return directory
