"""The tables made from the results of calibration: overheads.csv, host_speed.csv and calibration_traffic.csv."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.protocol import IterationField
from gst_assets.errors import ProfileError
from gst_assets.profiling.calibration.plan import FLOWING, TRAFFIC
from gst_assets.profiling.calibration.stretches import SeenRequest, Stretch
from gst_assets.profiling.step_samples import WatchedSteps, host_speed, step_rows, where_serving
from gst_assets.profiling.term_fit import MIN_SAMPLES, fit
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.step_costs.terms import ANY_KIND, Features, Terms

_LONGEST_GAP_NS = 50_000_000
"""Of a time in which the engine had nothing to do, this much stays in the trace of the host's speed."""
_STAMP_ROUNDING_NS = 1_000  # vLLM stamps requests in float seconds


@dataclass(frozen=True)
class Driven:
    """The results of calibration."""

    stretches: list[Stretch]
    settings: EngineSettings
    is_gpu: bool

    def digests(self) -> dict[str, str]:
        """A digest of each calibration workload, by the name of its stretch."""
        return {one.name: one.digest() for one in self.stretches}

    def watched(self) -> WatchedSteps:
        """All steps of all rounds.

        Raises:
            ProfileError: the records of a stretch do not hold the same steps.
        """
        for one in self.stretches:
            self._watched(one)
        return WatchedSteps(
            np.concatenate([one.steps for one in self.stretches]),
            np.concatenate([one.watched for one in self.stretches]),
            self._graphs,
            is_gpu=self.is_gpu,
            has_own_workers=self._has_own_workers,
        )

    @property
    def _has_own_workers(self) -> bool:
        return (self.settings.tensor_parallel_size or 1) > 1

    @property
    def _graphs(self) -> CapturedGraphs:
        return CapturedGraphs(self.settings.cudagraph_capture_sizes)

    def _watched(self, one: Stretch) -> WatchedSteps:
        return WatchedSteps(
            one.steps, one.watched, self._graphs, is_gpu=self.is_gpu, has_own_workers=self._has_own_workers
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """overheads.csv, host_speed.csv and calibration_traffic.csv (`contracts.tables`), by file name.

        Raises:
            ProfileError: a term was not seen often enough.
        """
        serving = [np.full(len(one.steps), one.kind == TRAFFIC) for one in self.stretches]
        rows = step_rows(self.watched(), np.concatenate(serving))
        flowing = [one for one in self.stretches if one.kind in FLOWING]
        ways, delivered = self._ways()
        overheads = pd.DataFrame(rows + ways).astype({"num_samples": "Int64"})
        for name in ("residual_p05_ns", "residual_p95_ns"):
            overheads[name] = overheads[name].astype("Int64")
        return {
            "overheads.csv": overheads[list(OVERHEAD_COLUMNS)],
            "host_speed.csv": host_speed([self._watched(one) for one in flowing], delivered, rows, _LONGEST_GAP_NS),
            "calibration_traffic.csv": self._traffic_table(flowing),
        }

    def _ways(self) -> tuple[list[dict[str, Any]], list[tuple[np.ndarray, np.ndarray]]]:
        """Rows of `handover` (from sending a request that meets an engine without work to the forming of its first
        step) and of `delivery` (from a step's tokens at the engine's host to the clients seeing them), and for each
        stretch of traffic when tokens were at the host and the ratios of their delivery to the term."""
        handed_over: list[tuple[float, float, bool]] = []
        delivery: dict[int, list[float]] = defaultdict(list)
        deliveries: list[list[tuple[int, int, float]]] = []
        for one in self.stretches:
            formed, output = one.steps[:, IterationField.SCHEDULED_NS], one.steps[:, IterationField.OUTPUT_NS]
            seen_of_step: dict[int, list[int]] = defaultdict(list)
            first_sent_ns: dict[int, tuple[int, int]] = {}
            for request in one.requests:
                first = step_of(request, one)
                for place, seen_ns in enumerate(request.token_times_ns):
                    seen_of_step[first + place].append(seen_ns)
                begun = _first_step_after(request, one)
                if begun == 0 or output[begun - 1] < request.send_ns:
                    sent = (request.send_ns, request.num_prefill_tokens)
                    first_sent_ns[begun] = min(first_sent_ns.get(begun, sent), sent)
            for begun, (send_ns, size) in first_sent_ns.items():
                handed_over.append((size, float(formed[begun] - send_ns), one.kind == TRAFFIC))
            if one.kind in FLOWING:
                deliveries.append(
                    [
                        (
                            int(output[step]),
                            int(one.steps[step, IterationField.DECODE_REQUESTS]),
                            float(np.median(seen) - output[step]),
                        )
                        for step, seen in sorted(seen_of_step.items())
                    ]
                )
                for _, decodes, took_ns in deliveries[-1]:
                    delivery[decodes].append(took_ns)
        sizes, took, serving = (np.array(column) for column in zip(*handed_over, strict=True))
        chosen = where_serving(np.ones(len(serving), dtype=bool), serving)
        rows = [
            *_way("handover", sizes[chosen], took[chosen]),
            *_way(
                "delivery",
                np.array([float(place) for place, values in delivery.items() for _ in values]),
                np.array([value for found in delivery.values() for value in found]),
            ),
        ]
        curve = Terms(pd.DataFrame(rows), CapturedGraphs(()), "overheads.csv").of("delivery").base
        return rows, [
            (
                np.array([at for at, _, _ in seen], dtype=np.int64),
                np.array([took_ns / curve.at(float(decodes)) for _, decodes, took_ns in seen]),
            )
            for seen in deliveries
        ]

    def _traffic_table(self, flowing: Sequence[Stretch]) -> pd.DataFrame:
        rows = []
        for one in flowing:
            begin = one.requests[0].arrival_time_ns
            for number, request in enumerate(one.requests):
                gaps = np.diff(request.token_times_ns)
                rows.append(
                    {
                        "stretch": one.name,
                        "request_id": number,
                        "arrival_time_ns": request.arrival_time_ns - begin,
                        "num_prefill_tokens": request.num_prefill_tokens,
                        "num_decode_tokens": request.num_decode_tokens,
                        "ttft_ns": request.token_times_ns[0] - request.arrival_time_ns,
                        "e2e_ns": request.token_times_ns[-1] - request.arrival_time_ns,
                        "itl_p50_ns": round(float(np.median(gaps))) if len(gaps) else None,
                        "itl_p90_ns": round(float(np.percentile(gaps, 90))) if len(gaps) else None,
                    }
                )
        frame = pd.DataFrame(rows)
        return frame.astype({name: "Int64" for name in frame.columns if name != "stretch"})


OVERHEAD_COLUMNS = (
    "term", "step_kind", "feature", "position", "ns", "num_samples", "residual_p05_ns", "residual_p95_ns",
)  # fmt: skip


def _way(term: str, positions: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    if len(positions) < MIN_SAMPLES:
        raise ProfileError(
            f"overheads.csv: {term} seen fewer than {MIN_SAMPLES} times in the calibration. Play more traffic"
            " (profile.traffic_rates_per_s)."
        )
    return fit(term, ANY_KIND, positions, np.zeros((len(positions), len(Features._fields))), values)


def step_of(request: SeenRequest, one: Stretch) -> int:
    """Index of the step that yielded the request's first token. Its later tokens come one a step from there.

    Raises:
        ProfileError: the records do not agree with that, so a step was lost or the request did not run in every step.
    """
    completion = one.steps[:, IterationField.COMPLETION_NS]
    first, last = (
        int(np.searchsorted(completion, stamp - _STAMP_ROUNDING_NS))
        for stamp in (request.first_token_ns, request.last_token_ns)
    )
    if last >= len(completion) or last - first != request.num_decode_tokens - 1:
        raise ProfileError(
            f"calibration {one.name}: a request with {request.num_decode_tokens} tokens took {last - first + 1}"
            " recorded engine steps. Steps were lost or the request was preempted; give the engine more KV blocks"
            " (engine.num_kv_blocks) and profile again."
        )
    return first


def _first_step_after(request: SeenRequest, one: Stretch) -> int:
    """Index of the first step formed after the request was sent."""
    return int(np.searchsorted(one.steps[:, IterationField.SCHEDULED_NS], request.send_ns))
