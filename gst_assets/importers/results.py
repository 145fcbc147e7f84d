"""What every format's reader returns: requests with their times, and everything that has to be said about them. Reads
and writes no file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from gst_assets.contracts.documents import NOT_STATED
from gst_assets.errors import ResultsError

Clock = Literal["epoch", "monotonic"]
_EPOCH_FROM_S = 1e9
"""2001-09-09 as Unix time. No machine has been up for 31 years, so that a monotonic clock is below it."""

MODEL_NOT_STATED = "model not stated"
"""In `Results.unstated` where the files name no model; whoever imports may."""


@dataclass(frozen=True)
class Request:
    """One request in nanoseconds since the first arrival.

    `name` is what the results call it, `where` its file and item. `num_prompt` is None where the results do not state
    it of a failed request. `first_token_ns` and `completion_ns` are None for a failed request (`error`:
    type and message) and one without tokens. `num_requested` is None where the results do not state it. `token_ns`:
    the time of every produced token, or nothing where they are not known.
    """

    name: str
    arrival_ns: int
    first_token_ns: int | None
    completion_ns: int | None
    num_prompt: int | None
    num_produced: int
    num_requested: int | None = None
    send_ns: int | None = None
    scheduled_ns: int | None = None
    queued_ns: int | None = None
    token_ns: tuple[int, ...] = ()
    num_preemptions: int | None = None
    error: tuple[str, str] | None = None
    where: str = field(kw_only=True)

    @property
    def has_tokens(self) -> bool:
        """Whether the time of every produced token is known."""
        return len(self.token_ns) == self.num_produced


@dataclass(frozen=True)
class Results:
    """One run as its file states it. `maker` is the engine that was measured, or the simulator; `written_by` names
    program and version of the file's source. `simulated_settings` are those that a simulation's file states, under the
    keys of `EngineSettings` where it has one. The other texts are as in `contracts.documents.Imported`. `is_named`:
    requests have names that other results of the workload share.
    """

    run_type: Literal["real", "vidur"]
    files: tuple[Path, ...]
    requests: Sequence[Request]
    maker: str
    written_by: str
    mapping: dict[str, str]
    clock: str
    arrivals: str
    joined_by: str
    is_named: bool
    model: str = NOT_STATED
    transport: Literal["in_process", "http"] | None = None
    device_name: str | None = None
    hardware_id: str | None = None
    device_count: int | None = None
    simulated_settings: dict[str, int] = field(default_factory=dict)
    started_at: datetime | None = None
    ended_at: datetime | None = None
    definitions: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unstated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What the user states because a file does not. `clock`: what absolute times are; `part`: which of several runs in
    the file, from 0.
    """

    clock: Clock | None = None
    part: int | None = None


def check_options(options: Options, where: str, *, clock: bool = False, part: bool = False) -> None:
    """An option that the format has no use for is refused: `clock`, `part` say what it has.

    Raises:
        ResultsError: names the option.
    """
    if options.clock is not None and not clock:
        raise ResultsError(
            f"{where}: times of this format count from its own start, so --clock says nothing. Leave it out."
        )
    if options.part is not None and not part:
        raise ResultsError(f"{where}: a file of this format holds one run, so --part says nothing. Leave it out.")


def since(start_s: float, time_s: float) -> int:
    """Nanoseconds from one time in seconds to another of the same clock."""
    return round((time_s - start_s) * 1e9)


def check_clock(times_s: Sequence[float], expected: Clock, options: Options, where: str, evidence: str) -> str:
    """What the absolute times of a file are, in words: as the program that writes it says in its source
    (`evidence`), and as the values look.

    Raises:
        ResultsError: the values look like the other clock, and no option states which it is.
    """
    epoch = [one >= _EPOCH_FROM_S for one in times_s]
    if any(epoch) != all(epoch):
        first = epoch.index(not epoch[0])
        raise ResultsError(
            f"{where}: times of two clocks: item 0 is {times_s[0]}, item {first} is {times_s[first]}. One is Unix "
            "time, the other is not."
        )
    looks: Clock = "epoch" if epoch and epoch[0] else "monotonic"
    if options.clock is not None:
        return f"{options.clock}, as --clock states"
    if looks != expected:
        raise ResultsError(
            f"{where}: times look {looks} (item 0 is {times_s[0]}), but this format has {expected} ones "
            f"({evidence}). Say --clock {looks} if they are."
        )
    return f"{expected} ({evidence}), shifted so that the first arrival is 0"


def in_order(requests: Sequence[Request]) -> list[Request]:
    """Requests in order of arrival, those that arrive together as they stood."""
    return sorted(requests, key=lambda one: one.arrival_ns)


def counted(number: int, total: int, what: str) -> dict[str, str]:
    """An entry of `Results.dropped`, or none."""
    return {what: f"{number} of {total}"} if number else {}


def instances_told(names: Collection[str]) -> str:
    """What to say of the instances that served the requests of a simulation."""
    return "one instance, or not stated" if len(names) < 2 else f"{len(names)} instances served the requests"


def lengths_told(requests: Sequence[Request]) -> tuple[str, ...]:
    """What to say of lengths that clients do not keep: the requested ones, and the prompts of failed requests."""
    unknown = sum(one.num_prompt is None for one in requests)
    prompts = f"prompt lengths of {unknown} failed requests not stated: their rows have 0"
    return (
        "requested output lengths not stated: the produced ones stand in",
        *((prompts,) if unknown else ()),
    )


def with_first_scheduling(results: Results) -> Results:
    """`results`, without any time of scheduling where one lies after the first token: that is a later scheduling, and
    the time until then no wait."""
    late = sum(
        one.scheduled_ns is not None and one.first_token_ns is not None and one.scheduled_ns > one.first_token_ns
        for one in results.requests
    )
    if not late:
        return results
    return without_scheduling(
        results, f"{late} of {len(results.requests)} lie after the first token, so they are not the first scheduling"
    )


def without_scheduling(results: Results, reason: str) -> Results:
    """`results` without times of scheduling, and the reason."""
    mapping = {name: told for name, told in results.mapping.items() if name != "scheduled_time_ns"}
    return replace(
        results,
        requests=[replace(one, scheduled_ns=None) for one in results.requests],
        mapping=mapping,
        dropped={**results.dropped, "times of scheduling": reason},
    )


def token_times_told(requests: Sequence[Request], unit: str) -> tuple[str, ...]:
    """What to say of token times: nothing where every request's are known, else why the run has none. `unit` is what
    the file has times of.
    """
    answered = [one for one in requests if one.error is None and one.num_produced]
    short = sum(not one.has_tokens for one in answered)
    if not short:
        return ()
    return (
        (
            f"{short} of {len(answered)} answers have another number of {unit} than of tokens: which token came when "
            "is not known"
        ),
    )
