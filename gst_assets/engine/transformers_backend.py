"""The transformers backend: `protocol.Engine` on the library's own continuous batching, in a process of its own
(`transformers_worker`).

It is another engine than vLLM with another scheduler, and is labelled so: `backend` transformers, `scheduling_policy`
transformers_fifo. For platforms without vLLM; on a CPU its steps cost several times vLLM's, and its attention runs over
the whole batch's context at once.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine import transformers_worker
from gst_assets.engine.protocol import EngineDied, EngineRequest, IterationField, TokenMessage
from gst_assets.engine.settings_check import check_settings
from gst_assets.engine.transformers_worker import Asked, Cancelled, Failed, NewTokens, Ready, StepRows, StepsWanted
from gst_assets.errors import EngineError
from gst_assets.progress import Ticking
from gst_assets.scenario import CPU, Scenario, resolve_path

BACKEND = "transformers"
PROCESS_NAME = "TransformersEngine"
_STOP_S = 10.0
_RECORDS_WAIT_S = 5.0
_RECORDS_POLL_S = 0.02


def engine_environment(scenario: Scenario) -> dict[str, str]:
    """Environment variables the engine's process needs, to be set before torch is imported.

    Raises:
        EngineError: the scenario wants more CPU threads than this process may use.
    """
    values = {}
    references = [scenario.model.tokenizer, *filter(None, [scenario.model.checkpoint])]
    if all(resolve_path(reference).is_dir() for reference in references):
        values["HF_HUB_OFFLINE"] = "1"
    if scenario.hardware.hardware_id == CPU:
        threads, available = scenario.engine.cpu_threads, len(os.sched_getaffinity(0))
        if threads > available:
            raise EngineError(
                f"engine.cpu_threads {threads}: this process may use {available} CPUs. Lower engine.cpu_threads to"
                f" {available} or less."
            )
        values["OMP_NUM_THREADS"] = str(threads)
    return values


@asynccontextmanager
async def open_transformers_engine(scenario: Scenario) -> AsyncIterator[TransformersEngine]:
    """Start the library as `scenario` says and stop it at the end of the block. `engine_environment` must be set.

    Raises:
        EngineError: the scenario asks for what the library cannot do, it is not installed or does not start, or it runs
            with other settings.
    """
    _check_supported(scenario)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=transformers_worker.main, args=(theirs, scenario.model_dump_json()), name=PROCESS_NAME, daemon=True
    )
    process.start()
    theirs.close()
    engine: TransformersEngine | None = None
    try:
        with Ticking("starting transformers"):
            ready = await asyncio.to_thread(_wait_until_ready, ours, process, scenario.engine.start_timeout_s)
        # The library has no limit on a sequence; `run` keeps requests within the scenario's.
        settings = EngineSettings(
            backend=BACKEND,
            max_model_len=scenario.model.max_model_len,
            not_read_back=["max_model_len"],
            **ready.settings,
        )
        check_settings(scenario, settings)
        _check_room(scenario, settings)
        engine = TransformersEngine(
            ours, process, settings, _stop_token_ids(scenario, ready.eos_token_ids), scenario.replay.record_iterations
        )
        yield engine
    finally:
        if engine is not None:
            engine.shutdown()
        else:
            _stop(ours, process)


def _check_supported(scenario: Scenario) -> None:
    sampling = scenario.engine.sampling
    if sampling.temperature > 0:
        raise EngineError(
            "engine.sampling.temperature: the transformers library draws every request from one generator, so a request"
            " cannot have a seed of its own and repeats would differ. Set it to 0, or use backend vllm."
        )
    if scenario.engine.enable_prefix_caching:
        raise EngineError(
            "engine.enable_prefix_caching: the transformers library has no way to drop its cache between repeats. Set"
            " it to false, or use backend vllm."
        )


def _check_room(scenario: Scenario, settings: EngineSettings) -> None:
    """A request larger than the whole cache would end the library's generation loop, and every other request with
    it."""
    room = settings.num_kv_blocks * settings.block_size
    if room < scenario.model.max_model_len:
        raise EngineError(
            f"engine.num_kv_blocks {settings.num_kv_blocks}: blocks of {settings.block_size} tokens hold {room} tokens,"
            f" fewer than model.max_model_len {scenario.model.max_model_len}. Raise num_kv_blocks, or lower"
            " max_model_len."
        )


def _wait_until_ready(connection: Connection, process: Any, timeout_s: float) -> Ready:
    try:
        if not connection.poll(timeout_s):
            raise EngineError(
                f"the transformers engine was not ready within {timeout_s:g} s. Raise engine.start_timeout_s, or see"
                " the lines above."
            )
        found = connection.recv()
    except EOFError:
        process.join(_STOP_S)
        raise EngineError(
            f"the transformers engine did not start: {_ended(process)}. The lines above have the cause."
        ) from None
    if isinstance(found, Failed):
        raise EngineError(
            f"the transformers engine did not start: {found.reason}. It needs torch and transformers 5.19; with little"
            " memory lower engine.num_kv_blocks."
        )
    return found


def _ended(process: Any) -> str:
    code = process.exitcode
    return "its process ended" if code is None else f"its process ended with exit code {code}"


def _stop_token_ids(scenario: Scenario, eos_token_ids: tuple[int, ...]) -> list[int]:
    """Every id that ends a request: those of the scenario and, unless ignored, the model's end-of-sequence ids.

    Raises:
        EngineError: an id beyond the vocabulary, or a model without an end-of-sequence id.
    """
    sampling, vocabulary = scenario.engine.sampling, scenario.model.geometry.vocab_size
    ids = {*sampling.stop_token_ids, *range(sampling.stop_token_id_below)}
    if not sampling.ignore_eos:
        if not eos_token_ids:
            raise EngineError(
                f"engine.sampling.ignore_eos=false: model {scenario.model.name} has no end-of-sequence id. Set"
                " ignore_eos=true or name a checkpoint that has one."
            )
        ids |= set(eos_token_ids)
    if ids and max(ids) >= vocabulary:
        raise EngineError(
            f"engine.sampling: stop token id {max(ids)} is beyond the vocabulary of {vocabulary}. Use smaller stop"
            " token ids."
        )
    return sorted(ids)


class TransformersEngine:
    """The library, running. Opened by `open_transformers_engine` in the event loop that uses it."""

    backend = BACKEND

    def __init__(
        self,
        connection: Connection,
        process: Any,
        settings: EngineSettings,
        stop_token_ids: list[int],
        records_steps: bool,
    ) -> None:
        self._connection = connection
        self._process = process
        self._settings = settings
        self._stop_token_ids = stop_token_ids
        self._records_steps = records_steps
        self._open: dict[str, asyncio.Queue[tuple[int, NewTokens | None]]] = {}
        self._steps: asyncio.Future[bytes] | None = None
        self._death: str | None = None
        # A process that does not read must not hold up the event loop: messages wait in a queue, not in a blocked
        # write.
        self._outbox: queue.SimpleQueue[Asked | Cancelled | StepsWanted | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="transformers-requests", daemon=True).start()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._receive)

    def settings(self) -> EngineSettings:
        """What the library reported; `max_model_len` is the scenario's."""
        return self._settings

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        """See `protocol.Engine.generate`."""
        answers: asyncio.Queue[tuple[int, NewTokens | None]] = asyncio.Queue()
        self._open[request.request_id] = answers
        ended = False
        try:
            self._send(
                Asked(request.request_id, request.prompt_token_ids, request.num_decode_tokens, self._stop_token_ids)
            )
            while not ended:
                received_ns, answer = await answers.get()
                if answer is None:
                    raise EngineDied(self._death or "the transformers engine is gone")
                ended = answer.ended
                if answer.error is not None:
                    raise EngineError(f"the library ended the request: {answer.error}")
                if answer.token_ids:
                    yield TokenMessage(answer.token_ids, received_ns, answer.times)
        finally:
            self._open.pop(request.request_id, None)
            if not ended and self._death is None:
                self._send(Cancelled(request.request_id))

    async def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        self._send(Cancelled(request_id))

    async def forget(self) -> None:
        """See `protocol.Engine.forget`. Nothing is cached: block sharing is off."""

    async def iterations(self, until_ns: int) -> np.ndarray | None:
        """See `protocol.Engine.iterations`. A step is written down when the next turn of the loop begins, at once after
        its tokens left."""
        if not self._records_steps:
            return None
        rows = np.empty((0, len(IterationField)), dtype=np.int64)
        deadline = time.monotonic() + _RECORDS_WAIT_S
        while self._death is None:
            self._steps = self._loop.create_future()
            self._send(StepsWanted())
            try:
                found = await asyncio.wait_for(self._steps, _RECORDS_WAIT_S)
            except TimeoutError:
                break
            rows = np.frombuffer(found, dtype=np.int64).reshape(-1, len(IterationField))
            if rows[:, IterationField.COMPLETION_NS].max(initial=0) >= until_ns or time.monotonic() > deadline:
                break
            await asyncio.sleep(_RECORDS_POLL_S)
        return rows

    def shutdown(self) -> None:
        """See `protocol.Engine.shutdown`."""
        if not self._connection.closed:
            self._loop.remove_reader(self._connection.fileno())
            self._fail("the transformers engine was shut down")
        self._outbox.put(None)
        _stop(self._connection, self._process)

    def _send(self, message: Asked | Cancelled | StepsWanted) -> None:
        if self._death is not None:
            raise EngineDied(self._death)
        self._outbox.put(message)

    def _write(self) -> None:
        with suppress(OSError):  # the process is gone, which the reading side notices
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)

    def _receive(self) -> None:
        """Called by the event loop when something of the engine can be read."""
        try:
            while self._connection.poll():
                message = self._connection.recv()
                received_ns = time.monotonic_ns()
                if isinstance(message, Failed):
                    self._fail(f"the transformers engine's generation loop ended: {message.reason}")
                elif isinstance(message, StepRows):
                    if self._steps is not None and not self._steps.done():
                        self._steps.set_result(message.rows)
                else:
                    for answer in message:
                        if answer.request_id in self._open:  # else it was given up
                            self._open[answer.request_id].put_nowait((received_ns, answer))
        except (EOFError, OSError):
            self._receive_end()

    def _receive_end(self) -> None:
        if not self._connection.closed:
            self._loop.remove_reader(self._connection.fileno())
        self._process.join(0.5)  # for its exit code
        self._fail(f"the transformers engine died: {_ended(self._process)}")

    def _fail(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
        for answers in self._open.values():
            answers.put_nowait((time.monotonic_ns(), None))
        if self._steps is not None and not self._steps.done():
            self._steps.set_result(b"")


def _stop(connection: Connection, process: Any) -> None:
    connection.close()
    process.join(_STOP_S)
    if process.is_alive():
        process.kill()
        process.join()
