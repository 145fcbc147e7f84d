"""What the steps of a run add up to whatever way its prompts were cut. No test stands here."""

from __future__ import annotations

import pandas as pd


def check_contexts(steps: pd.DataFrame, requests: pd.DataFrame) -> None:
    """Contexts and (query, key) pairs of all steps are those of the requests; without preemptions and prefix
    caching."""
    prompts, tokens = requests["num_prefill_tokens"], requests["num_decode_tokens_actual"]
    # Token n of a prompt sees n tokens, however the prompt is cut.
    assert steps["num_attention_pairs"].sum() == (prompts * (prompts + 1) // 2).sum()
    # The step that gives token n + 1 finds the prompt and n - 1 tokens' KV.
    later = tokens - 1
    decoded = (steps["num_context_tokens"] - steps["num_prefill_context_tokens"]).sum()
    assert decoded == (later * prompts + later * (later - 1) // 2).sum()
    without = steps["num_prefill_requests"] == 0
    assert not steps.loc[without, ["num_prefill_context_tokens", "num_attention_pairs"]].any(axis=None)
    whole = steps["num_prefill_tokens"] * (steps["num_prefill_tokens"] + 1) // 2
    lone = (steps["num_prefill_requests"] == 1) & (steps["num_prefill_context_tokens"] == 0)
    assert lone.any() and (steps.loc[lone, "num_attention_pairs"] == whole[lone]).all()
