"""`simulation`, `sweep` and `capacity` of a scenario: what is simulated, and under which settings and rates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gst_assets.scenario.comparison_section import ServiceLevel
from gst_assets.scenario.settings import Settings

Variant = Literal["published", "kernels", "calibrated"]
"""What is simulated: see `Simulation.variants`."""


class Simulation(Settings):
    """How Vidur is run."""

    variants: tuple[Variant, ...] = Field(
        ("kernels", "calibrated"),
        min_length=1,
        description=(
            "published: Vidur as it ships; kernels: the same operator sums with the adapter's corrections; calibrated:"
            " with measured overheads. The last one is the report's headline"
        ),
    )
    loop: Literal["direct", "event"] = Field(
        "direct",
        description=(
            "of kernels. direct: our own loop; event: Vidur's own, the slow reference. published always has Vidur's,"
            " calibrated ours"
        ),
    )
    host_variability: bool = Field(
        True,
        description="of calibrated: replay the measured sequence of the host's speed; false: its median throughout",
    )
    seed: int = Field(0, ge=0)
    seeds: int = Field(
        5,
        ge=1,
        description="runs of a variant that depends on its seed, at seed, seed + 1, ...; an exact one is run once",
    )

    @model_validator(mode="after")
    def _variants_differ(self) -> Simulation:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants {list(self.variants)} names one twice")
        return self


class HighestRate(Settings):
    """The search for the highest rate at which enough of the requests meet the service level."""

    low_rate_per_s: float = Field(gt=0, description="lowest rate tried, expected to be sustained")
    high_rate_per_s: float = Field(gt=0, description="highest rate tried, expected not to be")
    relative_tolerance: float = Field(
        0.05,
        ge=1e-4,
        lt=1,
        description="the search ends when the bounds are closer than this, relative to the lower one",
    )
    least_share: float = Field(
        0.99, gt=0, le=1, description="share of the requests that must be within every bound of the service level"
    )

    @model_validator(mode="after")
    def _bounds_differ(self) -> HighestRate:
        _check_bounds(self.low_rate_per_s, self.high_rate_per_s)
        return self


class Sweep(Settings):
    """Simulations of the scenario's requests under other rates and engine settings: every combination of the lists. An
    empty list keeps the scenario's own value. With `highest_rate` the rates are searched for, not listed."""

    rates_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="mean arrivals per second, of arrivals that have one rate (poisson, gamma)"
    )
    max_num_seqs: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="values of engine.max_num_seqs")
    max_num_batched_tokens: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (),
        description="values of engine.max_num_batched_tokens; variant calibrated knows only the one that was profiled",
    )
    num_kv_blocks: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="values of engine.num_kv_blocks")
    variant: Variant = Field("calibrated", description="the simulation's variant")
    service_level: ServiceLevel | None = Field(None, description="null: goodput is not reported")
    highest_rate: HighestRate | None = Field(
        None,
        description="in place of rates_per_s: of each combination, the highest rate that keeps the service level",
    )

    @model_validator(mode="after")
    def _values_differ(self) -> Sweep:
        for name, values in self:
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        if self.highest_rate is None:
            if not any(isinstance(values, tuple) and values for _, values in self):
                raise ValueError(
                    "expected a list of rates_per_s, max_num_seqs, max_num_batched_tokens or num_kv_blocks, or"
                    " highest_rate"
                )
        elif self.rates_per_s:
            raise ValueError("highest_rate searches for the rate, so rates_per_s must be empty")
        elif self.service_level is None:
            raise ValueError("highest_rate needs service_level, which says what a request must meet")
        return self


class Capacity(Settings):
    """The search for the highest rate of Poisson arrivals at which the P99 of scheduling delay (first scheduled -
    intended arrival) stays under a bound. Each probe plays the same lengths, drawn from the workload's, with the same
    gaps scaled to its rate."""

    sides: tuple[Literal["simulator", "engine"], ...] = Field(
        ("simulator",),
        min_length=1,
        description="where to search: in every variant of the simulation, on the real engine",
    )
    max_p99_delay_ms: float = Field(gt=0, description="bound of the P99 of scheduling delay")
    low_rate_per_s: float = Field(gt=0, description="lowest rate probed, expected to be sustained")
    high_rate_per_s: float = Field(gt=0, description="highest rate probed, expected not to be")
    relative_tolerance: float = Field(
        0.05,
        ge=1e-4,
        lt=1,
        description="the search ends when the bounds are closer than this, relative to the lower one",
    )
    num_requests: int = Field(1000, gt=1, description="requests of a probe; a P99 of fewer than 1,000 is flagged")
    seed: int = Field(ge=0, lt=2**63, description="of the lengths drawn and of the gaps, the same in every probe")

    @model_validator(mode="after")
    def _bounds_differ(self) -> Capacity:
        _check_bounds(self.low_rate_per_s, self.high_rate_per_s)
        if len(set(self.sides)) < len(self.sides):
            raise ValueError(f"sides {list(self.sides)} names one twice")
        return self


def _check_bounds(low_per_s: float, high_per_s: float) -> None:
    if high_per_s <= low_per_s:
        raise ValueError(f"high_rate_per_s {high_per_s} is not above low_rate_per_s {low_per_s}")
