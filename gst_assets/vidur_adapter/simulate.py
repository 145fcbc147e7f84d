"""Simulating a workload with Vidur: checks of the input, the run, and the contract's tables.

The only module of this package that others need. Vidur and scikit-learn are imported when a simulation begins. Reading and checking a
bundle belongs to `profiling.bundle`, writing the tables to `contracts`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import VLLM_POLICY
from gst_assets.errors import ProfileError, SimulationError
from gst_assets.scenario import Scenario, Variant
from gst_assets.vidur_adapter.history import Steps, Tokens
from gst_assets.vidur_adapter.overheads import RequestOverheads
from gst_assets.vidur_adapter.steps import CapturedGraphs

if TYPE_CHECKING:
    from gst_assets.profiling.bundle import Bundle

BACKEND = "vidur"
NUM_NULL_BLOCKS = 1
"""KV blocks that vLLM counts among its blocks and gives to no request (`vllm.v1.core.block_pool.BlockPool.null_block`)."""
_BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation yields.

    `requests`, `tokens` and `iterations` follow `contracts.tables.RequestMetrics`, `TokenMetrics` and `Iterations`, in integer nanoseconds
    since run start. `settings` is everything that was assumed, engine settings under the names of `EngineSettings`. `stats` has the seconds
    that each phase took and belongs in no stored table.
    """

    requests: pd.DataFrame
    tokens: pd.DataFrame
    iterations: pd.DataFrame
    settings: dict[str, Any]
    num_preemptions: int
    stats: dict[str, float]


