"""One Pandera model per contract table, and the only two functions that read and write them.

The models are the contract: columns, order, types, and every invariant that one table can show. Invariants between two
tables are at the end (`check_run_tables`). CSV bytes belong to `csv_files`; nothing here computes a result.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts import csv_files
from gst_assets.errors import ContractError

Int = pd.Int64Dtype


class Table(pa.DataFrameModel):
    """Base of the contract tables. Columns the contract does not know are allowed and left alone."""

    class Config:
        strict = False
        coerce = False
        unique_column_names = True

    @classmethod
    def file_name(cls) -> str:
        """The file this table is stored in, e.g. `request_metrics.csv`."""
        return str(cls.to_schema().name)

    @classmethod
    def column_types(cls) -> tuple[dict[str, str], dict[str, str]]:
        """Required and optional columns in contract order, each mapped to a `csv_files` type."""
        required: dict[str, str] = {}
        optional: dict[str, str] = {}
        for name, column in cls.to_schema().columns.items():
            (required if column.required else optional)[name] = _csv_type(str(column.dtype))
        return required, optional

    @pa.dataframe_check(error="every number must be finite")
    def numbers_are_finite(cls, df: pd.DataFrame) -> pd.Series:
        known = set(cls.to_schema().columns)
        good = np.ones(len(df), dtype=bool)
        for name in _float_columns(df):
            if name in known:
                good &= ~np.isinf(df[name].to_numpy())
        return pd.Series(good, index=df.index)


class FilledTable(Table):
    """Base of the tables that mean nothing without a row: no workload and no run is empty."""

    @pa.dataframe_check(error="there must be at least one row")
    def has_rows(cls, df: pd.DataFrame) -> bool:
        return len(df) > 0


def _csv_type(dtype: str) -> str:
    if dtype.startswith("Int64"):
        return csv_files.INTEGER
    if dtype == "float64":
        return csv_files.FLOAT
    if dtype == "bool":
        return csv_files.BOOLEAN
    return csv_files.STRING


# --- workload ---------------------------------------------------------------------------------------------------------


class TraceLengths(FilledTable):
    """Token counts of each request: primary key `request_id`, ascending and gap-free from 0."""

    class Config(Table.Config):
        name = "trace_lengths.csv"

    request_id: Series[Int] = pa.Field(description="0..N-1, ascending, gap-free")
    prompt_id: Series[str] = pa.Field(description="joins prompts.jsonl", str_length={"min_value": 1})
    num_prefill_tokens: Series[Int] = pa.Field(ge=0, description="prompt length in tokens")
    num_decode_tokens: Series[Int] = pa.Field(ge=0, description="tokens requested of the engine")

    @pa.dataframe_check(error="request_id must be 0..N-1 in ascending order without gaps")
    def ids_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        return _gap_free(df)


class TraceIntervals(FilledTable):
    """Arrival schedule in integer nanoseconds from workload start."""

    class Config(Table.Config):
        name = "trace_intervals.csv"

    request_id: Series[Int] = pa.Field(description="0..N-1, ascending, gap-free")
    inter_arrival_ns: Series[Int] = pa.Field(ge=0, description="time since the previous request arrived")
    arrival_time_ns: Series[Int] = pa.Field(
        ge=0, description="time since workload start; equals cumsum(inter_arrival_ns)"
    )

    @pa.dataframe_check(error="request_id must be 0..N-1 in ascending order without gaps")
    def ids_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        return _gap_free(df)

    @pa.dataframe_check(error="arrival_time_ns must equal cumsum(inter_arrival_ns)")
    def arrivals_are_the_cumulative_sum(cls, df: pd.DataFrame) -> pd.Series:
        return df["arrival_time_ns"] == df["inter_arrival_ns"].cumsum()


# --- runs -------------------------------------------------------------------------------------------------------------

TIME_COLUMNS = ("first_token_time_ns", "ttft_ns", "completion_time_ns")


class RequestMetrics(FilledTable):
    """One row per request. Times are nanoseconds since run start on a monotonic clock; `arrival_time_ns` is the intended arrival.

    A request that failed or produced no token has empty time columns.
    """

    class Config(Table.Config):
        name = "request_metrics.csv"

    request_id: Series[Int] = pa.Field(description="primary key, 0..N-1")
    arrival_time_ns: Series[Int] = pa.Field(ge=0, description="intended arrival, from the workload")
    first_token_time_ns: Series[Int] = pa.Field(ge=0, nullable=True, description="first token seen")
    ttft_ns: Series[Int] = pa.Field(ge=0, nullable=True, description="first_token_time_ns - arrival_time_ns")
    num_prefill_tokens: Series[Int] = pa.Field(ge=0, description="prompt length in tokens")
    num_decode_tokens: Series[Int] = pa.Field(ge=0, description="tokens requested")
    num_decode_tokens_actual: Series[Int] = pa.Field(ge=0, description="tokens produced; fewer on an early stop")
    status: Series[str] = pa.Field(isin=["ok", "error"], description="ok, or error (see error_type)")
    completion_time_ns: Series[Int] | None = pa.Field(ge=0, nullable=True, description="last token seen")
    prompt_id: Series[str] | None = pa.Field(description="joins prompts.jsonl")
    backend: Series[str] | None = pa.Field(description="what served the request")
    scheduled_time_ns: Series[Int] | None = pa.Field(nullable=True, description="first scheduled by the engine")
    send_time_ns: Series[Int] | None = pa.Field(nullable=True, description="when the driver handed the request over")
    num_preemptions: Series[Int] | None = pa.Field(
        ge=0, nullable=True, description="times the engine preempted the request"
    )
    error_type: Series[str] | None = pa.Field(description="class of the failure, empty when ok")
    error_msg: Series[str] | None = pa.Field(description="the failure in words, empty when ok")
    source_request_id: Series[str] | None = pa.Field(
        unique=True,
        description="the request's name in the results it was imported from; two runs that have it are joined by it",
    )
    queued_time_ns: Series[Int] | None = pa.Field(nullable=True, description="when the engine queued the request")

    @pa.dataframe_check(error="request_id must be 0..N-1 in ascending order without gaps")
    def ids_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        return _gap_free(df)

    @pa.dataframe_check(error="ttft_ns must equal first_token_time_ns - arrival_time_ns")
    def ttft_is_consistent(cls, df: pd.DataFrame) -> pd.Series:
        both_missing = df["ttft_ns"].isna() & df["first_token_time_ns"].isna()
        equal = df["ttft_ns"] == df["first_token_time_ns"] - df["arrival_time_ns"]
        return equal.fillna(False) | both_missing

    @pa.dataframe_check(
        error="first_token_time_ns, ttft_ns and completion_time_ns must be filled where status is ok and num_decode_tokens_actual above 0, and empty elsewhere"
    )
    def times_match_status(cls, df: pd.DataFrame) -> pd.Series:
        has_token = (df["status"] == "ok") & (df["num_decode_tokens_actual"] > 0)
        good = pd.Series(True, index=df.index)
        for name in TIME_COLUMNS:
            if name in df.columns:
                good &= df[name].notna() == has_token
        return good

    @pa.dataframe_check(error="num_decode_tokens_actual must not exceed num_decode_tokens")
    def not_more_tokens_than_asked(cls, df: pd.DataFrame) -> pd.Series:
        return df["num_decode_tokens_actual"] <= df["num_decode_tokens"]

    @pa.dataframe_check(error="completion_time_ns must not be before first_token_time_ns")
    def completes_after_first_token(cls, df: pd.DataFrame) -> pd.Series:
        if "completion_time_ns" not in df.columns:
            return pd.Series(True, index=df.index)
        return (df["completion_time_ns"] >= df["first_token_time_ns"]).fillna(True)


class TokenMetrics(Table):
    """One row per produced token, ordered by request and index.

    `token_latency_ns` is the gap to the previous token and 0 at index 0, which never enters a latency statistic.
    """

    class Config(Table.Config):
        name = "token_metrics.csv"

    request_id: Series[Int] = pa.Field(ge=0, description="joins request_metrics")
    token_index: Series[Int] = pa.Field(ge=0, description="0..num_decode_tokens_actual-1, gap-free")
    token_time_ns: Series[Int] = pa.Field(ge=0, description="when the token was seen, since run start")
    token_latency_ns: Series[Int] = pa.Field(ge=0, description="gap to the previous token; 0 at index 0")
    token_id: Series[Int] | None = pa.Field(ge=0, nullable=True, description="vocabulary id")

    @pa.dataframe_check(error="rows must be ordered by request_id")
    def ordered_by_request(cls, df: pd.DataFrame) -> pd.Series:
        ids = df["request_id"].to_numpy(dtype="int64")
        return pd.Series(np.diff(ids, prepend=ids[:1]) >= 0, index=df.index)

    @pa.dataframe_check(error="token_index must count 0, 1, 2, ... without gaps within each request")
    def indexes_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        first, index = _first_of_request(df), df["token_index"].to_numpy(dtype="int64")
        expected = np.where(first, 0, np.roll(index, 1) + 1)
        return pd.Series(index == expected, index=df.index)

    @pa.dataframe_check(error="token_time_ns must not decrease within a request")
    def times_do_not_decrease(cls, df: pd.DataFrame) -> pd.Series:
        times = df["token_time_ns"].to_numpy(dtype="int64")
        return pd.Series(_first_of_request(df) | (np.diff(times, prepend=times[:1]) >= 0), index=df.index)

    @pa.dataframe_check(
        error="token_latency_ns must be the difference to the previous token_time_ns, and 0 at token_index 0"
    )
    def latency_is_the_difference(cls, df: pd.DataFrame) -> pd.Series:
        times = df["token_time_ns"].to_numpy(dtype="int64")
        expected = np.where(_first_of_request(df), 0, np.diff(times, prepend=times[:1]))
        return pd.Series(df["token_latency_ns"].to_numpy(dtype="int64") == expected, index=df.index)


class Iterations(Table):
    """One row per engine iteration (step), real or simulated, in order of execution. Times are since run start and may be negative
    for steps that began before it (none are written by this project)."""

    class Config(Table.Config):
        name = "iterations.csv"

    iteration_id: Series[Int] = pa.Field(ge=0, description="0.. in order of scheduling")
    scheduled_time_ns: Series[Int] = pa.Field(description="when the scheduler formed the batch")
    completion_time_ns: Series[Int] = pa.Field(description="when its outputs were processed")
    num_prefill_requests: Series[Int] = pa.Field(ge=0, description="requests whose prompt was being processed")
    num_prefill_tokens: Series[Int] = pa.Field(ge=0, description="prompt tokens in the step")
    num_decode_requests: Series[Int] = pa.Field(ge=0, description="requests that decoded one token")
    num_context_tokens: Series[Int] = pa.Field(
        ge=0, description="KV tokens present before the step, over all its requests"
    )
    num_running: Series[Int] = pa.Field(ge=0, description="requests running after scheduling")
    num_waiting: Series[Int] = pa.Field(ge=0, description="requests waiting after scheduling")
    launched_time_ns: Series[Int] | None = pa.Field(
        nullable=True,
        description="when the call that launches the model returned; on a GPU its work is queued by then, not done",
    )
    output_time_ns: Series[Int] | None = pa.Field(
        nullable=True, description="when the step's tokens had reached the scheduler's process"
    )
    num_prefill_context_tokens: Series[Int] | None = pa.Field(
        ge=0, description="of num_context_tokens, those of the requests in prefill"
    )
    num_attention_pairs: Series[Int] | None = pa.Field(
        ge=0,
        description="(query, key) pairs that causal attention looks at for the prompts: new x context + new x (new + 1) / 2 of each",
    )

    @pa.dataframe_check(error="completion_time_ns must not be before scheduled_time_ns")
    def ends_after_start(cls, df: pd.DataFrame) -> pd.Series:
        return df["completion_time_ns"] >= df["scheduled_time_ns"]


# --- profiling bundle -------------------------------------------------------------------------------------------------


class MlpProfile(FilledTable):
    """Per-layer operator times in milliseconds by `num_tokens`, in Vidur's column names (Vidur 0.0.26,
    `SklearnExecutionTimePredictor._train_general_models`)."""

    class Config(Table.Config):
        name = "mlp.csv"

    input_layernorm: Series[float] = pa.Field(gt=0, alias="time_stats.input_layernorm.median")
    attn_pre_proj: Series[float] = pa.Field(gt=0, alias="time_stats.attn_pre_proj.median")
    attn_rope: Series[float] = pa.Field(
        gt=0, alias="time_stats.attn_rope.median", description="q/k norm and rotary embedding"
    )
    attn_post_proj: Series[float] = pa.Field(gt=0, alias="time_stats.attn_post_proj.median")
    post_attention_layernorm: Series[float] = pa.Field(gt=0, alias="time_stats.post_attention_layernorm.median")
    mlp_up_proj: Series[float] = pa.Field(gt=0, alias="time_stats.mlp_up_proj.median")
    mlp_act: Series[float] = pa.Field(gt=0, alias="time_stats.mlp_act.median")
    mlp_down_proj: Series[float] = pa.Field(gt=0, alias="time_stats.mlp_down_proj.median")
    add: Series[float] = pa.Field(
        ge=0, alias="time_stats.add.median", description="0 where the engine fuses the residual add into a norm"
    )
    n_head: Series[Int] = pa.Field(gt=0)
    n_kv_head: Series[Int] = pa.Field(gt=0)
    n_embd: Series[Int] = pa.Field(gt=0)
    n_expanded_embd: Series[Int] = pa.Field(gt=0)
    vocab_size: Series[Int] = pa.Field(gt=0)
    use_gated_mlp: Series[bool]
    num_tokens: Series[Int] = pa.Field(gt=0, unique=True)
    num_tensor_parallel_workers: Series[Int] = pa.Field(gt=0)


class AttentionProfile(FilledTable):
    """Per-layer attention times in milliseconds. `kv_cache_size` is the number of tokens cached before the step.

    Prefill rows (`is_prefill`): one sequence, `prefill_chunk_size` new tokens; `attn_decode` empty.
    Decode rows: `batch_size` sequences of `kv_cache_size` tokens each; `attn_prefill` empty.
    """

    class Config(Table.Config):
        name = "attention.csv"

    n_embd: Series[Int] = pa.Field(gt=0)
    n_q_head: Series[Int] = pa.Field(gt=0)
    n_kv_head: Series[Int] = pa.Field(gt=0)
    head_dim: Series[Int] = pa.Field(gt=0)
    block_size: Series[Int] = pa.Field(gt=0)
    num_tensor_parallel_workers: Series[Int] = pa.Field(gt=0)
    max_model_len: Series[Int] = pa.Field(gt=0)
    attention_backend: Series[str]
    is_prefill: Series[bool]
    batch_size: Series[Int] = pa.Field(gt=0)
    prefill_chunk_size: Series[Int] = pa.Field(ge=0)
    kv_cache_size: Series[Int] = pa.Field(ge=0)
    attn_prefill: Series[float] = pa.Field(gt=0, nullable=True, alias="time_stats.attn_prefill.median")
    attn_decode: Series[float] = pa.Field(gt=0, nullable=True, alias="time_stats.attn_decode.median")
    attn_kv_cache_save: Series[float] = pa.Field(gt=0, alias="time_stats.attn_kv_cache_save.median")

    @pa.dataframe_check(
        error="a row with is_prefill True needs prefill_chunk_size above 0, attn_prefill and no attn_decode; one with False the reverse"
    )
    def kind_matches_columns(cls, df: pd.DataFrame) -> pd.Series:
        prefill = df["is_prefill"]
        has_prefill = df["time_stats.attn_prefill.median"].notna()
        has_decode = df["time_stats.attn_decode.median"].notna()
        return (has_prefill == prefill) & (has_decode != prefill) & ((df["prefill_chunk_size"] > 0) == prefill)

    @pa.dataframe_check(
        error="two rows describe the same point (is_prefill, batch_size, prefill_chunk_size, kv_cache_size)"
    )
    def points_are_unique(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size"])


class UnmodelledOperators(FilledTable):
    """Times of what runs once a step and has no column in Vidur's tables: embedding and final_norm by tokens, lm_head and sampling by sequences."""

    class Config(Table.Config):
        name = "unmodelled.csv"

    operator: Series[str] = pa.Field(isin=["embedding", "final_norm", "lm_head", "sampling"])
    num_rows: Series[Int] = pa.Field(gt=0, description="tokens or sequences")
    median_ms: Series[float] = pa.Field(gt=0)


