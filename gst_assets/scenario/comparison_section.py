"""`comparison` and `regression` of a scenario: the bands of the verdict, and when a change over nights is one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gst_assets.scenario.settings import Settings


class ServiceLevel(Settings):
    """What a request must meet to count towards goodput: each bound that is given."""

    ttft_ns: int | None = Field(None, gt=0, description="longest time to the first token")
    tpot_ns: int | None = Field(None, gt=0, description="longest mean gap between the tokens of a request")
    e2e_ns: int | None = Field(None, gt=0, description="longest time to the last token")

    @model_validator(mode="after")
    def _bounds_something(self) -> ServiceLevel:
        if self.ttft_ns is None and self.tpot_ns is None and self.e2e_ns is None:
            raise ValueError("expected at least one of ttft_ns, tpot_ns and e2e_ns")
        return self


class Bands(Settings):
    """Bands of the verdict, on the relative error of the headline variant, and which latencies have to be within them
    (docs/comparison.md)."""

    pass_band: float = Field(0.05, gt=0)
    warn_band: float = Field(0.10, gt=0)
    required_metrics: tuple[Literal["ttft", "itl", "tpot", "e2e", "normalized", "normalized_execution"], ...] = Field(
        ("ttft", "itl", "e2e"), min_length=1
    )
    required_statistics: tuple[Literal["mean", "p50", "p90", "p95", "p99"], ...] = Field(("p50", "p90"), min_length=1)
    service_level: ServiceLevel | None = Field(
        None, description="what a request must meet to count towards goodput; null: goodput is not reported"
    )

    @model_validator(mode="after")
    def _bands_are_nested(self) -> Bands:
        if self.warn_band < self.pass_band:
            raise ValueError(f"warn_band {self.warn_band} is below pass_band {self.pass_band}")
        return self


class Regression(Settings):
    """When a change over nights is called one. See docs/nightly.md for how well these defaults detect and how often
    they err."""

    min_effect: float = Field(
        0.05, gt=0, lt=1, description="smallest relative change of a segment's median that counts"
    )
    max_pvalue: float = Field(
        0.0002,
        gt=0,
        lt=0.05,
        description="largest p-value of a change point; small, as twelve series are judged every night",
    )
    min_nights: int = Field(8, ge=4, description="fewer nights of a subject are insufficient data")
    min_nights_after: int = Field(3, ge=2, description="nights since a change before it is more than suspicious")
    alarm_nights: int = Field(
        14, ge=3, description="nights for which a change is reported; then it becomes the new baseline"
    )
    window_nights: int = Field(50, ge=8, description="sliding window of the change-point detection")
