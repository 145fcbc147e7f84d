"""The table of a sweep."""

import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import FilledTable, Int, Table


class SweepPoints(FilledTable):
    """One simulated configuration a row, in the order of the scenario's lists. Percentiles are over all requests (ITL:
    over all gaps)."""

    class Config(Table.Config):
        name = "sweep.csv"

    rate_per_s: Series[float] = pa.Field(
        gt=0, nullable=True, description="asked; empty: arrivals that are neither poisson nor gamma"
    )
    max_num_seqs: Series[Int] = pa.Field(gt=0, description="requests at most in a step, as simulated")
    max_num_batched_tokens: Series[Int] = pa.Field(gt=0, description="tokens at most in a step, as simulated")
    num_kv_blocks: Series[Int] = pa.Field(gt=0, description="blocks of KV cache, as simulated")
    variant: Series[str] = pa.Field(description="simulation variant")
    num_requests: Series[Int] = pa.Field(gt=0, description="requests of the workload")
    makespan_ns: Series[Int] = pa.Field(gt=0, description="first arrival to last token")
    requests_per_s: Series[float] = pa.Field(gt=0, description="num_requests over the makespan")
    output_tokens_per_s: Series[float] = pa.Field(gt=0, description="tokens produced over the makespan")
    goodput_per_s: Series[float] = pa.Field(
        ge=0, nullable=True, description="requests that met the service level, over the makespan; empty: none is given"
    )
    ttft_p50_ns: Series[float] = pa.Field(ge=0, description="P50 of time to first token, from arrival")
    ttft_p90_ns: Series[float] = pa.Field(ge=0, description="P90 of time to first token, from arrival")
    ttft_p99_ns: Series[float] = pa.Field(ge=0, description="P99 of time to first token, from arrival")
    itl_p50_ns: Series[float] = pa.Field(ge=0, nullable=True, description="empty: no request has two tokens")
    itl_p90_ns: Series[float] = pa.Field(
        ge=0, nullable=True, description="P90 of the gaps between a request's tokens; empty: no request has two"
    )
    itl_p99_ns: Series[float] = pa.Field(ge=0, nullable=True, description="P99 of the same")
    e2e_p50_ns: Series[float] = pa.Field(ge=0, description="P50 of arrival to last token")
    e2e_p90_ns: Series[float] = pa.Field(ge=0, description="P90 of arrival to last token")
    e2e_p99_ns: Series[float] = pa.Field(ge=0, description="P99 of arrival to last token")
    scheduling_delay_p99_ns: Series[float] = pa.Field(ge=0, description="arrival until first scheduled")
    num_preemptions: Series[Int] = pa.Field(ge=0, description="times a request lost its place in the KV cache")
    steps_outside_calibration: Series[Int] = pa.Field(
        ge=0,
        nullable=True,
        description="steps whose cost is extrapolated; empty: published and kernels have no calibration",
    )
    p99_sufficient: Series[bool] = pa.Field(description="enough requests for a P99 (ten beyond it)")
    pareto_ttft: Series[bool] = pa.Field(
        description=(
            "no configuration has more output tokens per second and no longer TTFT P99, or as many and a shorter one"
        )
    )
    pareto_itl: Series[bool] = pa.Field(description="the same of ITL P99; False where there is none")
    pareto_e2e: Series[bool] = pa.Field(description="the same of E2E P99")
    level_share: Series[float] | None = pa.Field(
        ge=0, le=1, nullable=True, description="share of the requests that met the service level; empty: none is given"
    )
