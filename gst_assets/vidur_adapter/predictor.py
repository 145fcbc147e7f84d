"""The step times of `kernels` as a predictor of Vidur's, so that Vidur's own event loop can run them: the reference
that `core` must equal.

The class derives from Vidur's, so Vidur (and with it scikit-learn) is imported at the top. Never loaded with the
definitions: `simulate` imports it inside a function, and `test_definitions` would see it. What a step's operators add
up to belongs to `step_costs.operators`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from vidur.config import RandomForrestExecutionTimePredictorConfig, ReplicaConfig
from vidur.config.config import CacheConfig
from vidur.entities import Batch
from vidur.execution_time_predictor.base_execution_time_predictor import BaseExecutionTimePredictor
from vidur.execution_time_predictor.execution_time_predictor_registry import ExecutionTimePredictorRegistry
from vidur.execution_time_predictor.random_forrest_execution_time_predictor import RandomForrestExecutionTimePredictor

from gst_assets.step_costs.shapes import Composition, StepShape
from gst_assets.vidur_adapter.registration import AdapterType


class StepTime(NamedTuple):
    """What Vidur reads of a step: integer nanoseconds, so that its clock counts exactly."""

    total_time: int
    model_time: int


@dataclass
class OperatorSumConfig(RandomForrestExecutionTimePredictorConfig):
    """`operators` is a `step_costs.operators.OperatorTimes`."""

    operators: Any = None

    @staticmethod
    def get_type() -> Any:
        return AdapterType.OPERATOR_SUM


class OperatorSumPredictor(RandomForrestExecutionTimePredictor):
    """Operator times alone, at exact contexts and chunks."""

    def __init__(
        self, predictor_config: OperatorSumConfig, replica_config: ReplicaConfig, cache_config: CacheConfig
    ) -> None:
        # Vidur's initialiser asks the hub for tables, trains forests and creates folders.
        BaseExecutionTimePredictor.__init__(self, predictor_config, replica_config, cache_config)

    def get_execution_time(self, batch: Batch, pipeline_stage: int) -> StepTime:  # noqa: ARG002 - Vidur's signature
        """Step time of `batch`."""
        step_ns = self._config.operators.step_ns(shape_of_batch(batch))
        return StepTime(step_ns, step_ns)


def context_tokens(request: Any) -> int:
    """KV tokens of the request present before its next step. Vidur counts a token as processed once it is sampled, a
    step before its KV."""
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


ExecutionTimePredictorRegistry.register(AdapterType.OPERATOR_SUM, OperatorSumPredictor)
