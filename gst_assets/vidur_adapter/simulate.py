"""Simulating a workload: checks of the input, the run, and the contract's tables.

The only module of this package that others need. Vidur is imported for variant `published` and for its own event loop,
when such a simulation begins. Reading and checking a bundle belongs to `step_costs.bundle`, writing the tables to
`contracts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import VLLM_POLICY
from gst_assets.contracts.token_invariants import begins_request, indexes, latencies_ns
from gst_assets.contracts.turns import PREVIOUS, WORKLOAD_ARRIVAL, turns_wait
from gst_assets.errors import SimulationError
from gst_assets.scenario import Scenario, Variant
from gst_assets.step_costs.bundle import Bundle, check_alike
from gst_assets.step_costs.engine_costs import RequestWays, no_delivery
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.prefix_keys import prompt_block_keys
from gst_assets.vidur_adapter.request_times import delivered_ns, handovers_ns, seen_ns
from gst_assets.vidur_adapter.self_fit import misfits
from gst_assets.vidur_adapter.simulation_loop import RequestColumns, SimulationLoop, TurnColumns
from gst_assets.vidur_adapter.step_log import Integers, LoggedSteps, Spans, StepLog, tokens_after, tokens_of

BACKEND = "vidur"
NUM_NULL_BLOCKS = 1
"""KV blocks that vLLM counts among its blocks and gives to no request
(`vllm.v1.core.block_pool.BlockPool.null_block`)."""
_TURN_COLUMNS = (PREVIOUS, "think_time_ns")


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation yields.

    `requests`, `tokens` and `iterations` follow `contracts.tables.RequestMetrics`, `TokenMetrics` and `Iterations`, in
    integer nanoseconds since run start; the last two are made when they are first asked for. `settings` is everything
    that was assumed, engine settings under the names of `EngineSettings`. `stats` has the seconds that each phase took
    and belongs in no stored table. `steps`, `spans` and `delivered_ns` (when the client sees the tokens of each step)
    are what the tables are made of.
    """

    requests: pd.DataFrame
    steps: LoggedSteps
    spans: Spans
    delivered_ns: Integers
    settings: dict[str, Any]
    num_preemptions: int
    stats: dict[str, float]

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per token, all at once: some 45 bytes each."""
        return _token_table(self.spans, self.delivered_ns)

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """One row per step."""
        return _iteration_table(self.steps)

    @property
    def num_tokens(self) -> int:
        """Over all requests."""
        return int(self.spans.num_tokens.sum())

    def has_times_of(self, other: SimulationResult) -> bool:
        """Whether the same requests get their tokens from the same steps at the same times as in `other`: then nothing
        else differs either."""
        ours, theirs = ((*one.spans, one.delivered_ns) for one in (self, other))
        return all(np.array_equal(one, another) for one, another in zip(ours, theirs, strict=True))

    def token_parts(self, most_rows: int = 1 << 20) -> Iterator[pd.DataFrame]:
        """`tokens` in parts of whole requests, each of at most so many rows where one request has no more."""
        ends = np.cumsum(self.spans.num_tokens)
        borders = np.append(np.flatnonzero(begins_request(self.spans.request_id)), len(ends))
        rows = np.append(0, ends)[borders]  # tokens before each request, and in all
        first = 0
        while first < len(borders) - 1:
            end = max(int(np.searchsorted(rows, rows[first] + most_rows, side="right")) - 1, first + 1)
            part = Spans(*(column[borders[first] : borders[end]] for column in self.spans))
            yield _token_table(part, self.delivered_ns)
            first = end

    def token_gaps_ns(self) -> tuple[Integers, Integers]:
        """Every `token_latency_ns` but those at `token_index` 0, without making the table: values, some of them equal,
        and how often each occurs."""
        spans, times = self.spans, self.delivered_ns
        follows = ~begins_request(spans.request_id)
        # After a preemption: from the last token before it.
        pauses = times[spans.first_step[follows]] - times[spans.last_step[:-1][follows[1:]]]
        counts = tokens_after(spans, len(times))
        steps = np.flatnonzero(counts)
        return (
            np.append(times[steps] - times[steps - 1], pauses),
            np.append(counts[steps], np.ones(len(pauses), dtype=np.int64)),
        )


class _Simulator(Protocol):
    """What ran: `simulation_loop.SimulationLoop`, or Vidur's event loop. Lists are in the order of the workload."""

    @property
    def history(self) -> StepLog: ...

    @property
    def scheduled_at_ns(self) -> list[int]: ...

    @property
    def num_preemptions(self) -> list[int]: ...

    def run(self, on_share: Callable[[float], None] | None = None) -> None: ...


