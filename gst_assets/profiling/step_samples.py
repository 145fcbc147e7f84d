"""From recorded and watched steps to samples of what their parts took, each where it shows itself.

A step has moments on two records: the engine's (`engine.protocol.IterationField`: formed, tokens there) and the
worker's (`worker_steps.StepField`: forward pass begun, launched, and the device's begin and end). From them:

- `prepare`: formed until the forward pass is launched; `launch`: from there until all is launched, sampling included,
  less what watching took. Of steps formed while another was out and not held up by a full queue of the device;
  `prepare_after_idle` and `launch_after_idle` are what a step takes more that was formed when none was.
- `lead_in`: from the launch of the forward pass, or the end of the step before on the device, to the device's begin.
- `device`: begin to end on the device, of steps whose device was behind the host to the end, or that the host launched
  ahead of a sleeping device.
- `drain`: end of the launch to end on the device, of steps whose device was not behind.
- `copy_out`: end on the device until the tokens are at a host that waits for them.
- `process`: tokens at the host until it forms a step, in an engine that has work.

An engine that computes on its host (a CPU) has no launch: its forward pass is the device's part. The paths of a request
are in `calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.engine.protocol import IterationField
from gst_assets.errors import ProfileError
from gst_assets.profiling.term_fit import MIN_SAMPLES, fit
from gst_assets.profiling.worker_steps import StepField
from gst_assets.step_costs.shapes import DECODE, MIXED, MIXED_EAGER, CapturedGraphs
from gst_assets.step_costs.terms import ANY_KIND, BASE, FORM, REREAD, Features, Terms, position_of, slopes_of
from gst_assets.step_costs.warmth import Warmth

_LEAST_RATIO = 1e-3
"""A ratio is written with four digits, and none is 0."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SHARE_BEHIND, _LEAST_BEHIND_NS = 0.05, 300_000
"""A device that ends a step by this much (of the step, and at least) after its launch was behind all the time."""
_HELD_UP = 1.5
"""Launches that take this many times as long as others of their kind waited for the device."""
_NEAR_NS = 1_000_000_000
_MOST_DRAIN_NS = 100_000
"""A device that ends a step within this of its launch was not behind."""


def of_all_ranks(by_rank: Sequence[Sequence[Sequence[int]]], *, is_gpu: bool) -> Integers:
    """The moments of steps that several ranks run together, shape (steps, len(StepField)), from the rows of each rank.

    A step begins, and is launched, when it is on the last of them: until then the others wait for it in the first
    collective. It ends on rank 0, whose tokens are handed out: its collectives have waited for the other ranks. The
    clocks of the ranks are one: processes of one host.

    Raises:
        ProfileError: the ranks did not run the same number of steps.
    """
    if len({len(rows) for rows in by_rank}) > 1:
        raise ProfileError(
            f"calibration: the engine's workers ran {', '.join(str(len(rows)) for rows in by_rank)} steps. Nothing else"
            " may use the engine meanwhile; profile again."
        )
    rows = np.array(by_rank, dtype=np.int64).reshape(len(by_rank), -1, len(StepField))
    found: Integers = rows[0].copy()
    moments = [StepField.BEGUN_NS, StepField.FORWARD_NS, StepField.DEVICE_BEGUN_NS]
    if is_gpu:  # a CPU has computed when it has launched
        moments.append(StepField.LAUNCHED_NS)
    found[:, moments] = rows.max(axis=0)[:, moments]
    # Of the rank that launched last, so that the launch less watching is one rank's.
    last = rows[:, :, StepField.LAUNCHED_NS].argmax(axis=0)
    found[:, StepField.WATCHING_NS] = rows[last, np.arange(rows.shape[1]), StepField.WATCHING_NS]
    return found