class Overheads(FilledTable):
    """What the parts of an engine step and the ways of a request cost, fitted to calibration (`profiling.term_fit`).

    A term of a kind of step is a curve through its `base` rows (linear between positions, held beyond) plus `ns` of each other feature (a curve like it
    where it has several rows) times that feature of the step. The terms: `prepare` (forming a step to launching its forward pass), `launch` (from there until all is launched),
    `prepare_after_idle` and `launch_after_idle` (what a step takes more that is formed when none is out), `lead_in` (device time between two steps), `device` (busy time of a device that never waits), `drain` (end of the
    launch to the end on a device that was not behind), `copy_out` (to the tokens at a host that waits), `process` (to the forming of a next step),
    `handover` (sending a request to an idle engine's first step), `delivery` (a step's tokens at the host to the client).
    """

    class Config(Table.Config):
        name = "overheads.csv"

    term: Series[str] = pa.Field(
        isin=[
            "prepare", "launch", "prepare_after_idle", "launch_after_idle", "lead_in", "device", "drain", "copy_out", "process", "handover", "delivery",
        ]
    )  # fmt: skip
    step_kind: Series[str] = pa.Field(
        isin=["decode", "mixed", "mixed_eager", "any"],
        description="decode: no prompt token in the step; mixed: at least one; mixed_eager: beyond the captured graph sizes",
    )
    feature: Series[str] = pa.Field(
        isin=[
            "base",
            "prefill_request",
            "prefill_token",
            "decode_request",
            "decode_context_token",
            "attention_pair",
            "warm_token",
            "warmth",
        ],
        description="what ns is multiplied with; base: a point of the curve",
    )
    position: Series[float] = pa.Field(
        ge=0,
        description="tokens the device processes (device), decodes (prepare and launch of decode steps, delivery), requests (process, copy_out), "
        "prompt tokens (handover), else 0; of a slope in one row only it says nothing",
    )
    ns: Series[float] = pa.Field(description="nanoseconds; only drain and the terms after idle may be negative")
    num_samples: Series[Int] = pa.Field(ge=0, description="steps or requests that the whole term was fitted to")
    residual_p05_ns: Series[Int] = pa.Field(description="5th percentile of sample less fit, over the whole term")
    residual_p95_ns: Series[Int] = pa.Field(description="95th percentile of the same")

    @pa.dataframe_check(error="ns must not be negative but for drain and the terms after idle")
    def takes_time(cls, df: pd.DataFrame) -> pd.Series:
        return (df["ns"] >= 0) | df["term"].isin(["drain", "prepare_after_idle", "launch_after_idle"])

    @pa.dataframe_check(error="a term, step_kind, feature and position stand in one row only")
    def stands_once(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["term", "step_kind", "feature", "position"])


