"""`workload` of a scenario: what is asked of the engine and when.

How a workload is built belongs to the package `workload`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gst_assets.scenario.settings import MOST_REQUESTS, MOST_TOKENS, Duration, Rate, RateOrZero, Settings, Tokens

_MOST_ZIPF_LENGTHS = 2**24


class FixedInterval(Settings):
    """Requests `interval_ns` apart; the first arrives at 0."""

    kind: Literal["fixed_interval"]
    interval_ns: int = Field(gt=0, lt=2**63, description="nanoseconds between arrivals")


class Poisson(Settings):
    """Exponentially distributed gaps at a mean rate; the first request arrives after the first gap."""

    kind: Literal["poisson"]
    rate_per_s: Rate = Field(description="mean arrivals per second")


class Static(Settings):
    """Every request arrives at 0."""

    kind: Literal["static"]


class Gamma(Settings):
    """Gamma-distributed gaps at a mean rate, their coefficient of variation 1/sqrt(burstiness); the first request
    arrives after the first gap."""

    kind: Literal["gamma"]
    rate_per_s: Rate = Field(description="mean arrivals per second")
    burstiness: float = Field(
        ge=1e-6, le=1e6, description="shape of the distribution: 1 is Poisson, below 1 burstier, above 1 more even"
    )


class Ramp(Settings):
    """Poisson arrivals at a rate that changes linearly for `duration_s` and then stays."""

    kind: Literal["ramp"]
    start_rate_per_s: RateOrZero
    end_rate_per_s: Rate
    duration_s: Duration


class Piece(Settings):
    """A stretch of time at one rate."""

    duration_s: Duration
    rate_per_s: RateOrZero


class Piecewise(Settings):
    """Poisson arrivals at one rate after another; the last one goes on for as long as there are requests."""

    kind: Literal["piecewise"]
    pieces: tuple[Piece, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _last_rate_serves_the_rest(self) -> Piecewise:
        if self.pieces[-1].rate_per_s == 0:
            raise ValueError("the last piece must have a rate_per_s above 0, or the requests after it never arrive")
        return self


class TraceArrivals(Settings):
    """The times of the trace, or of the sessions. At most one of `time_scale` and `rate_per_s`; neither: to the
    nanosecond as recorded."""

    kind: Literal["trace"]
    time_scale: float | None = Field(None, gt=0, description="gaps are multiplied by this; below 1 is faster")
    rate_per_s: float | None = Field(
        None,
        gt=0,
        description=(
            "gaps are multiplied by the one number that gives all requests selected from the trace this mean rate,"
            " whatever num_requests is"
        ),
    )
    first_at_ns: int = Field(0, ge=0, description="when the first request arrives")
    repeated: Literal["error", "keep"] = Field("error", description="what to do with two requests of the same time")

    @model_validator(mode="after")
    def _one_scale(self) -> TraceArrivals:
        if self.time_scale is not None and self.rate_per_s is not None:
            raise ValueError("time_scale and rate_per_s both scale the times. Set one of them to null")
        return self


Arrivals = Annotated[
    FixedInterval | Poisson | Gamma | Static | Ramp | Piecewise | TraceArrivals, Field(discriminator="kind")
]


class FixedLength(Settings):
    """The same length for every request."""

    kind: Literal["fixed"]
    tokens: Tokens


class _BoundedLength(Settings):
    min_tokens: int = Field(gt=0, description="shortest length, included")
    max_tokens: int = Field(gt=0, lt=2**31, description="longest length, included")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> _BoundedLength:
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}")
        return self


class UniformLength(_BoundedLength):
    """Every length between the bounds equally often."""

    kind: Literal["uniform"]


class LognormalLength(_BoundedLength):
    """exp(Normal(ln median, sigma)) rounded to the nearest integer; lengths outside the bounds are drawn anew, and how
    many is recorded."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0, description="of the distribution before it is bounded, in tokens")
    sigma: float = Field(gt=0, description="standard deviation of the logarithm")


class ZipfLength(_BoundedLength):
    """Length n with a probability proportional to n**-exponent between the bounds."""

    kind: Literal["zipf"]
    exponent: float = Field(ge=0)

    @model_validator(mode="after")
    def _weights_fit_into_memory(self) -> ZipfLength:
        if self.max_tokens - self.min_tokens >= _MOST_ZIPF_LENGTHS:
            raise ValueError(
                f"min_tokens {self.min_tokens} to max_tokens {self.max_tokens} are too many lengths, each of which has"
                f" its probability. Bring them within {_MOST_ZIPF_LENGTHS} of each other"
            )
        return self