class WatchedSteps:
    """Steps in order of forming, one row each in both records."""

    def __init__(
        self,
        steps: np.ndarray,
        watched: np.ndarray,
        graphs: CapturedGraphs,
        *,
        is_gpu: bool,
        has_own_workers: bool = False,
    ) -> None:
        """`steps` has shape (steps, len(IterationField)), `watched` (steps, len(StepField)). `has_own_workers`: steps
        are prepared and launched by other processes than the one that forms them.

        Raises:
            ProfileError: the records do not hold the same steps.
        """
        formed = steps[:, IterationField.SCHEDULED_NS]
        output = steps[:, IterationField.OUTPUT_NS]
        begun = watched[:, StepField.BEGUN_NS] if len(watched) else np.empty(0)
        if len(steps) != len(watched) or (begun < formed).any() or (begun > output).any():
            raise ProfileError(
                f"calibration: the engine recorded {len(steps)} steps and its worker {len(watched)}, or not the same"
                " ones. Nothing else may use the engine meanwhile; profile again."
            )
        self.is_gpu, self.graphs, self.has_own_workers = is_gpu, graphs, has_own_workers
        self.formed_ns, self.output_ns = formed, output
        self.forward_ns, self.launched_ns = watched[:, StepField.FORWARD_NS], watched[:, StepField.LAUNCHED_NS]
        self.device_begun_ns = watched[:, StepField.DEVICE_BEGUN_NS]
        self.device_ended_ns = watched[:, StepField.DEVICE_ENDED_NS]
        self.has_head_start = watched[:, StepField.HEAD_START_NS] > 0
        self.launch_ns = self.launched_ns - self.forward_ns - watched[:, StepField.WATCHING_NS]
        # Workers take a step when they have launched the one before.
        launched_before_ns = np.concatenate([[0], self.launched_ns[:-1]])
        taken_ns = np.maximum(formed, launched_before_ns) if has_own_workers else formed
        self.prepare_ns = self.forward_ns - taken_ns
        self.form_ns = steps[:, IterationField.LAUNCHED_NS] - formed
        self.num_waiting = steps[:, IterationField.WAITING]
        prefill_context = steps[:, IterationField.PREFILL_CONTEXT_TOKENS]
        num_tokens = steps[:, IterationField.PREFILL_TOKENS] + steps[:, IterationField.DECODE_REQUESTS]
        reread = steps[:, IterationField.REREAD_CONTEXT_TOKENS]
        warmth = self._warmth(num_tokens)
        self.held = np.column_stack(
            [
                steps[:, IterationField.PREFILL_REQUESTS],
                steps[:, IterationField.PREFILL_TOKENS],
                steps[:, IterationField.DECODE_REQUESTS],
                steps[:, IterationField.CONTEXT_TOKENS] - prefill_context - reread,
                steps[:, IterationField.ATTENTION_PAIRS],
                num_tokens * warmth,
                warmth,
                reread,
            ]
        )
        self.features = [Features(*row) for row in self.held.tolist()]
        self.kinds = np.array([graphs.kind(held.prefill_token, held.decode_request) for held in self.features])

    def __len__(self) -> int:
        return len(self.formed_ns)

    def _warmth(self, num_tokens: Integers) -> Floats:
        warmth, found = Warmth(), []
        for begun_ns, ended_ns, count in zip(
            self.device_begun_ns.tolist(), self.device_ended_ns.tolist(), num_tokens.tolist(), strict=True
        ):
            found.append(warmth.at(begun_ns))
            warmth.ran(begun_ns, ended_ns, count)
        return np.array(found)

    @property
    def is_after_idle(self) -> NDArray[np.bool_]:
        """Whether no step was out when the step was formed."""
        return np.concatenate([[True], self.output_ns[:-1] < self.formed_ns[1:]]) & self._was_without_work

    @cached_property
    def is_held_up(self) -> NDArray[np.bool_]:
        """Whether the launch waited for the device: its queue holds some thousand kernels, so launching a prompt kernel
        by kernel while another one still runs may take as long as the device does (on an H200 190 ms instead of 42 for
        Qwen3-32B; for Qwen3-8B the queue sufficed).

        Of each kind of step those are taken for held up that may have been, if their median is well above that of the
        others.
        """
        held_up = np.zeros(len(self), dtype=bool)
        if not self.is_gpu:
            return held_up
        by_kernel = (self.kinds == MIXED_EAGER) | ((self.kinds == MIXED) & (not self.graphs.sizes))
        runs = self.device_ended_ns[:-1] > self.forward_ns[1:]
        may_be = np.concatenate([[False], by_kernel[:-1] & runs & (self.held[1:, 1] > 0)]) & ~self.has_head_start
        launch_ns = self.launch_ns
        for kind in (MIXED, MIXED_EAGER):
            mine = self.kinds == kind
            others = mine & ~may_be & ~self.has_head_start
            exposed = mine & may_be
            if not exposed.any() or not others.any():
                continue
            if np.median(launch_ns[exposed]) > _HELD_UP * np.median(launch_ns[others]):
                held_up |= exposed
        return held_up

    @property
    def is_busy(self) -> NDArray[np.bool_]:
        """Whether the host formed and launched the step at its own pace, with another one out."""
        return ~self.is_after_idle & ~self.has_head_start & ~self.is_held_up

    @property
    def _was_without_work(self) -> NDArray[np.bool_]:
        # One step at a time every step is formed when none is out: there it is the first of new requests that counts.
        held_before = np.concatenate([[0], self.held[:-1, 0] + self.held[:-1, 2]])
        return (self.held[:, 2] == 0) | (held_before == 0)

    def samples(self) -> dict[tuple[str, str], tuple[NDArray[np.int64], Floats]]:
        """For each (term, step kind): which steps show it, and for how many ns."""
        busy = self.is_busy
        host = {"prepare": self.prepare_ns, "launch": self.launch_ns}
        if not self.is_gpu:
            host["launch"] = np.zeros_like(host["launch"])
        found: dict[tuple[str, str], tuple[NDArray[np.int64], Floats]] = {}
        device_ns = self.device_ended_ns - self.device_begun_ns
        before_ns = np.concatenate([[0], self.device_ended_ns[:-1]])
        lead_in_ns = self.device_begun_ns - np.maximum(self.forward_ns, before_ns)
        lag_ns = self.device_ended_ns - self.launched_ns
        if self.is_gpu:
            shows_device = (lag_ns >= np.maximum(_SHARE_BEHIND * device_ns, _LEAST_BEHIND_NS)) | (
                self.has_head_start & (self.launched_ns <= self.device_begun_ns)
            )
        else:
            shows_device, lag_ns = np.ones(len(self), dtype=bool), np.zeros_like(lag_ns)
        for kind in dict.fromkeys(self.kinds.tolist()):
            mine = self.kinds == kind
            for term, ns in host.items():
                found[term, kind] = _chosen(mine & busy, ns)
            found["lead_in", kind] = _chosen(mine & ~self.has_head_start, lead_in_ns)
            found["device", kind] = _chosen(mine & shows_device, device_ns)
            found["drain", kind] = _chosen(mine & ~self.has_head_start & (lag_ns < _MOST_DRAIN_NS), lag_ns)
        found["copy_out", ANY_KIND] = _chosen(self._host_waited(), self.output_ns - self.device_ended_ns)
        found["process", ANY_KIND] = self._process()
        if self.has_own_workers:
            found[FORM, ANY_KIND] = _chosen(busy, self.form_ns)
        return found

    def _host_waited(self) -> NDArray[np.bool_]:
        """Whether the host had launched all it had to, or passed it to its workers, before the step ended on the
        device."""
        done_ns = self.formed_ns + self.form_ns if self.has_own_workers else self.launched_ns
        last = np.maximum.accumulate(done_ns)
        # Steps formed before these tokens came: one more at most.
        following = np.searchsorted(self.formed_ns, self.output_ns) - 1
        return last[following] < self.device_ended_ns if self.is_gpu else np.ones(len(self), dtype=bool)

    def _process(self) -> tuple[NDArray[np.int64], Floats]:
        """The next step formed after a step's tokens, before any later tokens, while requests go on."""
        following = np.searchsorted(self.formed_ns, self.output_ns)
        inside = following < len(self)
        places = np.flatnonzero(inside)
        following = following[inside]
        goes_on = (self.held[following, 2] > 0) | (self.num_waiting[places] > 0)
        # At most one step is out meanwhile, whose tokens come later.
        next_output = np.array([self.output_ns[n + 1] if n + 1 < len(self) else np.iinfo(np.int64).max for n in places])
        first = (self.formed_ns[following] < next_output) & goes_on
        places, following = places[first], following[first]
        return places, (self.formed_ns[following] - self.output_ns[places]).astype(float)


