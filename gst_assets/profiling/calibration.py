"""Whole engine steps on designed batches: what a step, a hand-over and a delivery cost, as `overheads.csv`.

The batches are made of random prompts and share nothing with a comparison workload. Three kinds are driven through the running engine, in
rounds, so that a disturbance does not fall on one of them alone:

- lone prompts to an idle engine: the prefill step without decodes, the hand-over, the delivery of a first token;
- batches of b sequences of mixed lengths that decode together: decode-only steps;
- the same batches with prompts injected one at a time: mixed steps.

Operator times belong to `operators`; how a simulation uses the table belongs to `vidur_adapter`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.protocol import Engine, EngineRequest, IterationField, RequestTimes
from gst_assets.engine.replay import ReplayResult, quiet_interpreter
from gst_assets.errors import GstError, ProfileError
from gst_assets.profiling import async_steps, traffic
from gst_assets.profiling.async_steps import DeviceSteps, row, step_kind
from gst_assets.profiling.host_model import HostModel, speed_trace
from gst_assets.profiling.operator_model import OperatorModel
from gst_assets.profiling.operators import Progress
from gst_assets.scenario import Scenario

ROUNDS = 4
MIN_SAMPLES = 4
"""A composition seen less often is left out."""

_STEPS_PER_INJECTION = 3
"""Steps from one injection to the next: the one under way, the mixed one, and one that is decode-only again."""
_MAX_INJECTED_BATCHES = 4
_SHORTEST_CONTEXT, _LONGEST_CONTEXT = 16, 512
_IDLE_PAUSE_S = 0.004
_LONGEST_GAP_NS = 50_000_000
"""Of a time in which the engine had nothing to do, this much is kept in the trace of the host's speed."""
_STAMP_ROUNDING_NS = 1_000  # vLLM stamps requests in float seconds

_TRAFFIC_WORK = 3_000.0
"""What a segment of traffic counts in the estimate of the time left, in tokens of a batch."""

_STEP_COLUMNS = ("step_kind", "num_prefill_requests", "num_prefill_tokens", "num_decode_requests")


# --- what is driven ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Injection:
    """A prompt of `num_prefill_tokens` that yields one token, sent once the batch's last request has yielded `after_tokens`."""

    num_prefill_tokens: int
    after_tokens: int


@dataclass(frozen=True)
class CalibrationBatch:
    """Requests sent together to an idle engine, as (prompt, output) lengths in tokens, and what is injected while they decode.

    `one_leaves`: one of them ends before the injections begin.
    """

    name: str
    lengths: tuple[tuple[int, int], ...]
    injections: tuple[Injection, ...] = ()
    one_leaves: bool = False
    is_traffic: bool = False
    """Sent at the times of `traffic`, not together."""

    @property
    def is_lone_prompt(self) -> bool:
        """Whether this is one prompt that yields one token."""
        return not self.is_traffic and len(self.lengths) == 1 and self.lengths[0][1] == 1 and not self.injections

    @property
    def designed_decodes(self) -> set[int]:
        """Requests that decode together once the batch is complete, before and after one leaves."""
        return {0} if self.is_lone_prompt else {len(self.lengths), len(self.lengths) - self.one_leaves}


def plan(scenario: Scenario, num_kv_blocks: int) -> list[CalibrationBatch]:
    """The batches of all rounds, in order; the same for the same scenario.

    Raises:
        ProfileError: a batch that the engine's settings cannot hold (names the setting).
    """
    profile, engine = scenario.profile, scenario.engine
    batch_sizes, prompts = profile.calibration_decode_batch_sizes, profile.calibration_prefill_sizes
    if batch_sizes[-1] > engine.max_num_seqs:
        raise ProfileError(
            f"profile.calibration_decode_batch_sizes has {batch_sizes[-1]}, but engine.max_num_seqs is {engine.max_num_seqs}. Lower the largest batch."
        )
    injected = _injected(batch_sizes)
    most = min(max(injected), engine.max_num_seqs - 1) + prompts[-1]
    if most > engine.max_num_batched_tokens:
        raise ProfileError(
            f"profile.calibration_prefill_sizes has {prompts[-1]}: with {most - prompts[-1]} decodes that is more than "
            f"engine.max_num_batched_tokens {engine.max_num_batched_tokens}, so the prompt would be cut in two. Lower the largest size."
        )
    rng = np.random.default_rng(profile.seed)
    repeats = max(2, round(profile.calibration_steps / (3 * ROUNDS)))
    batches = []
    for index in range(ROUNDS):
        for size in np.repeat(prompts, repeats):
            batches.append(CalibrationBatch(f"{_round_name(index)}prompt {size}", ((int(size), 1),)))
        for batch_size in batch_sizes:
            sizes = rng.permutation(np.repeat(prompts, repeats)).tolist() if batch_size in injected else []
            batches.append(_decode_batch(index, batch_size, sizes, scenario, num_kv_blocks, rng))
    return batches