class EmpiricalLength(Settings):
    """The given lengths, each as often as its weight says."""

    kind: Literal["empirical"]
    tokens: tuple[Tokens, ...] = Field(min_length=1)
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(None, description="null: all equally often")

    @model_validator(mode="after")
    def _weights_fit(self) -> EmpiricalLength:
        if self.weights is not None and (len(self.weights) != len(self.tokens) or sum(self.weights) == 0):
            raise ValueError(
                f"weights must hold one number for each of the {len(self.tokens)} tokens, not all 0, found"
                f" {list(self.weights)}"
            )
        return self


_CLOSED_LOOP = Field(
    False,
    exclude_if=lambda value: not value,
    description=(
        "true: a turn arrives that time after the last token of the answer before it, which is then a think time;"
        " false: after the turn before it, whether that is answered or not"
    ),
)

Lengths = Annotated[
    FixedLength | UniformLength | LognormalLength | ZipfLength | EmpiricalLength, Field(discriminator="kind")
]


class TurnTimes(Settings):
    """When the turns of a trace's conversations arrive. Times that publishers of conversations do not give, so they are
    drawn from the seed."""

    session_rate_per_s: Rate = Field(
        description="mean conversations that begin per second, exponentially distributed gaps"
    )
    least_turn_gap_s: Duration = Field(description="shortest time from a turn to the next one of its conversation")
    mean_turn_gap_s: Duration = Field(
        description="mean of that time; what exceeds the least is exponentially distributed"
    )
    closed_loop: bool = _CLOSED_LOOP

    @model_validator(mode="after")
    def _gaps_are_ordered(self) -> TurnTimes:
        _check_gaps(self.least_turn_gap_s, self.mean_turn_gap_s)
        return self


def _check_gaps(least_s: float, mean_s: float) -> None:
    if mean_s < least_s:
        raise ValueError(f"mean_turn_gap_s {mean_s} is below least_turn_gap_s {least_s}")


class TraceSource(Settings):
    """Requests of a published trace. Requests are left out or shortened only as these settings ask for, in the
    order given here."""

    path: str = Field(description="the trace, relative to the project root")
    format: Literal["azure_2023", "azure_2024", "burstgpt", "mooncake", "sharegpt", "vidur"] | None = Field(
        None, description="null: detected from the file's beginning"
    )
    licence: str | None = Field(
        None, description="under which terms the file may be used; null: those its publisher states for the format"
    )
    start_row: int = Field(0, ge=0, description="rows (conversations) to leave out at the beginning")
    num_rows: int | None = Field(None, gt=0, description="rows to read from there; null: all")
    sample_fraction: float | None = Field(
        None, gt=0, lt=1, description="use each row with this probability (seeded); null: use all"
    )
    unusable: Literal["error", "drop"] = Field(
        "error", description="what to do with a row without prompt or output tokens, e.g. of a request that failed"
    )
    max_total_tokens: int | None = Field(
        None, gt=1, description="longest prompt plus output to use; null: model.max_model_len"
    )
    over_length: Literal["error", "drop", "truncate"] = Field(
        "error", description="what to do with longer ones; truncate shortens the prompt, never the output"
    )
    share_prompts: bool = Field(
        False, description="one generated prompt for all requests of its length, instead of one each"
    )
    shared_prefixes: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="prompts have the same 512 tokens where Mooncake's hash_ids are the same; false: nothing in common",
    )
    sessions: TurnTimes | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description=(
            "every turn of a user in ShareGPT's conversations is a request, its prompt all that was said before it and"
            " the turn itself; null: the first turn of each conversation only"
        ),
    )

    @model_validator(mode="after")
    def _prompts_are_shared_in_one_way(self) -> TraceSource:
        if self.share_prompts and self.shared_prefixes:
            raise ValueError("share_prompts and shared_prefixes both say which tokens are shared. Set one to false")
        return self


class SyntheticSource(Settings):
    """Requests of seeded lengths. Prompts and outputs are drawn from streams of their own."""

    prefill_tokens: Lengths
    decode_tokens: Lengths
    share_prompts: bool = Field(
        False, description="one generated prompt for all requests of its length, instead of one each"
    )


