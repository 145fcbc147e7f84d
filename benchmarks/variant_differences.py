"""What each difference between `published` (Vidur as it ships) and `kernels` (the same sums with the adapter's
corrections) is worth.

    python benchmarks/variant_differences.py --scenario NAME|FILE.json --bundle DIR --runs DIR [DIR ...]
        [--percentiles 50 90] [--cache DIR]

The workload and the engine's settings are those of the real runs. Errors are to the median over the runs. First
table: errors with the corrections taken over one after the other, from `published` to `kernels`. Second: what each of
them alone changes, from `published`, in percentage points; exact steps from `published` on straight lines, since the
tables of Vidur's forests end at what it rounds to. --cache keeps forest tables from one call to the next.
Vidur's event loop throughout; without `published_forests.json` in the bundle Vidur's grid search runs first (some
twenty minutes of processor time).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from vidur.entities import Batch
from vidur.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry
from vidur.types import BaseIntEnum

from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets.errors import GstError
from gst_assets.scenario import EngineSection, Scenario, read_reference
from gst_assets.step_costs.bundle import Bundle, check_bundle, load_bundle
from gst_assets.step_costs.interpolation import Axis, Curve, Surface
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS
from gst_assets.vidur_adapter import published, registration
from gst_assets.vidur_adapter.predictor import shape_of_batch
from gst_assets.vidur_adapter.simulate import NUM_NULL_BLOCKS, simulate

METRICS = ("TTFT", "ITL", "E2E")
CORRECTIONS = {
    "interpolation": "forests -> straight lines between measured points",
    "lookup": "prompt attention looked up at tokens after the chunk -> before it",
    "exact": (
        "tokens rounded up to 8, chunks to 32, contexts to 256, a chunk of one token a decode -> all as they are,"
        " tokens as captured graphs pad them"
    ),
    "overhead": "10 % on the attention of more than one decode -> none",
    "scheduler": "1 % of KV blocks kept free, a decode needs a free block -> vLLM's use of blocks",
}
"""Every difference that reaches a request's time, in the order of the first table. `exact` needs `interpolation`. What
is left is the clock: float seconds against whole ns."""


class SwitchedType(BaseIntEnum):
    """Key under which this program registers with Vidur."""

    SWITCHED = 1200


@dataclass
class SwitchedConfig(published.PublishedConfig):
    """`published` with corrections taken over."""

    corrected: frozenset[str] = field(default_factory=frozenset)
    bundle: Any = None

    @staticmethod
    def get_type() -> Any:
        return SwitchedType.SWITCHED


class SwitchedPredictor(published.PublishedPredictor):
    """Vidur's lookups, each corrected where asked."""

    _config: SwitchedConfig

    def _train_models(self) -> Any:
        return None if "interpolation" in self._config.corrected else super()._train_models()

    def _load_predictions_from_hf(self) -> Any:
        if "interpolation" not in self._config.corrected:
            return super()._load_predictions_from_hf()
        self._is_cached = True
        return straight_lines(self._config.bundle)

    def get_execution_time(self, batch: Batch, pipeline_stage: int) -> Any:
        """Vidur's sum."""
        if "exact" in self._config.corrected:
            # Where Vidur keeps what it looks tokens up at.
            batch._total_num_q_tokens_rounded = self._config.bundle.graphs.padded(batch.total_num_q_tokens)
        return super().get_execution_time(batch, pipeline_stage)

    def _get_attention_kv_cache_save_execution_time(self, batch: Batch) -> float:
        # Vidur looks it up and leaves it out of its sum, so the straight lines have none.
        if "interpolation" in self._config.corrected:
            return 0.0
        return float(super()._get_attention_kv_cache_save_execution_time(batch))

    def _get_batch_decode_attention_params(self, batch: Batch) -> Any:
        if "exact" not in self._config.corrected:
            return super()._get_batch_decode_attention_params(batch)
        shape = shape_of_batch(batch)
        return shape.num_decodes, shape.decode_context_tokens / max(shape.num_decodes, 1)

    def _get_attention_prefill_execution_time(self, batch: Batch) -> float:
        if "exact" not in self._config.corrected:
            return float(super()._get_attention_prefill_execution_time(batch))
        table, after = self._predictions["attn_prefill"], "lookup" not in self._config.corrected
        return float(sum(table[context + new * after, new] for context, new in shape_of_batch(batch).chunks))

    def _get_batch_prefill_attention_params(self, batch: Batch) -> Any:
        if "lookup" not in self._config.corrected:
            return super()._get_batch_prefill_attention_params(batch)
        step = self._config.kv_cache_prediction_granularity
        tokens = zip(batch.num_q_tokens, batch.num_kv_tokens, strict=True)
        return [(-(-(kv - q) // step) * step, q) for q, kv in tokens if q != 1]


class Lines:
    """A table of Vidur's, by a tuple of numbers, whose entries lie on straight lines between measured points."""

    def __init__(self, at: Callable[..., float]) -> None:
        self._at = at

    def __getitem__(self, key: tuple[float, ...]) -> float:
        return self._at(*key)


def straight_lines(bundle: Bundle) -> dict[str, Lines]:
    """Tables of every operator, in ms per layer."""
    mlp, attention = bundle.mlp.sort_values("num_tokens"), bundle.attention
    axis = Axis("mlp.csv", "num_tokens", mlp["num_tokens"].tolist())
    found = {name: Lines(Curve(axis, mlp[f"time_stats.{name}.median"]).at) for name in PER_TOKEN_OPERATORS}
    for is_prefill, first, second in (
        (True, "kv_cache_size", "prefill_chunk_size"),
        (False, "batch_size", "kv_cache_size"),
    ):
        kind = "prefill" if is_prefill else "decode"
        rows = attention[attention["is_prefill"] == is_prefill]
        found[f"attn_{kind}"] = Lines(Surface(rows, first, second, f"time_stats.attn_{kind}.median", kind).at)
    return found


ExecutionTimePredictorRegistry.register(SwitchedType.SWITCHED, SwitchedPredictor)


def switched_ms(
    scenario: Scenario, bundle: Bundle, run: RealRun, corrected: frozenset[str], percentiles: Sequence[int], cache: Path
) -> np.ndarray:
    """Percentiles in ms of the simulation that takes over these corrections: shape (metrics x percentiles,)."""
    engine, model, reported = scenario.engine, scenario.model, bundle.meta.engine_settings
    lengths, arrivals = run.requests, run.requests["arrival_time_ns"]
    columns = (lengths["request_id"], arrivals, lengths["num_prefill_tokens"], lengths["num_decode_tokens"])
    rows = [(int(i), int(t), int(p), int(d)) for i, t, p, d in zip(*columns, strict=True)]
    num_kv_blocks = engine.num_kv_blocks or reported.num_kv_blocks
    limits = published.PublishedLimits(
        engine.block_size, num_kv_blocks, engine.max_num_seqs, engine.max_num_batched_tokens, model.max_model_len,
        engine.max_num_seqs, engine.max_num_batched_tokens, model.max_model_len, engine.tensor_parallel_size,
    )  # fmt: skip
    with registration.quiet():
        config = published.published_config(model.geometry, limits, rows, bundle.directory, cache)
        given = vars(config.execution_time_predictor_config)
        config.execution_time_predictor_config = SwitchedConfig(
            **given
            | {
                "corrected": corrected,
                "bundle": bundle,
                "attention_decode_batching_overhead_fraction": 0.0 if "overhead" in corrected else 0.1,
            }
        )
        if "scheduler" in corrected:
            cluster = config.cluster_config
            cluster.cache_config.watermark_blocks_fraction = 0.0
            cluster.replica_scheduler_config = registration.EngineSchedulerConfig(
                batch_size_cap=engine.max_num_seqs,
                chunk_size=engine.max_num_batched_tokens,
                num_null_blocks=NUM_NULL_BLOCKS,
            )
        simulator = published.PublishedSimulator(config)
        simulator.run()
    steps, tokens = simulator.history.steps(), simulator.history.tokens()
    times = steps.handed_out_ns[tokens.step]
    token_table = pd.DataFrame({"request_id": tokens.request_id, "time": times})
    by_request = token_table.groupby("request_id")["time"]
    arrived = pd.Series({i: t for i, t, _, _ in rows})
    ttft, gaps, e2e = by_request.first() - arrived, by_request.diff().dropna(), by_request.last() - arrived
    return _percentiles_ms((ttft, gaps, e2e), percentiles)


def tables_ms(requests: pd.DataFrame, tokens: pd.DataFrame, percentiles: Sequence[int]) -> np.ndarray:
    """Percentiles in ms of TTFT, gaps between tokens and end-to-end latency of a run's tables."""
    gaps = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"]
    e2e = requests["completion_time_ns"] - requests["arrival_time_ns"]
    return _percentiles_ms((requests["ttft_ns"], gaps, e2e), percentiles)


def _percentiles_ms(series: Sequence[pd.Series], percentiles: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.percentile(one.to_numpy(dtype=float) / 1e6, percentiles) for one in series])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", required=True, help="scenario name, or a resolved scenario")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="directories of real runs of one workload")
    parser.add_argument("--percentiles", type=int, nargs="+", default=[50, 90])
    parser.add_argument("--cache", type=Path, help="directory of forest tables; default: none are kept")
    arguments = parser.parse_args()
    if not all(0 < percent < 100 for percent in arguments.percentiles):
        parser.error("--percentiles: expected numbers between 0 and 100")
    with tempfile.TemporaryDirectory() as scratch:
        print("\n".join(report(arguments, arguments.cache or Path(scratch))))


def report(arguments: argparse.Namespace, cache: Path) -> list[str]:
    """Both tables."""
    runs = [load_run(directory, "real") for directory in arguments.runs]
    scenario = read_reference(arguments.scenario, [])
    engine = EngineSection.model_validate(runs[0].meta.params["engine"]).model_copy(
        update={"num_kv_blocks": runs[0].meta.engine_settings.num_kv_blocks}
    )
    scenario = scenario.model_copy(update={"engine": engine})
    bundle = load_bundle(arguments.bundle)
    check_bundle(bundle, scenario, runs[0].requests)
    percentiles = arguments.percentiles
    names = [f"{metric} P{percent}" for metric in METRICS for percent in percentiles]
    real = np.array([tables_ms(run.requests, run.tokens, percentiles) for run in runs])
    middle = np.median(real, axis=0)

    def error(*corrected: str) -> np.ndarray:
        found = switched_ms(scenario, bundle, runs[0], frozenset(corrected), percentiles, cache)
        return found / middle * 100 - 100

    heading = [f"| | {' | '.join(names)} |", f"| --- | {' | '.join('---:' for _ in names)} |"]
    lines = [
        f"{scenario.name}: {len(runs)} real runs of {len(runs[0].requests)} requests.",
        "",
        *heading,
        _row("real, median [ms]", middle, "{:.2f}"),
        _row("real, spread", (real.max(axis=0) - real.min(axis=0)) / middle * 100, "{:.1f} %"),
    ]
    start = error()
    lines.append(_row("`published`", start, "{:+.1f} %"))
    taken: list[str] = []
    for name, text in CORRECTIONS.items():
        taken.append(name)
        corrected = error(*taken)
        lines.append(_row(f"+ {text}", corrected, "{:+.1f} %"))
    kernels = _kernels_ms(scenario, bundle, runs[0], percentiles) / middle * 100 - 100
    if not np.allclose(kernels, corrected, rtol=0, atol=1e-3):
        sys.exit(
            f"error: `kernels` differs from `published` in more than CORRECTIONS names: {kernels - corrected} points"
        )
    lines += [_row("`kernels`", kernels, "{:+.1f} %"), "", *heading]
    for name, text in CORRECTIONS.items():
        needed = ("interpolation",) if name == "exact" else ()
        change = error(*needed, name) - (error(*needed) if needed else start)
        lines.append(_row(f"{'on straight lines' if needed else 'alone'}: {text}", change, "{:+.2f}"))
    return lines


def _row(label: str, values: np.ndarray, form: str) -> str:
    return f"| {label} | {' | '.join(form.format(value) for value in values)} |"


def _kernels_ms(scenario: Scenario, bundle: Bundle, run: RealRun, percentiles: Sequence[int]) -> np.ndarray:
    lengths = run.requests[["request_id", "prompt_id", "num_prefill_tokens", "num_decode_tokens"]]
    arrivals = run.requests["arrival_time_ns"]
    intervals = pd.DataFrame(
        {
            "request_id": run.requests["request_id"],
            "inter_arrival_ns": arrivals.diff().fillna(arrivals),
            "arrival_time_ns": arrivals,
        }
    )
    result = simulate(scenario, lengths, intervals, bundle, "kernels", cache_dir=None)
    return tables_ms(result.requests, result.tokens, percentiles)


if __name__ == "__main__":
    try:
        main()
    except GstError as error:
        sys.exit(f"error: {error}")
