"""The formats that `gst import` reads, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gst_assets.importers import aiperf, blis, guidellm, inference_perf, llmservingsim, vidur_output, vllm_bench
from gst_assets.importers.results import Options, Results


@dataclass(frozen=True)
class Format:
    """One format: what it is in a few words, and its reader."""

    what: str
    read: Callable[[Path, Options], Results]


FORMATS: dict[str, Format] = {
    "vllm-bench": Format("vllm bench serve --save-detailed (JSON)", vllm_bench.read),
    "guidellm": Format("guidellm's report (JSON)", guidellm.read),
    "aiperf": Format("NVIDIA AIPerf's profile_export.jsonl", aiperf.read),
    "inference-perf": Format("inference-perf's per_request_lifecycle_metrics.json", inference_perf.read),
    "llmservingsim": Format("LLMServingSim's requests.jsonl (real) or sim.csv (simulated)", llmservingsim.read),
    "vidur": Format("stock Vidur's output folder (request_metrics.csv)", vidur_output.read),
    "blis": Format("BLIS (inference-sim) results (JSON)", blis.read),
}
