"""Calibration: what the running engine is given so that its steps show what their parts cost, and the tables made of it.

Three kinds of stretches are played in each of `ROUNDS` rounds, so that a disturbance does not fall on one of them alone, and nothing of a
comparison's workload is in them:

- a ladder of lone prompts, one for each captured graph size and beyond, with a head start on a GPU: device times of every size;
- on a GPU, open-loop traffic with a head start: device times of steps with prompts and decodes, also where the host decides how long they take;
- open-loop traffic at several rates and a burst (`traffic`): everything else, at the speed at which host and device serve.

What a step's parts are belongs to `step_samples`, operator times to `operators`, how a simulation uses the tables to `vidur_adapter`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.protocol import Engine, EngineRequest, IterationField
from gst_assets.engine.replay import PlannedRequest, quiet_interpreter
from gst_assets.errors import ProfileError
from gst_assets.profiling import traffic
from gst_assets.profiling.operators import Progress
from gst_assets.profiling.step_samples import WatchedSteps, host_speed, step_rows, where_serving
from gst_assets.profiling.term_fit import MIN_SAMPLES, fit
from gst_assets.profiling.worker_steps import StepField
from gst_assets.scenario import Scenario
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.step_costs.terms import ANY_KIND, Features, Terms
from gst_assets.workload.digest import workload_digest

ROUNDS = 4
LADDER, HEAD_START, TRAFFIC, BURST = "ladder", "head start", "traffic", "burst"
_FLOWING = (TRAFFIC, BURST)

_HEAD_START_NS = 45_000_000
"""Longer than launching a step eagerly took on any host seen; a step that was not launched within it shows no device time."""
_LONGEST_GAP_NS = 50_000_000
"""Of a time in which the engine had nothing to do, this much is kept in the trace of the host's speed."""
_STAMP_ROUNDING_NS = 1_000  # vLLM stamps requests in float seconds
_STEP_COLUMNS = len(IterationField)


