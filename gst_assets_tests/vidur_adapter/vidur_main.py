"""`python -m vidur.main` on a bundle's CSV files and a trace of a workload's requests: what `published` is compared
with.

    python -m gst_assets_tests.vidur_adapter.vidur_main CASE.json RESULT.json [VIDUR_OPTION ...]

Shares no code with the adapter. Added to Vidur 0.0.26: a model and a device (it ships no Qwen3 and no H200), the CSV
files in place of its hub's, and a `random_state` for its forests. Everything else is Vidur's command line, its defaults
included. `CASE.json` has the paths `mlp`, `attention` and `all_reduce`, `num_devices`, `random_state`, the fields of the
`model`, the engine's limits, how far tables reach (`max_chunk`, `max_tokens`), and `requests` as (arrival in ns, prompt
tokens, output tokens). `RESULT.json` holds, per request in order of the trace, Vidur's times in seconds: arrived,
scheduled, prefill completed, completed.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import vidur.main
from sklearn.ensemble import RandomForestRegressor
from vidur.config.device_sku_config import BaseDeviceSKUConfig
from vidur.config.model_config import BaseModelConfig
from vidur.config.node_sku_config import BaseNodeSKUConfig
from vidur.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry
from vidur.execution_time_predictor.random_forrest_execution_time_predictor import RandomForrestExecutionTimePredictor
from vidur.types import ActivationType, BaseIntEnum, ExecutionTimePredictorType, NormType

MODEL, DATE = "measured/model", "2026-01-01"


class Measured(BaseIntEnum):
    """Names of what is added on Vidur's command line: `measured_device` and `measured_node`."""

    MEASURED_DEVICE = 2000
    MEASURED_NODE = 2001


def register(case: dict[str, Any], random_state: int) -> list[type]:
    """Give Vidur the model, the device, and the place of the CSV files. Returns classes that must live on: Vidur
    finds them among subclasses."""
    mlp, attention, all_reduce = case["mlp"], case["attention"], case["all_reduce"]

    class LocalForests(RandomForrestExecutionTimePredictor):
        def _get_input_files(self) -> tuple[str, str, str, str]:
            return mlp, attention, all_reduce, ""

        def _get_estimator(self) -> RandomForestRegressor:
            return RandomForestRegressor(random_state=random_state)

    ExecutionTimePredictorRegistry.unregister(ExecutionTimePredictorType.RANDOM_FORREST)
    ExecutionTimePredictorRegistry.register(ExecutionTimePredictorType.RANDOM_FORREST, LocalForests)
    model = {
        **case["model"],
        "use_gated_mlp": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "activation": ActivationType.SILU,
        "norm": NormType.RMS_NORM,
        "post_attn_norm": True,
    }
    return [
        _config(BaseModelConfig, model, get_name=lambda: MODEL),
        _config(
            BaseDeviceSKUConfig,
            {"fp16_tflops": 1000, "total_memory_gb": 1024},
            get_type=lambda: Measured.MEASURED_DEVICE,
        ),
        _config(
            BaseNodeSKUConfig, {"num_devices_per_node": case["num_devices"]}, get_type=lambda: Measured.MEASURED_NODE
        ),
    ]


def _config(base: type, values: dict[str, Any], **named: Any) -> type:
    fields = [(key, type(value), value) for key, value in values.items()]
    namespace = {name: staticmethod(function) for name, function in named.items()}
    return make_dataclass("Measured", fields, bases=(base,), namespace=namespace)


def options(case: dict[str, Any], trace: Path, scratch: Path) -> list[str]:
    """Vidur's command line: the case's settings, and nothing that changes what it computes."""
    given = {
        "replica_config_model_name": MODEL,
        "replica_config_device": "measured_device",
        "replica_config_network_device": "measured_node",
        "replica_config_num_pipeline_stages": 1,
        "replica_config_tensor_parallel_size": case["num_devices"],
        "cache_config_block_size": case["block_size"],
        "cache_config_num_blocks": case["num_kv_blocks"],
        "replica_scheduler_config_type": "sarathi",
        "sarathi_scheduler_config_batch_size_cap": case["max_num_seqs"],
        "sarathi_scheduler_config_chunk_size": case["max_num_batched_tokens"],
        "request_generator_config_type": "trace_replay",
        "trace_request_generator_config_trace_file": trace,
        "trace_request_generator_config_date": DATE,
        "trace_request_generator_config_prefill_scale_factor": 1,
        "trace_request_generator_config_decode_scale_factor": 1,
        "trace_request_generator_config_time_scale_factor": 1,
        "trace_request_generator_config_max_tokens": case["model"]["max_model_len"],
        "random_forrest_execution_time_predictor_config_prediction_max_batch_size": case["max_num_seqs"],
        "random_forrest_execution_time_predictor_config_prediction_max_prefill_chunk_size": case["max_chunk"],
        "random_forrest_execution_time_predictor_config_prediction_max_tokens_per_request": case["max_tokens"],
        "random_forrest_execution_time_predictor_config_cache_dir": scratch / "cache",
        "metrics_config_output_dir": scratch / "output",
    }
    line = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*line, "--no-metrics_config_write_metrics", "--no-metrics_config_enable_chrome_trace"]


def write_trace(case: dict[str, Any], path: Path) -> None:
    """The requests, given as (arrival in ns, prompt tokens, output tokens), as Vidur's trace reader wants them."""
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("Date", "Time", "PromptTokenCount", "CompletionTokenCount"))
        rows.writerows((DATE, repr(arrival / 1e9), prompt, output) for arrival, prompt, output in case["requests"])


def main() -> None:
    case_file, result_file, *more = sys.argv[1:]
    case = json.loads(Path(case_file).read_text())
    kept = register(case, case["random_state"])
    requests: list[Any] = []

    class Watched(vidur.main.Simulator):  # type: ignore[misc]
        def _init_event_queue(self) -> None:
            super()._init_event_queue()
            requests.extend(event._request for _, event in sorted(self._event_queue))

    vidur.main.Simulator = Watched
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.csv"
        write_trace(case, trace)
        sys.argv = ["vidur.main", *options(case, trace, Path(scratch)), *more]
        vidur.main.main()
    del kept
    requests.sort(key=lambda request: request.id)
    times = [[r.arrived_at, r.scheduled_at, r.prefill_completed_at, r.completed_at] for r in requests]
    Path(result_file).write_text(json.dumps(times))


if __name__ == "__main__":
    main()
