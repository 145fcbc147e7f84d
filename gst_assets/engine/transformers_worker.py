"""The process of the transformers backend: the model, the library's continuous batching, and the messages that pass
between it and the driver.

The library (transformers 5.19, `generation.continuous_batching`) keeps its generation loop in a thread; here it has a
process, so that it does not share an interpreter with the pacer and the client. Its scheduler is extended by a
subclass, registered under a name of its own; nothing of the library is replaced. torch and transformers are imported
when the process begins.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

from gst_assets.engine.protocol import IterationField, RequestTimes
from gst_assets.engine.served_model import served_config
from gst_assets.scenario import Scenario, resolve_path
from gst_assets.step_costs.shapes import attention_pairs

SCHEDULING_POLICY = "transformers_fifo"
_TRACED = "gst_traced_fifo"
_POLL_S = 0.2
_WEIGHTS_SEED = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """Sent once: what the library runs with, under the names of `EngineSettings`, and the model's end-of-sequence
    ids."""

    settings: dict[str, Any]
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine did not start, or its generation loop ended. Nothing comes after it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the library. It ends at any of `stop_token_ids`."""

    request_id: str
    prompt_token_ids: Sequence[int]
    num_decode_tokens: int
    stop_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The driver gave a request up."""

    request_id: str


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens of one request that are new since its last answer. `times` comes with the last one."""

    request_id: str
    token_ids: Sequence[int]
    ended: bool
    error: str | None
    times: RequestTimes | None


@dataclass(frozen=True, slots=True)
class StepsWanted:
    """The driver asks for the steps recorded so far; the reply is `StepRows`."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """Rows of `len(IterationField)` native int64, in order of scheduling."""

    rows: bytes


def main(connection: Connection, scenario_json: str) -> None:
    """Run until the driver closes the connection or the library's generation loop ends."""
    scenario = Scenario.model_validate_json(scenario_json)
    try:
        manager = _start(scenario)
        connection.send(Ready(_read_back(manager), _eos_token_ids(manager.model)))
    except Exception as error:  # the library raises whatever went wrong inside it
        connection.send(Failed(f"{type(error).__name__}: {' '.join(str(error).split()):.500}"))
        return
    lock = threading.Lock()
    outputs = threading.Thread(target=_forward, args=(manager, connection, lock), name="outputs", daemon=True)
    outputs.start()
    with suppress(EOFError, OSError):  # the driver let go, or is gone
        while True:
            message = connection.recv()
            if isinstance(message, Asked):
                _add(manager, message, connection, lock)
            elif isinstance(message, Cancelled):
                manager.cancel_request(message.request_id)
            elif isinstance(message, StepsWanted):
                with lock:
                    connection.send(StepRows(bytes(manager.batch_processor.scheduler.rows)))
    os._exit(
        0
    )  # the library's thread may be in the middle of a step, and would keep the process for as long as it has requests


# --- starting ---------------------------------------------------------------------------------------------------------


def _start(scenario: Scenario) -> Any:
    """The library's manager with its generation loop running and its cache allocated."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

    engine = scenario.engine
    torch.set_num_threads(engine.cpu_threads)
    SCHEDULER_MAPPING[_TRACED] = _traced_scheduler()
    manager = _model(scenario).init_continuous_batching(
        # Greedy; -1 is the library's word for no end-of-sequence id, each request brings its own.
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=engine.block_size,
            num_blocks=engine.num_kv_blocks,
            max_batch_tokens=engine.max_num_batched_tokens,
            max_requests_per_batch=engine.max_num_seqs,
            allow_block_sharing=engine.enable_prefix_caching,
            use_async_batching=engine.async_scheduling,
            use_cuda_graph=not engine.enforce_eager,
            scheduler_type=_TRACED,
            auto_switch_to_flash=False,  # would fetch a kernel from the hub
        ),
    )
    manager.start()
    deadline = time.monotonic() + engine.start_timeout_s
    while manager.batch_processor is None:  # built by the loop's thread
        if (error := manager.background_thread_status.fatal_error) is not None:
            raise error
        if time.monotonic() > deadline:
            raise TimeoutError(f"the generation loop was not ready within {engine.start_timeout_s:g} s")
        time.sleep(0.01)
    return manager


def _model(scenario: Scenario) -> Any:
    """The checkpoint, or random weights of the scenario's model, on this scenario's device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = scenario.model
    options: dict[str, Any] = {
        "dtype": getattr(torch, model.dtype),
        "attn_implementation": "sdpa",
        "trust_remote_code": False,
    }
    if model.checkpoint:
        directory = resolve_path(model.checkpoint)
        built = AutoModelForCausalLM.from_pretrained(directory if directory.is_dir() else model.checkpoint, **options)
    else:
        values = served_config(model)
        torch.manual_seed(_WEIGHTS_SEED)
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values), **options)
    return built.to("cpu" if scenario.hardware.hardware_id == "cpu" else "cuda").eval()