class SessionSource(Settings):
    """Seeded conversations of several turns, which share system prompts. A turn's prompt is the system prompt, all
    earlier turns with their answers, and what the user says now. The answer that stands in a prompt is a text of the
    asked length, not what the engine gave, also where turns wait for answers (`closed_loop`)."""

    num_sessions: int = Field(gt=0, le=MOST_REQUESTS)
    session_rate_per_s: Rate = Field(description="mean sessions that begin per second, exponentially distributed gaps")
    min_turns: int = Field(gt=0, le=1000)
    max_turns: int = Field(gt=0, le=1000, description="every number between the two equally often")
    least_turn_gap_s: Duration = Field(description="shortest time from a turn to the next one of its session")
    mean_turn_gap_s: Duration = Field(
        description="mean of that time; what exceeds the least is exponentially distributed"
    )
    closed_loop: bool = _CLOSED_LOOP
    num_system_prompts: int = Field(
        gt=0, le=MOST_REQUESTS, description="each session has one of so many, equally often"
    )
    system_tokens: Lengths
    user_tokens: Lengths = Field(description="what a user says in a turn")
    decode_tokens: Lengths = Field(description="tokens of an answer")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> SessionSource:
        if self.max_turns < self.min_turns:
            raise ValueError(f"max_turns {self.max_turns} is below min_turns {self.min_turns}")
        _check_gaps(self.least_turn_gap_s, self.mean_turn_gap_s)
        return self


class Workload(Settings):
    """What is asked of the engine and when. Exactly one of `prompts`, `trace`, `synthetic` and `sessions` says what;
    set those of a parent to null."""

    prompts: str | None = Field(None, description="a prompts.jsonl, relative to the project root")
    trace: TraceSource | None = None
    synthetic: SyntheticSource | None = None
    sessions: SessionSource | None = Field(None, exclude_if=lambda value: value is None)
    num_requests: int | None = Field(
        None,
        gt=0,
        le=MOST_REQUESTS,
        description=(
            "requests to send. prompts: in order, starting over at the end; null: one per prompt. trace: the first of"
            " those selected; null: all. sessions: the first turns of all; null: all"
        ),
    )
    num_decode_tokens: int | None = Field(
        None,
        gt=0,
        le=MOST_TOKENS,
        description=(
            "tokens requested of each request; null: what the prompt's own num_decode_tokens key or the trace says"
        ),
    )
    arrivals: Arrivals
    seed: int = Field(ge=0, lt=2**63)

    @model_validator(mode="after")
    def _sources_fit(self) -> Workload:
        named = [name for name in ("prompts", "trace", "synthetic", "sessions") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"expected exactly one of prompts, trace, synthetic and sessions, found {' and '.join(named) or 'none'}"
                + (". Set the others to null" if named else "")
            )
        if isinstance(self.arrivals, TraceArrivals) and self.trace is None and self.sessions is None:
            raise ValueError(
                "arrivals of kind trace need workload.trace or workload.sessions, but the requests come from"
                f" {named[0]}"
            )
        has_sessions = self.sessions is not None or (self.trace is not None and self.trace.sessions is not None)
        if has_sessions and not isinstance(self.arrivals, TraceArrivals):
            raise ValueError(
                f"sessions have times of their own, but arrivals are of kind {self.arrivals.kind}. Set kind to trace,"
                " with time_scale or rate_per_s for another load"
            )
        if self.sessions is not None and self.num_decode_tokens is not None:
            raise ValueError("sessions.decode_tokens and num_decode_tokens contradict. Set num_decode_tokens to null")
        if self.synthetic is not None and self.num_requests is None:
            raise ValueError("synthetic needs num_requests")
        if self.synthetic is not None and self.num_decode_tokens is not None:
            raise ValueError("synthetic.decode_tokens and num_decode_tokens contradict. Set num_decode_tokens to null")
        return self

    @property
    def closed_loop_setting(self) -> str | None:
        """The setting that makes turns wait for answers, as an error names it; None where none does."""
        if self.sessions is not None and self.sessions.closed_loop:
            return "workload.sessions.closed_loop"
        if self.trace is not None and self.trace.sessions is not None and self.trace.sessions.closed_loop:
            return "workload.trace.sessions.closed_loop"
        return None