def simulate(
    scenario: Scenario,
    lengths: pd.DataFrame,
    intervals: pd.DataFrame,
    bundle: Bundle,
    variant: str,
    *,
    cache_dir: Path | None,
    prompts: Sequence[Sequence[int]] | None = None,
    on_share: Callable[[float], None] | None = None,
) -> SimulationResult:
    """Simulate a workload under the engine's settings.

    `lengths` and `intervals` follow `contracts.tables.TraceLengths` and `TraceIntervals`; a request with a
    `previous_request_id` arrives `think_time_ns` after the client has that one's last token. `variant` is `published`
    (Vidur as it ships, see `published`), `kernels` (the same operator sums with the adapter's corrections) or
    `calibrated` (with measured costs of whole steps). `cache_dir` stores the forest tables of
    `published` between runs; None stores none. `prompts`: the token ids of each request, which an engine with prefix
    caching depends on; not used without. `on_share` is called now and then with the share that is simulated, from 0 to
    1. Equal inputs give equal tables, byte for byte.

    Raises:
        SimulationError: an unknown variant, engine settings that cannot be simulated, or a request that can never
            complete; of `published` also a request that is preempted.
        ProfileError: the bundle is of another number of devices, of weights quantised in another way, or of an MLP
            where the model has experts or the reverse; the workload leaves the profiled range, a table needed by
            `calibrated` is missing, or `published_forests.json` was made from other CSV files.
    """
    _check_settings(scenario, bundle, variant, has_prompts=prompts is not None)
    waits = turns_wait(intervals)
    if waits and (variant == "published" or _is_event_loop(scenario, variant)):
        raise SimulationError(
            "closed_loop: turns that wait for answers arrive when the simulation has come to it, but Vidur 0.0.26,"
            f" which variant {variant} runs here, takes arrivals known beforehand. Set it to false, or simulate kernels"
            " and calibrated with simulation.loop=direct."
        )
    num_kv_blocks = scenario.engine.num_kv_blocks or bundle.meta.engine_settings.num_kv_blocks
    _check_requests(scenario, lengths, intervals, num_kv_blocks)
    ways = bundle.request_ways(_host_seed(scenario)) if variant == "calibrated" else None

    started = time.perf_counter()
    arrivals = intervals["arrival_time_ns"].to_numpy(dtype="int64")
    turns = _turns(scenario, lengths, intervals, ways) if waits else None
    # Whoever waits for answers is seen when the simulation comes to it.
    seen = arrivals if ways is None or turns is not None else seen_ns(arrivals, _prompts_of(lengths), ways)
    columns = (lengths["request_id"], seen, lengths["num_prefill_tokens"], lengths["num_decode_tokens"])
    requests = RequestColumns(*(np.asarray(column, dtype=np.int64) for column in columns))
    settings = _settings(scenario, bundle, variant, num_kv_blocks)
    if variant == "published":
        simulator, table_seconds = _published(scenario, requests, bundle, num_kv_blocks, cache_dir)
    else:
        simulator, table_seconds = _simulator(scenario, requests, bundle, variant, num_kv_blocks, prompts, turns), 0.0
    prepared, processor = time.perf_counter(), time.process_time()
    simulator.run(on_share)
    ran, processor = time.perf_counter(), time.process_time() - processor

    if variant == "published":
        from gst_assets.vidur_adapter.published import published_settings

        settings |= published_settings(simulator)
    elif ways is not None:
        settings["steps_outside_calibration"] = simulator.num_outside
    steps, spans = simulator.history.steps(), simulator.history.spans()
    times = delivered_ns(spans, steps, ways)
    due = arrivals
    if turns is not None:
        assert isinstance(simulator, SimulationLoop)  # `_check_settings` refuses the others
        due = np.array(simulator.due_ns, dtype=np.int64)
    table = _request_table(lengths, due, spans, times, simulator.scheduled_at_ns, simulator.num_preemptions)
    if scenario.engine.enable_prefix_caching:
        assert isinstance(simulator, SimulationLoop)  # `_check_settings` refuses the others
        table["num_cached_tokens"] = _integer(simulator.num_cached_tokens)
    if turns is not None:
        table = table.assign(**{PREVIOUS: intervals[PREVIOUS].array, WORKLOAD_ARRIVAL: _integer(arrivals)})
    return SimulationResult(
        requests=table,
        steps=steps,
        spans=spans,
        delivered_ns=times,
        settings=settings,
        num_preemptions=int(table["num_preemptions"].sum()),
        stats={
            "tables_s": table_seconds,
            "prepare_s": prepared - started,
            "loop_s": ran - prepared,
            "loop_cpu_s": processor,
            "output_s": time.perf_counter() - ran,
        },
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_settings(scenario: Scenario, bundle: Bundle, variant: str, *, has_prompts: bool) -> None:
    if variant not in get_args(Variant):
        raise SimulationError(
            f"unknown variant {variant!r}; simulation.variants allows {', '.join(get_args(Variant))}."
        )
    reported, engine, geometry = bundle.meta.engine_settings, scenario.engine, scenario.model.geometry
    if variant == "published" and geometry.num_experts is not None:
        raise SimulationError(
            f"variant published: {scenario.model.name} is a mixture of experts, which is not modelled: Vidur 0.0.26 has"
            " no expert layer. Simulate kernels and calibrated."
        )
    if engine.enable_prefix_caching:
        if variant == "published" or _is_event_loop(scenario, variant):
            raise SimulationError(
                f"engine.enable_prefix_caching: Vidur 0.0.26, which variant {variant} runs here, has no prefix cache,"
                " so prompts would be simulated in full. Set it to false, or simulate kernels and calibrated with"
                " simulation.loop=direct."
            )
        if not has_prompts:
            raise SimulationError(
                "engine.enable_prefix_caching: what is in the cache depends on the prompts' tokens, which a search for"
                " capacity and a sweep do not have. Set it to false."
            )
    elif reported.enable_prefix_caching:
        raise SimulationError(
            f"{bundle.directory}: profiled with prefix caching, which costs the host something, but"
            " engine.enable_prefix_caching is false. Set it to true, or profile with it off."
        )
    if not reported.enable_chunked_prefill:
        raise SimulationError(
            f"{bundle.directory}: enable_chunked_prefill is off in the profiled engine, but Vidur's sarathi always"
            " splits prompts at max_num_batched_tokens. Profile an engine with chunked prefill."
        )
    if engine.block_size != reported.block_size:
        raise SimulationError(
            f"engine.block_size is {engine.block_size}, but {bundle.directory} was profiled with blocks of"
            f" {reported.block_size} tokens. Profile again, or set engine.block_size={reported.block_size}."
        )
    check_alike(bundle, scenario)
    if geometry.hidden_size % engine.tensor_parallel_size:
        raise SimulationError(
            "engine.tensor_parallel_size: Vidur 0.0.26 needs hidden_size to be a multiple of it, found"
            f" {geometry.hidden_size} and {engine.tensor_parallel_size}."
        )
    if geometry.hidden_size % geometry.num_q_heads:
        raise SimulationError(
            "model.geometry: Vidur 0.0.26 needs hidden_size to be a multiple of num_q_heads, found"
            f" {geometry.hidden_size} and {geometry.num_q_heads}."
        )


def _check_requests(scenario: Scenario, lengths: pd.DataFrame, intervals: pd.DataFrame, num_kv_blocks: int) -> None:
    if lengths.empty or not lengths["request_id"].equals(intervals["request_id"]):
        raise SimulationError(
            f"trace_lengths has {len(lengths)} requests and trace_intervals {len(intervals)}; the same requests are"
            " needed in both, at least one. Materialize both again."
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
            (
                f"needs {{total}} tokens (prompt and decode), more than model.max_model_len {limit}. Shorten it, or"
                " raise the limit."
            ),
        ),
        (
            blocks > num_kv_blocks - NUM_NULL_BLOCKS,
            (
                f"needs {{blocks}} KV blocks of {block_size} tokens, but the engine has"
                f" {num_kv_blocks - NUM_NULL_BLOCKS} to give. Shorten it, or raise engine.num_kv_blocks."
            ),
        ),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            found = problem.format(total=prefill[row] + decode[row], blocks=blocks[row])
            more = f" ({int(wrong.sum())} such requests in all)" if wrong.sum() > 1 else ""
            raise SimulationError(f"request {lengths['request_id'].iloc[row]} {found}{more}")


# --- what runs --------------------------------------------------------------------------------------------------------


def _simulator(
    scenario: Scenario,
    requests: RequestColumns,
    bundle: Bundle,
    variant: str,
    num_kv_blocks: int,
    prompts: Sequence[Sequence[int]] | None = None,
    turns: TurnColumns | None = None,
) -> _Simulator:
    engine = scenario.engine
    limits = Limits(
        engine.block_size, num_kv_blocks, NUM_NULL_BLOCKS, engine.max_num_seqs, engine.max_num_batched_tokens
    )
    keys = prompt_block_keys(prompts, engine.block_size) if engine.enable_prefix_caching and prompts else None
    if _is_event_loop(scenario, variant):
        return _event_loop(scenario, requests, bundle, limits)
    most = engine.max_num_batched_tokens
    if variant == "kernels":
        ns_of = bundle.operator_times().ns
        return SimulationLoop(
            requests, limits, bundle.operator_tables(most), ns_of=ns_of, prompt_keys=keys, turns=turns
        )
    queue_size = 2 if bundle.meta.engine_settings.async_scheduling else 1
    tables = bundle.engine_tables(most, _host_seed(scenario), queue_size)
    return SimulationLoop(requests, limits, tables, prompt_keys=keys, turns=turns)


def _turns(scenario: Scenario, lengths: pd.DataFrame, intervals: pd.DataFrame, ways: RequestWays | None) -> TurnColumns:
    previous, think_ns = (intervals[name].to_numpy(dtype="int64", na_value=-1) for name in _TURN_COLUMNS)
    most = scenario.engine.max_num_seqs
    return TurnColumns(
        previous,
        np.where(previous < 0, 0, think_ns),
        np.zeros(len(lengths), dtype=np.int64) if ways is None else handovers_ns(_prompts_of(lengths), ways),
        no_delivery(most) if ways is None else ways.delivery_tables(most),
    )


def _prompts_of(lengths: pd.DataFrame) -> Integers:
    return lengths["num_prefill_tokens"].to_numpy(dtype="int64")


def _is_event_loop(scenario: Scenario, variant: str) -> bool:
    return variant == "kernels" and scenario.simulation.loop == "event"


def _host_seed(scenario: Scenario) -> int | None:
    return scenario.simulation.seed if scenario.simulation.host_variability else None


def _event_loop(scenario: Scenario, requests: RequestColumns, bundle: Bundle, limits: Limits) -> _Simulator:
    """Vidur's own event loop, the slow reference."""
    from gst_assets.vidur_adapter import registration
    from gst_assets.vidur_adapter.event_loop import RecordedSimulator
    from gst_assets.vidur_adapter.predictor import OperatorSumConfig

    model, geometry = scenario.model, scenario.model.geometry
    with registration.quiet():
        return RecordedSimulator(
            registration.simulation_config(
                registration.EngineReplica(
                    model_name=registration.model_name(geometry, model.max_model_len),
                    head_dim=geometry.head_dim,
                    num_kv_tokens=limits.num_kv_blocks * limits.block_size,
                    tensor_parallel_size=scenario.engine.tensor_parallel_size,
                ),
                limits,
                requests=registration.WorkloadRequestsConfig(rows=_rows(requests), max_tokens=model.max_model_len),
                predictor=OperatorSumConfig(operators=bundle.operator_times()),
            )
        )


def _published(
    scenario: Scenario, requests: RequestColumns, bundle: Bundle, num_kv_blocks: int, cache_dir: Path | None
) -> tuple[Any, float]:
    """Vidur as it ships, and the seconds that its tables took."""
    from gst_assets.vidur_adapter import registration
    from gst_assets.vidur_adapter.published import PublishedLimits, PublishedSimulator, published_config

    model, engine, reported = scenario.model, scenario.engine, bundle.meta.engine_settings
    # Tables cover what the simulated engine can reach, and what the profiled one could: so they are made once for both.
    limits = PublishedLimits(
        engine.block_size, num_kv_blocks, engine.max_num_seqs, engine.max_num_batched_tokens, model.max_model_len,
        max(engine.max_num_seqs, reported.max_num_seqs),
        max(engine.max_num_batched_tokens, reported.max_num_batched_tokens),
        max(model.max_model_len, reported.max_model_len),
        engine.tensor_parallel_size,
    )  # fmt: skip
    with registration.quiet():
        simulator = PublishedSimulator(
            published_config(model.geometry, limits, _rows(requests), bundle.directory, cache_dir)
        )
    return simulator, simulator.predictor.table_seconds


def _rows(requests: RequestColumns) -> Sequence[tuple[int, int, int, int]]:
    return list(zip(*(np.asarray(column).tolist() for column in requests), strict=True))


def _settings(scenario: Scenario, bundle: Bundle, variant: str, num_kv_blocks: int) -> dict[str, Any]:
    """Everything simulated, under the names of `EngineSettings` where it has one."""
    reported, engine, geometry = bundle.meta.engine_settings, scenario.engine, scenario.model.geometry
    kv_heads = max(geometry.num_kv_heads // engine.tensor_parallel_size, 1)
    return {
        "variant": variant,
        "scheduler": "sarathi",
        "scheduling_policy": VLLM_POLICY,  # what sarathi, with the adapter's corrections, comes down to
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_model_len": scenario.model.max_model_len,
        "block_size": engine.block_size,
        "num_kv_blocks": num_kv_blocks,
        "num_null_blocks": NUM_NULL_BLOCKS,
        "watermark_blocks_fraction": 0.0,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "async_scheduling": variant == "calibrated" and reported.async_scheduling,
        # Properties of the profile: the operators and terms were measured in an engine of these settings.
        "dtype": reported.dtype,
        **({} if reported.quantization is None else {"quantization": reported.quantization}),
        **bundle.kernels,
        "enforce_eager": reported.enforce_eager,
        "cudagraph_capture_sizes": list(reported.cudagraph_capture_sizes),
        "head_dim": geometry.head_dim,
        "kv_bytes_per_token": (  # on each device
            2 * geometry.num_layers * kv_heads * geometry.head_dim * scenario.model.bytes_per_value
        ),
        "num_replicas": 1,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "predictor": "interpolation",
        "forest": None,
        "rounding_tokens": {"step_tokens": "captured graph size, else exact", "prefill_chunk": 1, "context": 1},
        "attention_batching_overhead_fraction": 0.0,
        "step_overheads": variant == "calibrated",
        "self_fit_misfits": misfits(bundle.self_fit) if variant == "calibrated" and bundle.self_fit is not None else [],
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def _token_table(spans: Spans, delivered_ns: Integers) -> pd.DataFrame:
    got = tokens_of(spans)
    times = delivered_ns[got.step]
    begins = begins_request(got.request_id)
    return _integers(
        request_id=got.request_id,
        token_index=indexes(begins),
        token_time_ns=times,
        token_latency_ns=latencies_ns(begins, times),
    )


def _request_table(
    lengths: pd.DataFrame,
    arrivals: Integers,
    spans: Spans,
    delivered_ns: Integers,
    scheduled_at_ns: list[int],
    num_preemptions: list[int],
) -> pd.DataFrame:
    ids = lengths["request_id"].to_numpy(dtype="int64")
    begin, end = (np.searchsorted(spans.request_id, ids, side=side) for side in ("left", "right"))
    produced = np.append(0, np.cumsum(spans.num_tokens))
    first = delivered_ns[spans.first_step[begin]]
    # At once: adding columns to a table took longer than simulating a thousand requests.
    return pd.DataFrame(
        {
            "request_id": _integer(ids),
            "arrival_time_ns": _integer(arrivals),
            "first_token_time_ns": _integer(first),
            "ttft_ns": _integer(first - arrivals),
            "num_prefill_tokens": _integer(lengths["num_prefill_tokens"].to_numpy(dtype="int64")),
            "num_decode_tokens": _integer(lengths["num_decode_tokens"].to_numpy(dtype="int64")),
            "num_decode_tokens_actual": _integer(produced[end] - produced[begin]),
            "status": "ok",
            "completion_time_ns": _integer(delivered_ns[spans.last_step[end - 1]]),
            "prompt_id": lengths["prompt_id"].to_numpy(),
            "backend": BACKEND,
            "scheduled_time_ns": _integer(scheduled_at_ns),
            "num_preemptions": _integer(num_preemptions),
        },
        copy=False,
    )


def _iteration_table(steps: LoggedSteps) -> pd.DataFrame:
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


def _integers(**columns: Integers) -> pd.DataFrame:
    return pd.DataFrame({name: _integer(values) for name, values in columns.items()}, copy=False)


def _integer(values: Integers | list[int]) -> pd.arrays.IntegerArray:
    """A column of the contract's integers, none missing."""
    numbers = np.array(values, dtype=np.int64)
    return pd.arrays.IntegerArray(numbers, np.zeros(len(numbers), dtype=bool))
