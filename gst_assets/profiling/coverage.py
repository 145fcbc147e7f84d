"""Whether the operators add up: their sum compared with whole steps as the device was seen to run them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd

from gst_assets.errors import ProfileError
from gst_assets.profiling.step_samples import WatchedSteps
from gst_assets.profiling.term_fit import MIN_SAMPLES
from gst_assets.step_costs.operators import WholeStepOperators
from gst_assets.step_costs.shapes import StepShape


def operator_coverage(steps: WatchedSteps, operators: WholeStepOperators) -> pd.DataFrame:
    """The table `contracts.tables.OperatorCoverage`: one row for each kind and padded number of tokens seen often
    enough.

    Steps with several prompts, or with a prompt that was cut, are left out: their attention cannot be read off the
    profile point by point.
    """
    found: dict[tuple[str, int], list[tuple[float, float, int, int]]] = defaultdict(list)
    for (term, kind), (places, ns) in steps.samples().items():
        if term != "device":
            continue
        for n, whole_ns in zip(places.tolist(), ns.tolist(), strict=True):
            held = steps.features[n]
            if held.reread_context_token:  # the operators were measured on KV blocks that nobody shares
                continue
            if held.prefill_request > 1 or held.attention_pair != held.prefill_token * (held.prefill_token + 1) // 2:
                continue
            chunks = [(0, held.prefill_token)] if held.prefill_request else []
            try:
                operators_ns = operators.ns(StepShape(held.decode_request, held.decode_context_token, chunks))
            except ProfileError:  # a context that the operators' grid does not have
                continue
            tokens = steps.graphs.padded(held.prefill_token + held.decode_request)
            found[kind, tokens].append((whole_ns, operators_ns, held.decode_request, held.decode_context_token))
    rows = []
    for (kind, tokens), seen in sorted(found.items()):
        if len(seen) < MIN_SAMPLES:
            continue
        whole, operators_ns, decodes, context = (float(value) for value in np.median(np.array(seen), axis=0))
        rows.append(
            {
                "step_kind": kind,
                "num_tokens": tokens,
                "num_decode_requests": round(decodes),
                "num_context_tokens": round(context),
                "num_samples": len(seen),
                "whole_step_ns": round(whole),
                "operators_ns": round(operators_ns),
                "coverage": round(operators_ns / whole, 4),
            }
        )
    types = dict.fromkeys(_INTEGERS, "Int64") | {"step_kind": "str", "coverage": "float64"}
    return pd.DataFrame(rows, columns=["step_kind", *_INTEGERS, "coverage"]).astype(types)


_INTEGERS = (
    "num_tokens", "num_decode_requests", "num_context_tokens", "num_samples", "whole_step_ns", "operators_ns",
)  # fmt: skip