class HostSpeed(FilledTable):
    """How fast the engine's host was during calibration traffic, in order of time: one row per step and one per step whose tokens were delivered.

    A simulation replays the sequence, so that its slow moments last as long as the real ones.
    """

    class Config(Table.Config):
        name = "host_speed.csv"

    time_ns: Series[Int] = pa.Field(ge=0, description="since the first step; longer idle times are shortened")
    part: Series[str] = pa.Field(
        isin=["decode", "prefill", "delivery"],
        description="decode, prefill: forming and launching a step without or with prompts (on a CPU: and computing it); delivery: a step's tokens "
        "on their way to the clients",
    )
    ratio: Series[float] = pa.Field(gt=0, description="what it took over what the terms say of it")

    @pa.dataframe_check(error="time_ns must not decrease")
    def in_order(cls, df: pd.DataFrame) -> pd.Series:
        return df["time_ns"].diff().fillna(0) >= 0


class CalibrationTraffic(FilledTable):
    """The requests of the calibration traffic as their clients saw them, so that a bundle can be held against what it was made of."""

    class Config(Table.Config):
        name = "calibration_traffic.csv"

    stretch: Series[str] = pa.Field(description="round and rate, or burst")
    request_id: Series[Int] = pa.Field(ge=0, description="0.. within the stretch, in order of arrival")
    arrival_time_ns: Series[Int] = pa.Field(ge=0, description="intended, since the first of the stretch")
    num_prefill_tokens: Series[Int] = pa.Field(gt=0)
    num_decode_tokens: Series[Int] = pa.Field(gt=0)
    ttft_ns: Series[Int] = pa.Field(gt=0)
    e2e_ns: Series[Int] = pa.Field(gt=0)
    itl_p50_ns: Series[Int] = pa.Field(
        ge=0, nullable=True, description="median gap between the request's tokens; empty with one token"
    )
    itl_p90_ns: Series[Int] = pa.Field(ge=0, nullable=True, description="90th percentile of the same")


class SelfFit(Table):
    """Calibration traffic simulated with the bundle itself, beside what was measured: one row per sort of traffic, metric and statistic.

    `measured_ns` and `simulated_ns` are medians over the rounds of the statistic in each, `relative_error` the median of the rounds' errors (their
    traffic differs) and `spread` the largest of these less the smallest. `itl` is over the requests' median gaps at p50 and their 90th percentiles at p90.
    """

    class Config(Table.Config):
        name = "self_fit.csv"

    traffic: Series[str] = pa.Field(description="traffic and its rate per second, or burst")
    metric: Series[str] = pa.Field(isin=["ttft", "itl", "e2e"])
    statistic: Series[str] = pa.Field(isin=["p50", "p90"])
    num_requests: Series[Int] = pa.Field(gt=0, description="over all rounds")
    measured_ns: Series[Int] = pa.Field(gt=0)
    spread: Series[float] = pa.Field(ge=0)
    simulated_ns: Series[Int] = pa.Field(gt=0)
    relative_error: Series[float] = pa.Field(description="median over the rounds of (simulated - measured) / measured")
    fits: Series[bool] = pa.Field(description="whether the error is within 3 % or the spread, whichever is larger")


