"""What was seen of calibration: its requests as their clients saw them, and its steps as the engine recorded them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from gst_assets.engine.protocol import IterationField
from gst_assets.workload.digest import workload_digest

_STEP_COLUMNS = len(IterationField)


@dataclass(frozen=True)
class SeenRequest:
    """A calibration request as its client saw it. All times on the monotonic clock; `arrival_time_ns` is when it was to
    be sent."""

    num_prefill_tokens: int
    num_decode_tokens: int
    arrival_time_ns: int
    send_ns: int
    token_times_ns: tuple[int, ...]
    first_token_ns: int
    last_token_ns: int


@dataclass(frozen=True)
class Stretch:
    """What was played without a pause: its requests in order of arrival, and its steps in both records
    (`step_samples.WatchedSteps`)."""

    name: str
    kind: str
    requests: tuple[SeenRequest, ...]
    steps: np.ndarray
    watched: np.ndarray

    def digest(self) -> str:
        """See `workload_digest`."""
        begin = self.requests[0].arrival_time_ns
        return workload_digest(
            [(request.num_prefill_tokens, request.num_decode_tokens) for request in self.requests],
            [request.arrival_time_ns - begin for request in self.requests],
        )


@dataclass(frozen=True)
class Round:
    """One round, as text and one array of integers for `partial`."""

    stretches: list[Stretch]

    def as_text(self) -> str:
        """Names, kinds and requests, as JSON."""
        return json.dumps(
            [[one.name, one.kind, [asdict(request) for request in one.requests]] for one in self.stretches]
        )

    def as_array(self) -> np.ndarray:
        """All steps: the number of the stretch, then both records."""
        return np.concatenate(
            [
                np.column_stack([np.full(len(one.steps), index), one.steps, one.watched])
                for index, one in enumerate(self.stretches)
            ]
        )

    @classmethod
    def of(cls, text: str, array: np.ndarray) -> Round:
        """The round of which these are `as_text` and `as_array`."""
        return cls(
            [
                Stretch(
                    name,
                    kind,
                    tuple(SeenRequest(**{**one, "token_times_ns": tuple(one["token_times_ns"])}) for one in requests),
                    array[array[:, 0] == index, 1 : 1 + _STEP_COLUMNS],
                    array[array[:, 0] == index, 1 + _STEP_COLUMNS :],
                )
                for index, (name, kind, requests) in enumerate(json.loads(text))
            ]
        )