def _round_name(index: int) -> str:
    return f"round {index} "


def _injected(batch_sizes: Sequence[int]) -> set[int]:
    """Up to `_MAX_INJECTED_BATCHES` of the batch sizes, evenly taken, with both ends."""
    chosen = np.linspace(0, len(batch_sizes) - 1, min(_MAX_INJECTED_BATCHES, len(batch_sizes)))
    return {batch_sizes[round(place)] for place in chosen}


def _decode_batch(
    round_index: int,
    batch_size: int,
    injected: list[int],
    scenario: Scenario,
    num_kv_blocks: int,
    rng: np.random.Generator,
) -> CalibrationBatch:
    engine, steps = scenario.engine, -(-scenario.profile.calibration_steps // ROUNDS)
    budget = engine.max_num_batched_tokens - batch_size if batch_size < engine.max_num_batched_tokens else 1
    # Once the last request's prompt is in: decode-only steps of the whole batch (one that leaves may have begun as many steps earlier as
    # the last prompt took), then the injections, then time for the last of them to end.
    whole = steps + 2 + -(-_LONGEST_CONTEXT // budget)
    first_injection = whole + 2
    outputs = first_injection + _STEPS_PER_INJECTION * len(injected)
    # Until then: steps filled with prompts, one that was under way when the first request came, and one for the last piece.
    most_filling = -(-batch_size * _LONGEST_CONTEXT // budget) + 2
    room = min(
        scenario.model.max_model_len,
        num_kv_blocks * engine.block_size // batch_size - engine.block_size,
        scenario.profile.decode_context_sizes[-1],
    )
    longest = min(_LONGEST_CONTEXT, room - most_filling - outputs)
    if longest < _SHORTEST_CONTEXT:
        raise ProfileError(
            f"a calibration batch of {batch_size} sequences of at least {_SHORTEST_CONTEXT + most_filling + outputs} tokens does not fit: "
            f"engine.num_kv_blocks is {num_kv_blocks} of engine.block_size {engine.block_size}, model.max_model_len {scenario.model.max_model_len}, "
            f"the largest of profile.decode_context_sizes {scenario.profile.decode_context_sizes[-1]}. "
            "Raise these, or lower profile.calibration_steps or the largest of profile.calibration_decode_batch_sizes."
        )
    contexts = np.exp(rng.uniform(np.log(_SHORTEST_CONTEXT), np.log(longest + 1), batch_size)).astype(int).tolist()
    filling = -(-sum(contexts) // budget) + 2
    # Prompts go in one after the other: the earlier ones decode longer, so that all end together.
    lengths = [(context, filling + outputs) for context in contexts[:-1]] + [(contexts[-1], outputs)]
    if batch_size == engine.max_num_seqs == 1:
        injected = []  # no decode runs beside a prompt in an engine of one sequence
    # A full engine takes no further prompt: one sequence leaves before the injections begin.
    one_leaves = bool(injected) and batch_size == engine.max_num_seqs
    if one_leaves:
        lengths[-2] = (contexts[-2], whole)
    injections = [
        Injection(size, first_injection + _STEPS_PER_INJECTION * place) for place, size in enumerate(injected)
    ]
    return CalibrationBatch(
        f"{_round_name(round_index)}batch {batch_size}", tuple(lengths), tuple(injections), one_leaves=one_leaves
    )


def workload_digest(lengths: Iterable[tuple[int, int]], arrivals_ns: Iterable[int]) -> str:
    """sha256 of a workload's (prompt, output) lengths and arrival times in nanoseconds since its first request, in order of request."""
    content = [[list(map(int, pair)) for pair in lengths], [int(arrival) for arrival in arrivals_ns]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# --- driving ----------------------------------------------------------------------------------------------------------


@dataclass
class _Request:
    """One request as it was seen by the client. All times on the monotonic clock."""

    num_prefill_tokens: int
    num_decode_tokens: int
    send_ns: int = 0
    token_times_ns: list[int] = field(default_factory=list)
    first_token_ns: int = 0
    last_token_ns: int = 0


@dataclass
class _Played:
    batch: CalibrationBatch
    started: list[_Request]
    injected: list[_Request]

    def digest(self) -> str:
        requests = self.started + self.injected
        begin = min(request.send_ns for request in requests)
        return workload_digest(
            [(request.num_prefill_tokens, request.num_decode_tokens) for request in requests],
            [request.send_ns - begin for request in requests],
        )


@dataclass(frozen=True)
class Driven:
    """What calibration left behind: every request as its client saw it, and every step (`Engine.iterations`) recorded meanwhile."""

    played: list[_Played]
    steps: np.ndarray
    settings: EngineSettings

    def digests(self) -> dict[str, str]:
        """A digest of each calibration workload, by the name of its batch."""
        return {item.batch.name: item.digest() for item in _last_of_name(self.played)}


@dataclass(frozen=True)
class Round:
    """What one round left behind, as `Driven` has it of all."""

    played: list[_Played]
    steps: np.ndarray

    def played_as_text(self) -> str:
        """`played` as JSON, for `from_text`."""
        return json.dumps([asdict(item) for item in self.played])

    @classmethod
    def from_text(cls, played: str, steps: np.ndarray) -> Round:
        """The round that `played_as_text` and its steps were of."""
        return cls(
            [
                _Played(
                    CalibrationBatch(
                        name=item["batch"]["name"],
                        lengths=tuple((prompt, output) for prompt, output in item["batch"]["lengths"]),
                        injections=tuple(Injection(**injection) for injection in item["batch"]["injections"]),
                        one_leaves=item["batch"]["one_leaves"],
                        is_traffic=item["batch"]["is_traffic"],
                    ),
                    [_Request(**request) for request in item["started"]],
                    [_Request(**request) for request in item["injected"]],
                )
                for item in json.loads(played)
            ],
            steps,
        )


class Calibrator:
    """Drives the plan, round by round, so that other work can be done on the same engine between rounds.

    The engine must be idle at the beginning of a round and record its iterations.
    """

    def __init__(self, engine: Engine, scenario: Scenario) -> None:
        """Raises:
        ProfileError: a batch does not fit the engine.
        """
        self._engine, self._scenario = engine, scenario
        self._settings = engine.settings()
        self._batches = plan(scenario, self._settings.num_kv_blocks)
        self._rounds: list[Round] = []

    def take_over(self, done: Round) -> None:
        """Take the next round from an earlier process instead of playing it."""
        self._rounds.append(done)

    async def play_round(self, index: int, progress: Progress) -> Round:
        """Play round `index` of `ROUNDS`: its designed batches, then its traffic. The round does not depend on those before it.

        Raises:
            ProfileError: the engine did not run a batch to its end, or does not record its iterations.
        """
        driver, played = _Driver(self._engine, self._scenario, index), []
        mine = [batch for batch in self._batches if batch.name.startswith(_round_name(index))]
        flowing = traffic.segments(self._scenario, index)
        began = time.monotonic_ns()
        done, work = 0.0, [sum(prompt / 8 + output for prompt, output in batch.lengths) + 60 for batch in mine]
        total = sum(work) + _TRAFFIC_WORK * len(flowing)
        with quiet_interpreter(self._scenario.replay.realtime_priority):
            await driver.play(CalibrationBatch("warm-up", self._batches[0].lengths))
            for batch, share in zip(mine, work, strict=True):
                played.append(await driver.play(batch))
                done += share
                progress("calibration", (index + done / total) / ROUNDS)
        for segment in flowing:
            result = await traffic.play(self._engine, self._scenario, segment, index)
            played.append(_of_traffic(segment.name, result))
            done += _TRAFFIC_WORK
            progress("calibration", (index + done / total) / ROUNDS)
        ended, last = time.monotonic_ns(), played[-1]
        steps = await self._engine.iterations(max(r.last_token_ns for r in last.started + last.injected))
        if steps is None:
            raise ProfileError(
                "the engine does not record its iterations. Set replay.record_iterations=true and profile again."
            )
        scheduled = steps[:, IterationField.SCHEDULED_NS]
        self._rounds.append(Round(played, steps[(scheduled >= began) & (scheduled <= ended)]))
        return self._rounds[-1]

    def driven(self) -> Driven:
        """What all rounds left behind."""
        played = [item for one in self._rounds for item in one.played]
        return Driven(played, np.concatenate([one.steps for one in self._rounds]), self._settings)


def _of_traffic(name: str, result: ReplayResult) -> _Played:
    requests = []
    for item, seen in zip(result.planned, result.results, strict=True):
        times = seen.times or RequestTimes()
        requests.append(
            _Request(
                len(item.request.prompt_token_ids),
                item.request.num_decode_tokens,
                seen.send_ns or 0,
                list(seen.token_times_ns),
                times.first_token_ns or 0,
                times.last_token_ns or 0,
            )
        )
    lengths = tuple((request.num_prefill_tokens, request.num_decode_tokens) for request in requests)
    return _Played(CalibrationBatch(name, lengths, is_traffic=True), requests, [])


def overheads(driven: Driven, operators: OperatorModel, device_ns: DeviceSteps | None = None) -> pd.DataFrame:
    """The table `contracts.tables.Overheads` of what was driven.

    An engine that schedules step by step has `step` rows. One that schedules asynchronously has `host`, `process`, `turnaround` and `device` rows
    instead (`async_steps`); `device_ns` are the device times of its whole steps, which only a GPU's worker can tell.

    Raises:
        ProfileError: the engine did not run a batch as designed, or a term was not seen often enough.
    """
    settings = driven.settings
    if not settings.async_scheduling:
        return overheads_table(_collect(driven.played, driven.steps, settings, operators))
    captured = settings.cudagraph_capture_sizes
    parts = async_steps.collect(driven.steps, captured)
    rows = async_steps.rows(parts, device_ns or {}, operators, captured, settings.max_num_seqs)
    return overheads_table(_collect_ways(driven.played, driven.steps), rows)


def host_speed(driven: Driven, overheads: pd.DataFrame) -> pd.DataFrame:
    """The table `contracts.tables.HostSpeed`: how fast the host of an engine that schedules asynchronously was, step by step, beside the
    medians of its `overheads`."""
    samples = async_steps.host_samples(driven.steps, driven.settings.cudagraph_capture_sizes)
    return speed_trace(samples, HostModel(overheads, "overheads.csv"), _LONGEST_GAP_NS)


def _last_of_name(played: Sequence[_Played]) -> Iterable[_Played]:
    # Lone prompts repeat under one name within a round; they are one workload each, so they are numbered.
    seen: dict[str, int] = defaultdict(int)
    for item in played:
        seen[item.batch.name] += 1
        number = seen[item.batch.name]
        name = item.batch.name if number == 1 else f"{item.batch.name} repeat {number}"
        yield _Played(replace(item.batch, name=name), item.started, item.injected)


class _Driver:
    """Sends calibration batches to the engine, one at a time."""

    def __init__(self, engine: Engine, scenario: Scenario, round_index: int) -> None:
        self._engine = engine
        self._vocab_size = scenario.model.geometry.vocab_size
        self._timeout_s = scenario.replay.request_timeout_s
        self._rng = np.random.default_rng([scenario.profile.seed, 1, round_index])
        self._ids, self._round = count(), round_index

    async def play(self, batch: CalibrationBatch) -> _Played:
        """Send the batch to the idle engine and wait until all of it has ended."""
        await asyncio.sleep(_IDLE_PAUSE_S)
        prepared = [self._prepare(*lengths) for lengths in batch.lengths]
        injections = [(item, *self._prepare(item.num_prefill_tokens, 1)) for item in batch.injections]
        jitter = self._rng.uniform(size=len(injections))
        due: dict[int, asyncio.Event] = {item.after_tokens: asyncio.Event() for item, _, _ in injections}

        def seen(request: _Request) -> None:
            # Tokens may arrive several at a time when the client is held up, so a count may never be met exactly.
            for after_tokens, event in due.items():
                if len(request.token_times_ns) >= after_tokens:
                    event.set()

        async def run(request: _Request, wire: EngineRequest, watch: Callable[[_Request], None] | None = None) -> None:
            request.send_ns = time.monotonic_ns()
            try:
                async with asyncio.timeout(self._timeout_s):
                    async for message in self._engine.generate(wire):
                        request.token_times_ns += [message.received_ns] * len(message.token_ids)
                        if watch:
                            watch(request)
                        if message.times:
                            request.first_token_ns = message.times.first_token_ns or 0
                            request.last_token_ns = message.times.last_token_ns or 0
            except TimeoutError:
                raise ProfileError(
                    f"calibration {batch.name}: a request of {request.num_decode_tokens} tokens had {len(request.token_times_ns)} after "
                    f"replay.request_timeout_s {self._timeout_s:g} s. Raise it, or shorten the calibration (profile.calibration_steps)."
                ) from None
            if len(request.token_times_ns) != request.num_decode_tokens or not request.first_token_ns:
                raise ProfileError(
                    f"calibration {batch.name}: the engine yielded {len(request.token_times_ns)} tokens of {request.num_decode_tokens}, "
                    f"engine-side times {'present' if request.first_token_ns else 'absent'}. A calibration request must run to its end; check the engine's log."
                )

        async def inject(place: int) -> None:
            item, request, wire = injections[place]
            await due[item.after_tokens].wait()
            times = prepared[-1][0].token_times_ns
            # At any moment of a step, as a request that knows nothing of the engine would arrive.
            await asyncio.sleep(jitter[place] * (times[-1] - times[-2]) / 1e9)
            await run(request, wire)

        try:
            async with asyncio.TaskGroup() as group:
                for request, wire in prepared:
                    group.create_task(run(request, wire, seen if request is prepared[-1][0] else None))
                for place in range(len(injections)):
                    group.create_task(inject(place))
        except* GstError as failed:
            raise _first_of(failed) from None
        return _Played(batch, [request for request, _ in prepared], [request for _, request, _ in injections])

    def _prepare(self, num_prefill_tokens: int, num_decode_tokens: int) -> tuple[_Request, EngineRequest]:
        number = next(self._ids)
        tokens = self._rng.integers(0, self._vocab_size, num_prefill_tokens).tolist()
        wire = EngineRequest(f"calibration-{self._round}-{number}", tokens, num_decode_tokens, number)
        return _Request(num_prefill_tokens, num_decode_tokens), wire


def _first_of(failed: BaseExceptionGroup[GstError]) -> GstError:
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


# --- what was seen ----------------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Nanoseconds by composition. A step sample is (duration, context tokens, operator time)."""

    steps: dict[tuple[str, int, int, int], list[tuple[float, int, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    handover: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    delivery: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


def _collect(
    played: Sequence[_Played], steps: np.ndarray, settings: EngineSettings, operators: OperatorModel
) -> Samples:
    samples = Samples()
    completion = steps[:, IterationField.COMPLETION_NS]
    scheduled = steps[:, IterationField.SCHEDULED_NS]
    captured = settings.cudagraph_capture_sizes
    for item in (one for one in played if not one.batch.is_traffic):
        tokens_of_step: dict[int, list[int]] = defaultdict(list)
        prefilled: dict[int, _Request] = {}
        for played_request in item.started + item.injected:
            first = _step_of(played_request, completion, item)
            prefilled[first] = played_request
            for place, seen_ns in enumerate(played_request.token_times_ns):
                tokens_of_step[first + place].append(seen_ns)
        lone = item.batch.is_lone_prompt
        for step, seen in tokens_of_step.items():
            requests, tokens, decodes, context = (int(steps[step, column]) for column in _COMPOSITION)
            request = prefilled.get(step)
            # A batch that is filling or emptying, a prompt that met another one or was cut: no designed step.
            if decodes not in item.batch.designed_decodes or (requests, tokens) not in (
                (0, 0),
                (1, request.num_prefill_tokens if request else None),
            ):
                continue
            # An idle engine begins a step when it schedules it, a busy one when the step before is complete.
            began = scheduled[step] if lone else completion[step - 1]
            chunks = [(0, tokens)] if requests else []
            predicted = operators.step_ns(tokens + decodes, chunks, [context / decodes] * decodes if decodes else [])
            key = (step_kind(tokens, decodes, captured), requests, tokens, decodes)
            samples.steps[key].append((float(completion[step] - began), context, predicted))
            if lone or requests == 0:
                samples.delivery[decodes].append(float(np.median(seen) - completion[step]))
            if lone and request is not None:
                samples.handover[tokens].append(int(scheduled[step] - request.send_ns))
    return samples


def _collect_ways(played: Sequence[_Played], steps: np.ndarray) -> Samples:
    """The ways from driver to engine and back in an engine that schedules asynchronously: of every request that met an idle engine, and of
    every step's tokens."""
    samples = Samples()
    formed = steps[:, IterationField.SCHEDULED_NS]
    output, completion = steps[:, IterationField.OUTPUT_NS], steps[:, IterationField.COMPLETION_NS]
    for item in played:
        seen_of_step: dict[int, list[int]] = defaultdict(list)
        for request in item.started + item.injected:
            first = _step_of(request, completion, item)
            for place, seen_ns in enumerate(request.token_times_ns):
                seen_of_step[first + place].append(seen_ns)
            if (first == 0 or output[first - 1] < request.send_ns) and steps[
                first, IterationField.PREFILL_REQUESTS
            ] == 1:
                samples.handover[_to_grid(request.num_prefill_tokens)].append(int(formed[first] - request.send_ns))
        for step, seen in seen_of_step.items():
            decodes = int(steps[step, IterationField.DECODE_REQUESTS])
            samples.delivery[_to_grid(decodes)].append(float(np.median(seen) - output[step]))
    return samples


def _to_grid(count: int) -> int:
    """The power of two next to a count, so that traffic's many counts are seen often enough; 0 stays."""
    return 2 ** round(np.log2(count)) if count else 0


_COMPOSITION = (
    IterationField.PREFILL_REQUESTS,
    IterationField.PREFILL_TOKENS,
    IterationField.DECODE_REQUESTS,
    IterationField.CONTEXT_TOKENS,
)


def _step_of(request: _Request, completion: np.ndarray, item: _Played) -> int:
    """Index of the step that yielded the request's first token. Its later tokens come one a step from there.

    Raises:
        ProfileError: the records do not agree with that, so a step was lost or the request did not run in every step.
    """
    first, last = (
        int(np.searchsorted(completion, stamp - _STAMP_ROUNDING_NS))
        for stamp in (request.first_token_ns, request.last_token_ns)
    )
    if last >= len(completion) or last - first != request.num_decode_tokens - 1:
        raise ProfileError(
            f"calibration {item.batch.name}: a request with {request.num_decode_tokens} tokens took {last - first + 1} recorded engine steps. "
            "Steps were lost or the request was preempted; give the engine more KV blocks (engine.num_kv_blocks) and profile again."
        )
    return first


def overheads_table(samples: Samples, asynchronous: Sequence[dict[str, Any]] | None = None) -> pd.DataFrame:
    """The table `contracts.tables.Overheads`: one row per composition seen at least `MIN_SAMPLES` times, `handover` rows by
    prompt tokens (requests sent to an idle engine), and `delivery` rows by decode requests in the step (0: the first token of a lone prompt).

    Durations are per step. `operators_ns` is the median over the samples of what the operator tables say for each. `asynchronous` are the rows
    that stand where the `step` rows of a synchronous engine would.

    Raises:
        ProfileError: no composition of a step kind, no hand-over or no delivery was seen often enough.
    """
    rows: list[dict[str, Any]] = list(asynchronous or [])
    for key in sorted(samples.steps):
        found = np.array(samples.steps[key])
        if len(found) >= MIN_SAMPLES:
            composition = dict(zip(_STEP_COLUMNS, key, strict=True))
            rows.append(
                row("step", composition, found[:, 0], int(np.median(found[:, 1])), float(np.median(found[:, 2])))
            )
    steps_seen = {row["step_kind"] for row in rows if row["term"] in ("step", "host")}
    missing = {"decode"} - steps_seen or (set() if steps_seen & {"mixed", "mixed_eager"} else {"mixed"})
    for term, axis, seen in (
        ("handover", "num_prefill_tokens", samples.handover),
        ("delivery", "num_decode_requests", samples.delivery),
    ):
        often = {place: np.array(seen[place], dtype=float) for place in sorted(seen) if len(seen[place]) >= MIN_SAMPLES}
        for place, durations in often.items():
            composition = {"step_kind": "none", **dict.fromkeys(_STEP_COLUMNS[1:], 0), axis: place}
            rows.append(row(term, composition, durations, 0, 0.0))
        missing |= set() if often else {term}
    if missing:
        raise ProfileError(
            f"overheads.csv: {', '.join(sorted(missing))} seen fewer than {MIN_SAMPLES} times in the calibration. Raise profile.calibration_steps."
        )
    integers = {name: "Int64" for name in rows[0] if name not in ("term", "step_kind")}
    return pd.DataFrame(rows).astype({**integers, "term": "str", "step_kind": "str"})