class OperatorCoverage(Table):
    """What the operators, timed one by one, add up to beside the whole steps they are part of. A CPU's whole steps hold its host's work too."""

    class Config(Table.Config):
        name = "operator_coverage.csv"

    step_kind: Series[str] = pa.Field(isin=["decode", "mixed", "mixed_eager"])
    num_tokens: Series[Int] = pa.Field(gt=0, description="new tokens of the step, padded as the device processes them")
    num_decode_requests: Series[Int] = pa.Field(ge=0, description="median over the samples")
    num_context_tokens: Series[Int] = pa.Field(ge=0, description="KV tokens present, median over the samples")
    num_samples: Series[Int] = pa.Field(gt=0)
    whole_step_ns: Series[Int] = pa.Field(gt=0, description="median device time of the steps")
    operators_ns: Series[Int] = pa.Field(
        gt=0, description="median sum of operators of the same steps, Vidur's and what it leaves out"
    )
    coverage: Series[float] = pa.Field(gt=0, description="operators_ns / whole_step_ns")


# --- report -----------------------------------------------------------------------------------------------------------


class LatencyErrors(Table):
    """The comparison's headline: one row per metric, statistic and simulation variant.

    `real_ns` is the median over repeats of the statistic computed in each repeat; `real_spread` is (max - min) / `real_ns` over the
    repeats, empty with a single repeat. `sim_ns` is the median over repeats of the simulation's statistic after alignment to each
    repeat, itself the median over its seeds; without early stops and errors these are equal for every repeat. `relative_error` is (sim - real) / real, empty where `real_ns` is 0 and
    `sim_ns` is not.
    """

    class Config(Table.Config):
        name = "latency_errors.csv"

    metric: Series[str] = pa.Field(
        description="ttft, itl, tpot, e2e, normalized (E2E per token) or normalized_execution (the same from the first scheduling on)"
    )
    statistic: Series[str] = pa.Field(description="mean, p50, p90, p95 or p99")
    variant: Series[str] = pa.Field(description="simulation variant")
    real_ns: Series[float] = pa.Field(ge=0, nullable=True)
    sim_ns: Series[float] = pa.Field(ge=0, nullable=True)
    error_ns: Series[float] = pa.Field(nullable=True, description="sim_ns - real_ns")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    real_spread: Series[float] = pa.Field(ge=0, nullable=True, description="(max - min) / median over real repeats")
    num_real_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest repeat")
    num_sim_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest alignment")
    verdict: Series[str] = pa.Field(
        isin=["pass", "warn", "inconclusive", "insufficient", "fail"],
        description="interval of relative_error against the bands; insufficient: too few requests, or fewer than ten (independent) samples beyond the percentile",
    )
    interval_low: Series[float] | None = pa.Field(
        nullable=True, description="low end of the 95 % interval of relative_error; empty: not known"
    )
    interval_high: Series[float] | None = pa.Field(
        nullable=True, description="high end of the 95 % interval of relative_error; empty: not known or open"
    )
    error_to_noise: Series[float] | None = pa.Field(
        ge=0, nullable=True, description="|relative_error| / real_spread; empty: one repeat, or repeats without spread"
    )
    required: Series[bool] | None = pa.Field(description="whether the cell enters the comparison's verdict")
    num_independent: Series[float] | None = pa.Field(
        ge=0,
        nullable=True,
        description="independent samples beyond the percentile (mean: half of those beyond P95) that the samples are worth; empty: not known, or nothing varies",
    )
    interval_flagged: Series[bool] | None = pa.Field(
        description="the interval rests on fewer than five repeats, or with one repeat on too few independent samples or stretches, to cover what it claims"
    )
    interval_basis: Series[str] | None = pa.Field(
        isin=["repeats", "requests", "none"],
        description="what the interval rests on: repeats of the engine and seeds of the simulation; with one repeat, resampled requests",
    )
    carry_low: Series[float] | None = pa.Field(
        nullable=True,
        description="low end of the 95 % interval of the error on other workloads of the kind (requests resampled); empty: not known",
    )
    carry_high: Series[float] | None = pa.Field(nullable=True, description="its high end; empty: not known or open")
    drifts: Series[bool] | None = pa.Field(
        description="the repeats rise or fall all the time, and the interval is widened"
    )
    reason: Series[str] | None = pa.Field(description="why it cannot be judged, or what holds a pass back; else empty")


class RateErrors(Table):
    """Throughput and goodput, real beside simulated: one row per variant and rate. They do not enter the comparison's verdict."""

    class Config(Table.Config):
        name = "rate_errors.csv"

    metric: Series[str] = pa.Field(
        isin=["requests_per_s", "input_tokens_per_s", "output_tokens_per_s", "goodput_per_s"],
        description="over first arrival to last compared token; goodput: requests that keep comparison.service_level",
    )
    variant: Series[str] = pa.Field(description="simulation variant")
    real_per_s: Series[float] = pa.Field(ge=0, nullable=True, description="median over repeats")
    sim_per_s: Series[float] = pa.Field(ge=0, nullable=True, description="median over repeats and seeds")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    real_spread: Series[float] = pa.Field(ge=0, nullable=True, description="(max - min) / median over real repeats")
    verdict: Series[str] = pa.Field(isin=["pass", "warn", "inconclusive", "insufficient", "fail"])
    interval_low: Series[float] = pa.Field(nullable=True, description="low end of the 95 % interval; empty: not known")
    interval_high: Series[float] = pa.Field(nullable=True, description="high end; empty: not known or open")
    interval_basis: Series[str] = pa.Field(isin=["repeats", "none"])
    reason: Series[str] = pa.Field(description="why it cannot be judged; else empty")


class RepeatLatencies(Table):
    """The same statistics for every real repeat: the noise floor that a simulation error is read against."""

    class Config(Table.Config):
        name = "repeat_latencies.csv"

    run_id: Series[str]
    metric: Series[str]
    statistic: Series[str]
    value_ns: Series[float] = pa.Field(ge=0, nullable=True)
    num_samples: Series[Int] = pa.Field(ge=0)


class RequestErrors(Table):
    """Simulated against real, paired request by request: one row per real repeat, variant and compared request."""

    class Config(Table.Config):
        name = "request_errors.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    variant: Series[str] = pa.Field(description="simulation variant")
    request_id: Series[Int] = pa.Field(ge=0)
    num_prefill_tokens: Series[Int] = pa.Field(ge=0, description="prompt length in tokens")
    num_tokens: Series[Int] = pa.Field(gt=0, description="tokens compared: what the real engine produced")
    real_ttft_ns: Series[Int] = pa.Field(ge=0)
    sim_ttft_ns: Series[Int] = pa.Field(ge=0)
    ttft_error_ns: Series[Int] = pa.Field(description="sim_ttft_ns - real_ttft_ns")
    real_e2e_ns: Series[Int] = pa.Field(ge=0, description="last compared token - arrival")
    sim_e2e_ns: Series[Int] = pa.Field(ge=0, description="last compared token - arrival")
    e2e_error_ns: Series[Int] = pa.Field(description="sim_e2e_ns - real_e2e_ns")
    num_in_system: Series[Int] | None = pa.Field(
        ge=0,
        description="other compared requests that had arrived and not finished in the real run when this one arrived",
    )


