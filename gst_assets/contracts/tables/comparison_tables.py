"""The tables of a comparison."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import Int, Table


class LatencyErrors(Table):
    """The comparison's headline: one row per metric, statistic and simulation variant.

    `real_ns` is the median over repeats of the statistic computed in each repeat; `real_spread` is (max - min) /
    `real_ns` over the repeats, empty with a single repeat. `sim_ns` is the median over repeats of the simulation's
    statistic after alignment to each repeat, itself the median over its seeds; without early stops and errors these are
    equal for every repeat. `relative_error` is (sim - real) / real, empty where `real_ns` is 0 and `sim_ns` is not.
    """

    class Config(Table.Config):
        name = "latency_errors.csv"

    metric: Series[str] = pa.Field(
        description=(
            "ttft, itl, tpot, e2e, normalized (E2E per token) or normalized_execution (the same from the first"
            " scheduling on)"
        )
    )
    statistic: Series[str] = pa.Field(description="mean, p50, p90, p95 or p99")
    variant: Series[str] = pa.Field(description="simulation variant")
    real_ns: Series[float] = pa.Field(
        ge=0, nullable=True, description="median over real repeats of the statistic; empty: no samples"
    )
    sim_ns: Series[float] = pa.Field(
        ge=0, nullable=True, description="the simulation's, aligned to each repeat; empty: no samples"
    )
    error_ns: Series[float] = pa.Field(nullable=True, description="sim_ns - real_ns")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    real_spread: Series[float] = pa.Field(ge=0, nullable=True, description="(max - min) / median over real repeats")
    num_real_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest repeat")
    num_sim_samples: Series[Int] = pa.Field(ge=0, description="samples in the smallest alignment")
    verdict: Series[str] = pa.Field(
        isin=["pass", "warn", "inconclusive", "insufficient", "fail"],
        description=(
            "interval of relative_error against the bands; insufficient: too few requests, or fewer than ten"
            " (independent) samples beyond the percentile"
        ),
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
        description=(
            "independent samples beyond the percentile (mean: half of those beyond P95) that the samples are worth;"
            " empty: not known, or nothing varies"
        ),
    )
    interval_flagged: Series[bool] | None = pa.Field(
        description=(
            "the interval rests on fewer than five repeats, or with one repeat on too few independent samples or"
            " stretches, to have the coverage it claims"
        )
    )
    interval_basis: Series[str] | None = pa.Field(
        isin=["repeats", "requests", "none"],
        description=(
            "what the interval rests on: repeats of the engine and seeds of the simulation; with one repeat, resampled"
            " requests"
        ),
    )
    carry_low: Series[float] | None = pa.Field(
        nullable=True,
        description=(
            "low end of the 95 % interval of the error on other workloads of the kind (requests resampled); empty: not"
            " known"
        ),
    )
    carry_high: Series[float] | None = pa.Field(nullable=True, description="its high end; empty: not known or open")
    drifts: Series[bool] | None = pa.Field(
        description="the repeats rise or fall all the time, and the interval is widened"
    )
    reason: Series[str] | None = pa.Field(description="why it cannot be judged, or what holds a pass back; else empty")


class RateErrors(Table):
    """Throughput and goodput, real and simulated: one row per variant and rate. They do not enter the comparison's
    verdict."""

    class Config(Table.Config):
        name = "rate_errors.csv"

    metric: Series[str] = pa.Field(
        isin=["requests_per_s", "input_tokens_per_s", "output_tokens_per_s", "goodput_per_s"],
        description="over first arrival to last compared token; goodput: requests that meet comparison.service_level",
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


class CapacityErrors(Table):
    """Capacity, simulated and real: one row per variant that a search was made on. Written only where the engine's
    capacity was searched with the same settings.

    A search ends between a rate at which the bound was met and one at which it was exceeded: 0 where none met it, empty
    where none exceeded it. `relative_error` is of their geometric means.
    """

    class Config(Table.Config):
        name = "capacity_errors.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    real_low_per_s: Series[float] = pa.Field(ge=0, description="highest rate at which the engine met the bound")
    real_high_per_s: Series[float] = pa.Field(
        gt=0, nullable=True, description="lowest rate at which it exceeded the bound"
    )
    sim_low_per_s: Series[float] = pa.Field(ge=0, description="highest rate at which the simulation met the bound")
    sim_high_per_s: Series[float] = pa.Field(gt=0, nullable=True, description="lowest rate at which it exceeded it")
    relative_error: Series[float] = pa.Field(nullable=True, description="empty: a capacity was not found")
    interval_low: Series[float] = pa.Field(description="least error that the rates allow")
    interval_high: Series[float] = pa.Field(nullable=True, description="largest; empty: open")
    verdict: Series[str] = pa.Field(isin=["pass", "warn", "inconclusive", "insufficient", "fail"])
    reason: Series[str] = pa.Field(description="why a capacity was not found; else empty")


class RepeatLatencies(Table):
    """The same statistics for every real repeat: the noise floor that simulation errors are compared with."""

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
    """What alignment compared and left out: one row per real repeat and variant."""

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
    num_early_stops: Series[Int] = pa.Field(
        ge=0,
        nullable=True,
        description="compared requests with fewer real tokens than requested; empty: what was requested is not known",
    )
    num_tokens_compared: Series[Int] = pa.Field(ge=0, description="tokens on each side")
    num_tokens_cut: Series[Int] = pa.Field(
        ge=0, description="simulated tokens of compared requests beyond the real count"
    )

    @pa.dataframe_check(error="num_requests must equal num_compared + num_errors + num_no_token")
    def counts_add_up(cls, df: pd.DataFrame) -> pd.Series:
        return df["num_requests"] == df["num_compared"] + df["num_errors"] + df["num_no_token"]


class SettingsParity(Table):
    """Engine settings and what each simulation assumed: one row per variant and setting."""

    class Config(Table.Config):
        name = "settings_parity.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    setting: Series[str] = pa.Field(description="name in engine_settings of run_meta.json")
    real: Series[str] = pa.Field(description="what the engine reported; several values where repeats differ")
    simulated: Series[str] = pa.Field(description="what the simulation assumed; empty where it did not record it")
    parity: Series[str] = pa.Field(isin=["equal", "differs", "not_recorded"])


class GateChecks(Table):
    """What was checked before the numbers were compared: one row per check and run. A failed check of severity stop
    leaves no comparison behind."""

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

    Relative errors are over requests whose real value is not 0; the paired columns are empty for `itl`, whose samples
    have no partner.
    """

    class Config(Table.Config):
        name = "paired_errors.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(
        description=(
            "ttft, itl, tpot, e2e, normalized (E2E per token) or normalized_execution (the same from the first"
            " scheduling on)"
        )
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
    """Relative errors of requests grouped by prompt length and by load, over all real repeats: one row per variant,
    metric and group."""

    class Config(Table.Config):
        name = "error_groups.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(description="ttft or e2e")
    factor: Series[str] = pa.Field(isin=["num_prefill_tokens", "num_in_system"])
    low: Series[Int] = pa.Field(ge=0, description="smallest value of the factor in the group")
    high: Series[Int] = pa.Field(ge=0, description="largest value of the factor in the group")
    num_requests: Series[Int] = pa.Field(gt=0, description="requests in the group, each counted once per repeat")
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
        isin=["iterations.csv", "request times", "request times, prefill counted as waiting"],
        description=(
            "where running and waiting are from: the scheduler's counts, or times of requests; where a run does not"
            " record when they were scheduled, they wait until their first token"
        ),
    )


