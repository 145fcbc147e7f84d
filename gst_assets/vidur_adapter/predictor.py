"""How long a simulated step takes: Vidur's predictor over a local bundle, alone (`kernels`) or with measured overheads (`calibrated`).

Both build on Vidur's own `RandomForrestExecutionTimePredictor` and its sum over operators: classes here derive from Vidur's, so Vidur (and with it
scikit-learn) is imported at the top. Never loaded with the definitions: `simulate` imports it inside a function, and `test_definitions` would see it.
Operator tables belong to `tables`, overheads to `overheads`, who runs when to `registration`.

Corrected against Vidur 0.0.26: the prefill table is looked up at tokens before the chunk, which is what a profile's `kv_cache_size` means
(Vidur looks at tokens after it); batching overhead fractions are 0; forests have a seed. Vidur's sum has no term for embedding, final norm,
LM head, sampling, the KV-cache write and the host; `calibrated` has them in its overheads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from vidur.config import RandomForrestExecutionTimePredictorConfig, ReplicaConfig
from vidur.config.config import CacheConfig
from vidur.entities import Batch
from vidur.execution_time_predictor.base_execution_time_predictor import BaseExecutionTimePredictor
from vidur.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry
from vidur.execution_time_predictor.random_forrest_execution_time_predictor import RandomForrestExecutionTimePredictor

from gst_assets.errors import SimulationError
from gst_assets.profiling.operator_model import OperatorModel
from gst_assets.vidur_adapter.async_costs import AsynchronousStepCosts, HostSpeedTrace
from gst_assets.vidur_adapter.operator_times import (
    ExactOperators,
    OperatorTimes,
    StepShape,
    VidurOperators,
    decode_run_ns,
    shape_of,
)
from gst_assets.vidur_adapter.overheads import Composition, Piece, StepCosts, StepOverheads
from gst_assets.vidur_adapter.registration import AdapterType
from gst_assets.vidur_adapter.steps import CapturedGraphs
from gst_assets.vidur_adapter.tables import (
    Table,
    TableCache,
    content_key,
    decode_surface,
    interpolated_tables,
    prefill_surface,
)

FOREST = {"n_estimators": 250, "max_depth": 16, "min_samples_split": 2}
"""One candidate of Vidur's grid search. Its whole search is 27 candidates in 10 folds for each of 12 operators: a quarter of an hour, for
tables of a few hundred points."""


class StepTime(NamedTuple):
    """What Vidur reads of a step: integer nanoseconds, so that its clock counts exactly."""

    total_time: int
    model_time: int


@dataclass
class KernelsConfig(RandomForrestExecutionTimePredictorConfig):
    """A bundle's tables and how to read between their points."""

    mlp: Any = None
    attention: Any = None
    interpolate: bool = True
    seed: int = 0
    table_cache: Path | None = None
    versions: str = ""

    @staticmethod
    def get_type() -> Any:
        return AdapterType.KERNELS


@dataclass
class CalibratedConfig(KernelsConfig):
    """The same with the bundle's measured overheads. `overheads_name` is named in errors. `host_speed` is the trace of an asynchronous engine's
    host; None: it always takes its median."""

    overheads: Any = None
    overheads_name: str = "overheads.csv"
    graphs: Any = None
    max_num_batched_tokens: int = 0
    asynchronous: bool = False
    host_speed: Any = None

    @staticmethod
    def get_type() -> Any:
        return AdapterType.CALIBRATED