class AlignmentCounts(Table):
    """What alignment kept and left out: one row per real repeat and variant."""

    class Config(Table.Config):
        name = "alignment_counts.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    variant: Series[str] = pa.Field(description="simulation variant")
    num_requests: Series[Int] = pa.Field(ge=0, description="requests in the workload")
    num_compared: Series[Int] = pa.Field(ge=0, description="requests in every statistic")
    num_errors: Series[Int] = pa.Field(ge=0, description="real requests with status error; left out of both sides")
    num_no_token: Series[Int] = pa.Field(
        ge=0, description="real requests ok but without a token; left out of both sides"
    )
    num_early_stops: Series[Int] = pa.Field(ge=0, description="compared requests with fewer real tokens than requested")
    num_tokens_compared: Series[Int] = pa.Field(ge=0, description="tokens on each side")
    num_tokens_cut: Series[Int] = pa.Field(
        ge=0, description="simulated tokens of compared requests beyond the real count"
    )

    @pa.dataframe_check(error="num_requests must equal num_compared + num_errors + num_no_token")
    def counts_add_up(cls, df: pd.DataFrame) -> pd.Series:
        return df["num_requests"] == df["num_compared"] + df["num_errors"] + df["num_no_token"]


class SettingsParity(Table):
    """Engine settings beside what each simulation assumed: one row per variant and setting."""

    class Config(Table.Config):
        name = "settings_parity.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    setting: Series[str] = pa.Field(description="name in engine_settings of run_meta.json")
    real: Series[str] = pa.Field(description="what the engine reported; several values where repeats differ")
    simulated: Series[str] = pa.Field(description="what the simulation assumed; empty where it did not record it")
    parity: Series[str] = pa.Field(isin=["equal", "differs", "not_recorded"])


class GateChecks(Table):
    """What was looked at before the numbers: one row a check and run. A failed check of severity stop leaves no comparison behind."""

    class Config(Table.Config):
        name = "gate_checks.csv"

    check: Series[str]
    run: Series[str] = pa.Field(description="real run, or simulation variants; empty: all")
    severity: Series[str] = pa.Field(isin=["ok", "note", "mark"], description="mark: the comparison is never a pass")
    real: Series[str] = pa.Field(description="what the real side shows; empty: does not apply")
    simulated: Series[str] = pa.Field(description="what the simulated side shows; empty: does not apply")
    finding: Series[str] = pa.Field(description="the finding in words; empty when ok")


class PairedErrors(Table):
    """Errors request by request, and distances of the distributions: one row per real repeat, variant and metric.

    Relative errors are over requests whose real value is not 0; the paired columns are empty for `itl`, whose samples have no partner.
    """

    class Config(Table.Config):
        name = "paired_errors.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(
        description="ttft, itl, tpot, e2e, normalized (E2E per token) or normalized_execution (the same from the first scheduling on)"
    )
    num_requests: Series[Int] = pa.Field(ge=0, description="requests with a sample")
    num_undefined: Series[Int] = pa.Field(ge=0, nullable=True, description="requests whose relative error is undefined")
    mape: Series[float] = pa.Field(ge=0, nullable=True, description="mean of |relative error|")
    median_ape: Series[float] = pa.Field(ge=0, nullable=True, description="median of |relative error|")
    bias: Series[float] = pa.Field(nullable=True, description="mean of the signed relative error")
    mean_error_ns: Series[float] = pa.Field(nullable=True, description="mean of simulated - real")
    rank_correlation: Series[float] = pa.Field(
        ge=-1, nullable=True, description="Spearman's; empty where a side is constant"
    )
    wasserstein_ns: Series[float] = pa.Field(ge=0, nullable=True, description="Wasserstein-1 distance")
    ks_distance: Series[float] = pa.Field(
        ge=0, nullable=True, description="Kolmogorov-Smirnov D, an effect size: samples are dependent, no p-value"
    )


class ErrorGroups(Table):
    """Relative errors of requests grouped by prompt length and by load, over all real repeats: one row per variant, metric and group."""

    class Config(Table.Config):
        name = "error_groups.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(description="ttft or e2e")
    factor: Series[str] = pa.Field(isin=["num_prefill_tokens", "num_in_system"])
    low: Series[Int] = pa.Field(ge=0, description="smallest value of the factor in the group")
    high: Series[Int] = pa.Field(ge=0, description="largest value of the factor in the group")
    num_requests: Series[Int] = pa.Field(gt=0, description="requests in the group, each counted once a repeat")
    p10: Series[float] = pa.Field(nullable=True, description="10 % point of the relative error")
    median: Series[float] = pa.Field(nullable=True, description="median of the relative error")
    p90: Series[float] = pa.Field(nullable=True, description="90 % point of the relative error")


class RunTotals(Table):
    """A run as a whole, over its compared requests: one row per real repeat and per simulation."""

    class Config(Table.Config):
        name = "run_totals.csv"

    side: Series[str] = pa.Field(isin=["real", "sim"])
    run: Series[str] = pa.Field(description="real run id, or simulation variant")
    duration_ns: Series[float] = pa.Field(ge=0, description="first arrival to last compared token")
    requests_per_s: Series[float] = pa.Field(ge=0, nullable=True, description="compared requests over the duration")
    tokens_per_s: Series[float] = pa.Field(ge=0, nullable=True, description="compared tokens over the duration")
    mean_running: Series[float] = pa.Field(ge=0, nullable=True, description="time average of running requests")
    max_running: Series[float] = pa.Field(ge=0)
    mean_waiting: Series[float] = pa.Field(ge=0, nullable=True, description="time average of waiting requests")
    max_waiting: Series[float] = pa.Field(ge=0)
    scheduling_delay_ns: Series[float] = pa.Field(
        nullable=True, description="mean of scheduled_time_ns - arrival_time_ns; empty: not recorded"
    )
    num_preemptions: Series[float] = pa.Field(ge=0, nullable=True, description="empty: not recorded")
    queue_source: Series[str] = pa.Field(
        isin=["iterations.csv", "request times"],
        description="where running and waiting are from: the scheduler's counts, or arrivals, first and last tokens of requests",
    )


class StageErrors(Table):
    """Where in a request's life the error arises: one row per variant and stage, in order, the last one the whole (`e2e`). Means over the compared
    requests of all repeats, so that stages add up. `first_token` stands for queueing and prefill where a side does not record scheduling."""

    class Config(Table.Config):
        name = "stage_errors.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    stage: Series[str] = pa.Field(isin=["queueing", "prefill", "first_token", "decode", "e2e"])
    num_requests: Series[Int] = pa.Field(gt=0, description="compared requests, each counted once a repeat")
    real_mean_ns: Series[float]
    sim_mean_ns: Series[float]
    error_ns: Series[float] = pa.Field(description="sim_mean_ns - real_mean_ns")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    share_of_e2e_error: Series[float] = pa.Field(
        nullable=True, description="error_ns over that of e2e, signed; empty where that is 0"
    )
    real_lateness_ns: Series[float] = pa.Field(
        nullable=True,
        description="mean lateness of the driver, inside the real stage; empty: not in it, or not recorded",
    )