def _chosen(where: NDArray[np.bool_], ns: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
    places = np.flatnonzero(where)
    return places, ns[places].astype(float)


def step_rows(steps: WatchedSteps, is_serving: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.Overheads` for the parts of steps. `is_serving`, shape (steps,): which ran in open-loop
    traffic.

    Raises:
        ProfileError: a part was not seen often enough.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for (term, kind), (places, ns) in steps.samples().items():
        if len(places) < MIN_SAMPLES:
            missing.append(f"{term} of {kind} steps")
            continue
        positions = np.array([position_of(term, kind, steps.features[n], steps.graphs) for n in places.tolist()])
        held = steps.held[places].astype(float)
        fixed = term == "device" and bool(steps.graphs.sizes) and kind != "mixed_eager"
        one = not positions.any()
        rows += fit(
            term,
            kind,
            positions,
            held,
            ns,
            [name for name in slopes_of(term, kind) if name != REREAD or held[:, -1].any()],
            are_fixed=fixed,
            most_knots=1 if one else None,
            has_slope_curves=term == "device" and kind == DECODE,
        )
    # A kind whose device is always behind shows no drain, nor needs one; one whose host always is shows no other device
    # time than with a head start.
    missing = [name for name in missing if not name.startswith("drain")]
    if missing:
        raise ProfileError(
            f"overheads.csv: {', '.join(missing)} seen fewer than {MIN_SAMPLES} times in the calibration. Play more"
            " traffic (profile.traffic_rates_per_s, profile.traffic_segment_s)."
        )
    shown = {row["step_kind"] for row in rows if row["term"] == "drain"}
    rows += [_constant("drain", kind, 0.0, 0) for kind in dict.fromkeys(steps.kinds.tolist()) if kind not in shown]
    return rows + _after_idle_rows(steps, rows, is_serving)


def _after_idle_rows(
    steps: WatchedSteps, rows: list[dict[str, Any]], is_serving: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    first = np.flatnonzero(steps.is_after_idle)
    terms = Terms(pd.DataFrame(rows), steps.graphs, "overheads.csv")
    taken = {"prepare": steps.prepare_ns, "launch": steps.launch_ns}
    if not steps.is_gpu:
        taken["launch"] = np.zeros_like(taken["launch"])
    slowness = _slowness_around(steps, rows, first)
    found = []
    for part, ns in taken.items():
        usual = [terms.step_ns(part, str(steps.kinds[n]), steps.features[n]) for n in first.tolist()]
        more = ns[first] / slowness - np.array(usual)
        for kind in [ANY_KIND, *dict.fromkeys(steps.kinds[first].tolist())]:
            mine = np.ones(len(first), dtype=bool) if kind == ANY_KIND else steps.kinds[first] == kind
            values = more[where_serving(mine, is_serving[first])]
            if len(values) >= MIN_SAMPLES or kind == ANY_KIND:
                median = float(np.median(values)) if len(values) else 0.0
                found.append(_constant(f"{part}_after_idle", kind, median, len(values)))
    return found


def _slowness_around(steps: WatchedSteps, rows: list[dict[str, Any]], places: NDArray[np.int64]) -> Floats:
    """How slow the host was about each of these steps, shape (places,): the median over busy steps within a second of
    the time taken over that of the fitted rows; 1 where there was none.

    A host keeps its speed for seconds, and the few steps after idle may all have met one of them.
    """
    by_model, taken = host_ns(steps, rows)
    busy = np.flatnonzero(steps.is_busy)
    at_ns, ratios = steps.formed_ns[busy], (taken / by_model)[busy]
    first = np.searchsorted(at_ns, steps.formed_ns[places] - _NEAR_NS)
    last = np.searchsorted(at_ns, steps.formed_ns[places] + _NEAR_NS)
    return np.array(
        [np.median(ratios[a:b]) if b > a else 1.0 for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    )


def where_serving(mine: NDArray[np.bool_], is_serving: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of samples from an engine that had nothing to do, those from traffic, where there are at least `MIN_SAMPLES` of
    them, else all of `mine`. Both and the result have shape (samples,).

    A host that is given the next lone prompt as soon as one is done, behind a device that sleeps, is in another state
    than one that waited: on H100 and H200 it began 0.2 to 0.5 ms earlier, and launched prompts beyond the captured
    graphs 4 to 16 ms slower.
    """
    both = mine & is_serving
    return both if both.sum() >= MIN_SAMPLES else mine


def _constant(term: str, kind: str, ns: float, num_samples: int) -> dict[str, Any]:
    return {
        "term": term,
        "step_kind": kind,
        "feature": BASE,
        "position": 0.0,
        "ns": round(ns, 3),
        "num_samples": num_samples,
        "residual_p05_ns": 0,
        "residual_p95_ns": 0,
    }


def host_ns(steps: WatchedSteps, rows: list[dict[str, Any]]) -> tuple[Floats, Floats]:
    """What the host's part of each step takes by the fitted rows, and what it took less watching, in ns, each of shape
    (steps,): forming to launched, or on a CPU to computed."""
    parts = ("prepare", "launch") if steps.is_gpu else ("prepare", "device")
    terms = Terms(pd.DataFrame(rows), steps.graphs, "overheads.csv")
    by_model = np.array(
        [
            sum(terms.step_ns(part, kind, held) for part in parts)
            for kind, held in zip(steps.kinds.tolist(), steps.features, strict=True)
        ]
    )
    taken = steps.prepare_ns + (steps.launch_ns if steps.is_gpu else steps.launched_ns - steps.forward_ns)
    return by_model, taken.astype(float)


def host_speed(
    parts: list[WatchedSteps],
    deliveries: list[tuple[Integers, Floats]],
    rows: list[dict[str, Any]],
    longest_gap_ns: int,
) -> pd.DataFrame:
    """The table `contracts.tables.HostSpeed`: how fast the host was, relative to the fitted rows. `parts` are stretches
    of steps in order, `deliveries` of each the moments at which tokens were at the host and the ratios of their
    delivery.

    Times count from the first step; gaps longer than `longest_gap_ns`, in which the engine had nothing to do, are
    shortened to it.
    """
    stretches = []
    for steps, (delivered_ns, ratios) in zip(parts, deliveries, strict=True):
        by_model, taken = host_ns(steps, rows)
        busy = steps.is_busy
        formed = pd.DataFrame(
            {
                "at": steps.formed_ns[busy],
                "part": np.where(steps.held[busy, 1] > 0, "prefill", "decode"),
                "ratio": (taken / by_model)[busy],
            }
        )
        delivered = pd.DataFrame({"at": delivered_ns, "part": "delivery", "ratio": ratios})
        stretches.append(pd.concat([formed, delivered]))
    table = pd.concat(stretches).sort_values("at", kind="stable")
    gaps = table["at"].diff().fillna(0).clip(upper=longest_gap_ns).astype("int64")
    return pd.DataFrame(
        {
            "time_ns": gaps.cumsum().to_numpy(),
            "part": table["part"].to_numpy(),
            "ratio": table["ratio"].clip(lower=_LEAST_RATIO).round(4).to_numpy(),
        }
    ).astype({"time_ns": "Int64"})
