"""What happened in a simulation, stored by column: when steps were formed and handed out, what they held, who got
tokens from which.

A loop reports to it what happens; the tables made from it belong to `simulate`. Knows neither Vidur nor pandas.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gst_assets.step_costs.shapes import Composition

Integers = NDArray[np.int64]


class LoggedSteps(NamedTuple):
    """One entry per iteration; times in ns of the simulation."""

    formed_ns: Integers
    handed_out_ns: Integers
    num_prefill_requests: Integers
    num_prefill_tokens: Integers
    num_decode_requests: Integers
    num_context_tokens: Integers
    num_running: Integers
    num_waiting: Integers


class Spans(NamedTuple):
    """One entry per stretch of tokens without a pause, by request and then by time: the request got one token from each
    step from the first to the last."""

    request_id: Integers
    first_step: Integers
    last_step: Integers

    @property
    def num_tokens(self) -> Integers:
        """Of each entry."""
        return self.last_step - self.first_step + 1


class Tokens(NamedTuple):
    """One entry per token, by request and then by time: whose it is, and from which step."""

    request_id: Integers
    step: Integers


class StepLog:
    """Grows while a simulation runs. Steps that hold the same requests are one entry, and so are the tokens of one
    request without a pause."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._formed_ns = array("q")
        self._handed_out_ns = array("q")
        self._groups = array("q")
        self._spans = array("q")

    def add_step(self, formed_ns: int, step: Composition, num_running: int, num_waiting: int) -> None:
        """The next step. When it was handed out is added by `add_handed_out`."""
        self._groups.extend((self.num_steps, *step, num_running, num_waiting))
        self._formed_ns.append(formed_ns)
        self.num_steps += 1

    def add_handed_out(self, handed_out_ns: Sequence[int]) -> None:
        """When the outputs of the next steps were handed out: in the order in which they were formed."""
        self._handed_out_ns.extend(handed_out_ns)

    def add_tokens(self, request_id: int, first_step: int, last_step: int) -> None:
        """A request got one token from each step from `first_step` to `last_step`."""
        self._spans.extend((request_id, first_step, last_step))

    def extend(self, groups: Integers, formed_ns: Integers, handed_out_ns: Integers, spans: Integers) -> None:
        """All of the above at once, as `core.Buffers` with request ids in place of rows."""
        self._groups.frombytes(groups.tobytes())
        self._formed_ns.frombytes(formed_ns.tobytes())
        self._handed_out_ns.frombytes(handed_out_ns.tobytes())
        self._spans.frombytes(spans.tobytes())
        self.num_steps += len(formed_ns)

    def steps(self) -> LoggedSteps:
        """All steps. Every one must have been handed out."""
        groups = np.frombuffer(self._groups, np.int64).reshape(-1, 7)
        first = groups[:, 0]
        counts = np.diff(first, append=self.num_steps)
        prefill_requests, prefill_tokens, decodes, context, running, waiting = (
            np.repeat(groups[:, column], counts) for column in range(1, 7)
        )
        # Within a group every decode adds a token of context a step.
        context += (np.arange(self.num_steps) - np.repeat(first, counts)) * decodes
        formed, handed_out = (np.array(times, np.int64) for times in (self._formed_ns, self._handed_out_ns))
        return LoggedSteps(formed, handed_out, prefill_requests, prefill_tokens, decodes, context, running, waiting)

    def spans(self) -> Spans:
        """Who got tokens from which steps."""
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 3)
        order = np.argsort(spans[:, 0], kind="stable")  # those of one request were added in order of time
        return Spans(*(column[order] for column in spans.T))

    def tokens(self) -> Tokens:
        """All tokens."""
        return tokens_of(self.spans())


def tokens_of(spans: Spans) -> Tokens:
    """The tokens of these entries, one by one."""
    counts = spans.num_tokens
    before = np.cumsum(counts) - counts
    steps = np.arange(counts.sum()) + np.repeat(spans.first_step - before, counts)
    return Tokens(np.repeat(spans.request_id, counts), steps)


def tokens_after(spans: Spans, num_steps: int) -> Integers:
    """How many requests got a token from each step and from the one before it, int64 of shape (num_steps,): so often
    the time between the two is a gap between tokens."""
    return _covering(spans.first_step + 1, spans.last_step + 1, num_steps)


def gives_tokens(spans: Spans, num_steps: int) -> NDArray[np.bool_]:
    """Which steps gave a token to anybody, bool of shape (num_steps,)."""
    return _covering(spans.first_step, spans.last_step + 1, num_steps) > 0


def _covering(begins: Integers, ends: Integers, num_steps: int) -> Integers:
    """How many of the intervals from `begins` to before `ends` each step lies in."""
    changes = np.bincount(begins, minlength=num_steps + 1) - np.bincount(ends, minlength=num_steps + 1)
    return np.cumsum(changes)[:num_steps]
