"""What a step costs an engine, part by part, and what a request costs on its way there and back.

Each part is measured where it is itself (`profiling.step_samples`), so none of them holds a wait: waiting follows when
a clock puts the parts of consecutive steps together (`vidur_adapter.core`). The same parts describe an engine whose
device decides how long a step takes, one whose host does, and one that computes on its host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.step_costs.cost_tables import (
    DEVICE_SLOPES,
    HOST_SLOPES,
    KINDS,
    CostTables,
    DeliveryTables,
    Floats,
    padded_tokens,
    without_sums,
)
from gst_assets.step_costs.shapes import DECODE, CapturedGraphs, StepShape
from gst_assets.step_costs.terms import ANY_KIND, Features, Term, Terms, features

STEP_TERMS = ("prepare", "launch", "lead_in", "device", "drain")
"""Terms that every kind of step needs rows of."""
IDLE_TERMS = ("prepare_after_idle", "launch_after_idle")
"""Terms with a row for any kind, and for those that were seen often enough."""
OTHER_TERMS = ("copy_out", "process", "handover", "delivery")
"""Terms that do not depend on the kind of step."""
_ALL_BUT_DEVICE = ("prepare", "launch", "lead_in", "drain", "copy_out", "process")
_BLOCK_NS = 250_000_000
"""Slow moments of a host last about this long (on an H200's host the speed of steps 0.2 s apart correlated by 0.4, 0.5
s apart by 0.2); within a block their sequence is preserved."""
_STRATA = 16
"""Groups of blocks by how slow they are."""
_BEYOND = 1.15
"""A step with more decodes than this times the largest calibrated batch counts as outside what was calibrated."""


class StepCost(NamedTuple):
    """Of one step, in ns, on a host at its median speed."""

    prepare: float
    """From forming the step to launching its forward pass: scheduling, inputs."""
    launch: float
    """For which launching occupies the host: forward pass and sampling."""
    lead_in: float
    """For which the device is between two steps: copying inputs."""
    device: float
    """For which the step occupies a device that never waits for the host."""
    drain: float
    """From the end of the launch to the end on the device, where the device was not behind."""
    copy_out: float
    """From the end on the device to the tokens at the host that waits for them."""
    process: float
    """From the tokens at the host until it can form a step."""


class HostSpeedTrace:
    """The measured sequence of the host's speed, its blocks of a quarter of a second in a seeded order, over and over
    again.

    A moving-block resampling (Kuensch 1989) of one trace, stratified: blocks are grouped by how slow they are, and each
    group is met in turn, so that a simulation of some seconds meets a fair mix of the calibration's moments whatever
    the seed. Ratios are to what the terms predict.
    """

    def __init__(self, table: pd.DataFrame, seed: int) -> None:
        """`table` is `contracts.tables.HostSpeed`."""
        when = table["time_ns"].to_numpy(dtype=np.int64)
        ratios, parts = table["ratio"].to_numpy(dtype=np.float64), table["part"].to_numpy(dtype=str)
        self._order = _stratified(when // _BLOCK_NS, ratios, parts != "delivery", seed)
        self._traces = {
            part: (when[parts == part], ratios[parts == part]) for part in ("decode", "prefill", "delivery")
        }
        self._lists = {part: (at.tolist(), ratio.tolist()) for part, (at, ratio) in self._traces.items()}

    def ratio(self, part: str, at_ns: int) -> float:
        """Of the step of that part that follows in the trace at simulated time `at_ns`."""
        when, ratios = self._lists[part]
        block, within = divmod(at_ns, _BLOCK_NS)
        place = bisect_left(when, int(self._order[block % len(self._order)]) * _BLOCK_NS + within)
        return ratios[place % len(ratios)]

    @property
    def order(self) -> NDArray[np.int64]:
        """Numbers of the blocks in the order in which they are met."""
        return self._order

    def trace(self, part: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """When steps of that part were seen, and their ratios."""
        return self._traces[part]

    def ratios(self, part: str, at_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """`ratio` at many times."""
        when, ratios = self._traces[part]
        block, within = np.divmod(at_ns, _BLOCK_NS)
        place = np.searchsorted(when, self._order[block % len(self._order)] * _BLOCK_NS + within)
        found: NDArray[np.float64] = ratios[place % len(ratios)]
        return found


def _stratified(
    blocks: NDArray[np.int64], ratios: NDArray[np.float64], counts: NDArray[np.bool_], seed: int
) -> NDArray[np.int64]:
    """The blocks' numbers in an order that meets slow and fast ones in turn. Only the rows that `counts` say how slow a
    block is."""
    numbers = np.unique(blocks[counts])
    rng = np.random.Generator(np.random.PCG64(seed))
    speed = np.array([ratios[counts & (blocks == number)].mean() for number in numbers])
    groups = [rng.permutation(group) for group in np.array_split(numbers[np.argsort(speed, kind="stable")], _STRATA)]
    rounds = max(map(len, groups))
    order = [
        group[turn]
        for turn in range(rounds)
        for group in (groups[place] for place in rng.permutation(len(groups)))
        if turn < len(group)
    ]
    return np.array(order, dtype=np.int64)


class EngineCosts:
    """Costs of steps by their shape, and for the host by time. `device_is_host`: the engine computes on its host, whose
    slow moments then hold the device's part too."""

    def __init__(
        self,
        overheads: pd.DataFrame,
        graphs: CapturedGraphs,
        required_kinds: tuple[str, ...],
        where: str,
        *,
        speed: HostSpeedTrace | None = None,
        device_is_host: bool = False,
    ) -> None:
        """Without `speed` the host always takes its median.

        Raises:
            ProfileError: a term, or a step kind that the simulation may meet, has no row.
        """
        self.device_is_host = device_is_host
        self._graphs, self._speed = graphs, speed
        self._terms = terms = Terms(overheads, graphs, where)
        terms.require([(term, kind) for kind in required_kinds for term in STEP_TERMS])
        terms.require([(term, ANY_KIND) for term in OTHER_TERMS])
        terms.require([(term, ANY_KIND) for term in IDLE_TERMS])
        self._after_idle = {
            kind: [terms.step_ns(term, kind, _NOTHING) for term in IDLE_TERMS] for kind in required_kinds
        }
        self._host: dict[tuple[str, int, int, int], tuple[float, ...]] = {}
        self._largest_batch = terms.of("device", DECODE).largest_position * _BEYOND

    def step(self, shape: StepShape, warmth: float = 0.0) -> StepCost:
        """Of a step that finds the device this warm (`warmth.Warmth`)."""
        return self.of(features(shape, warmth))

    def of(self, held: Features) -> StepCost:
        """Of a step that holds this."""
        kind = self._graphs.kind(held.prefill_token, held.decode_request)
        prepare, launch, lead_in, drain, copy_out, process = self._host_parts(kind, held)
        device = self._terms.step_ns("device", kind, held)
        return StepCost(prepare, launch, lead_in, device, drain, copy_out, process)

    def tables(self, max_num_batched_tokens: int, queue_size: int) -> CostTables:
        """The same for steps of at most so many tokens, as arrays, on an engine with a queue of so many steps."""
        kinds = [kind for kind in KINDS if kind in self._after_idle]

        def by_kind(shape: tuple[int, ...], value: Callable[[str], Any]) -> Floats:
            found = np.zeros((len(KINDS), *shape))
            for kind in kinds:
                found[KINDS.index(kind)] = value(kind)
            return found

        def term(name: str, kind: str) -> Term:
            return self._terms.for_kind(name, kind)

        def host(name: str) -> tuple[Floats, Floats]:
            bases = by_kind((size,), lambda kind: term(name, kind).base.over(size))
            slopes = by_kind(
                (len(HOST_SLOPES),), lambda kind: [term(name, kind).slope(one, 0.0) for one in HOST_SLOPES]
            )
            return bases, slopes

        def curve(name: str) -> Floats:
            return by_kind((size,), lambda kind: term(name, kind).base.over(size))

        padded = padded_tokens(self._graphs, max_num_batched_tokens)
        size = int(padded.max()) + 1
        prepare_ns, prepare_slopes_ns = host("prepare")
        launch_ns, launch_slopes_ns = host("launch")
        speed, none = self._speed, np.zeros(0, dtype=np.int64)
        decode_when_ns, decode_ratio = speed.trace("decode") if speed else (none, none.astype(np.float64))
        prefill_when_ns, prefill_ratio = speed.trace("prefill") if speed else (none, none.astype(np.float64))
        return without_sums(
            queue_size=queue_size,
            padded_tokens=padded,
            largest_graph=max(self._graphs.sizes, default=0),
            prepare_ns=prepare_ns,
            prepare_slopes_ns=prepare_slopes_ns,
            launch_ns=launch_ns,
            launch_slopes_ns=launch_slopes_ns,
            lead_in_ns=by_kind((), lambda kind: term("lead_in", kind).base.at(0.0)),
            device_ns=curve("device"),
            device_slopes_ns=by_kind(
                (len(DEVICE_SLOPES), size),
                lambda kind: [term("device", kind).slope_over(name, size) for name in DEVICE_SLOPES],
            ),
            drain_ns=by_kind((), lambda kind: term("drain", kind).base.at(0.0)),
            copy_out_ns=curve("copy_out"),
            process_ns=curve("process"),
            after_idle_ns=by_kind((2,), lambda kind: self._after_idle[kind]),
            largest_batch=self._largest_batch,
            device_is_host=self.device_is_host,
            speed_order=speed.order if speed else none,
            decode_when_ns=decode_when_ns,
            decode_ratio=decode_ratio,
            prefill_when_ns=prefill_when_ns,
            prefill_ratio=prefill_ratio,
        )

    def decode_rise_ns(self, num_decodes: int) -> float:
        """By how much `StepCost.device` of a step of so many decodes grows with each token of context over all its
        requests."""
        return self._terms.of("device", DECODE).slope("decode_context_token", float(self._graphs.padded(num_decodes)))

    def after_idle(self, cost: StepCost, kind: str) -> StepCost:
        """The cost of a step of a kind that is formed when none is out."""
        prepare, launch = self._after_idle[kind]
        return cost._replace(prepare=cost.prepare + prepare, launch=cost.launch + launch)

    def kind(self, shape: StepShape) -> str:
        """Of a step: `decode`, `mixed` or `mixed_eager`."""
        return self._graphs.kind(shape.num_prefill_tokens, shape.num_decodes)

    def ratio(self, has_prefill: bool, at_ns: int) -> float:
        """Of the host's time at `at_ns` of the simulation to its median."""
        return self._speed.ratio("prefill" if has_prefill else "decode", at_ns) if self._speed else 1.0

    def is_outside(self, shape: StepShape) -> bool:
        """Whether more requests decode in the step than were calibrated."""
        return shape.num_decodes > self._largest_batch

    def _host_parts(self, kind: str, held: Features) -> tuple[float, ...]:
        key = (kind, held.prefill_request, held.prefill_token, held.decode_request)
        found = self._host.get(key)
        if found is None:
            found = self._host[key] = tuple(self._terms.step_ns(term, kind, held) for term in _ALL_BUT_DEVICE)
        return found


