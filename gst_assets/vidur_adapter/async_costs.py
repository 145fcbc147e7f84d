"""What a step costs a simulated engine that schedules asynchronously: the host's time, the device's, and the ends between them.

Reads the terms `host`, `process`, `turnaround` and `device` of overheads.csv and host_speed.csv (`contracts.tables`). How they add up is
`clocks.AsynchronousClock`; measuring belongs to `profiling`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

import numpy as np
import pandas as pd

from gst_assets.errors import ProfileError
from gst_assets.profiling.async_steps import Key
from gst_assets.profiling.host_model import HostModel
from gst_assets.vidur_adapter.operator_times import StepShape, decode_run_ns, shape_of
from gst_assets.vidur_adapter.overheads import Composition, Knots, Piece
from gst_assets.vidur_adapter.steps import CapturedGraphs

_BLOCK_NS = 1_000_000_000
"""Slow moments of a host last about this long; within a block their sequence is kept."""


class HostSpeedTrace:
    """The measured sequence of the host's speed, its blocks of a second in a seeded order, over and over again.

    A moving-block resampling (Kuensch 1989) of one trace: a simulation of some seconds then meets a fair mix of the calibration's moments and
    not one stretch of it. Ratios are to the median of a step's composition.
    """

    def __init__(self, table: pd.DataFrame, seed: int) -> None:
        """`table` is `contracts.tables.HostSpeed`."""
        when = table["time_ns"].to_numpy(dtype=np.int64)
        ratios, has_prefill = table["ratio"].to_numpy(dtype=np.float64), table["has_prefill"].to_numpy(dtype=bool)
        blocks = max(int(when[-1]) // _BLOCK_NS, 1)
        self._order = np.random.Generator(np.random.PCG64(seed)).permutation(blocks).tolist()
        self._traces = {
            kind: (when[has_prefill == kind].tolist(), ratios[has_prefill == kind].tolist()) for kind in (False, True)
        }

    def ratio(self, has_prefill: bool, at_ns: int) -> float:
        """Of the step of that sort that follows in the trace at simulated time `at_ns`."""
        when, ratios = self._traces[has_prefill]
        block, within = divmod(at_ns, _BLOCK_NS)
        place = bisect_left(when, self._order[block % len(self._order)] * _BLOCK_NS + within)
        return ratios[place % len(ratios)]


class _Operators(Protocol):
    """The part of `operator_times.OperatorTimes` that is needed."""

    def ns(self, shape: StepShape) -> float: ...

    def decode_piece(self, num_decodes: int, context: float) -> Piece: ...


class AsynchronousStepCosts:
    """Nanoseconds by composition, and for the host by time."""

    def __init__(
        self,
        overheads: pd.DataFrame,
        speed: HostSpeedTrace | None,
        operators: _Operators,
        graphs: CapturedGraphs,
        required_kinds: tuple[str, ...],
        where: str,
    ) -> None:
        """`operators` are what the simulation itself says of a step; without `speed` the host always takes its median.

        Raises:
            ProfileError: a term, or a step kind that the simulation may meet, has no row.
        """
        self._graphs, self._speed, self._operators = graphs, speed, operators
        self._host = HostModel(overheads, where)
        self._medians: dict[Key, float] = {}
        missing = [f"host rows of step_kind {kind}" for kind in required_kinds if kind not in self._host.kinds]
        names = ("host_after_idle", "process", "turnaround", "device")
        terms = {name: overheads[overheads["term"] == name] for name in names}
        missing += [f"{name} rows" for name, rows in terms.items() if rows.empty]
        if missing:
            raise ProfileError(
                f"{where}: no {', no '.join(missing)}, which variant calibrated needs of an engine with async_scheduling. Profile again."
            )
        process, turnaround, device = terms["process"], terms["turnaround"], terms["device"]
        self._process = Knots.through(
            [
                (
                    (float(row["num_prefill_requests"] + row["num_decode_requests"]),),
                    float(row["median_ns"]),
                    int(row["num_samples"]),
                )
                for _, row in process.iterrows()
            ]
        )
        # Rows that hold decodes only, and rows that hold prompt tokens, by the tokens that the device processed.
        self._device = {
            kind == "decode": Knots.through(
                [
                    (
                        (float(row["num_prefill_tokens"] + row["num_decode_requests"]),),
                        float(row["overhead_ns"]),
                        int(row["num_samples"]),
                    )
                    for _, row in device[(device["step_kind"] == "decode") == (kind == "decode")].iterrows()
                ]
            )
            for kind in ("decode", "mixed")
        }
        after_idle = overheads[overheads["term"] == "host_after_idle"]
        ratios = [float(row["median_ns"]) / self._host.ns(_key_of(row)) for _, row in after_idle.iterrows()]
        samples = after_idle["num_samples"].to_numpy(dtype=int)
        self._after_idle = float(np.median(np.repeat(ratios, samples)))
        self._tail = {kind: self._median_tail(turnaround, kind, where) for kind in required_kinds}

    def host_ns(self, step: Composition, at_ns: int, after_idle: bool) -> int:
        """For which forming and launching the step at `at_ns` keeps the host busy; `after_idle`: no step was out."""
        ratio = self._speed.ratio(step.num_prefill_tokens > 0, at_ns) if self._speed else 1.0
        if after_idle:
            ratio *= self._after_idle
        key = self._graphs.kind(step.num_prefill_tokens, step.num_decode_requests), *step[:3]
        median = self._medians.get(key)
        if median is None:
            median = self._medians[key] = self._host.ns(key)
        return round(median * ratio)

    def device_ns(self, step: Composition) -> int:
        """For which the step keeps a device busy that never waits for the host."""
        tokens = float(self._graphs.padded(step.num_prefill_tokens + step.num_decode_requests))
        return round(self._operators.ns(shape_of(step)) + self._device[step.num_prefill_tokens == 0].at(tokens))

    def device_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """`device_ns` of consecutive steps of the same decodes (see `operator_times.decode_run_ns`)."""
        beyond = self._device[True].at(float(self._graphs.padded(num_decodes)))

        def piece_at(context: float) -> Piece:
            operators, until = self._operators.decode_piece(num_decodes, context)
            return Piece(lambda at: operators(at) + beyond, until)

        return decode_run_ns(piece_at, num_decodes, context_tokens, num_steps)

    def tail_ns(self, step: Composition) -> int:
        """From the end of the launch to the step's tokens, where the device was not behind; negative where they are there before the launch ends."""
        return self._tail[self._graphs.kind(step.num_prefill_tokens, step.num_decode_requests)]

    def process_ns(self, step: Composition) -> int:
        """From the step's tokens at the host until it forms a step again."""
        return round(self._process.at(float(step.num_prefill_requests + step.num_decode_requests)))

    def is_outside(self, step: Composition) -> bool:
        """Whether more requests decode in the step than were calibrated."""
        return step.num_decode_requests > self._host.largest_decode_batch * _BIN_TOLERANCE

    def _median_tail(self, turnaround: pd.DataFrame, kind: str, where: str) -> int:
        rows = turnaround[turnaround["step_kind"] == kind]
        if rows.empty:
            raise ProfileError(
                f"{where}: no turnaround rows of step_kind {kind}, which variant calibrated needs of an engine with async_scheduling. Profile again."
            )
        tails = [float(row["median_ns"]) - self._host.ns(_key_of(row)) for _, row in rows.iterrows()]
        return round(float(np.median(np.repeat(tails, rows["num_samples"].to_numpy(dtype=int)))))


_BIN_TOLERANCE = 1.1
"""Batches calibrated together have a mean size; this much above it is still among them."""


def _key_of(row: pd.Series) -> Key:
    return (
        str(row["step_kind"]),
        int(row["num_prefill_requests"]),
        int(row["num_prefill_tokens"]),
        int(row["num_decode_requests"]),
    )
