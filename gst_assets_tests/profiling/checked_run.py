"""The profiler's command with one addition inside the worker: the timed walk is compared with the model's own forward
pass.

Run as a module by `test_run`; the result is in the bundle's run_meta.json under `worker`.
"""

from __future__ import annotations

import sys
from typing import Any

from gst_assets.profiling import measure_bundle
from gst_assets.profiling.worker_ops import OperatorTimer, _HostLaps


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
            walked = self._gst_walk(inputs, _HostLaps())
            hidden = model(input_ids=inputs["token_ids"], positions=inputs["positions"])
            expected = model.compute_logits(hidden[inputs["last_rows"]])
        assert expected.abs().max() > 0
        return float((walked - expected).abs().max())


if __name__ == "__main__":
    measure_bundle._WORKER_EXTENSION = "gst_assets_tests.profiling.checked_run.CheckedTimer"
    sys.exit(measure_bundle.main())