_NOTHING = Features(0, 0, 0, 0, 0)


class RequestWays:
    """Nanoseconds between driver and scheduler, and back."""

    def __init__(self, overheads: pd.DataFrame, where: str, speed: HostSpeedTrace | None = None) -> None:
        """Without `speed` delivery always takes its median.

        Raises:
            ProfileError: a term has no row.
        """
        terms = Terms(overheads, CapturedGraphs(()), where)
        terms.require([("handover", ANY_KIND), ("delivery", ANY_KIND)])
        self._handover, self._delivery = (terms.of(term).base for term in ("handover", "delivery"))
        self._speed = speed

    def handover_ns(self, num_prefill_tokens: int) -> int:
        """From the request's arrival to the earliest moment the scheduler can see it."""
        return round(self._handover.at(float(num_prefill_tokens)))

    def deliveries_ns(self, num_decode_requests: NDArray[np.int64], at_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """From a step's tokens at the engine's host, at simulated times `at_ns`, to the client seeing them, by decoding
        requests in the step."""
        batches, places = np.unique(num_decode_requests, return_inverse=True)
        medians = np.array([self._delivery.at(float(count)) for count in batches.tolist()])[places]
        ratios = self._speed.ratios("delivery", at_ns) if self._speed else 1.0
        return np.rint(medians * ratios).astype(np.int64)

    def delivery_tables(self, max_num_seqs: int) -> DeliveryTables:
        """`deliveries_ns` for steps of up to so many decodes, as arrays."""
        medians_ns = self._delivery.over(max_num_seqs + 1)
        if self._speed is None:
            return no_delivery(max_num_seqs)._replace(medians_ns=medians_ns)
        return DeliveryTables(medians_ns, self._speed.order, *self._speed.trace("delivery"))


def no_delivery(max_num_seqs: int) -> DeliveryTables:
    """Of an engine whose client has its tokens when its host has them."""
    none = np.zeros(0, dtype=np.int64)
    return DeliveryTables(np.zeros(max_num_seqs + 1), none, none, none.astype(np.float64))