class StageErrors(Table):
    """Where in a request's life the error arises: one row per variant and stage, in order, the last one the whole
    (`e2e`). Means over the compared requests of all repeats, so that stages add up. `first_token` stands for queueing
    and prefill where a side does not record scheduling."""

    class Config(Table.Config):
        name = "stage_errors.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    stage: Series[str] = pa.Field(isin=["queueing", "prefill", "first_token", "decode", "e2e"])
    num_requests: Series[Int] = pa.Field(gt=0, description="compared requests, each counted once per repeat")
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
    """Service times that the profile's terms predict for the steps that really ran, and the real ones: the cost
    model apart from scheduling.

    A step's service time runs from when the device could begin it until its tokens are at the host. Empty where it
    cannot be predicted.
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
    """The steps of a real run compared with those of a simulation or of the first real repeat: one row per pair and
    kind of step. What a step's time is: `analysis.stages`."""

    class Config(Table.Config):
        name = "step_errors.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    compared_with: Series[str] = pa.Field(description="simulation variant, or the run_id of the first real repeat")
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
        description=(
            "share of the real steps that the other run has too, in order (longest common subsequence); of all steps"
            " only"
        ),
    )


class CachedTokens(Table):
    """Prompt tokens from the prefix cache, request by request: one row per real repeat and simulation, and per two real
    repeats. Written only where a run has a prefix cache. A run that states neither its cached tokens nor that it has no
    prefix cache is not known. Where one of the two is not, hit rate and tokens are those of all requests of the
    other."""

    class Config(Table.Config):
        name = "cached_tokens.csv"

    run_id: Series[str] = pa.Field(description="real repeat")
    compared_with: Series[str] = pa.Field(description="simulation variant, or the run_id of an earlier real repeat")
    num_requests: Series[Int] = pa.Field(ge=0, description="requests whose cached tokens both runs state")
    num_equal: Series[Int] = pa.Field(
        ge=0, nullable=True, description="of these, requests with as many cached tokens in both; empty: not known"
    )
    num_real_cached_tokens: Series[Int] = pa.Field(
        ge=0, nullable=True, description="of the real repeat; empty: not known"
    )
    num_other_cached_tokens: Series[Int] = pa.Field(ge=0, nullable=True, description="empty: not known")
    real_hit_rate: Series[float] = pa.Field(
        ge=0, nullable=True, description="cached tokens over prompt tokens; empty: not known"
    )
    other_hit_rate: Series[float] = pa.Field(
        ge=0, nullable=True, description="cached tokens over prompt tokens; empty: not known"
    )
    median_difference_tokens: Series[float] = pa.Field(
        ge=0, nullable=True, description="median size of the difference in the requests that are not equal; empty: none"
    )
    max_difference_tokens: Series[Int] = pa.Field(
        ge=0, nullable=True, description="largest difference of a request; empty: not known"
    )


class ErrorCauses(Table):
    """What an error beyond the pass band is likely due to: one row per cell and cause found, or one that says
    `unexplained`. What each needs as evidence: `analysis.causes`."""

    class Config(Table.Config):
        name = "error_causes.csv"

    variant: Series[str] = pa.Field(description="simulation variant")
    metric: Series[str] = pa.Field(description="ttft, itl or e2e")
    statistic: Series[str] = pa.Field(description="p50, p90 or p99")
    relative_error: Series[float] = pa.Field(nullable=True, description="(sim - real) / real, signed")
    rank: Series[Int] = pa.Field(
        ge=1, description="1.. by the share of the error that the cause explains, largest first"
    )
    cause: Series[str]
    evidence: Series[str] = pa.Field(description="what was measured, in words")
    share: Series[float] | None = pa.Field(
        nullable=True, description="part of the error that disappears when the cause is removed; empty: not known"
    )