def simulate(
    scenario: Scenario,
    lengths: pd.DataFrame,
    intervals: pd.DataFrame,
    bundle: Bundle,
    variant: str,
    *,
    cache_dir: Path | None,
) -> SimulationResult:
    """Run Vidur on a workload under the engine's settings.

    `lengths` and `intervals` follow `contracts.tables.TraceLengths` and `TraceIntervals`. `variant` is `published` (Vidur as it ships, see
    `published`), `kernels` (the same operator sums with the adapter's corrections) or `calibrated` (with the bundle's measured overheads).
    `cache_dir` keeps forest tables between runs; None keeps none. Equal inputs give equal tables, byte for byte.

    Raises:
        SimulationError: an unknown variant, engine settings Vidur cannot simulate, or a request that can never complete.
        SimulationError: of `published`, a request that is preempted, or never fits.
        ProfileError: the workload leaves the profiled range, overheads needed by `calibrated` are missing, or `published_forests.json` was
            made from other CSV files.
    """
    _check_settings(scenario, bundle, variant)
    num_kv_blocks = scenario.engine.num_kv_blocks or bundle.meta.engine_settings.num_kv_blocks
    _check_requests(scenario, lengths, intervals, num_kv_blocks)
    request_overheads = _request_overheads(bundle) if variant == "calibrated" else None

    started = time.perf_counter()
    from gst_assets.vidur_adapter import registration

    simulator_class: Any
    if variant == "published":
        from gst_assets.vidur_adapter.published import PublishedSimulator as simulator_class
    elif scenario.simulation.loop == "event":
        from gst_assets.vidur_adapter.simulation import RecordedSimulator as simulator_class
    else:  # without Vidur's metrics, which take seconds to import
        from gst_assets.vidur_adapter.direct_loop import DirectSimulator as simulator_class

    imported = time.perf_counter()
    arrivals = intervals["arrival_time_ns"].to_numpy(dtype="int64")
    seen = arrivals
    if request_overheads is not None:
        prompts, places = np.unique(lengths["num_prefill_tokens"].to_numpy(dtype="int64"), return_inverse=True)
        handover = np.array([request_overheads.handover_ns(n) for n in prompts.tolist()], dtype="int64")[places]
        # The driver hands requests over in order, so none is seen before one that arrived earlier.
        seen = np.maximum.accumulate(arrivals + handover)
    with registration.quiet():
        config = _config(scenario, lengths, seen, bundle, variant, num_kv_blocks, cache_dir)
        simulator = simulator_class(config)
        prepared, processor = time.perf_counter(), time.process_time()
        simulator.run()
        ran, processor = time.perf_counter(), time.process_time() - processor

    steps = simulator.history.steps()
    tokens = _token_table(simulator.history.tokens(), steps, request_overheads)
    requests = _request_table(lengths, arrivals, tokens, simulator.requests)
    settings = _settings(scenario, bundle, variant, num_kv_blocks, config)
    if variant == "published":
        from gst_assets.vidur_adapter.published import published_settings

        settings |= published_settings(simulator)
    if request_overheads is not None:
        settings |= request_overheads.as_settings() | {"steps_outside_calibration": simulator.steps_outside_calibration}
    return SimulationResult(
        requests=requests,
        tokens=tokens,
        iterations=_iteration_table(steps),
        settings=settings,
        num_preemptions=int(requests["num_preemptions"].sum()),
        stats={
            "import_s": imported - started,
            "tables_s": simulator.predictor.table_seconds,
            "prepare_s": prepared - imported,
            "loop_s": ran - prepared,
            "loop_cpu_s": processor,
            "output_s": time.perf_counter() - ran,
        },
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_settings(scenario: Scenario, bundle: Bundle, variant: str) -> None:
    if variant not in get_args(Variant):
        raise SimulationError(
            f"unknown variant {variant!r}; simulation.variants allows {', '.join(get_args(Variant))}."
        )
    reported, engine, geometry = bundle.meta.engine_settings, scenario.engine, scenario.model.geometry
    if engine.enable_prefix_caching or reported.enable_prefix_caching:
        raise SimulationError(
            "engine.enable_prefix_caching: Vidur 0.0.26 has no prefix cache, so prompts would be simulated in full. Set it to false and profile with it off."
        )
    if not reported.enable_chunked_prefill:
        raise SimulationError(
            f"{bundle.directory}: enable_chunked_prefill is off in the profiled engine, but Vidur's sarathi always splits prompts at max_num_batched_tokens. Profile an engine with chunked prefill."
        )
    if scenario.simulation.loop == "event" and _is_asynchronous(bundle, variant):
        raise SimulationError(
            f"simulation.loop is event, but {bundle.directory} is of an engine with async_scheduling, which Vidur's event loop cannot simulate. "
            "Set simulation.loop=direct."
        )
    if engine.block_size != reported.block_size:
        raise SimulationError(
            f"engine.block_size is {engine.block_size}, but {bundle.directory} was profiled with blocks of {reported.block_size} tokens. Profile again, or set engine.block_size={reported.block_size}."
        )
    if geometry.hidden_size % geometry.num_q_heads:
        raise SimulationError(
            f"model.geometry: Vidur 0.0.26 needs hidden_size to be a multiple of num_q_heads, found {geometry.hidden_size} and {geometry.num_q_heads}."
        )


def _check_requests(scenario: Scenario, lengths: pd.DataFrame, intervals: pd.DataFrame, num_kv_blocks: int) -> None:
    if lengths.empty or not lengths["request_id"].equals(intervals["request_id"]):
        raise SimulationError(
            f"trace_lengths has {len(lengths)} requests and trace_intervals {len(intervals)}; the same requests are needed in both, at least one. Materialize both again."
        )
    prefill = lengths["num_prefill_tokens"].to_numpy(dtype="int64")
    decode = lengths["num_decode_tokens"].to_numpy(dtype="int64")
    limit, block_size = scenario.model.max_model_len, scenario.engine.block_size
    blocks = -(-(prefill + decode - 1) // block_size)  # the last token's keys and values are never computed
    for wrong, problem in (
        (prefill == 0, "has num_prefill_tokens 0; Vidur needs at least 1. Give it a prompt, or leave the request out."),
        (decode == 0, "has num_decode_tokens 0; Vidur needs at least 1. Ask for a token, or leave the request out."),
        (
            prefill + decode > limit,
            f"needs {{total}} tokens (prompt and decode), more than model.max_model_len {limit}. Shorten it, or raise the limit.",
        ),
        (
            blocks > num_kv_blocks - NUM_NULL_BLOCKS,
            f"needs {{blocks}} KV blocks of {block_size} tokens, but the engine has {num_kv_blocks - NUM_NULL_BLOCKS} to give. Shorten it, or raise engine.num_kv_blocks.",
        ),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            found = problem.format(total=prefill[row] + decode[row], blocks=blocks[row])
            more = f" ({int(wrong.sum())} such requests in all)" if wrong.sum() > 1 else ""
            raise SimulationError(f"request {lengths['request_id'].iloc[row]} {found}{more}")


def _is_asynchronous(bundle: Bundle, variant: str) -> bool:
    """Whether steps are formed one ahead. Vidur forms none before the one before it is complete."""
    return variant == "calibrated" and bundle.meta.engine_settings.async_scheduling


def _request_overheads(bundle: Bundle) -> RequestOverheads:
    if bundle.overheads is None:
        raise ProfileError(
            f"{bundle.directory}: no overheads.csv, which variant calibrated needs. Profile again with calibration, or set simulation.variants=[kernels]."
        )
    return RequestOverheads(bundle.overheads, f"{bundle.directory}/overheads.csv")


# --- configuration ----------------------------------------------------------------------------------------------------


def _config(
    scenario: Scenario,
    lengths: pd.DataFrame,
    seen_ns: Any,
    bundle: Bundle,
    variant: str,
    num_kv_blocks: int,
    cache_dir: Path | None,
) -> Any:
    from gst_assets.vidur_adapter import predictor, registration

    model, engine, settings = scenario.model, scenario.engine, scenario.simulation
    reported, granularity = bundle.meta.engine_settings, settings.kv_cache_granularity
    # Tables cover what the simulated engine can reach, and what the profiled one could: calibration rows are looked up in them too.
    step_tokens = max(engine.max_num_batched_tokens, reported.max_num_batched_tokens)
    sequence_tokens = max(model.max_model_len, reported.max_model_len)
    columns = (lengths["request_id"], seen_ns, lengths["num_prefill_tokens"], lengths["num_decode_tokens"])
    rows = [(int(i), int(t), int(p), int(d)) for i, t, p, d in zip(*columns, strict=True)]
    if variant == "published":
        from gst_assets.vidur_adapter.published import Limits, published_config

        limits = Limits(
            engine.block_size, num_kv_blocks, engine.max_num_seqs, engine.max_num_batched_tokens, model.max_model_len,
            max(engine.max_num_seqs, reported.max_num_seqs), step_tokens, sequence_tokens,
        )  # fmt: skip
        return published_config(model.geometry, limits, rows, bundle.directory, cache_dir)
    common: dict[str, Any] = {
        "mlp": bundle.mlp,
        "attention": bundle.attention,
        "interpolate": settings.predictor == "interpolation",
        "seed": settings.seed,
        "table_cache": cache_dir,
        "versions": _versions(),
        "kv_cache_prediction_granularity": granularity,
        "prediction_max_tokens_per_request": max(_round_up(step_tokens, 8), _round_up(sequence_tokens, granularity)),
        "prediction_max_batch_size": max(engine.max_num_seqs, reported.max_num_seqs),
        "prediction_max_prefill_chunk_size": _round_up(step_tokens, 32),
        "attention_decode_batching_overhead_fraction": 0.0,
    }
    if variant == "kernels":
        step_times = predictor.KernelsConfig(**common)
    else:
        step_times = predictor.CalibratedConfig(
            **common,
            overheads=bundle.overheads,
            overheads_name=f"{bundle.directory}/overheads.csv",
            graphs=CapturedGraphs(reported.cudagraph_capture_sizes),
            max_num_batched_tokens=engine.max_num_batched_tokens,
            asynchronous=_is_asynchronous(bundle, variant),
            host_speed=bundle.host_speed if settings.host_variability else None,
        )
    return registration.simulation_config(
        registration.EngineReplica(
            model_name=registration.model_name(model.geometry, model.max_model_len),
            head_dim=model.geometry.head_dim,
            num_kv_tokens=num_kv_blocks * engine.block_size,
        ),
        block_size=engine.block_size,
        num_kv_blocks=num_kv_blocks,
        num_null_blocks=NUM_NULL_BLOCKS,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        requests=registration.WorkloadRequestsConfig(rows=rows, max_tokens=model.max_model_len),
        predictor=step_times,
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _versions() -> str:
    """Whatever may change what a forest predicts. This package's own version stands for its code."""
    from gst_assets import __version__

    found = [f"{name} {metadata.version(name)}" for name in ("vidur", "scikit-learn", "numpy")]
    return ", ".join([*found, f"gst-assets {__version__}"])


def _settings(scenario: Scenario, bundle: Bundle, variant: str, num_kv_blocks: int, config: Any) -> dict[str, Any]:
    """Everything simulated, under the names of `EngineSettings` where it has one."""
    from gst_assets.vidur_adapter.predictor import FOREST

    reported, engine, geometry = bundle.meta.engine_settings, scenario.engine, scenario.model.geometry
    replica = config.cluster_config.replica_config
    interpolate = scenario.simulation.predictor == "interpolation"
    is_exact = variant == "calibrated" and interpolate
    return {
        "variant": variant,
        "scheduler": "sarathi",
        "scheduling_policy": VLLM_POLICY,  # what sarathi, as the adapter registers it, comes down to
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_model_len": scenario.model.max_model_len,
        "block_size": engine.block_size,
        "num_kv_blocks": num_kv_blocks,
        "num_null_blocks": NUM_NULL_BLOCKS,
        "watermark_blocks_fraction": 0.0,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "async_scheduling": _is_asynchronous(bundle, variant),
        # Properties of the profile: the operators and overheads were measured in an engine of these settings.
        "dtype": reported.dtype,
        "enforce_eager": reported.enforce_eager,
        "cudagraph_capture_sizes": list(reported.cudagraph_capture_sizes),
        "head_dim": replica.attention_head_dim,
        "kv_bytes_per_token": 2
        * geometry.num_layers
        * geometry.num_kv_heads
        * replica.attention_head_dim
        * _BYTES_PER_VALUE[scenario.model.dtype],
        "num_replicas": 1,
        "tensor_parallel_size": 1,
        "predictor": scenario.simulation.predictor,
        "forest": None if interpolate else {**FOREST, "random_state": scenario.simulation.seed},
        "rounding_tokens": {
            "step_tokens": "captured graph size, else exact" if variant == "calibrated" else 8,
            "prefill_chunk": 1 if is_exact else 32,
            "context": 1 if is_exact else scenario.simulation.kv_cache_granularity,
        },
        "attention_batching_overhead_fraction": 0.0,
        "step_overheads": variant == "calibrated",
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def _token_table(got: Tokens, steps: Steps, overheads: RequestOverheads | None) -> pd.DataFrame:
    times = _delivery_times(got, steps, overheads)[got.step]
    first = np.diff(got.request_id, prepend=-1) != 0
    starts = np.flatnonzero(first)
    index = np.arange(len(times)) - np.repeat(starts, np.diff(starts, append=len(times)))
    latency = np.diff(times, prepend=0)
    latency[first] = 0
    return _integers(request_id=got.request_id, token_index=index, token_time_ns=times, token_latency_ns=latency)


def _delivery_times(got: Tokens, steps: Steps, overheads: RequestOverheads | None) -> Any:
    """When the client sees the tokens of each step, in ns. Outputs are delivered in order, so none overtakes those of an earlier step."""
    ends = steps.handed_out_ns
    if overheads is None:
        return ends
    batches, places = np.unique(steps.num_decode_requests, return_inverse=True)
    delays = np.array([overheads.delivery_ns(n) for n in batches.tolist()], dtype="int64")[places]
    has_tokens = np.zeros(len(ends), dtype=bool)
    has_tokens[got.step] = True
    return np.maximum.accumulate(ends + np.where(has_tokens, delays, 0))


def _request_table(lengths: pd.DataFrame, arrivals: Any, tokens: pd.DataFrame, simulated: list[Any]) -> pd.DataFrame:
    ids = lengths["request_id"].to_numpy(dtype="int64")
    of, times = tokens["request_id"].to_numpy(dtype="int64"), tokens["token_time_ns"].to_numpy(dtype="int64")
    begin, end = np.searchsorted(of, ids, side="left"), np.searchsorted(of, ids, side="right")
    by_id = {request.id: request for request in simulated}
    requests = _integers(
        request_id=ids,
        arrival_time_ns=arrivals,
        first_token_time_ns=times[begin],
        ttft_ns=times[begin] - arrivals,
        num_prefill_tokens=lengths["num_prefill_tokens"].to_numpy(dtype="int64"),
        num_decode_tokens=lengths["num_decode_tokens"].to_numpy(dtype="int64"),
        num_decode_tokens_actual=end - begin,
    )
    requests["status"] = "ok"
    requests["completion_time_ns"] = pd.array(times[end - 1], dtype=pd.Int64Dtype())
    requests["prompt_id"] = lengths["prompt_id"].to_numpy()
    requests["backend"] = BACKEND
    requests["scheduled_time_ns"] = pd.array([by_id[i].scheduled_at for i in ids.tolist()], dtype=pd.Int64Dtype())
    requests["num_preemptions"] = pd.array([by_id[i].num_restarts for i in ids.tolist()], dtype=pd.Int64Dtype())
    return requests


def _iteration_table(steps: Steps) -> pd.DataFrame:
    return _integers(
        iteration_id=np.arange(len(steps.formed_ns)),
        scheduled_time_ns=steps.formed_ns,
        completion_time_ns=steps.handed_out_ns,
        num_prefill_requests=steps.num_prefill_requests,
        num_prefill_tokens=steps.num_prefill_tokens,
        num_decode_requests=steps.num_decode_requests,
        num_context_tokens=steps.num_context_tokens,
        num_running=steps.num_running,
        num_waiting=steps.num_waiting,
    )


def _integers(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.array(values, dtype=pd.Int64Dtype()) for name, values in columns.items()}, copy=False)
