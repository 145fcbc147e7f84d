"""The profiler's command with one addition inside the worker: the timed walk is compared with the model's own forward
pass.

Run as a module by `test_measure_bundle`; the result is in the bundle's run_meta.json under `worker`. With `DIES` in the
environment it is killed, with all its processes, when the first block of operators is kept.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from gst_assets.profiling import measure_bundle
from gst_assets.profiling.partial import PartialProfile
from gst_assets.profiling.worker_ops import OperatorTimer, _HostLaps

DIES = "GST_TEST_DIES_AFTER_A_BLOCK"


class CheckedTimer(OperatorTimer):
    """The worker extension, which also says how far its walk is from the model."""

    def gst_operator_facts(self) -> dict[str, Any]:
        batches = [[(0, 9)], [(40, 1), (3, 1), (100, 1)], [(33, 70), (5, 1)]]
        return super().gst_operator_facts() | {"walk_difference": max(map(self._gst_difference, batches))}

    def _gst_difference(self, batch: list[tuple[int, int]]) -> float:
        """Largest absolute difference of a logit between the walk and vLLM's own forward pass on the same batch."""
        import torch
        from vllm.forward_context import set_forward_context

        inputs, metadata, slots = self._gst_prepare(batch)
        count = len(inputs["token_ids"])
        model = self.model_runner.model
        with (
            torch.inference_mode(),
            set_forward_context(metadata, self.vllm_config, num_tokens=count, slot_mapping=slots),
        ):
            with self._gst_without_sums():
                walked = self._gst_walk(inputs, _HostLaps())
            hidden = model(input_ids=inputs["token_ids"], positions=inputs["positions"])
            expected = model.compute_logits(hidden[inputs["last_rows"]])
        assert expected.abs().max() > 0
        return float((walked - expected).abs().max())


def _die_after_a_block() -> None:
    """As `kill -9` of its process group would, at a moment that no clock decides."""
    keep = PartialProfile.keep_operator_block

    def keep_and_die(self: PartialProfile, key: str, value: Any) -> None:
        keep(self, key, value)
        os.killpg(0, signal.SIGKILL)

    PartialProfile.keep_operator_block = keep_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    if DIES in os.environ:
        _die_after_a_block()
    measure_bundle._WORKER_EXTENSION = "gst_assets_tests.profiling.checked_run.CheckedTimer"
    sys.exit(measure_bundle.main())
