"""Token lengths of each request: what its prompt counts, and how many tokens are asked of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Scenario
from gst_assets.workload.prompts import Prompt, prompts_of_requests
from gst_assets.workload.tokenizer import Tokenizer


def build_trace_lengths(scenario: Scenario, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> pd.DataFrame:
    """The trace_lengths table (`contracts.tables.TraceLengths`) of a scenario's requests.

    Raises:
        WorkloadError: a prompt without tokens or without a usable number of tokens to ask for, or one that leaves no room for them within
            model.max_model_len (names the prompt and both lengths; nothing is cut).
    """
    source, limit = scenario.workload.prompts, scenario.model.max_model_len
    prefill = dict(
        zip((prompt.prompt_id for prompt in prompts), tokenizer.count([prompt.text for prompt in prompts]), strict=True)
    )
    decode = {prompt.prompt_id: _tokens_to_ask(scenario, prompt) for prompt in prompts}
    for prompt_id, count in prefill.items():
        if count == 0:
            raise WorkloadError(
                f"{source}: prompt {prompt_id!r} has no tokens under {tokenizer.reference}. Remove or extend it."
            )
        if count + decode[prompt_id] > limit:
            raise WorkloadError(
                f"{source}: prompt {prompt_id!r} has {count} tokens; with {decode[prompt_id]} tokens asked of it that is "
                f"{count + decode[prompt_id]}, beyond model.max_model_len {limit}. Shorten the prompt, lower "
                "workload.num_decode_tokens, or raise the limit."
            )
    ids = [prompt.prompt_id for prompt in prompts_of_requests(prompts, scenario.workload.num_requests)]
    frame = pd.DataFrame(
        {
            "request_id": range(len(ids)),
            "prompt_id": pd.Series(ids, dtype="str"),
            "num_prefill_tokens": [prefill[prompt_id] for prompt_id in ids],
            "num_decode_tokens": [decode[prompt_id] for prompt_id in ids],
        }
    )
    return frame.astype({"request_id": "Int64", "num_prefill_tokens": "Int64", "num_decode_tokens": "Int64"})


def _tokens_to_ask(scenario: Scenario, prompt: Prompt) -> int:
    if scenario.workload.num_decode_tokens is not None:
        return scenario.workload.num_decode_tokens
    value = prompt.extra.get("num_decode_tokens")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WorkloadError(
            f"{scenario.workload.prompts}: prompt {prompt.prompt_id!r} has num_decode_tokens {value!r}, expected an integer of at least 1. "
            "Give every prompt one, or set workload.num_decode_tokens for all."
        )
    return value
