"""What the worker reports of quantised weights, from the figures that only an engine with them has."""

from __future__ import annotations

import pytest

from gst_assets.engine.vllm_worker import quantization_of

_CUTLASS, _MARLIN = "CutlassFP8ScaledMMLinearKernel", "MarlinFP8ScaledMMLinearKernel"


@pytest.mark.parametrize(
    ("method", "weights", "kernels", "quantization", "told"),
    [
        (None, ["bfloat16"], ["UnquantizedLinearMethod"], None, None),
        ("fp8_per_tensor", ["float8_e4m3fn"], [_CUTLASS], "fp8", _CUTLASS),
        # On a GPU without FP8 units four weights lie in an integer, and products are computed in bfloat16.
        ("fp8_per_tensor", ["int32"], [_MARLIN], "fp8_per_tensor, weights stored as int32", _MARLIN),
        ("fp8_per_tensor", ["float8_e4m3fn", "bfloat16"], [_CUTLASS, "UnquantizedLinearMethod"],
         "fp8_per_tensor, weights stored as bfloat16, float8_e4m3fn", f"{_CUTLASS},UnquantizedLinearMethod"),
        # A checkpoint's own method: its scales may be of blocks, which other kernels compute.
        ("fp8", ["float8_e4m3fn"], [_CUTLASS], "fp8, weights stored as float8_e4m3fn", _CUTLASS),
        ("awq", ["unknown"], ["AWQLinearMethod"], "awq, weights stored as unknown", "AWQLinearMethod"),
    ],
)  # fmt: skip
def test_fp8_is_said_only_of_weights_that_are_all_e4m3_by_the_method_asked_for(
    method: str | None, weights: list[str], kernels: list[str], quantization: str | None, told: str | None
) -> None:
    assert quantization_of(method, weights, kernels) == {"quantization": quantization, "quantized_kernels": told}
