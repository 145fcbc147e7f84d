"""The tables of a workload: lengths and arrivals of its requests."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import FilledTable, Int, Table, gap_free
from gst_assets.contracts.turns import PREVIOUS


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
        return gap_free(df)


THINK_TIME = "think_time_ns"


class TraceIntervals(FilledTable):
    """Arrival schedule in integer nanoseconds from workload start.

    With a closed loop inside sessions `arrival_time_ns` of a turn with a previous one is when it would arrive if every
    answer took no time; it arrives `think_time_ns` after the last token of `previous_request_id`.
    """

    class Config(Table.Config):
        name = "trace_intervals.csv"

    request_id: Series[Int] = pa.Field(description="0..N-1, ascending, gap-free")
    inter_arrival_ns: Series[Int] = pa.Field(ge=0, description="time since the previous request arrived")
    arrival_time_ns: Series[Int] = pa.Field(
        ge=0,
        description=(
            "time since workload start; equals cumsum(inter_arrival_ns). Of a turn with a previous one: if every answer"
            " took no time"
        ),
    )
    previous_request_id: Series[Int] | None = pa.Field(
        ge=0,
        nullable=True,
        description="the turn before in its session, whose last token it waits for; only with a closed loop",
    )
    think_time_ns: Series[Int] | None = pa.Field(
        ge=0, nullable=True, description="from that token to this turn's arrival; only with a closed loop"
    )

    @pa.dataframe_check(error="request_id must be 0..N-1 in ascending order without gaps")
    def ids_are_gap_free(cls, df: pd.DataFrame) -> pd.Series:
        return gap_free(df)

    @pa.dataframe_check(error="arrival_time_ns must equal cumsum(inter_arrival_ns)")
    def arrivals_are_the_cumulative_sum(cls, df: pd.DataFrame) -> pd.Series:
        return df["arrival_time_ns"] == df["inter_arrival_ns"].cumsum()

    @pa.dataframe_check(error="previous_request_id must be an earlier request, and no other request's previous one")
    def turns_are_chains(cls, df: pd.DataFrame) -> pd.Series:
        if PREVIOUS not in df.columns:
            return pd.Series(True, index=df.index)
        previous = df[PREVIOUS]
        return previous.isna() | ((previous < df["request_id"]).fillna(False) & ~previous.duplicated(keep=False))

    @pa.dataframe_check(
        error=(
            "think_time_ns must be the time since previous_request_id arrived in this schedule, and empty without one;"
            " neither of the two columns stands alone"
        )
    )
    def think_times_are_the_schedules(cls, df: pd.DataFrame) -> pd.Series:
        present = {PREVIOUS, THINK_TIME} & set(df.columns)
        if len(present) < 2:
            return pd.Series(not present, index=df.index)
        waits = df[PREVIOUS].notna() & df[PREVIOUS].isin(df["request_id"])
        arrival = df["arrival_time_ns"]
        before = arrival.reindex(df[PREVIOUS].where(waits, 0).to_numpy(dtype="int64")).set_axis(df.index)
        equal = (df[THINK_TIME] == arrival - before).fillna(False)
        return (waits & equal) | (df[PREVIOUS].isna() & df[THINK_TIME].isna())