class StepCosts(Table):
    """Service times that the profile's terms predict for the steps that really ran, beside the real ones: the cost model apart from scheduling.

    A step's service time runs from when the device could begin it until its tokens are at the host. Empty where it cannot be predicted.
    """

    class Config(Table.Config):
        name = "step_costs.csv"

    step_kind: Series[str] = pa.Field(isin=["decode", "mixed", "mixed_eager"])
    num_steps: Series[Int] = pa.Field(gt=0, description="over all real repeats")
    real_median_ns: Series[Int] = pa.Field(gt=0)
    predicted_median_ns: Series[Int] = pa.Field(gt=0)
    median_error: Series[float] = pa.Field(description="median of (predicted - real) / real")
    p90_absolute_error: Series[float] = pa.Field(ge=0, description="90th percentile of its size")
    total_error: Series[float] = pa.Field(description="of the sum over all steps")


class StepErrors(Table):
    """The steps of a real run beside those of a simulation or of the first real repeat: one row per pair and kind of step. What a step's time is:
    `analysis.stages`."""

    class Config(Table.Config):
        name = "step_errors.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    beside: Series[str] = pa.Field(description="simulation variant, or the run_id of the first real repeat")
    step_kind: Series[str] = pa.Field(
        isin=["all", "decode", "mixed"], description="decode: no prompt token; mixed: at least one"
    )
    num_real_steps: Series[Int] = pa.Field(ge=0)
    num_other_steps: Series[Int] = pa.Field(ge=0)
    real_mean_ns: Series[float] = pa.Field(nullable=True, description="mean time of a step")
    other_mean_ns: Series[float] = pa.Field(nullable=True, description="mean time of a step")
    relative_difference: Series[float] = pa.Field(nullable=True, description="(other - real) / real of the means")
    same_composition: Series[float] = pa.Field(
        ge=0,
        nullable=True,
        description="share of the real steps that the other run has too, in order (longest common subsequence); of all steps only",
    )


class ErrorCauses(Table):
    """What an error beyond the pass band is likely due to: one row per cell and cause found, or one that says `unexplained`. What each needs as
    evidence: `analysis.causes`."""

    class Config(Table.Config):
        name = "error_causes.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(description="ttft, itl or e2e")
    statistic: Series[str] = pa.Field(description="p50, p90 or p99")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    rank: Series[Int] = pa.Field(ge=1, description="1.. by the share of the error that goes with it, largest first")
    cause: Series[str]
    evidence: Series[str] = pa.Field(description="what was measured, in words")
    share: Series[float] | None = pa.Field(
        nullable=True, description="part of the error that goes when the cause is removed; empty: not known"
    )


# --- capacity ---------------------------------------------------------------------------------------------------------


class CapacityProbes(FilledTable):
    """Every probe of a search for capacity, in the order in which they were made: one row per side and probe.

    Scheduling delay is first scheduled - intended arrival; percentiles are over the requests that succeeded, empty where none did.
    """

    class Config(Table.Config):
        name = "capacity_probes.csv"

    side: Series[str] = pa.Field(description="engine, or the variant of the simulation")
    probe_index: Series[Int] = pa.Field(ge=0, description="0.. in order within the side")
    rate_per_s: Series[float] = pa.Field(gt=0, description="rate of the Poisson arrivals")
    seed: Series[Int] = pa.Field(ge=0, description="of the lengths drawn and of the gaps")
    num_requests: Series[Int] = pa.Field(gt=0)
    num_failed: Series[Int] = pa.Field(ge=0, description="requests that failed or were never scheduled")
    p50_delay_ns: Series[float] = pa.Field(nullable=True, description="P50 of scheduling delay")
    p99_delay_ns: Series[float] = pa.Field(nullable=True, description="P99 of scheduling delay")
    max_delay_ns: Series[Int] = pa.Field(nullable=True, description="largest scheduling delay")
    p99_lateness_ns: Series[float] = pa.Field(
        nullable=True, description="P99 of hand-over - intended arrival, inside the delay; empty: a simulation"
    )
    requests_per_s: Series[float] = pa.Field(
        ge=0, nullable=True, description="requests that succeeded, over first arrival to last token"
    )
    tokens_per_s: Series[float] = pa.Field(ge=0, nullable=True, description="output tokens over the same time")
    verdict: Series[str] = pa.Field(
        isin=["kept", "broken", "unjudged"], description="whether the P99 stayed under the bound"
    )
    is_sufficient: Series[bool] = pa.Field(description="at least ten requests lie beyond the P99")
    reason: Series[str] = pa.Field(description="why it could not be judged; empty when it was")

    @pa.dataframe_check(error="a verdict of unjudged needs a reason, and no other verdict has one")
    def unjudged_has_a_reason(cls, df: pd.DataFrame) -> pd.Series:
        return (df["verdict"] == "unjudged") == (df["reason"] != "")


# --- history and regression -------------------------------------------------------------------------------------------


class ComparisonHistory(Table):
    """One row per completed comparison of a scenario, in order of measurement. What the comparison did not record is empty.

    Rows of one `subject` may be compared with each other; `night` counts the measurements of a subject, and is empty on a comparison
    that is not one: without `subject`, or repeated later on the same real runs.
    """

    class Config(Table.Config):
        name = "comparison_history.csv"

    comparison_id: Series[str] = pa.Field(unique=True, str_length={"min_value": 1})
    meta_sha256: Series[str] = pa.Field(description="digest of the comparison's run_meta.json, which digests all else")
    measured_at: Series[str] = pa.Field(description="start of the first real repeat, ISO-8601 UTC; empty: not recorded")
    compared_at: Series[str] = pa.Field(description="start of the comparison, ISO-8601 UTC")
    group_id: Series[str] = pa.Field(description="the measurement, shared by its repeats; empty: not recorded")
    subject: Series[str] = pa.Field(
        description="digest of hardware, model, engine settings and workload; empty: not recorded"
    )
    night: Series[Int] = pa.Field(ge=0, nullable=True, description="0.. within the subject")
    workload_id: Series[str]
    model: Series[str]
    hardware_id: Series[str]
    device_name: Series[str]
    device_count: Series[Int] = pa.Field(ge=1)
    backend: Series[str]
    engine_settings_sha256: Series[str] = pa.Field(
        description="settings the engine reported, less versions and KV blocks"
    )
    engine_version: Series[str]
    num_kv_blocks: Series[Int] = pa.Field(ge=0, nullable=True)
    driver: Series[str]
    host_cpu: Series[str]
    torch_version: Series[str]
    vidur_version: Series[str]
    simulation_sha256: Series[str] = pa.Field(description="the scenario's simulation and profile sections")
    profile_sha256: Series[str] = pa.Field(description="the profile the headline variant was simulated on")
    git_commit: Series[str] = pa.Field(description="of the comparison; empty: unknown")
    headline_variant: Series[str]
    verdict: Series[str] = pa.Field(isin=["pass", "warn", "inconclusive", "insufficient", "fail"])
    num_marks: Series[Int] = pa.Field(ge=0, description="reasons why it could not be a pass")
    num_repeats: Series[Int] = pa.Field(ge=1)


