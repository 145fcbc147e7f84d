"""The table of a search for capacity."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import FilledTable, Int, Table


class CapacityProbes(FilledTable):
    """Every probe of a search for capacity, in the order in which they were made: one row per side and probe.

    Scheduling delay is first scheduled - intended arrival; percentiles are over the requests that succeeded, empty
    where none did.
    """

    class Config(Table.Config):
        name = "capacity_probes.csv"

    side: Series[str] = pa.Field(description="engine, or the variant of the simulation")
    probe_index: Series[Int] = pa.Field(ge=0, description="0.. in order within the side")
    rate_per_s: Series[float] = pa.Field(gt=0, description="rate of the Poisson arrivals")
    seed: Series[Int] = pa.Field(ge=0, description="of the lengths drawn and of the gaps")
    num_requests: Series[Int] = pa.Field(gt=0, description="requests sent in the probe")
    num_failed: Series[Int] = pa.Field(ge=0, description="requests that failed or were never scheduled")
    p50_delay_ns: Series[float] = pa.Field(nullable=True, description="P50 of scheduling delay")
    p99_delay_ns: Series[float] = pa.Field(nullable=True, description="P99 of scheduling delay")
    max_delay_ns: Series[Int] = pa.Field(nullable=True, description="largest scheduling delay")
    p99_lateness_ns: Series[float] = pa.Field(
        nullable=True, description="P99 of send time - intended arrival, part of the delay; empty: a simulation"
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

    @pa.dataframe_check(error="a verdict of `unjudged` needs a reason, and no other verdict has one")
    def unjudged_has_a_reason(cls, df: pd.DataFrame) -> pd.Series:
        return (df["verdict"] == "unjudged") == (df["reason"] != "")