class WatchedEngine(Engine, Protocol):
    """An engine whose worker can be called."""

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `worker_steps.StepWatch` in every worker; returns one result each."""


@dataclass(frozen=True)
class SeenRequest:
    """A calibration request as its client saw it. All times on the monotonic clock; `arrival_time_ns` is when it was to be sent."""

    num_prefill_tokens: int
    num_decode_tokens: int
    arrival_time_ns: int
    send_ns: int
    token_times_ns: tuple[int, ...]
    first_token_ns: int
    last_token_ns: int


@dataclass(frozen=True)
class Stretch:
    """What was played without a pause: its requests in order of arrival, and its steps in both records (`step_samples.WatchedSteps`)."""

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


class Calibrator:
    """Plays the rounds one by one, so that other work can be done on the same engine between them.

    The engine must be idle at the beginning of a round and record its iterations.
    """

    def __init__(self, engine: WatchedEngine, scenario: Scenario, *, is_gpu: bool) -> None:
        self._engine, self._scenario, self._is_gpu = engine, scenario, is_gpu
        self._settings = engine.settings()
        self._rounds: list[Round] = []

    def take_over(self, done: Round) -> None:
        """Take the next round from an earlier process instead of playing it."""
        self._rounds.append(done)

    async def play_round(self, index: int, progress: Progress) -> Round:
        """Play round `index` of `ROUNDS`. It does not depend on those before it.

        Raises:
            ProfileError: a request failed, the engine does not record its iterations, or something else used the engine meanwhile.
        """
        scenario, stretches = self._scenario, []
        flowing = traffic.segments(scenario, index)
        asked: list[tuple[str, traffic.Segment | None]] = [
            (LADDER, None),
            *((TRAFFIC if one.rate_per_s else BURST, one) for one in flowing),
        ]
        if self._is_gpu:
            asked.insert(1, (HEAD_START, traffic.middle_segment(scenario, index)))
        if index == 0:
            for warm_up in traffic.warm_up_segments(scenario):
                await self._play_traffic(warm_up, index)
        for number, (kind, segment) in enumerate(asked):
            progress("calibration", (index + number / len(asked)) / ROUNDS)
            head_start_ns = _HEAD_START_NS if self._is_gpu and kind not in _FLOWING else 0
            await self._engine.collective_rpc("gst_watch_steps", head_start_ns)
            began_ns = time.monotonic_ns()
            if segment is None:
                name, requests = f"round {index} ladder", await self._play_ladder(index)
            else:
                name, requests = segment.name, await self._play_traffic(segment, index)
            steps = await self._engine.iterations(max(request.last_token_ns for request in requests))
            (watched,) = await self._engine.collective_rpc("gst_take_steps")
            if steps is None:
                raise ProfileError(
                    "the engine does not record its iterations. Set replay.record_iterations=true and profile again."
                )
            steps = steps[steps[:, IterationField.SCHEDULED_NS] >= began_ns]
            stretches.append(
                Stretch(
                    name, kind, tuple(requests), steps, np.array(watched, dtype=np.int64).reshape(-1, len(StepField))
                )
            )
        self._rounds.append(Round(stretches))
        return self._rounds[-1]

    async def _play_ladder(self, index: int) -> list[SeenRequest]:
        """Lone prompts of one output token, each sent when the one before is done."""
        rng = np.random.Generator(np.random.PCG64([self._scenario.profile.seed, 1, index]))
        seen = []
        with quiet_interpreter(self._scenario.replay.realtime_priority):
            for number, size in enumerate(ladder_sizes(self._scenario, self._settings)):
                tokens = rng.integers(0, self._scenario.model.geometry.vocab_size, size).tolist()
                seen.append(await self._play_alone(EngineRequest(f"ladder-{index}-{number}", tokens, 1, number)))
        return seen

    async def _play_alone(self, request: EngineRequest) -> SeenRequest:
        sent_ns, times, first, last = time.monotonic_ns(), [], 0, 0
        size, timeout_s = len(request.prompt_token_ids), self._scenario.replay.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                async for message in self._engine.generate(request):
                    times += [message.received_ns] * len(message.token_ids)
                    if message.times:
                        first, last = message.times.first_token_ns or 0, message.times.last_token_ns or 0
        except TimeoutError:
            raise ProfileError(
                f"calibration ladder: a prompt of {size} tokens had no token after replay.request_timeout_s {timeout_s:g} s. Check the engine's log and "
                "profile again."
            ) from None
        return SeenRequest(size, request.num_decode_tokens, sent_ns, sent_ns, tuple(times), first, last)

    async def _play_traffic(self, segment: traffic.Segment, index: int) -> list[SeenRequest]:
        played = await traffic.play(self._engine, self._scenario, segment, index)
        return [
            _seen(item, result, played.start_ns) for item, result in zip(played.planned, played.results, strict=True)
        ]

    def driven(self) -> Driven:
        """What all rounds left behind."""
        return Driven([one for done in self._rounds for one in done.stretches], self._settings, self._is_gpu)


def _seen(item: PlannedRequest, result: Any, start_ns: int) -> SeenRequest:
    times = result.times
    return SeenRequest(
        len(item.request.prompt_token_ids),
        item.request.num_decode_tokens,
        start_ns + item.arrival_time_ns,
        result.send_ns or 0,
        tuple(result.token_times_ns),
        (times.first_token_ns or 0) if times else 0,
        (times.last_token_ns or 0) if times else 0,
    )


def ladder_sizes(scenario: Scenario, settings: EngineSettings) -> list[int]:
    """Prompt lengths of the ladder: every captured graph size, the scenario's `profile.calibration_prefill_sizes`, and a prompt that takes a
    whole step and one that takes two, as far as the model takes them."""
    whole = settings.max_num_batched_tokens
    sizes = {*settings.cudagraph_capture_sizes, *scenario.profile.calibration_prefill_sizes, whole, 2 * whole}
    return sorted(size for size in sizes if size < settings.max_model_len)


@dataclass(frozen=True)
class Driven:
    """What calibration left behind."""

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
        )

    @property
    def _graphs(self) -> CapturedGraphs:
        return CapturedGraphs(self.settings.cudagraph_capture_sizes)

    def _watched(self, one: Stretch) -> WatchedSteps:
        return WatchedSteps(one.steps, one.watched, self._graphs, is_gpu=self.is_gpu)

    def tables(self) -> dict[str, pd.DataFrame]:
        """overheads.csv, host_speed.csv and calibration_traffic.csv (`contracts.tables`), by file name.

        Raises:
            ProfileError: a term was not seen often enough.
        """
        serving = [np.full(len(one.steps), one.kind == TRAFFIC) for one in self.stretches]
        rows = step_rows(self.watched(), np.concatenate(serving))
        flowing = [one for one in self.stretches if one.kind in _FLOWING]
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
        """Rows of `handover` (from sending a request that meets an engine without work to the forming of its first step) and of `delivery` (from a
        step's tokens at the engine's host to the clients seeing them), and for each stretch of traffic when tokens were at the host and the ratios
        of their delivery to the term."""
        handed_over: list[tuple[float, float, bool]] = []
        delivery: dict[int, list[float]] = defaultdict(list)
        deliveries: list[list[tuple[int, int, float]]] = []
        for one in self.stretches:
            formed, output = one.steps[:, IterationField.SCHEDULED_NS], one.steps[:, IterationField.OUTPUT_NS]
            seen_of_step: dict[int, list[int]] = defaultdict(list)
            first_sent_ns: dict[int, tuple[int, int]] = {}
            for request in one.requests:
                first = _step_of(request, one)
                for place, seen_ns in enumerate(request.token_times_ns):
                    seen_of_step[first + place].append(seen_ns)
                begun = _first_step_after(request, one)
                if begun == 0 or output[begun - 1] < request.send_ns:
                    sent = (request.send_ns, request.num_prefill_tokens)
                    first_sent_ns[begun] = min(first_sent_ns.get(begun, sent), sent)
            for begun, (send_ns, size) in first_sent_ns.items():
                handed_over.append((size, float(formed[begun] - send_ns), one.kind == TRAFFIC))
            if one.kind in _FLOWING:
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
            f"overheads.csv: {term} seen fewer than {MIN_SAMPLES} times in the calibration. Play more traffic (profile.traffic_rates_per_s)."
        )
    return fit(term, ANY_KIND, positions, np.zeros((len(positions), len(Features._fields))), values)


def _step_of(request: SeenRequest, one: Stretch) -> int:
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
            f"calibration {one.name}: a request with {request.num_decode_tokens} tokens took {last - first + 1} recorded engine steps. "
            "Steps were lost or the request was preempted; give the engine more KV blocks (engine.num_kv_blocks) and profile again."
        )
    return first


def _first_step_after(request: SeenRequest, one: Stretch) -> int:
    """Index of the first step formed after the request was sent."""
    return int(np.searchsorted(one.steps[:, IterationField.SCHEDULED_NS], request.send_ns))
