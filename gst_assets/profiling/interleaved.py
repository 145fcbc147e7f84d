"""Measured runs between the rounds of a calibration, on one engine start.

A host's speed drifts over minutes and from one engine start to the next. Where a simulation's own error is the
question, and not how a profile travels, calibration and runs must meet the same drift: here repeats of workloads are
played between calibration rounds. Playing and writing a repeat belong to `engine.run`, calibrating to `calibration`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gst_assets.contracts.documents import Hardware, WorkloadMeta
from gst_assets.engine.measuring import play_repeat
from gst_assets.engine.plays import Play, check_output, lone_warm_up_requests, read_play, warm_up_requests
from gst_assets.engine.replay import warm_up
from gst_assets.engine.run_directory import Measurement
from gst_assets.engine.vllm_backend import VllmEngine
from gst_assets.errors import ProfileError
from gst_assets.profiling.calibration import ROUNDS
from gst_assets.scenario import Scenario
from gst_assets.workload.tokenized import WorkloadRequest


class InterleavedRuns:
    """Plays whose repeats are spread over the calibration rounds."""

    def __init__(self, plays: Sequence[Play], scenario: Scenario, hardware: Hardware, out: Path) -> None:
        """Read everything that is to be played, before an engine starts. `scenario` is the calibrated one.

        Raises:
            ProfileError: a play needs another engine than the calibrated one, or may end requests early.
            EngineError, WorkloadError, ArtifactError, ContractError: as `engine.run.measure`.
        """
        self._asked: list[tuple[Play, WorkloadMeta, list[WorkloadRequest]]] = []
        for play in plays:
            for section in ("model", "hardware", "engine"):
                if play.scenario.digest(section) != scenario.digest(section):
                    raise ProfileError(
                        f"scenario {play.scenario.name} differs from the calibrated {scenario.name} in {section}, so"
                        " one engine cannot serve both."
                    )
            if play.scenario.engine.sampling.may_stop_early:
                raise ProfileError(
                    f"scenario {play.scenario.name} may end requests early, which calibration switches off in its"
                    " engine. Run it apart."
                )
            self._asked.append((play, *read_play(play)))
        check_output([play.group_id for play in plays], out)
        self._hardware, self._out = hardware, out
        self._created = time.monotonic()
        self._measurements: list[Measurement] = []

    def described(self) -> list[dict[str, str]]:
        """What is played, for `partial.subject`: scenarios, workloads and names of the runs."""
        return [
            {
                "scenario": play.scenario.name,
                "settings": play.scenario.digest("workload", "replay", "model", "hardware", "engine"),
                "workload": meta.workload_id,
                "group_id": play.group_id,
            }
            for play, meta, _ in self._asked
        ]

    def rename(self, group_ids: Sequence[str]) -> None:
        """Name the runs as those of the process that began this profile."""
        self._asked = [
            (replace(play, group_id=name), meta, requests)
            for (play, meta, requests), name in zip(self._asked, group_ids, strict=True)
        ]

    async def play_after(self, engine: VllmEngine, round_index: int) -> None:
        """Play the repeats that belong after calibration round `round_index`: of R repeats an equal share after each
        round. Those that an earlier process wrote are there already."""
        asked = [
            (place, repeat)
            for place, (play, _, _) in enumerate(self._asked)
            for repeat in range(*(play.scenario.replay.repeats * (round_index + more) // ROUNDS for more in (0, 1)))
            if not (self._out / f"{play.group_id}-r{repeat}").exists()
        ]
        if asked and not self._measurements:
            await self._warm_up(engine)
        for place, repeat in asked:
            (play, _, requests), measurement = self._asked[place], self._measurements[place]
            _, died = await play_repeat(engine, measurement, requests, repeat, self._out)
            if died:
                raise ProfileError(f"the engine died in a repeat of {play.scenario.name}: {died}")

    async def _warm_up(self, engine: VllmEngine) -> None:
        started_s = time.monotonic() - self._created
        for play, meta, requests in self._asked:
            warmed = await warm_up(
                engine,
                *(
                    [replace(one, request_id=f"{play.scenario.name}-{one.request_id}") for one in group]
                    for group in (warm_up_requests(play.scenario, requests), lone_warm_up_requests(play.scenario))
                ),
                request_timeout_s=play.scenario.replay.request_timeout_s,
            )
            self._measurements.append(
                Measurement(
                    play.scenario,
                    play.workload,
                    meta,
                    self._hardware,
                    engine.settings(),
                    warmed,
                    started_s,
                    play.group_id,
                )
            )