def _read_back(manager: Any) -> dict[str, Any]:
    """What the running library says of itself. It has no limit of its own on a sequence, so `max_model_len` is not
    among it."""
    processor, config = manager.batch_processor, manager.continuous_batching_config
    cache, scheduler, model = processor.cache, processor.scheduler, manager.model
    (page_size,) = {allocator.tokens_per_page for allocator in cache.cache_allocators.values()}
    return {
        "engine_version": f"transformers {metadata.version('transformers')}, torch {metadata.version('torch')}",
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_num_seqs": scheduler.max_requests_per_batch,
        "max_num_batched_tokens": processor.max_batch_tokens,
        "block_size": page_size,
        "num_kv_blocks": cache.num_blocks,
        # `Scheduler._schedule_request` cuts a prompt at the token budget; there is no switch
        "enable_chunked_prefill": True,
        "enable_prefix_caching": cache.use_prefix_sharing,
        "async_scheduling": processor.use_async_batching,
        "enforce_eager": not any(config.cuda_graph_booleans),
        "attention_backend": f"{model.config._attn_implementation} over the paged cache",
        "scheduling_policy": SCHEDULING_POLICY,
        # Below this share of free blocks the library starts no further prompt while others run.
        "kv_safety_margin": scheduler.safety_margin,
    }


def _eos_token_ids(model: Any) -> tuple[int, ...]:
    found = model.generation_config.eos_token_id
    found = model.config.eos_token_id if found is None else found
    return () if found is None else tuple([found] if isinstance(found, int) else found)


# --- running ----------------------------------------------------------------------------------------------------------


def _add(manager: Any, asked: Asked, connection: Connection, lock: threading.Lock) -> None:
    added = manager.add_request(
        list(asked.prompt_token_ids),
        request_id=asked.request_id,
        max_new_tokens=asked.num_decode_tokens,
        streaming=True,
        record_timestamps=True,
        eos_token_id=list(asked.stop_token_ids),
    )
    if added is None:
        reason = manager.background_thread_status.can_accept_new_requests() or "the library did not take the request"
        with lock:
            connection.send([NewTokens(asked.request_id, (), True, reason, None)])


class _Progress:
    """What was forwarded of one request, and the stamps of its first token: a request computed again has new ones."""

    __slots__ = ("count", "first_token_ns", "queued_ns", "scheduled_ns")

    def __init__(self, output: Any) -> None:
        self.count = 0
        self.queued_ns = _to_ns(output.created_time)
        self.scheduled_ns = _to_ns(output.lifespan[0])
        self.first_token_ns = _to_ns(output.timestamps[0]) if output.timestamps else None


