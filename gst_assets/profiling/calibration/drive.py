"""Plays the rounds of the calibration on a running engine. The tables made from them belong to `collect`."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import numpy as np

from gst_assets.engine.protocol import Engine, EngineRequest, IterationField
from gst_assets.engine.replay import PlannedRequest, quiet_interpreter
from gst_assets.errors import ProfileError
from gst_assets.profiling import traffic
from gst_assets.profiling.calibration.collect import Driven
from gst_assets.profiling.calibration.plan import BURST, FLOWING, HEAD_START, LADDER, ROUNDS, TRAFFIC, ladder_sizes
from gst_assets.profiling.calibration.stretches import Round, SeenRequest, Stretch
from gst_assets.profiling.operator_tables import OnShare
from gst_assets.profiling.step_samples import of_all_ranks
from gst_assets.scenario import Scenario

_LEAST_HEAD_START_NS, _HEAD_START_NS_PER_LAYER = 45_000_000, 1_250_000
"""Longer than launching a step eagerly took on any host seen (36 layers: up to 34 ms; 64 layers: 42 ms); a step that
was not launched within it shows no device time."""


class WatchedEngine(Engine, Protocol):
    """An engine whose worker can be called."""

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `worker_steps.StepWatch` in every worker; returns one result each."""


class Calibrator:
    """Plays the rounds one by one, so that other work can be done on the same engine between them.

    The engine must be idle at the beginning of a round and record its iterations.
    """

    def __init__(self, engine: WatchedEngine, scenario: Scenario, *, is_gpu: bool) -> None:
        self._engine, self._scenario, self._is_gpu = engine, scenario, is_gpu
        self._settings = engine.settings()
        layers = scenario.model.geometry.num_layers
        self._head_start_ns = max(_LEAST_HEAD_START_NS, _HEAD_START_NS_PER_LAYER * layers)
        self._rounds: list[Round] = []

    def take_over(self, done: Round) -> None:
        """Use the next round from an earlier process instead of playing it."""
        self._rounds.append(done)

    async def play_round(self, index: int, progress: OnShare) -> Round:
        """Play round `index` of `ROUNDS`. It does not depend on those before it.

        Raises:
            ProfileError: a request failed, the engine does not record its iterations, or something else used the engine
                meanwhile.
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
            head_start_ns = self._head_start_ns if self._is_gpu and kind not in FLOWING else 0
            await self._engine.collective_rpc("gst_watch_steps", head_start_ns)
            began_ns = time.monotonic_ns()
            if segment is None:
                name, requests = f"round {index} ladder", await self._play_ladder(index)
            else:
                name, requests = segment.name, await self._play_traffic(segment, index)
            steps = await self._engine.iterations(max(request.last_token_ns for request in requests))
            by_rank = await self._engine.collective_rpc("gst_take_steps")
            if steps is None:
                raise ProfileError(
                    "the engine does not record its iterations. Set replay.record_iterations=true and profile again."
                )
            steps = steps[steps[:, IterationField.SCHEDULED_NS] >= began_ns]
            stretches.append(Stretch(name, kind, tuple(requests), steps, of_all_ranks(by_rank, is_gpu=self._is_gpu)))
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
                f"calibration ladder: a prompt of {size} tokens had no token after replay.request_timeout_s"
                f" {timeout_s:g} s. Check the engine's log and profile again."
            ) from None
        return SeenRequest(size, request.num_decode_tokens, sent_ns, sent_ns, tuple(times), first, last)

    async def _play_traffic(self, segment: traffic.Segment, index: int) -> list[SeenRequest]:
        played = await traffic.play(self._engine, self._scenario, segment, index)
        return [
            _seen(item, result, played.start_ns) for item, result in zip(played.planned, played.results, strict=True)
        ]

    def driven(self) -> Driven:
        """The results of all rounds."""
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
