"""One Pandera model per contract table, and the only two functions that read and write them.

The models are the contract: columns, order, types, and every invariant that one table can show. Invariants between two
tables are at the end (`check_run_tables`, `check_workload_tables`). CSV bytes belong to `csv_files`; nothing here computes a result.
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


class PlannedRequests(TraceLengths):
    """Requests of a trace or of synthetic lengths as planned with their prompts; private to the project (workload_parts/)."""

    class Config(Table.Config):
        name = "requests.csv"

    trace_time_ns: Series[Int] | None = pa.Field(ge=0, description="the trace's time since the first request")


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


class Overheads(FilledTable):
    """What an engine step and a request cost beyond the modelled operators, measured on calibration batches.

    `term` is `step` (one iteration, end to end), `handover` (driver's send to the engine's first look) or `delivery` (step end to the
    client seeing the token). For `handover` and `delivery`, `operators_ns` is 0 and `overhead_ns` is the median itself.
    """

    class Config(Table.Config):
        name = "overheads.csv"

    term: Series[str] = pa.Field(isin=["step", "handover", "delivery"])
    step_kind: Series[str] = pa.Field(
        isin=["decode", "mixed", "mixed_eager", "none"],
        description="decode: no prompt token in the step; mixed: at least one; mixed_eager: beyond the captured graph sizes",
    )
    num_prefill_requests: Series[Int] = pa.Field(ge=0, description="requests whose prompt was in the step")
    num_prefill_tokens: Series[Int] = pa.Field(ge=0, description="prompt tokens in the step")
    num_decode_requests: Series[Int] = pa.Field(ge=0, description="requests that decoded one token in the step")
    num_context_tokens: Series[Int] = pa.Field(
        ge=0, description="KV tokens present before the step over all its requests, median over samples"
    )
    num_samples: Series[Int] = pa.Field(gt=0)
    p10_ns: Series[Int] = pa.Field(ge=0)
    median_ns: Series[Int] = pa.Field(gt=0)
    p90_ns: Series[Int] = pa.Field(gt=0)
    operators_ns: Series[Int] = pa.Field(
        ge=0, description="what the operator profile predicts for the same composition"
    )
    overhead_ns: Series[Int] = pa.Field(
        description="median_ns - operators_ns; negative where operators run faster inside the engine than alone"
    )

    @pa.dataframe_check(error="overhead_ns must equal median_ns - operators_ns")
    def overhead_is_the_difference(cls, df: pd.DataFrame) -> pd.Series:
        return df["overhead_ns"] == df["median_ns"] - df["operators_ns"]


# --- report -----------------------------------------------------------------------------------------------------------


class LatencyErrors(Table):
    """The comparison's headline: one row per metric, statistic and simulation variant.

    `real_ns` is the median over repeats of the statistic computed in each repeat; `real_spread` is (max - min) / `real_ns` over the
    repeats, empty with a single repeat. `sim_ns` is the median over repeats of the simulation's statistic after alignment to each
    repeat; without early stops and errors these are equal. `relative_error` is (sim - real) / real, empty where `real_ns` is 0 and
    `sim_ns` is not.
    """

    class Config(Table.Config):
        name = "latency_errors.csv"

    metric: Series[str] = pa.Field(description="ttft, itl or e2e")
    statistic: Series[str] = pa.Field(description="p50, p90 or p99")
    variant: Series[str] = pa.Field(description="simulation variant")
    real_ns: Series[float] = pa.Field(ge=0, nullable=True)
    sim_ns: Series[float] = pa.Field(ge=0, nullable=True)
    error_ns: Series[float] = pa.Field(nullable=True, description="sim_ns - real_ns")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    real_spread: Series[float] = pa.Field(ge=0, nullable=True, description="(max - min) / median over real repeats")
    num_real_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest repeat")
    num_sim_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest alignment")
    verdict: Series[str] = pa.Field(
        isin=["pass", "warn", "fail", "insufficient"],
        description="relative_error against the bands; insufficient: fewer than ten samples beyond the percentile",
    )


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
        raise ContractError(f"{path}: {_describe(first, frame, place)}") from None


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


def _describe(error: pa.errors.SchemaError, frame: pd.DataFrame, place: Callable[[int], str]) -> str:
    """One violation in words, with the first offending row by position (never by index label)."""
    column = str(error.schema.name)
    match error.reason_code:
        case _REASON.COLUMN_NOT_IN_DATAFRAME:
            return f"column {error.failure_cases} missing. Write the file with the columns of the contract."
        case _REASON.DUPLICATE_COLUMN_LABELS:
            twice = frame.columns[frame.columns.duplicated()]
            return f"column {twice[0]} occurs more than once. Keep one."
        case _REASON.WRONG_DATATYPE:
            return f"column {column}: found {frame[column].dtype} values, expected {error.schema.dtype}."
        case _REASON.SERIES_CONTAINS_NULLS:
            bad, rule = frame[column].isna(), "expected a value in every row"
        case _REASON.SERIES_CONTAINS_DUPLICATES:
            bad, rule = frame[column].duplicated(), "expected no value twice"
        case _ if isinstance(error.check, pa.Check) and isinstance(error.check_output, pd.Series):
            bad, rule = _failed_rows(error.check_output, frame, column), _rule(error.check)
        case _ if isinstance(error.check, pa.Check):
            return f"found {len(frame)} rows, but {error.check.error}."
        case _:
            return f"{error}."
    row = int(bad.to_numpy(dtype=bool).argmax())
    if column in frame.columns:
        found = f"column {column}: found {_shown(frame[column].iloc[row])}"
    else:
        named = _mentioned(rule, frame) or [name for name in _float_columns(frame) if np.isinf(frame[name].iloc[row])]
        found = "found " + ", ".join(f"{name} {_shown(frame[name].iloc[row])}" for name in named)
    more = f" ({int(bad.sum())} rows in all)" if bad.sum() > 1 else ""
    return f"{place(row)}, {found}, {rule}{more}."


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


def check_workload_tables(
    lengths: pd.DataFrame, intervals: pd.DataFrame, prompt_ids: list[str], where: Path | str
) -> None:
    """Both traces list the same requests, and every request's prompt exists.

    Raises:
        ContractError
    """
    if len(lengths) != len(intervals):
        raise ContractError(
            f"{where}: trace_lengths has {len(lengths)} requests, trace_intervals {len(intervals)}. Materialize both again."
        )
    unknown = ~lengths["prompt_id"].isin(set(prompt_ids))
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise ContractError(
            f"{where}: trace_lengths row {row} names prompt_id {lengths['prompt_id'].iloc[row]!r}, which prompts.jsonl does not have."
        )


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