class LatencyHistory(Table):
    """The headline of every comparison in the history: rows of its `latency_errors.csv`."""

    class Config(Table.Config):
        name = "latency_history.csv"

    comparison_id: Series[str]
    metric: Series[str] = pa.Field(description="ttft, itl or e2e")
    statistic: Series[str] = pa.Field(description="p50, p90 or p99")
    variant: Series[str] = pa.Field(description="simulation variant")
    real_ns: Series[float] = pa.Field(ge=0, nullable=True)
    sim_ns: Series[float] = pa.Field(ge=0, nullable=True)
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    real_spread: Series[float] = pa.Field(ge=0, nullable=True, description="(max - min) / median over real repeats")
    verdict: Series[str] = pa.Field(isin=["pass", "warn", "inconclusive", "insufficient", "fail"])


REGRESSION_VERDICTS = ("ok", "suspicious", "regression", "improvement", "insufficient data")


class RegressionVerdicts(Table):
    """One row per series: an engine latency (`side` engine, nanoseconds) or simulated over real (`side` fidelity, a ratio)."""

    class Config(Table.Config):
        name = "regression_verdicts.csv"

    side: Series[str] = pa.Field(isin=["engine", "fidelity"])
    metric: Series[str]
    statistic: Series[str]
    verdict: Series[str] = pa.Field(isin=list(REGRESSION_VERDICTS))
    reason: Series[str] = pa.Field(description="why, in words")
    num_nights: Series[Int] = pa.Field(ge=0, description="nights of the same subject with enough samples")
    last_value: Series[float] = pa.Field(nullable=True, description="ns, or simulated over real")
    baseline: Series[float] = pa.Field(
        nullable=True, description="median before the change, or of all nights without one"
    )
    current: Series[float] = pa.Field(
        nullable=True, description="median since the change, or of all nights without one"
    )
    effect: Series[float] = pa.Field(nullable=True, description="current / baseline - 1; empty without a change")
    noise_floor: Series[float] = pa.Field(
        ge=0, nullable=True, description="robust relative standard deviation of one night within the segments"
    )
    repeat_spread: Series[float] = pa.Field(
        ge=0, nullable=True, description="median (max - min) / median of real repeats"
    )
    pvalue: Series[float] = pa.Field(ge=0, nullable=True)
    changed_in: Series[str] = pa.Field(description="first comparison after the change; empty without one")
    nights_since: Series[Int] = pa.Field(ge=0, nullable=True, description="nights measured since the change")


class ChangePoints(Table):
    """Every significant change of a series over its whole life, also those too old to alarm."""

    class Config(Table.Config):
        name = "change_points.csv"

    side: Series[str] = pa.Field(isin=["engine", "fidelity"])
    metric: Series[str]
    statistic: Series[str]
    comparison_id: Series[str] = pa.Field(description="first comparison after the change")
    measured_at: Series[str]
    night: Series[Int] = pa.Field(ge=0)
    before: Series[float] = pa.Field(description="median of the segment before")
    after: Series[float] = pa.Field(description="median of the segment after")
    effect: Series[float] = pa.Field(description="after / before - 1")
    pvalue: Series[float] = pa.Field(ge=0)
    real_change: Series[float] = pa.Field(nullable=True, description="how far the real latency moved, relative")
    sim_change: Series[float] = pa.Field(nullable=True, description="how far the simulated latency moved, relative")


class LineMarks(Table):
    """What changed between one comparison and the next on the scenario's line. `breaks` True: a new subject, nothing across it is compared."""

    class Config(Table.Config):
        name = "line_marks.csv"

    comparison_id: Series[str] = pa.Field(description="first comparison after the change")
    measured_at: Series[str]
    what: Series[str] = pa.Field(description="column of comparison_history.csv")
    before: Series[str]
    after: Series[str]
    breaks: Series[bool]


# --- sweeps -----------------------------------------------------------------------------------------------------------


class SweepPoints(FilledTable):
    """One simulated configuration a row, in the order of the scenario's lists. Percentiles are over all requests (ITL: over all gaps)."""

    class Config(Table.Config):
        name = "sweep.csv"

    rate_per_s: Series[float] = pa.Field(
        gt=0, nullable=True, description="asked; empty: arrivals that are neither poisson nor gamma"
    )
    max_num_seqs: Series[Int] = pa.Field(gt=0)
    max_num_batched_tokens: Series[Int] = pa.Field(gt=0)
    num_kv_blocks: Series[Int] = pa.Field(gt=0)
    variant: Series[str]
    num_requests: Series[Int] = pa.Field(gt=0)
    makespan_ns: Series[Int] = pa.Field(gt=0, description="first arrival to last token")
    requests_per_s: Series[float] = pa.Field(gt=0, description="num_requests over the makespan")
    output_tokens_per_s: Series[float] = pa.Field(gt=0, description="tokens produced over the makespan")
    goodput_per_s: Series[float] = pa.Field(
        ge=0, nullable=True, description="requests that kept the service level over the makespan; empty: none is given"
    )
    ttft_p50_ns: Series[float] = pa.Field(ge=0)
    ttft_p90_ns: Series[float] = pa.Field(ge=0)
    ttft_p99_ns: Series[float] = pa.Field(ge=0)
    itl_p50_ns: Series[float] = pa.Field(ge=0, nullable=True, description="empty: no request has two tokens")
    itl_p90_ns: Series[float] = pa.Field(ge=0, nullable=True)
    itl_p99_ns: Series[float] = pa.Field(ge=0, nullable=True)
    e2e_p50_ns: Series[float] = pa.Field(ge=0)
    e2e_p90_ns: Series[float] = pa.Field(ge=0)
    e2e_p99_ns: Series[float] = pa.Field(ge=0)
    scheduling_delay_p99_ns: Series[float] = pa.Field(ge=0, description="arrival until first scheduled")
    num_preemptions: Series[Int] = pa.Field(ge=0)
    steps_outside_calibration: Series[Int] = pa.Field(
        ge=0,
        nullable=True,
        description="steps whose cost is extrapolated; empty: published and kernels have no calibration",
    )
    p99_sufficient: Series[bool] = pa.Field(description="enough requests for a P99 (ten beyond it)")
    pareto_ttft: Series[bool] = pa.Field(
        description="no configuration has more output tokens per second and no longer TTFT P99, or as many and a shorter one"
    )
    pareto_itl: Series[bool] = pa.Field(description="the same of ITL P99; False where there is none")
    pareto_e2e: Series[bool] = pa.Field(description="the same of E2E P99")


# --- reading, writing, checking ---------------------------------------------------------------------------------------


def read_table(model: type[Table], path: Path) -> pd.DataFrame:
    """Read and validate one contract table.

    Raises:
        ContractError: names the file, the first offending line and column, and what was expected.
    """
    required, optional = model.column_types()
    frame = csv_files.read_csv(path, required, optional=optional)
    return _validate(model, frame, path, lambda row: f"line {csv_files.line_of_row(path, row)}")


def write_table(model: type[Table], frame: pd.DataFrame, directory: Path) -> Path:
    """Validate `frame` and write it under its contract name into `directory`; returns the path.

    Raises:
        ContractError: nothing was written; names the first offending row and column, and what was expected.
    """
    path = directory / model.file_name()
    csv_files.write_csv(validate(model, frame, path), path)
    return path


