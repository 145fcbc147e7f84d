"""The tables of a workload: lengths and arrivals of its requests."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import FilledTable, Int, Table, gap_free


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
        return gap_free(df)

    @pa.dataframe_check(error="arrival_time_ns must equal cumsum(inter_arrival_ns)")
    def arrivals_are_the_cumulative_sum(cls, df: pd.DataFrame) -> pd.Series:
        return df["arrival_time_ns"] == df["inter_arrival_ns"].cumsum()
