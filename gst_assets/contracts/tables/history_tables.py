"""The tables of comparisons over nights: their history, and what changed in it."""

import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import Int, Table


class ComparisonHistory(Table):
    """One row per completed comparison of a scenario, in order of measurement. What the comparison did not record is
    empty.

    Rows of one `subject` may be compared with each other; `night` counts the measurements of a subject, and is empty on
    a comparison that is not one: without `subject`, or repeated later on the same real runs.
    """

    class Config(Table.Config):
        name = "comparison_history.csv"

    comparison_id: Series[str] = pa.Field(
        unique=True, str_length={"min_value": 1}, description="the comparison's directory"
    )
    meta_sha256: Series[str] = pa.Field(description="digest of the comparison's run_meta.json, which digests all else")
    measured_at: Series[str] = pa.Field(description="start of the first real repeat, ISO-8601 UTC; empty: not recorded")
    compared_at: Series[str] = pa.Field(description="start of the comparison, ISO-8601 UTC")
    group_id: Series[str] = pa.Field(description="the measurement, shared by its repeats; empty: not recorded")
    subject: Series[str] = pa.Field(
        description="digest of hardware, model, engine settings and workload; empty: not recorded"
    )
    night: Series[Int] = pa.Field(ge=0, nullable=True, description="0.. within the subject")
    workload_id: Series[str] = pa.Field(description="digest of the workload's content; empty: not recorded")
    model: Series[str] = pa.Field(description="the model's name")
    hardware_id: Series[str] = pa.Field(description="the hardware's name")
    device_name: Series[str] = pa.Field(description="what the hardware calls itself")
    device_count: Series[Int] = pa.Field(ge=1, description="devices of the engine")
    backend: Series[str] = pa.Field(description="what served the requests")
    engine_settings_sha256: Series[str] = pa.Field(
        description="settings the engine reported, less versions and KV blocks"
    )
    engine_version: Series[str] = pa.Field(description="of the engine; empty: not recorded")
    num_kv_blocks: Series[Int] = pa.Field(
        ge=0, nullable=True, description="blocks of KV cache the engine had; empty: not recorded"
    )
    driver: Series[str] = pa.Field(description="of the device; empty: none, or not recorded")
    host_cpu: Series[str] = pa.Field(description="processor of the engine's host; empty: not recorded")
    torch_version: Series[str] = pa.Field(description="of the engine's torch; empty: not recorded")
    vidur_version: Series[str] = pa.Field(description="of Vidur; empty: not recorded")
    simulation_sha256: Series[str] = pa.Field(description="the scenario's simulation and profile sections")
    profile_sha256: Series[str] = pa.Field(description="the profile the headline variant was simulated on")
    git_commit: Series[str] = pa.Field(description="of the comparison; empty: unknown")
    headline_variant: Series[str] = pa.Field(description="the simulation variant that the verdict is about")
    verdict: Series[str] = pa.Field(
        isin=["pass", "warn", "inconclusive", "insufficient", "fail"], description="of the comparison"
    )
    num_marks: Series[Int] = pa.Field(ge=0, description="reasons why it could not be a pass")
    num_repeats: Series[Int] = pa.Field(ge=1, description="real repeats compared")


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
    """One row per series: an engine latency (`side` engine, nanoseconds) or simulated over real (`side` fidelity, a
    ratio)."""

    class Config(Table.Config):
        name = "regression_verdicts.csv"

    side: Series[str] = pa.Field(
        isin=["engine", "fidelity"], description="engine: a latency of the engine; fidelity: simulated over real"
    )
    metric: Series[str] = pa.Field(description="ttft, itl or e2e")
    statistic: Series[str] = pa.Field(description="p50 or p90")
    verdict: Series[str] = pa.Field(isin=list(REGRESSION_VERDICTS), description="of the series")
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
    pvalue: Series[float] = pa.Field(ge=0, nullable=True, description="of the newest change; empty without one")
    changed_in: Series[str] = pa.Field(description="first comparison after the change; empty without one")
    nights_since: Series[Int] = pa.Field(ge=0, nullable=True, description="nights measured since the change")


class ChangePoints(Table):
    """Every significant change of a series over its whole history, also those too old for an alarm."""

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
    """What changed between one comparison and the next on the scenario's line. `breaks` True: a new subject; nothing
    across it is compared."""

    class Config(Table.Config):
        name = "line_marks.csv"

    comparison_id: Series[str] = pa.Field(description="first comparison after the change")
    measured_at: Series[str]
    what: Series[str] = pa.Field(description="column of comparison_history.csv")
    before: Series[str]
    after: Series[str]
    breaks: Series[bool]
