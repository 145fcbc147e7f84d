"""Token lengths of the requests of a prompts file: what the prompt counts, and how many tokens are asked of it.

Lengths of a trace or of a distribution belong to `requests`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Scenario
from gst_assets.workload.prompts import Prompt


def build_trace_lengths(
    scenario: Scenario, prompts: Sequence[Prompt], counts: Sequence[int], tokenizer: str
) -> pd.DataFrame:
    """The trace_lengths table (`contracts.tables.TraceLengths`) of a scenario's requests. `counts`: tokens of each
    prompt under `tokenizer`, which is only named in errors.

    Raises:
        WorkloadError: a prompt without tokens or without a usable number of tokens to ask for, or one that leaves no
            room for them within model.max_model_len (names the prompt and both lengths; nothing is cut).
    """
    source, limit = scenario.workload.prompts, scenario.model.max_model_len
    asked = [_tokens_to_ask(scenario, prompt) for prompt in prompts]
    for prompt, count, tokens in zip(prompts, counts, asked, strict=True):
        if count == 0:
            raise WorkloadError(
                f"{source}: prompt {prompt.prompt_id!r} has no tokens under {tokenizer}. Remove or extend it."
            )
        if count + tokens > limit:
            raise WorkloadError(
                f"{source}: prompt {prompt.prompt_id!r} has {count} tokens; with {tokens} tokens asked of it that is "
                f"{count + tokens}, beyond model.max_model_len {limit}. Shorten the prompt, lower "
                "workload.num_decode_tokens, or raise the limit."
            )
    num_requests = scenario.workload.num_requests or len(prompts)
    prompt_of = np.arange(num_requests) % len(prompts)
    ids = pd.array([prompt.prompt_id for prompt in prompts], dtype="str")
    return pd.DataFrame(
        {
            "request_id": pd.array(np.arange(num_requests), dtype="Int64"),
            "prompt_id": ids.take(prompt_of),
            "num_prefill_tokens": pd.array(np.array(counts)[prompt_of], dtype="Int64"),
            "num_decode_tokens": pd.array(np.array(asked)[prompt_of], dtype="Int64"),
        }
    )


def _tokens_to_ask(scenario: Scenario, prompt: Prompt) -> int:
    if scenario.workload.num_decode_tokens is not None:
        return scenario.workload.num_decode_tokens
    value = prompt.extra.get("num_decode_tokens")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WorkloadError(
            f"{scenario.workload.prompts}: prompt {prompt.prompt_id!r} has num_decode_tokens {value!r}, expected an"
            " integer of at least 1. Give every prompt one, or set workload.num_decode_tokens for all."
        )
    return value
