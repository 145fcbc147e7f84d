"""Conversations: when their turns arrive, and of seeded ones which turns there are and of which words each prompt is
made.

The turns of a session are in order, and each prompt begins with the prompts of the turns before it. Writing the texts
belongs to `generated_prompts`; what a request may ask of the model, and conversations of a trace, to `requests`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gst_assets.scenario import SessionSource, TurnTimes
from gst_assets.workload.generated_prompts import PromptLengths
from gst_assets.workload.synthetic import SESSION_STREAMS, draw_lengths, stream

_NS_PER_S = 1e9
_STREAMS = dict(zip(("begin", "turns", "gaps", "group", "system", "user", "decode"), SESSION_STREAMS, strict=True))


@dataclass(frozen=True)
class Turns:
    """All turns in order of arrival. Arrays are int64 of shape (turns,); `time_ns` is since the first turn, `session`
    which one each is of. Prompt `s<i>t<k>` is turn k of session i."""

    prefill: np.ndarray
    decode: np.ndarray
    time_ns: np.ndarray
    prompts: PromptLengths
    session: np.ndarray


def draw_turns(settings: SessionSource, seed: int) -> Turns:
    """Draw the sessions. More sessions of the same settings begin with these.

    Raises:
        WorkloadError: bounds of lengths that accept next to no draw (`synthetic.draw_lengths`).
    """
    number = settings.num_sessions
    turns = stream(seed, _STREAMS["turns"]).integers(settings.min_turns, settings.max_turns + 1, number)
    group = stream(seed, _STREAMS["group"]).integers(0, settings.num_system_prompts, number)
    system, _ = draw_lengths(
        settings.system_tokens,
        settings.num_system_prompts,
        seed,
        _STREAMS["system"],
        "workload.sessions.system_tokens",
    )
    count = int(turns.sum())
    user, _ = draw_lengths(settings.user_tokens, count, seed, _STREAMS["user"], "workload.sessions.user_tokens")
    decode, _ = draw_lengths(settings.decode_tokens, count, seed, _STREAMS["decode"], "workload.sessions.decode_tokens")
    time_ns = draw_turn_times(settings, turns, seed)

    session = np.repeat(np.arange(number), turns)
    first = np.cumsum(turns) - turns
    place = np.arange(count) - first[session]
    spoken = user + decode
    before = _sums_within(spoken, first, session)  # what of the conversation stands before a turn
    prefill = system[group[session]] + before + user
    # System prompts come first in the stream of words, then one conversation after another.
    opening_word = (np.cumsum(system) - system)[group[session]]
    conversation = system.sum() + np.concatenate([[0], np.cumsum(spoken)])[first][session]
    order = np.lexsort((place, session, time_ns))
    # Two stretches each: the system prompt, and the conversation so far.
    opening = system[group[session]]
    prompts = PromptLengths(
        [f"s{session[at]}t{place[at]}" for at in order.tolist()],
        2 * np.arange(count + 1),
        np.stack([opening_word, conversation], axis=1)[order].ravel(),
        np.stack([opening, prefill - opening], axis=1)[order].ravel(),
    )
    arrived = time_ns[order]
    return Turns(prefill[order], decode[order], arrived - arrived[0], prompts, session[order])


def draw_turn_times(settings: SessionSource | TurnTimes, turns: np.ndarray, seed: int) -> np.ndarray:
    """When each turn arrives, in nanoseconds: int64, session after session. `turns`: int64 of shape (sessions,), how
    many each session has. More sessions begin with the times of fewer."""
    number, count = len(turns), int(turns.sum())
    begin_ns = np.cumsum(
        _rounded(stream(seed, _STREAMS["begin"]).standard_exponential(number), settings.session_rate_per_s)
    )
    least_ns = round(settings.least_turn_gap_s * _NS_PER_S)
    beyond_s = settings.mean_turn_gap_s - settings.least_turn_gap_s
    gaps_ns = least_ns + np.rint(
        stream(seed, _STREAMS["gaps"]).standard_exponential(count) * beyond_s * _NS_PER_S
    ).astype(np.int64)
    session, first = np.repeat(np.arange(number), turns), np.cumsum(turns) - turns
    times_ns: np.ndarray = begin_ns[session] + _sums_within(gaps_ns, first, session)
    return times_ns


def previous_turns(session: np.ndarray) -> np.ndarray:
    """The position of the turn before each one in its session, -1 for a first turn: int64 of shape (turns,). `session`:
    which one each turn is of, in order of arrival."""
    order = np.argsort(session, kind="stable")
    follows = session[order][1:] == session[order][:-1]
    previous: np.ndarray = np.full(len(session), -1, dtype=np.int64)
    previous[order[1:][follows]] = order[:-1][follows]
    return previous


def _rounded(gaps: np.ndarray, rate_per_s: float) -> np.ndarray:
    """Gaps of the unit-rate process at a rate, in whole nanoseconds."""
    return np.rint(gaps * (_NS_PER_S / rate_per_s)).astype(np.int64)


def _sums_within(values: np.ndarray, first: np.ndarray, session: np.ndarray) -> np.ndarray:
    """For each turn the sum of `values` over the earlier turns of its session."""
    before = np.cumsum(values) - values
    sums: np.ndarray = before - before[first][session]
    return sums