class KernelsPredictor(RandomForrestExecutionTimePredictor):
    """Operator times only, looked up as Vidur does: tokens rounded up to 8, prefill chunks to 32, contexts to the KV granularity, decode
    context averaged over the batch."""

    def __init__(
        self, predictor_config: KernelsConfig, replica_config: ReplicaConfig, cache_config: CacheConfig
    ) -> None:
        # Vidur's initialiser asks the hub for tables, swallows what goes wrong with that, and creates folders. What else it sets is here.
        BaseExecutionTimePredictor.__init__(self, predictor_config, replica_config, cache_config)
        self._attention_decode_batching_overhead_fraction = 0.0
        self._max_tokens = predictor_config.prediction_max_tokens_per_request
        self._is_multi_node = False
        self.steps_outside_calibration = 0
        started = time.perf_counter()
        self._predictions = self._tables()
        self.table_seconds = time.perf_counter() - started
        self.operators: OperatorTimes = self._operator_times()

    def get_execution_time(self, batch: Batch, pipeline_stage: int) -> StepTime:  # noqa: ARG002 - Vidur's signature
        """Step time of `batch`."""
        step_ns = round(self._operators_ns(batch))
        return StepTime(step_ns, step_ns)

    # What follows is used by `direct_loop` in place of `get_execution_time`, and equals it.

    def step_ns(self, shape: StepShape) -> int:
        """Step time of a batch of this shape."""
        return round(self.operators.ns(shape))

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """`step_ns` of consecutive steps of the same decodes (see `operator_times.decode_run_ns`)."""
        return decode_run_ns(
            lambda context: self.operators.decode_piece(num_decodes, context), num_decodes, context_tokens, num_steps
        )

    def is_outside(self, step: Composition) -> bool:  # noqa: ARG002 - nothing is calibrated here
        """Whether the step's composition lies outside what was calibrated."""
        return False

    def _operator_times(self) -> OperatorTimes:
        return VidurOperators(
            self._predictions,
            self._num_layers_per_pipeline_stage,
            lambda num_tokens: -(-num_tokens // 8) * 8,
            self._config.kv_cache_prediction_granularity,
        )

    def _operators_ns(self, batch: Batch) -> float:
        """Vidur's own sum over operators and layers, which is in seconds."""
        return float(super().get_execution_time(batch, 0).total_time) * 1e9

    def _tables(self) -> dict[str, Table]:
        config = self._config
        if config.interpolate:
            self._model = OperatorModel(config.mlp, config.attention, self._num_layers_per_pipeline_stage)
            return interpolated_tables(self._model)
        cache = None
        if config.table_cache is not None:
            settings = {
                "forest": FOREST,
                "seed": config.seed,
                "versions": config.versions,
                "max_tokens": self._max_tokens,
                "max_batch_size": config.prediction_max_batch_size,
                "max_prefill_chunk_size": config.prediction_max_prefill_chunk_size,
                "kv_cache_granularity": config.kv_cache_prediction_granularity,
            }
            key = content_key({"mlp": config.mlp, "attention": config.attention}, settings)
            cache = TableCache(config.table_cache, key)
            stored = cache.load()
            if stored is not None:
                return stored
        tables: dict[str, Table] = self._predict_from_models(self._train_models())
        if cache is not None:
            cache.store(tables)
        return tables

    # What follows overrides Vidur's hooks; `_train_models` and `_predict_from_models` themselves are Vidur's.

    def _get_input_files(self) -> tuple[str, str, str, str]:
        return "mlp", "attention", "", ""

    def _read_input_file(self, file_path: str) -> pd.DataFrame:
        frame: pd.DataFrame = getattr(self._config, file_path)
        return frame.astype(dict.fromkeys(frame.select_dtypes("Int64").columns, "int64"))

    def _load_attention_df(self, file_path: str) -> pd.DataFrame:
        return self._read_input_file(file_path)

    def _train_model(
        self, model_name: str, model_type: Any, df: pd.DataFrame, feature_cols: list[str], target_col: str
    ) -> Any:
        from sklearn.ensemble import RandomForestRegressor

        del model_name, model_type
        forest = RandomForestRegressor(**FOREST, random_state=self._config.seed, n_jobs=1)
        return forest.fit(df[feature_cols], df[target_col])

    def _get_model_prediction(self, model_name: str, model_type: Any, model: Any, X: pd.DataFrame) -> Table:
        del model_name, model_type
        return dict(zip(map(tuple, X.to_numpy().tolist()), model.predict(X).tolist(), strict=True))

    def _get_batch_prefill_attention_params(self, batch: Batch) -> list[tuple[float, int]]:
        """(context rounded up, chunk) of every sequence with more than one new token."""
        step = self._config.kv_cache_prediction_granularity
        return [
            (-(-(kv - q) // step) * step, q)
            for q, kv in zip(batch.num_q_tokens, batch.num_kv_tokens, strict=True)
            if q != 1
        ]

    def _get_attention_kv_cache_save_execution_time(self, batch: Batch) -> float:  # noqa: ARG002 - Vidur's signature
        return 0.0  # Vidur's sum leaves this operator out


class CalibratedPredictor(KernelsPredictor):
    """Operator times plus what the engine was measured to need beyond them, so that a calibrated composition takes its measured time.

    Tokens are taken as they are, or padded to captured graph sizes; with interpolation contexts and chunks are exact too, and a request
    counts as prefill by its state rather than by its number of new tokens.
    """

    def __init__(
        self, predictor_config: CalibratedConfig, replica_config: ReplicaConfig, cache_config: CacheConfig
    ) -> None:
        self._graphs: CapturedGraphs = predictor_config.graphs
        super().__init__(predictor_config, replica_config, cache_config)
        self.step_costs: StepCosts | None = None
        """Costs under asynchronous scheduling; then a step has no time of its own, and `get_execution_time` is not for use."""
        kinds = self._graphs.reachable_kinds(predictor_config.max_num_batched_tokens)
        where = predictor_config.overheads_name
        if predictor_config.asynchronous:
            table = predictor_config.host_speed
            speed = None if table is None else HostSpeedTrace(table, predictor_config.seed)
            self.step_costs = AsynchronousStepCosts(
                predictor_config.overheads, speed, self.operators, self._graphs, kinds, where
            )
        else:
            self._overheads = StepOverheads(
                predictor_config.overheads, lambda s: self.operators.ns(shape_of(s)), self._graphs, kinds, where
            )

    def get_execution_time(self, batch: Batch, pipeline_stage: int) -> StepTime:  # noqa: ARG002 - Vidur's signature
        """Step time of `batch`.

        Raises:
            SimulationError: overheads between calibrated points outweigh the operators, so that the step would take no time.
        """
        step = composition_of(batch)
        operators_ns = self._operators_ns(batch)
        self.steps_outside_calibration += self.is_outside(step)
        return StepTime(self._total_ns(step, operators_ns), round(operators_ns))

    def step_ns(self, shape: StepShape) -> int:
        """As `get_execution_time`, with its errors."""
        return self._total_ns(shape.composition, self.operators.ns(shape))

    def decode_run_ns(self, num_decodes: int, context_tokens: int, num_steps: int) -> list[int]:
        """See `KernelsPredictor.decode_run_ns`."""

        def piece_at(context: float) -> Piece:
            operators = self.operators.decode_piece(num_decodes, context)
            beyond = self._overheads.decode_piece(num_decodes, context)
            return Piece(lambda at: operators.at(at) + beyond.at(at), min(operators.until, beyond.until))

        return decode_run_ns(piece_at, num_decodes, context_tokens, num_steps)

    def is_outside(self, step: Composition) -> bool:
        """See `KernelsPredictor.is_outside`."""
        return self._overheads.is_outside(step)

    def _total_ns(self, step: Composition, operators_ns: float) -> int:
        overhead_ns = self._overheads.at(step)
        step_ns = round(operators_ns + overhead_ns)
        if step_ns <= 0:
            raise SimulationError(
                f"a step of {step} would take {step_ns} ns: operators {operators_ns:.0f} ns, overhead {overhead_ns:.0f} ns "
                f"({self._config.overheads_name}). Calibrate at compositions closer to this one."
            )
        return step_ns

    def _operator_times(self) -> OperatorTimes:
        layers, padded = self._num_layers_per_pipeline_stage, self._graphs.padded
        if not self._config.interpolate:
            return VidurOperators(self._predictions, layers, padded, self._config.kv_cache_prediction_granularity)
        surfaces = decode_surface(self._model), prefill_surface(self._model)
        return ExactOperators(self._predictions, layers, padded, *surfaces)

    def _operators_ns(self, batch: Batch) -> float:
        # Vidur looks per-token operators up at this attribute, which it rounds up to 8.
        batch._total_num_q_tokens_rounded = self._graphs.padded(batch._total_num_q_tokens)
        return super()._operators_ns(batch)

    def _get_batch_decode_attention_params(self, batch: Batch) -> tuple[int, float]:
        if not self._config.interpolate:
            return super()._get_batch_decode_attention_params(batch)
        contexts = [context_tokens(r) for r in batch._requests if r._is_prefill_complete]
        return len(contexts), sum(contexts) / len(contexts) if contexts else 0.0

    def _get_batch_prefill_attention_params(self, batch: Batch) -> list[tuple[float, int]]:
        if not self._config.interpolate:
            return super()._get_batch_prefill_attention_params(batch)
        return [
            (context_tokens(r), q)
            for r, q in zip(batch._requests, batch._num_q_tokens, strict=True)
            if not r._is_prefill_complete
        ]

    def _get_attention_prefill_execution_time(self, batch: Batch) -> float:
        if not self._config.interpolate:
            return float(super()._get_attention_prefill_execution_time(batch))
        table = self._predictions["attn_prefill"]
        return sum(table[key] for key in self._get_batch_prefill_attention_params(batch))


def context_tokens(request: Any) -> int:
    """KV tokens of the request present before its next step. Vidur counts a token as processed once it is sampled, a step before its KV."""
    return int(request._num_processed_tokens) - int(request._is_prefill_complete)


def composition_of(batch: Batch) -> Composition:
    """What a batch holds, before it has run."""
    return shape_of_batch(batch).composition


def shape_of_batch(batch: Batch) -> StepShape:
    """What a batch holds, before it has run, its prefills in batch order."""
    decodes = [r for r in batch._requests if r._is_prefill_complete]
    return StepShape(
        len(decodes),
        sum(map(context_tokens, decodes)),
        [
            (context_tokens(r), q)
            for r, q in zip(batch._requests, batch._num_q_tokens, strict=True)
            if not r._is_prefill_complete
        ],
    )


ExecutionTimePredictorRegistry.register(AdapterType.KERNELS, KernelsPredictor)
ExecutionTimePredictorRegistry.register(AdapterType.CALIBRATED, CalibratedPredictor)
