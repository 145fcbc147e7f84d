"""The tables of a run, real or simulated, and what must hold between them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts import token_invariants
from gst_assets.contracts.tables.base import FilledTable, Int, Table, gap_free
from gst_assets.contracts.turns import PREVIOUS, WORKLOAD_ARRIVAL
from gst_assets.errors import ContractError

TIME_COLUMNS = ("first_token_time_ns", "ttft_ns", "completion_time_ns")


class RequestMetrics(FilledTable):
    """One row per request. Times are nanoseconds since run start on a monotonic clock; `arrival_time_ns` is the
    intended arrival.

    A request that failed or produced no token has empty time columns.
    """

    class Config(Table.Config):
        name = "request_metrics.csv"

    request_id: Series[Int] = pa.Field(description="primary key, 0..N-1")
    arrival_time_ns: Series[Int] = pa.Field(
        ge=0,
        description=(
            "intended arrival, from the workload; of a turn that waits for an answer, the answer's last token and the"
            " think time after it"
        ),
    )
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
    send_time_ns: Series[Int] | None = pa.Field(nullable=True, description="when the driver sent the request")
    num_preemptions: Series[Int] | None = pa.Field(
        ge=0, nullable=True, description="times the engine preempted the request"
    )
    error_type: Series[str] | None = pa.Field(description="class of the failure, empty when ok")
    error_msg: Series[str] | None = pa.Field(description="the failure in words, empty when ok")
    num_cached_tokens: Series[Int] | None = pa.Field(
        ge=0, nullable=True, description="prompt tokens taken from the prefix cache; absent without one"
    )
    source_request_id: Series[str] | None = pa.Field(
        unique=True,
        description="the request's name in the results it was imported from; two runs that have it are joined by it",
    )
    queued_time_ns: Series[Int] | None = pa.Field(nullable=True, description="when the engine queued the request")
    previous_request_id: Series[Int] | None = pa.Field(
        ge=0, nullable=True, description="the turn whose answer this one waits for; only with a closed loop in sessions"
    )
    workload_arrival_time_ns: Series[Int] | None = pa.Field(
        ge=0,
        description="the workload's own time: the arrival if every answer took no time; only with a closed loop",
    )

    @pa.dataframe_check(error="request_id must be 0..N-1 in ascending order without gaps")
    def ids_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        return gap_free(df)

    @pa.dataframe_check(error="ttft_ns must equal first_token_time_ns - arrival_time_ns")
    def ttft_is_consistent(cls, df: pd.DataFrame) -> pd.Series:
        both_missing = df["ttft_ns"].isna() & df["first_token_time_ns"].isna()
        equal = df["ttft_ns"] == df["first_token_time_ns"] - df["arrival_time_ns"]
        return equal.fillna(False) | both_missing

    @pa.dataframe_check(
        error=(
            "first_token_time_ns, ttft_ns and completion_time_ns must be filled where status is ok and"
            " num_decode_tokens_actual above 0, and empty elsewhere"
        )
    )
    def times_match_status(cls, df: pd.DataFrame) -> pd.Series:
        has_token = (df["status"] == "ok") & (df["num_decode_tokens_actual"] > 0)
        good = pd.Series(True, index=df.index)
        for name in TIME_COLUMNS:
            if name in df.columns:
                good &= df[name].notna() == has_token
        return good

    @pa.dataframe_check(
        error=(
            "arrival_time_ns of a turn with previous_request_id must be that one's completion_time_ns and the think"
            " time between their workload_arrival_time_ns; where that one has no completion, the turn must be an error"
            " at its workload_arrival_time_ns"
        )
    )
    def turns_wait_for_answers(cls, df: pd.DataFrame) -> pd.Series:
        good = pd.Series(True, index=df.index)
        if PREVIOUS not in df.columns:
            return good
        if not {WORKLOAD_ARRIVAL, "completion_time_ns"} <= set(df.columns):
            return ~good
        waits = df[PREVIOUS].notna()
        known = (df[PREVIOUS] < df["request_id"]).fillna(False) & gap_free(df)
        before = df.iloc[df[PREVIOUS].where(known, 0).to_numpy(dtype="int64")].set_axis(df.index)
        think = df[WORKLOAD_ARRIVAL] - before[WORKLOAD_ARRIVAL]
        waited = df["arrival_time_ns"] == before["completion_time_ns"] + think
        never_due = (df["status"] == "error") & (df["arrival_time_ns"] == df[WORKLOAD_ARRIVAL])
        due = waited.fillna(False).where(before["completion_time_ns"].notna(), never_due)
        return (known & due).where(waits, df["arrival_time_ns"] == df[WORKLOAD_ARRIVAL])

    @pa.dataframe_check(error="num_decode_tokens_actual must not exceed num_decode_tokens")
    def not_more_tokens_than_asked(cls, df: pd.DataFrame) -> pd.Series:
        return df["num_decode_tokens_actual"] <= df["num_decode_tokens"]

    @pa.dataframe_check(error="num_cached_tokens must not exceed num_prefill_tokens")
    def not_more_cached_than_prompt(cls, df: pd.DataFrame) -> pd.Series:
        if "num_cached_tokens" not in df.columns:
            return pd.Series(True, index=df.index)
        return (df["num_cached_tokens"] <= df["num_prefill_tokens"]).fillna(True)

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
        return pd.Series(token_invariants.are_ordered(_int64(df, "request_id")), index=df.index)

    @pa.dataframe_check(error="token_index must count 0, 1, 2, ... without gaps within each request")
    def indexes_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        counts = token_invariants.index_counts_on(_begins_request(df), _int64(df, "token_index"))
        return pd.Series(counts, index=df.index)

    @pa.dataframe_check(error="token_time_ns must not decrease within a request")
    def times_do_not_decrease(cls, df: pd.DataFrame) -> pd.Series:
        latencies = token_invariants.latencies_ns(_begins_request(df), _int64(df, "token_time_ns"))
        return pd.Series(latencies >= 0, index=df.index)

    @pa.dataframe_check(
        error="token_latency_ns must be the difference to the previous token_time_ns, and 0 at token_index 0"
    )
    def latency_is_the_difference(cls, df: pd.DataFrame) -> pd.Series:
        expected = token_invariants.latencies_ns(_begins_request(df), _int64(df, "token_time_ns"))
        return pd.Series(_int64(df, "token_latency_ns") == expected, index=df.index)


class Iterations(Table):
    """One row per engine iteration (step), real or simulated, in order of execution. Times are since run start and may
    be negative for steps that began before it (none are written by this project)."""

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
        description=(
            "when the call that launches the model returned; on a GPU its work is queued by then, not done; of an"
            " engine on several devices the step is passed to its workers by then, not launched"
        ),
    )
    output_time_ns: Series[Int] | None = pa.Field(
        nullable=True, description="when the step's tokens had reached the scheduler's process"
    )
    num_prefill_context_tokens: Series[Int] | None = pa.Field(
        ge=0, description="of num_context_tokens, those of the requests in prefill"
    )
    num_attention_pairs: Series[Int] | None = pa.Field(
        ge=0,
        description=(
            "(query, key) pairs that causal attention looks at for the prompts: new x context + new x (new + 1) / 2 of"
            " each"
        ),
    )
    num_reread_context_tokens: Series[Int] | None = pa.Field(
        ge=0,
        description=(
            "of num_context_tokens, those in KV blocks that another decode of the step reads too, counted for all of"
            " these but one; only of engines with a prefix cache"
        ),
    )

    @pa.dataframe_check(error="completion_time_ns must not be before scheduled_time_ns")
    def ends_after_start(cls, df: pd.DataFrame) -> pd.Series:
        return df["completion_time_ns"] >= df["scheduled_time_ns"]


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
            f"{where}: token_metrics.csv has tokens of request {int(unknown[0])}, which request_metrics.csv does not"
            " list. The two files are not of one run; materialize the run again."
        )
    found = counts.reindex(expected.index, fill_value=0).astype("Int64")
    differs = found != expected
    if differs.any():
        position = int(differs.to_numpy(dtype=bool).argmax())
        raise ContractError(
            f"{where}: request {int(expected.index[position])} has {int(found.iloc[position])} rows in"
            f" token_metrics.csv but num_decode_tokens_actual {int(expected.iloc[position])} in request_metrics.csv."
            " The two files are not of one run, or one is cut off; materialize the run again."
        )
    first = tokens.loc[tokens["token_index"] == 0].set_index("request_id")["token_time_ns"]
    stated = requests.loc[requests["first_token_time_ns"].notna()].set_index("request_id")["first_token_time_ns"]
    told = first.reindex(stated.index)
    wrong = (told != stated).fillna(True)
    if wrong.any():
        position = int(wrong.to_numpy(dtype=bool).argmax())
        raise ContractError(
            f"{where}: request {int(stated.index[position])} has first_token_time_ns {int(stated.iloc[position])} in"
            f" request_metrics.csv but its token 0 is at {told.iloc[position]} in token_metrics.csv. Materialize the"
            " run again."
        )


def _int64(df: pd.DataFrame, name: str) -> np.ndarray:
    return df[name].to_numpy(dtype="int64")


def _begins_request(df: pd.DataFrame) -> np.ndarray:
    return token_invariants.begins_request(_int64(df, "request_id"))