def _forward(manager: Any, connection: Connection, lock: threading.Lock) -> None:
    """Send the library's outputs on, those that are there together in one message."""
    open_requests: dict[str, _Progress] = {}
    while True:
        output = manager.get_result(timeout=_POLL_S)
        if output is None:
            status = manager.background_thread_status
            if status.fatal_error is None and manager.is_running():
                continue
            error = status.fatal_error
            reason = "its generation loop ended" if error is None else f"{type(error).__name__}: {error}"
            with lock:
                connection.send(Failed(" ".join(reason.split())))
            return
        answers = []
        while output is not None:
            answers.append(_answer(output, open_requests, manager))
            output = manager.get_result(timeout=0)
        with lock:
            connection.send(answers)


def _answer(output: Any, open_requests: dict[str, _Progress], manager: Any) -> NewTokens:
    name, ended = output.request_id, output.is_finished()
    progress = open_requests.setdefault(name, _Progress(output))
    new = output.generated_tokens[progress.count :]
    progress.count += len(new)
    times = None
    if ended:
        del open_requests[name]
        times = RequestTimes(
            queued_ns=progress.queued_ns,
            scheduled_ns=progress.scheduled_ns,
            first_token_ns=progress.first_token_ns,
            last_token_ns=_to_ns(output.timestamps[-1]) if output.timestamps else None,
            num_preemptions=manager.batch_processor.scheduler.times_queued.pop(name, 1) - 1,
        )
    return NewTokens(name, new, ended, output.error, times)


def _to_ns(seconds: float) -> int | None:
    """A stamp of the library: float seconds of `time.perf_counter`, on Linux the clock of `time.monotonic`; negative
    where it has none."""
    return round(seconds * 1e9) if seconds > 0 else None


def _traced_scheduler() -> type:
    """The library's FIFO scheduler, which also records each step and how often a request was queued."""
    from transformers.generation.continuous_batching.scheduler import FIFOScheduler

    class TracedFifo(FIFOScheduler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.rows = array("q")
            self.times_queued: Counter[str] = Counter()
            self._open_row: list[int] | None = None
            super().__init__(*args, **kwargs)

        def add_waiting_request(self, state: Any) -> None:
            # Again for a request whose blocks were taken away: its prompt and tokens are then computed anew.
            self.times_queued[state.request_id] += 1
            super().add_waiting_request(state)

        def schedule_batch(self, token_budget: int, cache_budget: int) -> tuple[Any, bool, int, int]:
            began_ns = time.monotonic_ns()
            scheduled = super().schedule_batch(token_budget, cache_budget)
            ended_ns = time.monotonic_ns()
            if scheduled[0]:
                self._open_row = self._row(scheduled[0], began_ns)
                self._open_row[IterationField.TRACING_NS] = time.monotonic_ns() - ended_ns
            return scheduled

        def clear_cancelled_requests(self) -> list[Any]:
            # The loop's first call after a step: the step's tokens were handed out just before.
            if self._open_row is not None:
                self._open_row[IterationField.COMPLETION_NS] = time.monotonic_ns()
                self.rows.extend(self._open_row)
                self._open_row = None
            return super().clear_cancelled_requests()

        def _row(self, scheduled: Sequence[Any], began_ns: int) -> list[int]:
            prefills = [item.query_length for item in scheduled if item.state.generated_len() == 0]
            row = [0] * len(IterationField)
            row[IterationField.SCHEDULED_NS] = began_ns
            row[IterationField.PREFILL_REQUESTS] = len(prefills)
            row[IterationField.PREFILL_TOKENS] = sum(prefills)
            row[IterationField.DECODE_REQUESTS] = len(scheduled) - len(prefills)
            # A request's position moves on only when the batch's tensors are made, after this.
            row[IterationField.CONTEXT_TOKENS] = sum(item.state.position_offset for item in scheduled)
            contexts = [item.state.position_offset for item in scheduled if item.state.generated_len() == 0]
            row[IterationField.PREFILL_CONTEXT_TOKENS] = sum(contexts)
            row[IterationField.ATTENTION_PAIRS] = sum(map(attention_pairs, contexts, prefills))
            row[IterationField.RUNNING] = len(self.active_requests)
            row[IterationField.WAITING] = len(self.waiting_requests)
            return row

    return TracedFifo