def validate(model: type[Table], frame: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    """Validate `frame` against `model`; `path` is only named in the error.

    Raises:
        ContractError: the first violation, with row (position from 0), column and value.
    """
    return _validate(model, frame, path, lambda row: f"row {row}")


def _validate(model: type[Table], frame: pd.DataFrame, path: Path | str, place: Callable[[int], str]) -> pd.DataFrame:
    try:
        return model.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        # Lazily, so that the cause is told and not what follows from it: a missing value also breaks sums and orders.
        first = min(error.schema_errors, key=lambda one: _BY_CAUSE.get(one.reason_code, len(_BY_CAUSE)))
        described, bad = _describe(first, frame, place)
        raise ContractError(f"{path}: {described}", _sample(frame, bad)) from None


_SAMPLE_ROWS = 10
_REASON = pa.errors.SchemaErrorReason
_BY_CAUSE = {
    reason: rank
    for rank, reason in enumerate(
        (
            _REASON.DUPLICATE_COLUMN_LABELS,
            _REASON.COLUMN_NOT_IN_DATAFRAME,
            _REASON.WRONG_DATATYPE,
            _REASON.SERIES_CONTAINS_NULLS,
            _REASON.DATAFRAME_CHECK,
            _REASON.SERIES_CONTAINS_DUPLICATES,
        )
    )
}


def _sample(frame: pd.DataFrame, bad: np.ndarray) -> list[dict[str, object]]:
    """The first offending rows with their position, as text."""
    rows = np.flatnonzero(bad)[:_SAMPLE_ROWS]
    return [
        {"row": int(row), **{str(name): _shown(frame[name].iloc[row]) for name in frame.columns}}
        for row in rows
        if not frame.columns.has_duplicates
    ]


def _describe(error: pa.errors.SchemaError, frame: pd.DataFrame, place: Callable[[int], str]) -> tuple[str, np.ndarray]:
    """One violation in words, with the first offending row by position (never by index label), and which rows offend."""
    nowhere = np.zeros(len(frame), dtype=bool)
    column = str(error.schema.name)
    match error.reason_code:
        case _REASON.COLUMN_NOT_IN_DATAFRAME:
            return f"column {error.failure_cases} missing. Write the file with the columns of the contract.", nowhere
        case _REASON.DUPLICATE_COLUMN_LABELS:
            twice = frame.columns[frame.columns.duplicated()]
            return f"column {twice[0]} occurs more than once. Keep one.", nowhere
        case _REASON.WRONG_DATATYPE:
            return f"column {column}: found {frame[column].dtype} values, expected {error.schema.dtype}.", nowhere
        case _REASON.SERIES_CONTAINS_NULLS:
            bad, rule = frame[column].isna(), "expected a value in every row"
        case _REASON.SERIES_CONTAINS_DUPLICATES:
            bad, rule = frame[column].duplicated(), "expected no value twice"
        case _ if isinstance(error.check, pa.Check) and isinstance(error.check_output, pd.Series):
            bad, rule = _failed_rows(error.check_output, frame, column), _rule(error.check)
        case _ if isinstance(error.check, pa.Check):
            return f"found {len(frame)} rows, but {error.check.error}.", nowhere
        case _:
            return f"{error}.", nowhere
    row = int(bad.to_numpy(dtype=bool).argmax())
    if column in frame.columns:
        found = f"column {column}: found {_shown(frame[column].iloc[row])}"
    else:
        named = _mentioned(rule, frame) or [name for name in _float_columns(frame) if np.isinf(frame[name].iloc[row])]
        found = "found " + ", ".join(f"{name} {_shown(frame[name].iloc[row])}" for name in named)
    more = f" ({int(bad.sum())} rows in all)" if bad.sum() > 1 else ""
    return f"{place(row)}, {found}, {rule}{more}.", bad.to_numpy(dtype=bool)


def _failed_rows(output: pd.Series, frame: pd.DataFrame, column: str) -> pd.Series:
    """Which rows of `frame` a check refused. Pandera leaves rows without a value out of the check of a column."""
    failed = np.zeros(len(frame), dtype=bool)
    checked = (
        np.ones(len(frame), dtype=bool) if len(output) == len(frame) else frame[column].notna().to_numpy(dtype=bool)
    )
    failed[checked] = ~output.fillna(True).to_numpy(dtype=bool)
    return pd.Series(failed)


def _rule(check: pa.Check) -> str:
    given = check.statistics or {}
    match check.name:
        case "greater_than_or_equal_to":
            return f"expected at least {given['min_value']}"
        case "greater_than":
            return f"expected more than {given['min_value']}"
        case "isin":
            return f"expected one of {', '.join(map(str, given['allowed_values']))}"
        case "str_length":
            return f"expected text of at least {given['min_value']} character"
    return f"but {check.error}"


def _shown(value: object) -> str:
    if value is pd.NA or value != value:
        return "no value"
    return repr(value) if isinstance(value, str) else str(value)


def _mentioned(rule: str, frame: pd.DataFrame) -> list[str]:
    """The columns that `rule` is about, in its order. Vidur's column names are told by their middle part."""
    by_word = {str(name).removeprefix("time_stats.").removesuffix(".median"): str(name) for name in frame.columns}
    return list(dict.fromkeys(by_word[word] for word in re.findall(r"\w+", rule) if word in by_word))


def _float_columns(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name, dtype in frame.dtypes.items() if dtype == np.float64]


def check_run_tables(requests: pd.DataFrame, tokens: pd.DataFrame, where: Path | str) -> None:
    """The token table holds exactly the tokens that the request table counts, and the first token's time agrees.

    Raises:
        ContractError: names the first request that disagrees.
    """
    counts = tokens.groupby("request_id").size()
    expected = requests.set_index("request_id")["num_decode_tokens_actual"]
    unknown = counts.index.difference(expected.index)
    if len(unknown):
        raise ContractError(
            f"{where}: token_metrics.csv has tokens of request {int(unknown[0])}, which request_metrics.csv does not list. "
            "The two files are not of one run; materialize the run again."
        )
    found = counts.reindex(expected.index, fill_value=0).astype("Int64")
    differs = found != expected
    if differs.any():
        position = int(differs.to_numpy(dtype=bool).argmax())
        raise ContractError(
            f"{where}: request {int(expected.index[position])} has {int(found.iloc[position])} rows in token_metrics.csv but "
            f"num_decode_tokens_actual {int(expected.iloc[position])} in request_metrics.csv. "
            "The two files are not of one run, or one is cut off; materialize the run again."
        )
    first = tokens.loc[tokens["token_index"] == 0].set_index("request_id")["token_time_ns"]
    stated = requests.loc[requests["first_token_time_ns"].notna()].set_index("request_id")["first_token_time_ns"]
    told = first.reindex(stated.index)
    wrong = (told != stated).fillna(True)
    if wrong.any():
        position = int(wrong.to_numpy(dtype=bool).argmax())
        raise ContractError(
            f"{where}: request {int(stated.index[position])} has first_token_time_ns {int(stated.iloc[position])} in request_metrics.csv "
            f"but its token 0 is at {told.iloc[position]} in token_metrics.csv. Materialize the run again."
        )


def column_descriptions(model: type[Table]) -> Mapping[str, str]:
    """Column name to description, for a UI."""
    return {name: column.description or "" for name, column in model.to_schema().columns.items()}


def _gap_free(df: pd.DataFrame) -> pd.Series:
    return pd.Series(df["request_id"].to_numpy(dtype="int64", na_value=-1) == np.arange(len(df)), index=df.index)


def _first_of_request(df: pd.DataFrame) -> np.ndarray:
    ids = df["request_id"].to_numpy(dtype="int64")
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    return first
