"""Seeded conversations: which turns there are, when each arrives, and of which words its prompt is made.

The turns of a session are in order, and each prompt begins with the prompts of the turns before it. Writing the texts
belongs to `generated_prompts`; what a request may ask of the model to `requests`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gst_assets.scenario import SessionSource
from gst_assets.workload.generated_prompts import PromptLengths
from gst_assets.workload.synthetic import SESSION_STREAMS, draw_lengths, stream

_NS_PER_S = 1e9


@dataclass(frozen=True)
class Turns:
    """All turns in order of arrival. Arrays are int64 of shape (turns,); `time_ns` is since the first turn. Prompt
    `s<i>t<k>` is turn k of session i."""

    prefill: np.ndarray
    decode: np.ndarray
    time_ns: np.ndarray
    prompts: PromptLengths

    def first(self, count: int) -> PromptLengths:
        """What is to be written for the first `count` turns."""
        asked = self.prompts
        assert asked.opening_tokens is not None and asked.opening_word is not None
        return PromptLengths(
            asked.prompt_ids[:count],
            asked.num_tokens[:count],
            asked.first_word[:count],
            asked.opening_tokens[:count],
            asked.opening_word[:count],
        )


def draw_turns(settings: SessionSource, seed: int) -> Turns:
    """Draw the sessions. More sessions of the same settings begin with these.

    Raises:
        WorkloadError: bounds of lengths that accept next to no draw (`synthetic.draw_lengths`).
    """
    number = settings.num_sessions
    streams = dict(zip(("begin", "turns", "gaps", "group", "system", "user", "decode"), SESSION_STREAMS, strict=True))
    begin_ns = np.cumsum(
        _rounded(stream(seed, streams["begin"]).standard_exponential(number), settings.session_rate_per_s)
    )
    turns = stream(seed, streams["turns"]).integers(settings.min_turns, settings.max_turns + 1, number)
    group = stream(seed, streams["group"]).integers(0, settings.num_system_prompts, number)
    system, _ = draw_lengths(
        settings.system_tokens,
        settings.num_system_prompts,
        seed,
        streams["system"],
        "workload.sessions.system_tokens",
    )
    count = int(turns.sum())
    user, _ = draw_lengths(settings.user_tokens, count, seed, streams["user"], "workload.sessions.user_tokens")
    decode, _ = draw_lengths(settings.decode_tokens, count, seed, streams["decode"], "workload.sessions.decode_tokens")
    least_ns = round(settings.least_turn_gap_s * _NS_PER_S)
    beyond_s = settings.mean_turn_gap_s - settings.least_turn_gap_s
    gaps_ns = least_ns + np.rint(
        stream(seed, streams["gaps"]).standard_exponential(count) * beyond_s * _NS_PER_S
    ).astype(np.int64)

    session = np.repeat(np.arange(number), turns)
    first = np.cumsum(turns) - turns
    place = np.arange(count) - first[session]
    spoken = user + decode
    # What of the conversation stands before a turn, and when it arrives: sums over the earlier turns of its session.
    before = _sums_within(spoken, first, session)
    time_ns = begin_ns[session] + _sums_within(gaps_ns, first, session)
    prefill = system[group[session]] + before + user
    # System prompts come first in the stream of words, then one conversation after another.
    opening_word = (np.cumsum(system) - system)[group[session]]
    conversation = system.sum() + np.concatenate([[0], np.cumsum(spoken)])[first][session]
    order = np.lexsort((place, session, time_ns))
    prompts = PromptLengths(
        [f"s{session[at]}t{place[at]}" for at in order.tolist()],
        prefill[order],
        conversation[order],
        system[group[session]][order],
        opening_word[order],
    )
    arrived = time_ns[order]
    return Turns(prefill[order], decode[order], arrived - arrived[0], prompts)


def _rounded(gaps: np.ndarray, rate_per_s: float) -> np.ndarray:
    """Gaps of the unit-rate process at a rate, in whole nanoseconds."""
    return np.rint(gaps * (_NS_PER_S / rate_per_s)).astype(np.int64)


def _sums_within(values: np.ndarray, first: np.ndarray, session: np.ndarray) -> np.ndarray:
    """For each turn the sum of `values` over the earlier turns of its session."""
    before = np.cumsum(values) - values
    sums: np.ndarray = before - before[first][session]
    return sums
